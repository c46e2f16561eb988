//! An etcd that answers and is not well.

use std::process::Command;

use registry::Registry;

use crate::rig::{Node, Server, Watching, network, wait_until};

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

#[tokio::test]
async fn an_etcd_without_space_is_named_by_a_node_that_only_watches_and_its_lease_is_prolonged() {
    let server = Server::start_with(None, &["--quota-backend-bytes", "300000"]);
    let config = network(NETWORK);
    let (node, etcd) = (Node::new("192.0.2.1"), server.client());
    etcd.acquire(&node.wanted(&config)).await.unwrap();
    let watching = Watching::start(&etcd);
    watching.snapshot().await;

    let big = "x".repeat(60_000);
    let endpoint = server.endpoint();
    let is_full = || {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3");
        let output = command
            .args(["--endpoints", &endpoint, "put", "/big", &big])
            .output();
        !output.unwrap().status.success()
    };
    assert!((0..100).any(|_| is_full()), "etcd took six megabytes");
    let alarm = || etcd.states().borrow().trouble.clone().map(|trouble| trouble.text);
    wait_until("word of the alarm", || alarm().is_some()).await;
    let text = alarm().unwrap();
    assert!(text.starts_with("etcd has raised the alarm NOSPACE: "), "{text}");

    let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
    assert!(held.reused && held.expires.is_some());
    // Another's failure names what is in the way, also behind an older one.
    let (other, late) = (Node::new("192.0.2.2"), server.client());
    let error = late
        .acquire(&other.wanted(&config))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("database space exceeded"), "{error}");
    let noted = late.states().borrow().last_failure.clone().unwrap().error;
    assert!(noted.contains("database space exceeded"), "{noted}");

    let revision = server.revision().to_string();
    server.ctl(&["compact", &revision]);
    server.ctl(&["defrag"]);
    server.ctl(&["alarm", "disarm"]);
    wait_until("the end of the alarm", || alarm().is_none()).await;
    late.acquire(&other.wanted(&config)).await.unwrap();
}
