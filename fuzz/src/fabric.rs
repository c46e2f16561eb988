//! Bodies of the fuzz targets for crate `fabric`: each takes any bytes and panics where a promise is broken.
//!
//! Compiled twice: by the targets in `fuzz_targets/`, and by `crates/fabric/tests/fuzz_bodies.rs`, which runs them over mutated
//! seeds with every `cargo test`.

use fabric::alloc::{choose, is_compatible};
use fabric::annotations::{NodeObject, Prefix};
use fabric::config::{Declared, NetworkConfig};
use fabric::go_json::{Fields, compact};
use fabric::lease::{Attributes, Subnet, snapshot_from};
use fabric::object::Family;
use fabric::subnet_env::{SubnetEnv, read_previous, read_strict, repair};

mod firewall;

pub use firewall::{iptables_save, nft_list};

/// A body over any bytes.
pub type Body = fn(&[u8]);

/// Every target by name.
pub const TARGETS: &[(&str, Body)] = &[
    ("lease_key", lease_key),
    ("attributes", attributes),
    ("node", node),
    ("go_json", go_json),
    ("config", config),
    ("subnet_env", subnet_env),
    ("iptables_save", iptables_save),
    ("nft_list", nft_list),
];

/// A key is refused, or it is the one text of its subnet; it never drags another entry of the listing along.
pub fn lease_key(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(subnet) = Subnet::parse_key(&text) {
        assert_eq!(subnet.to_string(), text);
        assert!(subnet.v4.is_some() || subnet.v6.is_some());
        assert!(subnet.overlaps(&subnet));
    }
    let good = "10.99.99.0-24";
    let value = br#"{"PublicIP":"192.0.2.1"}"#.as_slice();
    for entries in [
        [(&*text, data, 1), (good, value, 2)],
        [(good, value, 2), (&*text, data, 1)],
    ] {
        let snapshot = snapshot_from(3, entries);
        assert!(snapshot.leases.keys().any(|subnet| subnet.to_string() == good));
        assert_eq!(snapshot.leases.len() + snapshot.rejected.len(), 2);
    }
}

/// A value is refused, or what is written for it reads back equal.
pub fn attributes(data: &[u8]) {
    if let Ok(attributes) = Attributes::parse(data) {
        let json = attributes.to_json();
        assert_eq!(
            Attributes::parse(json.as_bytes()).as_ref(),
            Ok(&attributes),
            "{json}"
        );
        for family in Family::BOTH {
            let _ = (attributes.data_of(family), attributes.public_ip_of(family));
        }
    }
}

/// A Node is refused, or the lease it is reads back equal from what is written for it.
pub fn node(data: &[u8]) {
    let prefix = Prefix::parse("flannel.alpha.coreos.com").expect("a prefix");
    let Ok(mut node) = NodeObject::read(&String::from_utf8_lossy(data), &prefix) else {
        return;
    };
    let config =
        br#"{"Network":"10.0.0.0/8","IPv6Network":"fd00::/16","EnableIPv6":true,"Backend":{"Type":"vxlan"}}"#;
    let network = Declared::parse(config).and_then(|declared| declared.without_allocation());
    let network = network.expect("a config");
    let Ok(Some(lease)) = node.lease(&network) else {
        return;
    };
    let overwrites = Family::BOTH.map(|family| node.overwrite(family));
    let wanted = node.wanted(&lease.attributes);
    let patch = node.patch(&prefix, &wanted);
    node.annotations.extend(wanted.clone());
    assert_eq!(node.patch(&prefix, &wanted), None);
    if let Some(patch) = patch {
        assert!(
            serde_json::from_str::<serde_json::Value>(&patch).is_ok(),
            "{patch}"
        );
    }
    if overwrites == [None, None] {
        assert_eq!(node.lease(&network), Ok(Some(lease)));
    }
}

/// Compaction keeps the meaning and is stable; typed reading never panics.
pub fn go_json(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(once) = compact(&text) {
        assert_eq!(compact(&once).as_ref(), Ok(&once));
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        assert_eq!(value(&once), value(&text));
    }
    if let Ok(fields) = Fields::parse(&text) {
        let names: Vec<String> = fields.iter().map(|(name, _)| name.to_owned()).collect();
        for name in &names {
            let _ = (
                fields.u32(name),
                fields.i64(name),
                fields.bool(name),
                fields.string(name),
            );
            let _ = (
                fields.ip(name),
                fields.ipv4(name),
                fields.ipv6(name),
                fields.cidr(name),
            );
            let _ = fields
                .object(name)
                .map(|inner| inner.map(|inner| inner.iter().count()));
            assert!(fields.raw(name).is_some());
        }
    }
}

/// A config is refused, or its spaces hold together and a subnet can be allocated from it.
pub fn config(data: &[u8]) {
    let Ok(config) = NetworkConfig::parse(data) else {
        return;
    };
    assert!(config.families().count() > 0);
    assert!(!config.backend.kind.is_empty());
    for family in config.families() {
        let space = config.space(family).expect("a family in use has a space");
        assert!(
            space.min <= space.max
                && space.network.contains(&space.min)
                && space.network.contains(&space.max)
        );
        assert!(space.network.prefix_len() + 2 <= space.subnet_len && space.subnet_len + 2 <= family.bits());
    }
    let picks = |n: usize| n - 1;
    let first = choose(&config, &[], None, &mut { picks }).expect("an empty network has a free subnet");
    assert!(is_compatible(&config, &first));
    if let Ok(second) = choose(&config, &[first], Some(first), &mut { picks }) {
        assert!(is_compatible(&config, &second) && !second.overlaps(&first));
    }
}

/// Neither reader panics, and a repaired file is stable, says what it has to, and keeps the foreign lines.
pub fn subnet_env(data: &[u8]) {
    if let Ok(pods) = read_strict("f", data) {
        let nets = pods
            .networks
            .iter()
            .chain(&pods.networks6)
            .chain(&pods.subnet)
            .chain(&pods.subnet6);
        assert!(nets.into_iter().all(|net| net.trunc() == *net));
    }
    let text = String::from_utf8_lossy(data);
    let previous = read_previous(&text);
    assert!(previous.subnet.is_none_or(|net| net.trunc() == net));
    let ours = SubnetEnv {
        network: "10.42.0.0/16".parse().ok(),
        subnet: "10.42.7.0/24".parse().ok(),
        network6: None,
        subnet6: None,
        mtu: 1450,
        ipmasq: true,
    };
    let repaired = repair(&text, &ours);
    assert_eq!(repair(&repaired, &ours), repaired);
    let comments = |text: &str| {
        // A carriage return before the end is part of the end, also where the file ends without a line feed.
        text.split('\n')
            .filter(|line| line.starts_with('#'))
            .map(|line| line.trim_end_matches('\r').to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(comments(&repaired), comments(&text));
    if text.lines().all(|line| line.len() < 65_000) {
        let pods = read_strict("f", repaired.as_bytes()).expect("a repaired file is readable");
        assert_eq!(pods.subnet, "10.42.7.0/24".parse().ok());
        assert_eq!((pods.mtu, pods.ipmasq), (1450, true));
    }
}
