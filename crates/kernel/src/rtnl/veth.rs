//! Veth pairs across namespaces: both ends in one message, so that neither is ever seen in the wrong namespace.

use std::os::fd::{AsRawFd, BorrowedFd};

use fabric::object::{LinkName, Mac};

use crate::nl::{Message, NetlinkError, flag};

use super::Rtnl;
use super::link::{
    self, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, IFLA_TXQLEN,
    ObservedLink,
};

const VETH_INFO_PEER: u16 = 1;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
/// `IPV4_DEVCONF_ARP_NOTIFY`: announce addresses when the link comes up.
const ARP_NOTIFY: u16 = 22;

/// A pair to be made, both ends down: an end cannot be set up before it knows the other.
#[derive(Debug, Clone, Copy)]
pub struct VethPair<'a> {
    /// Name of the end in the namespace the message is sent in.
    pub name: LinkName,
    /// Hardware address of that end; the kernel takes a random one when there is none.
    pub mac: Option<Mac>,
    /// Name of the other end.
    pub peer: LinkName,
    /// Namespace of the other end.
    pub peer_netns: BorrowedFd<'a>,
    /// Bytes, of both ends; 0 leaves it to the kernel.
    pub mtu: u32,
}

/// The message that makes a pair.
///
/// COMPAT: the end in the other namespace has a transmit queue length of 0, as Go's bridge plugin leaves it.
pub fn add_message(pair: &VethPair<'_>) -> Message {
    let mtu = |message: Message| {
        if pair.mtu > 0 {
            message.u32(IFLA_MTU, pair.mtu)
        } else {
            message
        }
    };
    let message = Message::new("add veth", link::NEW, flag::ADD)
        .raw(&link::header(0, 0, 0))
        .text(IFLA_IFNAME, pair.name.as_str());
    let mut message = mtu(message);
    if let Some(mac) = pair.mac {
        message = message.attribute(IFLA_ADDRESS, &mac.0);
    }
    message.nest(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_KIND, b"veth")
            .nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    let peer = peer
                        .raw(&link::header(0, 0, 0))
                        .text(IFLA_IFNAME, pair.peer.as_str());
                    mtu(peer)
                        .u32(IFLA_TXQLEN, 0)
                        .u32(IFLA_NET_NS_FD, pair.peer_netns.as_raw_fd() as u32)
                })
            })
    })
}

/// The message that has a link announce its addresses when it comes up (`net.ipv4.conf.<link>.arp_notify`).
fn arp_notify_message(name: LinkName) -> Message {
    Message::new("set arp_notify", link::NEW, 0)
        .raw(&link::header(0, 0, 0))
        .text(IFLA_IFNAME, name.as_str())
        .nest(IFLA_AF_SPEC, |families| {
            families.nest(u16::from(super::AF_INET), |inet| {
                inet.nest(IFLA_INET_CONF, |conf| conf.u32(ARP_NOTIFY, 1))
            })
        })
}

impl Rtnl {
    /// Makes a pair with its near end in this namespace and returns that end. It will announce its addresses by ARP.
    ///
    /// The refusal `EEXIST` means that one of the two names is taken, without saying which.
    pub fn add_veth(&mut self, pair: &VethPair<'_>) -> Result<ObservedLink, NetlinkError> {
        let messages = [
            add_message(pair),
            arp_notify_message(pair.name),
            link::get_message(pair.name),
        ];
        let mut made = None;
        let mut outcomes = self
            .socket()
            .pipeline_get(messages, |position, reply| {
                if position == 2 && made.is_none() {
                    made = link::read(reply);
                }
            })
            .into_iter();
        outcomes.next().unwrap_or(Ok(()))?;
        // Announcing is a courtesy: a kernel without it still has a working link.
        let _ = outcomes.next();
        outcomes.next().unwrap_or(Ok(()))?;
        made.ok_or_else(|| {
            NetlinkError::new(
                "add veth",
                crate::nl::Fault::Malformed,
                rustix::io::Errno::PROTO,
                "the kernel shows no link",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::tests::{assert_same, name};
    use super::*;

    #[test]
    fn pair_when_made_then_both_ends_in_one_message_and_announced() {
        let netns = std::fs::File::open("/proc/self/ns/net").unwrap();
        let pair = VethPair {
            name: name("veth1"),
            mac: None,
            peer: name("eth0"),
            peer_netns: netns.as_fd(),
            mtu: 0,
        };
        let expected = |pair: &VethPair<'_>| {
            let mtu = |message: Message| {
                if pair.mtu > 0 {
                    message.u32(4, pair.mtu)
                } else {
                    message
                }
            };
            let mut near = mtu(Message::new("", 16, flag::ADD).raw(&[0; 16]).text(3, "veth1"));
            if let Some(mac) = pair.mac {
                near = near.attribute(1, &mac.0);
            }
            near.nest(18, |info| {
                info.attribute(1, b"veth").nest(2, |data| {
                    data.nest(1, |peer| {
                        mtu(peer.raw(&[0; 16]).text(3, "eth0"))
                            .u32(13, 0)
                            .u32(28, netns.as_raw_fd() as u32)
                    })
                })
            })
        };
        assert_same(&add_message(&pair), &expected(&pair));
        let pair = VethPair {
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: 1,
            ..pair
        };
        assert_same(&add_message(&pair), &expected(&pair));
        let notify = Message::new("", 16, 0)
            .raw(&[0; 16])
            .text(3, "veth1")
            .nest(26, |families| {
                families.nest(2, |inet| inet.nest(1, |conf| conf.u32(22, 1)))
            });
        assert_same(&arp_notify_message(name("veth1")), &notify);
    }
}
