//! `--etcd-api=auto`: which API is spoken, and what is said of that.

use registry::etcd::Options;
use registry::{EtcdAuto, Registry, RegistryError};

use crate::ground::rig::Server;
use crate::ground::{CONFIG, v2, value_of};
use crate::relay::{Lets, Relay};

const V2_LEASE: &str = "/n/subnets/10.5.7.0-24";

fn both() -> Server {
    Server::start_with(None, &["--enable-v2"])
}

fn auto(options: &Options) -> EtcdAuto {
    EtcdAuto::new(options).unwrap()
}

/// What is spoken once the config has been asked for, which is there.
async fn spoken(etcd: &EtcdAuto) -> &'static str {
    assert_eq!(etcd.network_config().await.unwrap(), CONFIG.as_bytes());
    etcd.states().borrow().spoken.unwrap()
}

fn trouble(etcd: &EtcdAuto) -> String {
    let states = etcd.states();
    let state = states.borrow();
    let words = state.trouble.as_ref();
    words
        .map(|trouble| format!("{}; {}", trouble.text, trouble.hint))
        .unwrap_or_default()
}

#[tokio::test]
async fn auto_when_only_v3_is_served_then_v3() {
    let server = Server::start();
    server.put("/n/config", CONFIG);
    let etcd = auto(&server.options());
    assert_eq!(spoken(&etcd).await, "etcd v3");
    assert_eq!(trouble(&etcd), "");
    assert_eq!(
        etcd.states().borrow().endpoint.as_deref(),
        Some(server.endpoint().as_str())
    );
}

#[tokio::test]
async fn auto_when_both_are_served_then_the_one_under_which_the_config_is() {
    let server = both();
    v2::ctl(&server, &["set", "/n/config", CONFIG]);
    let etcd = auto(&server.options());
    assert_eq!(spoken(&etcd).await, "etcd v2");
    // It was put under the other in its place: found there when it is asked for next.
    v2::ctl(&server, &["rm", "/n/config"]);
    server.put("/n/config", CONFIG);
    assert_eq!(spoken(&etcd).await, "etcd v3");
    assert_eq!(trouble(&etcd), "");
}

#[tokio::test]
async fn auto_when_only_v2_is_served_then_v2() {
    let server = both();
    v2::ctl(&server, &["set", "/n/config", CONFIG]);
    let relay = Relay::start(server.client_port(), Lets::Http1).await;
    let options = Options {
        endpoints: relay.endpoint.clone(),
        ..server.options()
    };
    let etcd = auto(&options);
    assert_eq!(spoken(&etcd).await, "etcd v2");
    assert_eq!(trouble(&etcd), "");
}

#[tokio::test]
async fn auto_when_both_hold_a_config_then_v2_loudly_while_it_holds_a_lease_and_v3_else() {
    let server = both();
    server.put("/n/config", CONFIG);
    v2::ctl(&server, &["set", "/n/config", CONFIG]);
    v2::ctl(
        &server,
        &["set", "--ttl", "600", V2_LEASE, &value_of("192.0.2.7")],
    );
    let etcd = auto(&server.options());
    assert_eq!(spoken(&etcd).await, "etcd v2");
    let said = trouble(&etcd);
    assert!(
        said.contains("v2 is spoken, since it holds live leases (1)") && said.contains("--etcd-api=v3"),
        "{said}"
    );
    v2::ctl(&server, &["rm", V2_LEASE]);
    let later = auto(&server.options());
    assert_eq!(spoken(&later).await, "etcd v3");
    assert_eq!(trouble(&later), "");
}

#[tokio::test]
async fn auto_when_neither_holds_a_config_then_both_are_named_and_the_first_to_have_one_is_taken() {
    let server = both();
    let etcd = auto(&server.options());
    let error = etcd.network_config().await.unwrap_err();
    assert!(matches!(&error, RegistryError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("(etcd v3 and v2)"), "{error}");
    assert_eq!(etcd.states().borrow().spoken, None);
    v2::ctl(&server, &["set", "/n/config", CONFIG]);
    assert_eq!(spoken(&etcd).await, "etcd v2");
}

#[tokio::test]
async fn auto_when_v3_is_not_served_and_v2_has_no_config_then_it_is_waited_for() {
    let server = both();
    let relay = Relay::start(server.client_port(), Lets::Http1).await;
    let options = Options {
        endpoints: relay.endpoint.clone(),
        ..server.options()
    };
    let etcd = auto(&options);
    let error = etcd.network_config().await.unwrap_err();
    assert!(matches!(&error, RegistryError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("(etcd v2)"), "{error}");
}

/// What one API holds does not count while it is not known what the other does: a node that took the wrong one would be alone.
#[tokio::test]
async fn auto_when_v3_says_no_then_nothing_is_chosen_and_the_flag_is_named() {
    let server = both();
    v2::ctl(&server, &["set", "/n/config", CONFIG]);
    for args in [
        &["user", "add", "root:r00t-secret"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        server.ctl(args);
    }
    let etcd = auto(&server.options());
    let error = etcd.network_config().await.unwrap_err().to_string();
    assert!(
        error.contains("user name is empty") && error.contains("--etcd-api=v2"),
        "{error}"
    );
    assert_eq!(etcd.states().borrow().spoken, None);
}

/// Nor does it count as having no config: with the wrong password that is what an operator has to see, and where v3 has one besides, all
/// others may live under v2.
#[tokio::test]
async fn auto_when_v2_says_no_then_that_is_said_whatever_v3_has() {
    let server = both();
    v2::ctl(&server, &["set", "/n/config", CONFIG]);
    for args in [&["user", "add", "root:r00t-secret"][..], &["auth", "enable"]] {
        v2::ctl(&server, args);
    }
    let revoke = ["role", "revoke", "guest", "--path", "/*", "--readwrite"];
    v2::ctl(
        &server,
        &[&["--username", "root:r00t-secret"][..], &revoke[..]].concat(),
    );
    let etcd = auto(&server.options());
    let error = etcd.network_config().await.unwrap_err();
    assert!(matches!(&error, RegistryError::Refused { .. }), "{error}");
    assert!(
        error.to_string().contains("error 110") && etcd.states().borrow().last_failure.is_some(),
        "{error}"
    );
    server.put("/n/config", CONFIG);
    let error = etcd.network_config().await.unwrap_err().to_string();
    assert!(
        error.contains("error 110") && error.contains("--etcd-api=v3"),
        "{error}"
    );
    assert_eq!(etcd.states().borrow().spoken, None);
}

#[tokio::test]
async fn auto_when_nobody_listens_then_that_is_the_failure() {
    let mut server = both();
    server.kill();
    let etcd = auto(&server.options());
    let error = etcd.network_config().await.unwrap_err();
    assert!(matches!(&error, RegistryError::Unreachable(_)), "{error}");
    assert!(etcd.states().borrow().last_failure.is_some());
    server.start_again();
    v2::ctl(&server, &["set", "/n/config", CONFIG]);
    assert_eq!(spoken(&etcd).await, "etcd v2");
}

/// A proxy for HTTP/2 alone does not say that it lets no v2 through: a node of a cluster of v3 does not wait for that for ever.
#[tokio::test]
async fn auto_when_v2_is_never_answered_then_v3_after_a_minute_with_a_word_but_not_by_a_node_of_v2() {
    let server = both();
    server.put("/n/config", CONFIG);
    let relay = Relay::start(server.client_port(), Lets::Http2).await;
    let options = Options {
        endpoints: relay.endpoint.clone(),
        ..server.options()
    };
    let (new, old) = (auto(&options), auto(&options));
    old.resume(7, Some("etcd v2"));
    let (first, second) = tokio::join!(new.network_config(), old.network_config());
    for asked in [first, second] {
        let error = asked.unwrap_err().to_string();
        assert!(error.contains("--etcd-api=v3"), "{error}");
    }
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    tokio::time::resume();
    let (spoken, second) = tokio::join!(spoken(&new), old.network_config());
    assert_eq!(spoken, "etcd v3");
    let said = trouble(&new);
    assert!(
        said.contains("nothing answered by v2 for 60 s") && said.contains("--etcd-api=v3"),
        "{said}"
    );
    let error = second.unwrap_err().to_string();
    assert!(error.contains("--etcd-api=v3"), "{error}");
    assert_eq!(old.states().borrow().spoken, None);
}
