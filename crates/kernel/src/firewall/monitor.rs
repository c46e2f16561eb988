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
