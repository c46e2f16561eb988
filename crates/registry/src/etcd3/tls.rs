//! TLS to etcd: rustls with ring. The files are read anew for every connection, so that rotated certificates are used
//! without a restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The files of `--etcd-cafile`, `--etcd-certfile` and `--etcd-keyfile`, each optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities a server's certificate may come from; the system's when absent. Counts without the other two as well.
    pub cafile: Option<PathBuf>,
    /// Our certificate, leaf first.
    pub certfile: Option<PathBuf>,
    /// Its private key.
    pub keyfile: Option<PathBuf>,
}

/// Why no TLS connection can be tried.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{flag} {path}: {source}")]
    Read {
        /// Which of the flags.
        flag: &'static str,
        /// Its value.
        path: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{flag} {path}: {reason}")]
    Content {
        /// Which of the flags.
        flag: &'static str,
        /// Its value.
        path: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// The system has no certificate authorities.
    #[error("no etcd-cafile is given and the system has no certificate authorities: {0}")]
    NoRoots(String),
    /// Certificate and key do not make a configuration.
    #[error("TLS: {0}")]
    Rustls(#[from] tokio_rustls::rustls::Error),
}

impl TlsFiles {
    /// Whether any file is given.
    pub fn any(&self) -> bool {
        self.cafile.is_some() || self.certfile.is_some() || self.keyfile.is_some()
    }

    /// Reads the files into a client configuration for HTTP/2.
    pub(crate) fn load(&self) -> Result<ClientConfig, TlsError> {
        let roots = Arc::new(match &self.cafile {
            Some(path) => roots_from(path)?,
            None => system_roots()?,
        });
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match (&self.certfile, &self.keyfile) {
            (Some(certfile), Some(keyfile)) => {
                let chain = certificates("etcd-certfile", certfile)?;
                let key = private_key(keyfile)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| content("etcd-certfile", certfile, format!("with its key: {error}")))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        flag,
        path: path.display().to_string(),
        source,
    })
}

fn content(flag: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::Content {
        flag,
        path: path.display().to_string(),
        reason,
    }
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(flag, path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(flag, path, format!("expected PEM certificates: {error}")))?;
    if chain.is_empty() {
        return Err(content(
            flag,
            path,
            "expected PEM certificates, found none".to_owned(),
        ));
    }
    Ok(chain)
}

/// INVARIANT: no error of this function carries a byte of the file.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read("etcd-keyfile", path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let reason = "expected an unencrypted private key in PEM form (PKCS#8, PKCS#1 or SEC1)";
        content("etcd-keyfile", path, reason.to_owned())
    })
}

fn roots_from(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("etcd-cafile", path)? {
        roots
            .add(certificate)
            .map_err(|error| content("etcd-cafile", path, error.to_string()))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::NoRoots(errors.join("; ")));
    }
    Ok(roots)
}
