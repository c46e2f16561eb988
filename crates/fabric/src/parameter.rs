//! Kernel parameters of our devices that safety rests on.
//!
//! Whoever reaches a tunnel's UDP port can send what comes out of the tunnel device as if it came from a peer. A router's
//! advertisement among it would give the host addresses, and a default route to nowhere.

use std::fmt;

use crate::object::LinkName;

/// A parameter of a device of ours, below `net/ipv6/conf/<link>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parameter {
    /// The device.
    pub link: LinkName,
    /// Its name, such as `accept_ra`.
    pub name: &'static str,
}

/// Whether router advertisements are taken: 0 never, 1 while the device does not forward, 2 always.
const ACCEPT_RA: &str = "accept_ra";
/// Whether packets that come in by the device are forwarded.
const FORWARDING: &str = "forwarding";
/// The device takes and sends no IPv6.
const DISABLE_IPV6: &str = "disable_ipv6";

impl Parameter {
    /// Those of these devices.
    pub fn of(links: &[LinkName]) -> Vec<Parameter> {
        let of = |link: &LinkName| Parameter {
            link: *link,
            name: ACCEPT_RA,
        };
        links.iter().map(of).collect()
    }

    /// What it has to be.
    pub fn wanted(&self) -> &'static str {
        "0"
    }

    /// Where it stands, below `/proc/sys`.
    pub fn path(&self) -> String {
        self.beside(self.name)
    }

    fn beside(&self, name: &str) -> String {
        format!("net/ipv6/conf/{}/{name}", self.link)
    }

    /// What it opens as it is.
    pub fn danger(&self) -> &'static str {
        "whoever reaches the tunnel's port can give this host an IPv6 default route"
    }

    /// Whether it is wrong to no effect, other parameters being what they are: `value` reads one by its path, `None` where
    /// there is none.
    pub fn is_harmless(&self, value: impl Fn(&str) -> Option<String>) -> bool {
        let is = |name: &str, wanted: &str| value(&self.beside(name)).as_deref() == Some(wanted);
        let forwards = value(&self.beside(FORWARDING)).is_some_and(|forwarding| forwarding != "0");
        is(DISABLE_IPV6, "1") || is(ACCEPT_RA, "0") || forwards && !is(ACCEPT_RA, "2")
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sysctl {}", self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_when_of_a_device_then_its_path_has_the_name_as_it_is() {
        let links = ["flannel.1", "flannel-v6.1"].map(|name| LinkName::new(name).unwrap());
        let all: Vec<String> = Parameter::of(&links).iter().map(ToString::to_string).collect();
        assert_eq!(
            all,
            [
                "sysctl net/ipv6/conf/flannel.1/accept_ra",
                "sysctl net/ipv6/conf/flannel-v6.1/accept_ra"
            ]
        );
        assert!(
            Parameter::of(&links)
                .iter()
                .all(|parameter| parameter.wanted() == "0")
        );
        assert!(Parameter::of(&links[..1])[0].danger().contains("default route"));
    }

    /// As `ipv6_accept_ra` in the kernel's net/ipv6/ndisc.c decides.
    #[test]
    fn harmless_when_the_kernel_takes_no_advertisement_and_only_then() {
        let parameter = Parameter::of(&[LinkName::new("flannel.1").unwrap()])[0];
        // accept_ra, forwarding, disable_ipv6 and whether nothing is taken.
        let cases = [
            (Some("0"), Some("0"), Some("0"), true),
            (Some("0"), Some("1"), Some("0"), true),
            (Some("1"), Some("0"), Some("0"), false),
            (Some("1"), Some("1"), Some("0"), true),
            (Some("2"), Some("1"), Some("0"), false),
            (Some("2"), Some("0"), Some("0"), false),
            (Some("2"), Some("0"), Some("1"), true),
            (Some("1"), None, None, false),
            (None, None, None, false),
        ];
        for (accept_ra, forwarding, disabled, expected) in cases {
            let value = |path: &str| {
                let name = path.strip_prefix("net/ipv6/conf/flannel.1/").unwrap();
                let value = match name {
                    "accept_ra" => accept_ra,
                    "forwarding" => forwarding,
                    "disable_ipv6" => disabled,
                    other => panic!("{other}"),
                };
                value.map(ToOwned::to_owned)
            };
            assert_eq!(
                parameter.is_harmless(value),
                expected,
                "{accept_ra:?} {forwarding:?} {disabled:?}"
            );
        }
    }
}
