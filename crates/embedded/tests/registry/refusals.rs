//! What the server does not do, it refuses by name.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use embedded::{OpenError, ServeError, ServeOptions};
use etcd_proto::etcdserverpb as pb;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::differential::put;
use crate::rig::{Clients, Ours, Process};

fn refused<T>(result: Result<tonic::Response<T>, Status>, method: &str) {
    let status = result.err().unwrap_or_else(|| panic!("{method} was answered"));
    let text = format!("flannelctl registry: {method} is not built in; use a real etcd");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unimplemented, text.as_str())
    );
}

#[tokio::test]
async fn methods_when_they_are_left_out_are_refused_by_name() {
    let dir = TempDir::new().expect("a directory");
    let server = Ours::start(dir.path()).await;
    let Clients {
        mut cluster,
        mut maintenance,
        ..
    } = Clients::connect(&server.url).await;
    refused(maintenance.hash(pb::HashRequest {}).await, "Maintenance.Hash");
    refused(
        maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await,
        "Maintenance.HashKV",
    );
    refused(
        maintenance.snapshot(pb::SnapshotRequest {}).await,
        "Maintenance.Snapshot",
    );
    refused(
        maintenance
            .move_leader(pb::MoveLeaderRequest { target_id: 1 })
            .await,
        "Maintenance.MoveLeader",
    );
    let activate = pb::AlarmRequest {
        action: 1,
        member_id: 0,
        alarm: 1,
    };
    refused(maintenance.alarm(activate).await, "Maintenance.Alarm ACTIVATE");
    refused(
        cluster.member_add(pb::MemberAddRequest::default()).await,
        "Cluster.MemberAdd",
    );
    refused(
        cluster.member_remove(pb::MemberRemoveRequest { id: 1 }).await,
        "Cluster.MemberRemove",
    );
    refused(
        cluster.member_update(pb::MemberUpdateRequest::default()).await,
        "Cluster.MemberUpdate",
    );
    refused(
        cluster.member_promote(pb::MemberPromoteRequest { id: 1 }).await,
        "Cluster.MemberPromote",
    );
    let channel = tonic::transport::Endpoint::from_shared(server.url.clone())
        .expect("URL")
        .connect_lazy();
    let mut auth = pb::auth_client::AuthClient::new(channel);
    refused(
        auth.auth_enable(pb::AuthEnableRequest {}).await,
        "Auth.AuthEnable",
    );
    let login = pb::AuthenticateRequest {
        name: "root".into(),
        password: "secret".into(),
    };
    refused(auth.authenticate(login).await, "Auth.Authenticate");
    server.stop().await;
}

#[tokio::test]
async fn etcdctl_when_it_uses_what_is_left_out_hears_the_name() {
    let dir = TempDir::new().expect("a directory");
    let ours = Process::ours(dir.path());
    let snapshot = dir.path().join("snapshot").display().to_string();
    for (args, method) in [
        (vec!["user", "add", "u:p"], "Auth.UserAdd"),
        (vec!["role", "list"], "Auth.RoleList"),
        (vec!["auth", "enable"], "Auth."),
        (
            vec!["member", "add", "n", "--peer-urls=http://127.0.0.1:1"],
            "Cluster.MemberAdd",
        ),
        (vec!["endpoint", "hashkv"], "Maintenance.HashKV"),
        (vec!["snapshot", "save", &snapshot], "Maintenance.Snapshot"),
    ] {
        let output = Command::new("timeout")
            .args(["10", "etcdctl", "--endpoints", &ours.url])
            .args(&args)
            .env("ETCDCTL_API", "3")
            .output()
            .expect("etcdctl runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(&format!("registry: {method}")),
            "{args:?}: {output:?}"
        );
    }
}

/// One HTTP/1 request as it is on the wire: the status line and the body.
fn http(url: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("a connection");
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a response");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    (
        head.lines().next().unwrap_or_default().to_owned(),
        body.to_owned(),
    )
}

#[tokio::test]
async fn http_1_when_asked_serves_health_and_version_and_refuses_the_v2_api_by_name() {
    let dir = TempDir::new().expect("a directory");
    let (ours, etcd) = (Process::ours(dir.path()), Process::etcd().await);
    for path in ["GET /health", "GET /nothing"] {
        assert_eq!(http(&ours.url, path).0, http(&etcd.url, path).0);
    }
    assert_eq!(
        http(&ours.url, "GET /health").1,
        http(&etcd.url, "GET /health").1.trim_end()
    );
    let (_, version) = http(&ours.url, "GET /version");
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    assert!(
        version["etcdserver"]
            .as_str()
            .expect("a version")
            .starts_with("3.4."),
        "{version}"
    );
    assert_eq!(
        http(&ours.url, "POST /version").0,
        "HTTP/1.1 405 Method Not Allowed"
    );
    for (request, named) in [
        ("GET /v2/keys/coreos.com/network/config", "the etcd v2 API"),
        ("PUT /v2/keys/a?prevExist=false", "the etcd v2 API"),
        ("GET /v2", "the etcd v2 API"),
        ("POST /v3/kv/range", "JSON gateway"),
    ] {
        let (status, body) = http(&ours.url, request);
        assert_eq!(status, "HTTP/1.1 501 Not Implemented", "{request}");
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let message = body["message"].as_str().expect("a message");
        assert!(
            message.contains(named) && message.ends_with("is not built in; use a real etcd"),
            "{message}"
        );
    }
}

async fn open_error(options: ServeOptions) -> String {
    let started = embedded::serve(options, std::future::pending()).await;
    let text = started.expect_err("a refusal").to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

fn options(listen: &str, dir: &Path) -> ServeOptions {
    ServeOptions {
        listen: vec![listen.into()],
        data_dir: dir.to_owned(),
        tls: None,
        insecure: false,
    }
}

#[tokio::test]
async fn listening_when_it_is_beyond_loopback_needs_tls_or_the_word_insecure() {
    let dir = TempDir::new().expect("a directory");
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let text = open_error(options(listen, dir.path())).await;
        assert!(
            text.contains(listen) && text.contains("--insecure") && text.contains("--cert-file"),
            "{text}"
        );
    }
    for (listen, named) in [
        ("127.0.0.1", "HOST:PORT"),
        ("127.0.0.1:x", "HOST:PORT"),
        ("", "HOST:PORT"),
    ] {
        let text = open_error(options(listen, dir.path())).await;
        assert!(text.contains(named), "{text}");
    }
    let insecure = ServeOptions {
        insecure: true,
        ..options("0.0.0.0:0", dir.path())
    };
    let bound = embedded::serve(insecure, async {}).await.expect("asked for");
    bound.finished().await.expect("a clean stop");
}

#[tokio::test]
async fn a_second_server_when_the_directory_is_in_use_is_told_so() {
    let dir = TempDir::new().expect("a directory");
    let server = Ours::start(dir.path()).await;
    let text = open_error(options("127.0.0.1:0", dir.path())).await;
    assert!(
        text.contains("another registry is running on it")
            && text.contains(&dir.path().display().to_string())
    );
    server.stop().await;
    Ours::start(dir.path()).await.stop().await;

    let etcd = TempDir::new().expect("a directory");
    fs::create_dir(etcd.path().join("member")).expect("a directory");
    let text = open_error(options("127.0.0.1:0", etcd.path())).await;
    assert!(text.contains("real etcd's data"), "{text}");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("a file");
    let text = open_error(options("127.0.0.1:0", &file)).await;
    assert!(text.contains(&file.display().to_string()), "{text}");
}

#[tokio::test]
async fn a_store_when_its_file_is_damaged_is_refused_in_one_line() {
    let dir = TempDir::new().expect("a directory");
    let server = Ours::start(dir.path()).await;
    let mut clients = Clients::connect(&server.url).await;
    for i in 0..200 {
        clients
            .kv
            .put(put(&format!("key {i}"), &"value ".repeat(50)))
            .await
            .expect("a put");
    }
    server.stop().await;
    let path = dir.path().join("registry.redb");
    let whole = fs::read(&path).expect("the store");
    let find = |needle: &[u8]| {
        whole
            .windows(needle.len())
            .rposition(|window| window == needle)
            .expect("a row")
    };
    let row = u64::try_from(find(b"value value")).expect("small");

    let mut damages: Vec<Vec<u8>> = vec![vec![], b"hello".to_vec(), vec![0; whole.len()]];
    damages.extend([1000, 4096, whole.len() / 2, whole.len() - 1].map(|length| whole[..length].to_vec()));
    for damaged in damages {
        fs::write(&path, &damaged).expect("a damaged file");
        let started = embedded::serve(options("127.0.0.1:0", dir.path()), std::future::pending()).await;
        let error = started
            .err()
            .unwrap_or_else(|| panic!("{} bytes of {} are served", damaged.len(), whole.len()));
        assert!(
            matches!(error, ServeError::Open(OpenError::Damaged { .. })),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            !text.contains('\n') && text.contains("registry.redb") && text.contains("damaged"),
            "{text}"
        );
    }
    // One flipped byte in a value: the engine's checksums see it.
    fs::write(&path, &whole).expect("the whole file");
    fs::File::options()
        .write(true)
        .open(&path)
        .expect("the store")
        .write_at(b"V", row)
        .expect("one byte");
    let text = open_error(options("127.0.0.1:0", dir.path())).await;
    assert!(text.contains("damaged"), "{text}");
    fs::write(&path, &whole).expect("the whole file");
    Ours::start(dir.path()).await.stop().await;
}
