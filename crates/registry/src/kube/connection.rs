//! One HTTP/1.1 connection to the API server. Whoever needs another opens another: a watch has one to itself, and what else is asked
//! is rare.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::server::{Access, Server};
use crate::{Pending, dial, names};

/// Who listens answers within this time, or is not there: a server that comes back is looked for often enough to be found soon.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A handshake may take longer: whoever comes back to thousands has much to do.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// What is asked is answered within this time, whole.
const DEADLINE: Duration = Duration::from_secs(10);
/// A page of a list may take longer: it is read from a store.
pub(super) const PAGE_DEADLINE: Duration = Duration::from_secs(30);
/// Largest answer, bytes: a page of a hundred Nodes has one or two million.
const LARGEST: usize = 64 << 20;
/// Bytes of a server's message that are repeated.
const MESSAGE: usize = 300;

/// Why there is no connection: in words that name the server.
pub(super) type ConnectError = Box<dyn Error + Send + Sync>;

/// What a call came to that did not come to what was asked.
#[derive(Debug)]
pub(super) enum Failed {
    /// No answer, or none that can be read. Nothing is known of the call's fate.
    Unanswered(String),
    /// What came as an answer is none.
    Odd(String),
    /// The server says no.
    Status {
        /// HTTP's status.
        code: u16,
        /// Its words.
        message: String,
    },
}

/// `metav1.Status`, as far as it is read.
#[derive(Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) code: u16,
}

/// Both directions of a byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How byte streams to a server are had.
pub trait Way: Send + Sync {
    /// A new one.
    ///
    /// # Errors
    ///
    /// Nobody answers there; it comes back within a bounded time.
    fn open<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> Pending<'a, Result<Box<dyn Stream>, Box<dyn Error + Send + Sync>>>;
}

/// By TCP.
pub(super) struct Tcp;

impl Way for Tcp {
    fn open<'a>(&'a self, host: &'a str, port: u16) -> Pending<'a, Result<Box<dyn Stream>, ConnectError>> {
        Box::pin(async move {
            let found = bounded(HANDSHAKE_DEADLINE, names::look_up(host, port)).await??;
            let stream = bounded(CONNECT_DEADLINE, dial::connect(&found)).await??;
            stream.set_nodelay(true)?;
            dial::notice_silence(&stream)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// A connection.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    url: String,
    /// What the server's URL has before every path.
    path: String,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    sent: Arc<AtomicU64>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to where the server is now said to be, with the credentials that now count.
    pub(super) async fn open(
        way: &dyn Way,
        access: &Access,
        sent: &Arc<AtomicU64>,
    ) -> Result<Connection, ConnectError> {
        let server = Server::find(access)?;
        let url = server.url();
        let opened = async {
            let stream = way.open(&server.host, server.port).await?;
            bounded(HANDSHAKE_DEADLINE, Connection::open_over(stream, &server, sent)).await?
        };
        opened
            .await
            .map_err(|failure: ConnectError| format!("{url}: {failure}").into())
    }

    async fn open_over(
        stream: Box<dyn Stream>,
        server: &Server,
        sent: &Arc<AtomicU64>,
    ) -> Result<Connection, ConnectError> {
        let sender = match server.tls()? {
            Some(config) => {
                let connector = TlsConnector::from(Arc::new(config));
                let name = ServerName::try_from(server.name.clone())?;
                let stream = connector
                    .connect(name, stream)
                    .await
                    .map_err(|failure| format!("TLS: {failure}"))?;
                handshake(stream).await?
            }
            None => handshake(stream).await?,
        };
        let authorization = match &server.token {
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| "the token is no header value")?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Connection {
            sender,
            url: server.url(),
            path: server.path.clone(),
            host: HeaderValue::from_str(&server.authority())?,
            authorization,
            sent: Arc::clone(sent),
        })
    }

    /// The server, for people.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What is at a path.
    pub(super) async fn get(&mut self, path: &str) -> Result<String, Failed> {
        let request = self.request(Method::GET, path, None, Bytes::new())?;
        self.whole(request, DEADLINE).await
    }

    /// A page of a list.
    pub(super) async fn get_page(&mut self, path: &str) -> Result<String, Failed> {
        let request = self.request(Method::GET, path, None, Bytes::new())?;
        self.whole(request, PAGE_DEADLINE).await
    }

    /// Patches what is at a path; what it is then.
    pub(super) async fn patch(&mut self, path: &str, body: String) -> Result<String, Failed> {
        const MERGE: HeaderValue = HeaderValue::from_static("application/strategic-merge-patch+json");
        let request = self.request(Method::PATCH, path, Some(MERGE), Bytes::from(body))?;
        self.whole(request, DEADLINE).await
    }

    /// Creates an object at a path.
    pub(super) async fn post(&mut self, path: &str, body: String) -> Result<String, Failed> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        let request = self.request(Method::POST, path, Some(JSON), Bytes::from(body))?;
        self.whole(request, DEADLINE).await
    }

    /// Begins what goes on for as long as the server likes.
    pub(super) async fn stream(&mut self, path: &str) -> Result<Incoming, Failed> {
        let request = self.request(Method::GET, path, None, Bytes::new())?;
        let response = within(DEADLINE, self.send(request)).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(within(DEADLINE, refusal(response))
            .await
            .unwrap_or_else(|unanswered| unanswered))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        content: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failed> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.path))
            .header(HOST, &self.host)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("flanneld/", env!("CARGO_PKG_VERSION")));
        if let Some(content) = content {
            request = request.header(CONTENT_TYPE, content);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request
            .body(Full::new(body))
            .map_err(|failure| Failed::Unanswered(format!("{path}: {failure}")))
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failed> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let unanswered = |failure: hyper::Error| Failed::Unanswered(in_words(&failure));
        self.sender.ready().await.map_err(unanswered)?;
        self.sender.send_request(request).await.map_err(unanswered)
    }

    async fn whole(&mut self, request: Request<Full<Bytes>>, deadline: Duration) -> Result<String, Failed> {
        within(deadline, async {
            let response = self.send(request).await?;
            if !response.status().is_success() {
                return Err(refusal(response).await?);
            }
            text_of(response).await
        })
        .await
    }
}

/// Errors of hyper name their cause one level down.
pub(super) fn in_words(failure: &hyper::Error) -> String {
    match failure.source() {
        Some(cause) if dial::is_end(cause) => dial::GONE.to_owned(),
        Some(cause) => format!("{failure}: {cause}"),
        None => failure.to_string(),
    }
}

async fn bounded<T>(deadline: Duration, opening: impl Future<Output = T>) -> Result<T, ConnectError> {
    let opened = tokio::time::timeout(deadline, opening).await;
    opened.map_err(|_| format!("no connection within {} s", deadline.as_secs()).into())
}

async fn within<T>(deadline: Duration, answer: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Failed::Unanswered(format!(
            "no answer within {} s",
            deadline.as_secs()
        ))),
    }
}

async fn text_of(response: Response<Incoming>) -> Result<String, Failed> {
    let body = Limited::new(response.into_body(), LARGEST).collect().await;
    let bytes = body
        .map_err(|failure| Failed::Unanswered(failure.to_string()))?
        .to_bytes();
    // Of one piece it is taken over as it is.
    String::from_utf8(bytes.into()).map_err(|_| Failed::Odd("the answer is no text".to_owned()))
}

/// What a refusal says.
async fn refusal(response: Response<Incoming>) -> Result<Failed, Failed> {
    let code = response.status();
    let text = text_of(response).await?;
    let message = match serde_json::from_str::<Status>(&text) {
        Ok(status) if !status.message.is_empty() => status.message,
        _ if text.trim().is_empty() => code.canonical_reason().unwrap_or_default().to_owned(),
        _ => text.trim().to_owned(),
    };
    Ok(Failed::Status {
        code: code.as_u16(),
        message: message
            .get(..message.floor_char_boundary(MESSAGE))
            .unwrap_or_default()
            .to_owned(),
    })
}

async fn handshake<S>(stream: S) -> Result<http1::SendRequest<Full<Bytes>>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends by itself when the last handle and stream are gone; what ends it early reaches every stream as an error.
    tokio::spawn(connection);
    Ok(sender)
}
