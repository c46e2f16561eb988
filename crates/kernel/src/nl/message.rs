//! Netlink messages as bytes: built by appending, read without copying. Formats: `linux/netlink.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_F_NESTED`: to be or-ed to an attribute's type where the kernel insists on it.
pub const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

/// `NLM_F_*` request flags.
pub mod flag {
    /// Set on every request.
    pub const REQUEST: u16 = 0x1;
    /// More messages of the same answer follow.
    pub const MULTI: u16 = 0x2;
    /// Acknowledge success too.
    pub const ACK: u16 = 0x4;
    /// The dump was interrupted by a change.
    pub const DUMP_INTR: u16 = 0x10;
    /// Return everything that matches.
    pub const DUMP: u16 = 0x300;
    /// Replace what is there.
    pub const REPLACE: u16 = 0x100;
    /// Refuse when it is there.
    pub const EXCL: u16 = 0x200;
    /// Make it when it is not there.
    pub const CREATE: u16 = 0x400;
    /// Add behind what is there.
    pub const APPEND: u16 = 0x800;
    /// Make an object that must not be there yet.
    pub const ADD: u16 = CREATE | EXCL;
    /// Make an object, or turn what is there into it.
    pub const PUT: u16 = CREATE | REPLACE;
}

fn padded(length: usize) -> usize {
    (length + 3) & !3
}

/// A request under construction.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    verb: &'static str,
    oversize: bool,
}

impl Message {
    /// A message of type `kind` with `flags` ([`flag::REQUEST`] is added). `verb` names it in errors ("add link").
    pub fn new(verb: &'static str, kind: u16, flags: u16) -> Message {
        let mut bytes = Vec::with_capacity(96);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Message {
            bytes,
            verb,
            oversize: false,
        }
    }

    /// Appends the family header (`ifinfomsg`, `rtmsg`, …), or any bytes, padded to four.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Message {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(padded(self.bytes.len()), 0);
        self
    }

    /// Appends an attribute with these bytes as its value.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        let length = u16::try_from(value.len() + ATTRIBUTE_HEADER).unwrap_or_else(|_| {
            self.oversize = true;
            u16::MAX
        });
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    /// Appends a byte.
    #[must_use]
    pub fn u8(self, kind: u16, value: u8) -> Message {
        self.attribute(kind, &[value])
    }

    /// Appends a host-order number.
    #[must_use]
    pub fn u16(self, kind: u16, value: u16) -> Message {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a big-endian number, as ports are.
    #[must_use]
    pub fn be16(self, kind: u16, value: u16) -> Message {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends a host-order number.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Message {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends text with the final NUL that name attributes have.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Message {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends the 4 or 16 bytes of an address.
    #[must_use]
    pub fn ip(self, kind: u16, value: IpAddr) -> Message {
        match value {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    /// Appends an attribute that holds the attributes `inner` appends.
    #[must_use]
    pub fn nest(mut self, kind: u16, inner: impl FnOnce(Message) -> Message) -> Message {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        let mut message = inner(self);
        match u16::try_from(message.bytes.len().saturating_sub(start)) {
            Ok(length) => {
                if let Some(place) = message.bytes.get_mut(start..start + 2) {
                    place.copy_from_slice(&length.to_ne_bytes());
                }
            }
            Err(_) => message.oversize = true,
        }
        message
    }

    /// What errors call it.
    pub fn verb(&self) -> &'static str {
        self.verb
    }

    /// Bytes it takes on the wire.
    #[expect(clippy::len_without_is_empty, reason = "a message always has its header")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// An attribute in it does not fit the 16 bits of its length field, so it must not be sent.
    pub fn is_oversize(&self) -> bool {
        self.oversize
    }

    /// The finished bytes with this sequence number, as they go to the kernel.
    pub fn write(&self, sequence: u32, to: &mut Vec<u8>) {
        let start = to.len();
        to.extend_from_slice(&self.bytes);
        patch(to, start, &(self.bytes.len() as u32).to_ne_bytes());
        patch(to, start + 8, &sequence.to_ne_bytes());
    }
}

/// Or-s `flags` into the message that starts at `start`.
pub(crate) fn add_flags(bytes: &mut [u8], start: usize, flags: u16) {
    let now = bytes
        .get(start + 6..start + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_ne_bytes);
    patch(bytes, start + 6, &(now | flags).to_ne_bytes());
}

fn patch(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// `nlmsg_pid`: port id the message is for, in a notification that of the socket that caused it, or 0.
    pub port: u32,
    /// Everything behind the header.
    pub body: &'a [u8],
}

impl<'a> Reply<'a> {
    /// The first `length` bytes of the body, its family header; `None` when it is shorter.
    pub fn header(&self, length: usize) -> Option<&'a [u8]> {
        self.body.get(..length)
    }

    /// The attributes behind a family header of `length` bytes.
    pub fn attributes(&self, length: usize) -> Attributes<'a> {
        attributes(self.body.get(padded(length)..).unwrap_or(&[]))
    }
}

/// The messages of a datagram; ends at the first thing that is not a message.
#[derive(Debug, Clone)]
pub struct Replies<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Replies<'a> {
    type Item = Reply<'a>;

    fn next(&mut self) -> Option<Reply<'a>> {
        let header = self.0.get(..HEADER)?;
        let length = get_u32(header, 0)? as usize;
        let body = self.0.get(HEADER..length)?;
        let reply = Reply {
            kind: get_u16(header, 4)?,
            flags: get_u16(header, 6)?,
            sequence: get_u32(header, 8)?,
            port: get_u32(header, 12)?,
            body,
        };
        self.0 = self.0.get(padded(length)..).unwrap_or(&[]);
        Some(reply)
    }
}

/// Reads a host-order number at a byte offset.
pub fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Reads a host-order number at a byte offset.
pub fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Type without the nested and byte-order bits.
    pub kind: u16,
    /// Its value, without padding.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// As a byte.
    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    /// As a host-order number.
    pub fn u16(&self) -> Option<u16> {
        get_u16(self.value, 0)
    }

    /// As a big-endian number.
    pub fn be16(&self) -> Option<u16> {
        self.u16().map(u16::from_be)
    }

    /// As a host-order number.
    pub fn u32(&self) -> Option<u32> {
        get_u32(self.value, 0)
    }

    /// As an address of 4 or 16 bytes.
    pub fn ip(&self) -> Option<IpAddr> {
        if let Ok(v4) = <[u8; 4]>::try_from(self.value) {
            return Some(IpAddr::V4(Ipv4Addr::from(v4)));
        }
        <[u8; 16]>::try_from(self.value)
            .ok()
            .map(|v6| IpAddr::V6(Ipv6Addr::from(v6)))
    }

    /// As text up to the first NUL.
    pub fn text(&self) -> Option<&'a str> {
        let end = self
            .value
            .iter()
            .position(|b| *b == 0)
            .unwrap_or(self.value.len());
        std::str::from_utf8(self.value.get(..end)?).ok()
    }

    /// The attributes inside.
    pub fn nested(&self) -> Attributes<'a> {
        attributes(self.value)
    }
}

/// Walks attributes; ends at the first thing that is not one.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

/// The attributes in `bytes`.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(get_u16(self.0, 0)?);
        let kind = get_u16(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(padded(length)..).unwrap_or(&[]);
        Some(Attribute { kind, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_when_written_then_lengths_and_padding_are_netlinks() {
        let message = Message::new("test", 16, flag::ADD)
            .raw(&[7; 16])
            .text(3, "ab")
            .nest(18, |m| {
                m.attribute(1, b"vxlan")
                    .nest(2, |m| m.u32(1, 0x0102_0304).be16(15, 8472))
            });
        let mut bytes = vec![0xee];
        message.write(9, &mut bytes);
        let mut expected = vec![0xee];
        expected.extend(72u32.to_ne_bytes());
        expected.extend(16u16.to_ne_bytes());
        expected.extend(0x601u16.to_ne_bytes());
        expected.extend(9u32.to_ne_bytes());
        expected.extend([0; 4]);
        expected.extend([7; 16]);
        expected.extend([7, 0, 3, 0, b'a', b'b', 0, 0]);
        expected.extend([32, 0, 18, 0]);
        expected.extend([9, 0, 1, 0, b'v', b'x', b'l', b'a', b'n', 0, 0, 0]);
        expected.extend([20, 0, 2, 0]);
        expected.extend([8, 0, 1, 0, 4, 3, 2, 1]);
        expected.extend([6, 0, 15, 0, 0x21, 0x18, 0, 0]);
        // The two nests end where the message ends; the lengths above were counted by hand.
        let total = (expected.len() - 1) as u32;
        expected[1..5].copy_from_slice(&total.to_ne_bytes());
        let outer = (total - 16 - 16 - 8) as u16;
        expected[41..43].copy_from_slice(&outer.to_ne_bytes());
        assert_eq!(bytes, expected);
        let reply = Replies(&bytes[1..]).next().expect("one message");
        assert_eq!((reply.kind, reply.sequence), (16, 9));
        let found: Vec<_> = reply.attributes(16).map(|a| a.kind).collect();
        assert_eq!(found, [3, 18]);
    }

    #[test]
    fn nest_when_longer_than_its_length_field_then_message_says_so() {
        let message = Message::new("test", 16, 0).nest(1, |mut m| {
            for _ in 0..70 {
                m = m.attribute(2, &[0; 1000]);
            }
            m
        });
        assert!(message.is_oversize());
        assert!(
            Message::new("test", 16, 0)
                .attribute(1, &[0; 70_000])
                .is_oversize()
        );
        assert!(
            !Message::new("test", 16, 0)
                .attribute(1, &[0; 60_000])
                .is_oversize()
        );
    }

    #[test]
    fn garbage_when_read_then_nothing_panics() {
        let mut state = 1u32;
        for length in 0..400 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Mostly small numbers, so that lengths are sometimes believable.
                    if state >> 31 == 0 {
                        0
                    } else {
                        (state >> 24) as u8 % 40
                    }
                })
                .collect();
            for reply in Replies(&bytes) {
                for attribute in reply.attributes(4) {
                    let _ = (
                        attribute.u8(),
                        attribute.be16(),
                        attribute.u32(),
                        attribute.ip(),
                        attribute.text(),
                    );
                    let _ = attribute.nested().count();
                }
            }
        }
        assert!(
            Replies(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                .next()
                .is_none()
        );
    }
}
