//! Histories of a cluster on a moved clock: Nodes that come, go, are made anew and written wrongly, and a server that forgets, ends
//! watches, refuses, talks nonsense, goes away and comes back. Whatever happens, in the end the leases that are heard are those of the
//! Nodes that are there, and no Node that nobody touched was ever taken for gone.
//!
//! `KUBE_SEEDS=N` tries more of them, `KUBE_FIRST=N` others; a seed that fails is named.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fabric::lease::Update;
use registry::kube::Options;
use registry::{Chance, Kube, Registry};
use serde_json::{Value, json};

use crate::server::Server;
use crate::{Heard, PREFIX, acquire, annotate, attributes, config, options, peer, register};

const SEEDS: u64 = 150;
const STEPS: usize = 40;
/// Where the store's history begins.
const FIRST: u64 = 1_000_000;
/// Nodes that nobody touches, by the third byte of their podCIDR.
const STEADY: [u8; 2] = [201, 202];

fn number(variable: &str, default: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(default, |text| text.parse().unwrap())
}

/// The leases that the Nodes make, by what the history itself says of them: the older has a subnet that two have.
fn expected(server: &Server, names: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut nodes: Vec<Value> = names
        .iter()
        .map(|name| server.node(name))
        .filter(|node| !node.is_null())
        .collect();
    let age = |node: &Value| {
        let metadata = &node["metadata"];
        let text = |field: &str| metadata[field].as_str().unwrap().to_owned();
        (text("creationTimestamp"), text("name"))
    };
    nodes.sort_by_key(age);
    let mut leases = BTreeMap::new();
    for node in nodes {
        let annotation = |name: &str| {
            node["metadata"]["annotations"][format!("{PREFIX}{name}")]
                .as_str()
                .map(str::to_owned)
        };
        let (Some(cidr), Some(address)) = (node["spec"]["podCIDR"].as_str(), annotation("public-ip")) else {
            continue;
        };
        if annotation("kube-subnet-manager").as_deref() == Some("true") {
            leases.entry(cidr.replace('/', "-")).or_insert(address);
        }
    }
    leases
}

/// One thing that happens. Malformed values are mended before the end.
fn happen(server: &Server, chance: &Chance, names: &mut BTreeSet<String>, restored: &mut u64) {
    let name = format!("n{}", chance.below(4));
    let third = u8::try_from(10 + chance.below(4)).unwrap();
    let exists = !server.node(&name).is_null();
    match chance.below(16) {
        0..=3 => {
            peer(server, &name, third);
            names.insert(name);
        }
        4 => server.delete(&name),
        5 => {
            server.delete(&name);
            peer(server, &name, third);
            names.insert(name);
        }
        6 if exists => server.put(&name, |node| node["metadata"]["annotations"] = json!({})),
        7 if exists && !server.annotations(&name).is_empty() => {
            annotate(server, &name, "public-ip", Some("nonsense"));
        }
        8 => server.compact(),
        9 => server.end_watches(),
        10 => {
            server.compact();
            server.end_watches();
        }
        11 => {
            server.poison();
            server.end_watches();
        }
        12 => server.set_up(chance.below(2) == 0),
        13 => {
            let code = [
                (429, "too many requests"),
                (500, "etcdserver: leader changed"),
                (504, "Too large resource version: 1, current: 0"),
            ];
            let call = ["list", "watch", "get", "patch"];
            server.refuse_once(call[chance.below(4)], code[chance.below(3)]);
        }
        14 => server.put("own", |node| {
            let wiped = json!({ "x": "y" });
            node["metadata"]["annotations"] = if chance.below(2) == 0 {
                wiped
            } else {
                json!({ format!("{PREFIX}public-ip"): "192.0.2.250" })
            };
        }),
        15 => match chance.below(3) {
            0 => server.bookmark(),
            1 => server.touch(),
            // A backup: the history begins anew, far behind where it was. One that has overtaken what was known before anybody asks again
            // cannot be told from the one that was.
            _ => {
                *restored += 1;
                server.restore(FIRST - 10_000 * *restored);
            }
        },
        _ => {}
    }
}

async fn history(seed: u64) {
    let server = Server::in_memory();
    server.restore(FIRST);
    let chance = Chance::seeded(seed);
    register(&server, "own", 1);
    let mut names: BTreeSet<String> = ["own".to_owned()].into();
    for third in STEADY {
        let name = format!("steady-{third}");
        peer(&server, &name, third);
        names.insert(name);
    }
    let options = Options { ..options(&server) };
    let kube = Arc::new(Kube::over(
        Box::new(server.doors()),
        options,
        Chance::seeded(seed + 1),
    ));
    let held = acquire(&kube).await.unwrap();
    let heard = Arc::new(Mutex::new(Heard::default()));
    let lost = Arc::new(Mutex::new(Vec::<u8>::new()));
    let watch = tokio::spawn({
        let (kube, heard, lost) = (Arc::clone(&kube), Arc::clone(&heard), Arc::clone(&lost));
        async move {
            let sink = move |update: Update| {
                let mut heard = heard.lock().unwrap();
                let was_told = heard.snapshots > 0;
                heard.hear(update);
                let gone = STEADY
                    .iter()
                    .filter(|third| !heard.leases.contains_key(&format!("10.244.{third}.0-24")));
                if was_told {
                    lost.lock().unwrap().extend(gone.copied());
                }
            };
            match kube.watch(&sink).await {}
        }
    });
    let keep = tokio::spawn({
        let kube = Arc::clone(&kube);
        async move {
            let config = config();
            let wanted = registry::Wanted {
                config: &config,
                me: fabric::alloc::PublicIps { v4: None, v6: None },
                previous: None,
                attributes: &|_, _| attributes(),
            };
            kube.keep(&wanted, held, Duration::ZERO, &|_| {}).await
        }
    });
    let mut restored = 1;
    for _ in 0..STEPS {
        happen(&server, &chance, &mut names, &mut restored);
        tokio::time::sleep(Duration::from_millis(chance.below(5000) as u64)).await;
    }
    // All is well from here on, and nothing is forgotten that was not heard.
    server.set_up(true);
    for name in &names {
        let nonsense = server.annotations(name).values().any(|text| text == "nonsense");
        if nonsense {
            annotate(&server, name, "public-ip", Some("192.0.2.99"));
        }
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    let wanted = expected(&server, &names);
    assert_eq!(
        heard.lock().unwrap().leases,
        wanted,
        "seed {seed}: what is heard, and what is there"
    );
    assert!(
        heard
            .lock()
            .unwrap()
            .refused
            .keys()
            .all(|key| key.ends_with("podCIDR")),
        "seed {seed}"
    );
    assert_eq!(*lost.lock().unwrap(), [0_u8; 0], "seed {seed}: taken for gone");
    assert!(!keep.is_finished(), "seed {seed}: the lease is kept");
    assert_eq!(
        wanted["10.244.1.0-24"], "192.0.2.1",
        "seed {seed}: our own annotations"
    );
    watch.abort();
    keep.abort();
}

#[test]
fn history_of_a_cluster_ends_in_what_is_there_and_nobody_who_stayed_was_ever_gone() {
    let (first, seeds) = (number("KUBE_FIRST", 0), number("KUBE_SEEDS", SEEDS));
    for seed in first..first + seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(history(seed));
    }
}
