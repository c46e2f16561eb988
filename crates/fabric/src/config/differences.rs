//! In what two network configs differ, for people.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{NetworkConfig, RawBackend, Space};
use crate::go_json::{equal_fold, shorten};
use crate::object::Family;

/// Keys that are named, at most.
const MOST_NAMED: usize = 8;

/// What is another in a network config than it was before, one phrase each: `Network was 10.1.0.0/16, is 10.0.0.0/8`. Of the backend's
/// own keys only the names are said, since some hold secrets. Nothing when only the writing differs.
pub fn differences(before: &NetworkConfig, now: &NetworkConfig) -> Vec<String> {
    let mut said = Vec::new();
    for family in Family::BOTH {
        match (before.space(family), now.space(family)) {
            (Some(before), Some(now)) => said.extend(of_space(family, before, now)),
            (None, Some(now)) => said.push(format!("{family} is on with {}", now.network)),
            (Some(_), None) => said.push(format!("{family} is off")),
            (None, None) => {}
        }
    }
    if before.nftables != now.nftables {
        said.push(was_is("EnableNFTables", before.nftables, now.nftables));
    }
    said.extend(of_backend(&before.backend, &now.backend));
    said
}

fn was_is(field: &str, before: impl std::fmt::Display, now: impl std::fmt::Display) -> String {
    format!("{field} was {before}, is {now}")
}

fn of_space(family: Family, before: &Space, now: &Space) -> Vec<String> {
    let name = |field: &str| match family {
        Family::V4 => field.to_owned(),
        Family::V6 => format!("IPv6{field}"),
    };
    let mut said = Vec::new();
    if before.network != now.network {
        said.push(was_is(&name("Network"), before.network, now.network));
    }
    if before.subnet_len != now.subnet_len {
        said.push(was_is(&name("SubnetLen"), before.subnet_len, now.subnet_len));
    }
    for (field, before, now) in [
        ("SubnetMin", before.min, now.min),
        ("SubnetMax", before.max, now.max),
    ] {
        if before != now {
            said.push(was_is(&name(field), before, now));
        }
    }
    said
}

fn of_backend(before: &RawBackend, now: &RawBackend) -> Option<String> {
    if before.kind != now.kind {
        return Some(was_is("Backend.Type", &before.kind, &now.kind));
    }
    let keys = |backend: &RawBackend| -> BTreeMap<String, (String, Value)> {
        let read: Result<BTreeMap<String, Value>, _> = serde_json::from_str(&backend.json);
        // Names count whatever their case; a key is called as it is written.
        let mut keys = BTreeMap::new();
        for (name, value) in read.unwrap_or_default() {
            if !equal_fold(&name, "Type") {
                keys.insert(name.to_lowercase(), (name, value));
            }
        }
        keys
    };
    let (before, now) = (keys(before), keys(now));
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let others: Vec<String> = names
        .into_iter()
        .filter(|name| before.get(*name).map(|key| &key.1) != now.get(*name).map(|key| &key.1))
        .filter_map(|name| now.get(name).or_else(|| before.get(name)))
        .map(|(name, _)| format!("Backend.{}", shorten(name)))
        .collect();
    match others.as_slice() {
        [] => None,
        [one] => Some(format!("{one} is another")),
        few if few.len() <= MOST_NAMED => Some(format!("{} are others", few.join(", "))),
        many => Some(format!("{} keys of Backend are others", many.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differ(before: &str, now: &str) -> Vec<String> {
        let read = |text: &str| NetworkConfig::parse(text.as_bytes()).unwrap();
        differences(&read(before), &read(now))
    }

    #[test]
    fn differences_when_only_the_writing_is_another_then_none() {
        let before = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#;
        let now = r#"{ "Network": "10.1.0.0/16", "SubnetLen": 24, "Backend": { "port": 8472, "vni": 1, "Type": "VXLAN" } }"#;
        assert_eq!(differ(before, now), [""; 0]);
    }

    #[test]
    fn differences_when_there_are_some_then_each_is_named_and_no_secret_shown() {
        for (before, now, said) in [
            (
                r#"{"Network":"10.1.0.0/16"}"#,
                r#"{"Network":"10.0.0.0/8"}"#,
                vec![
                    "Network was 10.1.0.0/16, is 10.0.0.0/8",
                    "SubnetMin was 10.1.1.0, is 10.0.1.0",
                    "SubnetMax was 10.1.255.0, is 10.255.255.0",
                ],
            ),
            (
                r#"{"Network":"10.1.0.0/16"}"#,
                r#"{"Network":"10.1.0.0/16","SubnetMax":"10.1.9.0","EnableNFTables":true}"#,
                vec![
                    "SubnetMax was 10.1.255.0, is 10.1.9.0",
                    "EnableNFTables was false, is true",
                ],
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"wireguard","PSK":"a","Port":1}}"#,
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"wireguard","PSK":"b"}}"#,
                vec!["Backend.Port, Backend.PSK are others"],
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#,
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#,
                vec!["Backend.Type was vxlan, is host-gw"],
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#,
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan","VNI":3}}"#,
                vec![
                    "IPv4 is off",
                    "IPv6 is on with fd00::/48",
                    "Backend.VNI is another",
                ],
            ),
        ] {
            assert_eq!(differ(before, now), said, "{before} {now}");
        }
    }

    #[test]
    fn differences_when_of_ipv6_then_the_fields_are_its_own() {
        let config = |net: &str, len: u8| {
            format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{net}","IPv6SubnetLen":{len}}}"#)
        };
        let said = differ(&config("fd00::/48", 64), &config("fd00::/48", 80));
        assert_eq!(said.first().unwrap(), "IPv6SubnetLen was 64, is 80");
    }
}
