//! Many hosts started at once on one real etcd: everyone has a subnet of its own, and every route.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use lab::Families;
use lab::rig::{Rig, Wish};
use lab::witness::routes;
use serde_json::json;

/// As many as the reference was tried with (61 of its 200 exit).
const HOSTS: usize = 200;

#[test]
fn two_hundred_daemons_at_once_all_have_subnets_and_routes() {
    let wish = Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(HOSTS);
    let mut rig = Rig::bare(&wish).unwrap();
    let start = Instant::now();
    rig.daemons = rig.lab.start_daemons(&[]).unwrap();
    let started = start.elapsed();
    rig.lab.wait_for_routes(Duration::from_secs(120)).unwrap();
    let took = start.elapsed();
    let mut subnets = BTreeSet::new();
    for host in 1..=HOSTS {
        subnets.insert(rig.subnet(host, 4).unwrap());
    }
    assert_eq!(subnets.len(), HOSTS, "every host has a subnet of its own");
    assert_eq!(
        rig.lab.leases().unwrap().len(),
        HOSTS,
        "and no lease is left over from a lost race"
    );
    for host in 1..=HOSTS {
        let all = routes(rig.lab.host(host), 4).unwrap();
        let ours: BTreeSet<_> = all
            .iter()
            .filter(|r| r.protocol.as_deref() == Some("241"))
            .filter_map(|r| r.destination())
            .collect();
        let own = rig.subnet(host, 4).unwrap();
        assert_eq!(ours.len(), HOSTS - 1, "routes on h{host}");
        assert!(
            !ours.contains(&own) && ours.iter().all(|d| subnets.contains(d)),
            "h{host}"
        );
    }
    for (index, daemon) in rig.daemons.iter_mut().enumerate() {
        assert!(daemon.ended().is_none(), "h{}: {}", index + 1, daemon.log());
    }
    let _ = writeln!(
        std::io::stdout().lock(),
        "\ncrowd: {HOSTS} daemons started in {:.1} s; every subnet and route after {:.1} s (budget 10 s on 2 quiet cores), seen by `ip`",
        started.as_secs_f64(),
        took.as_secs_f64()
    );
}
