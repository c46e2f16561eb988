//! One HTTP/1.1 connection to one member. What is asked goes one after the other; whoever listens for as long as it may take has
//! a connection to itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use fabric::digest::fnv1a;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::cutter::Cutter;
use super::wire::{Refused, refusal};
use crate::RegistryError;
use crate::etcd::{
    CallError, ConnectError, Credentials, Endpoint, Line, Protocol, Reached, Showing, TlsFiles, Verdict,
    reach,
};

/// Largest answer that is kept whole: a request may have 1.5 MiB, of which each byte can be written as six.
const LARGEST: usize = 16 << 20;

/// How long an answer may take to begin while there are others to ask.
const IMPATIENCE: Duration = Duration::from_millis(1500);

/// A connection; clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: Arc<Mutex<http1::SendRequest<Full<Bytes>>>>,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    sent: Arc<AtomicU64>,
    number: u64,
    endpoint: Arc<Endpoint>,
    /// With TLS: what the member wanted to see of us.
    shown: Option<Arc<Showing>>,
    /// Something came back over it.
    answered: Arc<AtomicBool>,
    /// How long an answer may take to begin, where that is less than a request as a whole may take.
    patience: Option<Duration>,
}

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    /// `application/x-www-form-urlencoded`.
    pub(super) form: String,
}

impl Ask {
    pub(super) fn get(path: String) -> Ask {
        Ask {
            method: Method::GET,
            path,
            form: String::new(),
        }
    }
}

/// What the header of an answer says of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    /// `X-Etcd-Index`: how many changes it has seen.
    pub(super) index: i64,
    /// Of `X-Etcd-Cluster-Id`.
    pub(super) cluster: u64,
}

impl At {
    fn of(headers: &HeaderMap) -> At {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        At {
            index: text("x-etcd-index")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            cluster: fnv1a(text("x-etcd-cluster-id").unwrap_or_default().as_bytes()),
        }
    }
}

/// An answer of which more is to come.
pub(super) struct Stream {
    pub(super) at: At,
    body: Incoming,
    cutter: Cutter,
}

impl Stream {
    /// Hands on what has come by now, object by object; waits for it. Whether there is more to come.
    pub(super) async fn next(&mut self, take: &mut (dyn FnMut(&[u8]) + Send)) -> Result<bool, Refused> {
        let frame = match self.body.frame().await {
            None => return Ok(false),
            Some(frame) => frame.map_err(|failure| Refused::unanswered(&failure))?,
        };
        if let Some(bytes) = frame.data_ref() {
            let fed = self.cutter.feed(bytes, take);
            fed.map_err(|_| Refused::Odd("more than anything that is asked for can have".to_owned()))?;
        }
        Ok(true)
    }

    /// What was around the objects.
    pub(super) fn rest(&self) -> &[u8] {
        self.cutter.rest()
    }
}

impl Line for Connection {
    type Refusal = Refused;

    async fn open(
        endpoint: &Arc<Endpoint>,
        files: &TlsFiles,
        credentials: Option<&Credentials>,
        sent: &Arc<AtomicU64>,
        number: u64,
    ) -> Result<Connection, ConnectError> {
        let Reached { stream, shown } = reach(endpoint, files, Protocol::Http1).await?;
        let sender = handshake(stream).await?;
        let origin = endpoint.origin();
        let authority = origin.split_once("://").map_or(origin.as_str(), |(_, rest)| rest);
        Ok(Connection {
            sender: Arc::new(Mutex::new(sender)),
            host: HeaderValue::from_str(authority)?,
            authorization: credentials.map(basic).transpose()?,
            sent: Arc::clone(sent),
            number,
            endpoint: Arc::clone(endpoint),
            shown,
            answered: Arc::default(),
            patience: None,
        })
    }

    /// COMPAT: a member that has just lost its leader drops what it is asked for with the others' consent, says so after seven seconds,
    /// and has another leader after one or two: asked again, it answers.
    fn impatient(&self) -> Connection {
        Connection {
            patience: Some(IMPATIENCE),
            ..self.clone()
        }
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn is_closed(&self) -> bool {
        // One that is being used shows by itself whether it is.
        self.sender.try_lock().is_ok_and(|sender| sender.is_closed())
    }

    fn doubt(&self) -> Option<String> {
        let shown = self.shown.as_ref()?;
        let is_unanswered = !self.answered.load(Ordering::Relaxed);
        is_unanswered.then(|| shown.doubt()).flatten()
    }

    fn judge(refused: &Refused) -> Verdict {
        match refused.is_final() {
            true => Verdict::Final,
            false => Verdict::Elsewhere,
        }
    }

    fn is_denial(refused: &Refused) -> bool {
        refused.is_denial()
    }

    fn describe(refused: &Refused) -> String {
        refused.to_string()
    }
}

impl From<CallError<Refused>> for RegistryError {
    fn from(error: CallError<Refused>) -> RegistryError {
        error.into_registry_error::<Connection>()
    }
}

/// COMPAT: sent with every request, as Go flannel does; etcd's v2 API knows no tokens.
fn basic(credentials: &Credentials) -> Result<HeaderValue, ConnectError> {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(pair)))?;
    value.set_sensitive(true);
    Ok(value)
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

impl Connection {
    /// As patient as another.
    pub(super) fn with_patience_of(self, other: &Connection) -> Connection {
        Connection {
            patience: other.patience,
            ..self
        }
    }

    async fn send(&self, ask: Ask) -> Result<Response<Incoming>, Refused> {
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(HOST, &self.host)
            .header(USER_AGENT, concat!("flanneld/", env!("CARGO_PKG_VERSION")));
        if !ask.form.is_empty() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::new(Bytes::from(ask.form)))
            .map_err(|failure| Refused::Odd(failure.to_string()))?;
        let mut sender = self.sender.lock().await;
        let unanswered = |failure: hyper::Error| Refused::unanswered(&failure);
        sender.ready().await.map_err(unanswered)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        let answer = sender.send_request(request);
        let response = match self.patience {
            None => answer.await,
            Some(patience) => timeout(patience, answer).await.map_err(|_| Refused::Unanswered {
                why: format!("no answer within {} s", patience.as_secs_f64()),
                is_foreign: false,
            })?,
        };
        let response = response.map_err(unanswered)?;
        self.answered.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// Asks, and reads the answer whole.
    pub(super) async fn whole(&self, ask: Ask) -> Result<(At, Bytes), Refused> {
        let response = self.send(ask).await?;
        let (status, at) = (response.status(), At::of(response.headers()));
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|failure| Refused::broken(&*failure))?.to_bytes();
        match status.is_success() {
            true => Ok((at, body)),
            false => Err(refusal(status, &body)),
        }
    }

    /// Asks for what is read as it comes: the objects inside so many brackets, of whose strings so many bytes are kept.
    pub(super) async fn stream(&self, ask: Ask, wanted: usize, longest: usize) -> Result<Stream, Refused> {
        let response = self.send(ask).await?;
        let (status, at) = (response.status(), At::of(response.headers()));
        if !status.is_success() {
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            let body = body.map_err(|failure| Refused::broken(&*failure))?.to_bytes();
            return Err(refusal(status, &body));
        }
        Ok(Stream {
            at,
            body: response.into_body(),
            cutter: Cutter::new(wanted, longest),
        })
    }
}
