//! TLS to etcd: rustls with ring. The files are read anew for every connection, so that rotated certificates are used
//! without a restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore, SignatureScheme};

use super::ConnectError;
use crate::file::read_regular;

/// No file of certificates or of a key is larger, bytes.
const LARGEST: u64 = 4 << 20;

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

    /// Reads the files that are given, for what can be told of them without anybody who answers.
    pub(crate) fn check(&self) -> Result<(), TlsError> {
        if let Some(path) = &self.cafile {
            roots_from(path)?;
        }
        if let (Some(certfile), Some(keyfile)) = (&self.certfile, &self.keyfile) {
            certificates("etcd-certfile", certfile)?;
            private_key(keyfile)?;
        }
        Ok(())
    }

    /// Reads the files into a client configuration, whose protocol is still to be named, and which leaves word of what the server wanted.
    pub(crate) fn load(&self) -> Result<(ClientConfig, Arc<Showing>), TlsError> {
        let roots = Arc::new(match &self.cafile {
            Some(path) => roots_from(path)?,
            None => system_roots()?,
        });
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&roots));
        let own = match (&self.certfile, &self.keyfile) {
            (Some(certfile), Some(keyfile)) => {
                let chain = certificates("etcd-certfile", certfile)?;
                let key = private_key(keyfile)?;
                let pair = CertifiedKey::from_der(chain, key, &provider)
                    .map_err(|error| content("etcd-certfile", certfile, format!("with its key: {error}")))?;
                Some((certfile.clone(), Arc::new(pair)))
            }
            _ => None,
        };
        let showing = Arc::new(Showing {
            own,
            roots,
            asked: AtomicBool::new(false),
        });
        let config = builder.with_client_cert_resolver(Arc::<Showing>::clone(&showing));
        Ok((config, showing))
    }
}

/// Shows our certificate to a server that asks for one, and remembers that it did: in TLS 1.3 it refuses after the handshake, and often
/// all that comes of that is the end of the connection.
#[derive(Debug)]
pub(crate) struct Showing {
    own: Option<(PathBuf, Arc<CertifiedKey>)>,
    roots: Arc<RootCertStore>,
    asked: AtomicBool,
}

impl ResolvesClientCert for Showing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.own.as_ref().map(|(_, pair)| Arc::clone(pair))
    }

    fn has_certs(&self) -> bool {
        self.own.is_some()
    }
}

impl Showing {
    /// Why a server may have hung up that gave no answer; `None` where it wanted nothing to be shown.
    pub(crate) fn doubt(&self) -> Option<String> {
        if !self.asked.load(Ordering::Relaxed) {
            return None;
        }
        let Some((certfile, pair)) = &self.own else {
            let text = "it asks for a client certificate, and there is none: etcd-certfile and etcd-keyfile name one";
            return Some(text.to_owned());
        };
        let certfile = certfile.display();
        Some(match self.is_out_of_date(pair) {
            Some(words) => format!("by this host's clock etcd-certfile {certfile} {words}"),
            None => {
                format!("it asked for a client certificate; does it accept that of etcd-certfile {certfile}?")
            }
        })
    }

    /// What is wrong with the time of our certificate. Who issued it is the server's business.
    fn is_out_of_date(&self, pair: &CertifiedKey) -> Option<&'static str> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::clone(&self.roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .ok()?;
        let (leaf, rest) = pair.cert.split_first()?;
        match verifier.verify_client_cert(leaf, rest, UnixTime::now()) {
            Err(rustls::Error::InvalidCertificate(error)) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Some("has expired"),
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Some("is not valid yet")
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// rustls' errors arrive wrapped in an `io::Error` whose kind says nothing.
pub(crate) fn tls_failure(error: io::Error) -> ConnectError {
    // What is no TLS record at all was written by a server that speaks in the clear, or it hung up on what it took for nonsense.
    let in_the_clear = matches!(
        error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        Some(rustls::Error::InvalidMessage(_))
    ) || error.kind() == io::ErrorKind::UnexpectedEof;
    let hint = if in_the_clear {
        " (does it speak TLS? where it does not, its URL begins with http://)"
    } else {
        ""
    };
    format!("TLS: {error}{hint}").into()
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    read_regular(path, LARGEST).map_err(|source| TlsError::Read {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        file
    }

    fn checked(cafile: Option<&Path>, certfile: Option<&Path>, keyfile: Option<&Path>) -> Result<(), String> {
        let files = TlsFiles {
            cafile: cafile.map(Path::to_owned),
            certfile: certfile.map(Path::to_owned),
            keyfile: keyfile.map(Path::to_owned),
        };
        files.check().map_err(|error| error.to_string())
    }

    #[test]
    fn files_are_given_when_any_of_them_is() {
        let one = |set: fn(&mut TlsFiles, Option<PathBuf>)| {
            let mut files = TlsFiles::default();
            set(&mut files, Some("/x".into()));
            files.any()
        };
        assert!(!TlsFiles::default().any());
        assert!(one(|files, path| files.cafile = path));
        assert!(one(|files, path| files.certfile = path));
        assert!(one(|files, path| files.keyfile = path));
    }

    #[test]
    fn a_file_that_is_none_too_large_or_holds_something_else_is_named_with_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let error = checked(Some(folder.path()), None, None).unwrap_err();
        assert_eq!(
            error,
            format!("etcd-cafile {}: not a regular file", folder.path().display())
        );
        let missing = checked(Some(Path::new("/nonexistent/ca")), None, None).unwrap_err();
        assert!(missing.starts_with("etcd-cafile /nonexistent/ca: "), "{missing}");
        let most = usize::try_from(LARGEST).unwrap();
        let largest = checked(Some(file(&vec![b'x'; most]).path()), None, None).unwrap_err();
        assert!(
            largest.contains("expected PEM certificates, found none"),
            "{largest}"
        );
        let larger = checked(Some(file(&vec![b'x'; most + 1]).path()), None, None).unwrap_err();
        assert!(larger.contains("more than the 4 MiB"), "{larger}");
        let (none, secret) = (file(b"x"), file(b"-----BEGIN s3cret"));
        let certificate = checked(None, Some(none.path()), Some(secret.path())).unwrap_err();
        assert!(certificate.starts_with("etcd-certfile "), "{certificate}");
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let (bad, none) = (file(bad.as_bytes()), file(b"x"));
        let unusable = checked(Some(bad.path()), None, None).unwrap_err();
        assert!(unusable.starts_with("etcd-cafile "), "{unusable}");
        let key = checked(None, Some(bad.path()), Some(secret.path())).unwrap_err();
        assert!(key.contains("etcd-keyfile ") && !key.contains("s3cret"), "{key}");
        // One of a pair counts for nothing.
        assert_eq!(checked(None, Some(none.path()), None), Ok(()));
        assert_eq!(checked(None, None, Some(none.path())), Ok(()));
    }

    #[test]
    fn a_server_that_speaks_in_the_clear_is_hinted_at_and_no_other() {
        let hinted = |error| tls_failure(error).to_string().contains("does it speak TLS?");
        let invalid = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(hinted(io::Error::new(io::ErrorKind::InvalidData, invalid)));
        assert!(hinted(io::Error::new(io::ErrorKind::UnexpectedEof, "eof")));
        assert!(!hinted(io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::DecryptError
        )));
        let refused = tls_failure(io::Error::other("refused")).to_string();
        assert_eq!(refused, "TLS: refused");
    }
}
