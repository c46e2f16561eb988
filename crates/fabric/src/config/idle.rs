//! What a network config holds without effect: accepted, since Go flannel accepts it, and named, since nobody writes it for that.

use ipnet::IpNet;

use super::NetworkConfig;
use crate::go_json::{Fields, equal_fold, parse_cidr, shorten};
use crate::object::Family;
use crate::plan;

/// A key of the config, and the family that it is about.
const KEYS: [(&str, Option<Family>); 12] = [
    ("EnableIPv4", None),
    ("EnableIPv6", None),
    ("EnableNFTables", None),
    ("Network", Some(Family::V4)),
    ("SubnetLen", Some(Family::V4)),
    ("SubnetMin", Some(Family::V4)),
    ("SubnetMax", Some(Family::V4)),
    ("IPv6Network", Some(Family::V6)),
    ("IPv6SubnetLen", Some(Family::V6)),
    ("IPv6SubnetMin", Some(Family::V6)),
    ("IPv6SubnetMax", Some(Family::V6)),
    ("Backend", None),
];

/// Keys of the config that do nothing, one sentence each: unknown ones, those of another backend or of a family that is off, host
/// bits, and all but the last of equal names. `network` is what the text was understood as.
pub fn without_effect(json: &[u8], network: &NetworkConfig) -> Vec<String> {
    let text = String::from_utf8_lossy(json);
    let Ok(fields) = Fields::parse(&text) else {
        return Vec::new();
    };
    let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
    let mut said = unknown(&fields, "", &names, "a key of the network config");
    for (name, family) in KEYS {
        let Some(family) = family else { continue };
        if network.space(family).is_none() && fields.get(name).is_some() {
            let switch = match family {
                Family::V4 => "EnableIPv4 is false",
                Family::V6 => "EnableIPv6 is not true",
            };
            said.push(format!("{name} has no effect: {switch}"));
        }
    }
    for (name, family) in [("Network", Family::V4), ("IPv6Network", Family::V6)] {
        let written = fields.string(name).ok().flatten();
        if let (Some(written), Some(space)) = (written, network.space(family)) {
            let bits = parse_cidr(&written).filter(|net| net.addr() != IpNet::trunc(net).addr());
            if bits.is_some() {
                let network = space.network;
                said.push(format!(
                    "{name} is {written}: its host bits have no effect, the network is {network}"
                ));
            }
        }
    }
    if let (Ok(inner), Some(keys)) = (network.backend.fields(), plan::keys(&network.backend.kind)) {
        let kind = format!("a key of backend {}", network.backend.kind);
        said.extend(unknown(&inner, "Backend.", keys, &kind));
    }
    said
}

/// Names that are none of the `known`, and names that come again.
fn unknown(fields: &Fields<'_>, inside: &str, known: &[&str], what: &str) -> Vec<String> {
    let mut said = Vec::new();
    let names: Vec<&str> = fields.iter().map(|(name, _)| name).collect();
    for (index, name) in names.iter().enumerate() {
        let shown = shorten(&name.escape_debug().to_string());
        let sentence = if !known.iter().any(|known| equal_fold(known, name)) {
            format!(
                "{inside}{shown} has no effect: it is not {what} ({})",
                known.join(", ")
            )
        } else if names.iter().skip(index + 1).any(|later| equal_fold(later, name)) {
            format!("{inside}{shown} has no effect: it comes again, and the last counts")
        } else {
            continue;
        };
        if !said.contains(&sentence) {
            said.push(sentence);
        }
    }
    // A registry's value is anybody's: a flood of keys is one line.
    let more = said.len().saturating_sub(MOST);
    if more > 0 {
        said.truncate(MOST);
        said.push(format!("{more} more keys have no effect"));
    }
    said
}

/// So many keys are named at each level.
const MOST: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn said(json: &str) -> Vec<String> {
        without_effect(json.as_bytes(), &NetworkConfig::parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn without_effect_when_every_key_counts_says_nothing() {
        for json in [
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan"}}"#,
            r#"{"network":"10.0.0.0/16","SubnetLen":24,"SubnetMin":"10.0.1.0","SubnetMax":"10.0.9.0","EnableNFTables":true,"EnableIPv4":true,
                "EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:0:0:1::","IPv6SubnetMax":"fd00:0:0:9::",
                "Backend":{"Type":"VXLAN","vni":7,"Port":1,"MTU":1400,"GBP":false,"Learning":false,"DirectRouting":true,"MacPrefix":"0E-2A"}}"#,
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw"}}"#,
            r#"{"Network":"10.0.0.0/16","IPv6SubnetLen":null,"Backend":{"Type":"ipip","DirectRouting":true}}"#,
            r#"{"Network":"10.0.0.0/16"}"#,
        ] {
            assert_eq!(said(json), Vec::<String>::new(), "{json}");
        }
    }

    #[test]
    fn without_effect_when_a_key_does_nothing_names_it_and_why() {
        for (fields, expected) in [
            (
                r#""Network":"10.1.2.3/16""#,
                "Network is 10.1.2.3/16: its host bits have no effect, the network is 10.1.0.0/16",
            ),
            (
                r#""EnableIPv6":true,"IPv6Network":"fd00::1/48","Network":"10.0.0.0/16""#,
                "IPv6Network is fd00::1/48: its host bits have no effect, the network is fd00::/48",
            ),
            (
                r#""Network":"10.0.0.0/16","IPv6Network":"fd00::/48""#,
                "IPv6Network has no effect: EnableIPv6 is not true",
            ),
            (
                r#""Network":"10.0.0.0/16","IPv6SubnetLen":64"#,
                "IPv6SubnetLen has no effect: EnableIPv6 is not true",
            ),
            (
                r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Network":"10.0.0.0/16""#,
                "Network has no effect: EnableIPv4 is false",
            ),
            (
                r#""SubnetLen":20,"Network":"10.0.0.0/16","subnetlen":24"#,
                "SubnetLen has no effect: it comes again, and the last counts",
            ),
        ] {
            assert_eq!(said(&format!("{{{fields}}}")), [expected]);
        }
        for (backend, name) in [
            (r#""Type":"vxlan","Prot":1"#, "Backend.Prot"),
            (r#""Type":"host-gw","VNI":1"#, "Backend.VNI"),
            (
                r#""Type":"host-gw","DirectRouting":true"#,
                "Backend.DirectRouting",
            ),
            (r#""Type":"ipip","MTU":1400"#, "Backend.MTU"),
            (r#""Type":"alloc","Port":1"#, "Backend.Port"),
        ] {
            let said = said(&format!(r#"{{"Network":"10.0.0.0/16","Backend":{{{backend}}}}}"#));
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(
                said[0].starts_with(&format!("{name} has no effect: it is not a key of backend ")),
                "{said:?}"
            );
            assert!(said[0].contains("Type"), "{said:?}");
        }
    }

    #[test]
    fn without_effect_when_keys_are_a_flood_or_unprintable_stays_short() {
        let keys: Vec<String> = (0..5000).map(|n| format!(r#""k{n}\u001b[2J":1"#)).collect();
        let said = said(&format!(r#"{{"Network":"10.0.0.0/16",{}}}"#, keys.join(",")));
        assert_eq!(said.len(), MOST + 1);
        assert_eq!(said[MOST], "4990 more keys have no effect");
        assert!(
            said.iter()
                .all(|line| line.len() < 400 && !line.contains('\u{1b}')),
            "{said:?}"
        );
    }
}
