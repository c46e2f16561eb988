use std::process::Command;

use fabric::object::{Key, Object, Op};
use kernel::{Drained, Kernel, Outcome, Scope};

use crate::apply::{BY_OBJECT, PLAIN, add, assert_mirror_true, device, done, own_interest, peer, remove};
use crate::rtnl::{ip, vxlan};
use crate::scratch::{Scratch, interest, link};

fn with_peers(scratch: &Scratch) -> Kernel {
    let mut kernel = device(scratch);
    let peers: Vec<Object> = (2..6).flat_map(|third| peer(5, third)).collect();
    done(&kernel.apply(&add(&peers), PLAIN));
    assert_eq!(kernel.drain().unwrap(), Drained::default());
    kernel
}

fn keys(drained: &Drained) -> Vec<String> {
    let mut keys: Vec<String> = drained.changed.iter().map(|c| c.key.to_string()).collect();
    keys.sort();
    keys
}

/// Drains, observes what is asked for, and compares with what a new observer sees.
fn settle(kernel: &mut Kernel) -> Drained {
    let drained = kernel.drain().unwrap();
    if let Some(scope) = drained.resync {
        kernel.observe(scope).unwrap();
    }
    assert_mirror_true(kernel, own_interest());
    drained
}

#[test]
fn objects_when_deleted_by_hand_then_each_is_told_by_key() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.ip("neigh del 10.5.2.0 dev flannel.1");
    scratch.bridge("fdb del 0a:00:00:00:05:03 dev flannel.1 dst 198.51.5.3 self");
    scratch.ip("route del 10.5.4.0/24");
    let drained = settle(&mut kernel);
    assert_eq!(
        keys(&drained),
        [
            "fdb 0a:00:00:00:05:03 dev flannel.1",
            "neighbour 10.5.2.0 dev flannel.1",
            "route 10.5.4.0/24"
        ]
    );
    let route = drained
        .changed
        .iter()
        .find(|c| matches!(c.key, Key::Route(..)))
        .unwrap();
    assert!(
        route.by.is_some_and(|pid| pid > 1),
        "the process that deleted a route is known: {route:?}"
    );
    assert_eq!((drained.resync, drained.underlay_changed), (None, false));
    assert_eq!(settle(&mut kernel), Drained::default());
}

#[test]
fn objects_when_changed_by_hand_then_each_is_told_and_mirrored() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.ip("neigh replace 10.5.2.0 lladdr 0a:00:00:00:00:99 dev flannel.1 nud permanent");
    scratch.bridge("fdb replace 0a:00:00:00:05:03 dev flannel.1 dst 192.0.2.99 self permanent");
    scratch.ip("route replace 10.5.4.0/24 via 192.0.2.99");
    scratch.ip("link set flannel.1 mtu 1300");
    let drained = settle(&mut kernel);
    let expected = [
        "fdb 0a:00:00:00:05:03 dev flannel.1",
        "link flannel.1",
        "neighbour 10.5.2.0 dev flannel.1",
        "route 10.5.4.0/24",
    ];
    assert_eq!(keys(&drained), expected);
    // Back as it was before anybody looked: nothing changed.
    scratch.ip("route del 10.5.5.0/24");
    scratch.ip("route add 10.5.5.0/24 via 10.5.5.0 dev flannel.1 onlink proto 241");
    assert_eq!(settle(&mut kernel).changed, []);
    // Learned entries are nobody's.
    scratch.ip("neigh replace 10.5.2.0 lladdr 0a:00:00:00:00:98 dev flannel.1 nud stale");
    scratch.bridge("fdb replace 0a:00:00:00:05:03 dev flannel.1 dst 192.0.2.99 self dynamic");
    assert_eq!(
        keys(&settle(&mut kernel)),
        [
            "fdb 0a:00:00:00:05:03 dev flannel.1",
            "neighbour 10.5.2.0 dev flannel.1"
        ]
    );
    // What learned entries hold is taken over by an addition.
    let wanted: Vec<Object> = [&peer(5, 2)[..1], &peer(5, 3)[1..2]].concat();
    assert!(
        kernel
            .apply(&add(&wanted), PLAIN)
            .iter()
            .all(|o| *o == Outcome::Done)
    );
    assert_mirror_true(&mut kernel, own_interest());
}

#[test]
fn device_when_deleted_then_everything_on_it_is_gone_from_the_mirror_at_once() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.ip("link del flannel.1");
    let drained = settle(&mut kernel);
    assert_eq!(
        drained.changed.len(),
        1 + 1 + 12,
        "device, address, four peers: {:?}",
        keys(&drained)
    );
    assert!(
        kernel
            .objects()
            .values()
            .all(|object| object.link() == link("eth0"))
    );
    assert_eq!(kernel.link_index(link("flannel.1")), None);
    assert!(!drained.underlay_changed);
    // Somebody makes it anew.
    scratch.ip("link add flannel.1 type vxlan id 7 dev eth0 dstport 8472");
    assert_eq!(keys(&settle(&mut kernel)), ["link flannel.1"]);
}

#[test]
fn underlay_when_deleted_then_so_is_the_device_over_it() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.ip("link del eth0");
    let drained = settle(&mut kernel);
    assert!(drained.underlay_changed);
    assert!(kernel.objects().is_empty(), "{:?}", kernel.objects());
}

#[test]
fn link_when_down_then_its_silent_losses_are_asked_for() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.ip("link set flannel.1 down");
    let drained = settle(&mut kernel);
    assert_eq!(drained.resync, Some(Scope::Link(link("flannel.1"))));
    assert!(
        !kernel.objects().keys().any(|key| matches!(key, Key::Route(..))),
        "{:?}",
        kernel.objects()
    );
    let forwardings = kernel
        .objects()
        .keys()
        .filter(|key| matches!(key, Key::Forwarding(..)))
        .count();
    assert_eq!(forwardings, 4, "those stay");
    scratch.ip("link set flannel.1 up");
    settle(&mut kernel);
    // Down and up before anybody looks.
    let peers: Vec<Object> = (2..6).flat_map(|third| peer(5, third)).collect();
    done(&kernel.apply(&add(&peers), PLAIN));
    scratch.batch("ip", "link set flannel.1 down\nlink set flannel.1 up\n");
    assert_eq!(settle(&mut kernel).resync, Some(Scope::Link(link("flannel.1"))));
    assert!(!kernel.objects().keys().any(|key| matches!(key, Key::Route(..))));
}

#[test]
fn addresses_when_they_go_then_so_may_routes() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.ip("route add 10.5.77.0/24 via 192.0.2.9 proto 241");
    settle(&mut kernel);
    scratch.ip("address del 192.0.2.1/24 dev eth0");
    let drained = settle(&mut kernel);
    assert!(drained.underlay_changed);
    assert_eq!(drained.resync, Some(Scope::Link(link("eth0"))));
    assert_eq!(scratch.ip_json("route show 10.5.77.0/24").len(), 0);
    // Of our own doing too.
    let address = kernel.objects()[&Key::Address(link("flannel.1"), "10.5.1.0/32".parse().unwrap())].clone();
    done(&kernel.apply(&[Op::Remove(address)], PLAIN));
    assert_mirror_true(&mut kernel, own_interest());
    assert!(
        !kernel.objects().keys().any(|key| matches!(key, Key::Route(..))),
        "{:?}",
        kernel.objects()
    );
}

#[test]
fn nexthop_object_when_deleted_by_hand_then_the_loss_of_its_routes_is_asked_for() {
    let scratch = Scratch::new();
    let mut kernel = device(&scratch);
    let peers: Vec<Object> = (2..6).flat_map(|third| peer(5, third)).collect();
    done(&kernel.apply(&add(&peers), BY_OBJECT));
    kernel.drain().unwrap();
    let id = &scratch.ip_json("route show 10.5.3.0/24")[0]["nhid"];
    scratch.ip(&format!("nexthop del id {id}"));
    let drained = settle(&mut kernel);
    assert_eq!(drained.resync, Some(Scope::Link(link("flannel.1"))));
    assert!(!kernel.objects().contains_key(&peer(5, 3)[2].key()));
    done(&kernel.apply(&add(&peer(5, 3)[2..]), BY_OBJECT));
    assert_mirror_true(&mut kernel, own_interest());
    done(&kernel.apply(&remove(&peers), BY_OBJECT));
    assert!(scratch.ip_json("nexthop show").is_empty());
}

#[test]
fn notifications_when_overrun_then_everything_is_asked_for_and_true_again() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    kernel.set_monitor_buffer(4 << 10).unwrap();
    let lines: String = (0..200)
        .map(|i| format!("route add 10.64.{i}.0/24 via 192.0.2.9\n"))
        .collect();
    scratch.batch("ip", &lines);
    let drained = settle(&mut kernel);
    assert_eq!(drained.resync, Some(Scope::All));
    let mirrored = |kernel: &Kernel| {
        kernel
            .objects()
            .keys()
            .filter(|key| matches!(key, Key::Route(..)))
            .count()
    };
    assert_eq!(mirrored(&kernel), 204);
    assert_eq!(settle(&mut kernel), Drained::default());
    scratch.ip("route del 10.64.7.0/24");
    assert_eq!(keys(&settle(&mut kernel)), ["route 10.64.7.0/24"]);
}

#[test]
fn links_when_renamed_then_one_goes_and_another_comes() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.batch(
        "ip",
        "link set flannel.1 down\nlink set flannel.1 name other\nlink set other up\n",
    );
    settle(&mut kernel);
    assert_eq!(kernel.link_index(link("flannel.1")), None);
    assert!(kernel.link_index(link("other")).is_some());
    assert!(
        kernel
            .objects()
            .values()
            .all(|object| object.link() == link("eth0")),
        "{:?}",
        kernel.objects()
    );
    scratch.batch(
        "ip",
        "link set other down\nlink set other name flannel.1\nlink set flannel.1 up\n",
    );
    settle(&mut kernel);
    assert!(
        kernel
            .objects()
            .keys()
            .any(|key| matches!(key, Key::Forwarding(..))),
        "they stayed"
    );
}

/// The device lies on the same link as before: nobody has a reason to make it anew.
#[test]
fn link_below_when_renamed_then_the_device_is_the_same_until_the_name_is_anothers() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    // The mirror differs from a new observer's on purpose.
    let hear = |kernel: &mut Kernel| {
        let drained = kernel.drain().unwrap();
        if let Some(scope) = drained.resync {
            kernel.observe(scope).unwrap();
        }
        drained
    };
    let rename = |from: &str, to: &str| {
        scratch.batch(
            "ip",
            &format!("link set {from} down\nlink set {from} name {to}\nlink set {to} up\n"),
        );
    };
    let below = |kernel: &Kernel| {
        let device = &kernel.objects()[&Key::Link(link("flannel.1"))];
        device.as_link().unwrap().kind.lower().unwrap().to_string()
    };
    rename("eth0", "wan0");
    let drained = hear(&mut kernel);
    assert!(drained.underlay_changed);
    assert_eq!(below(&kernel), "eth0");
    assert_eq!(kernel.link_index(link("eth0")), None);
    kernel.observe(Scope::All).unwrap();
    assert_eq!(below(&kernel), "eth0", "read anew it is no other");
    // Whoever knows of the new name asks by it.
    kernel.set_interest(interest(
        &["flannel.1", "wan0"],
        &["10.5.0.0/16", "10.64.0.0/10", "fd00:5::/32"],
    ));
    kernel.observe(Scope::All).unwrap();
    assert_eq!(below(&kernel), "wan0");
    rename("wan0", "eth0");
    hear(&mut kernel);
    assert_eq!(below(&kernel), "wan0");
    // Another has the name: now there is a difference.
    scratch.ip("link add wan0 type veth peer name wan1");
    hear(&mut kernel);
    assert_eq!(below(&kernel), "eth0");
    scratch.ip("link del wan0");
    rename("eth0", "wan0");
    hear(&mut kernel);
    assert_eq!(below(&kernel), "wan0");
}

#[test]
fn rules_and_further_tables_when_they_change_then_the_way_to_peers_may_have() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    for change in [
        "rule add to 192.0.2.9 lookup 100",
        "route add default via 192.0.2.254 table 100",
        "route del default table 100",
        "rule del to 192.0.2.9 lookup 100",
        "-6 rule add to 2001:db8::9 lookup 100",
        "-6 rule del to 2001:db8::9 lookup 100",
    ] {
        assert_eq!(kernel.drain().unwrap(), Drained::default());
        scratch.ip(change);
        let drained = settle(&mut kernel);
        assert!(
            drained.ways.covers(ip("192.0.2.9")) && drained.changed.is_empty(),
            "{change}"
        );
    }
}

#[test]
fn pods_when_they_come_and_go_then_nothing_is_told() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.ip("link add cni0 type bridge");
    scratch.ip("link set cni0 up");
    let index = kernel.drain().map(|_| kernel.link_index(link("cni0"))).unwrap();
    assert!(index.is_some());
    for _ in 0..3 {
        scratch.ip("link add veth1 type veth peer name pod1");
        scratch.ip("link set veth1 master cni0");
        scratch.ip("link set veth1 up");
        scratch.ip("link set pod1 up");
        scratch.ip("neigh add 10.5.1.9 lladdr 0a:00:00:00:01:09 dev pod1");
        // The bridge says RTM_DELLINK of a port that leaves; the link is still there.
        scratch.ip("link set veth1 nomaster");
        assert_eq!(kernel.drain().unwrap(), Drained::default());
        assert!(kernel.link_index(link("veth1")).is_some());
        scratch.ip("link del veth1");
    }
    assert_eq!(kernel.drain().unwrap(), Drained::default());
    // The bridge's own route is inside the networks, so it is seen; one outside them moves the underlay.
    scratch.ip("address add 10.5.1.1/24 dev cni0");
    assert_eq!(keys(&settle(&mut kernel)), ["route 10.5.1.0/24"]);
    scratch.ip("route add default via 192.0.2.254");
    let drained = settle(&mut kernel);
    assert!(drained.ways.has_default() && drained.changed.is_empty() && !drained.underlay_changed);
    // Any other is one of thousands that may come: it says which addresses it leads to.
    scratch.ip("route add 203.0.113.0/24 via 192.0.2.254");
    let drained = settle(&mut kernel);
    assert!(drained.ways.covers(ip("203.0.113.7")) && !drained.ways.covers(ip("192.0.2.9")));
    assert!(!drained.ways.has_default() && drained.resync.is_none());
}

#[test]
fn routes_when_of_other_tables_types_or_several_hops_then_they_confuse_nothing() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    scratch.ip("route add 10.5.2.0/24 via 192.0.2.9 table 100");
    scratch.ip("route add 10.5.3.0/24 via 192.0.2.9 tos 0x10");
    scratch.ip("route del 10.5.2.0/24 via 192.0.2.9 table 100");
    assert_eq!(settle(&mut kernel), Drained::default());
    scratch.ip("route add 10.5.2.0/24 via 192.0.2.9 metric 50");
    assert_eq!(keys(&settle(&mut kernel)), ["route 10.5.2.0/24 metric 50"]);
    scratch.ip("route replace 10.5.4.0/24 nexthop via 192.0.2.7 nexthop via 192.0.2.8");
    assert_eq!(keys(&settle(&mut kernel)), ["route 10.5.4.0/24"]);
    let there = kernel.objects()[&peer(5, 4)[2].key()].clone();
    done(&kernel.apply(
        &[Op::Change {
            from: there,
            to: peer(5, 4)[2].clone(),
        }],
        PLAIN,
    ));
    assert_eq!(scratch.ip_json("route show 10.5.4.0/24").len(), 1);
    assert_mirror_true(&mut kernel, own_interest());
    // One behind ours, then one before it, then ours deleted from under it.
    scratch.ip("route append 10.5.5.0/24 via 192.0.2.9");
    settle(&mut kernel);
    assert_eq!(kernel.objects().get(&peer(5, 5)[2].key()), Some(&peer(5, 5)[2]));
    scratch.ip("route prepend 10.5.5.0/24 via 192.0.2.10");
    settle(&mut kernel);
    assert_ne!(kernel.objects().get(&peer(5, 5)[2].key()), Some(&peer(5, 5)[2]));
    scratch.ip("route del 10.5.5.0/24 via 192.0.2.10");
    settle(&mut kernel);
    scratch.ip("route del 10.5.5.0/24 via 10.5.5.0 dev flannel.1");
    settle(&mut kernel);
    scratch.ip("-6 route add fd00:5:9::/64 via 2001:db8::9");
    settle(&mut kernel);
    scratch.ip("-6 route append fd00:5:9::/64 via 2001:db8::8");
    settle(&mut kernel);
    scratch.ip("-6 route del fd00:5:9::/64 via 2001:db8::9");
    settle(&mut kernel);
}

#[test]
fn interest_when_changed_then_the_mirror_follows() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    kernel.set_interest(interest(&["eth0"], &["10.5.4.0/24"]));
    assert!(
        kernel
            .objects()
            .values()
            .all(|o| o.link() == link("eth0") || o.key() == peer(5, 4)[2].key())
    );
    assert_eq!(kernel.drain().unwrap().resync, Some(Scope::All));
    kernel.set_interest(own_interest());
    settle(&mut kernel);
    assert_eq!(
        kernel
            .objects()
            .keys()
            .filter(|key| matches!(key, Key::Neighbour(..)))
            .count(),
        4
    );
}

#[test]
fn two_engines_when_each_has_its_device_then_neither_sees_the_other() {
    let scratch = Scratch::new();
    let mut one = with_peers(&scratch);
    let mut two = Kernel::open(interest(&["flannel.2", "eth0"], &["172.20.0.0/16"])).unwrap();
    two.observe(Scope::All).unwrap();
    let mut device = vxlan("flannel.2", "192.0.2.1");
    if let fabric::object::LinkKind::Vxlan(vxlan) = &mut device.kind {
        vxlan.vni = 2;
    }
    let mut route = crate::rtnl::tunnel_route("172.20.2.0/24", "172.20.2.0", "flannel.2");
    route.gateway = Some(ip("172.20.2.0"));
    done(&two.apply(
        &[
            Op::Add(Object::Link(Box::new(device))),
            Op::Add(Object::Route(route)),
        ],
        BY_OBJECT,
    ));
    // Only that something outside its own networks moved.
    let drained = one.drain().unwrap();
    assert!(
        drained.changed.is_empty() && drained.resync.is_none(),
        "{drained:?}"
    );
    one.observe(Scope::All).unwrap();
    done(&one.apply(&[], BY_OBJECT));
    assert_eq!(
        scratch.ip_json("nexthop show").len(),
        1,
        "the other's object is not ours to remove"
    );
}

const DEEDS: &[&str] = &[
    "ip route add 10.5.7.0/24 via 192.0.2.7",
    "ip route append 10.5.7.0/24 via 192.0.2.8",
    "ip route prepend 10.5.7.0/24 via 192.0.2.9",
    "ip route replace 10.5.7.0/24 via 10.5.7.0 dev flannel.1 onlink proto 241",
    "ip route replace 10.5.7.0/24 nexthop via 192.0.2.7 nexthop via 192.0.2.8",
    "ip route replace blackhole 10.5.7.0/24",
    "ip route del 10.5.7.0/24",
    "ip route add 10.5.7.0/24 via 192.0.2.7 metric 9",
    "ip route del 10.5.7.0/24 metric 9",
    "ip -6 route add fd00:5:7::/64 via 2001:db8::7",
    "ip -6 route append fd00:5:7::/64 via 2001:db8::8",
    "ip -6 route replace fd00:5:7::/64 via fd00:5:7:: dev flannel.1 onlink",
    "ip -6 route replace unreachable fd00:5:7::/64",
    "ip -6 route del fd00:5:7::/64",
    "ip nexthop replace id 9 via 192.0.2.9 dev eth0",
    "ip nexthop replace id 9 via 10.5.7.0 dev flannel.1 onlink",
    "ip nexthop del id 9",
    "ip route replace 10.5.7.0/24 nhid 9",
    "ip route replace 10.5.8.0/24 nhid 9",
    "ip link set flannel.1 down",
    "ip link set flannel.1 up",
    "ip link set eth0 down",
    "ip link set eth0 up",
    "up",
    "up",
    "up",
    "ip link set flannel.1 address 0a:00:00:00:00:01",
    "ip link set flannel.1 mtu 1200",
    "ip link del flannel.1",
    "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472",
    "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 local 192.0.2.1 nolearning",
    "ip address add 192.0.2.1/24 dev eth0",
    "ip address del 192.0.2.1/24 dev eth0",
    "ip address add 10.5.1.0/32 dev flannel.1",
    "ip address add 10.5.1.1/24 dev flannel.1",
    "ip address flush dev flannel.1",
    "ip -6 address add fd00:5:1::/128 dev flannel.1 nodad",
    "ip neigh replace 10.5.7.0 lladdr 0a:00:00:00:00:07 dev flannel.1 nud permanent",
    "ip neigh replace 10.5.7.0 lladdr 0a:00:00:00:00:08 dev flannel.1 nud stale",
    "ip neigh flush dev flannel.1 nud permanent",
    "ip neigh del 10.5.7.0 dev flannel.1",
    "bridge fdb replace 0a:00:00:00:00:07 dev flannel.1 dst 192.0.2.7 self permanent",
    "bridge fdb replace 0a:00:00:00:00:07 dev flannel.1 dst 192.0.2.8 self permanent",
    "bridge fdb replace 0a:00:00:00:00:07 dev flannel.1 dst 192.0.2.9 self dynamic",
    "bridge fdb del 0a:00:00:00:00:07 dev flannel.1 dst 192.0.2.7 self",
    "bridge fdb del 0a:00:00:00:00:07 dev flannel.1 dst 192.0.2.8 self",
];

// Down for long, nothing could be done.
const UP: &[&str] = &[
    "ip link set eth0 up",
    "ip address add 192.0.2.1/24 dev eth0",
    "ip link set flannel.1 up",
    "ip address add 10.5.1.0/32 dev flannel.1",
];

/// Deeds in an order that is the same in every run.
struct Hand {
    state: u64,
    netns: String,
    history: Vec<String>,
}

impl Hand {
    fn new(scratch: &Scratch, seed: u64) -> Hand {
        let netns = scratch.path().file_name().unwrap().to_str().unwrap().to_owned();
        Hand {
            state: seed,
            netns,
            history: Vec::new(),
        }
    }

    /// Between one and four deeds before anybody looks.
    fn act(&mut self) {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        for i in 0..1 + (self.state >> 62) {
            let deed = DEEDS[((self.state >> (8 * i + 8)) % DEEDS.len() as u64) as usize];
            let one = [deed];
            for deed in if deed == "up" { UP } else { &one } {
                let mut words = deed.split_whitespace();
                let mut command = Command::new(words.next().unwrap());
                let done = command
                    .args(["-n", &self.netns])
                    .args(words)
                    .output()
                    .unwrap()
                    .status
                    .success();
                self.history
                    .push(format!("{}{deed}", if done { "" } else { "# " }));
            }
        }
    }

    fn recent(&self) -> String {
        self.history[self.history.len().saturating_sub(16)..].join("\n")
    }
}

fn assert_true(kernel: &mut Kernel, hand: &Hand) {
    let mut fresh = Kernel::open(own_interest()).unwrap();
    fresh.observe(Scope::All).unwrap();
    // The kernel tells of an IPv6 address when its work queue gets to it, not when it is there.
    for _ in 0..100 {
        if kernel.objects() == fresh.objects() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        if let Some(scope) = kernel.drain().unwrap().resync {
            kernel.observe(scope).unwrap();
        }
        fresh.observe(Scope::All).unwrap();
    }
    let [mirrored, true_ones] = [kernel.objects(), fresh.objects()]
        .map(|all| all.values().map(ToString::to_string).collect::<Vec<_>>());
    let wrong: Vec<_> = mirrored.iter().filter(|o| !true_ones.contains(o)).collect();
    let missing: Vec<_> = true_ones.iter().filter(|o| !mirrored.contains(o)).collect();
    panic!("wrong {wrong:?}, missing {missing:?}, after\n{}", hand.recent());
}

/// Whatever is done by hand, in whatever order: after draining, and observing what is asked for, the mirror is what a new
/// observer sees.
#[test]
fn mirror_when_anything_is_done_by_hand_then_true() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    let mut hand = Hand::new(&scratch, 20_261_121);
    for _ in 0..150 {
        hand.act();
        if let Some(scope) = kernel.drain().unwrap().resync {
            kernel.observe(scope).unwrap();
        }
        assert_true(&mut kernel, &hand);
    }
    let deeds: std::collections::BTreeSet<_> = hand
        .history
        .iter()
        .filter(|deed| !deed.starts_with('#'))
        .collect();
    assert!(
        deeds.len() > 35,
        "nearly all of the deeds could be done once: {deeds:#?}"
    );
}

/// The same with an engine of the simplest kind, which wants a device and five peers back after each round.
#[test]
fn engine_when_anything_is_done_by_hand_then_has_its_objects_back() {
    let scratch = Scratch::new();
    let mut kernel = with_peers(&scratch);
    let mut hand = Hand::new(&scratch, 314_159);
    let address = fabric::object::Address {
        link: link("flannel.1"),
        address: "10.5.1.0/32".parse().unwrap(),
    };
    let mut wanted: Vec<Object> = (2..6).chain([7]).flat_map(|third| peer(5, third)).collect();
    wanted.push(Object::Link(Box::new(vxlan("flannel.1", "192.0.2.1"))));
    wanted.push(Object::Address(address));
    wanted.push(Object::Route(crate::rtnl::tunnel_route(
        "fd00:5:7::/64",
        "fd00:5:7::",
        "flannel.1",
    )));
    wanted.sort_by_key(Object::key);
    for round in 0..150 {
        hand.act();
        let how = if round % 2 == 0 { PLAIN } else { BY_OBJECT };
        let mut passes = 0;
        loop {
            if let Some(scope) = kernel.drain().unwrap().resync {
                kernel.observe(scope).unwrap();
            }
            let ops = ops_for(&kernel, &wanted);
            if ops.is_empty() && !kernel.has_news() {
                break;
            }
            passes += 1;
            let outcomes = kernel.apply(&ops, how);
            let failed: Vec<_> = outcomes
                .iter()
                .filter(|o| !o.is_ok())
                .map(ToString::to_string)
                .collect();
            assert!(passes < 6, "{failed:?} after\n{}", hand.recent());
        }
        assert_true(&mut kernel, &hand);
    }
}

fn ops_for(kernel: &Kernel, wanted: &[Object]) -> Vec<Op> {
    let mut ops = Vec::new();
    for to in wanted {
        match (kernel.objects().get(&to.key()), to) {
            (None, to) => ops.push(Op::Add(to.clone())),
            (Some(from), to) if from == to => {}
            (Some(Object::Link(from)), Object::Link(to)) if !changes_in_place(from, to) => {
                ops.push(Op::Remove(Object::Link(from.clone())));
                ops.push(Op::Add(Object::Link(to.clone())));
            }
            (Some(from), to) => ops.push(Op::Change {
                from: from.clone(),
                to: to.clone(),
            }),
        }
    }
    ops
}

fn changes_in_place(from: &fabric::object::Link, to: &fabric::object::Link) -> bool {
    match (from.kind.clone(), &to.kind) {
        (fabric::object::LinkKind::Vxlan(mut from), fabric::object::LinkKind::Vxlan(to)) => {
            from.learning = to.learning;
            from == *to
        }
        _ => false,
    }
}
