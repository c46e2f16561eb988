//! Which of a link's addresses to use.

use std::cmp::Ordering;
use std::net::IpAddr;

use fabric::object::Family;

/// `IFA_F_TEMPORARY` of IPv6; the same bit is `IFA_F_SECONDARY` of IPv4. Either is a second choice.
pub const TEMPORARY: u32 = 0x01;
/// `IFA_F_DADFAILED`: another host has the address.
pub const DUPLICATE: u32 = 0x08;
/// `IFA_F_DEPRECATED`.
pub const DEPRECATED: u32 = 0x20;
/// `IFA_F_PERMANENT`: set by hand, not leased or made up.
pub const PERMANENT: u32 = 0x80;

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressInfo {
    /// The address.
    pub ip: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// `IFA_F_*`.
    pub flags: u32,
    /// `RT_SCOPE_*`.
    pub scope: u8,
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// A host's own address as seen by other hosts: unicast, not loopback, not link-local. Private ranges count.
fn is_global(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast || is_link_local(ip))
}

/// The addresses of a family that other hosts may use, best first: global before link-local, then permanent, then not
/// temporary; among equals in the kernel's order.
pub fn usable(addresses: &[AddressInfo], family: Family) -> Vec<IpAddr> {
    let mut fit: Vec<&AddressInfo> = addresses
        .iter()
        .filter(|a| Family::of(a.ip) == family)
        .filter(|a| is_global(a.ip) || is_link_local(a.ip))
        .filter(|a| a.flags & (DEPRECATED | DUPLICATE) == 0)
        .collect();
    // A stable sort: with an unstable one the advertised address, and with it the lease, could change between two starts.
    fit.sort_by(|a, b| preference(a, b));
    fit.iter().map(|a| a.ip).collect()
}

/// What keeps other hosts from using an address; `None` where nothing does.
pub fn flaw(address: &AddressInfo) -> Option<&'static str> {
    let is = |flag| address.flags & flag != 0;
    if !is_global(address.ip) && !is_link_local(address.ip) {
        Some("no address of a host")
    } else if is(DUPLICATE) {
        Some("another host's too")
    } else if is(DEPRECATED) {
        Some("deprecated")
    } else {
        None
    }
}

fn preference(a: &AddressInfo, b: &AddressInfo) -> Ordering {
    let rank = |a: &AddressInfo| {
        (
            is_link_local(a.ip),
            a.flags & PERMANENT == 0,
            a.flags & TEMPORARY != 0,
        )
    };
    rank(a).cmp(&rank(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str, flags: u32) -> AddressInfo {
        AddressInfo {
            ip: ip.parse().unwrap(),
            prefix: 24,
            flags,
            scope: 0,
        }
    }

    fn best(family: Family, addresses: &[AddressInfo]) -> Vec<String> {
        usable(addresses, family)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn usable_when_there_are_many_puts_the_lasting_global_one_first() {
        let addresses = [
            address("fe80::1", PERMANENT),
            address("2001:db8::bad", DEPRECATED | PERMANENT),
            address("2001:db8::7e", TEMPORARY),
            address("2001:db8::5", 0),
            address("2001:db8::2", PERMANENT),
            address("2001:db8::dad", PERMANENT | DUPLICATE),
            address("::1", PERMANENT),
            address("ff02::1", PERMANENT),
            address("10.0.0.1", PERMANENT),
        ];
        assert_eq!(
            best(Family::V6, &addresses),
            ["2001:db8::2", "2001:db8::5", "2001:db8::7e", "fe80::1"]
        );
    }

    #[test]
    fn usable_when_all_are_equal_keeps_the_order_of_the_kernel() {
        let mut addresses = vec![
            address("169.254.1.1", PERMANENT),
            address("10.0.0.9", PERMANENT),
            address("10.0.0.3", PERMANENT),
            address("10.0.0.7", PERMANENT | TEMPORARY),
            address("127.0.0.1", PERMANENT),
        ];
        assert_eq!(
            best(Family::V4, &addresses),
            ["10.0.0.9", "10.0.0.3", "10.0.0.7", "169.254.1.1"]
        );
        addresses.reverse();
        assert_eq!(
            best(Family::V4, &addresses),
            ["10.0.0.3", "10.0.0.9", "10.0.0.7", "169.254.1.1"]
        );
    }

    #[test]
    fn flaw_when_an_address_is_of_no_use_to_others_then_said_why() {
        let why = |ip, flags| flaw(&address(ip, flags));
        assert_eq!(
            (why("10.0.0.1", PERMANENT), why("fe80::1", TEMPORARY)),
            (None, None)
        );
        for ip in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
        ] {
            assert_eq!(why(ip, 0), Some("no address of a host"), "{ip}");
        }
        assert_eq!(why("10.0.0.1", DUPLICATE), Some("another host's too"));
        assert_eq!(why("10.0.0.1", DEPRECATED | PERMANENT), Some("deprecated"));
        assert_eq!(
            why("169.254.0.1", DEPRECATED | DUPLICATE),
            Some("another host's too")
        );
    }
}
