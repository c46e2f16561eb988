//! DNS settings out of a resolv.conf.

use crate::failure::Failure;
use crate::files;
use crate::result::Dns;

/// Most bytes of the file that are looked at.
const LIMIT: usize = 1 << 20;

/// Reads the file at `path`.
///
/// # Errors
///
/// It cannot be read.
pub fn load(path: &str) -> Result<Dns, Failure> {
    // A way to say that there is nothing to say.
    if path == "/dev/null" {
        return Ok(Dns::default());
    }
    Ok(parse(&String::from_utf8_lossy(&files::read(path, LIMIT)?)))
}

/// Collects name servers (the first value of a line), the last domain, all search domains and options.
fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(key), Some(first)) = (words.next(), words.next()) else {
            continue;
        };
        match key.as_str() {
            "nameserver" => dns.nameservers.push(first),
            "domain" => dns.domain = first,
            "search" => dns.search.extend(std::iter::once(first).chain(words)),
            "options" => dns.options.extend(std::iter::once(first).chain(words)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_when_read_collects_what_resolvers_use() {
        let dns = parse(
            "# x\n;y\nnameserver 10.0.0.1 extra\n nameserver fd00::1\ndomain a\ndomain b\nsearch c d\nsearch e\noptions ndots:5 rotate\nsortlist 1\nnameserver\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1", "fd00::1"]);
        assert_eq!(dns.domain, "b");
        assert_eq!(dns.search, ["c", "d", "e"]);
        assert_eq!(dns.options, ["ndots:5", "rotate"]);
        assert_eq!(
            load("/nonexistent/resolv.conf").unwrap_err().msg,
            "open /nonexistent/resolv.conf: no such file or directory"
        );
    }

    #[test]
    fn file_when_it_is_there_is_read_and_nothing_is_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "domain d\n").unwrap();
        assert_eq!(load(file.path().to_str().unwrap()).unwrap().domain, "d");
        assert_eq!(load("/dev/null").unwrap(), Dns::default());
    }
}
