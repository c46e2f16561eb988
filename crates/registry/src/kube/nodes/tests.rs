use std::collections::BTreeMap;

use fabric::annotations::Name;
use fabric::config::Declared;
use fabric::lease::Update;

use super::*;

fn network() -> NetworkConfig {
    let json = br#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
    Declared::parse(json).unwrap().without_allocation().unwrap()
}

fn node(name: &str, created: i64, third: u8, address: &str) -> NodeObject {
    NodeObject {
        name: name.to_owned(),
        uid: format!("{name}-{created}"),
        version: created.to_string(),
        created,
        annotations: [
            (Name::Managed, "true"),
            (Name::BackendType, "host-gw"),
            (Name::BackendData, "null"),
            (Name::PublicIp, address),
        ]
        .map(|(name, text)| (name, text.to_owned()))
        .into(),
        cidrs: vec![format!("10.244.{third}.0/24")],
    }
}

/// What a consumer comes to know: leases by subnet with their address, and what is refused.
#[derive(Default, Debug, PartialEq)]
struct Heard {
    leases: BTreeMap<String, String>,
    refused: BTreeMap<String, String>,
}

impl Heard {
    fn hear(&mut self, update: Update) {
        match update {
            Update::Snapshot(snapshot) => {
                self.leases = snapshot
                    .leases
                    .into_iter()
                    .map(|(subnet, lease)| (subnet.to_string(), lease.attributes.public_ip.to_string()))
                    .collect();
                self.refused = snapshot.rejected.into_iter().map(|r| (r.key, r.reason)).collect();
            }
            Update::Delta(delta) => {
                for (subnet, lease) in delta.changes {
                    match lease {
                        Some(lease) => self
                            .leases
                            .insert(subnet.to_string(), lease.attributes.public_ip.to_string()),
                        None => self.leases.remove(&subnet.to_string()),
                    };
                }
                for key in delta.gone {
                    self.refused.remove(&key);
                }
                self.refused
                    .extend(delta.rejected.into_iter().map(|r| (r.key, r.reason)));
            }
        }
    }
}

#[derive(Default)]
struct Rig {
    nodes: Nodes,
    heard: Heard,
}

impl Rig {
    fn put(&mut self, node: &NodeObject) -> bool {
        let mut delta = Delta::default();
        self.nodes.put(node, &network(), &mut delta);
        self.hear(delta)
    }

    fn remove(&mut self, name: &str) -> bool {
        let mut delta = Delta::default();
        self.nodes.remove(name, &mut delta);
        self.hear(delta)
    }

    fn list(&mut self, all: &[&NodeObject]) {
        let mut listing = self.nodes.list();
        for node in all {
            listing.take(node, &network());
        }
        let snapshot = listing.end(7);
        assert_eq!(snapshot.revision, 7);
        self.heard.hear(Update::Snapshot(snapshot));
    }

    /// Whether anything is said of a lease.
    fn hear(&mut self, delta: Delta) -> bool {
        let news = !delta.changes.is_empty();
        self.heard.hear(Update::Delta(delta));
        news
    }

    fn leases(&self) -> Vec<(&str, &str)> {
        let leases = self.heard.leases.iter();
        leases.map(|(subnet, address)| (&**subnet, &**address)).collect()
    }

    fn refused(&self) -> Vec<&str> {
        self.heard.refused.keys().map(|key| &**key).collect()
    }
}

#[test]
fn node_when_it_says_the_same_again_then_nothing_is_said() {
    let mut rig = Rig::default();
    let one = node("one", 1, 1, "192.0.2.1");
    assert!(rig.put(&one));
    assert!(!rig.put(&one));
    assert_eq!(rig.leases(), [("10.244.1.0-24", "192.0.2.1")]);
    assert!(rig.put(&node("one", 1, 1, "192.0.2.9")));
    assert_eq!(rig.leases(), [("10.244.1.0-24", "192.0.2.9")]);
    assert!(rig.remove("one"));
    assert!(!rig.remove("one"));
    assert_eq!((rig.leases(), rig.nodes.len()), (vec![], 0));
}

#[test]
fn node_when_its_annotations_go_or_it_is_not_managed_any_more_then_its_lease_is_gone() {
    for spoil in [
        |node: &mut NodeObject| node.annotations.clear(),
        |node: &mut NodeObject| {
            node.annotations.insert(Name::Managed, "false".to_owned());
        },
    ] {
        let mut rig = Rig::default();
        let mut one = node("one", 1, 1, "192.0.2.1");
        rig.put(&one);
        spoil(&mut one);
        assert!(rig.put(&one));
        assert_eq!((rig.leases(), rig.refused()), (vec![], vec![]));
    }
}

#[test]
fn node_when_made_anew_with_another_subnet_then_the_old_one_is_gone_with_or_without_a_word_of_its_end() {
    let mut rig = Rig::default();
    rig.put(&node("one", 1, 1, "192.0.2.1"));
    rig.put(&node("one", 2, 5, "192.0.2.1"));
    assert_eq!(rig.leases(), [("10.244.5.0-24", "192.0.2.1")]);
    for round in 3..23 {
        rig.remove("one");
        assert_eq!(rig.leases(), []);
        let third = u8::try_from(round).unwrap();
        rig.put(&node("one", round, third, "192.0.2.1"));
        assert_eq!(rig.leases(), [(&*format!("10.244.{round}.0-24"), "192.0.2.1")]);
    }
    assert_eq!(rig.nodes.len(), 1);
}

#[test]
fn node_when_it_cannot_be_read_then_the_lease_it_was_stays_until_it_is_gone_or_can() {
    let mut rig = Rig::default();
    let good = node("one", 1, 1, "192.0.2.1");
    let mut bad = good.clone();
    bad.annotations.insert(Name::PublicIp, "x".to_owned());
    rig.put(&good);
    assert!(!rig.put(&bad));
    assert_eq!((rig.leases().len(), rig.refused()), (1, vec!["node one"]));
    // Also over a listing.
    rig.list(&[&bad]);
    assert_eq!((rig.leases().len(), rig.refused()), (1, vec!["node one"]));
    assert!(!rig.put(&good));
    assert_eq!((rig.leases().len(), rig.refused()), (1, vec![]));
    rig.put(&bad);
    assert!(rig.remove("one"));
    assert_eq!((rig.leases(), rig.refused()), (vec![], vec![]));
    // A subnet that is another by now is not its own any more, readable or not.
    rig.put(&good);
    let mut moved = node("one", 1, 9, "x");
    assert!(rig.put(&moved));
    assert_eq!((rig.leases(), rig.refused()), (vec![], vec!["node one"]));
    moved.cidrs.clear();
    rig.list(&[&moved]);
    assert_eq!((rig.leases(), rig.refused()), (vec![], vec!["node one"]));
    rig.remove("one");
    // One that was never good is no lease, and is named until it is gone.
    rig.put(&bad);
    assert_eq!((rig.leases().len(), rig.refused()), (0, vec!["node one"]));
    rig.remove("one");
    assert_eq!((rig.refused(), rig.nodes.known.len()), (vec![], 0));
}

#[test]
fn subnet_when_two_nodes_have_it_then_the_older_does_and_the_other_once_that_is_gone() {
    let old = node("old", 1, 1, "192.0.2.1");
    let new = node("new", 2, 1, "192.0.2.2");
    for order in [[&old, &new], [&new, &old]] {
        let mut rig = Rig::default();
        for node in order {
            rig.put(node);
        }
        assert_eq!(rig.leases(), [("10.244.1.0-24", "192.0.2.1")]);
        assert_eq!(rig.refused(), ["node new's podCIDR"]);
        let mut listed = Rig::default();
        listed.list(&order);
        assert_eq!(listed.heard, rig.heard);
        rig.remove("old");
        assert_eq!(rig.leases(), [("10.244.1.0-24", "192.0.2.2")]);
        assert_eq!(rig.refused(), [""; 0]);
        // And the other way: the younger's end takes nothing along.
        let mut rig = Rig::default();
        for node in order {
            rig.put(node);
        }
        rig.remove("new");
        assert_eq!(rig.leases(), [("10.244.1.0-24", "192.0.2.1")]);
        assert_eq!(rig.refused(), [""; 0]);
        // Or its moving elsewhere.
        let mut rig = Rig::default();
        for node in order {
            rig.put(node);
        }
        rig.put(&node("old", 1, 7, "192.0.2.1"));
        assert_eq!(
            rig.leases(),
            [("10.244.1.0-24", "192.0.2.2"), ("10.244.7.0-24", "192.0.2.1")]
        );
        assert_eq!(rig.refused(), [""; 0]);
    }
}

#[test]
fn history_when_it_comes_in_any_order_then_what_is_heard_is_what_a_listing_says() {
    // SplitMix64, as elsewhere: the same history for the same seed.
    for seed in 0..1000 {
        let chance = crate::Chance::seeded(seed);
        let (mut rig, mut there) = (Rig::default(), BTreeMap::<String, NodeObject>::new());
        for step in 0..60 {
            let name = format!("n{}", chance.below(4));
            match chance.below(5) {
                0 => {
                    there.remove(&name);
                    rig.remove(&name);
                }
                1 => {
                    // The watch was interrupted, and what happened meanwhile was heard by nobody.
                    there.remove(&name);
                    let all: Vec<&NodeObject> = there.values().collect();
                    rig.list(&all);
                }
                _ => {
                    let third = u8::try_from(chance.below(3)).unwrap();
                    let address = format!("192.0.2.{}", chance.below(3));
                    // Of few ages, so that many are as old as others, and some say the same again.
                    let age = i64::try_from(chance.below(3)).unwrap();
                    let mut made = node(&name, age, third, &address);
                    if chance.below(4) == 0 {
                        made.annotations.clear();
                    }
                    there.insert(name, made.clone());
                    rig.put(&made);
                }
            }
            let mut fresh = Rig::default();
            let all: Vec<&NodeObject> = there.values().collect();
            fresh.list(&all);
            assert_eq!(rig.heard, fresh.heard, "seed {seed}, step {step}");
        }
    }
}
