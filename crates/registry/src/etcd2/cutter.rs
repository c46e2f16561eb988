//! JSON as it comes over the wire, cut into the objects that are wanted one by one.
//!
//! etcd's v2 API lists a directory in one reply, whatever is in it, and tells events for as long as one listens. Neither is
//! kept whole: an object is handed on as soon as it is complete, and of a string that is too long for anything that is read no
//! more is kept than shows that.

use memchr::memchr2;

/// No object, and not what is around the objects either, is larger than this, bytes.
const LARGEST: usize = 16 << 20;

/// More than [`LARGEST`] bytes that cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// Where in a string the next byte lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// In none.
    Nothing,
    /// In one.
    String,
    /// Behind a backslash in it.
    Backslash,
    /// In an escape that has so many bytes more.
    Escape(u8),
}

/// Cuts a stream of JSON into the objects that begin inside so many brackets; what is around them is kept beside.
#[derive(Debug)]
pub struct Cutter {
    /// Brackets around an object that is wanted.
    wanted: usize,
    /// Bytes of a string that are kept, as written.
    longest: usize,
    depth: usize,
    within: Within,
    /// Bytes of the string that have come.
    length: usize,
    /// No more of the string is kept.
    is_cut: bool,
    is_inside: bool,
    piece: Vec<u8>,
    rest: Vec<u8>,
}

impl Cutter {
    /// Objects inside `wanted` brackets, of whose strings `longest` bytes are kept.
    pub fn new(wanted: usize, longest: usize) -> Cutter {
        Cutter {
            wanted,
            longest,
            depth: 0,
            within: Within::Nothing,
            length: 0,
            is_cut: false,
            is_inside: false,
            piece: Vec::new(),
            rest: Vec::new(),
        }
    }

    /// What has come around the objects, without them and the commas between them.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Takes in what has come, and hands on each object that is complete.
    pub fn feed(&mut self, mut bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), TooLarge> {
        while let Some((&byte, after)) = bytes.split_first() {
            bytes = match self.within {
                Within::Nothing => {
                    self.take_structure(byte, take);
                    after
                }
                Within::String => self.take_string(bytes),
                Within::Backslash => {
                    self.keep(&[byte]);
                    self.within = if byte == b'u' {
                        Within::Escape(4)
                    } else {
                        Within::String
                    };
                    after
                }
                Within::Escape(left) => {
                    self.keep(&[byte]);
                    self.within = if left > 1 {
                        Within::Escape(left - 1)
                    } else {
                        Within::String
                    };
                    after
                }
            };
            if self.piece.len() > LARGEST || self.rest.len() > LARGEST {
                return Err(TooLarge);
            }
        }
        Ok(())
    }

    fn take_structure(&mut self, byte: u8, take: &mut dyn FnMut(&[u8])) {
        match byte {
            b'{' | b'[' => {
                self.is_inside |= byte == b'{' && self.depth == self.wanted;
                self.depth += 1;
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b'"' => {
                self.within = Within::String;
                (self.length, self.is_cut) = (0, false);
            }
            b',' if !self.is_inside && self.depth == self.wanted => return,
            _ => {}
        }
        self.here().push(byte);
        if self.is_inside && self.depth == self.wanted {
            take(&self.piece);
            self.piece.clear();
            self.is_inside = false;
        }
    }

    /// As much of a string as goes by without being looked at, and the byte that ends that.
    fn take_string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        let (text, left) = bytes.split_at(end);
        let mut kept = self.longest.saturating_sub(self.length).min(text.len());
        // A character that has begun is kept whole.
        while text.get(kept).is_some_and(|byte| byte & 0xc0 == 0x80) {
            kept += 1;
        }
        let (kept, lost) = text.split_at(kept);
        self.keep(kept);
        self.length += lost.len();
        self.is_cut |= !lost.is_empty();
        let Some((&byte, left)) = left.split_first() else {
            return left;
        };
        if byte == b'"' {
            self.within = Within::Nothing;
            self.here().push(byte);
        } else {
            // So is an escape.
            self.is_cut |= self.length >= self.longest;
            self.keep(&[byte]);
            self.within = Within::Backslash;
        }
        left
    }

    fn keep(&mut self, text: &[u8]) {
        self.length += text.len();
        if !self.is_cut {
            self.here().extend_from_slice(text);
        }
    }

    fn here(&mut self) -> &mut Vec<u8> {
        match self.is_inside {
            true => &mut self.piece,
            false => &mut self.rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is cut out of a text that comes in pieces of every size, and what is left around it.
    fn cut(wanted: usize, longest: usize, text: &str) -> (Vec<String>, String) {
        let cut_by = |size: usize| {
            let mut cutter = Cutter::new(wanted, longest);
            let mut found = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                let mut take = |piece: &[u8]| found.push(String::from_utf8(piece.to_vec()).unwrap());
                cutter.feed(chunk, &mut take).unwrap();
            }
            (found, String::from_utf8(cutter.rest().to_vec()).unwrap())
        };
        let whole = cut_by(text.len());
        for size in 1..text.len() {
            assert_eq!(cut_by(size), whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn objects_when_they_are_nested_so_deep_then_each_is_handed_on_and_the_rest_is_left() {
        let text = r#"{"node":{"nodes":[{"a":{"b":[1]}},{"c":"}],{"}],"modifiedIndex":4}}"#;
        let (pieces, rest) = cut(3, 100, text);
        assert_eq!(pieces, [r#"{"a":{"b":[1]}}"#, r#"{"c":"}],{"}"#]);
        assert_eq!(rest, r#"{"node":{"nodes":[],"modifiedIndex":4}}"#);
    }

    #[test]
    fn objects_when_they_follow_each_other_then_each_is_handed_on() {
        let (pieces, rest) = cut(0, 100, "{\"a\":1}\n{\"b\":\"\\\"}\"}\n{");
        assert_eq!(pieces, [r#"{"a":1}"#, r#"{"b":"\"}"}"#]);
        assert_eq!(rest, "\n\n");
    }

    #[test]
    fn a_string_when_it_is_long_then_it_is_cut_between_characters_and_escapes() {
        for (written, kept) in [
            ("abcd", "abcd"),
            ("abcde", "abcd"),
            ("abcé", "abcé"),
            ("abc€x", "abc€"),
            (r#"abc\"x"#, r#"abc\""#),
            (r"abc\u003cx", r"abc\u003c"),
            (r"abcd\u003c", "abcd"),
            (r"ab\\\\x", r"ab\\"),
        ] {
            let (pieces, _) = cut(0, 4, &format!(r#"{{"k":"{written}","l":"x"}}"#));
            assert_eq!(pieces, [format!(r#"{{"k":"{kept}","l":"x"}}"#)], "{written}");
        }
    }

    #[test]
    fn feed_when_there_is_more_than_can_be_cut_then_it_says_so_and_a_long_string_alone_is_no_reason() {
        let mut cutter = Cutter::new(0, 4);
        let long = format!("{{\"k\":\"{}", "x".repeat(2 * LARGEST));
        assert_eq!(cutter.feed(long.as_bytes(), &mut |_| ()), Ok(()));
        let many = format!("\"}}{{\"k\":[{}", "1,".repeat(LARGEST));
        assert_eq!(cutter.feed(many.as_bytes(), &mut |_| ()), Err(TooLarge));
    }

    #[test]
    fn feed_when_it_is_no_json_then_nothing_is_found_and_nothing_breaks() {
        for text in ["}}}]{", "404 page not found\n", "\"", "\\", "\u{0}\u{ff}"] {
            cut(3, 4, text);
            cut(0, 4, text);
        }
    }
}
