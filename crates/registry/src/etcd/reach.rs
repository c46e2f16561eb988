//! The way to a member, up to where a protocol begins: its name, TCP or a Unix socket, TLS.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::members::ConnectError;
use super::tls::{Showing, TlsFiles, tls_failure};
use super::{Address, Endpoint};
use crate::{dial, names};

/// What is to be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// It has no ping: that the other side is gone is for TCP to notice.
    Http1,
    Http2,
}

impl Protocol {
    /// Its name in a TLS handshake (RFC 7301).
    fn alpn(self) -> &'static [u8] {
        match self {
            Protocol::Http1 => b"http/1.1",
            Protocol::Http2 => b"h2",
        }
    }
}

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A member that took the connection.
pub(crate) struct Reached {
    pub(crate) stream: Box<dyn Stream>,
    /// With TLS: what it wanted to see of us.
    pub(crate) shown: Option<Arc<Showing>>,
}

/// Connects to a member.
pub(crate) async fn reach(
    endpoint: &Endpoint,
    files: &TlsFiles,
    protocol: Protocol,
) -> Result<Reached, ConnectError> {
    // Before anything else: a file that is missing is the first thing to be told, also while nobody listens.
    if endpoint.tls {
        files.check()?;
    }
    let (host, port) = match &endpoint.address {
        Address::Unix(path) => {
            return Ok(Reached {
                stream: Box::new(UnixStream::connect(path).await?),
                shown: None,
            });
        }
        Address::Tcp { host, port } => (host, *port),
    };
    let found = names::look_up(host, port).await?;
    let stream = dial::connect(&found).await?;
    stream.set_nodelay(true)?;
    if protocol == Protocol::Http1 {
        dial::notice_silence(&stream)?;
    }
    if !endpoint.tls {
        return Ok(Reached {
            stream: Box::new(stream),
            shown: None,
        });
    }
    let (mut config, showing) = files.load()?;
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    let name = ServerName::try_from(host.clone())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
    Ok(Reached {
        stream: Box::new(stream.await.map_err(tls_failure)?),
        shown: Some(showing),
    })
}
