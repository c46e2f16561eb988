//! Bridges and their ports.

use std::time::{Duration, Instant};

use fabric::object::{LinkName, Mac};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::nl::{Fault, Message, NetlinkError, Protocol, Reply, Socket, flag};

use super::link::{
    self, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU, ObservedLink,
};
use super::{Rtnl, group};

/// `IFF_PROMISC`.
pub const PROMISC: u32 = 0x100;

const IFLA_OPERSTATE: u16 = 16;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFINFOMSG: usize = 16;

/// Whether a link can carry packets (`IF_OPER_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperState {
    /// Yes.
    Up,
    /// No, or not known: its number.
    Other(u8),
}

impl std::fmt::Display for OperState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OperState::Up => "up",
            OperState::Other(1) => "not-present",
            OperState::Other(2) => "down",
            OperState::Other(3) => "lower-layer-down",
            OperState::Other(4) => "testing",
            OperState::Other(5) => "dormant",
            OperState::Other(_) => "unknown",
        })
    }
}

/// A link with what only ports and bridges are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedPort {
    /// The link itself.
    pub link: ObservedLink,
    /// Whether it can carry packets.
    pub state: OperState,
    /// How many ask it to take every packet (`IFLA_PROMISCUITY`).
    pub promiscuity: u32,
}

fn read_port(reply: &Reply<'_>) -> Option<ObservedPort> {
    let link = link::read(reply)?;
    let (mut state, mut promiscuity) = (OperState::Other(0), 0);
    for attribute in reply.attributes(IFINFOMSG) {
        match attribute.kind {
            IFLA_OPERSTATE => {
                state = match attribute.u8()? {
                    6 => OperState::Up,
                    other => OperState::Other(other),
                }
            }
            IFLA_PROMISCUITY => promiscuity = attribute.u32()?,
            _ => {}
        }
    }
    Some(ObservedPort {
        link,
        state,
        promiscuity,
    })
}

/// How a port of a bridge behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortOptions {
    /// Packets may leave by the port they came in by.
    pub hairpin: bool,
    /// Speaks to no other isolated port.
    pub isolated: bool,
}

/// The message that makes a bridge, down; 0 leaves the MTU to the kernel.
fn add_message(name: LinkName, mtu: u32, mac: Option<Mac>) -> Message {
    let mut message = Message::new("add bridge", link::NEW, flag::ADD)
        .raw(&link::header(0, 0, 0))
        .text(IFLA_IFNAME, name.as_str());
    if mtu > 0 {
        message = message.u32(IFLA_MTU, mtu);
    }
    if let Some(mac) = mac {
        message = message.attribute(IFLA_ADDRESS, &mac.0);
    }
    message.nest(IFLA_LINKINFO, |info| info.attribute(IFLA_INFO_KIND, b"bridge"))
}

/// The messages that make a link a port that is up, and say how it behaves.
fn attach_messages(port: LinkName, bridge: u32, options: PortOptions) -> [Message; 2] {
    let of_port = |verb, flags| {
        Message::new(verb, link::NEW, 0)
            .raw(&link::header(0, flags, flags))
            .text(IFLA_IFNAME, port.as_str())
    };
    let attach = of_port("attach port", link::UP).u32(IFLA_MASTER, bridge);
    let set = of_port("set port options", 0).nest(IFLA_LINKINFO, |info| {
        info.attribute(IFLA_INFO_SLAVE_KIND, b"bridge")
            .nest(IFLA_INFO_SLAVE_DATA, |data| {
                let data = data.u8(IFLA_BRPORT_MODE, u8::from(options.hairpin));
                // Kernels before 4.18 do not know isolation and refuse what they do not know.
                if options.isolated {
                    data.u8(IFLA_BRPORT_ISOLATED, 1)
                } else {
                    data
                }
            })
    });
    [attach, set]
}

impl Rtnl {
    /// The link of this name with its operational state; `None` when there is none.
    pub fn port_by_name(&mut self, name: LinkName) -> Result<Option<ObservedPort>, NetlinkError> {
        match self.socket().get(&link::get_message(name), read_port) {
            Err(error) if error.is(Errno::NODEV) => Ok(None),
            other => other.map_err(|error| error.of(format_args!("get link {name}"))),
        }
    }

    /// Makes a bridge, down.
    ///
    /// A bridge that is given its hardware address keeps it; otherwise it changes with the ports that come and go.
    pub fn add_bridge(&mut self, name: LinkName, mtu: u32, mac: Option<Mac>) -> Result<(), NetlinkError> {
        self.socket()
            .request(&add_message(name, mtu, mac))
            .map_err(|error| error.of(format_args!("add bridge {name}")))
    }

    /// Sets interface flags (`IFF_*`), such as [`link::UP`] and [`PROMISC`].
    pub fn raise_flags(&mut self, index: u32, flags: u32) -> Result<(), NetlinkError> {
        self.socket()
            .request(&Message::new("set link", link::NEW, 0).raw(&link::header(index, flags, flags)))
    }

    /// Makes a link a port of the bridge with this index and sets it up, in one conversation.
    pub fn attach_port(
        &mut self,
        port: LinkName,
        bridge: u32,
        options: PortOptions,
    ) -> Result<(), NetlinkError> {
        self.socket()
            .pipeline(attach_messages(port, bridge, options))
            .into_iter()
            .collect()
    }

    /// A port and its bridge as they are, in one conversation.
    ///
    /// Asking makes newer kernels settle a pending change of carrier: the port's first, on which the bridge's depends.
    pub fn port_and_bridge(
        &mut self,
        port: LinkName,
        bridge: LinkName,
    ) -> Result<(ObservedPort, ObservedPort), NetlinkError> {
        let messages = [link::get_message(port), link::get_message(bridge)];
        let mut seen = [None, None];
        let outcomes = self.socket().pipeline_get(messages, |position, reply| {
            if let Some(place) = seen.get_mut(position) {
                *place = read_port(reply);
            }
        });
        outcomes.into_iter().collect::<Result<(), _>>()?;
        match seen {
            [Some(port), Some(bridge)] => Ok((port, bridge)),
            _ => Err(NetlinkError::new(
                "get link",
                Fault::Malformed,
                Errno::PROTO,
                "the kernel shows no link",
            )),
        }
    }

    /// Waits until a link can carry packets, woken by the kernel; returns its last state at the limit.
    pub fn wait_operational(
        &mut self,
        name: LinkName,
        limit: Duration,
    ) -> Result<ObservedPort, NetlinkError> {
        let gone = || NetlinkError::new("get link", Fault::Refused, Errno::NODEV, "");
        let deadline = Instant::now() + limit;
        // Asking makes newer kernels settle a pending change of carrier, so this is nearly always all.
        let seen = self.port_by_name(name)?.ok_or_else(gone)?;
        if seen.state == OperState::Up {
            return Ok(seen);
        }
        let mut monitor = Socket::open(Protocol::Route)?;
        monitor.subscribe(group::LINK)?;
        loop {
            let seen = self.port_by_name(name)?.ok_or_else(gone)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.state == OperState::Up || left.is_zero() {
                return Ok(seen);
            }
            wait_readable(&monitor, left);
            // An overrun is as good a reason to look again as a message.
            let _ = monitor.notifications(|_| {});
        }
    }
}

/// Sleeps until the socket has something to read or the time is over.
pub(super) fn wait_readable(socket: &Socket, limit: Duration) {
    let timeout = Timespec::try_from(limit).unwrap_or(Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    });
    let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout));
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_same, heard, name};
    use super::*;

    #[test]
    fn port_when_shown_then_its_state_and_who_asks_for_every_packet() {
        let mut header = [0; 16];
        header[4] = 7;
        let shown = || Message::new("", 16, 0).raw(&header).text(3, "cni0");
        let port = heard(&shown().u8(16, 6).u32(30, 2), read_port).unwrap();
        assert_eq!(
            (port.link.index, port.state, port.promiscuity),
            (7, OperState::Up, 2)
        );
        let port = heard(&shown(), read_port).unwrap();
        assert_eq!((port.state, port.promiscuity), (OperState::Other(0), 0));
        let words = [
            "unknown",
            "not-present",
            "down",
            "lower-layer-down",
            "testing",
            "dormant",
            "up",
        ];
        for (state, word) in (0..).zip(words) {
            let port = heard(&shown().u8(16, state), read_port).unwrap();
            assert_eq!(port.state.to_string(), word);
        }
    }

    #[test]
    fn bridge_when_made_then_with_what_it_was_given() {
        let base = || Message::new("", 16, flag::ADD).raw(&[0; 16]).text(3, "cni0");
        let kind = |message: Message| message.nest(18, |info| info.attribute(1, b"bridge"));
        assert_same(&add_message(name("cni0"), 0, None), &kind(base()));
        let full = base().u32(4, 1).attribute(1, &[2, 0, 0, 0, 0, 1]);
        assert_same(
            &add_message(name("cni0"), 1, Some(Mac([2, 0, 0, 0, 0, 1]))),
            &kind(full),
        );
    }

    #[test]
    fn port_when_attached_then_up_and_as_asked() {
        for (hairpin, isolated) in [(true, false), (false, true)] {
            let [attach, set] = attach_messages(name("veth1"), 9, PortOptions { hairpin, isolated });
            let mut up = [0; 16];
            (up[8], up[12]) = (1, 1);
            let expected = Message::new("", 16, 0).raw(&up).text(3, "veth1").u32(10, 9);
            assert_same(&attach, &expected);
            let expected = Message::new("", 16, 0)
                .raw(&[0; 16])
                .text(3, "veth1")
                .nest(18, |info| {
                    info.attribute(4, b"bridge").nest(5, |data| {
                        let data = data.u8(4, u8::from(hairpin));
                        if isolated { data.u8(33, 1) } else { data }
                    })
                });
            assert_same(&set, &expected);
        }
    }
}
