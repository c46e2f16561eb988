//! What Go flannel left in the registry, in subnet.env and in the firewall, read and written by us.
//!
//! `golden/<case>/` was captured from v0.28.9 (and v0.11.0 where the name says so) on host a of two: `registry.txt` is key and value
//! on alternating lines. Differences are those the project decided on, and each is spelt out here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use fabric::alloc::is_compatible;
use fabric::config::NetworkConfig;
use fabric::lease::{Lease, Snapshot, snapshot_from};
use fabric::object::Family;
use fabric::rules::{Table, Wish, iptables, nft};
use fabric::subnet_env::{SubnetEnv, read_previous, read_strict, repair};

const PREFIX: &str = "/coreos.com/network/";

struct Case {
    name: String,
    folder: PathBuf,
}

impl Case {
    fn all() -> Vec<Case> {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut cases: Vec<Case> = fs::read_dir(golden)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| Case {
                name: entry.file_name().into_string().unwrap(),
                folder: entry.path(),
            })
            .collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(cases.len() >= 13, "golden folders are missing");
        cases
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(file)).ok()
    }

    fn registry(&self) -> BTreeMap<String, String> {
        let text = self.read("registry.txt").unwrap();
        let lines: Vec<&str> = text.lines().collect();
        lines
            .chunks(2)
            .map(|pair| {
                (
                    pair[0].strip_prefix(PREFIX).unwrap().to_owned(),
                    pair[1].to_owned(),
                )
            })
            .collect()
    }

    fn config(&self) -> NetworkConfig {
        NetworkConfig::parse(self.registry()["config"].as_bytes()).unwrap()
    }

    fn entries(&self) -> BTreeMap<String, String> {
        let registry = self.registry().into_iter();
        registry
            .filter_map(|(key, value)| Some((key.strip_prefix("subnets/")?.to_owned(), value)))
            .collect()
    }

    fn snapshot(&self) -> Snapshot {
        snapshot_from(1, self.entries().into_iter().map(|(key, value)| (key, value, 1)))
    }

    /// The lease of the captured host: the one whose subnet subnet.env names.
    fn own(&self) -> Lease {
        let env = self.read("a.subnet.env").unwrap();
        let previous = read_previous(&env);
        let own = |lease: &&Lease| lease.subnet.v4 == previous.subnet && lease.subnet.v6 == previous.subnet6;
        self.snapshot().leases.values().find(own).unwrap().clone()
    }

    fn wish(&self, family: Family) -> Option<Wish> {
        let network = self.config().space(family)?.network;
        Some(Wish::new(
            network,
            self.own().subnet.of(family)?,
            true,
            true,
            true,
            &[],
        ))
    }
}

#[test]
fn registry_when_read_and_written_again_gives_the_same_bytes() {
    for case in Case::all() {
        let config = case.config();
        let snapshot = case.snapshot();
        assert!(
            snapshot.rejected.is_empty(),
            "{}: {:?}",
            case.name,
            snapshot.rejected
        );
        let entries = case.entries();
        assert_eq!(snapshot.leases.len(), entries.len(), "{}", case.name);
        for lease in snapshot.leases.values() {
            let value = &entries[&lease.subnet.to_string()];
            // v0.11 knew no IPv6; read by us and written again the value gains the field.
            let ip = format!("\"{}\"", lease.attributes.public_ip);
            let expected = match value.contains("PublicIPv6") {
                true => value.clone(),
                false => value.replacen(&ip, &format!("{ip},\"PublicIPv6\":null"), 1),
            };
            assert_eq!(lease.attributes.to_json(), expected, "{}", case.name);
            assert!(
                is_compatible(&config, &lease.subnet),
                "{}: {}",
                case.name,
                lease.subnet
            );
        }
    }
}

#[test]
fn subnet_env_when_rendered_from_config_and_lease_gives_the_same_bytes() {
    for case in Case::all() {
        let golden = case.read("a.subnet.env").unwrap();
        let (config, own) = (case.config(), case.own());
        let pods = read_strict("a.subnet.env", golden.as_bytes()).unwrap();
        let previous = read_previous(&golden);
        assert_eq!(previous.problems, [""; 0], "{}", case.name);
        assert_eq!(
            config.v4.map(|space| space.network),
            previous.network.map(Into::into),
            "{}",
            case.name
        );
        let env = SubnetEnv {
            network: previous.network,
            subnet: own.subnet.v4,
            network6: previous.network6,
            subnet6: own.subnet.v6,
            mtu: pods.mtu,
            ipmasq: pods.ipmasq,
        };
        assert_eq!(env.render(), golden, "{}", case.name);
        assert_eq!(repair(&golden, &env), golden, "{}", case.name);
    }
}

#[test]
fn iptables_when_saved_on_a_host_of_the_reference_are_right_already() {
    let mut checked = 0;
    for case in Case::all().iter().filter(|case| !case.name.contains("v0.11")) {
        for (family, file) in [
            (Family::V4, "a.iptables-save.txt"),
            (Family::V6, "a.ip6tables-save.txt"),
        ] {
            let (Some(saved), Some(wish)) = (case.read(file), case.wish(family)) else {
                continue;
            };
            for table in Table::BOTH {
                assert_eq!(
                    iptables::merge(table, &saved, &wish),
                    Ok(None),
                    "{} {table:?}",
                    case.name
                );
                for line in iptables::lines(table, &wish) {
                    assert!(saved.lines().any(|saved| saved == line), "{}: {line}", case.name);
                }
                checked += 1;
            }
        }
    }
    assert!(checked >= 6);
}

#[test]
fn nft_when_listed_on_a_host_of_the_reference_wants_its_two_defects_mended_and_no_more() {
    for case in Case::all() {
        let Some(listing) = case.read("a.nft.txt") else {
            continue;
        };
        for wish in Family::BOTH.into_iter().filter_map(|family| case.wish(family)) {
            let ip = if wish.family == Family::V4 { "ip" } else { "ip6" };
            let [network, subnet] = [wish.networks[0], case.own().subnet.of(wish.family).unwrap()];
            let mended = listing
                .replace("meta mark 0x00004000", "meta mark & 0x00004000 == 0x00004000")
                .replace(
                    &format!("{ip} saddr != {subnet} {ip} daddr {network} return"),
                    &format!("{ip} saddr != {network} {ip} daddr {subnet} return"),
                );
            assert_eq!(nft::merge(&mended, &wish, true), None, "{}", case.name);
            let script = nft::merge(&listing, &wish, true).unwrap();
            assert!(!script.contains("forward"), "{}: {script}", case.name);
        }
    }
}
