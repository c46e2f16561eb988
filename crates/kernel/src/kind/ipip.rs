//! ipip on the wire: `IFLA_IPTUN_*` of `linux/if_tunnel.h`.

use std::net::{IpAddr, Ipv4Addr};

use fabric::kind::Ipip;
use fabric::object::{Link, LinkName};
use rustix::io::Errno;

use crate::kind::Kind;
use crate::nl::{Attributes, Message};

const LINK: u16 = 1;
const LOCAL: u16 = 2;
const REMOTE: u16 = 3;
const TTL: u16 = 4;
const TOS: u16 = 5;
const PROTO: u16 = 9;
const PMTUDISC: u16 = 10;
const ENCAP_TYPE: u16 = 15;
const ENCAP_FLAGS: u16 = 16;
const ENCAP_SPORT: u16 = 17;
const ENCAP_DPORT: u16 = 18;
const COLLECT_METADATA: u16 = 19;

impl Kind for Ipip {
    type Observed = Ipip;
    const HAS_MAC: bool = false;

    /// The inner protocol is not looked at: the kernel cannot change it in place, and IPv4 passes with either.
    fn read(data: Attributes<'_>) -> Ipip {
        let mut seen = Ipip {
            local: Ipv4Addr::UNSPECIFIED,
            remote: None,
            plain: true,
        };
        let mut external = false;
        for attribute in data {
            let v4 = || match attribute.ip() {
                Some(IpAddr::V4(ip)) if !ip.is_unspecified() => Some(ip),
                _ => None,
            };
            match attribute.kind {
                LOCAL => seen.local = v4().unwrap_or(Ipv4Addr::UNSPECIFIED),
                REMOTE => seen.remote = v4(),
                LINK => seen.plain &= attribute.u32() == Some(0),
                TTL | TOS | PMTUDISC => seen.plain &= attribute.u8() == Some(0),
                ENCAP_TYPE => seen.plain &= attribute.u16() == Some(0),
                COLLECT_METADATA => external = true,
                _ => {}
            }
        }
        if external {
            // It sends where it is told to for each packet, whatever its ends are; no change makes it one of ours.
            seen.local = Ipv4Addr::UNSPECIFIED;
        }
        seen
    }

    fn to_object(seen: &Ipip, _: LinkName, _: &dyn Fn(u32) -> Option<LinkName>) -> Ipip {
        seen.clone()
    }

    /// COMPAT: attributes, their order and the explicit zeroes are what Go flannel sends; protocol 0 is any.
    fn write(&self, data: Message, _: u32) -> Message {
        data.ip(LOCAL, IpAddr::V4(self.local))
            .u8(PMTUDISC, 0)
            .u8(TTL, 0)
            .u8(TOS, 0)
            .u16(ENCAP_TYPE, 0)
            .u16(ENCAP_FLAGS, 0)
            .be16(ENCAP_SPORT, 0)
            .be16(ENCAP_DPORT, 0)
            .u8(PROTO, 0)
    }

    /// What is left out the kernel takes for zero, the local address too.
    fn write_change(&self, data: Message) -> Message {
        self.write(data, 0)
    }

    fn explain(errno: Errno) -> Option<&'static str> {
        match errno {
            Errno::OPNOTSUPP => Some(
                "this kernel has no ipip tunnels (module ipip); `modprobe ipip` loads the module where it is installed, otherwise \
                 choose another kernel or another Backend.Type",
            ),
            Errno::EXIST => {
                Some("another ipip tunnel of this host has the same local address and no remote one")
            }
            _ => None,
        }
    }

    fn complete(&mut self, _: u32, _: Option<&Link>) -> Result<(), Errno> {
        Ok(())
    }

    fn become_like(&mut self, wanted: &Ipip) -> Result<(), Errno> {
        // Having one other end is a flag of the device, set when it is made.
        if self.remote.is_some() != wanted.remote.is_some() {
            return Err(Errno::INVAL);
        }
        *self = wanted.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nl::Reply;
    use crate::rtnl::link;

    fn tunnel(plain: bool) -> Link {
        let kind = Ipip {
            local: "192.0.2.1".parse().unwrap(),
            remote: None,
            plain,
        };
        Link {
            name: LinkName::new("flannel.ipip").unwrap(),
            kind: kind.into(),
            mac: None,
            mtu: 1480,
            up: true,
        }
    }

    /// `struct nlattr`: length, kind, value, padding.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// The nine attributes of Go flannel, in its order, from the numbers in `linux/if_tunnel.h`.
    fn data() -> Vec<u8> {
        [
            attribute(2, &[192, 0, 2, 1]),
            attribute(10, &[0]),
            attribute(4, &[0]),
            attribute(5, &[0]),
            attribute(15, &[0, 0]),
            attribute(16, &[0, 0]),
            attribute(17, &[0, 0]),
            attribute(18, &[0, 0]),
            attribute(9, &[0]),
        ]
        .concat()
    }

    fn body(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.write(1, &mut bytes);
        bytes.split_off(16)
    }

    #[test]
    fn message_when_made_then_kind_and_data_as_go_flannel_sends_them() {
        const NESTED: u16 = 0x8000;
        let bytes = body(&link::add_message(&tunnel(true), 0).unwrap());
        let info = [attribute(1, b"ipip"), attribute(2, &data())].concat();
        let nested = [attribute(1, b"ipip"), attribute(2 | NESTED, &data())].concat();
        let ends = [attribute(18, &info), attribute(18 | NESTED, &nested)];
        assert!(ends.iter().any(|end| bytes.ends_with(end)), "{bytes:02x?}");
        // Name, MTU and queue length before it; no address: the kernel shows the local one as such.
        let before = [
            attribute(3, b"flannel.ipip\0"),
            attribute(4, &1480_u32.to_ne_bytes()),
            attribute(13, &0_u32.to_ne_bytes()),
        ]
        .concat();
        assert!(bytes[16..].starts_with(&before), "{bytes:02x?}");
        assert_eq!(bytes.len(), 16 + before.len() + ends[0].len());
    }

    fn read(data: &[u8]) -> Link {
        let info = [attribute(1, b"ipip\0"), attribute(2, data)].concat();
        let body = [
            link::header(7, link::UP, 0).to_vec(),
            attribute(1, &[192, 0, 2, 1]),
            attribute(3, b"flannel.ipip\0"),
            attribute(4, &1480_u32.to_ne_bytes()),
            attribute(18, &info),
        ]
        .concat();
        let reply = Reply {
            kind: link::NEW,
            flags: 0,
            sequence: 1,
            port: 0,
            body: &body,
        };
        link::read(&reply).unwrap().to_object(|_| None)
    }

    /// As Linux 6.1 shows it: every attribute, whether it was set or not.
    #[test]
    fn message_when_read_then_the_device_that_was_made() {
        let shown = |change: (u16, &[u8])| {
            let all: [(u16, &[u8]); 9] = [
                (1, &[0, 0, 0, 0]),
                (2, &[192, 0, 2, 1]),
                (3, &[0, 0, 0, 0]),
                (4, &[0]),
                (5, &[0]),
                (9, &[0]),
                (10, &[0]),
                (15, &[0, 0]),
                (20, &[0, 0, 0, 0]),
            ];
            let set = |(kind, value)| attribute(kind, if kind == change.0 { change.1 } else { value });
            all.into_iter().flat_map(set).collect::<Vec<u8>>()
        };
        assert_eq!(read(&shown((0, &[]))), tunnel(true));
        assert_eq!(read(&shown((9, &[4]))), tunnel(true), "protocol");
        let options: [(u16, &[u8]); 5] = [
            (1, &[3, 0, 0, 0]),
            (4, &[64]),
            (5, &[1]),
            (10, &[1]),
            (15, &[1, 0]),
        ];
        for option in options {
            assert_eq!(read(&shown(option)), tunnel(false), "{option:?}");
        }
        let ends = |data: &[u8]| match read(data).kind {
            fabric::object::LinkKind::Ipip(ipip) => (ipip.local, ipip.remote),
            other => panic!("{other}"),
        };
        let (none, ours, theirs) = (
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::new(192, 0, 2, 1),
            Ipv4Addr::new(192, 0, 2, 2),
        );
        assert_eq!(ends(&shown((3, &[192, 0, 2, 2]))), (ours, Some(theirs)));
        assert_eq!(ends(&shown((2, &[192, 0, 2, 2]))), (theirs, None));
        assert_eq!(ends(&shown((2, &[0, 0, 0, 0]))), (none, None));
        let external = [shown((0, &[])), attribute(19, &[])].concat();
        assert_eq!(ends(&external), (none, None), "external");
    }

    #[test]
    fn explain_when_the_module_is_missing_or_the_ends_are_taken_then_says_so_and_otherwise_nothing() {
        let module = Ipip::explain(Errno::OPNOTSUPP).unwrap();
        assert!(module.contains("modprobe ipip"), "{module}");
        let taken = Ipip::explain(Errno::EXIST).unwrap();
        assert!(taken.contains("same local address"), "{taken}");
        assert_eq!(Ipip::explain(Errno::PERM), None);
    }

    #[test]
    fn tunnel_when_changed_in_memory_then_all_of_it_but_having_one_other_end() {
        let of = |remote: Option<&str>, plain| Ipip {
            local: "192.0.2.1".parse().unwrap(),
            remote: remote.map(|ip| ip.parse().unwrap()),
            plain,
        };
        let mut device = of(None, false);
        assert_eq!(
            device.become_like(&of(Some("192.0.2.9"), true)),
            Err(Errno::INVAL)
        );
        device.become_like(&of(None, true)).unwrap();
        assert_eq!(device, of(None, true));
        assert_eq!(device.complete(1, None), Ok(()));
        let mut device = of(Some("192.0.2.8"), true);
        assert_eq!(device.become_like(&of(None, true)), Err(Errno::INVAL));
        device.become_like(&of(Some("192.0.2.9"), true)).unwrap();
        assert_eq!(device, of(Some("192.0.2.9"), true));
    }
}
