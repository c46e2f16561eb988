//! A blocking netlink socket: strict checking, extended acks, pipelining, and no way to wait for ever.

pub mod error;
pub mod message;
mod setup;

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags};

pub use error::{Fault, NetlinkError};
pub use message::{Attribute, Attributes, Message, Reply, flag};

use message::{Replies, add_flags, get_u32};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
/// Control types end here; below, only the three above are ever sent.
const NLMSG_MIN_TYPE: u16 = 16;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// Most bytes of one `sendmsg`: well under the default send buffer of 208 KiB.
const SEND_BYTES: usize = 64 << 10;
/// Most messages of one `sendmsg`, so that even 1,000 refusals fit the receive buffer.
const SEND_MESSAGES: usize = 1000;
/// What a queued refusal costs of the receive buffer, with the kernel's overhead and its text.
const REFUSAL_COST: usize = 2 << 10;
/// What a queued reply costs: the kernel allocates a page for each, whatever it holds.
const REPLY_COST: usize = 8 << 10;
/// The kernel fills dumps up to the largest buffer it has seen, at most 32 KiB.
const DATAGRAM: usize = 32 << 10;
const DATAGRAM_MAX: usize = 4 << 20;
const DUMP_ATTEMPTS: u32 = 10;
/// Before the second attempt at a dump, twice that before the third, and so on: who changes things for a moment is let through.
const DUMP_PAUSE: Duration = Duration::from_millis(1);
/// Replies are queued before `sendmsg` returns, so this is only ever waited for when one was lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Netlink families we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `NETLINK_ROUTE`: links, addresses, neighbours, routes.
    Route,
    /// `NETLINK_NETFILTER`: nftables.
    Netfilter,
    /// `NETLINK_GENERIC`: families by name, such as WireGuard's.
    Generic,
}

impl Protocol {
    fn number(self) -> Option<rustix::net::Protocol> {
        match self {
            // NETLINK_ROUTE is 0, which is how "no protocol" is written.
            Protocol::Route => None,
            Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
            Protocol::Generic => Some(rustix::net::netlink::GENERIC),
        }
    }
}

/// How many system calls a socket has made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// `sendmsg`.
    pub sends: u64,
    /// `recvmsg`.
    pub receives: u64,
}

/// A netlink socket. It stays in the network namespace it was opened in, whatever its thread does later.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
    /// Bytes the kernel may queue for us.
    room: usize,
    calls: Calls,
}

/// A received datagram's length in the buffer, or why there is none.
enum Received {
    Bytes(usize),
    Nothing,
}

impl Socket {
    /// Our port id: what notifications carry that we caused.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// System calls made so far.
    pub fn calls(&self) -> Calls {
        self.calls
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn request(&mut self, message: &Message) -> Result<(), NetlinkError> {
        self.converse(std::iter::once(message.clone()), REFUSAL_COST, |_, _| {})
            .pop()
            .unwrap_or(Ok(()))
    }

    /// Sends one request and gives its (first) reply to `read`; `None` when the kernel acknowledged without one.
    pub fn get<T>(
        &mut self,
        message: &Message,
        mut read: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let mut found = None;
        let outcome = self.converse(std::iter::once(message.clone()), REPLY_COST, |_, reply| {
            if found.is_none() {
                found = read(reply);
            }
        });
        outcome.into_iter().collect::<Result<(), _>>()?;
        Ok(found)
    }

    /// Sends many requests in few system calls; each has its own outcome, and a refused one stops none behind it.
    ///
    /// Only the last message of each send asks for an acknowledgement: refusals come unasked, successes are silent, so
    /// that nothing overruns. The iterator is drawn from while sending, so messages need not all exist at once.
    pub fn pipeline(&mut self, messages: impl IntoIterator<Item = Message>) -> Vec<Result<(), NetlinkError>> {
        self.converse(messages.into_iter(), REFUSAL_COST, |_, _| {})
    }

    /// As [`Socket::pipeline`] for requests that are answered: `read` gets each reply with the position of its request.
    pub fn pipeline_get(
        &mut self,
        messages: impl IntoIterator<Item = Message>,
        read: impl FnMut(usize, &Reply<'_>),
    ) -> Vec<Result<(), NetlinkError>> {
        self.converse(messages.into_iter(), REPLY_COST, read)
    }

    fn converse(
        &mut self,
        messages: impl Iterator<Item = Message>,
        cost: usize,
        mut read: impl FnMut(usize, &Reply<'_>),
    ) -> Vec<Result<(), NetlinkError>> {
        let most = (self.room / cost).clamp(1, SEND_MESSAGES);
        let mut outcomes: Vec<Result<(), NetlinkError>> = Vec::with_capacity(messages.size_hint().0);
        let mut messages = messages.peekable();
        let mut send: Vec<u8> = Vec::new();
        let mut verbs: Vec<&'static str> = Vec::new();
        while messages.peek().is_some() {
            send.clear();
            verbs.clear();
            let (base, first) = (outcomes.len(), self.sequence.wrapping_add(1));
            let mut last_start = 0;
            while let Some(message) = messages
                .next_if(|m| verbs.is_empty() || (verbs.len() < most && send.len() + m.len() <= SEND_BYTES))
            {
                last_start = send.len();
                self.sequence = self.sequence.wrapping_add(1);
                verbs.push(message.verb());
                if message.is_oversize() {
                    // Sent as a no-op in its place, so that sequence numbers keep matching positions.
                    Message::new(message.verb(), 1, 0).write(self.sequence, &mut send);
                    let text = "an attribute is longer than 65,535 bytes";
                    outcomes.push(Err(NetlinkError::new(
                        message.verb(),
                        Fault::Malformed,
                        Errno::MSGSIZE,
                        text,
                    )));
                } else {
                    message.write(self.sequence, &mut send);
                    outcomes.push(Ok(()));
                }
            }
            add_flags(&mut send, last_start, flag::ACK);
            self.exchange(&send, first, base, &verbs, &mut outcomes, &mut read);
        }
        outcomes
    }

    /// Sends one chunk and reads until its last message is acknowledged or refused.
    fn exchange(
        &mut self,
        send: &[u8],
        first: u32,
        base: usize,
        verbs: &[&'static str],
        outcomes: &mut [Result<(), NetlinkError>],
        read: &mut impl FnMut(usize, &Reply<'_>),
    ) {
        let mut settled = vec![false; verbs.len()];
        let mut failure: Option<NetlinkError> = self.send(send).err();
        let mut answered = failure.is_some();
        let mut flags = RecvFlags::empty();
        while !answered {
            match self.receive(flags) {
                Ok(Received::Nothing) => break,
                Ok(Received::Bytes(length)) => {
                    let buffer = std::mem::take(&mut self.buffer);
                    for reply in Replies(buffer.get(..length).unwrap_or(&[])) {
                        let position = reply.sequence.wrapping_sub(first) as usize;
                        let Some(verb) = verbs.get(position) else { continue };
                        match reply.kind {
                            NLMSG_ERROR => {
                                if let Some(error) = refusal(verb, &reply)
                                    && let Some(outcome) = outcomes.get_mut(base + position)
                                {
                                    *outcome = Err(error);
                                }
                                if let Some(mark) = settled.get_mut(position) {
                                    *mark = true;
                                }
                                answered |= position + 1 == verbs.len();
                            }
                            NLMSG_OVERRUN => {
                                failure =
                                    Some(NetlinkError::new(verb, Fault::Overrun, Errno::NOBUFS, OVERRUN));
                            }
                            kind if kind >= NLMSG_MIN_TYPE => read(base + position, &reply),
                            _ => {}
                        }
                    }
                    self.buffer = buffer;
                }
                // What is queued is all there will be: read it, but do not wait for an answer that may be the lost one.
                Err(error) if matches!(error.fault, Fault::Overrun | Fault::Truncated) => {
                    failure = Some(error);
                    flags = RecvFlags::DONTWAIT;
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let Some(failure) = failure else { return };
        for ((settled, verb), outcome) in settled.iter().zip(verbs).zip(outcomes.iter_mut().skip(base)) {
            if !settled && outcome.is_ok() {
                *outcome = Err(NetlinkError {
                    verb: (*verb).into(),
                    ..failure.clone()
                });
            }
        }
    }

    /// Asks for everything that matches. Interrupted or truncated dumps are started anew, each into a fresh `S`, so that
    /// what is returned is one consistent answer.
    pub fn dump<S>(
        &mut self,
        message: &Message,
        mut start: impl FnMut() -> S,
        mut read: impl FnMut(&mut S, &Reply<'_>),
    ) -> Result<S, NetlinkError> {
        let verb = message.verb();
        let mut send = Vec::with_capacity(message.len());
        for attempt in 0..DUMP_ATTEMPTS {
            std::thread::sleep(DUMP_PAUSE * attempt);
            send.clear();
            self.sequence = self.sequence.wrapping_add(1);
            message.write(self.sequence, &mut send);
            add_flags(&mut send, 0, flag::DUMP);
            self.send(&send).map_err(|error| NetlinkError {
                verb: verb.into(),
                ..error
            })?;
            let mut state = start();
            if self.read_dump(verb, |reply| read(&mut state, reply))? {
                return Ok(state);
            }
        }
        let text = format!("interrupted by changes {DUMP_ATTEMPTS} times");
        Err(NetlinkError::new(verb, Fault::Interrupted, Errno::INTR, text))
    }

    /// Reads a dump to its end; false when it is not whole.
    fn read_dump(
        &mut self,
        verb: &'static str,
        mut read: impl FnMut(&Reply<'_>),
    ) -> Result<bool, NetlinkError> {
        let mut whole = true;
        loop {
            let length = match self.receive(RecvFlags::empty()) {
                Ok(Received::Bytes(length)) => length,
                Ok(Received::Nothing) => continue,
                // The rest of the dump must be read all the same: until then the kernel starts no other.
                Err(error) if error.fault == Fault::Truncated => {
                    whole = false;
                    continue;
                }
                Err(error) => {
                    return Err(NetlinkError {
                        verb: verb.into(),
                        ..error
                    });
                }
            };
            let buffer = std::mem::take(&mut self.buffer);
            let mut end = None;
            for reply in Replies(buffer.get(..length).unwrap_or(&[])) {
                if reply.sequence != self.sequence {
                    continue;
                }
                whole &= reply.flags & flag::DUMP_INTR == 0;
                match reply.kind {
                    NLMSG_DONE => end = Some(done(verb, &reply)),
                    NLMSG_ERROR => end = Some(refusal(verb, &reply).map_or(Ok(()), Err)),
                    kind if kind >= NLMSG_MIN_TYPE && whole => read(&reply),
                    _ => {}
                }
            }
            self.buffer = buffer;
            if let Some(end) = end {
                return end.map(|()| whole);
            }
        }
    }

    /// Reads every notification that is queued, without waiting; returns how many there were.
    ///
    /// An error of [`Fault::Overrun`] or [`Fault::Truncated`] means that some were lost and others are still queued: call
    /// again to read those.
    pub fn notifications(&mut self, mut read: impl FnMut(&Reply<'_>)) -> Result<usize, NetlinkError> {
        let mut count = 0;
        while let Received::Bytes(length) = self.receive(RecvFlags::DONTWAIT)? {
            let buffer = std::mem::take(&mut self.buffer);
            for reply in Replies(buffer.get(..length).unwrap_or(&[])).filter(|r| r.kind >= NLMSG_MIN_TYPE) {
                count += 1;
                read(&reply);
            }
            self.buffer = buffer;
        }
        Ok(count)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.calls.sends += 1;
        let mut control = SendAncillaryBuffer::default();
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, SendFlags::empty())
        })
        .map_err(|errno| NetlinkError::new("send to kernel", Fault::Socket, errno, ""))
        .map(|_| ())
    }

    /// Receives one datagram of the kernel into the buffer. `Nothing` comes only with `DONTWAIT`.
    fn receive(&mut self, flags: RecvFlags) -> Result<Received, NetlinkError> {
        const VERB: &str = "receive from kernel";
        loop {
            self.calls.receives += 1;
            let mut control = RecvAncillaryBuffer::default();
            let mut buffers = [IoSliceMut::new(&mut self.buffer)];
            // With MSG_TRUNC the length is the datagram's, not what fitted.
            match rustix::net::recvmsg(&self.fd, &mut buffers, &mut control, flags | RecvFlags::TRUNC) {
                Ok(message) => {
                    let sender = message.address.and_then(|a| SocketAddrNetlink::try_from(a).ok());
                    if sender.is_none_or(|s| s.pid() != 0) {
                        // Any process may send to our port; only the kernel is port 0.
                        continue;
                    }
                    if message.flags.contains(ReturnFlags::TRUNC) || message.bytes > self.buffer.len() {
                        let needed = message.bytes.next_power_of_two().clamp(DATAGRAM, DATAGRAM_MAX);
                        let text = format!("{} bytes for a buffer of {}", message.bytes, self.buffer.len());
                        if needed > self.buffer.len() {
                            self.buffer.resize(needed, 0);
                        }
                        return Err(NetlinkError::new(VERB, Fault::Truncated, Errno::MSGSIZE, text));
                    }
                    return Ok(Received::Bytes(message.bytes));
                }
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => {
                    return Err(NetlinkError::new(VERB, Fault::Overrun, Errno::NOBUFS, OVERRUN));
                }
                Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => return Ok(Received::Nothing),
                Err(Errno::AGAIN) => {
                    let text = format!("no reply within {} s", REPLY_TIMEOUT.as_secs());
                    return Err(NetlinkError::new(VERB, Fault::Timeout, Errno::TIMEDOUT, text));
                }
                Err(errno) => return Err(NetlinkError::new(VERB, Fault::Socket, errno, "")),
            }
        }
    }
}

const OVERRUN: &str = "messages were lost: the receive buffer was full";

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The error in an `NLMSG_ERROR`; `None` when it acknowledges.
fn refusal(verb: &'static str, reply: &Reply<'_>) -> Option<NetlinkError> {
    let code = i32::from_ne_bytes(reply.body.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    let mut error = NetlinkError::refused(verb, code);
    if reply.flags & NLM_F_ACK_TLVS != 0 {
        // struct nlmsgerr: the error, the header of the request, and, unless capped, the rest of the request.
        let echoed = if reply.flags & NLM_F_CAPPED != 0 {
            16
        } else {
            get_u32(reply.body, 4)? as usize
        };
        explain(&mut error, reply.attributes(echoed.saturating_add(4)));
    }
    Some(error)
}

/// `NLMSG_DONE` carries an error code of its own, and since Linux 5.14 its explanation.
fn done(verb: &'static str, reply: &Reply<'_>) -> Result<(), NetlinkError> {
    let code = reply
        .body
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    if code >= 0 {
        return Ok(());
    }
    let mut error = NetlinkError::refused(verb, code);
    if reply.flags & NLM_F_ACK_TLVS != 0 {
        explain(&mut error, reply.attributes(4));
    }
    Err(error)
}

fn explain(error: &mut NetlinkError, attributes: Attributes<'_>) {
    for attribute in attributes {
        match attribute.kind {
            NLMSGERR_ATTR_MSG => error.text = attribute.text().unwrap_or_default().into(),
            NLMSGERR_ATTR_OFFS => error.offset = attribute.u32(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
