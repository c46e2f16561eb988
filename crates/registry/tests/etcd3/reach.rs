//! Endpoints, TLS, users.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::authority::Authority;
use crate::rig::{Server, ServerTls, Watching, free_port, wait_until, with_tls};
use registry::etcd::{Options, TlsFiles};
use registry::{Etcd3, Registry, RegistryError};

/// Whether the config, which is not there, can be asked for.
async fn answer(options: &Options) -> Result<(), String> {
    match Etcd3::new(options).unwrap().network_config().await {
        Err(RegistryError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(_) => panic!("there is no config"),
    }
}

#[tokio::test]
async fn an_authority_alone_is_enough_for_tls() {
    let authority = Authority::new();
    let (keyfile, certfile) = authority.issue("server");
    let tls = ServerTls {
        certfile,
        keyfile,
        trusted: None,
    };
    let server = Server::start_with(Some(tls), &[]);
    assert_eq!(
        answer(&with_tls(&server, &authority.cafile(), None)).await,
        Ok(())
    );

    let strange = Authority::new();
    let error = answer(&with_tls(&server, &strange.cafile(), None))
        .await
        .unwrap_err();
    assert!(error.contains("TLS") && error.contains("certificate"), "{error}");
    let error = answer(&with_tls(&server, Path::new("/no/such/ca.pem"), None))
        .await
        .unwrap_err();
    assert!(error.contains("etcd-cafile /no/such/ca.pem"), "{error}");
    // Plain text to a TLS port: an error, not a hang.
    let plain = Options {
        endpoints: server.endpoint().replace("https", "http"),
        ..server.options()
    };
    let error = answer(&plain).await.unwrap_err();
    assert!(error.contains("http://127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_demands_one_and_read_anew_for_each_connection() {
    let authority = Authority::new();
    let (keyfile, certfile) = authority.issue("server");
    let tls = ServerTls {
        certfile,
        keyfile,
        trusted: Some(authority.cafile()),
    };
    let mut server = Server::start_with(Some(tls), &[]);
    // In TLS 1.3 the refusal comes after the handshake, and often nothing but the end of the connection.
    let nobody = with_tls(&server, &authority.cafile(), None);
    for _ in 0..5 {
        let error = answer(&nobody).await.unwrap_err();
        assert!(
            error.contains("asks for a client certificate, and there is none"),
            "{error}"
        );
    }
    let (old_key, old_cert) = authority.issue_for("old", -1);
    let late = with_tls(&server, &authority.cafile(), Some((&old_cert, &old_key)));
    let error = answer(&late).await.unwrap_err();
    let named = format!(
        "by this host's clock etcd-certfile {} has expired",
        old_cert.display()
    );
    assert!(error.contains(&named), "{error}");
    let unknown = Authority::new();
    let (other_key, other_cert) = unknown.issue("other");
    let other = with_tls(&server, &authority.cafile(), Some((&other_cert, &other_key)));
    let error = answer(&other).await.unwrap_err();
    let named = format!("does it accept that of etcd-certfile {}?", other_cert.display());
    assert!(error.contains(&named), "{error}");

    let (key, cert) = authority.issue("client");
    let options = with_tls(&server, &authority.cafile(), Some((&cert, &key)));
    let etcd = std::sync::Arc::new(Etcd3::new(&options).unwrap());
    let watching = Watching::start(&etcd);
    watching.snapshot().await;
    wait_until("the watch", || etcd.states().borrow().watching).await;

    // The files are exchanged for some of another authority: the next connection fails; put right: the one after works.
    let strange = Authority::new();
    let (strange_key, strange_cert) = strange.issue("client");
    let (good_key, good_cert) = (std::fs::read(&key).unwrap(), std::fs::read(&cert).unwrap());
    std::fs::copy(&strange_key, &key).unwrap();
    std::fs::copy(&strange_cert, &cert).unwrap();
    server.kill();
    server.start_again();
    let refused = || {
        etcd.states()
            .borrow()
            .last_failure
            .as_ref()
            .is_some_and(|f| f.error.contains("ertificate") || f.error.contains("alert"))
    };
    wait_until("a refusal", refused).await;
    assert!(!etcd.states().borrow().watching);
    std::fs::write(&key, good_key).unwrap();
    std::fs::write(&cert, good_cert).unwrap();
    watching.snapshot().await;
}

#[tokio::test]
async fn each_endpoints_own_scheme_decides_and_dead_ones_are_passed_over() {
    let authority = Authority::new();
    let (keyfile, certfile) = authority.issue("server");
    let server = Server::start();
    let files = TlsFiles {
        cafile: Some(authority.cafile()),
        certfile: Some(certfile),
        keyfile: Some(keyfile),
    };
    // Plain http although certificates are given; the first endpoint is dead, whichever is tried first.
    for _ in 0..4 {
        let options = Options {
            endpoints: format!("https://127.0.0.1:{},{}", free_port(), server.endpoint()),
            tls: files.clone(),
            ..server.options()
        };
        assert_eq!(answer(&options).await, Ok(()));
    }
}

#[tokio::test]
async fn an_endpoint_that_takes_connections_and_never_answers_costs_seconds_once() {
    let server = Server::start();
    // Where there is no config, what is near its place is asked for, too.
    server.put("/n/config", "{}");
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    for _ in 0..2 {
        let options = Options {
            endpoints: format!("http://127.0.0.1:{port},{}", server.endpoint()),
            ..server.options()
        };
        let etcd = Etcd3::new(&options).unwrap();
        assert_eq!(etcd.network_config().await.unwrap(), b"{}");
        assert_eq!(
            etcd.states().borrow().endpoint.as_deref(),
            Some(server.endpoint().as_str())
        );
        // Sticky: from now on only the good one is asked.
        let before = etcd.requests();
        for _ in 0..5 {
            assert_eq!(etcd.network_config().await.unwrap(), b"{}");
        }
        assert_eq!(etcd.requests(), before + 5);
    }
}

#[tokio::test]
async fn after_a_change_of_the_way_a_new_connection_is_made_while_the_old_one_hangs() {
    let server = Server::start();
    // A relay whose first connection falls silent, as one does whose own address is gone.
    let relay = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let options = Options {
        endpoints: format!("http://{}", relay.local_addr().unwrap()),
        ..server.options()
    };
    let port = server.client_port();
    let (hang, hung) = tokio::sync::watch::channel(false);
    let (made, connections) = tokio::sync::watch::channel(0);
    let relaying = tokio::spawn(async move {
        while let Ok((mut near, _)) = relay.accept().await {
            let mut far = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            made.send_modify(|made| *made += 1);
            let is_first = *made.borrow() == 1;
            let mut hung = hung.clone();
            tokio::spawn(async move {
                let falls_silent = async {
                    let _ = hung.wait_for(|hung| *hung && is_first).await;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = falls_silent => std::future::pending().await,
                }
            });
        }
    });
    let etcd = Etcd3::new(&options).unwrap();
    let ask = || async {
        assert!(matches!(
            etcd.network_config().await,
            Err(RegistryError::NotFound { .. })
        ));
    };
    ask().await;
    ask().await;
    assert_eq!(*connections.borrow(), 1);
    hang.send_replace(true);
    etcd.reconnect().await;
    ask().await;
    assert_eq!(*connections.borrow(), 2);
    assert_eq!(
        etcd.states().borrow().last_failure,
        None,
        "nobody waited for the old one"
    );
    relaying.abort();
}

#[tokio::test]
async fn a_unix_socket_is_an_endpoint() {
    // etcd binds unix://localhost:<port> to a socket of that name in its working directory; here it is reached through a
    // relay, so that the test needs no particular directory.
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let port = server.client_port();
    let relay = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let options = Options {
        endpoints: format!("unix://{}", path.display()),
        ..server.options()
    };
    assert_eq!(answer(&options).await, Ok(()));
    relay.abort();
}

fn enable_users(server: &Server) {
    for args in [
        &["user", "add", "root:r00t-secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "flannel:fl4nnel-secret"],
        &["role", "add", "flannel"],
        &["role", "grant-permission", "flannel", "readwrite", "/n/", "/n0"],
        &["user", "grant-role", "flannel", "flannel"],
        &["auth", "enable"],
    ] {
        server.ctl(args);
    }
}

#[tokio::test]
async fn a_user_logs_in_and_logs_in_again_when_the_token_is_no_longer_good() {
    let server = Server::start_with(None, &["--auth-token-ttl", "1"]);
    // Credentials do no harm where there are no users.
    let user = Options {
        username: "flannel".to_owned(),
        password: "fl4nnel-secret".to_owned(),
        ..server.options()
    };
    assert_eq!(answer(&user).await, Ok(()));
    // Where there is no config, what is near its place is asked for, too.
    server.put("/n/config", "{}");
    enable_users(&server);
    let etcd = Etcd3::new(&user).unwrap();
    assert_eq!(etcd.network_config().await.unwrap(), b"{}");
    // The token ends by itself after a second without use; the server looks once a second.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = etcd.requests();
    assert_eq!(etcd.network_config().await.unwrap(), b"{}");
    assert_eq!(etcd.requests(), before + 3, "refused, login, answered");

    let error = answer(&Options {
        password: String::new(),
        ..user.clone()
    })
    .await
    .unwrap_err();
    assert!(error.contains("user name is empty"), "{error}");
    let wrong = Options {
        password: "wr0ng-secret".to_owned(),
        ..user.clone()
    };
    let error = answer(&wrong).await.unwrap_err();
    assert!(
        error.contains("authentication failed") && !error.contains("wr0ng"),
        "{error}"
    );
    assert!(!format!("{wrong:?}").contains("wr0ng"));
    let elsewhere = Options {
        prefix: "/other".to_owned(),
        ..user
    };
    let error = answer(&elsewhere).await.unwrap_err();
    assert!(error.contains("permission denied"), "{error}");
}
