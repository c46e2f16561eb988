//! The keys a request speaks of: one key, or a half-open interval.

use std::ops::Bound;

/// Where a span begins and ends.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A `key` / `range_end` pair of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    start: Vec<u8>,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// Only the start itself.
    Single,
    /// Every key from the start on.
    Open,
    /// Every key from the start to before this one.
    Before(Vec<u8>),
}

impl Span {
    /// Reads the API's convention: an empty `range_end` means the one key, a single zero byte everything from
    /// `key` on.
    pub fn new(key: &[u8], range_end: &[u8]) -> Span {
        let end = match range_end {
            [] => End::Single,
            [0] => End::Open,
            _ => End::Before(range_end.to_vec()),
        };
        Span {
            start: key.to_vec(),
            end,
        }
    }

    /// The one key, where the span is a single one.
    pub fn single(&self) -> Option<&[u8]> {
        (self.end == End::Single).then_some(self.start.as_slice())
    }

    /// Whether no key can be inside: an end at or before the start.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Single => key == self.start,
            End::Open => key >= self.start.as_slice(),
            End::Before(end) => key >= self.start.as_slice() && key < end.as_slice(),
        }
    }

    /// The span as bounds for an ordered map; `None` when it is empty (such bounds would panic).
    pub fn bounds(&self) -> Option<Bounds<'_>> {
        let start = Bound::Included(self.start.as_slice());
        match &self.end {
            End::Single => Some((start, start)),
            End::Open => Some((start, Bound::Unbounded)),
            End::Before(_) if self.is_empty() => None,
            End::Before(end) => Some((start, Bound::Excluded(end.as_slice()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_when_read_holds_the_keys_etcds_convention_means() {
        let one = Span::new(b"b", b"");
        assert_eq!((one.single(), one.is_empty()), (Some(&b"b"[..]), false));
        assert!(one.contains(b"b") && !one.contains(b"ba") && !one.contains(b"a"));
        assert_eq!(
            one.bounds(),
            Some((Bound::Included(&b"b"[..]), Bound::Included(&b"b"[..])))
        );
        let open = Span::new(b"b", b"\0");
        assert_eq!((open.single(), open.is_empty()), (None, false));
        assert!(open.contains(b"b") && open.contains(b"\xff") && !open.contains(b"a"));
        assert_eq!(
            open.bounds(),
            Some((Bound::Included(&b"b"[..]), Bound::Unbounded))
        );
        let range = Span::new(b"b", b"d");
        assert!(
            range.contains(b"b")
                && range.contains(b"c\xff")
                && !range.contains(b"d")
                && !range.contains(b"a")
        );
        assert_eq!(
            range.bounds(),
            Some((Bound::Included(&b"b"[..]), Bound::Excluded(&b"d"[..])))
        );
        for end in [&b"b"[..], b"a"] {
            let none = Span::new(b"b", end);
            assert!(
                none.is_empty() && !none.contains(b"b") && none.bounds().is_none(),
                "{end:?}"
            );
        }
    }
}
