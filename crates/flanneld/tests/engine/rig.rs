//! An engine over a kernel in memory, with a clock that the test moves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Delta, Lease, Snapshot, Subnet, Update};
use fabric::node::{Node, Provided, Underlay};
use fabric::object::{Address, Key, Link, LinkKind, LinkName, Object, Objects, Op, ROUTE_PROTOCOL, Route};
use fabric::ownership::Ownership;
use fabric::plan::{self, Need};
use fabric::readiness::{Kind, Report};
use fabric::subnet_env::SubnetEnv;
use fabric::world::World;
use flanneld::board::{Reporter, Standing};
use flanneld::engine::{Engine, Outlets};
use flanneld::mailbox::{Command, Mailbox, Setup};
use flanneld::reconcile::keeper::Letters;
use flanneld::subnet_file::Order;
use kernel::memory::Memory;

pub const ENOBUFS: i32 = 105;
pub const EINVAL: i32 = 22;
pub const ENETUNREACH: i32 = 101;

pub const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","EnableIPv6":true,"Backend":{"Type":"vxlan"}}"#;
pub const DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
pub const IPIP: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#;
pub const IPIP_DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip","DirectRouting":true}}"#;
pub const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// More rounds than this without the clock moving is a loop that spins.
const ROUNDS_AT_ONCE: usize = 12;

pub fn name(text: &str) -> LinkName {
    LinkName::new(text).unwrap()
}

pub fn eth0(up: bool) -> Object {
    let kind = LinkKind::Other("".into());
    Object::Link(Box::new(Link {
        name: name("eth0"),
        kind,
        mac: None,
        mtu: 1500,
        up,
    }))
}

pub struct Rig {
    pub engine: Engine<Memory>,
    pub mailbox: Arc<Mailbox>,
    pub now: Instant,
    /// Rounds of the loop so far.
    pub rounds: usize,
    /// Networks of earlier configs.
    pub former_networks: Vec<ipnet::IpNet>,
    pub leases: BTreeMap<Subnet, Lease>,
    pub underlay_changes: Arc<AtomicUsize>,
    revision: i64,
    reporter: Reporter,
    network: NetworkConfig,
    /// What the engine orders of whoever keeps the subnet file.
    pub subnet_file: Arc<Letters<Order>>,
    rounds_at_once: usize,
    /// Keys that were seen as desired: places the engine may take back.
    pub held: BTreeSet<Key>,
}

impl Rig {
    /// A host with an underlay, set up but not listed yet.
    pub fn new(config: &str) -> Rig {
        let mut memory = Memory::new().unwrap();
        for object in underlay() {
            memory.act(&Op::Add(object), None).unwrap();
        }
        let mailbox = Mailbox::new().unwrap();
        let reporter = Reporter::default();
        let now = Instant::now();
        let underlay_changes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&underlay_changes);
        let subnet_file = Letters::new().unwrap();
        let outlets = Outlets {
            reporter: reporter.clone(),
            subnet_file: Arc::clone(&subnet_file),
            on_underlay: Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            }),
            on_pause: {
                let letters = Arc::clone(&subnet_file);
                Box::new(move |paused| letters.pause(paused))
            },
        };
        let engine = Engine::over(memory, Arc::clone(&mailbox), outlets, 7, now);
        let rig = Rig {
            engine,
            mailbox,
            now,
            rounds: 0,
            former_networks: Vec::new(),
            leases: BTreeMap::new(),
            underlay_changes,
            revision: 10,
            reporter,
            network: NetworkConfig::parse(config.as_bytes()).unwrap(),
            subnet_file,
            rounds_at_once: 0,
            held: BTreeSet::new(),
        };
        rig.set_up(BTreeMap::new());
        rig
    }

    /// A host that has heard of its peers and serves them.
    pub fn running(config: &str, peers: u8) -> Rig {
        let mut rig = Rig::new(config);
        for peer in 1..=peers {
            rig.learn(peer, 0);
        }
        rig.snapshot();
        rig.pass(Duration::from_millis(20));
        rig.engine.host().take_done();
        rig
    }

    pub fn set_up(&self, former_leases: BTreeMap<ipnet::IpNet, Vec<IpAddr>>) {
        self.set_up_from(former_leases, None);
    }

    /// A set-up that brings what an earlier process knew of the registry: what it knows now.
    pub fn set_up_from_cache(&self) {
        let snapshot = Snapshot {
            revision: self.revision,
            leases: self.leases.clone(),
            rejected: Vec::new(),
        };
        self.set_up_from(BTreeMap::new(), Some(snapshot));
    }

    fn set_up_from(&self, former_leases: BTreeMap<ipnet::IpNet, Vec<IpAddr>>, cached: Option<Snapshot>) {
        let node = self.node();
        let backend = plan::backend(&node.network.backend).unwrap();
        let links = backend.links(&node.network);
        let networks: Vec<ipnet::IpNet> = node
            .network
            .families()
            .filter_map(|f| Some(node.network.space(f)?.network))
            .chain(self.former_networks.iter().copied())
            .collect();
        let env = SubnetEnv {
            network: Some("10.5.0.0/16".parse().unwrap()),
            subnet: Some("10.5.0.0/24".parse().unwrap()),
            network6: None,
            subnet6: None,
            mtu: 1450,
            ipmasq: false,
        };
        self.mailbox.set_up(Setup {
            backend,
            node,
            ownership: Ownership {
                links,
                networks,
                former_leases,
            },
            subnet_file: "/run/flannel/subnet.env".into(),
            env,
            cached,
            reach: None,
        });
    }

    fn node(&self) -> Node {
        let backend = plan::backend(&self.network.backend).unwrap();
        let v6 = self.network.v6.map(|_| "2001:db8::1".parse().unwrap());
        let underlay = Underlay {
            link: name("eth0"),
            mtu: 1500,
            address4: Some("192.0.2.1".parse().unwrap()),
            address6: v6,
            public4: Some("192.0.2.1".parse().unwrap()),
            public6: v6,
            segments: Vec::new(),
        };
        let subnet = self.subnet(0);
        let identity = backend.identity(
            &self.network,
            &subnet,
            &Objects::new(),
            None,
            &Provided::default(),
        );
        Node {
            network: self.network.clone(),
            underlay,
            subnet,
            identity,
            provided: Provided::default(),
        }
    }

    pub fn subnet(&self, peer: u8) -> Subnet {
        let v6 = self
            .network
            .v6
            .map(|_| format!("fd00:5:0:{peer:x}::/64").parse().unwrap());
        Subnet::new(Some(format!("10.5.{peer}.0/24").parse().unwrap()), v6).unwrap()
    }

    /// The lease of a peer; the variant makes its addresses.
    pub fn lease(&self, peer: u8, variant: u8, created: i64) -> Lease {
        let kind = self.network.backend.kind.clone();
        let host = 10 + peer + 50 * variant;
        // Variant 3 has the hardware address of peer 1: a cloned machine.
        let mac = if variant == 3 { 11 } else { host };
        let data = (kind == "vxlan")
            .then(|| format!("{{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:{mac:02x}\"}}").into());
        let data6 = data.clone().filter(|_| self.network.v6.is_some());
        let attributes = Attributes {
            public_ip: format!("192.0.2.{host}").parse().unwrap(),
            public_ip6: self
                .network
                .v6
                .map(|_| format!("2001:db8::{host:x}").parse().unwrap()),
            backend_type: kind.into(),
            data,
            data6,
        };
        Lease {
            subnet: self.subnet(peer),
            attributes,
            created,
        }
    }

    /// Puts a lease into the registry without telling the engine.
    pub fn learn(&mut self, peer: u8, variant: u8) -> Lease {
        self.revision += 1;
        let known = self.leases.get(&self.subnet(peer)).map(|lease| lease.created);
        let lease = self.lease(peer, variant, known.unwrap_or(self.revision));
        self.leases.insert(lease.subnet, lease.clone());
        lease
    }

    pub fn snapshot(&self) {
        let snapshot = Snapshot {
            revision: self.revision,
            leases: self.leases.clone(),
            rejected: Vec::new(),
        };
        self.mailbox.update(Update::Snapshot(snapshot));
    }

    pub fn put(&mut self, peer: u8, variant: u8) {
        let lease = self.learn(peer, variant);
        self.delta(lease.subnet, Some(lease));
    }

    pub fn delete(&mut self, peer: u8) {
        self.revision += 1;
        let subnet = self.subnet(peer);
        self.leases.remove(&subnet);
        self.delta(subnet, None);
    }

    fn delta(&self, subnet: Subnet, lease: Option<Lease>) {
        let delta = Delta {
            revision: self.revision,
            changes: vec![(subnet, lease)],
            rejected: Vec::new(),
            gone: Vec::new(),
        };
        self.mailbox.update(Update::Delta(delta));
    }

    pub fn pause(&self, paused: bool) {
        self.mailbox.command(Command::Pause(paused));
    }

    pub fn plan(&mut self) -> Vec<String> {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        self.mailbox.command(Command::Plan(reply));
        self.round();
        answer.try_recv().unwrap()
    }

    /// One round of the loop, as if a descriptor had become readable.
    pub fn round(&mut self) {
        let before = foreign(self.engine.host().truth());
        self.rounds += 1;
        assert!(!self.engine.step(self.now));
        let done = self.engine.host().take_done();
        self.check_foreign(&before, &done);
        let desired = self.desired();
        let truth = self.engine.host().truth();
        // Right or not: a route that refuses, for as long as there is no device, holds its place as well.
        let held = desired.keys().filter(|key| truth.get(key).is_some_and(is_ours));
        self.held.extend(held);
    }

    /// What is not ours is as it was, but for what goes with a device that is made anew and places that were ours before.
    fn check_foreign(&mut self, before: &Objects, done: &[Op]) {
        let after = self.engine.host().truth();
        let went: BTreeSet<LinkName> = done
            .iter()
            .filter(|op| op.key().is_link())
            .map(|op| op.object().link())
            .collect();
        for (key, object) in before.iter() {
            if !went.contains(&object.link()) && !self.held.contains(&key) {
                assert_eq!(after.get(&key), Some(object), "not ours to touch; done: {done:?}");
            }
        }
    }

    /// Lets time pass: every round that falls due in it is run.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        self.round();
        loop {
            let next = self.engine.next(self.now);
            if next > until {
                break;
            }
            self.rounds_at_once = if next > self.now {
                0
            } else {
                self.rounds_at_once + 1
            };
            assert!(self.rounds_at_once < ROUNDS_AT_ONCE, "the loop spins");
            self.now = self.now.max(next);
            self.round();
        }
        self.now = until;
    }

    pub fn standing(&self) -> Standing {
        self.reporter.standing().borrow().clone()
    }

    /// Steps the engine tried, whatever came of them.
    pub fn tries(&self) -> u64 {
        self.reporter.counters().ops().values().sum()
    }

    /// What the engine reports of all its parts.
    pub fn report(&self) -> Report {
        let mut report = Report::default();
        for part in self.reporter.reports().borrow().values() {
            report.join(part);
        }
        report
    }

    /// What is found of a kind, one sentence each.
    pub fn found(&self, kind: Kind) -> Vec<String> {
        self.report().texts_of(kind)
    }

    pub fn repairs(&self) -> u64 {
        self.reporter.counters().repairs().values().sum()
    }

    /// What a node with these leases asks for, planned from nothing.
    pub fn desired(&mut self) -> Objects {
        let backend = plan::backend(&self.network.backend).unwrap();
        let mut node = self.node();
        if backend.needs().contains(&Need::DirectRoutes) {
            let publics: Vec<IpAddr> = self
                .leases
                .values()
                .map(|lease| IpAddr::V4(lease.attributes.public_ip))
                .collect();
            let found = kernel::Host::direct(self.engine.host(), &publics).unwrap();
            node.provided.direct = publics
                .into_iter()
                .zip(found)
                .filter_map(|(ip, link)| Some((ip, link?)))
                .collect();
        }
        let mut world = World::new(backend, node);
        world.update(Update::Snapshot(Snapshot {
            revision: 1,
            leases: self.leases.clone(),
            rejected: Vec::new(),
        }));
        world.desired().clone()
    }

    /// The name of the first device the backend makes; of a backend that makes none, one that it would have under another config.
    pub fn device(&self) -> LinkName {
        let backend = plan::backend(&self.network.backend).unwrap();
        let links = backend.links(&self.network);
        links.first().copied().unwrap_or(name("flannel.1"))
    }

    pub fn route(&self, peer: u8) -> Key {
        Key::Route(self.subnet(peer).v4.unwrap().into(), 0)
    }

    /// An object of the truth.
    pub fn there(&mut self, key: &Key) -> Option<Object> {
        self.engine.host().truth().get(key).cloned()
    }

    pub fn act(&mut self, op: Op) {
        self.engine.host().act(&op, Some(4242)).unwrap();
    }

    pub fn remove(&mut self, key: &Key) {
        let object = self.there(key).unwrap();
        self.act(Op::Remove(object));
    }

    /// Asserts that every desired object is there and nothing of ours beside.
    pub fn assert_converged(&mut self) {
        let desired = self.desired();
        let conflicts = self.found(Kind::Conflict);
        let truth = self.engine.host().truth().clone();
        for (key, want) in desired.iter() {
            let there = truth.get(&key);
            let stranger = there.is_some_and(|there| !is_ours(there));
            assert!(
                is_right(want, there) || (stranger && !conflicts.is_empty()),
                "want {want}, there is {there:?}; conflicts {conflicts:?}"
            );
        }
        for (key, object) in truth.iter() {
            assert!(
                !is_ours(object) || desired.contains_key(&key),
                "{object} is left over"
            );
        }
    }
}

pub fn underlay() -> Vec<Object> {
    let address = |net: &str| {
        Object::Address(Address {
            link: name("eth0"),
            address: net.parse().unwrap(),
        })
    };
    vec![eth0(true), address("192.0.2.1/24"), address("2001:db8::1/64")]
}

/// A static route of an admin in the place of a peer's.
pub fn admin_route(destination: &str) -> Object {
    Object::Route(Route {
        destination: destination.parse().unwrap(),
        metric: 0,
        gateway: Some("192.0.2.254".parse().unwrap()),
        link: name("eth0"),
        onlink: false,
        protocol: 4,
    })
}

/// A device of another kind.
pub fn dummy(link: &str) -> Object {
    let kind = LinkKind::Other("dummy".into());
    Object::Link(Box::new(Link {
        name: name(link),
        kind,
        mac: None,
        mtu: 1500,
        up: true,
    }))
}

pub fn is_right(want: &Object, there: Option<&Object>) -> bool {
    there.is_some_and(|there| want.is_met_by(there))
}

/// By the text of the design, not by the code under test.
pub fn is_ours(object: &Object) -> bool {
    let on_ours = object.link().as_str().starts_with("flannel");
    match object {
        Object::Link(link) => matches!(
            (link.name.as_str(), link.kind.name()),
            ("flannel.1" | "flannel-v6.1", "vxlan") | ("flannel.ipip", "ipip")
        ),
        Object::Address(a) => on_ours && a.address.prefix_len() == a.address.max_prefix_len(),
        Object::Neighbour(_) | Object::Forwarding(_) => on_ours,
        Object::Route(route) => route.protocol == ROUTE_PROTOCOL,
    }
}

fn foreign(truth: &Objects) -> Objects {
    let strange_device = |object: &Object| matches!(truth.get(&Key::Link(object.link())), Some(Object::Link(l)) if matches!(l.kind, LinkKind::Other(_)));
    truth
        .iter()
        .filter(|(_, object)| {
            !is_ours(object) || (strange_device(object) && !matches!(object, Object::Route(_)))
        })
        .map(|(_, object)| object.clone())
        .collect()
}

pub fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn is_served(rig: &mut Rig, peer: u8) -> bool {
    let (want, there) = (rig.desired(), rig.engine.host().truth().clone());
    let subnet = rig.subnet(peer).v4.unwrap();
    let about = |object: &Object| match object {
        Object::Route(route) => route.destination == subnet.into(),
        Object::Neighbour(n) => n.address == subnet.addr(),
        _ => false,
    };
    let mut peers = want.values().filter(|object| about(object)).peekable();
    assert!(peers.peek().is_some());
    peers.all(|object| is_right(object, there.get(&object.key())))
}

pub fn is_closed(rig: &mut Rig, peer: u8) -> bool {
    let route = rig.route(peer);
    matches!(rig.there(&route), Some(Object::Route(route)) if route.is_unreachable() && route.protocol == 241)
}
