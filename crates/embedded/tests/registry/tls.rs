//! TLS, with and without certificates of clients, and beyond loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use embedded::{ServeOptions, Tls};
use etcd_proto::etcdserverpb::RangeRequest;
use etcd_proto::etcdserverpb::kv_client::KvClient;
use rcgen::{CertificateParams, Issuer, KeyPair};
use tempfile::TempDir;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::differential::put;

/// An authority, and what it signs.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let dir = TempDir::new().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("a file");
        Authority {
            dir,
            issuer: Issuer::new(params, key),
        }
    }

    /// Files name.pem and name-key.pem.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params =
            CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let (cert_file, key_file) = (
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}-key.pem")),
        );
        fs::write(&cert_file, certificate.pem()).expect("a file");
        fs::write(&key_file, key.serialize_pem()).expect("a file");
        (cert_file, key_file)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

async fn get(url: &str, tls: ClientTlsConfig) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .expect("URL")
        .tls_config(tls)
        .expect("TLS");
    let channel = endpoint.connect().await.map_err(|error| format!("{error:?}"))?;
    let request = RangeRequest {
        key: b"k".to_vec(),
        ..Default::default()
    };
    KvClient::new(channel)
        .range(request)
        .await
        .map(|_| ())
        .map_err(|status| status.to_string())
}

fn options(dir: &Path, tls: Tls) -> ServeOptions {
    ServeOptions {
        listen: vec!["0.0.0.0:0".into()],
        data_dir: dir.to_owned(),
        tls: Some(tls),
        insecure: false,
    }
}

#[tokio::test]
async fn a_server_when_it_has_a_certificate_speaks_tls_and_may_listen_beyond_loopback() {
    let (ours, strangers, dir) = (
        Authority::new(),
        Authority::new(),
        TempDir::new().expect("a directory"),
    );
    let (cert_file, key_file) = ours.sign("server");
    let tls = Tls {
        cert_file,
        key_file,
        trusted_ca_file: None,
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let bound = embedded::serve(options(dir.path(), tls), shutdown)
        .await
        .expect("a server");
    let url = format!("https://127.0.0.1:{}", bound.addresses()[0].port());
    let believing = |authority: &Authority| {
        let pem = fs::read(authority.path("ca.pem")).expect("a file");
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
    };
    get(&url, believing(&ours)).await.expect("an answer");
    assert!(get(&url, believing(&strangers)).await.is_err());

    // etcdctl over TLS, also where it writes the URL into :authority.
    let ca = ours.path("ca.pem").display().to_string();
    for args in [
        vec!["put", "k", "v"],
        vec!["endpoint", "status"],
        vec!["endpoint", "health"],
    ] {
        let (url, ca, args) = (url.clone(), ca.clone(), args.clone());
        let run = tokio::task::spawn_blocking(move || {
            let mut etcdctl = Command::new("etcdctl");
            etcdctl
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &url, "--cacert", &ca])
                .args(&args)
                .output()
        });
        let output = run.await.expect("a task").expect("etcdctl runs");
        assert!(output.status.success(), "{output:?}");
    }
    let _ = stop.send(());
    bound.finished().await.expect("a clean stop");
}

#[tokio::test]
async fn a_server_when_it_trusts_an_authority_lets_only_its_clients_in() {
    let (ours, strangers, dir) = (
        Authority::new(),
        Authority::new(),
        TempDir::new().expect("a directory"),
    );
    let (cert_file, key_file) = ours.sign("server");
    let tls = Tls {
        cert_file,
        key_file,
        trusted_ca_file: Some(ours.path("ca.pem")),
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let bound = embedded::serve(options(dir.path(), tls), shutdown)
        .await
        .expect("a server");
    let url = format!("https://127.0.0.1:{}", bound.addresses()[0].port());
    let pem = fs::read(ours.path("ca.pem")).expect("a file");
    let believing = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    let as_signed_by = |authority: &Authority| {
        let (cert, key) = authority.sign("client");
        let (cert, key) = (fs::read(cert).expect("a file"), fs::read(key).expect("a file"));
        believing.clone().identity(Identity::from_pem(cert, key))
    };
    get(&url, as_signed_by(&ours)).await.expect("an answer");
    assert!(get(&url, as_signed_by(&strangers)).await.is_err());
    assert!(get(&url, believing).await.is_err());
    let _ = stop.send(());
    bound.finished().await.expect("a clean stop");
}

#[tokio::test]
async fn tls_files_when_they_are_wrong_are_named() {
    let (ours, dir) = (Authority::new(), TempDir::new().expect("a directory"));
    let (cert_file, key_file) = ours.sign("server");
    let (_, other_key) = ours.sign("other");
    let junk = ours.path("junk.pem");
    fs::write(&junk, put("k", "junk").key).expect("a file");
    let missing = ours.path("missing.pem");
    let tls = |cert: &Path, key: &Path, ca: Option<&Path>| Tls {
        cert_file: cert.to_owned(),
        key_file: key.to_owned(),
        trusted_ca_file: ca.map(Path::to_owned),
    };
    for (tls, named) in [
        (tls(&missing, &key_file, None), &missing),
        (tls(&cert_file, &missing, None), &missing),
        (tls(&junk, &key_file, None), &junk),
        (tls(&cert_file, &junk, None), &junk),
        (tls(&cert_file, &key_file, Some(&junk)), &junk),
        (tls(&cert_file, &other_key, None), &cert_file),
    ] {
        let error = embedded::serve(options(dir.path(), tls), std::future::pending())
            .await
            .expect_err("a refusal");
        let text = error.to_string();
        assert!(
            text.contains(&named.display().to_string()) && !text.contains('\n'),
            "{text}"
        );
    }
}
