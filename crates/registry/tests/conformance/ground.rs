//! A registry under test, seen by its operator: a real etcd with `etcdctl` by either API, or the store in memory.

#[path = "../etcd3/rig.rs"]
#[allow(dead_code)]
pub mod rig;
#[path = "../etcd3/v2.rs"]
pub mod v2;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fabric::lease::{Attributes, Delta, Snapshot, Subnet, Update};
use registry::etcd::Options;
use registry::memory::{Client, Memory, Store};
use registry::{Chance, Etcd2, Etcd3, Held, Holding, Leases, Over, Registry, Taken};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

pub use self::rig::{Node, PATIENCE, attributes_of, network, subnet, value_of};

pub const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
pub const DAY: Duration = Duration::from_secs(86_400);
pub const HOUR: Duration = Duration::from_secs(3600);

/// What the operator of a registry can do and see.
pub trait Ground: Send + Sync + 'static {
    type Client: Registry + 'static;
    fn client(&self, ttl: Duration) -> Arc<Self::Client>;
    fn put(&self, key: &str, value: &str);
    /// Writes the network config, or takes it away.
    fn set_config(&self, config: Option<&str>);
    /// As another node would, with a time to live of its own.
    fn put_for(&self, key: &str, value: &str, ttl: Duration);
    fn delete(&self, key: &str);
    /// Takes the time away that an entry lives by.
    fn end(&self, key: &str);
    fn keys(&self) -> Vec<String>;
    fn value(&self, key: &str) -> String;
    fn created(&self, key: &str) -> i64;
    fn is_reservation(&self, key: &str) -> bool;
    fn revision(&self) -> i64;
    /// Forgets its history.
    fn compact(&self);
    /// Is emptied, to begin at its first revision.
    fn empty(&mut self);
    /// Is away, and comes back as it was.
    fn stop(&mut self);
    fn go_on(&mut self);
}

pub struct Etcd(rig::Server);

impl Etcd {
    pub fn start() -> Etcd {
        Etcd(rig::Server::start())
    }
}

fn at(key: &str) -> String {
    format!("/n/subnets/{key}")
}

impl Ground for Etcd {
    type Client = Etcd3;

    fn client(&self, ttl: Duration) -> Arc<Etcd3> {
        let options = Options {
            lease_ttl: ttl,
            ..self.0.options()
        };
        Arc::new(Etcd3::new(&options).unwrap())
    }

    fn put(&self, key: &str, value: &str) {
        self.0.put(&at(key), value);
    }

    fn set_config(&self, config: Option<&str>) {
        match config {
            Some(config) => self.0.put("/n/config", config),
            None => drop(self.0.ctl(&["del", "/n/config"])),
        }
    }

    fn put_for(&self, key: &str, value: &str, ttl: Duration) {
        let granted = self.0.ctl(&["lease", "grant", &ttl.as_secs().to_string()]);
        let id = granted.split_whitespace().nth(1).unwrap();
        self.0.ctl(&["put", "--lease", id, &at(key), value]);
    }

    fn delete(&self, key: &str) {
        self.0.ctl(&["del", &at(key)]);
    }

    fn end(&self, key: &str) {
        let id = self.0.field(&at(key), "lease");
        self.0.ctl(&["lease", "revoke", &format!("{id:x}")]);
    }

    fn keys(&self) -> Vec<String> {
        let keys = self.0.keys("/n/subnets/");
        keys.iter().map(|key| key.replace("/n/subnets/", "")).collect()
    }

    fn value(&self, key: &str) -> String {
        self.0.value(&at(key))
    }

    fn created(&self, key: &str) -> i64 {
        self.0.field(&at(key), "create_revision")
    }

    fn is_reservation(&self, key: &str) -> bool {
        self.0.field(&at(key), "lease") == 0
    }

    fn revision(&self) -> i64 {
        self.0.revision()
    }

    fn compact(&self) {
        self.0.ctl(&["compact", &self.0.revision().to_string()]);
    }

    fn empty(&mut self) {
        self.0.kill();
        self.0.start_empty();
    }

    fn stop(&mut self) {
        self.0.kill();
    }

    fn go_on(&mut self) {
        self.0.start_again();
    }
}

/// The same server by its v2 API, with `etcdctl` of that API.
pub struct EtcdV2(rig::Server);

impl EtcdV2 {
    pub fn start() -> EtcdV2 {
        EtcdV2(rig::Server::start_with(None, &["--enable-v2"]))
    }

    #[allow(dead_code)] // Of use to those who test this API alone.
    pub fn server(&self) -> &rig::Server {
        &self.0
    }
}

impl Ground for EtcdV2 {
    type Client = Etcd2;

    fn client(&self, ttl: Duration) -> Arc<Etcd2> {
        let options = Options {
            lease_ttl: ttl,
            ..self.0.options()
        };
        Arc::new(Etcd2::new(&options).unwrap())
    }

    fn put(&self, key: &str, value: &str) {
        v2::ctl(&self.0, &["set", &at(key), value]);
    }

    fn set_config(&self, config: Option<&str>) {
        match config {
            Some(config) => drop(v2::ctl(&self.0, &["set", "/n/config", config])),
            None => drop(v2::ctl(&self.0, &["rm", "/n/config"])),
        }
    }

    fn put_for(&self, key: &str, value: &str, ttl: Duration) {
        let ttl = ttl.as_secs().to_string();
        v2::ctl(&self.0, &["set", "--ttl", &ttl, &at(key), value]);
    }

    fn delete(&self, key: &str) {
        v2::ctl(&self.0, &["rm", &at(key)]);
    }

    fn end(&self, key: &str) {
        assert!(v2::field(&self.0, &at(key), "TTL") > 0);
        self.delete(key);
    }

    fn keys(&self) -> Vec<String> {
        let Ok(keys) = v2::try_ctl(&self.0, &["ls", "--sort", "/n/subnets"]) else {
            return Vec::new();
        };
        keys.lines().map(|key| key.replace("/n/subnets/", "")).collect()
    }

    fn value(&self, key: &str) -> String {
        match v2::try_ctl(&self.0, &["get", &at(key)]) {
            Ok(value) => value.trim_end_matches('\n').to_owned(),
            Err(_) => String::new(),
        }
    }

    fn created(&self, key: &str) -> i64 {
        v2::field(&self.0, &at(key), "Created-Index")
    }

    fn is_reservation(&self, key: &str) -> bool {
        v2::field(&self.0, &at(key), "TTL") == 0
    }

    fn revision(&self) -> i64 {
        v2::index(&self.0)
    }

    fn compact(&self) {
        v2::write_elsewhere(&self.0, v2::MEMORY);
    }

    fn empty(&mut self) {
        self.0.kill();
        self.0.start_empty();
    }

    fn stop(&mut self) {
        self.0.kill();
    }

    fn go_on(&mut self) {
        self.0.start_again();
    }
}

pub struct InMemory {
    store: Store,
    clients: Mutex<Vec<Arc<Memory>>>,
    time: tokio::task::JoinHandle<()>,
}

impl InMemory {
    pub fn start() -> InMemory {
        let store = Store::new(DAY);
        let time = tokio::spawn({
            let store = store.clone();
            async move { match store.run().await {} }
        });
        InMemory {
            store,
            clients: Mutex::new(Vec::new()),
            time,
        }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn over(&self, client: Client) -> Arc<Memory> {
        let memory = Arc::new(Leases::over(client, Chance::seeded(7)));
        self.clients.lock().unwrap().push(Arc::clone(&memory));
        memory
    }

    fn cut_off(&self, cut_off: bool) {
        for client in self.clients.lock().unwrap().iter() {
            client.entries().cut_off(cut_off);
        }
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        self.time.abort();
    }
}

impl Ground for InMemory {
    type Client = Memory;

    fn client(&self, ttl: Duration) -> Arc<Memory> {
        self.over(self.store.client_for(ttl))
    }

    fn put(&self, key: &str, value: &str) {
        self.store.put(key, value, None);
    }

    fn set_config(&self, config: Option<&str>) {
        self.store.set_config(config);
    }

    fn put_for(&self, key: &str, value: &str, ttl: Duration) {
        self.store.put(key, value, Some(ttl));
    }

    fn delete(&self, key: &str) {
        self.store.delete(key);
    }

    fn end(&self, key: &str) {
        assert!(self.store.entry(key).unwrap().expires.is_some());
        self.store.delete(key);
    }

    fn keys(&self) -> Vec<String> {
        self.store.entries().into_iter().map(|shown| shown.key).collect()
    }

    fn value(&self, key: &str) -> String {
        self.store.entry(key).map(|shown| shown.value).unwrap_or_default()
    }

    fn created(&self, key: &str) -> i64 {
        self.store.entry(key).unwrap().created
    }

    fn is_reservation(&self, key: &str) -> bool {
        self.store.entry(key).unwrap().expires.is_none()
    }

    fn revision(&self) -> i64 {
        self.store.number()
    }

    fn compact(&self) {
        self.store.compact();
    }

    fn empty(&mut self) {
        self.store.wipe();
    }

    fn stop(&mut self) {
        self.cut_off(true);
    }

    fn go_on(&mut self) {
        self.cut_off(false);
    }
}

/// A running watch and what it delivered. Ends with its drop.
pub struct Watching {
    task: tokio::task::JoinHandle<()>,
    updates: mpsc::UnboundedReceiver<Update>,
}

impl Watching {
    pub fn start<R: Registry + 'static>(registry: &Arc<R>) -> Watching {
        let (sender, updates) = mpsc::unbounded_channel();
        let registry = Arc::clone(registry);
        let task = tokio::spawn(async move {
            let sink = move |update| {
                let _ = sender.send(update);
            };
            match registry.watch(&sink).await {}
        });
        Watching { task, updates }
    }

    pub async fn next(&mut self) -> Update {
        let next = timeout(PATIENCE, self.updates.recv()).await;
        next.expect("an update").expect("watching goes on")
    }

    pub async fn snapshot(&mut self) -> Snapshot {
        match self.next().await {
            Update::Snapshot(snapshot) => snapshot,
            Update::Delta(delta) => panic!("expected a snapshot, got {delta:?}"),
        }
    }

    pub async fn delta(&mut self) -> Delta {
        match self.next().await {
            Update::Delta(delta) => delta,
            Update::Snapshot(snapshot) => panic!("expected a delta, got {snapshot:?}"),
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until `done`, or fails after [`PATIENCE`] naming what was waited for.
pub async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A node that holds a lease, keeps it and watches.
pub struct Holder<G: Ground> {
    pub registry: Arc<G::Client>,
    pub held: Held,
    pub key: String,
    pub keeping: tokio::task::JoinHandle<Over>,
    pub watching: Watching,
    reports: mpsc::UnboundedReceiver<Holding>,
}

impl<G: Ground> Holder<G> {
    pub async fn start(ground: &G, ttl: Duration, margin: Duration) -> Holder<G> {
        let registry = ground.client(ttl);
        let config = network(CONFIG);
        let node = Node::new("192.0.2.1");
        let held = registry.acquire(&node.wanted(&config)).await.unwrap();
        let watching = Watching::start(&registry);
        wait_until("the watch", || registry.states().borrow().watching).await;
        let (sender, reports) = mpsc::unbounded_channel();
        let keeping = tokio::spawn({
            let (registry, held) = (Arc::clone(&registry), held.clone());
            async move {
                let report = move |holding| {
                    let _ = sender.send(holding);
                };
                registry.keep(&node.wanted(&config), held, margin, &report).await
            }
        });
        Holder {
            registry,
            key: held.lease.subnet.to_string(),
            held,
            keeping,
            watching,
            reports,
        }
    }

    pub async fn report(&mut self) -> Holding {
        let report = timeout(PATIENCE, self.reports.recv()).await;
        report.expect("a report").expect("keeping goes on")
    }

    pub async fn taken(self) -> Taken {
        let taken = timeout(PATIENCE, self.keeping).await;
        match taken.expect("the end of keeping").unwrap() {
            Over::Taken(taken) => taken,
            Over::Moved(why) => panic!("{why}"),
        }
    }
}

/// A node in whose way `put` comes, once, between its listing and its write.
pub fn beaten<G: Ground>(
    public_ip: &str,
    ground: &Arc<G>,
    put: impl Fn(&G, &str) + Send + Sync + 'static,
) -> Node {
    let mut node = Node::new(public_ip);
    let (ground, done) = (Arc::clone(ground), std::sync::atomic::AtomicBool::new(false));
    let attributes: Attributes = attributes_of(public_ip);
    node.attributes = Box::new(move |subnet: &Subnet, _| {
        if !done.swap(true, std::sync::atomic::Ordering::SeqCst) {
            put(&ground, &subnet.to_string());
        }
        attributes.clone()
    });
    node
}
