//! Endpoints, TLS, users.

use std::path::Path;

use registry::etcd::Options;
use registry::{Etcd2, Registry, RegistryError};

use crate::authority::Authority;
use crate::ground::rig::{Server, ServerTls, free_port, with_tls};
use crate::ground::{CONFIG, Node, network, v2};

/// Whether the config, which is not there, can be asked for.
async fn answer(options: &Options) -> Result<(), String> {
    match Etcd2::new(options).unwrap().network_config().await {
        Err(RegistryError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(_) => panic!("there is no config"),
    }
}

#[tokio::test]
async fn tls_when_client_certificates_are_demanded_then_ours_is_shown_and_without_one_that_is_said() {
    let authority = Authority::new();
    let (keyfile, certfile) = authority.issue("server");
    let tls = ServerTls {
        certfile,
        keyfile,
        trusted: Some(authority.cafile()),
    };
    let server = Server::start_with(Some(tls), &["--enable-v2"]);
    let (key, cert) = authority.issue("client");
    let options = with_tls(&server, &authority.cafile(), Some((&cert, &key)));
    assert_eq!(answer(&options).await, Ok(()));
    let etcd = Etcd2::new(&options).unwrap();
    let (config, node) = (network(CONFIG), Node::new("192.0.2.1"));
    let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
    assert!(held.expires.is_some());

    let error = answer(&with_tls(&server, &authority.cafile(), None))
        .await
        .unwrap_err();
    assert!(
        error.contains("asks for a client certificate, and there is none"),
        "{error}"
    );
    let strange = Authority::new();
    let error = answer(&with_tls(&server, &strange.cafile(), Some((&cert, &key))))
        .await
        .unwrap_err();
    assert!(error.contains("TLS") && error.contains("certificate"), "{error}");
    let error = answer(&with_tls(&server, Path::new("/no/such/ca.pem"), None))
        .await
        .unwrap_err();
    assert!(error.contains("etcd-cafile /no/such/ca.pem"), "{error}");
}

#[tokio::test]
async fn endpoints_when_the_first_is_dead_then_the_next_is_taken() {
    let server = Server::start_with(None, &["--enable-v2"]);
    // Whichever is tried first.
    for _ in 0..4 {
        let options = Options {
            endpoints: format!("http://127.0.0.1:{},{}", free_port(), server.endpoint()),
            ..server.options()
        };
        assert_eq!(answer(&options).await, Ok(()));
    }
}

#[tokio::test]
async fn api_when_it_is_not_served_then_the_flag_of_etcd_is_named() {
    let server = Server::start();
    let error = answer(&server.options()).await.unwrap_err();
    assert!(error.contains("--enable-v2"), "{error}");
}

#[tokio::test]
async fn user_when_the_server_demands_one_then_right_words_are_let_in_and_wrong_ones_are_told() {
    let server = Server::start_with(None, &["--enable-v2"]);
    let root = ["--username", "root:r00t-secret"];
    for args in [
        &["user", "add", "root:r00t-secret"][..],
        &["user", "add", "flannel:fl4nnel-secret"],
        &["role", "add", "flannel"],
        &["role", "grant", "flannel", "--path", "/n/*", "--readwrite"],
        &["user", "grant", "flannel", "--roles", "flannel"],
        &["auth", "enable"],
    ] {
        v2::ctl(&server, args);
    }
    let revoke = ["role", "revoke", "guest", "--path", "/*", "--readwrite"];
    v2::ctl(&server, &[&root[..], &revoke[..]].concat());
    let user = Options {
        username: "flannel".to_owned(),
        password: "fl4nnel-secret".to_owned(),
        ..server.options()
    };
    assert_eq!(answer(&user).await, Ok(()));
    let etcd = Etcd2::new(&user).unwrap();
    let (config, node) = (network(CONFIG), Node::new("192.0.2.1"));
    etcd.acquire(&node.wanted(&config)).await.unwrap();

    let wrong = Options {
        password: "wr0ng-secret".to_owned(),
        ..user.clone()
    };
    for (options, why) in [
        (&wrong, "wrong password"),
        (&server.options(), "nobody"),
        (
            &Options {
                prefix: "/other".to_owned(),
                ..user
            },
            "not theirs",
        ),
    ] {
        let etcd = Etcd2::new(options).unwrap();
        let error = etcd.network_config().await.unwrap_err();
        assert!(matches!(&error, RegistryError::Refused { .. }), "{why}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
