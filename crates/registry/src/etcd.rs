//! What etcd's two APIs have in common: endpoints, keys, TLS, and the members of a cluster, one of which is spoken to.

mod auto;
mod endpoint;
mod keys;
mod members;
mod reach;
mod tls;

use std::fmt;
use std::time::Duration;

use crate::RegistryError;

pub use self::auto::EtcdAuto;
pub use self::endpoint::{Address, Endpoint, EndpointError, parse_endpoints};
pub use self::keys::Keys;
pub use self::members::ConnectError;
pub use self::tls::{TlsError, TlsFiles};

pub(crate) use self::members::{CallError, Line, Members, Verdict};
pub(crate) use self::reach::{Protocol, Reached, reach};
pub(crate) use self::tls::Showing;

/// Every request but a watch is answered within this time, or counts as failed.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// How to reach etcd and where to look there: the values of the `--etcd-*` flags.
#[derive(Clone)]
pub struct Options {
    /// `--etcd-endpoints`: comma-separated URLs.
    pub endpoints: String,
    /// `--etcd-prefix`.
    pub prefix: String,
    /// `--etcd-cafile`, `--etcd-certfile`, `--etcd-keyfile`.
    pub tls: TlsFiles,
    /// `--etcd-username`; counts only with a password.
    pub username: String,
    /// `--etcd-password`.
    pub password: String,
    /// Time to live of a node's etcd lease, in whole seconds. [`Options::LEASE_TTL`] in every flannel; tests want less.
    pub lease_ttl: Duration,
}

impl Options {
    /// What every flannel asks for: 24 h.
    pub const LEASE_TTL: Duration = Duration::from_secs(86_400);

    fn credentials(&self) -> Option<Credentials> {
        let given = !self.username.is_empty() && !self.password.is_empty();
        given.then(|| Credentials {
            username: self.username.clone(),
            password: self.password.clone(),
        })
    }

    /// Says what of these options has no effect.
    pub(crate) fn warn(&self) {
        if self.tls.certfile.is_some() != self.tls.keyfile.is_some() {
            tracing::warn!(
                "etcd-certfile and etcd-keyfile count only together: no client certificate is presented"
            );
        }
        let is_plain = |endpoints: Vec<Endpoint>| endpoints.iter().all(|endpoint| !endpoint.tls);
        if self.tls.any() && parse_endpoints(&self.endpoints, true).is_ok_and(is_plain) {
            tracing::warn!("no endpoint in etcd-endpoints is https: certificate files are not used");
        }
    }
}

impl Default for Options {
    /// The defaults of the flags.
    fn default() -> Options {
        Options {
            endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379".to_owned(),
            prefix: "/coreos.com/network".to_owned(),
            tls: TlsFiles::default(),
            username: String::new(),
            password: String::new(),
            lease_ttl: Options::LEASE_TTL,
        }
    }
}

/// INVARIANT: the password is never shown.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("prefix", &self.prefix)
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("lease_ttl", &self.lease_ttl)
            .finish_non_exhaustive()
    }
}

/// Why there cannot be a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// `--etcd-endpoints` cannot be read.
    #[error("etcd-endpoints: {0}")]
    Endpoints(#[from] EndpointError),
}

/// What one of the APIs says of the network config.
#[derive(Debug)]
pub(crate) enum Look {
    /// It is there.
    Found(Vec<u8>),
    /// It is not, in these words.
    Missing(RegistryError),
    /// This API is not spoken there, or not with us.
    Foreign,
    /// It cannot be asked now.
    Failed(RegistryError),
}

/// A user to log in as. No `Debug`: it must not reach a log.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_when_shown_never_show_the_password() {
        let options = Options {
            username: "u".to_owned(),
            password: "s3cret".to_owned(),
            ..Options::default()
        };
        let shown = format!("{options:?}");
        assert!(shown.contains("/coreos.com/network") && shown.contains("\"u\"") && shown.contains("86400s"));
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
