//! The fuzz targets' bodies over thousands of mutated seeds, so that every `cargo test` runs them without libFuzzer.
//!
//! The longer runs are described in `fuzz/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../../fuzz/src/fabric.rs"]
mod bodies;
#[path = "../../../fuzz/src/mutated.rs"]
mod mutated;

use bodies::TARGETS;

#[test]
fn lease_key_when_given_any_bytes_holds_its_promises() {
    mutated::run(TARGETS, "lease_key");
}

#[test]
fn attributes_when_given_any_bytes_hold_their_promises() {
    mutated::run(TARGETS, "attributes");
}

#[test]
fn node_when_given_any_bytes_holds_its_promises() {
    mutated::run(TARGETS, "node");
}

#[test]
fn go_json_when_given_any_bytes_holds_its_promises() {
    mutated::run(TARGETS, "go_json");
}

#[test]
fn config_when_given_any_bytes_holds_its_promises() {
    mutated::run(TARGETS, "config");
}

#[test]
fn subnet_env_when_given_any_bytes_holds_its_promises() {
    mutated::run(TARGETS, "subnet_env");
}

#[test]
fn iptables_save_when_given_any_bytes_holds_its_promises() {
    mutated::run(TARGETS, "iptables_save");
}

#[test]
fn nft_list_when_given_any_bytes_holds_its_promises() {
    mutated::run(TARGETS, "nft_list");
}

#[test]
fn targets_when_listed_all_have_a_file_and_seeds() {
    for (target, _) in TARGETS {
        assert!(mutated::is_complete(target), "{target}");
    }
}
