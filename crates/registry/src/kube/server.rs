//! Where the API server is and what it wants to see: from inside a pod, from a kubeconfig file, or from a URL.
//!
//! Whatever lies in files is read anew for every connection: tokens and certificates are rotated under a process that runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::file::read_regular;

/// Where a pod finds its token and the authority of the API server's certificate.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// No file that is read here is larger, bytes.
const LARGEST: u64 = 4 << 20;

/// How to get to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// From a pod, as the service account it has: `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    InCluster {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// As a kubeconfig file says, at `url` instead of its server where that is given.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The server.
        url: Option<String>,
    },
    /// As nobody, at a URL.
    Url(String),
}

/// Why it is not known how to get to the API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// A file that says it cannot be read.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// A URL is none, or of a kind that is not served.
    #[error("API server {url:?}: expected http:// or https:// and a host")]
    Url {
        /// It, without a name and a password.
        url: String,
    },
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(String),
}

/// What a server is reached by.
pub(super) struct Server {
    is_tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// What its certificate is to be for.
    pub(super) name: String,
    /// Before every path; without a slash at its end.
    pub(super) path: String,
    /// PEM; the system's authorities where there is none.
    authorities: Option<(String, Vec<u8>)>,
    /// Certificate and key, PEM, and where they are from.
    client: Option<(String, Vec<u8>, Vec<u8>)>,
    pub(super) token: Option<String>,
}

/// INVARIANT: neither token nor key is shown.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: String,
    contexts: Vec<Named<Context>>,
    clusters: Vec<Named<Cluster>>,
    users: Vec<Named<User>>,
}

/// An entry of a kubeconfig's lists, with its object under one of these names.
#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    object: T,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: String,
    proxy_url: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<serde::de::IgnoredAny>,
    #[serde(rename = "auth-provider")]
    auth_provider: Option<serde::de::IgnoredAny>,
    username: String,
    password: String,
}

impl Server {
    /// The server as it is to be reached now.
    pub(super) fn find(access: &Access) -> Result<Server, AccessError> {
        match access {
            Access::Url(url) => Server::at(url),
            Access::InCluster { host, port } => {
                let authority = Path::new(SERVICE_ACCOUNT).join("ca.crt");
                let token = Path::new(SERVICE_ACCOUNT).join("token");
                Ok(Server {
                    is_tls: true,
                    host: host.clone(),
                    port: *port,
                    name: host.clone(),
                    path: String::new(),
                    authorities: Some((authority.display().to_string(), read(&authority)?)),
                    client: None,
                    token: Some(read_token(&token)?),
                })
            }
            Access::Kubeconfig { path, url } => Server::of_kubeconfig(path, url.as_deref()),
        }
    }

    /// Nobody's.
    fn at(url: &str) -> Result<Server, AccessError> {
        let wrong = || AccessError::Url {
            url: without_userinfo(url),
        };
        let (is_tls, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(wrong()),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match authority.strip_prefix('[').map(|inside| inside.split_once(']')) {
            Some(Some((host, port))) => (host, port.strip_prefix(':').or(port.is_empty().then_some(""))),
            Some(None) => return Err(wrong()),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, Some("")),
            },
        };
        let port = match port {
            Some("") => Some(if is_tls { 443 } else { 80 }),
            Some(port) => port.parse().ok(),
            None => None,
        };
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '?' | '#');
        let Some(port) = port.filter(|_| !host.is_empty() && !rest.contains(is_odd)) else {
            return Err(wrong());
        };
        Ok(Server {
            is_tls,
            host: host.to_owned(),
            port,
            name: host.to_owned(),
            path: path.trim_end_matches('/').to_owned(),
            authorities: None,
            client: None,
            token: None,
        })
    }

    fn of_kubeconfig(path: &Path, url: Option<&str>) -> Result<Server, AccessError> {
        let wrong = |reason: String| AccessError::File {
            path: path.display().to_string(),
            reason,
        };
        let text = String::from_utf8(read(path)?).map_err(|_| wrong("expected text in YAML".to_owned()))?;
        let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|failure| {
            // INVARIANT: nothing of the file is repeated, which may hold keys: only where it stops to be understood.
            wrong(match failure.location() {
                Some(at) => format!(
                    "expected a kubeconfig in YAML: line {}, column {}",
                    at.line(),
                    at.column()
                ),
                None => "expected a kubeconfig in YAML".to_owned(),
            })
        })?;
        let context = find(&config.contexts, &config.current_context).ok_or_else(|| {
            wrong(format!(
                "current-context is {:?}: expected one of contexts",
                config.current_context
            ))
        })?;
        let cluster = find(&config.clusters, &context.cluster).ok_or_else(|| {
            wrong(format!(
                "cluster {:?} of the context is not among clusters",
                context.cluster
            ))
        })?;
        let user = find(&config.users, &context.user);
        if !context.user.is_empty() && user.is_none() {
            return Err(wrong(format!(
                "user {:?} of the context is not among users",
                context.user
            )));
        }
        if cluster.insecure_skip_tls_verify {
            return Err(wrong(
                "insecure-skip-tls-verify: not supported; give certificate-authority instead".to_owned(),
            ));
        }
        let none = User::default();
        let user = user.unwrap_or(&none);
        if user.exec.is_some() || user.auth_provider.is_some() {
            return Err(wrong(
                "credentials by exec or auth-provider: not supported; give a token, a tokenFile or a client certificate".to_owned(),
            ));
        }
        if !user.username.is_empty() || !user.password.is_empty() {
            return Err(wrong(
                "username and password: no API server takes them any more; give a token, a tokenFile or a client certificate".to_owned(),
            ));
        }
        if !cluster.proxy_url.is_empty() {
            return Err(wrong("proxy-url: not supported".to_owned()));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let either = |name: &'static str,
                      data: &Option<String>,
                      file: &Option<PathBuf>|
         -> Result<Option<Vec<u8>>, AccessError> {
            match (data.as_deref().filter(|data| !data.is_empty()), file) {
                (Some(data), _) => BASE64_STANDARD
                    .decode(data.trim())
                    .map(Some)
                    .map_err(|_| wrong(format!("{name}-data: expected base64"))),
                (None, Some(file)) => read(&folder.join(file)).map(Some),
                (None, None) => Ok(None),
            }
        };
        let authorities = either(
            "certificate-authority",
            &cluster.certificate_authority_data,
            &cluster.certificate_authority,
        )?;
        let certificate = either(
            "client-certificate",
            &user.client_certificate_data,
            &user.client_certificate,
        )?;
        let key = either("client-key", &user.client_key_data, &user.client_key)?;
        if certificate.is_some() != key.is_some() {
            return Err(wrong(
                "client-certificate and client-key: expected both or none".to_owned(),
            ));
        }
        let shown = path.display().to_string();
        let at = Server::at(url.unwrap_or(&cluster.server))?;
        Ok(Server {
            name: match cluster.tls_server_name.as_str() {
                "" => at.name,
                name => name.to_owned(),
            },
            authorities: authorities.map(|pem| (shown.clone(), pem)),
            client: certificate
                .zip(key)
                .map(|(certificate, key)| (shown, certificate, key)),
            token: match (&user.token_file, user.token.as_deref()) {
                (Some(file), _) => Some(read_token(&folder.join(file))?),
                (None, token) => token.filter(|token| !token.is_empty()).map(str::to_owned),
            },
            ..at
        })
    }

    /// Host and port as a URL has them.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// For people.
    pub(super) fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// What TLS needs; `None` in the clear.
    pub(super) fn tls(&self) -> Result<Option<ClientConfig>, AccessError> {
        if !self.is_tls {
            return Ok(None);
        }
        let tls = |failure: &dyn fmt::Display| AccessError::Tls(failure.to_string());
        let mut roots = RootCertStore::empty();
        match &self.authorities {
            Some((from, pem)) => {
                for certificate in certificates(from, pem)? {
                    roots.add(certificate).map_err(|failure| tls(&failure))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|failure| tls(&failure))?
            .with_root_certificates(roots);
        let config = match &self.client {
            Some((from, certificate, key)) => {
                let wrong = || AccessError::File {
                    path: from.clone(),
                    reason: "client key: expected an unencrypted private key in PEM form".to_owned(),
                };
                let chain = certificates(from, certificate)?;
                // INVARIANT: no byte of the key gets into an error.
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| wrong())?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|failure| tls(&failure))?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Some(config))
    }
}

/// A URL without what is before an `@`, which may be a password.
pub fn without_userinfo(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("...@{rest}"),
        None => url.to_owned(),
    }
}

/// Checks a URL of an API server.
///
/// # Errors
///
/// It is none.
pub fn check_url(url: &str) -> Result<(), AccessError> {
    Server::at(url).map(drop)
}

fn find<'a, T>(all: &'a [Named<T>], name: &str) -> Option<&'a T> {
    all.iter()
        .find(|named| named.name == name)
        .map(|named| &named.object)
}

fn certificates(from: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(AccessError::File {
            path: from.to_owned(),
            reason: "expected PEM certificates".to_owned(),
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    read_regular(path, LARGEST).map_err(|failure| AccessError::File {
        path: path.display().to_string(),
        reason: failure.to_string(),
    })
}

fn read_token(path: &Path) -> Result<String, AccessError> {
    let text = String::from_utf8(read(path)?).ok();
    let token = text.map(|text| text.trim().to_owned());
    token
        .filter(|token| !token.is_empty())
        .ok_or_else(|| AccessError::File {
            path: path.display().to_string(),
            reason: "expected a token".to_owned(),
        })
}

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
}

/// `spec.nodeName` of a Pod object.
pub(super) fn node_of_pod(json: &str) -> Option<String> {
    let pod: Pod = serde_json::from_str(json).ok()?;
    Some(pod.spec.node_name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
