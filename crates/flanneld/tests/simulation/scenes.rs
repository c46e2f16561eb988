//! The daemon in single scenes, each with what it says of itself.

use std::time::Duration;

use tokio::time::sleep;

use crate::case::{Shared, TTL, scene, start};
use crate::rest;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn reasons(world: &Shared, number: usize) -> Vec<String> {
    let world = world.borrow();
    world.nodes[number].process.as_ref().unwrap().truth.reasons()
}

fn subnet(world: &Shared, number: usize) -> String {
    let world = world.borrow();
    let process = world.nodes[number].process.as_ref().unwrap();
    process.truth.situation().lease.unwrap().subnet
}

fn routes(world: &Shared, number: usize) -> usize {
    let mut world = world.borrow_mut();
    let truth = world.nodes[number].kernel().truth();
    truth
        .keys()
        .filter(|key| key.to_string().starts_with("route "))
        .count()
}

/// Waits until it holds, but not for ever.
async fn until(what: &str, most: Duration, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + most;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "waited in vain for {what}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn rested(world: &Shared) {
    let mut unrest = None;
    let is_rest = || {
        unrest = rest::unrest(&mut world.borrow_mut());
        unrest.is_none()
    };
    until("rest", Duration::from_secs(60), is_rest).await;
}

#[test]
fn a_daemon_without_a_config_says_what_it_waits_for_and_goes_on_when_it_is_there() {
    scene(2, async |world| {
        world.borrow().store.set_config(None);
        start(world, 0);
        start(world, 1);
        sleep(Duration::from_secs(20)).await;
        assert!(
            reasons(world, 0)[0].contains("network config not found"),
            "{:?}",
            reasons(world, 0)
        );
        world.borrow().store.set_config(Some("{"));
        sleep(Duration::from_secs(10)).await;
        assert!(
            !reasons(world, 0)[0].contains("not found"),
            "{:?}",
            reasons(world, 0)
        );
        world.borrow().store.set_config(Some(CONFIG));
        rested(world).await;
    });
}

#[test]
fn a_daemon_whose_registry_is_away_after_a_reboot_serves_its_peers_from_the_cache_and_says_stale() {
    scene(3, async |world| {
        (0..3).for_each(|number| start(world, number));
        rested(world).await;
        let held = subnet(world, 0);
        // The cache is written in the end.
        sleep(Duration::from_secs(15)).await;
        world.borrow_mut().nodes[0].reboot();
        assert_eq!(routes(world, 0), 0);
        start(world, 0);
        let client = world.borrow().nodes[0].process.as_ref().unwrap().client;
        world.borrow().store.cut_off(client, true);
        until("its peers", Duration::from_secs(10), || routes(world, 0) == 2).await;
        assert!(
            reasons(world, 0)[0].starts_with("stale: served from the cache"),
            "{:?}",
            reasons(world, 0)
        );
        assert_eq!(subnet(world, 0), held);
        world.borrow().store.cut_off(client, false);
        rested(world).await;
        assert_eq!(subnet(world, 0), held);
    });
}

#[test]
fn a_daemon_that_loses_the_registry_keeps_its_routes_and_is_ready_again_with_the_same_subnet() {
    scene(3, async |world| {
        (0..3).for_each(|number| start(world, number));
        rested(world).await;
        let held: Vec<String> = (0..3).map(|number| subnet(world, number)).collect();
        let clients: Vec<u32> = {
            let world = world.borrow();
            world
                .nodes
                .iter()
                .map(|node| node.process.as_ref().unwrap().client)
                .collect()
        };
        let cut_off = |cut| {
            clients
                .iter()
                .for_each(|client| world.borrow().store.cut_off(*client, cut))
        };
        cut_off(true);
        sleep(TTL * 3).await;
        assert!(world.borrow().store.entries().is_empty(), "all have expired");
        for number in 0..3 {
            assert_eq!(routes(world, number), 2);
            let said = reasons(world, number).join("; ");
            assert!(said.contains("has expired") && said.contains("stale"), "{said}");
        }
        cut_off(false);
        rested(world).await;
        let now: Vec<String> = (0..3).map(|number| subnet(world, number)).collect();
        assert_eq!(now, held);
    });
}

#[test]
fn a_daemon_whose_subnet_was_given_to_another_ends_and_comes_back_with_its_own() {
    scene(2, async |world| {
        start(world, 0);
        rested_alone(world).await;
        let held = subnet(world, 0);
        let client = world.borrow().nodes[0].process.as_ref().unwrap().client;
        world.borrow().store.cut_off(client, true);
        sleep(TTL + Duration::from_secs(1)).await;
        let taken = r#"{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan"}"#;
        world.borrow().store.put(&held, taken, Some(TTL));
        start(world, 1);
        world.borrow().store.cut_off(client, false);
        until("another subnet", Duration::from_secs(60), || {
            world.borrow().nodes[0].process.is_some() && world.borrow().nodes[0].starts == 2
        })
        .await;
        rested(world).await;
        assert_ne!(subnet(world, 0), held);
        assert_eq!(subnet(world, 1), held);
    });
}

/// The registry is away for a node that starts anew, after what is done to its host.
async fn starts_without_registry(world: &Shared, number: usize, act: impl FnOnce(&mut crate::node::Node)) {
    act(&mut world.borrow_mut().nodes[number]);
    start(world, number);
    let client = world.borrow().nodes[number].process.as_ref().unwrap().client;
    world.borrow().store.cut_off(client, true);
}

fn remarks(world: &Shared, number: usize) -> Vec<String> {
    let world = world.borrow();
    let process = world.nodes[number].process.as_ref().unwrap();
    process.truth.report().texts_of(fabric::readiness::Kind::Remark)
}

#[test]
fn a_daemon_whose_clock_jumps_ahead_serves_from_the_cache_by_the_clock_that_nobody_sets() {
    scene(2, async |world| {
        (0..2).for_each(|number| start(world, number));
        rested(world).await;
        sleep(Duration::from_secs(15)).await;
        let ahead = |node: &mut crate::node::Node| {
            node.kill();
            node.host.set_clock(10 * 365 * 86_400);
        };
        starts_without_registry(world, 0, ahead).await;
        let served = || reasons(world, 0)[0].starts_with("stale: served from the cache");
        until("service", Duration::from_secs(10), served).await;
        assert_eq!(remarks(world, 0), Vec::<String>::new(), "nothing is in doubt");
    });
}

#[test]
fn a_daemon_whose_clock_is_behind_after_a_reboot_serves_from_the_cache_and_says_what_it_cannot_know() {
    scene(2, async |world| {
        (0..2).for_each(|number| start(world, number));
        rested(world).await;
        sleep(Duration::from_secs(15)).await;
        let behind = |node: &mut crate::node::Node| {
            node.reboot();
            node.host.set_clock(-50 * 60);
        };
        starts_without_registry(world, 0, behind).await;
        until("its peer", Duration::from_secs(10), || routes(world, 0) == 1).await;
        let said = remarks(world, 0).join("; ");
        assert!(said.contains("cannot be told"), "{said}");
        let client = world.borrow().nodes[0].process.as_ref().unwrap().client;
        world.borrow().store.cut_off(client, false);
        rested(world).await;
        assert_eq!(remarks(world, 0), Vec::<String>::new());
    });
}

#[test]
fn a_daemon_whose_lease_has_surely_expired_serves_nothing_and_says_the_same_all_the_time() {
    scene(2, async |world| {
        (0..2).for_each(|number| start(world, number));
        rested(world).await;
        sleep(Duration::from_secs(15)).await;
        let late = |node: &mut crate::node::Node| {
            node.reboot();
            node.host.set_clock(10 * 86_400);
        };
        starts_without_registry(world, 0, late).await;
        let mut said = std::collections::BTreeSet::new();
        let end = tokio::time::Instant::now() + Duration::from_secs(30);
        while tokio::time::Instant::now() < end {
            sleep(Duration::from_secs(1)).await;
            said.extend(
                reasons(world, 0)
                    .into_iter()
                    .filter(|reason| reason.contains("cache")),
            );
        }
        assert_eq!(routes(world, 0), 0);
        assert_eq!(said.len(), 1, "one state of affairs, one text: {said:?}");
        assert!(said.first().unwrap().contains("has expired"), "{said:?}");
    });
}

#[test]
fn a_daemon_whose_kernel_does_not_answer_at_first_waits_and_says_so() {
    scene(2, async |world| {
        world.borrow().nodes[0].host.refuse(6);
        (0..2).for_each(|number| start(world, number));
        let mut said = String::new();
        let asked = || {
            said = reasons(world, 0).join("; ");
            said.contains("list links: interrupted by changes 10 times")
        };
        until("what it waits for", Duration::from_secs(10), asked).await;
        rested(world).await;
        // And while it runs.
        world.borrow().nodes[0].host.refuse(3);
        sleep(Duration::from_secs(60)).await;
        rested(world).await;
        assert_eq!(world.borrow().nodes[0].starts, 1, "it never ended");
    });
}

#[test]
fn a_daemon_that_cannot_serve_ipv6_serves_ipv4_and_keeps_its_subnet_when_it_can() {
    const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    scene(1, async |world| {
        world.borrow().store.set_config(Some(DUAL));
        start(world, 0);
        let holds = || {
            let world = world.borrow();
            let process = world.nodes[0].process.as_ref().unwrap();
            process.truth.situation().lease.is_some()
        };
        until("a lease", Duration::from_secs(30), holds).await;
        let held = subnet(world, 0);
        assert!(!held.contains('&'), "{held}");
        let said = || reasons(world, 0).join("; ");
        until("the other family named", Duration::from_secs(5), || {
            said().contains("IPv6 is in the network and not served on this host: eth0 has no IPv6 address")
        })
        .await;
        world.borrow().nodes[0]
            .host
            .set_ipv6("2001:db8::1".parse().unwrap());
        until("both halves", Duration::from_secs(60), || {
            subnet(world, 0).contains('&')
        })
        .await;
        let both = subnet(world, 0);
        assert_eq!(both.split('&').next(), Some(&*held), "the pods' half stays");
        assert!(!said().contains("not served"), "{}", said());
        let keys: Vec<String> = world
            .borrow()
            .store
            .entries()
            .into_iter()
            .map(|entry| entry.key)
            .collect();
        assert_eq!(keys, [both], "the former lease is gone");
    });
}

/// What a node says of the network config.
fn said_of_config(world: &Shared, number: usize) -> Option<(String, String)> {
    let world = world.borrow();
    let report = world.nodes[number].process.as_ref().unwrap().truth.report();
    let finding = report
        .findings()
        .iter()
        .find(|finding| finding.subject == "network config");
    finding.map(|finding| (finding.text.clone(), finding.hint.clone().unwrap_or_default()))
}

#[test]
fn a_daemon_whose_config_becomes_another_says_within_two_seconds_what_and_goes_on_until_it_is_reloaded() {
    const SOON: Duration = Duration::from_secs(2);
    scene(2, async |world| {
        world.borrow().store.set_config(Some(CONFIG));
        (0..2).for_each(|number| start(world, number));
        rested(world).await;
        sleep(SOON).await;
        let held = subnet(world, 0);
        for (config, text, hint) in [
            (
                Some(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#),
                "is another by now: Backend.Type was vxlan, is host-gw; this node goes on",
                "systemctl reload flanneld (SIGHUP) takes it up",
            ),
            (
                Some(r#"{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan"}}"#),
                "Network was 10.5.0.0/16, is 10.9.0.0/16",
                "another subnet than 10.5.",
            ),
            (
                Some(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlam"}}"#),
                "cannot be used: ",
                "put a valid one",
            ),
            (Some("{"), "cannot be used: ", "put a valid one"),
            (
                None,
                "the network config is not there any more (",
                "put a valid one",
            ),
        ] {
            world.borrow().store.set_config(config);
            until("its word", SOON, || {
                said_of_config(world, 0).is_some_and(|said| said.0.contains(text))
            })
            .await;
            let (_, hinted) = said_of_config(world, 0).unwrap();
            assert!(hinted.contains(hint), "{config:?}: {hinted}");
            sleep(Duration::from_secs(30)).await;
            assert_eq!(reasons(world, 0), [""; 0], "{config:?}");
            assert_eq!(
                (subnet(world, 0), routes(world, 0)),
                (held.clone(), 1),
                "{config:?}"
            );
        }
        // Only written otherwise.
        let same = r#"{ "Network": "10.5.0.0/16", "Backend": { "Type": "vxlan" } }"#;
        world.borrow().store.set_config(Some(same));
        until("nothing more to say", SOON, || said_of_config(world, 0).is_none()).await;
        rested(world).await;
    });
}

#[test]
fn a_daemon_that_waits_for_a_subnet_takes_a_wider_range_within_two_seconds() {
    const NARROW: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0","Backend":{"Type":"vxlan"}}"#;
    scene(2, async |world| {
        world.borrow().store.set_config(Some(NARROW));
        start(world, 0);
        rested_alone(world).await;
        start(world, 1);
        sleep(Duration::from_secs(60)).await;
        assert!(
            reasons(world, 1)[0].contains("no lease yet"),
            "{:?}",
            reasons(world, 1)
        );
        // What cannot be used is no reason to give up waiting by what there is.
        world.borrow().store.set_config(Some("{"));
        sleep(Duration::from_secs(10)).await;
        world.borrow().store.set_config(Some(CONFIG));
        let has_one = || {
            let world = world.borrow();
            let process = world.nodes[1].process.as_ref().unwrap();
            process.truth.situation().lease.is_some()
        };
        until("a subnet", Duration::from_secs(2), has_one).await;
        assert_eq!(subnet(world, 0), "10.5.1.0-24");
        assert!(
            said_of_config(world, 0).unwrap().0.contains("SubnetMax was"),
            "and the other names it"
        );
        rested(world).await;
    });
}

#[test]
fn a_daemon_that_starts_with_another_network_has_the_rules_of_the_former_one_taken_away() {
    scene(1, async |world| {
        start(world, 0);
        rested(world).await;
        let former = |world: &Shared| world.borrow().nodes[0].host.former_rules();
        assert!(former(world).is_empty());
        world.borrow_mut().nodes[0].kill();
        let held = world.borrow().store.entries()[0].key.clone();
        assert!(world.borrow().store.delete(&held));
        let other = r#"{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan"}}"#;
        world.borrow().store.set_config(Some(other));
        start(world, 0);
        rested_alone(world).await;
        assert!(subnet(world, 0).starts_with("10.9."), "{}", subnet(world, 0));
        assert_eq!(former(world), ["10.5.0.0/16".parse().unwrap()]);
    });
}

/// What the cache knows is history as soon as the registry has gone on from there.
#[test]
fn a_daemon_whose_registry_has_gone_on_never_serves_a_peer_that_the_cache_alone_knows() {
    scene(3, async |world| {
        (0..3).for_each(|number| start(world, number));
        rested(world).await;
        // The cache is written in the end.
        sleep(Duration::from_secs(15)).await;
        world.borrow_mut().nodes[0].reboot();
        world.borrow_mut().nodes[2].kill();
        let gone = world.borrow().store.entries();
        let gone = gone
            .iter()
            .find(|entry| entry.value.contains("192.0.2.3"))
            .unwrap();
        assert!(world.borrow().store.delete(&gone.key));
        start(world, 0);
        until("its peer", Duration::from_secs(20), || {
            assert!(routes(world, 0) < 2, "the peer that is gone is served");
            routes(world, 0) == 1 && reasons(world, 0).is_empty()
        })
        .await;
    });
}

async fn rested_alone(world: &Shared) {
    until("readiness", Duration::from_secs(20), || {
        reasons(world, 0).is_empty()
    })
    .await;
}
