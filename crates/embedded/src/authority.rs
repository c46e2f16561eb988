//! Lets clients in that put a whole URL into `:authority`.
//!
//! COMPAT: etcd's Go client up to 3.4 (`etcdctl endpoint status --endpoints http://…`) sends
//! `:authority: http://127.0.0.1:2379`. Go's server does not mind; the h2 crate resets the stream. Nobody reads that
//! header here, so the wrong characters are overwritten before h2 sees them. The replacement has the same length,
//! also in HPACK's Huffman code, so that both sides' header tables stay alike.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Larger frames are beyond what h2 accepts by default (16 KiB) and are passed on as they are.
const LARGEST: usize = 64 << 10;
/// `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// A connection whose incoming bytes are corrected; everything else is passed through.
#[derive(Debug)]
pub struct Tolerant<T> {
    inner: T,
    incoming: Incoming,
}

impl<T> Tolerant<T> {
    /// Wraps a fresh connection.
    pub fn new(inner: T) -> Tolerant<T> {
        Tolerant {
            inner,
            incoming: Incoming::default(),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tolerant<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.incoming.hand_out(buf) {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 8192];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                if !self.incoming.end() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                self.incoming.take(read.filled());
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tolerant<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Where in the incoming bytes we are.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Place {
    #[default]
    Start,
    /// Inside HTTP/2, so many bytes before the next frame's header.
    Frames(usize),
    /// Not HTTP/2.
    Raw,
}

#[derive(Debug, Default)]
struct Incoming {
    place: Place,
    /// Read, but not a whole unit yet.
    held: Vec<u8>,
    /// To be handed out, from `given` on.
    ready: Vec<u8>,
    given: usize,
}

impl Incoming {
    /// Fills the reader's buffer; false when there is nothing to give.
    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let left = self.ready.get(self.given..).unwrap_or_default();
        let (now, _) = left.split_at(left.len().min(buf.remaining()));
        buf.put_slice(now);
        self.given += now.len();
        let gave = !now.is_empty();
        if self.given == self.ready.len() {
            self.ready.clear();
            self.given = 0;
        }
        gave
    }

    /// No more will come: gives up what is held. False when there was nothing.
    fn end(&mut self) -> bool {
        let any = !self.held.is_empty();
        self.ready.append(&mut self.held);
        any
    }

    fn take(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        while let Some(length) = self.unit() {
            self.ready.extend(self.held.drain(..length));
        }
    }

    /// How many of the held bytes can be handed out now; corrects a header frame on the way.
    fn unit(&mut self) -> Option<usize> {
        let held = self.held.len();
        if held == 0 {
            return None;
        }
        match self.place {
            Place::Raw => Some(held),
            Place::Start => {
                let same = held.min(PREFACE.len());
                if self.held.get(..same) != PREFACE.get(..same) {
                    self.place = Place::Raw;
                    return Some(held);
                }
                self.place = if same == PREFACE.len() {
                    Place::Frames(0)
                } else {
                    return None;
                };
                Some(same)
            }
            Place::Frames(0) => {
                let [a, b, c, kind, flags, ..] = *self.held.get(..FRAME_HEADER)? else {
                    return None;
                };
                let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if kind != HEADERS || length > LARGEST {
                    self.place = Place::Frames(length);
                    return Some(FRAME_HEADER);
                }
                correct_frame(flags, self.held.get_mut(FRAME_HEADER..FRAME_HEADER + length)?);
                Some(FRAME_HEADER + length)
            }
            Place::Frames(left) => {
                let now = left.min(held);
                self.place = Place::Frames(left - now);
                Some(now)
            }
        }
    }
}

fn correct_frame(flags: u8, payload: &mut [u8]) {
    let mut start = 0;
    let mut end = payload.len();
    if flags & PADDED != 0 {
        end = end.saturating_sub(payload.first().map_or(0, |padding| usize::from(*padding)));
        start += 1;
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    if let Some(block) = payload.get_mut(start..end) {
        // A block that cannot be followed is left alone: h2 will say what is wrong with it.
        let _ = correct_block(block);
    }
}

/// Walks an HPACK header block (RFC 7541 §6) and corrects the value of `:authority`.
fn correct_block(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        if first & 0x80 != 0 {
            (_, at) = integer(block, at, 7)?;
            continue;
        }
        if first & 0xe0 == 0x20 {
            (_, at) = integer(block, at, 5)?;
            continue;
        }
        let name;
        (name, at) = integer(block, at, if first & 0x40 != 0 { 6 } else { 4 })?;
        if name == 0 {
            let (length, from) = integer(block, at, 7)?;
            at = from.checked_add(length)?;
        }
        let huffman = block.get(at)? & 0x80 != 0;
        let (length, from) = integer(block, at, 7)?;
        at = from.checked_add(length)?;
        let value = block.get_mut(from..at)?;
        if name == AUTHORITY {
            correct_value(huffman, value);
        }
    }
    Some(())
}

/// An integer whose first `prefix` bits are at `at`, and where it ends (RFC 7541 §5.1).
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut next = at + 1;
    if value < mask {
        return Some((value, next));
    }
    for shift in [0, 7, 14, 21] {
        let byte = *block.get(next)?;
        next += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, next));
        }
    }
    None
}

/// `http://` becomes `httpB--` and `https://` `httpsB--`: in the Huffman code ':' and 'B' have 7 bits, '/' and '-' 6.
fn correct_value(huffman: bool, value: &mut [u8]) {
    match (huffman, value) {
        (
            false,
            [
                b'h',
                b't',
                b't',
                b'p',
                b's',
                colon @ b':',
                one @ b'/',
                two @ b'/',
                ..,
            ],
        )
        | (false, [b'h', b't', b't', b'p', colon @ b':', one @ b'/', two @ b'/', ..]) => {
            (*colon, *one, *two) = (b'B', b'-', b'-');
        }
        // The 41 bits of "http://"; the last one is 0 before and after.
        (true, [0x9d, 0x29, 0xae, a @ 0xe3, b @ 0x0c, 0..=0x7f, ..]) => (*a, *b) = (0xea, 0xcb),
        // The 46 bits of "https://".
        (true, [0x9d, 0x29, 0xad, 0x17, a @ 0x18, b @ 0x60..=0x63, ..]) => {
            (*a, *b) = (0x56, *b - 0x60 + 0x58)
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
