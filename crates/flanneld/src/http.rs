//! HTTP: `/healthz`, `/readyz` and `/metrics` on the health port; on the status socket also status, pods, plan, pause and resume.
//!
//! COMPAT: paths, status codes and bodies of the first two are the reference's, byte for byte; any method will do there.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::os::unix::net::UnixListener as UnixStdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fabric::status::{Pods, Status};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::flags::Health;
use crate::metrics::{self, Numbers};

mod door;

/// After the stop, open requests get this long.
pub const DRAIN: Duration = Duration::from_secs(3);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// A value that is ready later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The daemon, as far as HTTP asks.
pub trait Subject: Send + Sync + 'static {
    /// Which thread has not come round for too long, and since when; `None` when all do.
    fn silence(&self) -> Option<String>;
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

/// Whether [`bind`] has to ask for the address of a name first, which may take long.
pub fn is_name(health: &Health) -> bool {
    !health.host.is_empty() && bare(&health.host).parse::<IpAddr>().is_err()
}

/// An address without the brackets of a URL.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Takes the health port. `--healthz-ip` may be empty (all addresses of both families) or a name ([`is_name`]).
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
        let addresses: Result<Vec<SocketAddr>, _> = (bare(&health.host), health.port)
            .to_socket_addrs()
            .map(Iterator::collect);
        addresses.and_then(|addresses| StdListener::bind(addresses.as_slice()))
    }
    .map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Serves the health port until `stop` becomes true; then open requests have three seconds.
pub async fn serve_tcp(
    listener: StdListener,
    subject: Arc<dyn Subject>,
    stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    door::serve(listener, Door::Network, subject, stop).await;
    Ok(())
}

/// Serves the status socket until `stop` becomes true.
pub async fn serve_unix(
    listener: UnixStdListener,
    subject: Arc<dyn Subject>,
    stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    door::serve(UnixListener::from_std(listener)?, Door::Local, subject, stop).await;
    Ok(())
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
        (_, "/healthz") => match subject.silence() {
            None => answer(StatusCode::OK, TEXT, "flanneld is running"),
            Some(silence) => answer(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                format!("flanneld does not come round\n{silence}\n"),
            ),
        },
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

#[cfg(test)]
mod tests {
    use super::*;

    fn health(host: &str, port: u16) -> Health {
        Health {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn health_address_when_it_is_a_name_then_it_has_to_be_asked_for() {
        for host in ["", "127.0.0.1", "::1", "[::1]"] {
            assert!(!is_name(&health(host, 0)), "{host}");
        }
        for host in ["localhost", "node-1.example"] {
            assert!(is_name(&health(host, 0)), "{host}");
        }
    }

    #[test]
    fn health_port_when_taken_then_had_once_and_that_is_told_from_other_failures() {
        let first = bind(&health("127.0.0.1", 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        assert_eq!(first.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let taken = bind(&health("[127.0.0.1]", port)).unwrap_err();
        assert!(taken.is_in_use());
        assert!(
            taken
                .to_string()
                .starts_with(&format!("cannot serve health on [127.0.0.1]:{port}: ")),
            "{taken}"
        );
        let strange = bind(&health("192.0.2.1", 0)).unwrap_err();
        assert!(!strange.is_in_use(), "{strange}");
        let everywhere = bind(&health("", 0)).unwrap().local_addr().unwrap();
        assert!(everywhere.ip().is_unspecified());
    }
}
