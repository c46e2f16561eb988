//! Kubernetes as the registry: a node's `spec.podCIDRs` are its subnet, annotations of its Node object its lease.
//!
//! Kubernetes hands subnets out itself and nothing here expires: a lease is had by annotating the own Node, kept by looking that the
//! annotations stay, and those of the others are followed by one watch. What is kept of a Node is its lease: everything else of the
//! sixteen kilobytes that it comes in is passed over as it arrives.

mod connection;
mod events;
mod keep;
mod listing;
mod nodes;
mod server;
mod watching;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fabric::alloc::PublicIps;
use fabric::annotations::{Name, NodeObject, Prefix};
use fabric::config::{ConfigError, Declared, NetworkConfig};
use fabric::go_json::shorten;
use fabric::lease::{Lease, Update};
use fabric::object::Family;
use http_body_util::BodyExt;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

pub use self::server::{Access, AccessError, check_url, without_userinfo};

pub use self::connection::{Stream, Way};

use self::connection::{Connection, Failed, Tcp};
use self::events::{Alarms, Reason, Said};
use self::listing::percent_encode;
use self::nodes::Nodes;
use crate::chance::Chance;
use crate::file::read_regular;
use crate::state::{Failure, State, States};
use crate::{AcquireError, DataPath, Held, Holding, Over, Pending, Registry, RegistryError, Wanted, lock};

/// The network config's file is not larger, bytes.
const LARGEST_CONFIG: u64 = 1 << 20;

/// How often the file is looked into.
const CONFIG_LOOK: Duration = Duration::from_secs(1);

/// So long a Node that was just registered may be without a subnet, as nothing to speak of; and half as long at random.
const UNASSIGNED: Duration = Duration::from_secs(6);
/// After so long it is found out anew why it has none, then after twice as long,
const WHY_AGAIN: Duration = Duration::from_secs(300);
/// and at least this often.
const WHY_SELDOM: Duration = Duration::from_secs(3600);
/// Finding out why, and telling it, may take this long.
const DIAGNOSIS: Duration = Duration::from_secs(5);
/// So long it is waited for the own Node to change before it is asked for again.
const GIVEN: Duration = Duration::from_secs(20);
const AT_ONCE: Duration = Duration::from_secs(1);

/// Which Node object is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The one of this name.
    Node(String),
    /// The one that this pod runs on.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// How to reach Kubernetes, and what to look for there.
#[derive(Debug, Clone)]
pub struct Options {
    /// The API server.
    pub access: Access,
    /// Our own Node object.
    pub identity: Identity,
    /// What annotations begin with.
    pub prefix: Prefix,
    /// The file that holds the network config.
    pub config: PathBuf,
    /// Whether the Node's condition `NetworkUnavailable` is ours to set.
    pub sets_condition: bool,
}

/// Our own Node object, as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Own {
    /// Not yet.
    #[default]
    Unknown,
    /// There is none.
    Absent,
    /// This.
    Present {
        node: Box<NodeObject>,
        /// Its condition `NetworkUnavailable`, where that was looked for: status and reason.
        condition: Option<String>,
    },
}

/// Kubernetes gives the own Node no subnet.
#[derive(Debug)]
struct Unassigned {
    /// As of this version of the own Node; empty where there is no such Node.
    version: String,
    /// When to find out why, and how long to wait after that.
    ask_at: Instant,
    pause: Duration,
    why: Option<String>,
}

/// The registry that Kubernetes is.
pub struct Kube {
    way: Box<dyn Way>,
    options: Options,
    chance: Chance,
    state: watch::Sender<State>,
    requests: Arc<AtomicU64>,
    /// The own node's name, once it is known.
    name: Mutex<Option<String>>,
    /// What the lease was acquired for: by it nodes are read.
    network: watch::Sender<Option<NetworkConfig>>,
    own: watch::Sender<Own>,
    /// How the data path stands, and since when.
    data_path: watch::Sender<(DataPath, Instant)>,
    nodes: Mutex<Nodes>,
    /// What is wrong with the own Node, and what was said of it.
    alarms: watch::Sender<Alarms>,
    said: Mutex<BTreeMap<Reason, Said>>,
    /// Since when Kubernetes gives it no subnet, and when it was last found out why, and what.
    unassigned: Mutex<Option<Unassigned>>,
    /// How far the store had come, as far as this node has heard, in this process or before.
    known: AtomicI64,
}

impl fmt::Debug for Kube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kube")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Kube {
    /// A client that is not connected yet. Whatever is read from files is read when connecting, so it may come later.
    pub fn new(options: Options, chance: Chance) -> Kube {
        Kube::over(Box::new(Tcp), options, chance)
    }

    /// The same, on another way to the server than TCP.
    pub fn over(way: Box<dyn Way>, options: Options, chance: Chance) -> Kube {
        let name = match &options.identity {
            Identity::Node(name) => Some(name.clone()),
            Identity::Pod { .. } => None,
        };
        Kube {
            way,
            options,
            chance,
            state: watch::channel(State::default()).0,
            requests: Arc::default(),
            name: Mutex::new(name),
            network: watch::channel(None).0,
            own: watch::channel(Own::default()).0,
            data_path: watch::channel((DataPath::Unknown, Instant::now())).0,
            nodes: Mutex::new(Nodes::default()),
            alarms: watch::channel(Alarms::default()).0,
            said: Mutex::default(),
            unassigned: Mutex::default(),
            known: AtomicI64::new(0),
        }
    }

    /// A connection of its own for what is asked next.
    async fn connect(&self) -> Result<Connection, RegistryError> {
        match Connection::open(&*self.way, &self.options.access, &self.requests).await {
            Ok(connection) => {
                let url = connection.url().to_owned();
                self.state.send_if_modified(|state| {
                    let news = state.endpoint.as_deref() != Some(&url);
                    if news {
                        state.endpoint = Some(url);
                        state.since = Some(SystemTime::now());
                    }
                    news
                });
                Ok(connection)
            }
            Err(failure) => Err(self.unreachable(failure.to_string())),
        }
    }

    fn unreachable(&self, error: String) -> RegistryError {
        self.note_failure(&error);
        RegistryError::Unreachable(error)
    }

    /// What a call came to, for whoever asked, with the state of the connection noted.
    fn failed(&self, call: &'static str, failed: Failed, url: &str) -> RegistryError {
        match failed {
            Failed::Unanswered(reason) | Failed::Odd(reason) => {
                self.unreachable(format!("{url}: {call}: {reason}"))
            }
            Failed::Status { code, message } => {
                let reason = format!("{code}: {message}");
                self.note_failure(&format!("{url} refuses {call}: {reason}"));
                RegistryError::Refused {
                    endpoint: url.to_owned(),
                    call,
                    reason,
                }
            }
        }
    }

    /// Nodes are not followed for now.
    fn note_away(&self) {
        self.state.send_modify(|state| {
            if state.endpoint.take().is_some() {
                state.since = Some(SystemTime::now());
            }
            state.watching = false;
        });
    }

    /// INVARIANT: says nothing about the watch, which has a connection of its own.
    fn note_failure(&self, error: &str) {
        self.state.send_modify(|state| {
            state.last_failure = Some(Failure {
                at: SystemTime::now(),
                error: error.to_owned(),
            });
        });
    }

    /// The name of the own Node, asked of the pod where need be.
    async fn own_name(&self) -> Result<String, RegistryError> {
        if let Some(name) = lock(&self.name).clone() {
            return Ok(name);
        }
        let Identity::Pod { namespace, name } = &self.options.identity else {
            return Err(RegistryError::Unreachable("the own Node has no name".to_owned()));
        };
        let mut connection = self.connect().await?;
        let url = connection.url().to_owned();
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let text = connection
            .get(&path)
            .await
            .map_err(|failed| self.failed("get pod", failed, &url))?;
        let node = server::node_of_pod(&text);
        let node = node.ok_or_else(|| RegistryError::NotFound {
            what: "own Node",
            place: format!("pod {namespace}/{name} has no spec.nodeName yet"),
        })?;
        *lock(&self.name) = Some(node.clone());
        Ok(node)
    }

    /// The own Node as it is now; notes it.
    async fn fetch_own(&self, name: &str) -> Result<NodeObject, RegistryError> {
        let mut connection = self.connect().await?;
        let url = connection.url().to_owned();
        match connection.get(&format!("/api/v1/nodes/{name}")).await {
            Ok(text) => self.see_own(&text).map_err(|reason| RegistryError::Refused {
                endpoint: url,
                call: "get node",
                reason,
            }),
            Err(Failed::Status { code: 404, .. }) => {
                self.own.send_replace(Own::Absent);
                Err(RegistryError::NotFound {
                    what: "own Node",
                    place: format!("{url} has no Node {name:?}: it has not been registered, or was deleted"),
                })
            }
            Err(failed) => Err(self.failed("get node", failed, &url)),
        }
    }

    fn see_own(&self, json: &str) -> Result<NodeObject, String> {
        let node = NodeObject::read(json, &self.options.prefix)?;
        self.note_present(&node, json);
        Ok(node)
    }

    /// Notes the own Node, which was read from this text.
    fn note_present(&self, node: &NodeObject, json: &str) {
        self.note_own(Own::Present {
            node: Box::new(node.clone()),
            condition: keep::condition_in(json),
        });
    }

    fn note_own(&self, own: Own) {
        self.own.send_if_modified(|known| {
            let news = *known != own;
            *known = own;
            news
        });
    }

    fn warn_of_overwrites(&self, node: &NodeObject) {
        for (name, family) in [
            (Name::PublicIpOverwrite, Family::V4),
            (Name::PublicIpv6Overwrite, Family::V6),
        ] {
            if node.overwrite(family).is_none() {
                self.warn_of(node, name, family);
            }
        }
    }

    /// Names an annotation of an operator's that is set and is no address.
    fn warn_of(&self, node: &NodeObject, name: Name, family: Family) {
        if let Some(text) = node.text(name) {
            let key = self.options.prefix.key(name);
            warn!(
                "annotation {key} of Node {} is {:?}: expected an {family} address; it has no effect",
                node.name,
                shorten(text)
            );
        }
    }

    /// Notes how far the store has come: whoever knew more of it than there is knows that it went back.
    async fn note_newest(&self) -> Result<(), RegistryError> {
        let mut connection = self.connect().await?;
        let url = connection.url().to_owned();
        let newest = self.newest(&mut connection).await;
        let newest = newest.map_err(|failed| self.failed("list nodes", failed, &url))?;
        self.state.send_modify(|state| state.revision = newest);
        Ok(())
    }

    /// A strategic merge patch of the own Node's status, by which annotations may be written as well; notes what the Node is then.
    async fn patch_own(&self, body: String) -> Result<(), RegistryError> {
        const CALL: &str = "patch node";
        let name = self.own_name().await?;
        let mut connection = self.connect().await?;
        let url = connection.url().to_owned();
        let text = connection
            .patch(&format!("/api/v1/nodes/{name}/status"), body)
            .await
            .map_err(|failed| self.failed(CALL, failed, &url))?;
        self.see_own(&text).map_err(|reason| RegistryError::Refused {
            endpoint: url,
            call: CALL,
            reason,
        })?;
        Ok(())
    }

    /// Kubernetes has not given the node what it needs: why, once it has lasted. A Node that is new has none for a moment.
    async fn not_assigned(&self, node: &NodeObject, reason: &str, network: &NetworkConfig) -> RegistryError {
        let name = &node.name;
        self.alarm(Reason::PodCidrOutsideNetwork, None);
        let now = Instant::now();
        let (is_time, mut why) = self.note_unassigned(node.version.clone());
        // INVARIANT: bounded, and seldom: what all who wait ask for stands in the way of what they wait for.
        if is_time {
            let found = tokio::time::timeout(DIAGNOSIS, self.why_unassigned(network)).await;
            why = found.ok().flatten().or(why);
            if let Some(known) = &mut *lock(&self.unassigned) {
                known.why.clone_from(&why);
            }
        }
        if let Some(why) = &why {
            self.alarm(Reason::PodCidrNotAssigned, Some(format!("{reason}: {why}")));
            let left = DIAGNOSIS.saturating_sub(now.elapsed());
            let _ = tokio::time::timeout(left, self.tell_alarms()).await;
        }
        RegistryError::NotFound {
            what: "subnet of this node",
            place: match why {
                Some(why) => format!("Node {name}: {reason}: {why}"),
                None => format!("Node {name}: {reason}"),
            },
        }
    }

    /// Notes that Kubernetes has given nothing as of a version; whether to find out why, and why as far as is known.
    fn note_unassigned(&self, version: String) -> (bool, Option<String>) {
        let now = Instant::now();
        let mut unassigned = lock(&self.unassigned);
        let known = unassigned.get_or_insert_with(|| Unassigned {
            version: String::new(),
            ask_at: now + self.chance.jitter(UNASSIGNED),
            pause: WHY_AGAIN,
            why: None,
        });
        known.version = version;
        let is_time = now >= known.ask_at && !known.version.is_empty();
        if is_time {
            known.ask_at = now + self.chance.jitter(known.pause);
            known.pause = (known.pause * 2).min(WHY_SELDOM);
        }
        (is_time, known.why.clone())
    }

    /// Waits until the own Node is another than it was when Kubernetes had given it nothing, but not for ever: over one connection, and
    /// at no cost to the server while nothing happens.
    async fn wait_for_subnet(&self, name: &str) {
        let now = Instant::now();
        let waiting = lock(&self.unassigned)
            .as_ref()
            .map(|known| (known.version.clone(), known.ask_at));
        let Some((version, ask_at)) = waiting else {
            return;
        };
        let most = self.chance.jitter(GIVEN);
        // Why it is not given is to be found out by then.
        let most = match ask_at.checked_duration_since(now) {
            Some(left) if !version.is_empty() => most.min(left + AT_ONCE / 10),
            _ => most,
        };
        let heard = async {
            let mut connection = self.connect().await?;
            let url = connection.url().to_owned();
            let mut path = format!(
                "/api/v1/nodes?watch=1&timeoutSeconds={}&fieldSelector=metadata.name%3D",
                most.as_secs().max(1)
            );
            percent_encode(&mut path, name);
            if !version.is_empty() {
                path.push_str("&resourceVersion=");
                percent_encode(&mut path, &version);
            }
            let mut body = connection
                .stream(&path)
                .await
                .map_err(|failed| self.failed("watch node", failed, &url))?;
            // What it says is asked for in a moment.
            drop(body.frame().await);
            Ok::<(), RegistryError>(())
        };
        let began = Instant::now();
        let outcome = tokio::time::timeout(most, heard).await;
        // A server that ends it at once is not asked without end.
        if !matches!(outcome, Ok(Ok(()))) || began.elapsed() < AT_ONCE {
            tokio::time::sleep(self.chance.jitter(AT_ONCE)).await;
        }
    }

    async fn acquire_now(&self, wanted: &Wanted<'_>) -> Result<Held, AcquireError> {
        self.network.send_replace(Some(wanted.config.clone()));
        // What is ready was so with another lease.
        self.note(DataPath::Unknown);
        let name = self.own_name().await?;
        self.wait_for_subnet(&name).await;
        let node = match self.fetch_own(&name).await {
            Err(absent @ RegistryError::NotFound { .. }) => {
                self.note_unassigned(String::new());
                return Err(absent.into());
            }
            other => other?,
        };
        let subnet = match node.subnet(wanted.config) {
            Ok(subnet) => subnet,
            Err(reason) => return Err(self.not_assigned(&node, &reason, wanted.config).await.into()),
        };
        self.note_newest().await?;
        *lock(&self.unassigned) = None;
        self.alarm(Reason::PodCidrNotAssigned, None);
        for family in wanted.config.families() {
            let (Some(space), Some(half)) = (wanted.config.space(family), subnet.of(family)) else {
                continue;
            };
            if !space.network.contains(&half) {
                let message = format!(
                    "podCIDR {half} is not inside the network {}: this node has no pod network until its Node is made anew with another, \
                     or the network config is",
                    space.network
                );
                self.alarm(Reason::PodCidrOutsideNetwork, Some(message));
                let _ = tokio::time::timeout(DIAGNOSIS, self.tell_alarms()).await;
                return Err(AcquireError::Registry(RegistryError::Refused {
                    endpoint: format!("Node {name}"),
                    call: "podCIDR",
                    reason: format!("{half} is not inside the network {}", space.network),
                }));
            }
        }
        self.alarm(Reason::PodCidrOutsideNetwork, None);
        let own = node.lease(wanted.config).ok().flatten();
        let before = own.filter(|own| own.subnet == subnet).map(|own| own.attributes);
        let attributes = (wanted.attributes)(&subnet, before.as_ref());
        self.warn_of_overwrites(&node);
        if let Some(body) = node.patch(&self.options.prefix, &node.wanted(&attributes)) {
            self.patch_own(body).await?;
        }
        Ok(Held {
            lease: Lease {
                subnet,
                attributes,
                created: node.created,
            },
            expires: None,
            reused: before.is_some(),
            also_ours: Vec::new(),
        })
    }
}

/// Tells what a file holds, and again each time it is something else, until nobody listens.
fn watch_file(path: &Path, tell: &mpsc::UnboundedSender<Result<Vec<u8>, RegistryError>>) {
    let mut known: Option<Result<Vec<u8>, String>> = None;
    while !tell.is_closed() {
        // Read whole each time: the files of a ConfigMap are exchanged by way of links, and no time of theirs tells.
        let read = read_config(path);
        let now = read.as_ref().map_err(ToString::to_string).cloned();
        if known.as_ref() != Some(&now) {
            known = Some(now);
            let _ = tell.send(read);
        }
        std::thread::sleep(CONFIG_LOOK);
    }
}

fn read_config(path: &Path) -> Result<Vec<u8>, RegistryError> {
    read_regular(path, LARGEST_CONFIG).map_err(|failure| RegistryError::NotFound {
        what: "network config",
        place: format!("{}: {failure}", path.display()),
    })
}

impl Registry for Kube {
    fn network_config(&self) -> Pending<'_, Result<Vec<u8>, RegistryError>> {
        Box::pin(async { read_config(&self.options.config) })
    }

    fn understand(&self, json: &[u8]) -> Result<NetworkConfig, ConfigError> {
        Declared::parse(json)?.without_allocation()
    }

    fn ordered(&self) -> Pending<'_, Result<PublicIps, RegistryError>> {
        Box::pin(async {
            let node = self.fetch_own(&self.own_name().await?).await?;
            let ordered = |family| node.ordered(family);
            for (name, family) in [
                (Name::NodePublicIp, Family::V4),
                (Name::NodePublicIpv6, Family::V6),
            ] {
                if ordered(family).is_none() {
                    self.warn_of(&node, name, family);
                }
            }
            Ok(PublicIps {
                v4: match ordered(Family::V4) {
                    Some(IpAddr::V4(address)) => Some(address),
                    _ => None,
                },
                v6: match ordered(Family::V6) {
                    Some(IpAddr::V6(address)) => Some(address),
                    _ => None,
                },
            })
        })
    }

    fn acquire<'a>(&'a self, wanted: &'a Wanted<'a>) -> Pending<'a, Result<Held, AcquireError>> {
        Box::pin(self.acquire_now(wanted))
    }

    fn keep<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        held: Held,
        _margin: Duration,
        report: &'a (dyn Fn(Holding) + Send + Sync),
    ) -> Pending<'a, Over> {
        Box::pin(keep::keep(self, wanted, held, report))
    }

    fn watch<'a>(&'a self, sink: &'a (dyn Fn(Update) + Send + Sync)) -> Pending<'a, Infallible> {
        Box::pin(async move {
            tokio::select! {
                biased;
                never = watching::watch(self, sink) => match never {},
                never = events::tell(self) => match never {},
            }
        })
    }

    fn watch_config<'a>(
        &'a self,
        sink: &'a (dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
    ) -> Pending<'a, Infallible> {
        Box::pin(async move {
            loop {
                let (tell, mut told) = mpsc::unbounded_channel();
                let file = self.options.config.clone();
                // In the hands of its disk, and nobody waits for it; it ends with the channel.
                let started = std::thread::Builder::new()
                    .name("config".to_owned())
                    .spawn(move || watch_file(&file, &tell));
                if started.is_ok() {
                    while let Some(read) = told.recv().await {
                        sink(read);
                    }
                }
                // No thread to be had, or none any more.
                tokio::time::sleep(CONFIG_LOOK).await;
            }
        })
    }

    fn resume(&self, revision: i64, _: Option<&str>) {
        // Once the registry has spoken it knows better.
        let _ = self
            .known
            .compare_exchange(0, revision, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn reconnect(&self) -> Pending<'_, ()> {
        Box::pin(async {})
    }

    fn note(&self, data_path: DataPath) {
        self.data_path.send_if_modified(|(known, since)| {
            let is_other = std::mem::discriminant(known) != std::mem::discriminant(&data_path);
            if is_other {
                *since = Instant::now();
            }
            *known = data_path;
            is_other
        });
    }

    fn states(&self) -> States {
        self.state.subscribe()
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}
