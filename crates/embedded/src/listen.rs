//! Sockets: where to listen, and one task per connection.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::authority::Tolerant;
use crate::http::Router;

/// A TLS handshake, or the first bytes of a connection, may take this long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Silent HTTP/2 peers are asked whether they still live: a watcher's host may have gone without a word.
const PING_EVERY: Duration = Duration::from_secs(60);
/// How long they have for the answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections have this long to end when the server stops.
const DRAIN: Duration = Duration::from_secs(2);
/// One flannel daemon has three streams; a proxy for many may have thousands.
const MAX_STREAMS: u32 = 10_000;

/// Accepts until `stopping` becomes true, then lets the connections end.
pub async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let connections = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: waiting is what helps.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router, watcher) = (tls.clone(), router.clone(), connections.watcher());
        tasks.spawn(async move {
            if let Err(error) = connection(socket, tls, router, watcher).await {
                tracing::debug!(%peer, error, "connection ended");
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, connections.shutdown()).await;
}

async fn connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), String> {
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    match tls {
        None => serve(socket, router, watcher).await,
        Some(tls) => {
            let handshake = tokio::time::timeout(HANDSHAKE, tls.accept(socket));
            let socket = handshake.await.map_err(|_| "TLS handshake took too long")?;
            serve(socket.map_err(|error| error.to_string())?, router, watcher).await
        }
    }
}

async fn serve(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), String> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS);
    let service = service_fn(move |request| router.clone().answer(request));
    let connection = server
        .serve_connection(TokioIo::new(Tolerant::new(socket)), service)
        .into_owned();
    watcher.watch(connection).await.map_err(|error| error.to_string())
}

/// Resolves `HOST:PORT`, where the host may be a name.
pub async fn resolve(listen: &str) -> Result<Vec<SocketAddr>, String> {
    let found: Vec<_> = tokio::net::lookup_host(listen)
        .await
        .map_err(|error| error.to_string())?
        .collect();
    if found.is_empty() {
        Err("the name has no address".into())
    } else {
        Ok(found)
    }
}
