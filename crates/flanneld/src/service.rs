//! The daemon as a service: signals, the service manager, and the two ways it ends.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::causes::in_full;
use fabric::readiness::Report;
use registry::{Backoff, Chance, Registry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::daemon::{Daemon, Ending};
use crate::data_path::data_path;
use crate::device_lock::{self, DeviceLocks};
use crate::errand::{Errands, NoAnswer};
use crate::flags::{EtcdApi, EtcdOptions, Health, KubeOptions, Options, RegistryOptions, Start};
use crate::handover::Handover;
use crate::heartbeat::Heartbeats;
use crate::http::{BindError, Subject};
use crate::journal::Journal;
use crate::notify::{Notice, Notifier};
use crate::socket::{SocketError, StatusSocket};
use crate::subject::Whole;
use crate::truth::Truth;
use crate::{http, port_holder, socket};

/// A service manager that waits for readiness is told to go on waiting this often.
const WAITING_PERIOD: Duration = Duration::from_secs(10);

/// How things stand is looked at this often: that somebody does not answer is told by nobody.
const REPORT_PERIOD: Duration = Duration::from_secs(2);

/// A predecessor that was just killed has its port and its socket until its last thread has left the kernel.
const PREDECESSOR_ENDS: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const PREDECESSOR_LOOK: Duration = Duration::from_millis(20);

/// What changes again within this time is told as one change.
const SETTLES: Duration = Duration::from_millis(150);

/// Everything that has to come to an end when the daemon does has this long, all together: who does not is left behind.
const STOPPING: Duration = Duration::from_secs(4);
const _: () = assert!(http::DRAIN.as_secs() < STOPPING.as_secs());

/// A name that has no address by then has none, and who has a port is not looked for any longer.
const LOOK_UP: Duration = Duration::from_secs(10);
/// Making the status socket, and looking at it, takes no longer than this.
const SOCKET_TIME: Duration = Duration::from_secs(2);
/// How often it is looked whether the status socket is there, and tried to make it where it is not.
const SOCKET_LOOK: Duration = Duration::from_secs(1);

/// A service manager that has no room for our words hears them again after this,
const SAY_AGAIN: Duration = Duration::from_millis(50);
/// the last ones this often.
const SAYINGS: u32 = 5;

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
/// `inherited` is what a predecessor in this process was listening on, and the locks it held.
///
/// # Errors
/// What no waiting cures: another node has our subnet, somebody else has the health port or the status socket.
pub async fn run(start: Start, mut inherited: Handover) -> anyhow::Result<Exit> {
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

    let heartbeats = Heartbeats::default();
    let aside = Errands::new("doors", "the system", heartbeats.clone());
    let locks = Arc::new(DeviceLocks::new(
        Path::new(device_lock::FOLDER),
        &options.subnet_file,
        std::mem::take(&mut inherited.locks),
    ));
    let path = socket::path_for(&options.subnet_file);
    let registry = registry_of(&options.registry, |name| std::env::var(name).ok())?;
    let prepared = async {
        // First of all the places where one can be asked: whoever waits for something must be able to say for what.
        let health = match &options.health {
            Some(health) => Some(health_port(health, inherited.health, &aside).await?),
            None => None,
        };
        let socket = status_socket(&path, inherited.status, &aside).await?;
        let daemon = start_daemon(&options, &registry, &heartbeats, &locks, &notifier).await;
        anyhow::Ok((health, socket, daemon))
    };
    let (health, socket, daemon) = tokio::select! {
        prepared = prepared => prepared?,
        () = either(&mut terminate, &mut interrupt) => {
            info!("stopping before anything was begun");
            tell(&notifier, &[Notice::Stopping]);
            return Ok(Exit::Code(0));
        }
    };
    // Held beside those that serve: for as long as one of them is open, whoever connects waits for an answer.
    let health_too = health.as_ref().and_then(|listener| listener.try_clone().ok());
    let subject: Arc<dyn Subject> = Arc::new(Whole {
        truth: daemon.truth().clone(),
        mailbox: Arc::clone(daemon.mailbox()),
        registry: Arc::clone(&registry),
        heartbeats: heartbeats.clone(),
    });
    let (stop, stopped) = watch::channel(false);
    let local = LocalDoor {
        path,
        aside: &aside,
        subject: Arc::clone(&subject),
        held: Mutex::new(None),
    };
    let doors = async {
        let network = async {
            match health {
                Some(listener) => http::serve_tcp(listener, subject, stopped.clone()).await,
                None => {
                    let _ = stopped.clone().wait_for(|stop| *stop).await;
                    Ok(())
                }
            }
        };
        tokio::join!(network, local.serve(socket, stopped.clone())).0
    };
    let mut doors = pin!(doors);

    let tell_registry = |report: &Report| registry.note(data_path(report));
    let work = async {
        loop {
            match daemon.run().await? {
                Ending::Readdressed(change) => {
                    warn!("{change}; starting anew")
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
        never = report(daemon.truth().clone(), tell_registry, &notifier, &heartbeats) => match never {},
        never = daemon.watch_disk() => match never {},
        () = either(&mut terminate, &mut interrupt) => Ok(Exit::Code(0)),
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
    let end = Instant::now() + STOPPING;
    tell_for_sure(&notifier, &farewell).await;
    stop.send_replace(true);
    // The doors have less time than all together: the threads are asked to end after them.
    let doors = tokio::time::timeout(http::DRAIN, doors);
    let _ = tokio::join!(doors, daemon.note_for_the_next());
    daemon
        .stop(aside.stop(), end.saturating_duration_since(Instant::now()))
        .await;
    let held = local.held().take();
    Ok(match exit? {
        Exit::Reexec(_) => Exit::Reexec(Handover {
            health: health_too,
            status: held.and_then(|(listener, socket)| Some((listener?, socket.hand_over()))),
            locks: locks.hand_over(),
        }),
        exit => exit,
    })
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// The health port: a predecessor's in this process, or taken anew.
async fn health_port(
    health: &Health,
    kept: Option<TcpListener>,
    aside: &Errands,
) -> anyhow::Result<TcpListener> {
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port()).ok();
    if let Some(kept) = kept.filter(|kept| port(kept) == Some(health.port)) {
        return Ok(kept);
    }
    let attempt = async || -> anyhow::Result<Result<TcpListener, BindError>> {
        if !http::is_name(health) {
            return Ok(http::bind(health));
        }
        let wanted = health.clone();
        Ok(aside
            .ask("health port", LOOK_UP, move || http::bind(&wanted))
            .await?)
    };
    let is_taken = |attempted: &anyhow::Result<Result<TcpListener, BindError>>| matches!(attempted, Ok(Err(failure)) if failure.is_in_use());
    match after_predecessor(attempt, is_taken).await? {
        Ok(listener) => Ok(listener),
        Err(failure) if failure.is_in_use() => {
            let port = health.port;
            let holder = aside.ask("holder", LOOK_UP, move || port_holder::of(port)).await;
            match holder.ok().flatten() {
                Some(holder) => Err(anyhow::anyhow!("{failure}: {holder} listens there")),
                None => Err(failure.into()),
            }
        }
        Err(failure) => Err(failure.into()),
    }
}

type Taken = (UnixListener, StatusSocket);

/// The status socket: a predecessor's in this process, or taken anew; or why it cannot be had for now.
///
/// # Errors
/// Another daemon has it: two with one subnet file would write over each other.
async fn status_socket(
    path: &Path,
    kept: Option<(UnixListener, socket::Identity)>,
    aside: &Errands,
) -> anyhow::Result<Result<Taken, String>> {
    let kept = kept.and_then(|(listener, identity)| socket::take_over(path, listener, identity));
    if let Some(kept) = kept {
        return Ok(Ok(kept));
    }
    let is_taken = |attempted: &Result<Result<Taken, SocketError>, NoAnswer>| {
        matches!(attempted, Ok(Err(SocketError::Taken { .. })))
    };
    match after_predecessor(async || take_socket(path, aside).await, is_taken).await {
        Ok(Ok(taken)) => Ok(Ok(taken)),
        Ok(Err(taken @ SocketError::Taken { .. })) => Err(taken.into()),
        Ok(Err(failure)) => Ok(Err(failure.to_string())),
        Err(failure) => Ok(Err(failure.to_string())),
    }
}

async fn take_socket(path: &Path, aside: &Errands) -> Result<Result<Taken, SocketError>, NoAnswer> {
    let path = path.to_owned();
    aside
        .ask("status socket", SOCKET_TIME, move || socket::take(&path))
        .await
}

/// The status socket, made again whenever it is lost.
struct LocalDoor<'a> {
    path: PathBuf,
    aside: &'a Errands,
    subject: Arc<dyn Subject>,
    /// The socket that serves, and its listener once more, to be handed over.
    held: Mutex<Option<(Option<UnixListener>, StatusSocket)>>,
}

impl LocalDoor<'_> {
    async fn serve(&self, first: Result<Taken, String>, mut stopped: watch::Receiver<bool>) {
        let mut told = String::new();
        let mut tell = |failure: String| {
            if !failure.is_empty() && told != failure {
                warn!("no status socket for now: {failure}");
            }
            told = failure;
        };
        let mut taken = first.map_err(&mut tell).ok();
        loop {
            if let Some((listener, socket)) = taken.take() {
                *self.held() = Some((listener.try_clone().ok(), socket));
                tokio::select! {
                    served = http::serve_unix(listener, Arc::clone(&self.subject), stopped.clone()) => match served {
                        Ok(()) => return,
                        Err(failure) => warn!("status socket {}: {failure}", self.path.display()),
                    },
                    () = self.lost() => {
                        warn!("status socket {}: removed or replaced; made again", self.path.display());
                    }
                }
                // One that is in its place by now is another's and stays.
                drop(self.held().take());
            }
            let anew = tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                anew = take_socket(&self.path, self.aside) => anew,
            };
            let failure = match anew {
                Ok(Ok(anew)) => {
                    info!("status socket {}: there now", self.path.display());
                    tell(String::new());
                    taken = Some(anew);
                    continue;
                }
                Ok(Err(failure)) => failure.to_string(),
                Err(failure) => failure.to_string(),
            };
            tell(failure);
            let _ = tokio::time::timeout(SOCKET_LOOK, stopped.wait_for(|stop| *stop)).await;
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<(Option<UnixListener>, StatusSocket)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the path does not lead to the socket any more. Until then it leaves a sign of life there.
    async fn lost(&self) {
        loop {
            tokio::time::sleep(SOCKET_LOOK).await;
            let look = self.held().as_ref().map(|(_, socket)| socket.look());
            let Some(look) = look else { continue };
            if let Ok(false) = self
                .aside
                .ask("look at the status socket", SOCKET_TIME, look)
                .await
            {
                return;
            }
        }
    }
}

/// Starts the daemon's threads, as soon as the system has some to give.
async fn start_daemon(
    options: &Options,
    registry: &Arc<dyn Registry>,
    heartbeats: &Heartbeats,
    locks: &Arc<DeviceLocks>,
    notifier: &Notifier,
) -> Daemon {
    let mut backoff = Backoff::new(
        Duration::from_millis(200),
        Duration::from_secs(5),
        &Chance::system(),
    );
    let mut told = String::new();
    loop {
        let started = Daemon::start(
            options.clone(),
            Arc::clone(registry),
            options.registry.name(),
            heartbeats.clone(),
            Arc::clone(locks),
        );
        let failure = match started {
            Ok(daemon) => return daemon,
            Err(failure) => in_full(failure.as_ref()),
        };
        if told != failure {
            error!("waiting: {failure}");
            told = failure;
        }
        let waiting = [Notice::Status(&told), Notice::ExtendTimeout(WAITING_PERIOD * 3)];
        tell(notifier, &waiting);
        tokio::time::sleep(backoff.step()).await;
    }
}

/// Tries again for a while where somebody may be about to leave the place.
async fn after_predecessor<T>(attempt: impl AsyncFn() -> T, may_leave: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + PREDECESSOR_ENDS;
    loop {
        let outcome = attempt().await;
        if !may_leave(&outcome) || Instant::now() >= end {
            return outcome;
        }
        tokio::time::sleep(PREDECESSOR_LOOK).await;
    }
}

/// The registry that the flags name; inside a pod the environment says where Kubernetes is.
fn registry_of(
    options: &RegistryOptions,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Arc<dyn Registry>> {
    Ok(match options {
        RegistryOptions::Etcd(etcd) => {
            let options = etcd_options(etcd);
            match etcd.api {
                EtcdApi::Auto => Arc::new(registry::EtcdAuto::new(&options)?),
                EtcdApi::V3 => Arc::new(registry::Etcd3::new(&options)?),
                EtcdApi::V2 => Arc::new(registry::Etcd2::new(&options)?),
            }
        }
        RegistryOptions::Kube(kube) => {
            let options = registry::kube::Options {
                access: kube_access(kube, &variable)?,
                identity: kube_identity(&variable)?,
                prefix: kube.prefix.clone(),
                config: kube.config.clone(),
                sets_condition: kube.sets_condition,
            };
            Arc::new(registry::Kube::new(options, Chance::system()))
        }
    })
}

fn kube_access(
    kube: &KubeOptions,
    variable: &impl Fn(&str) -> Option<String>,
) -> anyhow::Result<registry::kube::Access> {
    use registry::kube::Access;
    if let Some(path) = &kube.kubeconfig {
        return Ok(Access::Kubeconfig {
            path: path.clone(),
            url: kube.url.clone(),
        });
    }
    if let Some(url) = &kube.url {
        return Ok(Access::Url(url.clone()));
    }
    let given = |name: &str| variable(name).filter(|text| !text.is_empty());
    let (Some(host), Some(port)) = (given("KUBERNETES_SERVICE_HOST"), given("KUBERNETES_SERVICE_PORT"))
    else {
        anyhow::bail!(
            "kube-subnet-mgr outside a pod: expected --kubeconfig-file or --kube-api-url, since KUBERNETES_SERVICE_HOST and \
             KUBERNETES_SERVICE_PORT are not set"
        );
    };
    let port = port
        .parse()
        .map_err(|_| anyhow::anyhow!("KUBERNETES_SERVICE_PORT is {port:?}: expected a port"))?;
    Ok(Access::InCluster { host, port })
}

fn kube_identity(variable: &impl Fn(&str) -> Option<String>) -> anyhow::Result<registry::kube::Identity> {
    use registry::kube::Identity;
    // They become parts of a path.
    let given = |name: &str| -> anyhow::Result<Option<String>> {
        let text = variable(name).filter(|text| !text.is_empty());
        let is_name = |text: &String| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        };
        match text {
            Some(text) if !is_name(&text) => {
                anyhow::bail!("{name} is {text:?}: expected the name of a Kubernetes object")
            }
            text => Ok(text),
        }
    };
    if let Some(name) = given("NODE_NAME")? {
        return Ok(Identity::Node(name));
    }
    match (given("POD_NAMESPACE")?, given("POD_NAME")?) {
        (Some(namespace), Some(name)) => Ok(Identity::Pod { namespace, name }),
        _ => anyhow::bail!(
            "kube-subnet-mgr: which Node is this? Expected NODE_NAME in the environment, or POD_NAME and POD_NAMESPACE of the pod \
             that this runs in"
        ),
    }
}

fn etcd_options(etcd: &EtcdOptions) -> registry::etcd::Options {
    let endpoints: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
    let (username, password) = match &etcd.credentials {
        Some(credentials) => (
            credentials.username.clone(),
            credentials.password.reveal().to_owned(),
        ),
        None => (String::new(), String::new()),
    };
    registry::etcd::Options {
        endpoints: endpoints.join(","),
        prefix: etcd.prefix.clone(),
        tls: registry::etcd::TlsFiles {
            cafile: etcd.cafile.clone(),
            certfile: etcd.client.as_ref().map(|client| client.certfile.clone()),
            keyfile: etcd.client.as_ref().map(|client| client.keyfile.clone()),
        },
        username,
        password,
        ..registry::etcd::Options::default()
    }
}

/// Keeps the log and the service manager informed: waiting, ready, alive.
async fn report(
    mut truth: Truth,
    tell_registry: impl Fn(&Report),
    notifier: &Notifier,
    heartbeats: &Heartbeats,
) -> std::convert::Infallible {
    let watchdog = notifier.watchdog_period();
    let mut journal = Journal::default();
    let (mut ready, mut served) = (false, false);
    let mut said = String::new();
    let mut silent = None;
    loop {
        let report = truth.report();
        let line = truth.line(&report);
        tell_registry(&report);
        let mut notices = Vec::new();
        if line != said {
            notices.push(Notice::Status(&line));
        }
        // Ready to the service manager is "the kernel equals what is known of the leases", be it from the cache; it is said
        // once, and services that were ordered after us start. What comes and goes afterwards is `/readyz`'s to say.
        if !served && !report.holds_service() {
            served = true;
            if !report.is_ready() {
                info!("as ready as can be: {line}");
            }
        }
        if served && !ready {
            notices.push(Notice::Ready);
        } else if !ready {
            notices.push(Notice::ExtendTimeout(WAITING_PERIOD * 3));
        }
        let silence = heartbeats.silent();
        match (silent, &silence) {
            (None, Some(silence)) => error!("{silence}"),
            (Some(thread), None) => info!("thread {thread} comes round again"),
            _ => {}
        }
        if watchdog.is_some() && silence.is_none() {
            notices.push(Notice::Watchdog);
        }
        silent = silence.map(|silence| silence.thread);
        let mut period = watchdog.unwrap_or(WAITING_PERIOD).min(REPORT_PERIOD);
        let told = tell(notifier, &notices);
        journal.write(&report, &line, std::time::Instant::now());
        if told {
            said = line;
            ready = served;
        } else {
            period = period.min(SAY_AGAIN);
        }
        if tokio::time::timeout(period, truth.changed()).await.is_ok() {
            // What is put right at once is a repair and no state of affairs.
            tokio::time::sleep(SETTLES).await;
        }
    }
}

/// False where the service manager had no room for it at the moment.
fn tell(notifier: &Notifier, notices: &[Notice<'_>]) -> bool {
    if notices.is_empty() {
        return true;
    }
    match notifier.tell(notices) {
        Err(failure) if failure.kind() == io::ErrorKind::WouldBlock => false,
        Err(failure) => {
            warn!("NOTIFY_SOCKET: {failure}");
            true
        }
        Ok(()) => true,
    }
}

/// Says the last word again for a moment where there was no room for it.
async fn tell_for_sure(notifier: &Notifier, notices: &[Notice<'_>]) {
    for _ in 0..SAYINGS {
        if tell(notifier, notices) {
            return;
        }
        tokio::time::sleep(SAY_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ffi::OsString;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use fabric::readiness::Part;
    use fabric::status::{Firewall, FirewallState};

    use super::*;
    use crate::board::{Reporter, Standing};

    fn options(arguments: &[&str]) -> Options {
        let words = std::iter::once(&"flanneld").chain(arguments).map(OsString::from);
        match crate::flags::command_line(words, |_| None, "") {
            crate::flags::CommandLine::Run(start) => start.options,
            other => panic!("{other:?}"),
        }
    }

    /// A service manager that listens at an abstract address, and the way to it.
    fn manager(name: &str, watchdog: Option<u64>) -> (UnixDatagram, Notifier) {
        let name = format!("flanneld-service-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::from_environment(
            |variable| match variable {
                "NOTIFY_SOCKET" => Some(OsString::from(format!("@{name}"))),
                "WATCHDOG_USEC" => watchdog.map(|micros| micros.to_string().into()),
                _ => None,
            },
            1,
        );
        (manager, notifier.unwrap())
    }

    /// What has been said since the last look, one line each.
    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 4096];
        let mut lines = Vec::new();
        while let Ok(length) = manager.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            lines.extend(text.lines().map(str::to_owned));
        }
        lines
    }

    #[test]
    fn registry_when_it_is_asked_then_as_the_flags_say() {
        let plain = etcd_options(options(&[]).registry.etcd().unwrap());
        assert_eq!((plain.username.as_str(), plain.password.as_str()), ("", ""));
        assert_eq!(
            (&plain.tls.cafile, &plain.tls.certfile, &plain.tls.keyfile),
            (&None, &None, &None)
        );
        let full = etcd_options(
            options(&[
                "--etcd-endpoints=https://a:1,https://b:2",
                "--etcd-prefix=/x/network",
                "--etcd-cafile=/ca",
                "--etcd-certfile=/cert",
                "--etcd-keyfile=/key",
                "--etcd-username=user",
                "--etcd-password=word",
            ])
            .registry
            .etcd()
            .unwrap(),
        );
        assert_eq!(
            (full.endpoints.as_str(), full.prefix.as_str()),
            ("https://a:1,https://b:2", "/x/network")
        );
        let file = |path: &str| Some(PathBuf::from(path));
        assert_eq!(
            (full.tls.cafile, full.tls.certfile, full.tls.keyfile),
            (file("/ca"), file("/cert"), file("/key"))
        );
        assert_eq!((full.username.as_str(), full.password.as_str()), ("user", "word"));
    }

    #[tokio::test(start_paused = true)]
    async fn place_when_a_predecessor_may_leave_it_then_tried_for_two_seconds_and_no_longer() {
        let tries = Cell::new(0);
        let attempt = async || {
            tries.set(tries.get() + 1);
            tries.get()
        };
        assert_eq!(after_predecessor(attempt, |_| false).await, 1);
        let began = Instant::now();
        tries.set(0);
        assert_eq!(after_predecessor(attempt, |tried| *tried < 5).await, 5);
        assert_eq!(began.elapsed(), PREDECESSOR_LOOK * 4);
        let began = Instant::now();
        after_predecessor(attempt, |_| true).await;
        assert_eq!(began.elapsed(), PREDECESSOR_ENDS);
    }

    #[test]
    fn manager_when_told_then_only_what_it_had_no_room_for_is_to_be_said_again() {
        let (manager, notifier) = manager("room", None);
        assert!(tell(&notifier, &[]));
        assert_eq!(
            heard(&manager),
            [""; 0],
            "nothing is said where there is nothing to say"
        );
        let mut said = 0;
        while tell(&notifier, &[Notice::Watchdog]) {
            said += 1;
            assert!(said < 100_000, "it has room for ever");
        }
        assert_eq!(heard(&manager).len(), said);
        drop(manager);
        assert!(
            tell(&notifier, &[Notice::Watchdog]),
            "whom nobody hears is not heard later"
        );
        assert!(tell(&Notifier::default(), &[Notice::Watchdog]));
    }

    #[tokio::test(start_paused = true)]
    async fn last_word_when_there_is_no_room_then_it_is_said_again_a_few_times() {
        let (manager, notifier) = manager("last", None);
        let began = Instant::now();
        tell_for_sure(&notifier, &[Notice::Stopping]).await;
        assert_eq!(heard(&manager), ["STOPPING=1"]);
        assert_eq!(began.elapsed(), Duration::ZERO);
        while tell(&notifier, &[Notice::Watchdog]) {}
        tell_for_sure(&notifier, &[Notice::Stopping]).await;
        assert_eq!(began.elapsed(), SAY_AGAIN * SAYINGS);
        let both = async {
            tokio::time::sleep(SAY_AGAIN + SAY_AGAIN / 2).await;
            heard(&manager)
        };
        tokio::join!(tell_for_sure(&notifier, &[Notice::Stopping]), both);
        assert_eq!(heard(&manager), ["STOPPING=1"]);
    }

    /// Reports to a manager for so long, and gives what it heard meanwhile.
    async fn reported(
        truth: &Truth,
        manager: &UnixDatagram,
        notifier: &Notifier,
        heartbeats: &Heartbeats,
        time: Duration,
    ) -> Vec<String> {
        let mut truth = truth.clone();
        while tokio::time::timeout(SAY_AGAIN, truth.changed()).await.is_ok() {}
        let never = report(truth, |_| {}, notifier, heartbeats);
        assert!(tokio::time::timeout(time, never).await.is_err());
        heard(manager)
    }

    fn truth() -> (watch::Sender<registry::State>, Truth) {
        let states = watch::Sender::new(registry::State {
            watching: true,
            ..registry::State::default()
        });
        let off = Firewall {
            state: FirewallState::Off,
            ..Firewall::default()
        };
        let truth = Truth::new(
            Reporter::default(),
            states.subscribe(),
            crate::truth::RegistryName::etcd("/n"),
            off,
        );
        (states, truth)
    }

    const WAITING: &str = "EXTEND_TIMEOUT_USEC=30000000";

    #[tokio::test(start_paused = true)]
    async fn report_when_it_waits_then_the_manager_is_told_for_what_once_and_that_it_takes_longer() {
        let (manager, notifier) = manager("waits", None);
        let (_states, truth) = truth();
        let heartbeats = Heartbeats::default();
        let time = REPORT_PERIOD * 2 + Duration::from_secs(1);
        let lines = reported(&truth, &manager, &notifier, &heartbeats, time).await;
        assert_eq!(lines, ["STATUS=starting", WAITING, WAITING, WAITING]);
    }

    #[tokio::test(start_paused = true)]
    async fn report_when_all_is_in_place_then_ready_is_said_once_and_life_as_often_as_the_manager_wants() {
        let (manager, notifier) = manager("ready", Some(2_000_000));
        let (states, truth) = truth();
        let heartbeats = Heartbeats::default();
        truth.reporter().publish(Part::SubnetFile, Report::default());
        truth.update(|situation| {
            situation.waiting = None;
            situation.backend = "vxlan".to_owned();
        });
        truth.reporter().stand(Standing {
            engaged: true,
            listed: true,
            ..Standing::default()
        });
        let lines = reported(
            &truth,
            &manager,
            &notifier,
            &heartbeats,
            Duration::from_millis(2500),
        )
        .await;
        let told: Vec<&str> = lines
            .iter()
            .map(String::as_str)
            .filter(|line| *line != "WATCHDOG=1")
            .collect();
        assert_eq!(told, ["STATUS=vxlan no lease: 0 peers", "READY=1"]);
        assert_eq!(lines.len() - 2, 3, "at once and each second: {lines:?}");
        // A thread that hangs: nobody says that all is alive.
        let stuck = heartbeats.watch("stuck", Duration::ZERO);
        let lines = reported(
            &truth,
            &manager,
            &notifier,
            &heartbeats,
            Duration::from_millis(2500),
        )
        .await;
        assert!(lines.iter().all(|line| line != "WATCHDOG=1"), "{lines:?}");
        drop(stuck);
        // Not ready any more is no reason to take readiness back; nor is it to be waited for.
        states.send_modify(|state| state.watching = false);
        let lines = reported(
            &truth,
            &manager,
            &notifier,
            &heartbeats,
            Duration::from_millis(500),
        )
        .await;
        assert!(
            lines.contains(&"READY=1".to_owned()) && !lines.contains(&WAITING.to_owned()),
            "{lines:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn report_when_the_manager_has_no_room_then_it_is_told_soon_after() {
        let (manager, notifier) = manager("full", None);
        let (_states, truth) = truth();
        let heartbeats = Heartbeats::default();
        while tell(&notifier, &[Notice::Watchdog]) {}
        let never = report(truth.clone(), |_| {}, &notifier, &heartbeats);
        let later = async {
            tokio::time::sleep(SETTLES).await;
            heard(&manager);
            tokio::time::sleep(SETTLES + SAY_AGAIN * 2).await;
            heard(&manager)
        };
        tokio::select! {
            never = never => match never {},
            lines = later => assert_eq!(lines, ["STATUS=starting", WAITING]),
        }
    }
}
