//! One run: a seed decides what the cluster is and what is done to it; then everything is healed, and has to come to rest.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fabric::object::{Object, Objects, Op};
use registry::memory::{Backup, Client, Fate, Passage, Store};
use registry::{Chance, Registry};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

use crate::host::Host;
use crate::node::{self, Node, is_ours, underlay};
use crate::oracle::Oracle;
use crate::rest;

/// How long a lease lives. All else is measured by it.
pub const TTL: Duration = Duration::from_secs(40);
const MARGIN: Duration = Duration::from_secs(20);
/// Everything that had to wait for a clock has had its turn by then: leases of former times, back-offs, audits.
const REST: Duration = Duration::from_secs(240);
/// An answer of the registry is on its way no longer than this.
const IN_FLIGHT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_secs(5);

/// Makes the registry that a node uses out of a client; the planted mistakes come in here.
pub type Build = fn(Client, Chance) -> Arc<dyn Registry>;

/// What goes wrong on the way to the registry, in parts of a thousand, and how long it takes at most.
#[derive(Default)]
struct Weather {
    lost: AtomicU32,
    unanswered: AtomicU32,
    delay_millis: AtomicU32,
}

pub struct World {
    pub nodes: Vec<Node>,
    pub store: Store,
    pub oracle: Oracle,
    pub vxlan: bool,
    pub violation: Option<String>,
    /// Routes that somebody put into peers' places.
    in_the_way: Vec<(usize, Object)>,
    chance: Chance,
    weather: Arc<Weather>,
    build: Build,
    backups: Vec<Backup>,
    phantoms: usize,
    /// What was done, in order: two runs of one seed have the same.
    pub trace: u64,
    pub log: Option<Vec<String>>,
    started: Instant,
    pub steps: u64,
}

pub type Shared = Rc<RefCell<World>>;

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub violation: Option<String>,
    pub trace: u64,
    pub log: Vec<String>,
    pub steps: u64,
}

/// Runs a seed from beginning to end, or to the first violation.
pub fn run(seed: u64, build: Build, log: bool) -> Outcome {
    within(
        || World::new(seed, build, log),
        async |world| live(world).await.err(),
    )
}

/// Runs a scene of a cluster of so many nodes, none of which is started; what must hold does.
pub fn scene(count: usize, play: impl AsyncFnOnce(&Shared)) {
    let outcome = within(
        || World::of(count, true, 100, Chance::seeded(1), crate::sound, true),
        async |world| {
            play(world).await;
            None
        },
    );
    assert_eq!(outcome.violation, None, "{}", outcome.log.join("\n"));
}

fn within(make: impl FnOnce() -> World, play: impl AsyncFnOnce(&Shared) -> Option<String>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let world = Rc::new(RefCell::new(make()));
        let time = spawn_local({
            let store = world.borrow().store.clone();
            async move { match store.run().await {} }
        });
        let violation = play(&world).await;
        time.abort();
        let mut world = world.borrow_mut();
        for node in &mut world.nodes {
            node.kill();
        }
        let violation = world.violation.take().or(violation);
        Outcome {
            violation,
            trace: world.trace,
            log: world.log.take().unwrap_or_default(),
            steps: world.steps,
        }
    })
}

impl World {
    /// The cluster of a seed.
    fn new(seed: u64, build: Build, log: bool) -> World {
        let chance = Chance::seeded(seed);
        // Mostly small: what goes wrong between fifty goes wrong between five.
        let count = match chance.below(1000) {
            0 => 20 + chance.below(31),
            1..=19 => 9 + chance.below(8),
            _ => 5 + chance.below(3),
        };
        let vxlan = chance.below(2) == 0;
        // Hardly more subnets than nodes, so that they are in each other's way.
        let most = count + 3 + chance.below(4);
        World::of(count, vxlan, most, chance, build, log)
    }

    fn of(count: usize, vxlan: bool, most: usize, chance: Chance, build: Build, log: bool) -> World {
        let store = Store::new(TTL);
        let backend = if vxlan { "vxlan" } else { "host-gw" };
        store.set_config(Some(&format!(
            r#"{{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.{most}.0","Backend":{{"Type":"{backend}"}}}}"#
        )));
        let node = |number: usize| {
            let address = Ipv4Addr::new(192, 0, 2, u8::try_from(number + 1).unwrap());
            Node::new(address, Host::new(address))
        };
        World {
            nodes: (0..count).map(node).collect(),
            store,
            oracle: Oracle::default(),
            vxlan,
            violation: None,
            in_the_way: Vec::new(),
            chance,
            weather: Arc::default(),
            build,
            backups: Vec::new(),
            phantoms: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            log: log.then(Vec::new),
            started: Instant::now(),
            steps: 0,
        }
    }

    pub fn note(&mut self, what: &str) {
        for byte in what.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(log) = &mut self.log {
            log.push(format!("{:9.3} {what}", self.started.elapsed().as_secs_f64()));
        }
    }

    fn violated(&mut self, what: String) {
        self.note(&format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    /// What clients and others have done to the registry since the last look.
    fn look_at_deeds(&mut self) {
        for deed in self.store.take_deeds() {
            if self.log.is_some() {
                let text = |value: &Option<Vec<u8>>| {
                    value.as_ref().map_or_else(
                        || "-".to_owned(),
                        |value| String::from_utf8_lossy(value).into_owned(),
                    )
                };
                self.note(&format!("{:?} {}: {}", deed.who, deed.key, text(&deed.after)));
            } else {
                self.note(&deed.key);
            }
            if let Err(what) = self.oracle.take(&deed, self.nodes.len()) {
                self.violated(what);
            }
        }
        if !self.oracle.is_any_expired() {
            return;
        }
        for number in 0..self.nodes.len() {
            let belief = match &self.nodes[number].process {
                Some(process) if !self.nodes[number].frozen => process.belief.lock().unwrap().clone(),
                _ => continue,
            };
            if let Some(subnet) = belief.holds()
                && let Err(what) = self.oracle.check_belief(number, subnet)
            {
                self.violated(what);
            }
        }
    }

    /// One round of a node's engine, and what must hold before and after it.
    fn round(&mut self, number: usize) -> Instant {
        self.look_at_deeds();
        self.steps += 1;
        let now = Instant::now();
        let std_now = now.into_std();
        let node = &mut self.nodes[number];
        let Some(process) = &mut node.process else {
            return now + REST;
        };
        process.engine.step(std_now);
        process.file.step(std_now);
        let done = process.engine.host().take_done();
        let is_first = process.heard.is_none() && process.truth.standing().engaged;
        let next = process.engine.next(std_now).min(process.file.next(std_now));
        let next = Instant::from_std(next);
        if !done.is_empty() {
            for op in &done {
                self.note(&format!("node {number}: {op}"));
            }
            self.check_routes(number, &done);
        }
        if let Some(process) = self.nodes[number].process.as_mut().filter(|_| is_first) {
            process.heard = Some(now);
        }
        next
    }

    /// No route to a live peer goes, and nothing that is not ours changes.
    fn check_routes(&mut self, number: usize, done: &[Op]) {
        let mut wrong = Vec::new();
        let now = Instant::now();
        let Some(process) = &self.nodes[number].process else {
            return;
        };
        let own = process.belief.lock().unwrap().subnet.clone();
        let heard = process.heard.unwrap_or(now);
        // What a node puts there is what was so when the registry's answer left, or when its cache was written.
        let known = match process.truth.standing().listed {
            true => now - IN_FLIGHT,
            false => process.began - IN_FLIGHT,
        };
        let node = &mut self.nodes[number];
        for op in done {
            let key = op.key();
            let there = node.kernel().truth().get(&key).cloned();
            match op {
                Op::Remove(object) if !is_ours(object) => wrong.push(format!("node {number} did {op}")),
                Op::Remove(Object::Route(route)) if there.is_none() => {
                    let since = node.routes.remove(&key);
                    let subnet = route.destination.to_string().replace('/', "-");
                    // Nor is there a way to itself, where a restore gave it a former lease again beside the one it has.
                    let is_own =
                        own.as_ref() == Some(&subnet) || self.oracle.rightful(&subnet) == Some(number);
                    if let Some(since) = since
                        && !is_own
                        && !self.oracle.may_forget(&subnet, since, heard)
                    {
                        wrong.push(format!(
                            "node {number} removed the route to {subnet}, whose lease is alive"
                        ));
                    }
                }
                Op::Add(object @ Object::Route(_))
                | Op::Change {
                    to: object @ Object::Route(_),
                    ..
                } if is_ours(object) => {
                    node.routes.entry(key).or_insert(known);
                }
                _ => {}
            }
        }
        for what in wrong {
            self.violated(what);
        }
    }
}

/// Starts a node's process.
pub fn start(world: &Shared, number: usize) {
    let mut borrowed = world.borrow_mut();
    let w = &mut *borrowed;
    if w.nodes[number].process.is_some() {
        return;
    }
    w.note(&format!("node {number} starts"));
    let client = w.store.client_by(passages(&w.weather, &w.chance));
    let id = client.number();
    w.oracle.know(id, number);
    let registry = (w.build)(client, w.chance.clone());
    let daemon = w.nodes[number].start(registry, id, &w.chance, MARGIN);
    let start = w.nodes[number].starts;
    let task = spawn_local({
        let world = Rc::clone(world);
        async move {
            let frozen = |context: &std::task::Context<'_>| {
                let node = &mut world.borrow_mut().nodes[number];
                let Some(process) = node.process.as_mut().filter(|_| node.starts == start) else {
                    return true;
                };
                process.waker = Some(context.waker().clone());
                node.frozen
            };
            let round = || world.borrow_mut().round(number);
            let ended = node::run(daemon, frozen, round).await;
            {
                let mut world = world.borrow_mut();
                if world.nodes[number].starts != start {
                    return;
                }
                match ended {
                    Ok(ending) => world.note(&format!("node {number} ends: {ending:?}")),
                    Err(failure) => world.violated(format!("node {number} failed: {failure:#}")),
                }
                world.nodes[number].kill();
            }
            // As a service manager does.
            restart(&world, number, Duration::from_secs(2));
        }
    });
    if let Some(process) = &mut w.nodes[number].process {
        process.task = Some(task);
    }
}

fn restart(world: &Shared, number: usize, after: Duration) {
    let world = Rc::clone(world);
    spawn_local(async move {
        sleep(after).await;
        start(&world, number);
    });
}

fn passages(weather: &Arc<Weather>, chance: &Chance) -> Box<registry::memory::Passages> {
    let (weather, chance) = (Arc::clone(weather), chance.clone());
    Box::new(move |_| {
        let set = |level: &AtomicU32| usize::try_from(level.load(Ordering::Relaxed)).unwrap();
        let (lost, unanswered, delay) = (
            set(&weather.lost),
            set(&weather.unanswered),
            set(&weather.delay_millis),
        );
        if lost + unanswered + delay == 0 {
            return Passage::default();
        }
        let millis = || Duration::from_millis(chance.below(delay + 1).try_into().unwrap());
        let fate = match chance.below(1000) {
            roll if roll < lost => Fate::Lost,
            roll if roll < lost + unanswered => Fate::Unanswered,
            _ => Fate::Answered,
        };
        Passage {
            fate,
            there: millis(),
            back: millis(),
        }
    })
}

async fn live(world: &Shared) -> Result<(), String> {
    let (count, chance) = {
        let world = world.borrow();
        (world.nodes.len(), world.chance.clone())
    };
    let seconds = |most: usize| Duration::from_millis(chance.below(most * 1000).try_into().unwrap());
    for number in 0..count {
        restart(world, number, seconds(3));
    }
    let end = Instant::now() + Duration::from_secs(20) + seconds(100);
    let mut cures: Vec<JoinHandle<()>> = Vec::new();
    while Instant::now() < end {
        sleep(seconds(12)).await;
        harm(world, &chance, &mut cures);
        stop_if_violated(world)?;
    }
    for cure in cures {
        cure.abort();
    }
    heal(world);
    let end = Instant::now() + REST;
    loop {
        sleep(LOOK).await;
        stop_if_violated(world)?;
        let unrest = rest::unrest(&mut world.borrow_mut());
        match unrest {
            None => return Ok(()),
            Some(what) if Instant::now() >= end => {
                return Err(format!(
                    "no rest {} s after everything was healed: {what}",
                    REST.as_secs()
                ));
            }
            Some(_) => {}
        }
    }
}

fn stop_if_violated(world: &Shared) -> Result<(), String> {
    world.borrow_mut().look_at_deeds();
    match &world.borrow().violation {
        Some(violation) => Err(violation.clone()),
        None => Ok(()),
    }
}

/// Ends what was done to the cluster: everything runs and reaches everything.
fn heal(world: &Shared) {
    let down: Vec<usize> = {
        let mut borrowed = world.borrow_mut();
        let w = &mut *borrowed;
        w.note("healed");
        w.weather.lost.store(0, Ordering::Relaxed);
        w.weather.unanswered.store(0, Ordering::Relaxed);
        w.weather.delay_millis.store(0, Ordering::Relaxed);
        for shown in w.store.entries() {
            if !shown.value.starts_with("{\"PublicIP\":\"") || shown.value.contains("198.51.100.") {
                w.store.delete(&shown.key);
            }
        }
        for (number, object) in std::mem::take(&mut w.in_the_way) {
            let kernel = w.nodes[number].kernel();
            if kernel.truth().get(&object.key()) == Some(&object) {
                let _ = kernel.act(&Op::Remove(object), Some(77));
            }
        }
        for node in &mut w.nodes {
            node.frozen = false;
            if let Some(process) = &node.process {
                w.store.cut_off(process.client, false);
            }
            set_underlay(node, true);
            node.wake();
        }
        let is_down = |(number, node): (usize, &Node)| node.process.is_none().then_some(number);
        w.nodes.iter().enumerate().filter_map(is_down).collect()
    };
    for number in down {
        start(world, number);
    }
}

fn set_underlay(node: &mut Node, up: bool) {
    let from = node.kernel().truth().get(&underlay(up).key()).cloned();
    if let Some(from) = from.filter(|from| *from != underlay(up)) {
        let to = match from.clone() {
            Object::Link(mut link) => {
                link.up = up;
                Object::Link(link)
            }
            other => other,
        };
        let _ = node.kernel().act(&Op::Change { from, to }, Some(77));
    }
}

/// Does one thing to the cluster. What is to be undone later is.
fn harm(world: &Shared, chance: &Chance, cures: &mut Vec<JoinHandle<()>>) {
    let seconds = |most: usize| Duration::from_millis((1 + chance.below(most * 1000)).try_into().unwrap());
    let number = chance.below(world.borrow().nodes.len());
    let mut later = |after: Duration, cure: Box<dyn FnOnce(&Shared)>| {
        let world = Rc::clone(world);
        cures.push(spawn_local(async move {
            sleep(after).await;
            cure(&world);
        }));
    };
    let act = chance.below(25);
    if act <= 3 {
        let mut w = world.borrow_mut();
        w.note(&format!("node {number} is killed ({act})"));
        let node = &mut w.nodes[number];
        match act {
            0 => node.kill(),
            1 => node.reboot(),
            2 => {
                node.reboot();
                node.host.lose_records();
            }
            _ => {
                node.kill();
                node.host.lose_records();
                node.host.remove_subnet_file();
            }
        }
        drop(w);
        restart(world, number, seconds(20));
        return;
    }
    let mut borrowed = world.borrow_mut();
    let w = &mut *borrowed;
    let client = w.nodes[number].process.as_ref().map(|process| process.client);
    match act {
        4 => {
            w.note(&format!("node {number} is frozen"));
            w.nodes[number].frozen = true;
            later(
                seconds(60),
                Box::new(move |world| {
                    let mut w = world.borrow_mut();
                    w.nodes[number].frozen = false;
                    w.nodes[number].wake();
                }),
            );
        }
        5..=7 => {
            let all = act == 7;
            let clients: Vec<u32> = w
                .nodes
                .iter()
                .filter_map(|node| Some(node.process.as_ref()?.client))
                .collect();
            let clients = if all {
                clients
            } else {
                client.into_iter().collect()
            };
            w.note(&format!("clients {clients:?} are cut off"));
            for client in &clients {
                w.store.cut_off(*client, true);
            }
            later(
                seconds(80),
                Box::new(move |world| {
                    let w = world.borrow();
                    for client in &clients {
                        w.store.cut_off(*client, false);
                    }
                }),
            );
        }
        8..=10 => {
            let level = |most: usize| u32::try_from(chance.below(most)).unwrap();
            let levels = [level(300), level(300), level(1500)];
            w.note(&format!("weather {levels:?}"));
            w.weather.lost.store(levels[0], Ordering::Relaxed);
            w.weather.unanswered.store(levels[1], Ordering::Relaxed);
            w.weather.delay_millis.store(levels[2], Ordering::Relaxed);
            later(
                seconds(40),
                Box::new(|world| {
                    let w = world.borrow();
                    for level in [&w.weather.lost, &w.weather.unanswered, &w.weather.delay_millis] {
                        level.store(0, Ordering::Relaxed);
                    }
                }),
            );
        }
        11 => w.store.cut_watches(client),
        12 => {
            w.store.compact();
            w.store.cut_watches(client);
        }
        13 => {
            let backup = w.store.backup();
            w.backups.push(backup);
        }
        14 => {
            if let Some(backup) = w.backups.get(chance.below(w.backups.len())).cloned() {
                w.note("the store is restored");
                w.oracle.jump();
                w.store.restore(&backup);
            }
        }
        15 => {
            w.note("the store is emptied");
            w.store.wipe();
            w.backups.clear();
        }
        16 => {
            w.note("the store's clock jumps");
            w.oracle.jump();
            w.store.jump(seconds(40));
        }
        17..=19 => by_operator(w, chance, act),
        20 => {
            let by = i64::try_from(chance.below(7200)).unwrap() - 3600;
            w.nodes[number].host.set_clock(by);
        }
        21 => {
            w.nodes[number].kernel().lose_notifications();
            w.nodes[number].wake();
        }
        22 => {
            w.note(&format!("node {number}: underlay down"));
            set_underlay(&mut w.nodes[number], false);
            w.nodes[number].wake();
            later(
                seconds(8),
                Box::new(move |world| {
                    let mut w = world.borrow_mut();
                    set_underlay(&mut w.nodes[number], true);
                    w.nodes[number].wake();
                }),
            );
        }
        _ => by_hand(w, chance, number),
    }
}

/// An operator at the registry.
fn by_operator(w: &mut World, chance: &Chance, act: usize) {
    let entries = w.store.entries();
    let some =
        |from: &[registry::memory::Shown]| from.get(chance.below(from.len())).map(|shown| shown.key.clone());
    match act {
        17 => {
            if let Some(key) = some(&entries) {
                w.store.delete(&key);
            }
        }
        18 => {
            let ttl = (chance.below(2) == 0).then_some(TTL);
            match some(&entries).filter(|_| chance.below(3) > 0) {
                Some(key) => w.store.put(&key, "junk", ttl),
                None => w.store.put("junk", "junk", ttl),
            }
        }
        _ => {
            // A peer that is no node of ours comes, with a time to live that nobody renews.
            w.phantoms += 1;
            let subnet = format!("10.5.{}.0-24", 200 + w.phantoms % 50);
            w.store.put(&subnet, &phantom(w.vxlan, w.phantoms), Some(TTL));
        }
    }
}

fn phantom(vxlan: bool, number: usize) -> String {
    let host = 200 + number % 50;
    let data = if vxlan {
        format!(r#","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{host:02x}"}}"#)
    } else {
        r#","BackendType":"host-gw""#.to_owned()
    };
    format!(r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null{data}}}"#)
}

/// Somebody at a node's kernel.
fn by_hand(w: &mut World, chance: &Chance, number: usize) {
    let kernel = w.nodes[number].kernel();
    let truth: &Objects = kernel.truth();
    let ours: Vec<Object> = truth.values().filter(|object| is_ours(object)).cloned().collect();
    let op = match chance.below(4) {
        0 => {
            let destination = if chance.below(2) == 0 {
                "172.30.0.0/24"
            } else {
                "10.5.250.0/24"
            };
            Op::Add(foreign_route(destination))
        }
        1 => {
            let route = ours
                .iter()
                .find(|object| matches!(object, Object::Route(_)))
                .cloned();
            let Some(Object::Route(route)) = route else { return };
            let foreign = foreign_route(&route.destination.to_string());
            if kernel.act(&Op::Remove(Object::Route(route)), Some(77)).is_ok() {
                w.in_the_way.push((number, foreign.clone()));
            }
            Op::Add(foreign)
        }
        _ => match ours.get(chance.below(ours.len())) {
            Some(object) => Op::Remove(object.clone()),
            None => return,
        },
    };
    let _ = w.nodes[number].kernel().act(&op, Some(77));
    let text = format!("node {number} by hand: {op}");
    w.note(&text);
    w.nodes[number].wake();
}

fn foreign_route(destination: &str) -> Object {
    Object::Route(fabric::object::Route {
        destination: destination.parse().unwrap(),
        metric: 0,
        gateway: Some("192.0.2.254".parse().unwrap()),
        link: fabric::object::LinkName::new(crate::host::UNDERLAY).unwrap(),
        onlink: false,
        protocol: 4,
    })
}
