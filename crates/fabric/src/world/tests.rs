//! What a world says of each kind of change.

use super::*;
use crate::config::NetworkConfig;
use crate::lease::Rejected;
use crate::node::Underlay;
use crate::object::{ROUTE_PROTOCOL, Route};
use crate::plan::tests::{lease, network, node_of};
use crate::plan::{Peer, PlanError, backend};

const OWN: &str = "10.244.1.0-24";

/// A vxlan peer of subnet 10.244.`third`.0/24, at 192.0.2.`third`.
fn peer(third: u8, created: i64) -> Lease {
    with_mac(third, third, created)
}

fn with_mac(third: u8, mac: u8, created: i64) -> Lease {
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{third}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{mac:02x}"}}}}"#
    );
    lease(&format!("10.244.{third}.0-24"), &value, created)
}

fn own_lease() -> Lease {
    lease(OWN, r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan"}"#, 1)
}

fn subnet(third: u8) -> Subnet {
    Subnet::parse_key(&format!("10.244.{third}.0-24")).unwrap()
}

fn empty() -> World {
    let network = network(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    let backend = backend(&network.backend).unwrap();
    let node = node_of(&*backend, network, OWN);
    World::new(backend, node)
}

fn snapshot(revision: i64, leases: &[Lease], rejected: &[&str]) -> Update {
    Update::Snapshot(Snapshot {
        revision,
        leases: leases.iter().map(|l| (l.subnet, l.clone())).collect(),
        rejected: rejected.iter().map(|key| unreadable(key)).collect(),
    })
}

fn delta(revision: i64, changes: &[(u8, Option<Lease>)], rejected: &[&str]) -> Update {
    Update::Delta(Delta {
        revision,
        changes: changes
            .iter()
            .map(|(third, lease)| (subnet(*third), lease.clone()))
            .collect(),
        rejected: rejected.iter().map(|key| unreadable(key)).collect(),
        gone: Vec::new(),
    })
}

fn unreadable(key: &str) -> Rejected {
    Rejected {
        key: key.to_owned(),
        reason: format!("junk at {key}"),
    }
}

fn filled(leases: &[Lease]) -> World {
    let mut world = empty();
    assert_eq!(world.update(snapshot(5, leases, &[])), Touched::Whole);
    world
}

fn nothing() -> Touched {
    Touched::Keys(BTreeSet::new())
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn name(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

/// The text of the route to a peer's subnet.
fn route_to(world: &World, third: u8) -> Option<String> {
    let destination = format!("10.244.{third}.0/24").parse().unwrap();
    world
        .desired()
        .get(&Key::Route(destination, 0))
        .map(ToString::to_string)
}

fn problems_of(world: &World, third: u8) -> Vec<String> {
    let problems = world.problems().get(&subnet(third));
    problems.into_iter().flatten().map(ToString::to_string).collect()
}

fn tunnelled(third: u8) -> String {
    format!("route 10.244.{third}.0/24 via 10.244.{third}.0 dev flannel.1 onlink")
}

#[test]
fn world_when_new_then_this_node_alone() {
    let world = empty();
    assert_eq!(world.revision(), 0);
    assert_eq!(world.backend().name(), "vxlan");
    assert_eq!(world.node().subnet, subnet(1));
    let texts: Vec<String> = world.desired().keys().map(|key| key.to_string()).collect();
    assert_eq!(texts, ["link flannel.1", "address 10.244.1.0/32 dev flannel.1"]);
    assert!(world.leases().is_empty() && world.problems().is_empty() && world.rejected().is_empty());
}

#[test]
fn snapshot_when_taken_then_peers_are_all_but_this_node_and_each_is_planned() {
    let world = filled(&[own_lease(), peer(2, 2), peer(3, 3)]);
    assert_eq!(world.revision(), 5);
    assert_eq!(world.leases().len(), 3);
    let peers: Vec<Subnet> = world.peers().map(|lease| lease.subnet).collect();
    assert_eq!(peers, [subnet(2), subnet(3)]);
    assert_eq!(world.desired().len(), 2 + 3 + 3);
    assert!(world.problems().is_empty(), "{:?}", world.problems());
    assert_eq!(route_to(&world, 2), Some(tunnelled(2)));
    assert_eq!(route_to(&world, 1), None);
    let asked: Vec<Key> = world.objects_of(&peer(3, 3)).iter().map(Object::key).collect();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|key| world.desired().contains_key(key)));
}

#[test]
fn snapshot_when_it_says_what_is_known_then_nothing_is_touched_but_its_revision_counts() {
    let mut world = filled(&[peer(2, 2)]);
    assert_eq!(world.update(snapshot(8, &[peer(2, 2)], &[])), nothing());
    assert_eq!(world.revision(), 8);
    assert_eq!(world.update(snapshot(9, &[peer(3, 2)], &[])), Touched::Whole);
    assert_eq!(
        (route_to(&world, 2), route_to(&world, 3)),
        (None, Some(tunnelled(3)))
    );
}

#[test]
fn snapshot_when_an_entry_turned_unreadable_then_its_lease_stays_until_it_is_gone() {
    let mut world = filled(&[peer(2, 2), peer(3, 3)]);
    assert_eq!(
        world.update(snapshot(8, &[peer(3, 3)], &["10.244.2.0-24", "foo"])),
        nothing()
    );
    assert_eq!(route_to(&world, 2), Some(tunnelled(2)));
    assert_eq!(
        world.rejected().reason("10.244.2.0-24"),
        Some("junk at 10.244.2.0-24")
    );
    assert_eq!(world.rejected().len(), 2);
    assert_eq!(world.update(snapshot(9, &[peer(3, 3)], &[])), Touched::Whole);
    assert_eq!(route_to(&world, 2), None);
    assert!(world.rejected().is_empty());
}

#[test]
fn delta_when_a_lease_comes_changes_or_goes_then_its_keys_are_touched_and_no_others() {
    let mut world = filled(&[peer(2, 2)]);
    let keys_of = |leases: &[Lease]| {
        let objects = leases.iter().flat_map(|lease| empty().objects_of(lease));
        Touched::Keys(objects.map(|object| object.key()).collect())
    };
    let three = peer(3, 6);
    assert_eq!(
        world.update(delta(6, &[(3, Some(three.clone()))], &[])),
        keys_of(std::slice::from_ref(&three))
    );
    assert_eq!((world.revision(), world.desired().len()), (6, 2 + 3 + 3));
    // Another MAC: the old forwarding entry goes, a new one comes, neighbour and route are looked at.
    let changed = with_mac(3, 0x33, 6);
    assert_eq!(
        world.update(delta(7, &[(3, Some(changed.clone()))], &[])),
        keys_of(&[three, changed.clone()])
    );
    assert_eq!(world.desired().len(), 2 + 3 + 3);
    assert_eq!(world.leases()[&subnet(3)], changed);
    assert_eq!(
        world.update(delta(8, &[(3, Some(changed.clone()))], &[])),
        nothing()
    );
    assert_eq!(world.update(delta(9, &[(3, None)], &[])), keys_of(&[changed]));
    assert_eq!((world.desired().len(), route_to(&world, 3)), (2 + 3, None));
    assert_eq!(world.update(delta(10, &[(3, None)], &[])), nothing());
    assert_eq!(world.peers().count(), 1);
}

#[test]
fn delta_when_older_than_what_is_known_then_nothing_and_when_of_the_same_revision_then_taken() {
    let mut world = filled(&[peer(2, 2)]);
    assert_eq!(world.update(delta(4, &[(2, None)], &[])), nothing());
    assert_eq!((world.revision(), world.leases().len()), (5, 1));
    assert_ne!(world.update(delta(5, &[(2, None)], &[])), nothing());
    assert_eq!((world.revision(), world.leases().len()), (5, 0));
}

#[test]
fn delta_when_of_our_own_lease_then_it_is_kept_and_asks_for_nothing() {
    let mut world = filled(&[peer(2, 2)]);
    let before = world.desired().clone();
    assert_eq!(world.update(delta(6, &[(1, Some(own_lease()))], &[])), nothing());
    assert_eq!((world.leases().len(), world.peers().count()), (2, 1));
    assert!(world.problems().is_empty(), "{:?}", world.problems());
    assert_eq!(world.update(delta(7, &[(1, None)], &[])), nothing());
    assert_eq!(world.leases().len(), 1);
    assert_eq!(world.desired(), &before);
}

#[test]
fn delta_when_an_entry_becomes_readable_or_goes_then_it_is_rejected_no_more() {
    let mut world = filled(&[peer(2, 2)]);
    assert_eq!(
        world.update(delta(6, &[], &["10.244.3.0-24", "10.244.4.0-24", "foo"])),
        nothing()
    );
    assert_eq!(world.rejected().len(), 3);
    world.update(delta(7, &[(3, Some(peer(3, 3))), (4, None)], &[]));
    let left: Vec<&str> = world.rejected().named().map(|(key, _)| key).collect();
    assert_eq!(left, ["foo"]);
}

fn gone(revision: i64, keys: &[&str]) -> Update {
    Update::Delta(Delta {
        revision,
        gone: keys.iter().map(|key| (*key).to_owned()).collect(),
        ..Delta::default()
    })
}

/// One after the other, and all at once.
#[test]
fn entries_when_they_are_no_leases_then_few_are_named_all_are_counted_and_those_gone_forgotten() {
    let keys: Vec<String> = (0..2000).map(|n| format!("junk{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut world = empty();
    for (n, key) in keys.iter().enumerate() {
        world.update(delta(6, &[], &[key]));
        assert_eq!(world.rejected().len(), n + 1);
        // Again, with another value.
        world.update(delta(6, &[], &[key]));
        assert_eq!(world.rejected().len(), n + 1);
    }
    assert_eq!(world.rejected().named().count(), 256);
    world.update(snapshot(7, &[], &keys));
    assert_eq!(
        (world.rejected().len(), world.rejected().named().count()),
        (2000, 256)
    );
    world.update(gone(8, &keys[..1000]));
    assert_eq!(world.rejected().len(), 1000);
    for key in &keys[1000..] {
        world.update(gone(9, &[key]));
    }
    assert!(world.rejected().is_empty());
    // There is room for names again.
    world.update(delta(10, &[], &["foo"]));
    assert_eq!(world.rejected().reason("foo"), Some("junk at foo"));
    assert_eq!(world.rejected().reason("bar"), None);
    world.update(delta(11, &[], &["10.244.9.0-24"]));
    assert_eq!(world.rejected().subnets().len(), 1);
    world.update(delta(12, &[(9, None)], &[]));
    assert_eq!((world.rejected().len(), world.rejected().subnets().len()), (1, 0));
}

/// What an earlier process put there for a lease that nobody can read.
#[test]
fn doubts_when_an_entry_cannot_be_read_then_about_what_hangs_on_its_subnet_and_until_it_can_be() {
    let mut observed = filled(&[peer(3, 3), peer(4, 4)]).desired().clone();
    let of = |third: u8| empty().objects_of(&peer(third, 1));
    observed.extend(of(5));
    let mut world = empty();
    assert!(!world.doubts(&observed).cover(&of(3)[0]));
    world.update(delta(6, &[], &["10.244.3.0-24", "foo"]));
    let covered = |world: &World, third: u8| {
        let doubts = world.doubts(&observed);
        of(third).iter().filter(|object| doubts.cover(object)).count()
    };
    assert_eq!((covered(&world, 3), covered(&world, 4)), (3, 0));
    let doubts = world.doubts(&observed);
    let own: Vec<Object> = world.desired().values().cloned().collect();
    // Links and addresses are our own.
    assert!(!own.iter().any(|object| doubts.cover(object)));
    assert!(!world.take_settled());
    // It is a lease after all: what is wanted is known.
    world.update(delta(7, &[(3, Some(peer(3, 3)))], &[]));
    assert_eq!(
        (covered(&world, 3), world.take_settled(), world.take_settled()),
        (0, true, false)
    );
    // Unreadable again: the lease stays in force, and there is no doubt.
    world.update(delta(8, &[], &["10.244.3.0-24"]));
    assert_eq!((covered(&world, 3), world.take_settled()), (0, false));
    world.update(delta(9, &[(3, None)], &["10.244.4.0-24"]));
    assert_eq!(
        (covered(&world, 3), covered(&world, 4), world.take_settled()),
        (0, 3, false)
    );
    // Gone in a listing, which says the same of the leases.
    assert_eq!(world.update(snapshot(10, &[], &["10.244.4.0-24"])), nothing());
    assert!(!world.take_settled());
    assert_eq!(world.update(snapshot(11, &[], &[])), nothing());
    assert!(world.take_settled());
}

#[test]
fn delta_when_a_lease_that_could_not_be_served_can_be_then_its_problem_is_over() {
    let mut bad = peer(3, 3);
    bad.attributes.data = None;
    let mut world = filled(&[peer(2, 2), bad]);
    assert_eq!(problems_of(&world, 3), ["IPv4: lease has no vxlan data"]);
    assert_eq!(problems_of(&world, 2), Vec::<String>::new());
    world.update(delta(6, &[(3, Some(peer(3, 3)))], &[]));
    assert!(world.problems().is_empty());
    assert_eq!(route_to(&world, 3), Some(tunnelled(3)));
}

/// Two peers that published one MAC: a cloned machine.
#[test]
fn leases_when_they_want_one_object_then_the_older_has_it_and_the_other_is_told() {
    let mac = Key::Forwarding(name("flannel.1"), crate::object::Mac([0x0a, 0, 0, 0, 0, 7]));
    let towards = |world: &World| match world.desired().get(&mac) {
        Some(Object::Forwarding(forwarding)) => Some(forwarding.remote),
        _ => None,
    };
    let told = |older: u8| {
        vec![format!(
            "fdb 0a:00:00:00:00:07 dev flannel.1 belongs to the older lease 10.244.{older}.0-24"
        )]
    };
    let touches_mac =
        |touched: Touched| matches!(touched, Touched::Keys(keys) if keys.len() == 3 && keys.contains(&mac));
    let mut world = filled(&[
        with_mac(2, 7, 9),
        with_mac(3, 7, 4),
        with_mac(4, 7, 6),
        peer(5, 1),
    ]);
    assert_eq!(towards(&world), Some(ip(3)));
    assert_eq!(problems_of(&world, 3), Vec::<String>::new());
    assert_eq!(problems_of(&world, 5), Vec::<String>::new());
    assert_eq!(
        (problems_of(&world, 2), problems_of(&world, 4)),
        (told(3), told(3))
    );
    // What else they ask for is theirs.
    assert_eq!(
        (route_to(&world, 2), route_to(&world, 4)),
        (Some(tunnelled(2)), Some(tunnelled(4)))
    );
    // The next in age has it once the oldest is gone.
    assert!(touches_mac(world.update(delta(6, &[(3, None)], &[]))));
    assert_eq!((towards(&world), problems_of(&world, 2)), (Some(ip(4)), told(4)));
    assert_eq!(problems_of(&world, 4), Vec::<String>::new());
    assert!(touches_mac(world.update(delta(7, &[(4, None)], &[]))));
    assert_eq!((towards(&world), world.problems().len()), (Some(ip(2)), 0));
    // It begins again when one comes that is older, and when one comes that is younger.
    assert!(touches_mac(world.update(delta(
        9,
        &[(3, Some(with_mac(3, 7, 4)))],
        &[]
    ))));
    assert_eq!((towards(&world), problems_of(&world, 2)), (Some(ip(3)), told(3)));
    assert!(touches_mac(world.update(delta(
        10,
        &[(6, Some(with_mac(6, 7, 10)))],
        &[]
    ))));
    assert_eq!((towards(&world), problems_of(&world, 6)), (Some(ip(3)), told(3)));
    // The one that has it publishes another.
    world.update(delta(11, &[(3, Some(with_mac(3, 8, 4)))], &[]));
    assert_eq!((towards(&world), problems_of(&world, 6)), (Some(ip(2)), told(2)));
    assert_eq!((problems_of(&world, 2), problems_of(&world, 3)), (vec![], vec![]));
}

fn overlapping(key: &str, mac: u8, created: i64) -> Lease {
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{mac}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{mac:02x}"}}}}"#
    );
    lease(key, &value, created)
}

fn routes(world: &World) -> Vec<String> {
    let routes = world.desired().values().filter_map(|object| match object {
        Object::Route(route) => Some(route.destination.to_string()),
        _ => None,
    });
    routes.collect()
}

#[test]
fn leases_when_they_overlap_then_the_older_has_the_addresses_and_the_other_nothing() {
    for other in [
        "10.244.2.128-25",
        "10.244.2.0-25",
        "10.244.2.6-31",
        "10.244.2.0-23",
        "10.244.2.0-24&fd00:244:0:2::-64",
    ] {
        let (old, new) = (peer(2, 5), overlapping(other, 9, 6));
        let change = |revision, lease: &Lease, to: Option<Lease>| {
            Update::Delta(Delta {
                revision,
                changes: vec![(lease.subnet, to)],
                ..Delta::default()
            })
        };
        let told = |world: &World, lease: &Lease| {
            let problems = world.problems().get(&lease.subnet).cloned().unwrap_or_default();
            problems.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let check = |world: &World, holder: &Lease, loser: &Lease| {
            let (half, held) = (loser.subnet.v4.unwrap(), holder.subnet.v4.unwrap());
            assert_eq!(routes(world), [held.to_string()], "{other}");
            let text = format!("subnet {half} overlaps the older lease {}", holder.subnet);
            assert_eq!((told(world, loser), told(world, holder)), (vec![text], vec![]));
            assert!(world.objects_of(loser).is_empty(), "{other}");
        };
        let mut world = filled(&[old.clone(), new.clone()]);
        check(&world, &old, &new);
        // The younger has them when the older is gone, and loses them to one that is older still.
        world.update(change(6, &old, None));
        assert_eq!((routes(&world).len(), world.problems().len()), (1, 0), "{other}");
        let older = peer(2, 4);
        world.update(change(7, &older, Some(older.clone())));
        check(&world, &older, &new);
        // Created anew it is the younger one.
        world.update(change(8, &older, Some(peer(2, 9))));
        check(&world, &new, &peer(2, 9));
        world.update(change(9, &new, None));
        assert_eq!(
            (route_to(&world, 2), world.problems().len()),
            (Some(tunnelled(2)), 0)
        );
    }
}

#[test]
fn lease_when_it_is_not_inside_the_network_or_overlaps_our_own_then_it_takes_no_place() {
    for wide in ["10.244.0.0-16", "10.0.0.0-8", "10.244.0.0-17", "10.244.1.0-25"] {
        let world = filled(&[overlapping(wide, 9, 1), peer(2, 5)]);
        assert_eq!(route_to(&world, 2), Some(tunnelled(2)), "{wide}");
        assert_eq!(world.problems().len(), 1, "{wide}");
    }
}

/// Counts how often it plans.
struct Counting(Box<dyn Backend>, std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl Backend for Counting {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn links(&self, network: &NetworkConfig) -> Vec<LinkName> {
        self.0.links(network)
    }

    fn mtu(&self, network: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError> {
        self.0.mtu(network, underlay)
    }

    fn own_objects(&self, node: &Node) -> Vec<Object> {
        self.0.own_objects(node)
    }

    fn plan_peer(&self, node: &Node, peer: &Peer<'_>, plan: &mut PeerPlan) {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.plan_peer(node, peer, plan);
    }
}

/// 60 peers; two of them with one MAC, two that overlap. What a change costs is what it touches.
#[test]
fn change_when_leases_are_at_odds_then_no_others_are_planned_anew() {
    let counter = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let mut peers: Vec<Lease> = (2..62).map(|third| peer(third, i64::from(third))).collect();
    peers.push(with_mac(70, 2, 70));
    peers.push(overlapping("10.244.3.128-25", 71, 71));
    let mut world = filled(&peers);
    let node = world.node().clone();
    let inner = backend(&node.network.backend).unwrap();
    world.set_node(Box::new(Counting(inner, counter.clone())), node);
    assert_eq!(world.problems().len(), 2);
    let mut revision = 10;
    let mut cost = |world: &mut World, third: u8, lease: Option<Lease>| {
        revision += 1;
        let before = counter.load(std::sync::atomic::Ordering::Relaxed);
        let touched = world.update(delta(revision, &[(third, lease)], &[]));
        assert!(matches!(touched, Touched::Keys(_)), "{touched:?}");
        counter.load(std::sync::atomic::Ordering::Relaxed) - before
    };
    // Somebody comes and goes who has nothing to do with it.
    assert_eq!(cost(&mut world, 80, Some(peer(80, 80))), 1);
    assert_eq!(cost(&mut world, 80, None), 1);
    // The younger one with the MAC goes, comes, and changes.
    assert_eq!(cost(&mut world, 70, None), 1);
    assert_eq!(cost(&mut world, 70, Some(with_mac(70, 2, 90))), 1);
    assert_eq!(cost(&mut world, 70, Some(with_mac(70, 99, 90))), 2);
    assert_eq!(cost(&mut world, 70, Some(with_mac(70, 2, 90))), 2);
    // The older one: the younger is planned for what it gets, and for what it loses.
    assert_eq!(cost(&mut world, 2, None), 2);
    assert_eq!(cost(&mut world, 2, Some(peer(2, 2))), 1);
    // Where they overlap both are planned as they were and as they are.
    assert_eq!(cost(&mut world, 3, None), 3);
    assert_eq!(cost(&mut world, 3, Some(peer(3, 3))), 3);
    assert_eq!(world.problems().len(), 2);
}

/// Has a route of its own on every host, which a peer's may not replace.
struct Reserved;

impl Backend for Reserved {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn links(&self, _: &NetworkConfig) -> Vec<LinkName> {
        Vec::new()
    }

    fn mtu(&self, _: &NetworkConfig, underlay: &Underlay) -> Result<u32, PlanError> {
        Ok(underlay.mtu)
    }

    fn own_objects(&self, _: &Node) -> Vec<Object> {
        vec![via(7, ip(254))]
    }

    fn plan_peer(&self, _: &Node, peer: &Peer<'_>, plan: &mut PeerPlan) {
        for half in peer.halves() {
            let IpAddr::V4(subnet) = half.subnet.addr() else {
                panic!("{half:?}")
            };
            plan.objects.push(via(subnet.octets()[2], half.public));
        }
    }
}

fn via(third: u8, gateway: IpAddr) -> Object {
    Object::Route(Route {
        destination: format!("10.244.{third}.0/24").parse().unwrap(),
        metric: 0,
        gateway: Some(gateway),
        link: name("eth0"),
        onlink: false,
        protocol: ROUTE_PROTOCOL,
    })
}

#[test]
fn lease_when_it_wants_what_is_this_nodes_own_then_it_does_not_get_it() {
    let mut world = filled(&[peer(7, 7), peer(8, 8)]);
    let node = world.node().clone();
    world.set_node(Box::new(Reserved), node);
    assert_eq!(
        route_to(&world, 7).as_deref(),
        Some("route 10.244.7.0/24 via 192.0.2.254 dev eth0")
    );
    assert_eq!(problems_of(&world, 7), ["route 10.244.7.0/24 is this node's own"]);
    assert_eq!(world.desired().len(), 2);
}

#[test]
fn node_when_another_is_set_then_all_is_planned_for_it() {
    let mut world = filled(&[peer(2, 2)]);
    let mut node = world.node().clone();
    node.underlay.link = name("eth7");
    let backend = backend(&node.network.backend).unwrap();
    world.set_node(backend, node);
    assert_eq!(world.node().underlay.link, name("eth7"));
    let device = world.desired().links().next().unwrap().to_string();
    assert!(device.contains("dev eth7"), "{device}");
    assert_eq!(route_to(&world, 2), Some(tunnelled(2)));
}

#[test]
fn direct_when_learned_then_plans_change_only_for_leases_that_are_there() {
    let direct = |third: u8, link: &str| format!("route 10.244.{third}.0/24 via 192.0.2.{third} dev {link}");
    let mut world = filled(&[peer(2, 2), peer(3, 3)]);
    assert!(!world.learn_direct([].into_iter()));
    assert!(world.learn_direct([(ip(2), Some(name("eth0")))].into_iter()));
    assert_eq!(route_to(&world, 2), Some(direct(2, "eth0")));
    assert_eq!(route_to(&world, 3), Some(tunnelled(3)));
    assert!(
        !world.learn_direct([(ip(2), Some(name("eth0")))].into_iter()),
        "known"
    );
    assert!(world.learn_direct([(ip(2), Some(name("eth1"))), (ip(3), None)].into_iter()));
    assert_eq!(route_to(&world, 2), Some(direct(2, "eth1")));
    // Of a peer that has no lease yet: known when it comes.
    assert!(!world.learn_direct([(ip(4), Some(name("eth0")))].into_iter()));
    world.update(delta(6, &[(4, Some(peer(4, 4)))], &[]));
    assert_eq!(route_to(&world, 4), Some(direct(4, "eth0")));
    assert!(world.learn_direct([(ip(2), None)].into_iter()));
    assert_eq!(route_to(&world, 2), Some(tunnelled(2)));
    assert!(!world.learn_direct([(ip(2), None)].into_iter()), "known");
}

#[test]
fn direct_when_replaced_then_told_whether_anything_changed() {
    let mut world = filled(&[peer(2, 2), peer(3, 3)]);
    let only = |third: u8| BTreeMap::from([(ip(third), name("eth0"))]);
    assert!(!world.set_direct(BTreeMap::new()));
    assert!(world.set_direct(only(2)));
    assert!(!world.set_direct(only(2)));
    assert!(world.set_direct(only(3)));
    assert_eq!(route_to(&world, 2), Some(tunnelled(2)));
    assert_eq!(
        route_to(&world, 3).as_deref(),
        Some("route 10.244.3.0/24 via 192.0.2.3 dev eth0")
    );
}
