//! The members of an etcd cluster: a connection to the one that works, and the way to the next when it does not.
//!
//! A good endpoint is kept until it fails (sticky); the first is picked at random, so that the nodes of a cluster spread
//! over its members.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tokio::time::timeout;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::connection::{Connection, describe};
use super::endpoint::Endpoint;
use super::tls::TlsFiles;
use super::{Credentials, REQUEST_DEADLINE};
use crate::RegistryError;
use crate::chance::Chance;
use crate::state::{Failure, State, Trouble};

/// TCP, TLS and login together: less than a request's deadline, so that one dead member among several costs little.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

pub(crate) struct Members {
    endpoints: Vec<Arc<Endpoint>>,
    files: TlsFiles,
    credentials: Option<Credentials>,
    current: Mutex<Current>,
    sent: Arc<AtomicU64>,
    state: watch::Sender<State>,
    full: Notify,
}

struct Current {
    index: usize,
    opened: u64,
    connection: Option<Connection>,
}

impl Current {
    fn holds(&self, connection: &Connection) -> bool {
        let held = self.connection.as_ref();
        held.is_some_and(|held| held.number == connection.number)
    }
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(crate) enum CallError {
    /// No member answered.
    Unreachable(String),
    /// A member answered with an error.
    Status {
        endpoint: String,
        call: &'static str,
        status: Status,
    },
}

impl CallError {
    /// The answer's code and words, when there is an answer.
    pub(crate) fn status(&self) -> Option<&Status> {
        match self {
            CallError::Unreachable(_) => None,
            CallError::Status { status, .. } => Some(status),
        }
    }

    /// Whether the revision asked for has not come yet, in etcd's words.
    pub(super) fn is_future(&self) -> bool {
        self.status().is_some_and(|status| {
            status.code() == Code::OutOfRange && status.message().contains("future revision")
        })
    }

    /// Whether the revision asked for is forgotten, or has not come yet.
    pub(super) fn is_compacted(&self) -> bool {
        self.status()
            .is_some_and(|status| status.code() == Code::OutOfRange)
    }
}

impl From<CallError> for RegistryError {
    fn from(error: CallError) -> RegistryError {
        match error {
            CallError::Unreachable(text) => RegistryError::Unreachable(text),
            CallError::Status {
                endpoint,
                call,
                status,
            } => RegistryError::Refused {
                endpoint,
                call,
                reason: describe(&status),
            },
        }
    }
}

impl Members {
    pub(crate) fn new(
        endpoints: Vec<Endpoint>,
        files: TlsFiles,
        credentials: Option<Credentials>,
        state: watch::Sender<State>,
        chance: &Chance,
    ) -> Members {
        let index = chance.below(endpoints.len());
        let current = Current {
            index,
            opened: 0,
            connection: None,
        };
        Members {
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            files,
            credentials,
            current: Mutex::new(current),
            sent: Arc::new(AtomicU64::new(0)),
            state,
            full: Notify::new(),
        }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Calls a member; the next one when this one is dead, slow or without a leader, each at most once.
    ///
    /// A call can have been carried out although it failed: every caller's request is one that may come twice.
    pub(crate) async fn call<T, F, Fut>(&self, call: &'static str, request: F) -> Result<T, CallError>
    where
        F: Fn(Connection) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let mut failures = Vec::new();
        let mut logged_in = false;
        // One more than there are members: the connection at hand may have died unnoticed while its member is well.
        let mut tries = self.endpoints.len() + 1;
        while failures.len() < tries {
            let connection = self.connection().await?;
            let outcome = timeout(REQUEST_DEADLINE, request(connection.clone())).await;
            let reason = match outcome {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(status)) if is_stale_token(&status) && self.credentials.is_some() && !logged_in => {
                    logged_in = true;
                    self.forget(&connection).await;
                    continue;
                }
                Ok(Err(status)) if !is_worth_another_member(&status) => {
                    let endpoint = connection.endpoint.to_string();
                    if is_refusal(&status) {
                        // Until it is over this is what is wrong, and not what was before it.
                        self.note_failure(&format!("{endpoint}: {call}: {}", describe(&status)), false);
                    }
                    if status.code() == Code::ResourceExhausted {
                        self.full.notify_one();
                    }
                    return Err(CallError::Status {
                        endpoint,
                        call,
                        status,
                    });
                }
                Ok(Err(status)) => describe(&status),
                Err(_) => {
                    tries = self.endpoints.len();
                    format!("no answer within {} s", REQUEST_DEADLINE.as_secs())
                }
            };
            let reason = format!("{}: {call}: {reason}", connection.endpoint);
            self.give_up(&connection, &reason).await;
            failures.push(reason);
        }
        Err(CallError::Unreachable(failures.join("; ")))
    }

    /// The connection in use, or a new one to the first member that takes it.
    pub(crate) async fn connection(&self) -> Result<Connection, CallError> {
        let mut current = self.current.lock().await;
        if let Some(connection) = current
            .connection
            .as_ref()
            .filter(|connection| !connection.is_closed())
        {
            return Ok(connection.clone());
        }
        current.connection = None;
        let mut failures = Vec::new();
        for _ in 0..self.endpoints.len() {
            match self.open(&mut current).await {
                Ok(connection) => return Ok(connection),
                Err(reason) => failures.push(reason),
            }
        }
        let error = failures.join("; ");
        self.note_failure(&error, true);
        Err(CallError::Unreachable(error))
    }

    async fn open(&self, current: &mut MutexGuard<'_, Current>) -> Result<Connection, String> {
        let Some(endpoint) = self.endpoints.get(current.index) else {
            current.index = 0;
            return Err("no endpoint".to_owned());
        };
        current.opened += 1;
        let opening = Connection::open(
            endpoint,
            &self.files,
            self.credentials.as_ref(),
            &self.sent,
            current.opened,
        );
        let reason = match timeout(CONNECT_DEADLINE, opening).await {
            Ok(Ok(connection)) => {
                current.connection = Some(connection.clone());
                self.note_connected(endpoint);
                return Ok(connection);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} s", CONNECT_DEADLINE.as_secs()),
        };
        let reason = format!("{endpoint}: {reason}");
        current.index = (current.index + 1) % self.endpoints.len();
        Err(reason)
    }

    /// Leaves the member this connection leads to, unless that happened already. Streams that still work on the
    /// connection go on until its own pings fail.
    pub(crate) async fn give_up(&self, connection: &Connection, reason: &str) {
        let mut current = self.current.lock().await;
        if current.holds(connection) {
            current.connection = None;
            current.index = (current.index + 1) % self.endpoints.len();
        }
        drop(current);
        self.note_failure(reason, false);
    }

    /// Makes the next call open a new connection, whatever the one in use may still be good for.
    pub(crate) async fn leave(&self) {
        self.current.lock().await.connection = None;
    }

    /// Makes the next call open a new connection to the same member.
    async fn forget(&self, connection: &Connection) {
        let mut current = self.current.lock().await;
        if current.holds(connection) {
            current.connection = None;
        }
    }

    fn note_connected(&self, endpoint: &Endpoint) {
        let endpoint = endpoint.to_string();
        self.state.send_if_modified(|state| {
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
    pub(crate) fn note_failure(&self, error: &str, lost: bool) {
        self.state.send_modify(|state| {
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

    /// Resolves when a member has no room for what was to be written.
    pub(super) async fn full(&self) {
        self.full.notified().await;
    }

    /// Records what the registry says is wrong with it, or that nothing is.
    pub(super) fn note_trouble(&self, trouble: Option<Trouble>) {
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

/// A token that expired or is older than a change of users and roles.
fn is_stale_token(status: &Status) -> bool {
    match status.code() {
        Code::Unauthenticated => true,
        Code::InvalidArgument => status.message().contains("revision of auth store is old"),
        _ => false,
    }
}

/// Whether a member says no, which an operator has to see. What is not there, is there already, or is of another time is no refusal.
fn is_refusal(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::NotFound | Code::OutOfRange | Code::FailedPrecondition
    )
}

/// Whether another member may do better. A status with a source was made on our side, from a broken connection.
fn is_worth_another_member(status: &Status) -> bool {
    use std::error::Error;
    status.source().is_some()
        || matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
                | Code::Unimplemented
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_stale_when_it_expired_or_users_have_changed() {
        assert!(is_stale_token(&Status::unauthenticated(
            "etcdserver: invalid auth token"
        )));
        let old = "etcdserver: revision of auth store is old";
        assert!(is_stale_token(&Status::invalid_argument(old)));
        assert!(!is_stale_token(&Status::invalid_argument(
            "etcdserver: key is not provided"
        )));
        assert!(!is_stale_token(&Status::permission_denied(old)));
    }

    #[test]
    fn another_member_is_asked_when_this_one_is_ill_and_not_when_it_says_no() {
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::Unknown,
            Code::Internal,
            Code::Unimplemented,
        ] {
            assert!(is_worth_another_member(&Status::new(code, "")), "{code:?}");
        }
        for code in [
            Code::PermissionDenied,
            Code::OutOfRange,
            Code::NotFound,
            Code::InvalidArgument,
        ] {
            let mut status = Status::new(code, "");
            assert!(!is_worth_another_member(&status), "{code:?}");
            status.set_source(Arc::new(std::io::Error::other("broken")));
            assert!(is_worth_another_member(&status), "made on our side");
        }
    }

    fn members() -> Members {
        let endpoints =
            super::super::parse_endpoints("http://192.0.2.1:1,http://192.0.2.2:1", false).unwrap();
        let (state, _) = watch::channel(State::default());
        Members::new(endpoints, TlsFiles::default(), None, state, &Chance::seeded(1))
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

    #[test]
    fn an_error_of_a_call_names_who_refused_and_why() {
        let refused = CallError::Status {
            endpoint: "http://a:1".to_owned(),
            call: "Txn",
            status: Status::permission_denied("no"),
        };
        assert_eq!(refused.status().map(Status::code), Some(Code::PermissionDenied));
        let want = RegistryError::Refused {
            endpoint: "http://a:1".to_owned(),
            call: "Txn",
            reason: "no".to_owned(),
        };
        assert_eq!(RegistryError::from(refused), want);
        let silent = CallError::Unreachable("x".to_owned());
        assert!(silent.status().is_none());
        assert_eq!(
            RegistryError::from(silent),
            RegistryError::Unreachable("x".to_owned())
        );
    }
}
