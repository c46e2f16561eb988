//! Interface selection against a real kernel, in a network namespace of its own. Needs root and iproute2.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use flanneld::interface::{Families, Inventory, Selected, Wish, inventory, select};
use kernel::rtnl::Rtnl;

/// A network namespace that goes with the test.
struct Host {
    name: String,
}

impl Host {
    fn new(name: &str) -> Host {
        let name = format!("fe-{name}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        Host { name }
    }

    /// `ip` inside, arguments separated by blanks.
    fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split(' '));
        ip(&all)
    }

    fn rtnl(&self) -> Rtnl {
        let netns = File::open(format!("/run/netns/{}", self.name)).unwrap();
        Rtnl::open_in(netns.as_fd()).unwrap()
    }

    fn choose(&self, wish: &Wish, v4: bool, v6: bool) -> Selected {
        let mut rtnl = self.rtnl();
        let found = Inventory::collect(&mut rtnl).unwrap();
        select(wish, Families { v4, v6 }, &found, |to| {
            inventory::reach(&mut rtnl, to)
        })
        .unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn two_links(name: &str) -> Host {
    let host = Host::new(name);
    for line in [
        "link set lo up",
        "link add up0 mtu 1400 type veth peer name end0",
        "link add up1 type veth peer name end1",
        "link set end0 up",
        "link set end1 up",
        "link set up0 up",
        "link set up1 up",
        "addr add 192.0.2.10/24 dev up0",
        "addr add 192.0.2.11/24 dev up0",
        "addr add 2001:db8::1/64 dev up0 nodad preferred_lft 0",
        "addr add 2001:db8::2/64 dev up0 nodad",
        "addr add 198.51.100.5/24 dev up1",
        "addr add fd00::5/64 dev up1 nodad",
        "route add default via 198.51.100.1 dev up1 metric 200",
        "route add default via 192.0.2.1 dev up0 metric 100",
        "route add default via 2001:db8::fe dev up0",
        "route add 203.0.113.0/24 via 198.51.100.1 dev up1 src 198.51.100.5",
        "route add 2001:db8:9::/48 via fd00::1 dev up1 src fd00::5",
        "route add unreachable 203.0.113.99/32",
    ] {
        host.ip(line);
    }
    host
}

#[test]
fn select_when_the_kernel_has_two_links_agrees_with_ip() {
    let host = two_links("two");
    let selected = host.choose(&Wish::default(), true, true);
    let shown: serde_json::Value = serde_json::from_str(&host.ip("-j link show dev up0")).unwrap();
    assert_eq!(shown[0]["ifindex"], selected.index);
    assert_eq!(shown[0]["mtu"], selected.underlay.mtu);
    assert_eq!(selected.underlay.link.as_str(), "up0");
    assert_eq!(
        selected.underlay.address4,
        "192.0.2.10".parse().ok(),
        "the second of the prefix is secondary"
    );
    assert_eq!(
        selected.underlay.address6,
        "2001:db8::2".parse().ok(),
        "the first is deprecated"
    );

    let by_regex = Wish {
        iface_regex: vec!["^198\\.".into()],
        ..Wish::default()
    };
    assert_eq!(host.choose(&by_regex, true, false).underlay.link.as_str(), "up1");
    let by_address = Wish {
        public_ip: "198.51.100.5".parse().ok(),
        ..Wish::default()
    };
    assert_eq!(
        host.choose(&by_address, true, false).underlay.link.as_str(),
        "up1"
    );
    let nat = Wish {
        public_ip: "203.0.113.200".parse().ok(),
        ..Wish::default()
    };
    let selected = host.choose(&nat, true, false);
    assert_eq!(
        (selected.underlay.link.as_str(), selected.warnings.len()),
        ("up0", 1)
    );
}

#[test]
fn reach_when_the_kernel_routes_it_gives_link_and_source() {
    let host = two_links("reach");
    for (to, v4) in [("203.0.113.7", true), ("2001:db8:9::7", false)] {
        let wish = Wish {
            can_reach: to.parse().ok(),
            ..Wish::default()
        };
        let selected = host.choose(&wish, v4, !v4);
        let shown: serde_json::Value = serde_json::from_str(&host.ip(&format!("-j route get {to}"))).unwrap();
        assert_eq!(shown[0]["dev"], selected.underlay.link.as_str());
        let address = selected.underlay.address4.map_or_else(
            || selected.underlay.address6.unwrap().to_string(),
            |ip| ip.to_string(),
        );
        assert_eq!(shown[0]["prefsrc"], address);
    }
    let mut rtnl = host.rtnl();
    let found = Inventory::collect(&mut rtnl).unwrap();
    let wish = Wish {
        can_reach: "203.0.113.99".parse().ok(),
        ..Wish::default()
    };
    let refused = select(&wish, Families { v4: true, v6: false }, &found, |to| {
        inventory::reach(&mut rtnl, to)
    });
    assert!(
        refused.unwrap_err().to_string().contains("no route"),
        "an unreachable route leads nowhere"
    );
}

#[test]
fn select_when_a_link_is_named_by_a_further_name_or_as_ip_prints_it_finds_it() {
    let host = Host::new("names");
    for line in [
        "link add up0 type veth peer name end0",
        "link property add dev up0 altname enp3s0",
        "link set end0 up",
        "link set up0 up",
        "addr add 192.0.2.10/24 dev up0",
        "addr add 198.51.100.5/24 dev end0",
    ] {
        host.ip(line);
    }
    let printed = host.ip("-o link show dev end0");
    let printed = printed.split(": ").nth(1).unwrap();
    assert_eq!(printed, "end0@up0");
    for (name, link) in [("enp3s0", "up0"), (printed, "end0")] {
        let wish = Wish {
            iface: vec![name.to_owned()],
            ..Wish::default()
        };
        assert_eq!(host.choose(&wish, true, false).underlay.link.as_str(), link);
    }
}

#[test]
fn inventory_when_the_namespace_is_empty_leads_to_a_clear_error() {
    let host = Host::new("bare");
    let mut rtnl = host.rtnl();
    let found = Inventory::collect(&mut rtnl).unwrap();
    let families = Families { v4: true, v6: true };
    let error = select(&Wish::default(), families, &found, |to| {
        inventory::reach(&mut rtnl, to)
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "no interface to use: there is no default route; there is: no interface with an address, and 1 more"
    );
}
