use std::fs;

use tempfile::TempDir;

use super::*;

#[test]
fn url_when_of_a_server_then_taken_apart_and_else_refused() {
    for (url, host, port, path, shown) in [
        (
            "https://10.0.0.1:6443",
            "10.0.0.1",
            6443,
            "",
            "https://10.0.0.1:6443",
        ),
        ("http://localhost", "localhost", 80, "", "http://localhost:80"),
        (
            "https://api.example/",
            "api.example",
            443,
            "",
            "https://api.example:443",
        ),
        (
            "https://x:1/k8s/clusters/c-1/",
            "x",
            1,
            "/k8s/clusters/c-1",
            "https://x:1/k8s/clusters/c-1",
        ),
        (
            "https://[fd00::1]:6443",
            "fd00::1",
            6443,
            "",
            "https://[fd00::1]:6443",
        ),
        ("https://[fd00::1]", "fd00::1", 443, "", "https://[fd00::1]:443"),
    ] {
        let server = Server::at(url).unwrap();
        assert_eq!(
            (&*server.host, server.port, &*server.path),
            (host, port, path),
            "{url}"
        );
        assert_eq!(server.url(), shown);
    }
    for url in [
        "",
        "x",
        "x:6443",
        "ftp://x",
        "https://",
        "https://:1",
        "https://x:",
        "https://x:99999",
        "https://x:y",
        "https://u@x",
        "https://x?y",
        "https://x y",
        "https://[fd00::1",
        "https://[fd00::1]x",
        "https://[]",
    ] {
        // A colon without a port is what a URL may have.
        assert!(matches!(url, "https://x:") || check_url(url).is_err(), "{url}");
    }
}

/// An authority's certificate and a client's with its key, PEM.
fn certificates_of_a_client() -> (String, String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["kubernetes".to_owned()]).unwrap();
    (made.cert.pem(), made.cert.pem(), made.signing_key.serialize_pem())
}

fn written(folder: &TempDir, text: &str) -> Access {
    let path = folder.path().join("admin.conf");
    fs::write(&path, text).unwrap();
    Access::Kubeconfig { path, url: None }
}

fn kubeconfig(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: here\ncontexts:\n- name: elsewhere\n  context: {{cluster: x, user: y}}\n\
         - name: here\n  context:\n    cluster: lab\n    user: me\n    namespace: default\nclusters:\n- name: lab\n  cluster:\n    server: https://172.20.255.254:6443\n\
         {cluster}\nusers:\n- name: me\n  user:\n    x-unknown: 1\n{user}\n"
    )
}

#[test]
fn kubeconfig_when_as_kubeadm_writes_it_then_read_with_what_it_holds_or_names() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, certificate, key) = certificates_of_a_client();
    let base64 = |text: &str| BASE64_STANDARD.encode(text);
    let text = kubeconfig(
        &format!("    certificate-authority-data: {}", base64(&authority)),
        &format!(
            "    client-certificate-data: {}\n    client-key-data: {}",
            base64(&certificate),
            base64(&key)
        ),
    );
    let server = Server::find(&written(&folder, &text)).unwrap();
    assert_eq!(
        (server.url().as_str(), &server.token),
        ("https://172.20.255.254:6443", &None)
    );
    assert!(
        server
            .tls()
            .unwrap()
            .unwrap()
            .client_auth_cert_resolver
            .has_certs()
    );
    assert!(!format!("{server:?}").contains("BEGIN"));
    // Files beside it, and a token in a file of its own.
    fs::write(folder.path().join("ca.crt"), &authority).unwrap();
    fs::write(folder.path().join("token"), "t0ken\n").unwrap();
    let text = kubeconfig(
        "    certificate-authority: ca.crt",
        "    tokenFile: token\n    token: other",
    );
    let server = Server::find(&written(&folder, &text)).unwrap();
    assert_eq!(server.token.as_deref(), Some("t0ken"));
    assert!(
        !server
            .tls()
            .unwrap()
            .unwrap()
            .client_auth_cert_resolver
            .has_certs()
    );
    assert_eq!(server.name, "172.20.255.254");
    let text = kubeconfig("    tls-server-name: kubernetes.default", "");
    let named = Server::find(&written(&folder, &text)).unwrap();
    assert_eq!(named.name, "kubernetes.default");
    // As JSON, which is YAML.
    let json = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"l","user":""}}],"clusters":[{"name":"l","cluster":{"server":"http://h:1"}}]}"#;
    let server = Server::find(&written(&folder, json)).unwrap();
    assert_eq!(server.url(), "http://h:1");
    assert!(server.tls().unwrap().is_none());
    // The flag's URL goes before the file's.
    let Access::Kubeconfig { path, .. } = written(&folder, json) else {
        panic!()
    };
    let url = Some("https://other:2".to_owned());
    assert_eq!(
        Server::find(&Access::Kubeconfig { path, url }).unwrap().url(),
        "https://other:2"
    );
}

#[test]
fn kubeconfig_when_something_is_wrong_then_the_file_and_the_key_are_named_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let good = kubeconfig("", "    token: s3cret");
    for (text, words) in [
        (": [s3cret".to_owned(), "expected a kubeconfig in YAML"),
        ("s3cret".to_owned(), "expected a kubeconfig in YAML"),
        (
            good.replace("current-context: here", "current-context: there"),
            "current-context is \"there\"",
        ),
        (
            good.replace("    cluster: lab", "    cluster: lob"),
            "cluster \"lob\" of the context",
        ),
        (
            good.replace("    user: me", "    user: you"),
            "user \"you\" of the context",
        ),
        (
            kubeconfig("    insecure-skip-tls-verify: true", ""),
            "insecure-skip-tls-verify: not supported",
        ),
        (
            kubeconfig("    proxy-url: http://u:s3cret@p", ""),
            "proxy-url: not supported",
        ),
        (
            kubeconfig("", "    username: u\n    password: s3cret"),
            "username and password: no API server",
        ),
        (
            kubeconfig("", "    client-certificate-data: eA=="),
            "client-certificate and client-key: expected both or none",
        ),
        (
            good.replace("https://172", "https://u:s3cret@172"),
            "API server \"...@172.20.255.254:6443\": expected http",
        ),
        (
            kubeconfig("", "    exec: {command: aws}"),
            "credentials by exec or auth-provider: not supported",
        ),
        (
            kubeconfig("    certificate-authority-data: s3cret!", ""),
            "certificate-authority-data: expected base64",
        ),
        (kubeconfig("", "    tokenFile: nowhere"), "nowhere: No such file"),
    ] {
        let error = Server::find(&written(&folder, &text)).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("s3cret"), "{error}");
    }
    let nothing = Access::Kubeconfig {
        path: folder.path().join("none"),
        url: None,
    };
    let error = Server::find(&nothing).unwrap_err().to_string();
    assert!(
        error.ends_with("none: No such file or directory (os error 2)"),
        "{error}"
    );
    let junk = kubeconfig(
        &format!(
            "    certificate-authority-data: {}",
            BASE64_STANDARD.encode("junk")
        ),
        "",
    );
    let error = Server::find(&written(&folder, &junk))
        .unwrap()
        .tls()
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("expected PEM certificates"), "{error}");
}

#[test]
fn pod_when_it_runs_somewhere_then_its_node_is_known() {
    assert_eq!(
        node_of_pod(r#"{"spec":{"nodeName":"n1","containers":[]}}"#).as_deref(),
        Some("n1")
    );
    for none in ["{}", r#"{"spec":{}}"#, r#"{"spec":{"nodeName":""}}"#, "[", "7"] {
        assert_eq!(node_of_pod(none), None, "{none}");
    }
}
