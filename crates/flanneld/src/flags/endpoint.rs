//! An etcd endpoint.

use std::fmt;
use std::net::Ipv6Addr;

/// Port of an endpoint that names none.
pub const DEFAULT_PORT: u16 = 2379;

/// One etcd member: scheme, host, port. `Display` is its URL, IPv6 in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https`.
    pub tls: bool,
    /// Name or address, an IPv6 one without brackets; also what the server's certificate is checked for.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl Endpoint {
    /// Reads `http://host:port`, `https://host:port`, or `host:port`, which is https when `tls_by_default`.
    ///
    /// The error is an expectation, to be put after the value.
    pub fn parse(text: &str, tls_by_default: bool) -> Result<Endpoint, &'static str> {
        if text.contains(char::is_whitespace) {
            return Err("expected a URL without blanks");
        }
        let (tls, authority) = match text.split_once("://") {
            None => (tls_by_default, text),
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "http" => (false, rest),
                "https" => (true, rest),
                "unix" | "unixs" => {
                    return Err("unix sockets are not supported, expected http:// or https://");
                }
                _ => return Err("expected http:// or https://"),
            },
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains(['/', '?', '#']) {
            return Err("expected scheme, host and port only");
        }
        if authority.contains('@') {
            return Err("a name and password belong in --etcd-username and --etcd-password");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or("expected ] after the IPv6 address")?;
                host.parse::<Ipv6Addr>()
                    .map_err(|_| "expected an IPv6 address between [ and ]")?;
                match after.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if after.is_empty() => (host, None),
                    None => return Err("expected : and a port after ]"),
                }
            }
            None => match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err("expected an IPv6 address in brackets"),
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => match text.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err("expected a port of 1 to 65535"),
            },
            Some(_) => return Err("expected a port of 1 to 65535"),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(allowed) {
            return Err("expected a host name or an address");
        }
        Ok(Endpoint {
            tls,
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_when_given_the_forms_of_the_field_reads_them() {
        for (text, tls, url) in [
            ("http://127.0.0.1:4001", true, "http://127.0.0.1:4001"),
            ("https://10.211.55.100:2379", false, "https://10.211.55.100:2379"),
            ("https://etcd-0.example/", false, "https://etcd-0.example:2379"),
            ("HTTP://[fd00::1]:2379", true, "http://[fd00::1]:2379"),
            ("10.0.0.1:2379", false, "http://10.0.0.1:2379"),
            ("10.0.0.1:2379", true, "https://10.0.0.1:2379"),
        ] {
            assert_eq!(Endpoint::parse(text, tls).unwrap().to_string(), url, "{text}");
        }
    }

    #[test]
    fn parse_when_it_cannot_be_an_endpoint_says_what_was_expected() {
        for text in [
            "",
            "http://",
            "ftp://a:1",
            "http://a:0",
            "http://a:65536",
            "http://a:+1",
            "http://a/v2",
            "http://u:p@a:1",
            "fd00::1:2379",
            "http://[fd00::1",
            "http://[x]:1",
            "http://a b:1",
            "unix:///x",
        ] {
            assert!(Endpoint::parse(text, false).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parse_when_given_what_it_printed_gives_the_same(tls: bool, port in 1u16.., v6: bool, ip: u128, name in "[a-z][a-z0-9.-]{0,20}") {
            let host = if v6 { Ipv6Addr::from(ip).to_string() } else { name };
            let endpoint = Endpoint { tls, host, port };
            prop_assert_eq!(Endpoint::parse(&endpoint.to_string(), !tls), Ok(endpoint));
        }

        #[test]
        fn parse_when_given_anything_never_panics(text in ".{0,40}") {
            let _ = Endpoint::parse(&text, false);
        }
    }
}
