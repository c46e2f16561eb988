//! `flannelctl registry migrate` over a real etcd with both APIs; etcdctl is the witness.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)] // Everything here is a test; of the rig not all is used.

#[path = "../../registry/tests/etcd3/rig.rs"]
mod rig;
#[path = "../../registry/tests/etcd3/v2.rs"]
mod v2;

use std::process::Command;

use registry::{Etcd3, Registry};
use rig::{Node, Server, network, value_of};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
const LEASE: &str = "/n/subnets/10.5.7.0-24";
const RESERVED: &str = "/n/subnets/10.5.8.0-24";

fn filled() -> Server {
    let server = Server::start_with(None, &["--enable-v2"]);
    v2::ctl(&server, &["set", "/n/config", CONFIG]);
    v2::ctl(&server, &["set", "--ttl", "600", LEASE, &value_of("192.0.2.7")]);
    v2::ctl(&server, &["set", RESERVED, &value_of("192.0.2.8")]);
    server
}

fn migrate(server: &Server, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannelctl"));
    command.args([
        "registry", "migrate", "--from", "v2", "--to", "v3", "--prefix", "/n",
    ]);
    command.args(["--endpoints", &server.endpoint()]).args(more);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn migrate_when_nodes_follow_then_all_is_copied_and_finish_removes_what_they_hold() {
    let server = filled();
    let (code, said, why) = migrate(&server, &["--dry-run"]);
    assert_eq!(code, Some(0), "{why}");
    for key in [LEASE, RESERVED, "/n/config"] {
        assert!(said.contains(&format!("would write   {key} ")), "{said}");
    }
    assert!(said.contains(CONFIG) && server.keys("/n/").is_empty(), "{said}");

    let (code, said, why) = migrate(&server, &[]);
    assert_eq!(code, Some(0), "{why}");
    assert_eq!(said.matches("wrote ").count(), 3, "{said}");
    assert_eq!(server.value("/n/config"), CONFIG);
    assert_eq!(server.value(LEASE), value_of("192.0.2.7"));
    assert_eq!(server.value(RESERVED), value_of("192.0.2.8"));
    assert_eq!(server.field(RESERVED, "lease"), 0);
    let lease = format!("{:x}", server.field(LEASE, "lease"));
    let left = server.ctl(&["lease", "timetolive", &lease]);
    let granted = left.split("granted with TTL(").nth(1).unwrap();
    let seconds: i64 = granted.split('s').next().unwrap().parse().unwrap();
    let under_v2 = v2::field(&server, LEASE, "TTL");
    assert!((under_v2 - 2..=600).contains(&seconds), "{left}; v2: {under_v2}");
    // Again, it is all there.
    let (code, said, _) = migrate(&server, &["--json"]);
    assert_eq!(code, Some(0));
    assert_eq!(said.matches("\"there\"").count(), 3, "{said}");

    // A copy is not its node's yet.
    let (code, said, _) = migrate(&server, &["--finish"]);
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("removed       {RESERVED}")), "{said}");
    assert!(
        said.contains(&format!("stays         {LEASE} (its node has not")),
        "{said}"
    );
    assert!(said.contains("stays         /n/config"), "{said}");
    assert_eq!(v2::ctl(&server, &["get", LEASE]).trim(), value_of("192.0.2.7"));

    // Whose node goes by v3 shows in an end that is later than under v2, by more than both round.
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    let etcd = Etcd3::new(&server.options()).unwrap();
    let (config, node) = (network(CONFIG), Node::new("192.0.2.7"));
    let held = etcd.acquire(&node.wanted(&config)).await.unwrap();
    assert_eq!(held.lease.subnet.to_string(), "10.5.7.0-24");
    let (code, said, why) = migrate(&server, &["--finish", "--dry-run"]);
    assert_eq!(code, Some(0), "{said}{why}");
    assert!(said.contains(&format!("would remove  {LEASE}")), "{said}");
    assert_eq!(v2::ctl(&server, &["get", "/n/config"]).trim(), CONFIG);
    let (code, said, why) = migrate(&server, &["--finish"]);
    assert_eq!(code, Some(0), "{said}{why}");
    for key in [LEASE, RESERVED, "/n/config"] {
        assert!(v2::try_ctl(&server, &["get", key]).is_err(), "{key}");
    }
    assert_eq!(server.keys("/n/").len(), 3);
}

#[test]
fn migrate_when_v3_holds_something_else_then_it_is_named_and_nothing_is_written() {
    let server = filled();
    let other = "/n/subnets/10.5.8.0-25";
    server.put(LEASE, &value_of("192.0.2.99"));
    server.put(other, &value_of("192.0.2.98"));
    for mode in [&["--dry-run"][..], &[]] {
        let (code, said, why) = migrate(&server, mode);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(&format!("differs       {LEASE} ")) && said.contains("192.0.2.99"),
            "{said}"
        );
        assert!(said.contains("v3 has 10.5.8.0-25, which overlaps"), "{said}");
        assert!(why.contains("nothing is written"), "{why}");
    }
    assert_eq!(server.keys("/n/"), [LEASE, other]);
    let (code, _, why) = migrate(&server, &["--finish"]);
    assert_eq!(code, Some(1));
    assert!(why.contains("migrate without --finish first"), "{why}");
    assert_eq!(v2::ctl(&server, &["get", LEASE]).trim(), value_of("192.0.2.7"));
}

#[test]
fn migrate_when_misused_or_without_v2_then_that_is_said() {
    let server = Server::start();
    let (code, _, why) = migrate(&server, &["--to", "v4"]);
    assert_eq!(code, Some(2));
    assert!(why.contains("--to=v4: expected v3"), "{why}");
    let (code, said, why) = migrate(&server, &[]);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert!(why.contains("--enable-v2"), "{why}");
}
