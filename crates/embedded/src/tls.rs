//! The server's certificate, and which clients it believes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Files, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate chain.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// Clients must show a certificate of one of these authorities; `None`: any client may come.
    pub trusted_ca_file: Option<PathBuf>,
}

/// Why the files do not make a server.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read as PEM.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Files that do not fit together.
    #[error("certificate {}: {reason}", path.display())]
    Unusable {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Reads the files, once.
pub fn acceptor(tls: &Tls) -> Result<TlsAcceptor, TlsError> {
    let unusable = |reason: String| TlsError::Unusable {
        path: tls.cert_file.clone(),
        reason,
    };
    let provider = Arc::new(default_provider());
    let chain = certificates(&tls.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_file).map_err(|error| TlsError::File {
        path: tls.key_file.clone(),
        reason: error.to_string(),
    })?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?;
    let builder = match &tls.trusted_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let bad = |reason: String| TlsError::File {
                path: path.clone(),
                reason,
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| bad(error.to_string()))?)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| unusable(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |reason: String| TlsError::File {
        path: path.to_owned(),
        reason,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| bad(error.to_string()))?
        .collect();
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() {
        Err(bad("holds no PEM certificate".into()))
    } else {
        Ok(found)
    }
}
