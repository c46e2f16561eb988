//! Links whose other end is in another network namespace, and what addresses there are beyond them, without entering it.
//!
//! Fields are those of `linux/if_link.h`, `if_addr.h` and `net_namespace.h`. A namespace that no process shows and no path leads
//! to is found by its links all the same.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::nl::{Fault, Message, NetlinkError, Reply};

use super::address::{self, ObservedAddress};
use super::link::{self, ObservedLink};
use super::{AF_UNSPEC, Rtnl};

const IFLA_LINK_NETNSID: u16 = 37;
const IFA_TARGET_NETNSID: u16 = 10;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
/// `struct rtgenmsg`, padded.
const RTGENMSG: usize = 4;

impl Rtnl {
    /// Links whose other end or lower link is in another namespace, each with the number that namespace has here.
    pub fn doorways(&mut self) -> Result<Vec<(ObservedLink, i32)>, NetlinkError> {
        let message = Message::new("list links", link::GET, 0).raw(&link::header(0, 0, 0));
        self.list(&message, |reply| {
            let mut attributes = reply.attributes(IFINFOMSG);
            let beyond = attributes.find(|a| a.kind == IFLA_LINK_NETNSID)?.u32()?;
            Some((link::read(reply)?, beyond.cast_signed()))
        })
    }

    /// Every address of the namespace, of both families and every scope.
    pub fn all_addresses(&mut self) -> Result<Vec<ObservedAddress>, NetlinkError> {
        let message = Message::new("list addresses", address::GET, 0).raw(&[0; IFADDRMSG]);
        self.list(&message, address::read)
    }

    /// Every address of the namespace that has the number `id` here. Needs no path to it, but power over it (`CAP_NET_ADMIN`) and
    /// Linux 4.20.
    pub fn addresses_beyond(&mut self, id: i32) -> Result<Vec<ObservedAddress>, NetlinkError> {
        const VERB: &str = "list addresses of another namespace";
        let message = Message::new(VERB, address::GET, 0)
            .raw(&[0; IFADDRMSG])
            .u32(IFA_TARGET_NETNSID, id.cast_unsigned());
        let read = |reply: &Reply<'_>| {
            let of_it = reply
                .attributes(IFADDRMSG)
                .any(|a| a.kind == IFA_TARGET_NETNSID && a.u32() == Some(id.cast_unsigned()));
            Some((address::read(reply)?, of_it))
        };
        let found = self.list(&message, read)?;
        // An older kernel does not look at the attribute and answers with our own addresses.
        if found.iter().any(|(_, of_it)| !of_it) {
            let why = "this kernel shows only its own namespace's";
            return Err(NetlinkError::new(VERB, Fault::Refused, Errno::OPNOTSUPP, why));
        }
        Ok(found.into_iter().map(|(address, _)| address).collect())
    }

    /// The number a namespace has here; `None` when no link leads there and it has none.
    pub fn number_of(&mut self, netns: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
        let message = Message::new("get namespace id", RTM_GETNSID, 0)
            .raw(&[AF_UNSPEC, 0, 0, 0])
            .u32(NETNSA_FD, netns.as_raw_fd().cast_unsigned());
        let read = |reply: &Reply<'_>| {
            let mut attributes = reply.attributes(RTGENMSG);
            let id = attributes.find(|a| a.kind == NETNSA_NSID)?.u32()?;
            (reply.kind == RTM_NEWNSID).then_some(id.cast_signed())
        };
        Ok(self.socket().get(&message, read)?.filter(|id| *id >= 0))
    }
}
