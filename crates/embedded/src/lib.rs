//! An etcd v3 API server for one machine, labs and small home set-ups: the calls flanneld and `etcdctl` use, on a
//! redb file. [`serve`] starts one.
//!
//! What it promises: every acknowledged write survives a kill at any moment; revisions, watches, transactions and
//! compaction behave as in etcd 3.4; leases expire, and what remained of them survives a restart. What it leaves out
//! (authentication, snapshots, members, the v2 API, the JSON gateway, …) is refused by name.
#![forbid(unsafe_code)]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

mod authority;
mod http;
mod listen;
mod refusal;
mod service;
mod store;
mod tls;
mod watch;

pub use store::OpenError;
pub use tls::{Tls, TlsError};

use http::Router;
use service::{Registry, Shared};
use store::{Opened, Store};

pub use store::Lost;

/// How long a stop waits for the store's last user.
const CLOSE: Duration = Duration::from_secs(1);

/// What to serve and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// `HOST:PORT`, port 0 = a free one.
    pub listen: Vec<String>,
    /// Made when missing.
    pub data_dir: PathBuf,
    /// Every listener speaks TLS when given.
    pub tls: Option<Tls>,
    /// Beyond loopback without TLS: anyone who can reach the port may change everything.
    pub insecure: bool,
}

/// Why the server does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No address to listen on.
    #[error("--listen: expected HOST:PORT, got nothing")]
    NoAddress,
    /// An address that cannot be understood or resolved.
    #[error("--listen {listen}: {reason}; expected HOST:PORT, such as 127.0.0.1:2379")]
    Address {
        /// As given.
        listen: String,
        /// What is wrong.
        reason: String,
    },
    /// Reachable from outside, unprotected.
    #[error(
        "--listen {listen}: {address} is not a loopback address; beyond loopback give --cert-file and --key-file, or \
         --insecure to let anyone who can reach it change everything"
    )]
    Exposed {
        /// As given.
        listen: String,
        /// What it resolved to.
        address: SocketAddr,
    },
    /// The address is taken or not ours.
    #[error("--listen {listen}: cannot listen on {address}: {source}")]
    Bind {
        /// As given.
        listen: String,
        /// What it resolved to.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disk refused a write while serving.
    #[error("{0}")]
    Storage(String),
}

/// A server that is running.
#[derive(Debug)]
pub struct Bound {
    addresses: Vec<SocketAddr>,
    urls: Vec<String>,
    lost: Option<Lost>,
    done: JoinHandle<Result<(), ServeError>>,
}

impl Bound {
    /// Where it listens, with the ports chosen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The same as clients write it: `http://127.0.0.1:2379`, or `https://…`.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Commits that were acknowledged and that a damaged store has lost, for those who run it to be told of.
    pub fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// Completes when the server has stopped: everything acknowledged is on the disk and the directory is free.
    ///
    /// # Errors
    ///
    /// The first reason why it ended by itself.
    pub async fn finished(self) -> Result<(), ServeError> {
        self.done
            .await
            .unwrap_or_else(|error| Err(ServeError::Storage(error.to_string())))
    }
}

/// Starts a server on the current tokio runtime; it serves when this returns, and stops when `shutdown` completes.
pub async fn serve(
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Bound, ServeError> {
    let tls = options.tls.as_ref().map(tls::acceptor).transpose()?;
    let mut listeners = Vec::new();
    for listen in &options.listen {
        listeners.extend(bind(listen, options.insecure || tls.is_some()).await?);
    }
    if listeners.is_empty() {
        return Err(ServeError::NoAddress);
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let addresses: Vec<_> = listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .collect();
    let urls: Vec<_> = addresses
        .iter()
        .map(|address| format!("{scheme}://{address}"))
        .collect();

    let Opened {
        store,
        writer,
        closed,
    } = Store::open(&options.data_dir)?;
    let lost = store.lost;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let shared = Shared {
        store,
        writer: writer.clone(),
        client_urls: urls.clone(),
        stopping: stopping.clone(),
    };
    let router = Router::new(&Registry(Arc::new(shared)));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(listen::accept(
            listener,
            tls.clone(),
            router.clone(),
            stopping.clone(),
        ));
    }
    drop(router);
    let done = tokio::spawn(async move {
        let failure = tokio::select! {
            () = shutdown => None,
            reason = writer.failed() => Some(reason),
        };
        stop.send_replace(true);
        while accepting.join_next().await.is_some() {}
        let stopped = writer.stop().await;
        // Streams that are just ending hold it a moment longer.
        let _ = tokio::time::timeout(CLOSE, closed.wait()).await;
        match (failure, stopped) {
            (Some(reason), _) => Err(ServeError::Storage(reason)),
            (None, stopped) => stopped.map_err(|refusal| ServeError::Storage(refusal.to_string())),
        }
    });
    Ok(Bound {
        addresses,
        urls,
        lost,
        done,
    })
}

async fn bind(listen: &str, protected: bool) -> Result<Vec<TcpListener>, ServeError> {
    let address_error = |reason| ServeError::Address {
        listen: listen.to_owned(),
        reason,
    };
    let mut listeners = Vec::new();
    for address in listen::resolve(listen).await.map_err(address_error)? {
        if !protected && !address.ip().is_loopback() {
            return Err(ServeError::Exposed {
                listen: listen.to_owned(),
                address,
            });
        }
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.map_err(|source| ServeError::Bind {
            listen: listen.to_owned(),
            address,
            source,
        })?);
    }
    Ok(listeners)
}
