//! The configuration of host-local: everything under `ipam`, and the three ways to ask for an address.

use std::net::IpAddr;

use serde_json::Value;

use crate::args;
use crate::call::Call;
use crate::failure::Failure;
use crate::host_local::ranges::{RangeConfig, RangeSet};
use crate::json::{FieldError, JsonObject, parse_ip};
use crate::result::Route;
use crate::version;

/// Where reservations are when the configuration does not say.
pub const DATA_DIR: &str = "/var/lib/cni/networks";

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct HostLocalConfig {
    /// Network name, which names the folder of the reservations.
    pub network: String,
    /// Folder that holds one folder per network.
    pub data_dir: String,
    /// One address is taken of each.
    pub sets: Vec<RangeSet>,
    /// Routes for the result.
    pub routes: Vec<Route>,
    /// File to read DNS settings from; empty is none.
    pub resolv_conf: String,
    /// Addresses asked for, each once, in the order of asking.
    pub requested: Vec<IpAddr>,
}

impl HostLocalConfig {
    /// Reads as much of a DEL's configuration as can be read: what an ADD refuses keeps nothing from being released.
    ///
    /// # Errors
    ///
    /// As [`HostLocalConfig::load`], where there is not even an `ipam`.
    pub fn load_for_del(call: &Call) -> Result<HostLocalConfig, Failure> {
        HostLocalConfig::load(call).or_else(|refused| {
            let top = call.fields();
            let ipam = top.object("ipam").ok().filter(|ipam| ipam.map().is_some());
            let ipam = ipam.ok_or(refused)?;
            let given = ipam
                .string("dataDir")
                .ok()
                .flatten()
                .filter(|dir| !dir.is_empty());
            Ok(HostLocalConfig {
                network: call.name.clone(),
                data_dir: given.unwrap_or(DATA_DIR).to_owned(),
                sets: Vec::new(),
                routes: Vec::new(),
                resolv_conf: String::new(),
                requested: Vec::new(),
            })
        })
    }

    /// Reads the configuration of a call.
    ///
    /// # Errors
    ///
    /// The first field that is wrong, naming key and value.
    pub fn load(call: &Call) -> Result<HostLocalConfig, Failure> {
        let read = |e: FieldError| Failure::internal(e.to_string());
        let top = call.fields();
        let ipam = top.object("ipam").map_err(read)?;
        if ipam.map().is_none() {
            return Err(Failure::internal("IPAM config missing 'ipam' key"));
        }
        let runtime = top.object("runtimeConfig").map_err(read)?;
        let network_args = top
            .object("args")
            .and_then(|args| args.object("cni"))
            .map_err(read)?;

        let mut requested = Vec::new();
        if let Some(text) = args::value(&call.env.args, "IP")? {
            // Multus puts all of a pod's requests there, which Go's plugin refuses.
            for one in text.split(',') {
                let ip = parse_requested(one).map_err(|e| {
                    let pair = format!("IP={text}");
                    Failure::internal(format!("ARGS: error parsing value of pair {pair:?}: {e}"))
                });
                requested.extend(ip?);
            }
        }
        for asked in [&network_args, &runtime] {
            for (i, item) in asked.list("ips").map_err(read)?.iter().enumerate() {
                let wrong = || {
                    asked.wrong(
                        &format!("ips[{i}]"),
                        item,
                        "an address, with or without a prefix length",
                    )
                };
                let ip = item
                    .as_str()
                    .and_then(|text| parse_requested(text).ok().flatten());
                requested.push(ip.ok_or_else(wrong).map_err(read)?);
            }
        }
        let mut seen = Vec::with_capacity(requested.len());
        for ip in requested {
            if !seen.contains(&ip) {
                seen.push(ip);
            }
        }

        let mut sets = range_sets(&runtime, "ipRanges").map_err(read)?;
        let inline = range_config(&ipam).map_err(read)?;
        if inline.subnet.is_some() {
            sets.push(vec![inline]);
        }
        sets.extend(range_sets(&ipam, "ranges").map_err(read)?);
        let routes = ipam.objects("routes").map_err(read)?;
        let text = |name: &str| {
            ipam.string(name)
                .map(|t| t.unwrap_or_default().to_owned())
                .map_err(read)
        };
        Ok(HostLocalConfig {
            network: call.name.clone(),
            data_dir: Some(text("dataDir")?)
                .filter(|d| !d.is_empty())
                .unwrap_or_else(|| DATA_DIR.to_owned()),
            sets: check_sets(&sets, &call.version)?,
            routes: routes
                .iter()
                .map(Route::parse)
                .collect::<Result<_, _>>()
                .map_err(read)?,
            resolv_conf: text("resolvConf")?,
            requested: seen,
        })
    }
}

fn check_sets(configs: &[Vec<RangeConfig>], version: &str) -> Result<Vec<RangeSet>, Failure> {
    if configs.is_empty() {
        return Err(Failure::internal("no IP ranges specified"));
    }
    let mut sets: Vec<RangeSet> = Vec::with_capacity(configs.len());
    for (i, ranges) in configs.iter().enumerate() {
        let set =
            RangeSet::check(ranges).map_err(|e| Failure::internal(format!("invalid range set {i}: {e}")))?;
        sets.push(set);
    }
    let v4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if (v4 > 1 || sets.len() - v4 > 1) && version::parse(version).is_ok_and(|v| v < (0, 3, 0)) {
        return Err(Failure::internal(format!(
            "CNI version {version} does not support more than 1 address per family"
        )));
    }
    for (i, set) in sets.iter().enumerate() {
        if let Some(j) = sets.iter().skip(i + 1).position(|other| set.overlaps(other)) {
            return Err(Failure::internal(format!(
                "range set {i} overlaps with {}",
                i + 1 + j
            )));
        }
    }
    Ok(sets)
}

fn range_sets(object: &JsonObject<'_>, name: &str) -> Result<Vec<Vec<RangeConfig>>, FieldError> {
    let sets = object.list(name)?.iter().enumerate();
    sets.map(|(i, set)| {
        let place = format!("{name}[{i}]");
        let ranges = set
            .as_array()
            .ok_or_else(|| object.wrong(&place, set, "an array of ranges"))?;
        let ranges = ranges.iter().enumerate().map(|(j, range)| match range {
            Value::Object(map) => range_config(&JsonObject::at(map, &format!("{place}[{j}]"))),
            other => Err(object.wrong(&format!("{place}[{j}]"), other, "a range object")),
        });
        ranges.collect()
    })
    .collect()
}

fn range_config(object: &JsonObject<'_>) -> Result<RangeConfig, FieldError> {
    Ok(RangeConfig {
        subnet: object.cidr("subnet")?,
        start: object.ip("rangeStart")?,
        end: object.ip("rangeEnd")?,
        gateway: object.ip("gateway")?,
    })
}

/// An address with or without a prefix length; the empty text asks for nothing.
fn parse_requested(text: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip = match text.contains('/') {
        true => fabric::go_json::parse_cidr(text).map(|net| net.addr().to_canonical()),
        false => parse_ip(text),
    };
    ip.map(Some).ok_or_else(|| format!("invalid IP address {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Environment;

    fn load(version: &str, args: &str, rest: &str) -> Result<HostLocalConfig, String> {
        let stdin = format!(r#"{{"name":"n","cniVersion":"{version}"{rest}}}"#);
        let mut env = Environment {
            command: "ADD".into(),
            ..Environment::default()
        };
        env.args = args.to_owned();
        let call = Call::check(env, stdin.into_bytes()).map_err(|f| f.to_string())?;
        HostLocalConfig::load(&call).map_err(|f| f.to_string())
    }

    #[test]
    fn config_when_ranges_come_from_three_places_puts_runtime_first_then_inline() {
        let config = load(
            "1.0.0",
            "",
            r#","ipam":{"subnet":"10.1.0.0/24","ranges":[[{"subnet":"10.2.0.0/24"}]],"dataDir":""},
               "runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24","gateway":"10.0.0.254"}]]}"#,
        )
        .unwrap();
        let sets: Vec<String> = config.sets.iter().map(ToString::to_string).collect();
        assert_eq!(
            sets,
            [
                "10.0.0.1-10.0.0.254",
                "10.1.0.1-10.1.0.254",
                "10.2.0.1-10.2.0.254"
            ]
        );
        assert_eq!(config.data_dir, DATA_DIR);
    }

    #[test]
    fn config_when_addresses_are_asked_for_in_three_ways_collects_each_once() {
        let config = load(
            "1.0.0",
            "IgnoreUnknown=1;K=v;IP=10.0.0.9/24",
            r#","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}]]},"args":{"cni":{"ips":["10.0.0.5","fd00::5/64"]}},
               "runtimeConfig":{"ips":["10.0.0.9","::ffff:10.0.0.7"]}"#,
        )
        .unwrap();
        let asked: Vec<String> = config.requested.iter().map(ToString::to_string).collect();
        assert_eq!(asked, ["10.0.0.9", "10.0.0.5", "fd00::5", "10.0.0.7"]);
    }

    #[test]
    fn config_when_wrong_is_refused_in_gos_words() {
        let refused = |rest: &str| load("0.2.0", "", rest).unwrap_err();
        assert_eq!(refused(""), "IPAM config missing 'ipam' key");
        assert_eq!(refused(r#","ipam":{}"#), "no IP ranges specified");
        assert_eq!(
            refused(r#","ipam":{"ranges":[[{"subnet":"10.244.7.1/32"}]]}"#),
            "invalid range set 0: Network 10.244.7.1/32 too small to allocate from"
        );
        assert_eq!(
            refused(r#","ipam":{"ranges":[[]]}"#),
            "invalid range set 0: empty range set"
        );
        let two = r#","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/24"}]]}"#;
        assert_eq!(
            refused(two),
            "CNI version 0.2.0 does not support more than 1 address per family"
        );
        assert!(load("0.3.0", "", two).is_ok());
        let same = r#","ipam":{"ranges":[[{"subnet":"fd00::/64"}],[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.0/25"}]]}"#;
        assert_eq!(
            load("1.0.0", "", same).unwrap_err(),
            "range set 1 overlaps with 2"
        );
        assert!(refused(r#","ipam":{"ranges":[[5]]}"#).contains("ranges[0][0] is 5"));
        let ok = r#","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}]]}"#;
        assert!(
            load("1.0.0", "IP=nope", ok)
                .unwrap_err()
                .contains("invalid IP address nope")
        );
        assert_eq!(
            load("1.0.0", "MAC=x", ok).unwrap_err(),
            "ARGS: unknown args [\"MAC=x\"]"
        );
    }

    #[test]
    fn config_when_an_address_asked_for_is_none_is_refused_where_it_stands() {
        let ok = r#","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}]]}"#;
        let requested =
            |args: &str, more: &str| load("1.0.0", args, &format!("{ok}{more}")).map(|c| c.requested);
        assert_eq!(requested("IP=,", "").unwrap(), Vec::<IpAddr>::new());
        assert_eq!(requested("IP=10.0.0.9,fd00::1", "").unwrap().len(), 2);
        for more in [
            r#","runtimeConfig":{"ips":[""]}"#,
            r#","runtimeConfig":{"ips":[5]}"#,
            r#","args":{"cni":{"ips":["x"]}}"#,
        ] {
            let error = requested("", more).unwrap_err();
            assert!(
                error.contains("ips[0] is ") && error.contains("an address, with or without a prefix length"),
                "{error}"
            );
        }
        assert!(requested("IP=10.0.0.1/33", "").is_err());
    }

    #[test]
    fn config_when_two_sets_of_a_family_are_asked_of_an_old_version_is_refused_for_either_family() {
        let sets = |version: &str, a: &str, b: &str| {
            load(
                version,
                "",
                &format!(r#","ipam":{{"ranges":[[{{"subnet":"{a}"}}],[{{"subnet":"{b}"}}]]}}"#),
            )
        };
        assert!(sets("0.2.0", "10.0.0.0/24", "fd00::/64").is_ok());
        for (a, b) in [("10.0.0.0/24", "10.1.0.0/24"), ("fd00::/64", "fd01::/64")] {
            assert!(
                sets("0.2.0", a, b)
                    .unwrap_err()
                    .contains("0.2.0 does not support more"),
                "{a}"
            );
            assert!(sets("0.3.0", a, b).is_ok());
        }
        let apart = r#","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.1.0.0/25"}]]}"#;
        assert_eq!(
            load("1.0.0", "", apart).unwrap_err(),
            "range set 1 overlaps with 2"
        );
    }

    #[test]
    fn config_of_a_del_when_it_would_be_refused_is_its_folder() {
        let call = |rest: &str| {
            let stdin = format!(r#"{{"name":"n","cniVersion":"1.0.0"{rest}}}"#);
            let env = Environment {
                command: "DEL".into(),
                ..Environment::default()
            };
            Call::check(env, stdin.into_bytes()).unwrap()
        };
        let del = |rest: &str| HostLocalConfig::load_for_del(&call(rest));
        let config = del(r#","ipam":{"dataDir":"/d","ranges":5}"#).unwrap();
        assert_eq!((config.network.as_str(), config.data_dir.as_str()), ("n", "/d"));
        assert!(config.sets.is_empty());
        assert_eq!(
            del(r#","ipam":{"dataDir":"","ranges":5}"#).unwrap().data_dir,
            DATA_DIR
        );
        assert_eq!(del("").unwrap_err().msg, "IPAM config missing 'ipam' key");
        let whole = del(r#","ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.0.0.0/24"}]],"resolvConf":"/r","routes":[{"dst":"10.0.0.0/8"}]}"#).unwrap();
        assert_eq!(
            (whole.sets.len(), whole.resolv_conf.as_str(), whole.routes.len()),
            (1, "/r", 1)
        );
    }
}
