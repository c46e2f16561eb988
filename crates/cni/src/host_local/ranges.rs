//! Ranges of addresses: checking, defaults, and the order in which they are handed out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// One range as the configuration gives it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeConfig {
    /// The network the addresses are in.
    pub subnet: Option<IpNet>,
    /// First address, inclusive.
    pub start: Option<IpAddr>,
    /// Last address, inclusive.
    pub end: Option<IpAddr>,
    /// Gateway; never handed out.
    pub gateway: Option<IpAddr>,
}

/// A checked range with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The network, host bits clear.
    pub subnet: IpNet,
    /// First address, inclusive.
    pub start: IpAddr,
    /// Last address, inclusive.
    pub end: IpAddr,
    /// Gateway.
    pub gateway: IpAddr,
}

impl Range {
    /// Checks a range: gateway and first address default to network + 1, the last to the last but the IPv4 broadcast.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in Go's words where Go has some.
    pub fn check(config: &RangeConfig) -> Result<Range, String> {
        let Some(subnet) = config.subnet else {
            return Err("IP <nil> not v4 nor v6".to_owned());
        };
        if matches!(subnet, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some()) {
            return Err("IPNet IP and Mask version mismatch".to_owned());
        }
        if subnet.prefix_len() > subnet.max_prefix_len() - 2 {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.addr() != subnet.network() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix_len(),
                subnet.network()
            ));
        }
        let first = number(subnet.network()) + 1;
        let last = number(subnet.broadcast()) - u128::from(subnet.addr().is_ipv4());
        let inside = |ip: IpAddr| same_family(ip, subnet.addr()) && subnet.contains(&ip);
        for (key, given) in [("RangeStart", config.start), ("RangeEnd", config.end)] {
            if let Some(ip) = given.filter(|ip| !inside(*ip)) {
                return Err(format!("{key} {ip} not in network {subnet}"));
            }
        }
        let start = config.start.unwrap_or_else(|| address(first, subnet.addr()));
        let end = config.end.unwrap_or_else(|| address(last, subnet.addr()));
        if number(start) > number(end) {
            let of = |given: Option<IpAddr>| if given.is_some() { "" } else { ", the default" };
            return Err(format!(
                "rangeStart {start}{} comes after rangeEnd {end}{} in network {subnet}",
                of(config.start),
                of(config.end)
            ));
        }
        // COMPAT: any other address may be the gateway's, also one outside.
        if let (Some(gateway @ IpAddr::V4(_)), IpAddr::V4(_)) = (config.gateway, subnet.addr()) {
            for (is_it, what) in [
                (gateway == subnet.network(), "network"),
                (gateway == subnet.broadcast(), "broadcast"),
            ] {
                if is_it {
                    return Err(format!("gateway {gateway} is the {what} address of {subnet}"));
                }
            }
        }
        let gateway = config.gateway.unwrap_or_else(|| address(first, subnet.addr()));
        Ok(Range {
            subnet,
            start,
            end,
            gateway,
        })
    }

    /// The address may be handed out from this range (the gateway counts as inside).
    pub fn contains(&self, ip: IpAddr) -> bool {
        same_family(ip, self.start) && (number(self.start)..=number(self.end)).contains(&number(ip))
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.start)
            || self.contains(other.end)
            || other.contains(self.start)
            || other.contains(self.end)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family of which one address is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// Checks a set: not empty, one family, no overlaps.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in Go's words where Go has some.
    pub fn check(configs: &[RangeConfig]) -> Result<RangeSet, String> {
        let mut ranges: Vec<Range> = Vec::with_capacity(configs.len());
        for config in configs {
            let range = Range::check(config)?;
            if ranges
                .first()
                .is_some_and(|first| !same_family(first.start, range.start))
            {
                return Err("mixed address families".to_owned());
            }
            ranges.push(range);
        }
        for (i, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges.iter().skip(i + 1).find(|other| range.overlaps(other)) {
                return Err(format!("subnets {range} and {other} overlap"));
            }
        }
        if ranges.is_empty() {
            return Err("empty range set".to_owned());
        }
        let set = RangeSet(ranges);
        match set.ranges() {
            [only] if set.size() == 0 => Err(format!(
                "range {only} of {} holds no address but the gateway {}",
                only.subnet, only.gateway
            )),
            _ => Ok(set),
        }
    }

    /// The set's addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.0.first().is_some_and(|range| range.start.is_ipv4())
    }

    /// Some range of one set overlaps some range of the other.
    pub fn overlaps(&self, other: &RangeSet) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)))
    }

    /// The range that contains an address.
    pub fn range_for(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// How many addresses there are to hand out: gateways are not.
    pub fn size(&self) -> u128 {
        let size = |range: &Range| {
            let all = number(range.end).saturating_sub(number(range.start));
            all.saturating_add(u128::from(!range.contains(range.gateway)))
        };
        self.0.iter().map(size).fold(0, u128::saturating_add)
    }

    /// The set's ranges in order.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// Addresses to try, in order: behind `last` where that lies in the set, otherwise from the beginning, once around,
    /// gateways left out.
    pub fn candidates(&self, last: Option<IpAddr>) -> Candidates<'_> {
        let at = last.and_then(|ip| Some((self.0.iter().position(|range| range.contains(ip))?, ip)));
        Candidates {
            set: self,
            index: at.map_or(0, |(index, _)| index),
            current: at.map(|(_, ip)| ip),
            first: None,
        }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// See [`RangeSet::candidates`].
#[derive(Debug, Clone)]
pub struct Candidates<'a> {
    set: &'a RangeSet,
    index: usize,
    current: Option<IpAddr>,
    first: Option<IpAddr>,
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (IpAddr, &'a Range);

    fn next(&mut self) -> Option<(IpAddr, &'a Range)> {
        loop {
            let range = self.set.0.get(self.index)?;
            let (ip, range) = match self.current {
                None => (range.start, range),
                Some(current) if current == range.end => {
                    self.index = (self.index + 1) % self.set.0.len();
                    let range = self.set.0.get(self.index)?;
                    (range.start, range)
                }
                Some(current) => (address(number(current) + 1, current), range),
            };
            self.current = Some(ip);
            match self.first {
                None => self.first = Some(ip),
                Some(first) if first == ip => {
                    // Once around: stay ended.
                    self.index = usize::MAX;
                    return None;
                }
                Some(_) => {}
            }
            if ip != range.gateway {
                return Some((ip, range));
            }
        }
    }
}

fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(number: u128, family: IpAddr) -> IpAddr {
    if family.is_ipv4() {
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, start: &str, end: &str, gateway: &str) -> RangeConfig {
        let ip = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        RangeConfig {
            subnet: Some(subnet.parse().unwrap()),
            start: ip(start),
            end: ip(end),
            gateway: ip(gateway),
        }
    }

    fn set(subnets: &[&str]) -> RangeSet {
        RangeSet::check(&subnets.iter().map(|s| range(s, "", "", "")).collect::<Vec<_>>()).unwrap()
    }

    fn take(set: &RangeSet, last: &str, count: usize) -> Vec<String> {
        let last = (!last.is_empty()).then(|| last.parse().unwrap());
        set.candidates(last)
            .take(count)
            .map(|(ip, _)| ip.to_string())
            .collect()
    }

    #[test]
    fn range_when_checked_fills_in_gos_defaults() {
        let v4 = Range::check(&range("10.244.7.0/24", "", "", "")).unwrap();
        assert_eq!(
            (v4.to_string(), v4.gateway.to_string()),
            ("10.244.7.1-10.244.7.254".into(), "10.244.7.1".into())
        );
        let v6 = Range::check(&range("fd00::/126", "", "", "fd00::9")).unwrap();
        assert_eq!(
            (v6.to_string(), v6.gateway.to_string()),
            ("fd00::1-fd00::3".into(), "fd00::9".into())
        );
    }

    #[test]
    fn range_when_wrong_is_refused_in_gos_words() {
        let refused = |config: &RangeConfig| RangeSet::check(std::slice::from_ref(config)).unwrap_err();
        assert_eq!(
            refused(&range("10.244.7.1/32", "", "", "")),
            "Network 10.244.7.1/32 too small to allocate from"
        );
        assert_eq!(
            refused(&range("10.244.7.1/24", "", "", "")),
            "Network has host bits set. For a subnet mask of length 24 the network address is 10.244.7.0"
        );
        assert_eq!(
            refused(&range("10.0.0.0/24", "10.0.1.1", "", "")),
            "RangeStart 10.0.1.1 not in network 10.0.0.0/24"
        );
        assert_eq!(
            refused(&range("10.0.0.0/24", "10.0.0.9", "10.0.0.8", "")),
            "rangeStart 10.0.0.9 comes after rangeEnd 10.0.0.8 in network 10.0.0.0/24"
        );
        // Walked from there, a range would have no end.
        assert_eq!(
            refused(&range("10.0.0.0/24", "10.0.0.255", "", "")),
            "rangeStart 10.0.0.255 comes after rangeEnd 10.0.0.254, the default in network 10.0.0.0/24"
        );
        assert_eq!(
            refused(&range("10.0.0.0/24", "", "10.0.0.0", "")),
            "rangeStart 10.0.0.1, the default comes after rangeEnd 10.0.0.0 in network 10.0.0.0/24"
        );
        assert_eq!(
            refused(&range("10.0.0.0/24", "", "", "10.0.0.0")),
            "gateway 10.0.0.0 is the network address of 10.0.0.0/24"
        );
        assert_eq!(
            refused(&range("10.0.0.0/24", "", "", "10.0.0.255")),
            "gateway 10.0.0.255 is the broadcast address of 10.0.0.0/24"
        );
        assert_eq!(
            refused(&range("10.0.0.0/24", "10.0.0.7", "10.0.0.7", "10.0.0.7")),
            "range 10.0.0.7-10.0.0.7 of 10.0.0.0/24 holds no address but the gateway 10.0.0.7"
        );
        assert_eq!(
            refused(&range("10.0.0.0/24", "", "10.0.1.8", "")),
            "RangeEnd 10.0.1.8 not in network 10.0.0.0/24"
        );
        assert_eq!(
            refused(&range("::ffff:10.0.0.0/120", "", "", "")),
            "IPNet IP and Mask version mismatch"
        );
        assert_eq!(RangeSet::check(&[]).unwrap_err(), "empty range set");
        let mixed = [range("10.0.0.0/24", "", "", ""), range("fd00::/64", "", "", "")];
        assert_eq!(RangeSet::check(&mixed).unwrap_err(), "mixed address families");
        let same = [
            range("10.0.0.0/24", "", "10.0.0.9", ""),
            range("10.0.0.0/16", "", "", ""),
        ];
        assert_eq!(
            RangeSet::check(&same).unwrap_err(),
            "subnets 10.0.0.1-10.0.0.9 and 10.0.0.1-10.0.255.254 overlap"
        );
    }

    #[test]
    fn range_when_go_takes_it_and_it_works_is_taken() {
        for ranges in [
            // One address, the whole network with its ends, a gateway elsewhere, and IPv6's first address for one.
            vec![range("10.0.0.0/24", "10.0.0.9", "10.0.0.9", "")],
            vec![range("10.0.0.0/24", "10.0.0.0", "10.0.0.255", "")],
            vec![range("10.0.0.0/24", "", "", "10.9.9.9")],
            vec![range("fd00::/64", "", "", "fd00::")],
            // A range of the gateway alone beside another.
            vec![
                range("10.0.0.0/24", "10.0.0.7", "10.0.0.7", "10.0.0.7"),
                range("10.0.0.0/24", "10.0.0.20", "10.0.0.29", "10.0.0.7"),
            ],
            vec![range("10.0.0.0/30", "", "", "")],
        ] {
            let set = RangeSet::check(&ranges).unwrap();
            assert!(
                set.candidates(None)
                    .take(300)
                    .all(|(ip, range)| range.contains(ip))
            );
            assert!(set.candidates(None).next().is_some(), "{set}");
        }
    }

    #[test]
    fn candidates_when_walked_go_once_around_without_gateways() {
        let small = set(&["10.64.0.0/29"]);
        assert_eq!(
            take(&small, "", 99),
            ["10.64.0.2", "10.64.0.3", "10.64.0.4", "10.64.0.5", "10.64.0.6"]
        );
        assert_eq!(
            take(&small, "10.64.0.4", 99),
            ["10.64.0.5", "10.64.0.6", "10.64.0.2", "10.64.0.3", "10.64.0.4"]
        );
        assert_eq!(take(&small, "10.64.0.6", 1), ["10.64.0.2"]);
        assert_eq!(take(&small, "10.9.9.9", 1), ["10.64.0.2"]);
        let two = set(&["10.0.0.0/30", "10.1.0.0/30"]);
        assert_eq!(take(&two, "", 99), ["10.0.0.2", "10.1.0.2"]);
        assert_eq!(take(&two, "10.0.0.2", 99), ["10.1.0.2", "10.0.0.2"]);
        let v6 = set(&["fd00::/64"]);
        assert_eq!(take(&v6, "", 2), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn ranges_when_they_share_an_address_overlap_whichever_holds_the_other() {
        let of = |start: &str, end: &str| Range::check(&range("10.0.0.0/24", start, end, "")).unwrap();
        let one = of("10.0.0.10", "10.0.0.20");
        for (start, end, overlaps) in [
            ("10.0.0.15", "10.0.0.25", true),
            ("10.0.0.5", "10.0.0.15", true),
            ("10.0.0.12", "10.0.0.14", true),
            ("10.0.0.5", "10.0.0.30", true),
            ("10.0.0.20", "10.0.0.30", true),
            ("10.0.0.21", "10.0.0.30", false),
            ("10.0.0.2", "10.0.0.9", false),
        ] {
            let other = of(start, end);
            assert_eq!(
                (one.overlaps(&other), other.overlaps(&one)),
                (overlaps, overlaps),
                "{other}"
            );
        }
        let v6 = Range::check(&range("::a00:0/120", "", "", "")).unwrap();
        assert!(!one.overlaps(&v6) && !v6.contains("10.0.0.12".parse().unwrap()));
        assert!(set(&["10.0.0.0/24", "10.1.0.0/24"]).overlaps(&set(&["10.2.0.0/24", "10.1.0.0/25"])));
        assert!(!set(&["10.0.0.0/24"]).overlaps(&set(&["10.2.0.0/24"])));
    }

    #[test]
    fn set_when_measured_counts_what_is_handed_out() {
        assert_eq!(set(&["10.0.0.0/24"]).size(), 253);
        assert_eq!(set(&["10.0.0.0/30", "10.1.0.0/30"]).size(), 2);
        let elsewhere = RangeSet::check(&[range("10.0.0.0/24", "10.0.0.20", "10.0.0.29", "")]).unwrap();
        assert_eq!(elsewhere.size(), 10);
        assert_eq!(set(&["fd00::/64"]).size(), (1 << 64) - 2);
        let two = set(&["10.0.0.0/30", "10.1.0.0/30"]);
        assert_eq!(two.to_string(), "10.0.0.1-10.0.0.2,10.1.0.1-10.1.0.2");
        assert!(two.is_ipv4() && !set(&["fd00::/64"]).is_ipv4());
        assert_eq!(two.range_for("10.1.0.2".parse().unwrap()), two.ranges().last());
        assert_eq!(two.range_for("10.1.0.3".parse().unwrap()), None);
    }

    #[test]
    fn range_when_its_subnet_is_smallest_or_absent_is_taken_or_refused() {
        assert!(Range::check(&range("10.0.0.0/30", "", "", "")).is_ok());
        assert!(Range::check(&range("10.0.0.0/31", "", "", "")).is_err());
        assert!(Range::check(&range("fd00::/126", "", "", "")).is_ok());
        assert!(Range::check(&range("fd00::/127", "", "", "")).is_err());
        assert_eq!(
            Range::check(&RangeConfig::default()).unwrap_err(),
            "IP <nil> not v4 nor v6"
        );
        let other_family = range("10.0.0.0/24", "fd00::1", "", "");
        assert!(
            Range::check(&other_family)
                .unwrap_err()
                .starts_with("RangeStart fd00::1 not in network")
        );
    }
}
