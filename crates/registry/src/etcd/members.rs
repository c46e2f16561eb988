//! The members of an etcd cluster: a connection to the one that works, and the way to the next when it does not. Whichever API is
//! spoken over the connection: it is a [`Line`].
//!
//! A good endpoint is kept until it fails (sticky); the first is picked at random, so that the nodes of a cluster spread
//! over its members.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use super::endpoint::{Endpoint, parse_endpoints};
use super::tls::TlsFiles;
use super::{Credentials, Options, OptionsError, REQUEST_DEADLINE};
use crate::RegistryError;
use crate::chance::Chance;
use crate::state::{Failure, State, Trouble};

/// TCP, TLS and login together: less than a request's deadline, so that one dead member among several costs little.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// Why there is no connection, for people; the endpoint is named by the caller.
pub type ConnectError = Box<dyn Error + Send + Sync>;

/// What is to be done about an answer that is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is final: another member would say the same.
    Final,
    /// The login is no longer good.
    Login,
    /// This member is ill; another may do better.
    Elsewhere,
}

/// A connection to one member; clones share it. It never reconnects by itself.
pub(crate) trait Line: Clone + Send + Sync {
    /// What comes instead of what was asked for: from the member, or made on our side of a broken connection.
    type Refusal: Send;

    /// Connects, and logs in where that takes place once.
    fn open(
        endpoint: &Arc<Endpoint>,
        files: &TlsFiles,
        credentials: Option<&Credentials>,
        sent: &Arc<AtomicU64>,
        number: u64,
    ) -> impl Future<Output = Result<Self, ConnectError>> + Send;

    /// The same, for a try that is not the last: it may wait less long for the beginning of an answer.
    fn impatient(&self) -> Self {
        self.clone()
    }

    /// Tells connections apart.
    fn number(&self) -> u64;

    /// Where it leads.
    fn endpoint(&self) -> &Endpoint;

    /// Whether the other side or the network ended it.
    fn is_closed(&self) -> bool;

    /// What may be wrong with a connection over which no answer ever came.
    fn doubt(&self) -> Option<String>;

    /// What is to be done about a refusal.
    fn judge(refusal: &Self::Refusal) -> Verdict;

    /// Whether a final refusal says no to what was asked, which an operator has to see. What is not there, is there already, or is of
    /// another time is none.
    fn is_denial(refusal: &Self::Refusal) -> bool;

    /// A refusal in words.
    fn describe(refusal: &Self::Refusal) -> String;
}

pub(crate) struct Members<L: Line> {
    endpoints: Vec<Arc<Endpoint>>,
    files: TlsFiles,
    credentials: Option<Credentials>,
    current: Mutex<Current<L>>,
    sent: Arc<AtomicU64>,
    state: watch::Sender<State>,
    /// Neither log nor state hears of what happens: nobody knows yet whether this API is the one to be spoken.
    silent: AtomicBool,
    /// The connection that is left last, for those who hold one of their own to the same member.
    left: watch::Sender<u64>,
    denied: Notify,
}

struct Current<L> {
    index: usize,
    opened: u64,
    line: Option<L>,
}

impl<L: Line> Current<L> {
    fn holds(&self, line: &L) -> bool {
        let held = self.line.as_ref();
        held.is_some_and(|held| held.number() == line.number())
    }
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(crate) enum CallError<R> {
    /// No member answered.
    Unreachable(String),
    /// A member answered with an error.
    Status {
        endpoint: String,
        call: &'static str,
        status: R,
    },
}

impl<R> CallError<R> {
    /// The answer's code and words, when there is an answer.
    pub(crate) fn status(&self) -> Option<&R> {
        match self {
            CallError::Unreachable(_) => None,
            CallError::Status { status, .. } => Some(status),
        }
    }

    /// For those who do not ask why, in the words of a line.
    pub(crate) fn into_registry_error<L: Line<Refusal = R>>(self) -> RegistryError {
        match self {
            CallError::Unreachable(text) => RegistryError::Unreachable(text),
            CallError::Status {
                endpoint,
                call,
                status,
            } => RegistryError::Refused {
                endpoint,
                call,
                reason: L::describe(&status),
            },
        }
    }
}

impl<L: Line> Members<L> {
    /// Not connected yet. `silent` until [told to speak](Members::speak): neither log nor state hears of what happens.
    pub(crate) fn of(
        options: &Options,
        state: watch::Sender<State>,
        silent: bool,
        chance: &Chance,
    ) -> Result<Members<L>, OptionsError> {
        let endpoints = parse_endpoints(&options.endpoints, options.tls.any())?;
        let current = Current {
            index: chance.below(endpoints.len()),
            opened: 0,
            line: None,
        };
        Ok(Members {
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            files: options.tls.clone(),
            credentials: options.credentials(),
            current: Mutex::new(current),
            sent: Arc::new(AtomicU64::new(0)),
            state,
            silent: AtomicBool::new(silent),
            left: watch::Sender::new(0),
            denied: Notify::new(),
        })
    }

    /// From now on log and state hear of what happens, and at once of the connection there is; or no longer, and none is kept.
    pub(crate) async fn speak(&self, aloud: bool) {
        self.silent.store(!aloud, Ordering::Relaxed);
        if !aloud {
            self.current.lock().await.line = None;
        }
        if let Some(endpoint) = self.endpoint().await {
            self.note_connected(&endpoint);
        }
    }

    /// Where the connection in use leads; `None` while there is none.
    pub(crate) async fn endpoint(&self) -> Option<Endpoint> {
        let current = self.current.lock().await;
        current.line.as_ref().map(|line| line.endpoint().clone())
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Calls a member; the next one when this one is dead, slow or without a leader, each at most once.
    ///
    /// A call can have been carried out although it failed: every caller's request is one that may come twice.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        call: &'static str,
        request: F,
    ) -> Result<T, CallError<L::Refusal>>
    where
        F: Fn(L) -> Fut,
        Fut: Future<Output = Result<T, L::Refusal>>,
    {
        self.call_within(REQUEST_DEADLINE, call, request).await
    }

    /// The same, for what may take longer than others.
    pub(crate) async fn call_within<T, F, Fut>(
        &self,
        deadline: Duration,
        call: &'static str,
        request: F,
    ) -> Result<T, CallError<L::Refusal>>
    where
        F: Fn(L) -> Fut,
        Fut: Future<Output = Result<T, L::Refusal>>,
    {
        let mut failures = Vec::new();
        let mut logged_in = false;
        // One more than there are members: the connection at hand may have died unnoticed while its member is well.
        let mut tries = self.endpoints.len() + 1;
        while failures.len() < tries {
            let line = self.line().await?;
            let asked = match failures.len() + 1 < self.endpoints.len() {
                true => line.impatient(),
                false => line.clone(),
            };
            let reason = match timeout(deadline, request(asked)).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(status)) => match L::judge(&status) {
                    Verdict::Elsewhere => match line.doubt() {
                        Some(doubt) => format!("{} ({doubt})", L::describe(&status)),
                        None => L::describe(&status),
                    },
                    Verdict::Login if self.credentials.is_some() && !logged_in => {
                        logged_in = true;
                        self.forget(&line).await;
                        continue;
                    }
                    Verdict::Login | Verdict::Final => {
                        let endpoint = line.endpoint().to_string();
                        if L::is_denial(&status) {
                            // Until it is over this is what is wrong, and not what was before it.
                            self.note_failure(
                                &format!("{endpoint}: {call}: {}", L::describe(&status)),
                                false,
                            );
                            self.denied.notify_one();
                        }
                        return Err(CallError::Status {
                            endpoint,
                            call,
                            status,
                        });
                    }
                },
                Err(_) => {
                    tries = self.endpoints.len();
                    format!("no answer within {} s", deadline.as_secs())
                }
            };
            let reason = format!("{}: {call}: {reason}", line.endpoint());
            self.give_up(&line, &reason).await;
            failures.push(reason);
        }
        Err(CallError::Unreachable(failures.join("; ")))
    }

    /// Asks the member at hand, and nobody else, for its own words. The outer failure: nobody is there, or nobody speaks.
    pub(crate) async fn ask_one<T, F, Fut>(
        &self,
        call: &'static str,
        request: F,
    ) -> Result<Result<T, CallError<L::Refusal>>, CallError<L::Refusal>>
    where
        F: Fn(L) -> Fut,
        Fut: Future<Output = Result<T, L::Refusal>>,
    {
        let line = self.line().await?;
        let endpoint = line.endpoint().to_string();
        let status = match timeout(REQUEST_DEADLINE, request(line.clone())).await {
            Ok(Ok(reply)) => return Ok(Ok(reply)),
            Ok(Err(status)) => status,
            Err(_) => {
                let reason = format!(
                    "{endpoint}: {call}: no answer within {} s",
                    REQUEST_DEADLINE.as_secs()
                );
                self.give_up(&line, &reason).await;
                return Err(CallError::Unreachable(reason));
            }
        };
        if L::judge(&status) == Verdict::Elsewhere {
            self.give_up(&line, &L::describe(&status)).await;
        }
        Ok(Err(CallError::Status {
            endpoint,
            call,
            status,
        }))
    }

    /// The connection in use, or a new one to the first member that takes it.
    pub(crate) async fn line(&self) -> Result<L, CallError<L::Refusal>> {
        let mut current = self.current.lock().await;
        if let Some(line) = current.line.as_ref().filter(|line| !line.is_closed()) {
            return Ok(line.clone());
        }
        current.line = None;
        let mut failures = Vec::new();
        for _ in 0..self.endpoints.len() {
            match self.open(&mut current).await {
                Ok(line) => return Ok(line),
                Err(reason) => failures.push(reason),
            }
        }
        let error = failures.join("; ");
        self.note_failure(&error, true);
        Err(CallError::Unreachable(error))
    }

    async fn open(&self, current: &mut MutexGuard<'_, Current<L>>) -> Result<L, String> {
        let Some(endpoint) = self.endpoints.get(current.index) else {
            current.index = 0;
            return Err("no endpoint".to_owned());
        };
        current.opened += 1;
        match self.open_to(endpoint, current.opened).await {
            Ok(line) => {
                current.line = Some(line.clone());
                self.note_connected(endpoint);
                Ok(line)
            }
            Err(reason) => {
                current.index = (current.index + 1) % self.endpoints.len();
                Err(reason)
            }
        }
    }

    async fn open_to(&self, endpoint: &Arc<Endpoint>, number: u64) -> Result<L, String> {
        let credentials = self.credentials.as_ref();
        let opening = L::open(endpoint, &self.files, credentials, &self.sent, number);
        let reason = match timeout(CONNECT_DEADLINE, opening).await {
            Ok(Ok(line)) => return Ok(line),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} s", CONNECT_DEADLINE.as_secs()),
        };
        Err(format!("{endpoint}: {reason}"))
    }

    /// Another connection to the member of this one: it counts as the same.
    pub(crate) async fn beside(&self, line: &L) -> Result<L, String> {
        self.open_to(&Arc::new(line.endpoint().clone()), line.number())
            .await
    }

    /// Comes back when the member that this connection leads to is left.
    pub(crate) async fn left(&self, line: &L) {
        let mut left = self.left.subscribe();
        // The sender is ours.
        let _ = left.wait_for(|number| *number >= line.number()).await;
    }

    /// Leaves the member this connection leads to, unless that happened already. Streams that still work on the
    /// connection go on until its own pings fail.
    pub(crate) async fn give_up(&self, line: &L, reason: &str) {
        let mut current = self.current.lock().await;
        if current.holds(line) {
            self.part_from(&mut current);
            current.index = (current.index + 1) % self.endpoints.len();
        }
        drop(current);
        self.note_failure(reason, false);
    }

    /// Makes the next call open a new connection, whatever the one in use may still be good for.
    pub(crate) async fn leave(&self) {
        self.part_from(&mut *self.current.lock().await);
    }

    /// Makes the next call open a new connection to the same member.
    async fn forget(&self, line: &L) {
        let mut current = self.current.lock().await;
        if current.holds(line) {
            current.line = None;
        }
    }

    fn part_from(&self, current: &mut Current<L>) {
        current.line = None;
        self.left.send_replace(current.opened);
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    fn note_connected(&self, endpoint: &Endpoint) {
        if !self.is_silent() {
            note_connected(&self.state, endpoint);
        }
    }

    /// Records what went wrong; `lost` when no member is left.
    pub(crate) fn note_failure(&self, error: &str, lost: bool) {
        if !self.is_silent() {
            note_failure(&self.state, error, lost);
        }
    }

    /// Resolves when a member has said no.
    pub(crate) async fn denied(&self) {
        self.denied.notified().await;
    }

    /// Records what the registry says is wrong with it, or that nothing is.
    pub(crate) fn note_trouble(&self, trouble: Option<Trouble>) {
        self.state.send_if_modified(|state| {
            let news = state.trouble != trouble;
            if news {
                match &trouble {
                    Some(trouble) => warn!("{}", trouble.text),
                    None => info!("etcd's alarm is over"),
                }
                state.trouble = trouble;
            }
            news
        });
    }

    pub(crate) fn state(&self) -> &watch::Sender<State> {
        &self.state
    }
}

/// Records who answers.
pub(crate) fn note_connected(state: &watch::Sender<State>, endpoint: &Endpoint) {
    let endpoint = endpoint.to_string();
    state.send_if_modified(|state| {
        let news = state.endpoint.as_deref() != Some(&endpoint);
        if news {
            info!(%endpoint, "connected to etcd");
            state.endpoint = Some(endpoint.clone());
            state.since = Some(SystemTime::now());
        }
        news
    });
}

/// Records what went wrong; `lost` when no member is left.
pub(crate) fn note_failure(state: &watch::Sender<State>, error: &str, lost: bool) {
    state.send_modify(|state| {
        let at = SystemTime::now();
        if lost && (state.endpoint.take().is_some() || state.since.is_none()) {
            warn!(%error, "no etcd endpoint answers; trying on");
            state.since = Some(at);
        }
        state.last_failure = Some(Failure {
            at,
            error: error.to_owned(),
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::etcd3::Connection;

    fn members() -> Members<Connection> {
        let options = Options {
            endpoints: "http://192.0.2.1:1,http://192.0.2.2:1".to_owned(),
            ..Options::default()
        };
        let state = watch::Sender::new(State::default());
        Members::of(&options, state, false, &Chance::seeded(1)).unwrap()
    }

    #[test]
    fn the_state_says_since_when_it_is_so_and_what_went_wrong_last() {
        let members = members();
        let state = || members.state().borrow().clone();
        let error = || state().last_failure.map(|failure| failure.error);
        members.note_failure("a", false);
        assert_eq!((state().since, error().as_deref()), (None, Some("a")));
        members.note_failure("b", true);
        let lost = state().since;
        assert!(lost.is_some() && state().endpoint.is_none());
        members.note_failure("c", true);
        assert_eq!(
            (state().since, error().as_deref()),
            (lost, Some("c")),
            "as long as none answers"
        );
        let [first, second] = &*members.endpoints else {
            panic!()
        };
        members.note_connected(first);
        let connected = state().since;
        assert!(connected > lost);
        assert_eq!(state().endpoint.as_deref(), Some("http://192.0.2.1:1"));
        members.note_connected(first);
        assert_eq!(state().since, connected);
        members.note_failure("d", false);
        assert!(state().endpoint.is_some() && state().since == connected);
        members.note_connected(second);
        assert_eq!(state().endpoint.as_deref(), Some("http://192.0.2.2:1"));
        members.note_failure("e", true);
        assert!(state().endpoint.is_none() && state().since > connected);
    }
}
