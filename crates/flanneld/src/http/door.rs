//! The connections of one door: how many there are, how long each may take over what, and which one goes when there are too many.
//!
//! Whoever keeps a connection without asking, asks a byte at a time or does not fetch the answers takes a place from nobody: when
//! all are taken, the connection that has been in one of these states longest makes room for the one that comes. So a prober,
//! which asks at once, is answered at once, whoever else is there. Doors leave the process descriptors for its own work, and where
//! it has none left all the same, each door has one kept for whoever comes.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::{DRAIN, Door, Subject, respond};

/// Connections at once, per door, where there are descriptors enough.
const CONNECTIONS: u64 = 64;
/// Descriptors that the daemon's own work has at once, at most: netlink, etcd, and pipes of programs that it runs.
const OWN_DESCRIPTORS: u64 = 48;
/// A request is there as a whole this long after its first byte, and the first one this long after the connection.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// An answer is fetched within this.
const FETCH_TIME: Duration = Duration::from_secs(5);
/// Between two requests.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// What is kept of a connection's requests and answers, bytes each; hyper's least is half of it.
const BUFFER: usize = 16 << 10;
/// What the kernel keeps of answers that nobody fetches, bytes.
const KERNEL_BUFFER: usize = 64 << 10;
/// That connections cannot be accepted is told this often at most: room is found and lost from one to the next.
const TELL: Duration = Duration::from_secs(60);
/// Where no connection can be accepted and none is to be closed to make room, it is tried again after this.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is asked.
    Idle,
    /// A request is on its way in.
    Asking,
    /// The daemon is at work on the answer.
    Answering,
    /// The answer is on its way out.
    Fetching,
}

impl Phase {
    fn limit(self) -> Option<Duration> {
        match self {
            Phase::Idle => Some(IDLE_TIME),
            Phase::Asking => Some(REQUEST_TIME),
            Phase::Answering => None,
            Phase::Fetching => Some(FETCH_TIME),
        }
    }
}

/// What a connection is at, and since when.
#[derive(Debug)]
struct Progress(Mutex<(Phase, Instant)>);

impl Progress {
    fn lock(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes from one of these phases to another.
    fn go(&self, from: &[Phase], to: Phase) {
        let mut now = self.lock();
        if from.contains(&now.0) {
            *now = (to, Instant::now());
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let (phase, since) = *self.lock();
        Some(since + phase.limit()?)
    }
}

/// A stream that notes what is done with it.
struct Noted<S: AsFd> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.progress.go(&[Phase::Idle], Phase::Asking);
        }
        polled
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes();
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = polled {
            self.progress.go(&[Phase::Fetching], Phase::Idle);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        if let Poll::Ready(Ok(())) = polled {
            self.progress.go(&[Phase::Fetching], Phase::Idle);
        }
        polled
    }
}

impl<S: AsFd> Noted<S> {
    fn writes(&self) {
        self.progress
            .go(&[Phase::Idle, Phase::Asking, Phase::Answering], Phase::Fetching);
    }
}

impl<S: AsFd> Drop for Noted<S> {
    fn drop(&mut self) {
        if self.progress.lock().0 == Phase::Fetching {
            // What was not fetched is thrown away: the kernel would keep it for minutes.
            let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
        }
    }
}

/// What connections come from.
pub(super) trait Accept: AsFd + Send + Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static;
    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, KERNEL_BUFFER);
        Ok(stream)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// The open connections, and the task of each.
#[derive(Default)]
struct Open {
    connections: Vec<(Arc<Progress>, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Open {
    /// Closes the connection that has been doing nothing for us longest; false where there is none.
    fn make_room(&mut self) -> bool {
        let at_rest = |progress: &Progress| {
            let (phase, since) = *progress.lock();
            // What the daemon is at work on is the last to go.
            (phase == Phase::Answering, since)
        };
        let oldest = (0..self.connections.len()).min_by_key(|n| at_rest(&self.connections[*n].0));
        let Some(oldest) = oldest else {
            return false;
        };
        self.connections.swap_remove(oldest).1.abort();
        true
    }

    fn forget_ended(&mut self) {
        self.connections.retain(|(_, task)| !task.is_finished());
    }
}

/// A descriptor that is given up for a connection when the process has no other left: what other doors and the daemon's own
/// work take cannot shut this door.
#[derive(Default)]
struct Spare(Option<OwnedFd>);

impl Spare {
    /// Holds one again, where there is one to be had.
    fn hold(&mut self) {
        if self.0.is_none() {
            self.0 = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).ok();
        }
    }

    /// Whether one was given up.
    fn give_up(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// How many connections a door has at once: of the process's descriptors a quarter each of what its own work leaves over, and one
/// in any case.
fn most_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    share(limit.unwrap_or(u64::MAX))
}

fn share(descriptors: u64) -> usize {
    let share = (descriptors.saturating_sub(OWN_DESCRIPTORS) / 4).clamp(1, CONNECTIONS);
    usize::try_from(share).unwrap_or(1)
}

/// Whether somebody waits to be let in. A call to accept cannot tell where no descriptors are left: it asks for one first.
fn somebody_waits(listener: &impl AsFd) -> bool {
    let mut asked = [PollFd::new(listener, PollFlags::IN)];
    // What cannot be asked is taken for yes: then room is made for nobody, at worst.
    rustix::event::poll(&mut asked, Some(&Timespec::default())).is_err()
        || asked[0].revents().contains(PollFlags::IN)
}

/// Serves until `stop` becomes true, or its sender is gone; then open requests have three seconds.
pub(super) async fn serve(
    listener: impl Accept,
    door: Door,
    subject: Arc<dyn Subject>,
    mut stop: watch::Receiver<bool>,
) {
    let mut open = Open::default();
    let most = most_connections();
    let mut told = None;
    let mut spare = Spare::default();
    spare.hold();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = open.tasks.join_next() => {
                open.forget_ended();
                spare.hold();
                continue;
            }
            accepted = listener.next() => accepted,
        };
        match accepted {
            Ok(stream) => {
                if open.connections.len() >= most {
                    open.make_room();
                }
                let progress = Arc::new(Progress(Mutex::new((Phase::Asking, Instant::now()))));
                let stream = Noted {
                    stream,
                    progress: Arc::clone(&progress),
                };
                let attended = attend(stream, door, Arc::clone(&subject), stop.clone());
                let task = open.tasks.spawn(attended);
                open.connections.push((progress, task));
                // Who has come has a turn before the next one is let in, who may push it out.
                tokio::task::yield_now().await;
                spare.hold();
            }
            // It was gone before it was taken.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !somebody_waits(&listener) {
                    let _ = timeout(NO_DESCRIPTOR, stopped(&mut stop)).await;
                    continue;
                }
                if told.is_none_or(|told: Instant| told.elapsed() > TELL) {
                    warn!("cannot accept connections, others are closed for them: {error}");
                    told = Some(Instant::now());
                }
                // Most likely there are no descriptors left: one of ours is freed for whoever waits.
                if spare.give_up() {
                    continue;
                }
                if open.make_room() {
                    tokio::task::yield_now().await;
                } else {
                    let _ = timeout(NO_DESCRIPTOR, stopped(&mut stop)).await;
                }
            }
        }
    }
    drop(listener);
    let _ = timeout(DRAIN, async { while open.tasks.join_next().await.is_some() {} }).await;
}

/// Returns when `stop` is true, and when its sender is gone: then the daemon is ending without a word.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Answers one connection until it ends or takes too long over something.
async fn attend<S>(stream: Noted<S>, door: Door, subject: Arc<dyn Subject>, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
{
    let progress = Arc::clone(&stream.progress);
    let answer = service_fn(|request| {
        progress.go(&[Phase::Idle, Phase::Asking], Phase::Answering);
        respond(door, &*subject, request)
    });
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            // The limits are ours: hyper's begin anew where they should not.
            .header_read_timeout(None)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), answer)
    );
    let mut clock = pin!(sleep(Duration::ZERO));
    let mut ending = false;
    loop {
        let ended = poll_fn(|context| {
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                return Poll::Ready(Some(ended));
            }
            let Some(deadline) = progress.deadline() else {
                return Poll::Pending;
            };
            if clock.deadline() != deadline {
                clock.set(sleep_until(deadline));
            }
            clock.as_mut().poll(context).map(|()| None)
        });
        tokio::select! {
            ended = ended => {
                match ended {
                    Some(Ok(())) => {}
                    Some(Err(error)) => debug!("http connection: {error}"),
                    None => debug!("http connection: closed, {:?} for too long", progress.lock().0),
                }
                return;
            }
            () = stopped(&mut stop), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn share_when_descriptors_are_few_leaves_what_the_daemon_needs_and_is_one_at_least() {
        for (descriptors, connections) in [
            (0, 1),
            (40, 1),
            (55, 1),
            (56, 2),
            (256, 52),
            (1024, 64),
            (u64::MAX, 64),
        ] {
            assert_eq!(share(descriptors), connections, "{descriptors}");
        }
    }
}
