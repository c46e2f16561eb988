//! The daemon as a service: signals, the service manager, and the two ways it ends.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::daemon::{Daemon, Ending};
use crate::flags::Start;
use crate::handover::Handover;
use crate::notify::{Notice, Notifier};
use crate::socket::SocketError;
use crate::subject::Whole;
use crate::truth::Truth;
use crate::{http, socket};

/// A service manager that waits for readiness is told to go on waiting this often.
const WAITING_PERIOD: Duration = Duration::from_secs(10);

/// A predecessor that was just killed has its port and its socket until its last thread has left the kernel.
const PREDECESSOR_ENDS: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const PREDECESSOR_LOOK: Duration = Duration::from_millis(20);

/// Requests that are being answered when the end comes have this long.
const STOPPING: Duration = Duration::from_secs(3);

/// How the process shall end.
#[derive(Debug)]
pub enum Exit {
    /// With this status.
    Code(u8),
    /// As the program that is on disk now, in the same process, which goes on listening on these.
    Reexec(Handover),
}

/// Runs the daemon until a signal, or until there is nothing left that waiting could cure.
///
/// `inherited` is what a predecessor in this process was listening on.
pub async fn run(start: Start, inherited: Handover) -> anyhow::Result<Exit> {
    for mistake in &start.errors {
        error!("{mistake}");
    }
    for warning in &start.warnings {
        warn!("{warning}");
    }
    let options = start.options;
    info!("flanneld {} starting", env!("CARGO_PKG_VERSION"));
    let notifier = Notifier::from_environment(|name| std::env::var_os(name), std::process::id())
        .unwrap_or_else(|e| {
            warn!("{e}");
            Notifier::default()
        });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let prefix = options.etcd.prefix.clone();
    let registry: Arc<dyn Registry> = Arc::new(registry::Etcd3::new(&etcd_options(&options))?);
    // First of all the places where one can be asked: whoever waits for something must be able to say for what.
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port()).ok();
    let health = match &options.health {
        Some(health) => Some(
            match inherited.health.filter(|kept| port(kept) == Some(health.port)) {
                Some(kept) => kept,
                None => after_predecessor(|| http::bind(health), http::BindError::is_in_use).await?,
            },
        ),
        None => None,
    };
    let path = socket::path_for(&options.subnet_file);
    let is_taken = |failure: &SocketError| matches!(failure, SocketError::Taken { .. });
    let kept = inherited
        .status
        .and_then(|(listener, identity)| socket::take_over(&path, listener, identity));
    let taken = match kept {
        Some(kept) => Ok(kept),
        None => after_predecessor(|| socket::take(&path), is_taken).await,
    };
    let (socket, status_socket) = match taken {
        Ok((listener, socket)) => (Some(listener), Some(socket)),
        // Two daemons with one subnet file would write over each other.
        Err(taken @ SocketError::Taken { .. }) => return Err(taken.into()),
        Err(failure) => {
            warn!("no status socket: {failure}");
            (None, None)
        }
    };
    // Held beside those that serve: for as long as one of them is open, whoever connects waits for an answer.
    let health_too = health.as_ref().and_then(|listener| listener.try_clone().ok());
    let socket_too = socket
        .as_ref()
        .and_then(|listener| listener.as_fd().try_clone_to_owned().ok());
    let daemon = Daemon::start(options, Arc::clone(&registry), prefix)?;
    let subject = Arc::new(Whole {
        truth: daemon.truth().clone(),
        mailbox: Arc::clone(daemon.mailbox()),
        registry,
    });
    let (stop, stopped) = watch::channel(false);
    let doors = async {
        let network = async {
            match health {
                Some(listener) => http::serve_tcp(listener, Arc::clone(&subject) as _, stopped.clone()).await,
                None => {
                    let _ = stopped.clone().wait_for(|stop| *stop).await;
                    Ok(())
                }
            }
        };
        let local = async {
            if let Some(socket) = socket {
                http::serve_unix(socket, Arc::clone(&subject) as _, stopped.clone()).await;
            }
        };
        tokio::join!(network, local).0
    };
    let mut doors = pin!(doors);

    let work = async {
        loop {
            match daemon.run().await? {
                Ending::Readdressed(change) => {
                    warn!("the address peers know us by changed {change}; starting anew")
                }
                Ending::Taken(taken) => {
                    anyhow::bail!("{taken}; stopping, so that one subnet does not have two nodes")
                }
            }
        }
    };
    let exit = tokio::select! {
        ended = work => ended,
        closed = &mut doors => Err(anyhow::anyhow!("the health server ended: {closed:?}")),
        never = report(daemon.truth().clone(), &notifier) => match never {},
        _ = terminate.recv() => Ok(Exit::Code(0)),
        _ = interrupt.recv() => Ok(Exit::Code(0)),
        _ = hangup.recv() => Ok(Exit::Reexec(Handover::default())),
    };
    let farewell = match &exit {
        Ok(Exit::Reexec(_)) => {
            info!("SIGHUP: going on as the program on disk");
            vec![Notice::Reloading]
        }
        Ok(Exit::Code(_)) => {
            info!("stopping; the data path stays as it is");
            vec![
                Notice::Stopping,
                Notice::Status("stopping; the data path stays as it is"),
            ]
        }
        Err(_) => vec![Notice::Stopping],
    };
    tell(&notifier, &farewell);
    daemon.note_for_the_next().await;
    daemon.stop();
    stop.send_replace(true);
    let _ = tokio::time::timeout(STOPPING, doors).await;
    Ok(match exit? {
        Exit::Reexec(_) => Exit::Reexec(Handover {
            health: health_too,
            status: status_socket
                .zip(socket_too)
                .map(|(socket, listener)| (listener.into(), socket.hand_over())),
        }),
        exit => exit,
    })
}

/// Tries again for a while where somebody may be about to leave the place.
async fn after_predecessor<T, E>(
    attempt: impl Fn() -> Result<T, E>,
    may_leave: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let end = tokio::time::Instant::now() + PREDECESSOR_ENDS;
    loop {
        match attempt() {
            Err(failure) if may_leave(&failure) && tokio::time::Instant::now() < end => {
                tokio::time::sleep(PREDECESSOR_LOOK).await;
            }
            outcome => return outcome,
        }
    }
}

fn etcd_options(options: &crate::flags::Options) -> registry::etcd3::Options {
    let etcd = &options.etcd;
    let endpoints: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
    let (username, password) = match &etcd.credentials {
        Some(credentials) => (
            credentials.username.clone(),
            credentials.password.reveal().to_owned(),
        ),
        None => (String::new(), String::new()),
    };
    registry::etcd3::Options {
        endpoints: endpoints.join(","),
        prefix: etcd.prefix.clone(),
        tls: registry::etcd3::TlsFiles {
            cafile: etcd.cafile.clone(),
            certfile: etcd.client.as_ref().map(|client| client.certfile.clone()),
            keyfile: etcd.client.as_ref().map(|client| client.keyfile.clone()),
        },
        username,
        password,
        ..registry::etcd3::Options::default()
    }
}

/// Keeps the service manager informed: waiting, ready, alive.
async fn report(mut truth: Truth, notifier: &Notifier) -> std::convert::Infallible {
    let watchdog = notifier.watchdog_period();
    let mut ready = false;
    let mut said = String::new();
    loop {
        let line = truth.line();
        let mut notices = Vec::new();
        if line != said {
            notices.push(Notice::Status(&line));
        }
        // Ready to the service manager is "the kernel equals what is known of the leases", be it from the cache; it is said
        // once, and services that were ordered after us start. What comes and goes afterwards is `/readyz`'s to say.
        if !ready && truth.is_served() {
            ready = true;
            match truth.reasons().is_empty() {
                true => info!("ready: {line}"),
                false => info!("as ready as can be: {line}"),
            }
            notices.push(Notice::Ready);
        } else if !ready {
            notices.push(Notice::ExtendTimeout(WAITING_PERIOD * 3));
        }
        if watchdog.is_some() && truth.reporter().is_alive() {
            notices.push(Notice::Watchdog);
        }
        tell(notifier, &notices);
        said = line;
        let period = watchdog.unwrap_or(WAITING_PERIOD).min(WAITING_PERIOD);
        let _ = tokio::time::timeout(period, truth.changed()).await;
    }
}

fn tell(notifier: &Notifier, notices: &[Notice<'_>]) {
    if !notices.is_empty()
        && let Err(failure) = notifier.tell(notices)
    {
        warn!("NOTIFY_SOCKET: {failure}");
    }
}
