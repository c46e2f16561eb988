//! Whose something is: a container and one of its interfaces.

use std::net::IpAddr;

use crate::call::Call;

/// An attachment with the addresses it has, or had.
pub type Holding = (Owner, Vec<IpAddr>);

/// An attachment as what it holds is marked with it. Very old files name no interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Container id.
    pub container: String,
    /// Interface; empty in files of old versions.
    pub ifname: String,
}

impl Owner {
    /// An attachment.
    pub fn new(container: &str, ifname: &str) -> Owner {
        Owner {
            container: container.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    /// Reads a reservation's content; `None` when it holds nothing. White space around it does not count, and a file with zeros
    /// in it is one that a power cut has emptied on XFS.
    pub fn parse(content: &[u8]) -> Option<Owner> {
        let text = String::from_utf8_lossy(content);
        let text = text.trim();
        if text.is_empty() || text.contains('\0') {
            return None;
        }
        let (container, ifname) = text.split_once("\r\n").unwrap_or((text, ""));
        Some(Owner::new(container, ifname))
    }

    /// The reservation's content.
    pub fn content(&self) -> String {
        format!("{}\r\n{}", self.container, self.ifname)
    }

    /// The attachment a call is about.
    pub fn of(call: &Call) -> Owner {
        Owner::new(&call.env.container_id, &call.env.ifname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_when_written_and_read_is_the_same_and_what_holds_nothing_is_nobodys() {
        let owner = Owner::new("c1", "eth0");
        assert_eq!(owner.content(), "c1\r\neth0");
        assert_eq!(Owner::parse(owner.content().as_bytes()), Some(owner));
        assert_eq!(Owner::parse(b" old \n"), Some(Owner::new("old", "")));
        for nothing in [&b""[..], b" \r\n", b"\0\0\0", b"c1\r\neth\0"] {
            assert_eq!(Owner::parse(nothing), None, "{nothing:?}");
        }
    }
}
