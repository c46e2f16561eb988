//! Kubernetes as the registry, over a small API server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod history;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fabric::alloc::PublicIps;
use fabric::annotations::Prefix;
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Update};
use registry::kube::{Access, Identity, Options};
use registry::{AcquireError, Chance, DataPath, Held, Holding, Kube, Over, Registry, RegistryError, Wanted};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::server::Server;

/// Long enough for anything on a loaded machine; no test passes or fails by less.
const PATIENCE: Duration = Duration::from_secs(30);
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
const PREFIX: &str = "flannel.alpha.coreos.com/";

fn options(server: &Server) -> Options {
    Options {
        access: Access::Url(server.url()),
        identity: Identity::Node("own".to_owned()),
        prefix: Prefix::parse("flannel.alpha.coreos.com").unwrap(),
        config: PathBuf::from("/nonexistent/net-conf.json"),
        sets_condition: true,
    }
}

fn kube(server: &Server) -> Arc<Kube> {
    Arc::new(Kube::new(options(server), Chance::seeded(1)))
}

fn config() -> NetworkConfig {
    Kube::new(
        Options {
            access: Access::Url("http://x".to_owned()),
            identity: Identity::Node("x".to_owned()),
            prefix: Prefix::parse("x.y").unwrap(),
            config: PathBuf::new(),
            sets_condition: false,
        },
        Chance::seeded(1),
    )
    .understand(CONFIG.as_bytes())
    .unwrap()
}

fn attributes() -> Attributes {
    Attributes {
        public_ip: "192.0.2.1".parse().unwrap(),
        public_ip6: None,
        backend_type: "host-gw".into(),
        data: None,
        data6: None,
    }
}

async fn acquire(kube: &Kube) -> Result<Held, AcquireError> {
    let config = config();
    let wanted = Wanted {
        config: &config,
        me: PublicIps { v4: None, v6: None },
        previous: None,
        attributes: &|_, _| attributes(),
    };
    kube.acquire(&wanted).await
}

/// Has a Node as kubelet registers it, with a subnet.
fn register(server: &Server, name: &str, third: u8) {
    server.put(name, |node| {
        node["spec"]["podCIDR"] = json!(format!("10.244.{third}.0/24"));
        node["spec"]["podCIDRs"] = json!([format!("10.244.{third}.0/24")]);
    });
}

/// Has a Node that flannel runs on.
fn peer(server: &Server, name: &str, third: u8) {
    server.put(name, |node| {
        node["spec"]["podCIDR"] = json!(format!("10.244.{third}.0/24"));
        node["metadata"]["annotations"] = json!({
            format!("{PREFIX}backend-data"): "null",
            format!("{PREFIX}backend-type"): "host-gw",
            format!("{PREFIX}kube-subnet-manager"): "true",
            format!("{PREFIX}public-ip"): format!("192.0.2.{third}"),
        });
    });
}

fn annotate(server: &Server, name: &str, annotation: &str, text: Option<&str>) {
    server.put(name, |node| {
        let all = node["metadata"]["annotations"].as_object_mut().unwrap();
        let key = format!("{PREFIX}{annotation}");
        match text {
            Some(text) => all.insert(key, json!(text)),
            None => all.remove(&key),
        };
    });
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a consumer of the watch comes to know.
#[derive(Default)]
struct Heard {
    leases: BTreeMap<String, String>,
    refused: BTreeMap<String, String>,
    updates: usize,
    snapshots: usize,
}

impl Heard {
    fn hear(&mut self, update: Update) {
        self.updates += 1;
        match update {
            Update::Snapshot(snapshot) => {
                self.snapshots += 1;
                self.leases.clear();
                self.refused.clear();
                for (subnet, lease) in snapshot.leases {
                    self.leases
                        .insert(subnet.to_string(), lease.attributes.public_ip.to_string());
                }
                self.refused
                    .extend(snapshot.rejected.into_iter().map(|r| (r.key, r.reason)));
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
                delta.gone.iter().for_each(|key| drop(self.refused.remove(key)));
                self.refused
                    .extend(delta.rejected.into_iter().map(|r| (r.key, r.reason)));
            }
        }
    }
}

/// A watch under way, and a lease that is kept.
struct Following {
    server: Server,
    kube: Arc<Kube>,
    heard: Arc<Mutex<Heard>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    over: Arc<Mutex<Option<Over>>>,
    reports: mpsc::UnboundedReceiver<Holding>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Following {
    async fn start() -> Following {
        let server = Server::start().await;
        register(&server, "own", 1);
        peer(&server, "a", 2);
        peer(&server, "b", 3);
        Following::on(server).await
    }

    async fn on(server: Server) -> Following {
        let kube = kube(&server);
        let held = acquire(&kube).await.unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let watch = tokio::spawn({
            let (kube, heard) = (Arc::clone(&kube), Arc::clone(&heard));
            async move {
                let sink = move |update| heard.lock().unwrap().hear(update);
                match kube.watch(&sink).await {}
            }
        });
        let (sender, reports) = mpsc::unbounded_channel();
        let over = Arc::new(Mutex::new(None));
        let keep = tokio::spawn({
            let (kube, over) = (Arc::clone(&kube), Arc::clone(&over));
            async move {
                let config = config();
                let wanted = Wanted {
                    config: &config,
                    me: PublicIps { v4: None, v6: None },
                    previous: None,
                    attributes: &|_, _| attributes(),
                };
                let report = move |holding| drop(sender.send(holding));
                let ended = kube.keep(&wanted, held, Duration::ZERO, &report).await;
                *over.lock().unwrap() = Some(ended);
            }
        });
        let following = Following {
            server,
            kube,
            heard,
            tasks: vec![watch, keep],
            over,
            reports,
        };
        following.watching().await;
        following
    }

    async fn watching(&self) {
        until("the watch", || self.kube.states().borrow().watching).await;
    }

    fn has(&self, leases: &[(u8, &str)]) -> bool {
        let expected: BTreeMap<String, String> = leases
            .iter()
            .map(|(third, address)| (format!("10.244.{third}.0-24"), (*address).to_owned()))
            .collect();
        self.heard.lock().unwrap().leases == expected
    }

    async fn comes_to(&self, leases: &[(u8, &str)]) {
        until(&format!("{leases:?}"), || self.has(leases)).await;
    }

    /// Others join, and all of them are heard.
    async fn hears_of_others(&self) {
        for third in 4..8 {
            peer(&self.server, &format!("n{third}"), third);
        }
        let last = || self.heard.lock().unwrap().leases.contains_key("10.244.7.0-24");
        until("the last of them", last).await;
    }

    fn refused(&self) -> Vec<String> {
        self.heard.lock().unwrap().refused.keys().cloned().collect()
    }
}

const OWN: (u8, &str) = (1, "192.0.2.1");
const A: (u8, &str) = (2, "192.0.2.2");
const B: (u8, &str) = (3, "192.0.2.3");

#[tokio::test]
async fn lease_when_acquired_is_what_kubernetes_gave_and_is_written_once() {
    let server = Server::start().await;
    register(&server, "own", 1);
    let client = kube(&server);
    let held = acquire(&client).await.unwrap();
    assert_eq!(held.lease.subnet.to_string(), "10.244.1.0-24");
    assert_eq!((held.expires, held.reused), (None, false));
    let expected = BTreeMap::from(
        [
            ("backend-data", "null"),
            ("backend-type", "host-gw"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.0.2.1"),
        ]
        .map(|(name, text)| (format!("{PREFIX}{name}"), text.to_owned())),
    );
    assert_eq!(server.annotations("own"), expected);
    // Once more nothing is written, and it is known to be ours.
    let again = acquire(&kube(&server)).await.unwrap();
    assert!(again.reused);
    let patches = |server: &Server| {
        server
            .requests()
            .iter()
            .filter(|r| r.starts_with("PATCH"))
            .count()
    };
    assert_eq!(patches(&server), 1);
}

#[tokio::test]
async fn lease_when_kubernetes_gave_none_or_none_of_the_network_then_it_is_said_why() {
    let server = Server::start().await;
    let refused = async |words: &str| {
        let error = acquire(&kube(&server)).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(r#"has no Node "own": it has not been registered, or was deleted"#).await;
    server.put("own", |_| {});
    refused("Node own: it has no podCIDR yet").await;
    server.put("own", |node| node["spec"]["podCIDR"] = json!("10.9.1.0/24"));
    refused("10.9.1.0/24 is not inside the network 10.244.0.0/16").await;
    server.put("own", |node| node["spec"]["podCIDR"] = json!("fd00::/64"));
    refused("none of its pod CIDRs fd00::/64 is of a family in use").await;
    server.put("own", |node| node["spec"]["podCIDR"] = json!("10.244.1.0/24"));
    server.refuse("patch", Some((403, "nodes \"own\" is forbidden")));
    refused(r#"refuses patch node: 403: nodes "own" is forbidden"#).await;
    server.refuse("patch", None);
    server.set_up(false);
    let error = acquire(&kube(&server)).await.unwrap_err();
    assert!(
        matches!(error, AcquireError::Registry(RegistryError::Unreachable(_))),
        "{error}"
    );
}

#[tokio::test]
async fn event_when_kubernetes_gives_no_subnet_or_one_of_another_network_then_the_cause_is_told_once() {
    let server = Server::start().await;
    server.put("own", |_| {});
    let client = kube(&server);
    let end = Instant::now() + PATIENCE;
    while server.said().is_empty() {
        assert!(Instant::now() < end, "no event");
        assert!(acquire(&client).await.is_err());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let error = acquire(&client).await.unwrap_err().to_string();
    assert!(
        error.contains("none of 1 Nodes looked at has one: the controller manager hands none out"),
        "{error}"
    );
    let (reason, message) = server.said().remove(0);
    assert_eq!(reason, "PodCIDRNotAssigned");
    assert!(
        message.starts_with("it has no podCIDR yet: none of 1 Nodes looked at has one"),
        "{message}"
    );
    assert_eq!(server.said().len(), 1, "said once");
    server.put("own", |node| node["spec"]["podCIDR"] = json!("10.9.1.0/24"));
    assert!(acquire(&client).await.is_err());
    assert!(acquire(&client).await.is_err());
    let reasons: Vec<String> = server.said().into_iter().map(|said| said.0).collect();
    assert_eq!(reasons, ["PodCIDRNotAssigned", "PodCIDROutsideNetwork"]);
    // Without the right to write them all else goes on.
    server.refuse("event", Some((403, "events is forbidden")));
    server.put("own", |node| node["spec"]["podCIDR"] = json!("10.244.1.0/24"));
    assert!(acquire(&client).await.is_ok());
}

#[tokio::test]
async fn event_when_another_node_has_our_address_or_subnet_then_told_by_us_and_tried_once_where_refused() {
    let following = Following::start().await;
    let events = |reason: &str| {
        following
            .server
            .said()
            .into_iter()
            .filter(|said| said.0 == reason)
            .count()
    };
    following.comes_to(&[OWN, A, B]).await;
    assert_eq!(following.server.said(), [], "nothing is wrong");
    annotate(&following.server, "a", "public-ip", Some("192.0.2.1"));
    until("an event", || events("DuplicatePublicIP") == 1).await;
    let (_, message) = following.server.said().remove(0);
    assert!(
        message.starts_with("Node a publishes the address of this node, 192.0.2.1: "),
        "{message}"
    );
    // A wider subnet than ours, in which it lies.
    following
        .server
        .put("b", |node| node["spec"]["podCIDR"] = json!("10.244.0.0/23"));
    until("an event", || events("PodCIDROverlaps") == 1).await;
    let (_, message) = following.server.said().remove(1);
    assert!(
        message.contains("podCIDR 10.244.1.0-24 overlaps 10.244.0.0-23 of Node b: "),
        "{message}"
    );
    // It is not said again for every change of somebody.
    following.hears_of_others().await;
    assert_eq!(following.server.said().len(), 2);
}

#[tokio::test]
async fn event_when_refused_then_not_asked_for_with_every_change() {
    let server = Server::start().await;
    server.refuse("event", Some((403, "events is forbidden")));
    register(&server, "own", 1);
    peer(&server, "a", 2);
    annotate(&server, "a", "public-ip", Some("192.0.2.1"));
    let following = Following::on(server).await;
    let asked = || {
        following
            .server
            .requests()
            .iter()
            .filter(|request| request.contains("/events"))
            .count()
    };
    until("an attempt", || asked() == 1).await;
    following.hears_of_others().await;
    assert_eq!(asked(), 1);
}

#[tokio::test]
async fn node_when_it_cannot_be_read_at_all_then_the_lease_it_was_stays_and_it_is_named() {
    let following = Following::start().await;
    following.comes_to(&[OWN, A, B]).await;
    let spoil = |node: &mut Value| node["metadata"]["annotations"] = json!(["no", "object"]);
    following.server.put("a", spoil);
    until("its name", || following.refused() == ["node a"]).await;
    assert!(following.has(&[OWN, A, B]));
    // In a listing as well.
    following.server.compact();
    following.server.end_watches();
    following.watching().await;
    until("a second listing", || {
        following.heard.lock().unwrap().snapshots == 2
    })
    .await;
    assert!(following.has(&[OWN, A, B]) && following.refused() == ["node a"]);
    // It is gone in the end.
    following.server.delete("a");
    following.comes_to(&[OWN, B]).await;
    until("nothing to name", || following.refused().is_empty()).await;
}

#[tokio::test]
async fn own_node_when_only_the_pod_is_known_then_asked_of_it() {
    let server = Server::start().await;
    register(&server, "own", 1);
    let client = Kube::new(
        Options {
            identity: Identity::Pod {
                namespace: "kube-flannel".to_owned(),
                name: "p-1".to_owned(),
            },
            ..options(&server)
        },
        Chance::seeded(1),
    );
    assert!(acquire(&client).await.is_err());
    server.add_pod("/api/v1/namespaces/kube-flannel/pods/p-1", "");
    let error = acquire(&client).await.unwrap_err().to_string();
    assert!(error.contains("has no spec.nodeName yet"), "{error}");
    server.add_pod("/api/v1/namespaces/kube-flannel/pods/p-1", "own");
    assert_eq!(
        acquire(&client).await.unwrap().lease.subnet.to_string(),
        "10.244.1.0-24"
    );
}

#[tokio::test]
async fn peers_when_they_come_change_and_go_are_followed_whatever_they_say() {
    let following = Following::start().await;
    let server = &following.server;
    following.comes_to(&[OWN, A, B]).await;
    peer(server, "c", 4);
    following.comes_to(&[OWN, A, B, (4, "192.0.2.4")]).await;
    annotate(server, "a", "public-ip", Some("192.0.2.99"));
    following
        .comes_to(&[OWN, (2, "192.0.2.99"), B, (4, "192.0.2.4")])
        .await;
    // Not flannel's any more, in either way.
    annotate(server, "c", "kube-subnet-manager", Some("false"));
    following.comes_to(&[OWN, (2, "192.0.2.99"), B]).await;
    server.put("b", |node| {
        node["metadata"]["annotations"] = json!({"other": "x"})
    });
    following.comes_to(&[OWN, (2, "192.0.2.99")]).await;
    peer(server, "b", 3);
    following.comes_to(&[OWN, (2, "192.0.2.99"), B]).await;
    // One that cannot be read stays what it was, and goes with its Node.
    annotate(server, "a", "public-ip", Some("x"));
    until("the refusal", || following.refused() == ["node a"]).await;
    assert!(following.has(&[OWN, (2, "192.0.2.99"), B]));
    server.delete("a");
    following.comes_to(&[OWN, B]).await;
    until("nothing refused", || following.refused().is_empty()).await;
    // Made anew again and again, each time with another subnet.
    for third in 10..30 {
        server.delete("b");
        peer(server, "b", third);
    }
    following.comes_to(&[OWN, (29, "192.0.2.29")]).await;
    // Its subnet goes to another Node before it ends.
    peer(server, "z", 29);
    server.delete("b");
    following.comes_to(&[OWN, (29, "192.0.2.29")]).await;
    assert_eq!(following.heard.lock().unwrap().snapshots, 1);
}

#[tokio::test]
async fn heartbeat_when_a_lease_is_as_it_was_then_nothing_is_said() {
    let following = Following::start().await;
    following.comes_to(&[OWN, A, B]).await;
    let before = following.heard.lock().unwrap().updates;
    for beat in 0..50 {
        following.server.put("a", |node| {
            node["status"]["conditions"] = json!([{"type": "Ready", "n": beat}])
        });
    }
    peer(&following.server, "last", 9);
    following.comes_to(&[OWN, A, B, (9, "192.0.2.9")]).await;
    assert_eq!(following.heard.lock().unwrap().updates, before + 1);
}

#[tokio::test]
async fn watch_when_it_ends_goes_on_from_where_it_was_without_a_listing() {
    let following = Following::start().await;
    let server = &following.server;
    following.comes_to(&[OWN, A, B]).await;
    for third in 50..53 {
        server.end_watches();
        peer(server, "a", third);
        following
            .comes_to(&[OWN, B, (third, &format!("192.0.2.{third}"))])
            .await;
    }
    // Of what is forgotten, a bookmark has said that it was nothing.
    for _ in 0..3 {
        following.server.touch();
    }
    following.server.compact();
    following.server.bookmark();
    until("the bookmark", || following.server.has_been_read()).await;
    server.end_watches();
    peer(server, "last", 9);
    until("the last", || {
        following
            .heard
            .lock()
            .unwrap()
            .leases
            .contains_key("10.244.9.0-24")
    })
    .await;
    assert_eq!(following.heard.lock().unwrap().snapshots, 1);
}

#[tokio::test]
async fn watch_when_what_came_next_is_forgotten_lists_anew_and_hears_who_went() {
    let following = Following::start().await;
    let server = &following.server;
    following.comes_to(&[OWN, A, B]).await;
    server.set_up(false);
    until("the end", || !following.kube.states().borrow().watching).await;
    server.delete("a");
    peer(server, "c", 4);
    server.compact();
    assert!(following.has(&[OWN, A, B]));
    server.set_up(true);
    following.comes_to(&[OWN, B, (4, "192.0.2.4")]).await;
    assert_eq!(following.heard.lock().unwrap().snapshots, 2);
}

#[tokio::test]
async fn watch_when_the_store_was_restored_lists_anew_instead_of_waiting() {
    let following = Following::start().await;
    let server = &following.server;
    following.comes_to(&[OWN, A, B]).await;
    server.set_up(false);
    until("the end", || !following.kube.states().borrow().watching).await;
    server.restore(5);
    // As of before flannel came: nobody is annotated.
    for name in ["own", "a", "b"] {
        server.put(name, |node| node["metadata"]["annotations"] = Value::Null);
    }
    server.set_up(true);
    until("its being noticed", || {
        server
            .requests()
            .iter()
            .any(|request| request.contains("limit=1") && !request.contains("limit=100"))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(following.has(&[OWN, A, B]), "what is known stays in force");
    peer(server, "b", 3);
    // The own Node says again what it is as soon as it is seen; the one that does not come back is gone in the end.
    following.comes_to(&[OWN, B]).await;
}

#[tokio::test]
async fn list_when_the_answer_is_none_then_no_peer_is_gone_by_it() {
    let following = Following::start().await;
    let server = &following.server;
    following.comes_to(&[OWN, A, B]).await;
    for odd in [
        "{}",
        "[]",
        "",
        "<html>",
        r#"{"kind":"Status","metadata":{},"status":"Success"}"#,
        r#"{"kind":"NodeList","metadata":{"resourceVersion":""},"items":[]}"#,
    ] {
        server.answer_lists_with(Some(odd));
        server.compact();
        server.set_up(false);
        until("the end", || !following.kube.states().borrow().watching).await;
        server.set_up(true);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(following.has(&[OWN, A, B]), "{odd}");
    }
    server.answer_lists_with(None);
    server.delete("a");
    following.comes_to(&[OWN, B]).await;
}

#[tokio::test]
async fn list_when_the_server_is_busy_then_the_page_is_asked_for_again_and_not_all_of_them() {
    let server = Server::start().await;
    register(&server, "own", 1);
    for n in 2..=150 {
        peer(&server, &format!("node-{n:03}"), n);
    }
    server.refuse_once("list-more", (429, "too many requests"));
    let following = Following::on(server).await;
    until("150 leases", || {
        following.heard.lock().unwrap().leases.len() == 150
    })
    .await;
    let requests = following.server.requests();
    let pages = |more: bool| {
        let all = requests.iter().filter(|r| r.contains("limit=100"));
        all.filter(|r| r.contains("continue") == more).count()
    };
    assert_eq!((pages(false), pages(true)), (1, 2));
}

#[tokio::test]
async fn watch_when_nonsense_comes_then_the_leases_stay_and_it_is_asked_for_again() {
    let following = Following::start().await;
    let server = &following.server;
    following.comes_to(&[OWN, A, B]).await;
    let nonsense = [
        "{\n",
        "[]\n",
        "{\"type\":\"X\",\"object\":{}}\n",
        "\u{0}\n",
        "{\"type\":\"ERROR\",\"object\":{\"code\":400,\"message\":\"bad\"}}\n",
        "{\"type\":\"ERROR\",\"object\":7}\n",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":{}}}\n",
    ];
    for (third, text) in (4..).zip(nonsense) {
        following.watching().await;
        server.say(text);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let heard = following.heard.lock().unwrap().leases.clone();
        assert!(
            [OWN, A, B]
                .iter()
                .all(|(_, address)| heard.values().any(|there| there == address)),
            "{text:?}"
        );
        peer(server, "c", third);
        following
            .comes_to(&[OWN, A, B, (third, &format!("192.0.2.{third}"))])
            .await;
    }
    peer(server, "c", 4);
    following.comes_to(&[OWN, A, B, (4, "192.0.2.4")]).await;
    // It went on from where it was each time; what comes again and again is got round by a listing.
    assert_eq!(following.heard.lock().unwrap().snapshots, 1);
    server.poison();
    peer(server, "d", 5);
    following
        .comes_to(&[OWN, A, B, (4, "192.0.2.4"), (5, "192.0.2.5")])
        .await;
    assert_eq!(following.heard.lock().unwrap().snapshots, 2);
}

#[tokio::test]
async fn list_when_it_takes_many_pages_then_all_of_it_comes() {
    let server = Server::start().await;
    register(&server, "own", 1);
    for n in 2..=250 {
        peer(&server, &format!("node-{n:03}"), n);
    }
    let following = Following::on(server).await;
    until("250 leases", || {
        following.heard.lock().unwrap().leases.len() == 250
    })
    .await;
    let pages = following
        .server
        .requests()
        .iter()
        .filter(|r| r.contains("limit=100"))
        .count();
    assert_eq!(pages, 3);
}

#[tokio::test]
async fn annotations_when_wiped_bent_or_overwritten_by_the_operator_are_as_they_should_be_again() {
    let mut following = Following::start().await;
    let key = |name: &str| format!("{PREFIX}{name}");
    let published = |following: &Following| {
        following
            .server
            .annotations("own")
            .get(&key("public-ip"))
            .cloned()
    };
    following.comes_to(&[OWN, A, B]).await;
    following
        .server
        .put("own", |node| node["metadata"]["annotations"] = Value::Null);
    until("all of it", || following.server.annotations("own").len() == 4).await;
    annotate(&following.server, "own", "backend-type", Some("udp"));
    until("the type", || {
        following.server.annotations("own")[&key("backend-type")] == "host-gw"
    })
    .await;
    // An overwriting address takes effect, and its end as well.
    annotate(
        &following.server,
        "own",
        "public-ip-overwrite",
        Some("203.0.113.7"),
    );
    until("the address", || {
        published(&following).as_deref() == Some("203.0.113.7")
    })
    .await;
    following.comes_to(&[(1, "203.0.113.7"), A, B]).await;
    annotate(&following.server, "own", "public-ip-overwrite", None);
    until("the own address", || {
        published(&following).as_deref() == Some("192.0.2.1")
    })
    .await;
    assert_eq!(*following.over.lock().unwrap(), None);
    following.reports.close();
    assert_eq!(following.reports.recv().await, None);
}

#[tokio::test]
async fn own_node_when_deleted_and_made_anew_then_annotated_again_or_the_lease_is_another() {
    let mut following = Following::start().await;
    following.comes_to(&[OWN, A, B]).await;
    following.server.delete("own");
    assert_eq!(following.reports.recv().await, Some(Holding::Lost));
    register(&following.server, "own", 1);
    until("annotations", || following.server.annotations("own").len() == 4).await;
    following.comes_to(&[OWN, A, B]).await;
    assert_eq!(*following.over.lock().unwrap(), None);
    // As kubelet does it: without a subnet at first. Peers are followed meanwhile.
    following.server.delete("own");
    assert_eq!(
        following.reports.recv().await,
        Some(Holding::Regained {
            created: 0,
            expires: None
        })
    );
    assert_eq!(following.reports.recv().await, Some(Holding::Lost));
    following.server.put("own", |_| {});
    peer(&following.server, "c", 4);
    following.comes_to(&[A, B, (4, "192.0.2.4")]).await;
    assert_eq!(*following.over.lock().unwrap(), None);
    register(&following.server, "own", 1);
    until("annotations", || following.server.annotations("own").len() == 4).await;
    // Twenty times in a row, none of them slower than the first.
    for _ in 0..20 {
        following.server.delete("own");
        register(&following.server, "own", 1);
        until("annotations", || following.server.annotations("own").len() == 4).await;
    }
    following.server.delete("own");
    register(&following.server, "own", 77);
    until("the end", || following.over.lock().unwrap().is_some()).await;
    let over = following.over.lock().unwrap().clone();
    let Some(Over::Moved(why)) = over else {
        panic!("{over:?}")
    };
    assert_eq!(
        why,
        "Kubernetes has given this node 10.244.77.0-24 instead of 10.244.1.0-24"
    );
}

#[tokio::test]
async fn own_node_when_fought_over_and_then_made_anew_does_not_wait_for_the_end_of_the_fight() {
    let following = Following::start().await;
    let kind = |following: &Following| {
        let annotations = following.server.annotations("own");
        annotations.get(&format!("{PREFIX}backend-type")).cloned()
    };
    until("annotations", || following.server.annotations("own").len() == 4).await;
    for _ in 0..5 {
        annotate(&following.server, "own", "backend-type", Some("udp"));
        until("the type", || kind(&following).as_deref() == Some("host-gw")).await;
    }
    // The next blow would be answered after a second or two.
    following.server.delete("own");
    register(&following.server, "own", 1);
    let start = std::time::Instant::now();
    until("annotations", || following.server.annotations("own").len() == 4).await;
    let took = start.elapsed();
    assert!(took < Duration::from_millis(700), "{took:?}");
}

#[tokio::test]
async fn condition_when_the_data_path_is_ready_then_set_kept_and_never_before() {
    let mut following = Following::start().await;
    let condition = |following: &Following| {
        let conditions = following.server.node("own")["status"]["conditions"].clone();
        let mut all = conditions.as_array().cloned().unwrap_or_default();
        all.retain(|condition| condition["type"] == "NetworkUnavailable");
        all.pop()
    };
    following.comes_to(&[OWN, A, B]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(condition(&following), None);
    following
        .server
        .refuse("patch", Some((500, "etcdserver: request timed out")));
    following.kube.note(DataPath::Stands);
    until("the failure", || {
        following.kube.states().borrow().last_failure.is_some()
    })
    .await;
    following.server.refuse("patch", None);
    until("the condition", || condition(&following).is_some()).await;
    let report = following.reports.recv().await;
    let Some(Holding::Unwritten { what, error, .. }) = report else {
        panic!("{report:?}")
    };
    assert_eq!(what, "condition NetworkUnavailable");
    assert!(
        error.ends_with("refuses patch node: 500: etcdserver: request timed out"),
        "{error}"
    );
    until("the good news", || !following.reports.is_empty()).await;
    let set = condition(&following).unwrap();
    assert_eq!(
        (&set["status"], &set["reason"]),
        (&json!("False"), &json!("FlannelIsUp"))
    );
    assert_eq!(set["message"], "Flannel is running on this node");
    assert_eq!(set["lastHeartbeatTime"], set["lastTransitionTime"]);
    assert_eq!(
        set["lastHeartbeatTime"].as_str().unwrap().len(),
        "2026-11-30T09:05:11Z".len()
    );
    // Somebody sets it otherwise.
    following.server.put("own", |node| {
        node["status"]["conditions"] =
            json!([{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]);
    });
    until("the condition", || {
        condition(&following).is_some_and(|condition| condition["status"] == "False")
    })
    .await;
    // What has not stood for a minute is told, with the reason, and taken back when it stands.
    following
        .kube
        .note(DataPath::Broken("link flannel.1: \"foreign\"".to_owned()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(condition(&following).unwrap()["status"], "False", "not at once");
    tokio::time::pause();
    let down = || condition(&following).is_some_and(|condition| condition["status"] == "True");
    for _ in 0..70 {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    tokio::time::resume();
    until("the condition", down).await;
    let set = condition(&following).unwrap();
    assert_eq!(set["reason"], "FlannelIsDown");
    assert_eq!(set["message"], "link flannel.1: \"foreign\"");
    following.kube.note(DataPath::Stands);
    until("the condition", || !down()).await;
}

#[tokio::test]
async fn config_when_the_file_is_there_then_read_and_when_not_then_waited_for() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net-conf.json");
    let client = Kube::new(
        Options {
            config: file.clone(),
            ..options(&server)
        },
        Chance::seeded(1),
    );
    let error = client.network_config().await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert!(
        error.to_string().contains("net-conf.json: No such file"),
        "{error}"
    );
    std::fs::create_dir(&file).unwrap();
    let error = client.network_config().await.unwrap_err().to_string();
    assert!(error.ends_with("not a regular file"), "{error}");
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, CONFIG).unwrap();
    assert_eq!(client.network_config().await.unwrap(), CONFIG.as_bytes());
    // What the cluster hands out need not fit what flannel would.
    let odd =
        br#"{"Network":"10.244.0.0/16","SubnetLen":99,"SubnetMin":"1.2.3.4","Backend":{"Type":"vxlan"}}"#;
    assert!(client.understand(odd).is_ok() && NetworkConfig::parse(odd).is_err());
}
