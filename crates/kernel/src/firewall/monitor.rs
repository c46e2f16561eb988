//! Hearing of changes to nftables, and so to iptables on top of it (`linux/netfilter/nf_tables.h`).
//!
//! Others may rewrite tens of thousands of rules a second beside ours: of every message only the table's and the chain's name
//! are read, and most messages are passed over after the first.

use std::os::fd::{AsFd, BorrowedFd};

use fabric::object::Family;

use crate::nl::message::Reply;
use crate::nl::{Fault, NetlinkError, Protocol, Socket};

const NFNLGRP_NFTABLES: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of the message type.
const SUBSYSTEM: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWGEN: u16 = 15;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE` are the same number.
const TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;
/// `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Bytes the kernel may queue: one transaction of somebody else's arrives in one go.
const ROOM: usize = 4 << 20;

/// A table, and those of its chains that matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Family of the table (`ip` or `ip6`).
    pub family: Family,
    /// Its name.
    pub table: &'static str,
    /// Names of chains; empty for all of them.
    pub chains: &'static [&'static str],
}

/// What happened since the last time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Something in one of the places changed, or may have: messages were lost.
    pub touched: bool,
    /// Who made the last such change: process id and name.
    pub by: Option<(u32, String)>,
}

/// A subscription to changes in certain places.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    places: Vec<Place>,
}

impl Monitor {
    /// Subscribes, in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// Those of the socket and of subscribing, which needs `CAP_NET_ADMIN`.
    pub fn open(places: Vec<Place>) -> Result<Monitor, NetlinkError> {
        let mut socket = Socket::open(Protocol::Netfilter)?;
        socket.set_receive_buffer(ROOM)?;
        socket.subscribe(NFNLGRP_NFTABLES)?;
        Ok(Monitor { socket, places })
    }

    /// Becomes readable when there is news of any table.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is queued, without waiting.
    pub fn drain(&mut self) -> Changes {
        let mut changes = Changes::default();
        loop {
            // Messages of one transaction come before the one that says whose it was.
            let mut pending = false;
            let places = &self.places;
            let read = self.socket.notifications(|reply| {
                if reply.kind == SUBSYSTEM << 8 | NFT_MSG_NEWGEN {
                    if std::mem::take(&mut pending) {
                        changes.by = author(reply);
                    }
                } else if concerns(places, reply) {
                    pending = true;
                    changes.touched = true;
                }
            });
            match read {
                Ok(_) => return changes,
                Err(lost) => {
                    changes.touched = true;
                    // Some are lost, others still queued. Any other failure would be the same at the next call.
                    if !matches!(lost.fault, Fault::Overrun | Fault::Truncated) {
                        return changes;
                    }
                }
            }
        }
    }
}

fn author(reply: &Reply<'_>) -> Option<(u32, String)> {
    let (mut pid, mut name) = (None, String::new());
    for attribute in reply.attributes(NFGENMSG) {
        match attribute.kind {
            NFTA_GEN_PROC_PID => pid = attribute.u32().map(u32::from_be),
            NFTA_GEN_PROC_NAME => name = attribute.text().unwrap_or_default().to_owned(),
            _ => {}
        }
    }
    Some((pid?, name))
}

fn concerns(places: &[Place], reply: &Reply<'_>) -> bool {
    if reply.kind >> 8 != SUBSYSTEM {
        return false;
    }
    let chain_attribute = match reply.kind & 0xff {
        NFT_MSG_NEWTABLE | NFT_MSG_DELTABLE => None,
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => Some(NFTA_CHAIN_NAME),
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE => Some(NFTA_RULE_CHAIN),
        _ => return false,
    };
    let family = match reply.header(1) {
        Some([2]) => Family::V4,
        Some([10]) => Family::V6,
        _ => return false,
    };
    let name = |kind: u16| {
        reply
            .attributes(NFGENMSG)
            .find(|a| a.kind == kind)
            .and_then(|a| a.text())
    };
    let Some(table) = name(TABLE) else { return false };
    let mut here = places
        .iter()
        .filter(|place| place.family == family && place.table == table)
        .peekable();
    if here.peek().is_none() {
        return false;
    }
    match chain_attribute.map(name) {
        None => true,
        Some(chain) => {
            here.any(|place| place.chains.is_empty() || chain.is_some_and(|c| place.chains.contains(&c)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nl::Message;
    use crate::nl::message::Replies;

    const PLACES: [Place; 3] = [
        Place {
            family: Family::V4,
            table: "flannel-ipv4",
            chains: &[],
        },
        Place {
            family: Family::V4,
            table: "nat",
            chains: &["POSTROUTING", "FLANNEL-POSTRTG"],
        },
        Place {
            family: Family::V6,
            table: "nat",
            chains: &["POSTROUTING"],
        },
    ];

    fn told(kind: u16, family: u8) -> Message {
        Message::new("", kind, 0).raw(&[family, 0, 0, 0])
    }

    fn heard<T>(message: &Message, read: impl Fn(&Reply<'_>) -> T) -> T {
        let mut bytes = Vec::new();
        message.write(0, &mut bytes);
        read(&Replies(&bytes).next().unwrap())
    }

    fn is_concerned(message: &Message) -> bool {
        heard(message, |reply| concerns(&PLACES, reply))
    }

    #[test]
    fn change_when_told_of_then_it_concerns_us_in_one_of_the_places_only() {
        let table = |kind: u16, family, name| is_concerned(&told(10 << 8 | kind, family).text(1, name));
        for kind in [0, 2] {
            assert!(table(kind, 2, "flannel-ipv4") && table(kind, 2, "nat") && table(kind, 10, "nat"));
            assert!(!table(kind, 10, "flannel-ipv4") && !table(kind, 2, "filter") && !table(kind, 1, "nat"));
        }
        // Lists of tables, sets, elements.
        assert!(
            [1, 4, 7, 9, 12]
                .iter()
                .all(|kind| !table(*kind, 2, "flannel-ipv4"))
        );
        assert!(!is_concerned(&told(10 << 8, 2)), "of no table");
        assert!(
            !is_concerned(&told(11 << 8, 2).text(1, "nat")),
            "another subsystem"
        );
        for (kind, attribute, other) in [(3, 3, 2), (5, 3, 2), (6, 2, 3), (8, 2, 3)] {
            let chain = |family, name: &str| {
                is_concerned(
                    &told(10 << 8 | kind, family)
                        .text(1, "nat")
                        .text(attribute, name)
                        .text(other, "x"),
                )
            };
            assert!(chain(2, "POSTROUTING") && chain(2, "FLANNEL-POSTRTG") && chain(10, "POSTROUTING"));
            assert!(!chain(2, "OUTPUT") && !chain(10, "FLANNEL-POSTRTG"));
            let any = told(10 << 8 | kind, 2)
                .text(1, "flannel-ipv4")
                .text(attribute, "postrtg");
            assert!(is_concerned(&any), "all of its chains");
            assert!(
                !is_concerned(&told(10 << 8 | kind, 2).text(1, "nat")),
                "of no chain"
            );
        }
    }

    #[test]
    fn author_when_told_then_process_and_name() {
        let generation = told(10 << 8 | 15, 0);
        let whole = generation.clone().u32(2, 4711_u32.to_be()).text(3, "nft");
        assert_eq!(heard(&whole, author), Some((4711, "nft".to_owned())));
        let nameless = generation.clone().u32(2, 4711_u32.to_be());
        assert_eq!(heard(&nameless, author), Some((4711, String::new())));
        assert_eq!(heard(&generation.text(3, "nft"), author), None);
    }
}
