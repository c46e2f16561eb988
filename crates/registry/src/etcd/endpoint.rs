//! `--etcd-endpoints`: where etcd is to be reached.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

/// Port of an endpoint that names none: the one etcd listens on.
const DEFAULT_PORT: u16 = 2379;

/// One member's client address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: Address,
    /// Whether to speak TLS. Each endpoint's own scheme decides.
    pub tls: bool,
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host name or IP address (IPv6 without brackets), and port.
    Tcp {
        /// Also the name a certificate must bear.
        host: String,
        /// From 1.
        port: u16,
    },
    /// Path of a unix socket.
    Unix(PathBuf),
}

/// What is wrong with the list. The text of an entry is shown only where it cannot hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// There is none.
    #[error("expected at least one endpoint such as http://127.0.0.1:2379, found none")]
    Empty,
    /// A scheme we do not speak.
    #[error("{entry:?}: unknown scheme {scheme:?}, expected http, https or unix")]
    Scheme {
        /// The entry.
        entry: String,
        /// What stands before `://`.
        scheme: String,
    },
    /// `user:password@` before the host.
    #[error("entry {number} holds credentials; expected them in --etcd-username and --etcd-password")]
    Credentials {
        /// Counted from 1.
        number: usize,
    },
    /// No host, or one with characters that no host has.
    #[error("{entry:?}: no valid host, expected <host>:<port>")]
    Host {
        /// The entry.
        entry: String,
    },
    /// A port that is none.
    #[error("{entry:?}: no valid port, expected <host>:<port> with a port from 1 to 65535")]
    Port {
        /// The entry.
        entry: String,
    },
    /// Something after the port.
    #[error("{entry:?}: unexpected {rest:?} after the port")]
    Path {
        /// The entry.
        entry: String,
        /// The rest.
        rest: String,
    },
    /// No path after `unix:`.
    #[error("{entry:?}: expected unix://<path of a socket>")]
    Socket {
        /// The entry.
        entry: String,
    },
}

/// Reads a comma-separated list; blanks around entries and empty entries do not count.
///
/// `tls_files` says whether any certificate file is configured: an entry without a scheme speaks TLS iff one is.
pub fn parse_endpoints(list: &str, tls_files: bool) -> Result<Vec<Endpoint>, EndpointError> {
    let entries = list.split(',').map(str::trim).enumerate();
    let endpoints: Vec<Endpoint> = entries
        .filter(|(_, entry)| !entry.is_empty())
        .map(|(index, entry)| parse_endpoint(entry, index + 1, tls_files))
        .collect::<Result<_, _>>()?;
    if endpoints.is_empty() {
        return Err(EndpointError::Empty);
    }
    Ok(endpoints)
}

fn parse_endpoint(entry: &str, number: usize, tls_files: bool) -> Result<Endpoint, EndpointError> {
    let own = || entry.to_owned();
    if let Some(path) = entry.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(EndpointError::Socket { entry: own() });
        }
        let address = Address::Unix(path.into());
        return Ok(Endpoint { address, tls: false });
    }
    if entry.contains('@') {
        return Err(EndpointError::Credentials { number });
    }
    let (scheme, rest) = entry.split_once("://").unwrap_or(("", entry));
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        "" => tls_files,
        _ => {
            let scheme = scheme.to_owned();
            return Err(EndpointError::Scheme { entry: own(), scheme });
        }
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host = parse_host(host).ok_or_else(|| EndpointError::Host { entry: own() })?;
    let port = match port {
        None => DEFAULT_PORT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|port| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| EndpointError::Port { entry: own() })?,
    };
    if !matches!(path, "" | "/") {
        let rest = path.to_owned();
        return Err(EndpointError::Path { entry: own(), rest });
    }
    let address = Address::Tcp { host, port };
    Ok(Endpoint { address, tls })
}

fn parse_host(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']')?;
        return inner.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string());
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!text.is_empty() && text.bytes().all(fits)).then(|| text.to_owned())
}

impl Endpoint {
    /// The origin of HTTP/2 requests: scheme and authority, a placeholder where there is no host.
    pub(crate) fn origin(&self) -> String {
        match &self.address {
            Address::Tcp { .. } => self.to_string(),
            Address::Unix(_) => "http://localhost".to_owned(),
        }
    }
}

/// As a URL.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match &self.address {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "{scheme}://[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{scheme}://{host}:{port}"),
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(list: &str, tls_files: bool) -> Result<Vec<String>, EndpointError> {
        parse_endpoints(list, tls_files).map(|all| all.iter().map(Endpoint::to_string).collect())
    }

    #[test]
    fn every_form_of_endpoint_is_read_with_its_own_scheme() {
        let list = "http://127.0.0.1:4001, https://etcd-0.example:2379/ ,HTTP://[fd00::1]:2379,unix:///run/etcd.sock,unix:x:0,";
        let want = [
            "http://127.0.0.1:4001",
            "https://etcd-0.example:2379",
            "http://[fd00::1]:2379",
            "unix:///run/etcd.sock",
            "unix://x:0",
        ];
        assert_eq!(shown(list, true).unwrap(), want);
        assert_eq!(
            shown("http://a,https://[::1]/", true).unwrap(),
            ["http://a:2379", "https://[::1]:2379"]
        );
        assert_eq!(shown("a:1", true).unwrap(), ["https://a:1"]);
        assert_eq!(shown("a:1", false).unwrap(), ["http://a:1"]);
    }

    #[test]
    fn a_bad_endpoint_is_refused_by_a_line_that_names_it() {
        for (list, words) in [
            ("", "at least one"),
            (" , ,", "at least one"),
            ("ftp://a:1", "unknown scheme \"ftp\""),
            ("http://a:", "port"),
            ("http://a:0", "port"),
            ("http://a:+1", "port"),
            ("http://a:65536", "port"),
            ("http://:2379", "host"),
            ("http://[::g]:1", "host"),
            ("http://fd00::1:2379", "host"),
            ("http://a b:1", "host"),
            ("http://a:1/v2/keys", "\"/v2/keys\""),
            ("unix://", "path of a socket"),
        ] {
            let error = shown(list, false).unwrap_err().to_string();
            assert!(error.contains(words), "{list}: {error}");
        }
    }

    #[test]
    fn credentials_in_an_endpoint_are_refused_without_showing_them() {
        let error = shown("http://a:1,http://u:s3cret@b:1", false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("entry 2") && !error.contains("s3cret"), "{error}");
    }
}
