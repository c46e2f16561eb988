//! HTTP: `/healthz`, `/readyz` and `/metrics` on the health port; on the status socket also status, pods, plan, pause and resume.
//!
//! COMPAT: paths, status codes and bodies of the first two are the reference's, byte for byte; any method will do there.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fabric::status::{Pods, Status};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use crate::flags::Health;
use crate::metrics::{self, Numbers};

/// A client that does not finish its request by then is cut off.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Connections at once, per listener; more wait.
const CONNECTIONS: usize = 64;
/// After the stop, open requests get this long.
const DRAIN: Duration = Duration::from_secs(3);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// A value that is ready later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The daemon, as far as HTTP asks.
pub trait Subject: Send + Sync + 'static {
    /// The engine's loop comes round as it should.
    fn is_alive(&self) -> bool;
    /// What keeps the daemon from being ready right now, one sentence each; empty when it is.
    fn reasons(&self) -> Vec<String>;
    /// Whether pods of this host can be part of the network.
    fn pods(&self) -> Pods;
    /// The numbers of now.
    fn numbers(&self) -> Numbers;
    /// Everything.
    fn status(&self) -> Later<'_, Status>;
    /// The steps that would be applied to the kernel now; the error says why that cannot be told.
    fn plan(&self) -> Later<'_, Result<Vec<String>, String>>;
    /// Stop (true) or go on (false) changing the kernel.
    fn pause(&self, paused: bool);
}

/// Through which door a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The health port, open to the network.
    Network,
    /// The status socket, open to root.
    Local,
}

/// A bad address, or one that is taken.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve health on {host}:{port}: {source}")]
pub struct BindError {
    host: String,
    port: u16,
    source: std::io::Error,
}

impl BindError {
    /// Whether somebody else has the port.
    pub fn is_in_use(&self) -> bool {
        self.source.kind() == std::io::ErrorKind::AddrInUse
    }
}

/// Takes the health port. `--healthz-ip` may be empty (all addresses of both families) or a name.
pub fn bind(health: &Health) -> Result<StdListener, BindError> {
    let failed = |source| BindError {
        host: health.host.clone(),
        port: health.port,
        source,
    };
    let listener = if health.host.is_empty() {
        // Where IPv6 is switched off there is no `::`.
        StdListener::bind(("::", health.port))
            .or_else(|_| StdListener::bind((Ipv4Addr::UNSPECIFIED, health.port)))
    } else {
        let host = health.host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Result<Vec<SocketAddr>, _> =
            (host, health.port).to_socket_addrs().map(Iterator::collect);
        addresses.and_then(|addresses| StdListener::bind(addresses.as_slice()))
    }
    .map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// What connections come from.
trait Accept: Send + Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next one.
    fn next(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> std::io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn next(&self) -> std::io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves the health port until `stop` becomes true; then open requests have three seconds.
pub async fn serve_tcp(
    listener: StdListener,
    subject: Arc<dyn Subject>,
    stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    serve(TcpListener::from_std(listener)?, Door::Network, subject, stop).await;
    Ok(())
}

/// Serves the status socket until `stop` becomes true.
pub async fn serve_unix(listener: UnixListener, subject: Arc<dyn Subject>, stop: watch::Receiver<bool>) {
    serve(listener, Door::Local, subject, stop).await;
}

async fn serve(
    listener: impl Accept,
    door: Door,
    subject: Arc<dyn Subject>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = listener.next() => accepted,
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, or a connection that was gone before it was taken.
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        let (subject, mut stop) = (Arc::clone(&subject), stop.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request| respond(door, &*subject, request));
            let mut connection = std::pin::pin!(
                hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(REQUEST_TIME)
                    .serve_connection(TokioIo::new(stream), answer)
            );
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopped(&mut stop) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                debug!("http connection: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(DRAIN, places.acquire_many(all)).await;
}

/// Returns when `stop` is true, and when its sender is gone: then the daemon is ending without a word.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn respond(
    door: Door,
    subject: &dyn Subject,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(route(
        door,
        subject,
        request.method(),
        request.uri().path(),
        request.uri().query(),
    )
    .await)
}

/// Answers one request. Bodies of requests are not looked at.
pub async fn route(
    door: Door,
    subject: &dyn Subject,
    method: &Method,
    path: &str,
    query: Option<&str>,
) -> Response<Full<Bytes>> {
    match (door, path) {
        (_, "/healthz") if subject.is_alive() => answer(StatusCode::OK, TEXT, "flanneld is running"),
        (_, "/healthz") => answer(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "flanneld does not come round",
        ),
        (_, "/readyz") => readiness(subject, query),
        (_, "/metrics") => match metrics::render(&subject.numbers()) {
            Ok(text) => answer(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
        },
        (Door::Local, "/status") => match method {
            &Method::GET | &Method::HEAD => json(&subject.status().await),
            _ => refuse_method("GET, HEAD"),
        },
        (Door::Local, "/pods") => match method {
            &Method::GET | &Method::HEAD => json(&subject.pods()),
            _ => refuse_method("GET, HEAD"),
        },
        (Door::Local, "/plan") => match method {
            &Method::GET | &Method::HEAD => match subject.plan().await {
                Ok(steps) => json(&serde_json::json!({ "ops": steps })),
                Err(why) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, why),
            },
            _ => refuse_method("GET, HEAD"),
        },
        (Door::Local, "/pause" | "/resume") => match method {
            &Method::POST => {
                let paused = path == "/pause";
                subject.pause(paused);
                json(&serde_json::json!({ "paused": paused }))
            }
            _ => refuse_method("POST"),
        },
        _ => answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
    }
}

fn readiness(subject: &dyn Subject, query: Option<&str>) -> Response<Full<Bytes>> {
    let reasons = subject.reasons();
    let (status, mut body) = if reasons.is_empty() {
        (StatusCode::OK, "flanneld is ready".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "flanneld is not ready yet".to_owned(),
        )
    };
    if query.is_some_and(|query| {
        query
            .split('&')
            .any(|word| word == "verbose" || word.starts_with("verbose="))
    }) {
        body.push('\n');
        for reason in reasons {
            body.push_str(&reason);
            body.push('\n');
        }
    }
    answer(status, TEXT, body)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(text) => answer(StatusCode::OK, JSON, text),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
    }
}

fn refuse_method(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = answer(
        StatusCode::METHOD_NOT_ALLOWED,
        TEXT,
        format!("expected {allowed}\n"),
    );
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
