//! One HTTP/2 connection to one member. It never reconnects by itself: when it breaks, everything on it fails, and
//! [`Members`](crate::etcd::Members) decide where to go next.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_proto::etcdserverpb::AuthenticateRequest;
use etcd_proto::etcdserverpb::auth_client::AuthClient;
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::codegen::http::uri::Uri;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::{Code, Status};
use tower_service::Service;

use crate::etcd::{
    CallError, ConnectError, Credentials, Endpoint, Line, Protocol, REQUEST_DEADLINE, Reached, Showing,
    TlsFiles, Verdict, reach,
};
use crate::{RegistryError, dial};

/// Pings while a stream is open and nothing was read for so long. etcd refuses them more often than every 5 s, and
/// without an open stream altogether.
const PING_AFTER: Duration = Duration::from_secs(10);
/// A member that does not answer a ping for so long is gone, or hangs.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest reply. Pages are small; a watch sends fragments of little more than the 1.5 MiB a request may have.
pub(crate) const LARGEST_REPLY: usize = 16 << 20;

/// A connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    sender: http2::SendRequest<Body>,
    token: Option<HeaderValue>,
    sent: Arc<AtomicU64>,
    number: u64,
    endpoint: Arc<Endpoint>,
    pub(crate) origin: Uri,
    /// With TLS: what the member wanted to see of us.
    shown: Option<Arc<Showing>>,
    /// Something came back over it.
    answered: Arc<AtomicBool>,
}

/// Clients of one member for keys and etcd leases of any kind, as tools need: no failover, no login.
pub async fn clients(
    endpoint: Endpoint,
    files: &TlsFiles,
) -> Result<(KvClient<Connection>, LeaseClient<Connection>), ConnectError> {
    let connection = Connection::open(&Arc::new(endpoint), files, None, &Arc::default(), 0).await?;
    let origin = connection.origin.clone();
    Ok((
        KvClient::with_origin(connection.clone(), origin.clone()),
        LeaseClient::with_origin(connection, origin),
    ))
}

impl Line for Connection {
    type Refusal = Status;

    async fn open(
        endpoint: &Arc<Endpoint>,
        files: &TlsFiles,
        credentials: Option<&Credentials>,
        sent: &Arc<AtomicU64>,
        number: u64,
    ) -> Result<Connection, ConnectError> {
        let Reached { stream, shown } = reach(endpoint, files, Protocol::Http2).await?;
        let sender = handshake(stream).await?;
        let mut connection = Connection {
            sender,
            token: None,
            sent: Arc::clone(sent),
            number,
            endpoint: Arc::clone(endpoint),
            origin: endpoint.origin().parse()?,
            shown,
            answered: Arc::default(),
        };
        if let Some(credentials) = credentials {
            connection.token = connection.login(credentials).await?;
        }
        Ok(connection)
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    fn doubt(&self) -> Option<String> {
        let shown = self.shown.as_ref()?;
        let is_unanswered = !self.answered.load(Ordering::Relaxed);
        is_unanswered.then(|| shown.doubt()).flatten()
    }

    fn judge(status: &Status) -> Verdict {
        if is_stale_token(status) {
            Verdict::Login
        } else if is_worth_another_member(status) {
            Verdict::Elsewhere
        } else {
            Verdict::Final
        }
    }

    fn is_denial(status: &Status) -> bool {
        !matches!(
            status.code(),
            Code::NotFound | Code::OutOfRange | Code::FailedPrecondition
        )
    }

    fn describe(status: &Status) -> String {
        describe(status)
    }
}

impl CallError<Status> {
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

impl From<CallError<Status>> for RegistryError {
    fn from(error: CallError<Status>) -> RegistryError {
        error.into_registry_error::<Connection>()
    }
}

impl Connection {
    /// A token for the credentials; none where the server does without authentication.
    async fn login(&self, credentials: &Credentials) -> Result<Option<HeaderValue>, ConnectError> {
        let mut client = AuthClient::with_origin(self.clone(), self.origin.clone());
        let request = AuthenticateRequest {
            name: credentials.username.clone(),
            password: credentials.password.clone(),
        };
        match tokio::time::timeout(REQUEST_DEADLINE, client.authenticate(request)).await {
            Err(_) => Err("no answer to the login".into()),
            Ok(Ok(reply)) => {
                let mut token = HeaderValue::from_str(&reply.into_inner().token)
                    .map_err(|_| "token is no header value")?;
                token.set_sensitive(true);
                Ok(Some(token))
            }
            Ok(Err(status)) if is_auth_off(&status) => Ok(None),
            Ok(Err(status)) => {
                let doubt = self.doubt().map(|doubt| format!(" ({doubt})"));
                let (words, doubt) = (describe(&status), doubt.unwrap_or_default());
                Err(format!("login of {:?}: {words}{doubt}", credentials.username).into())
            }
        }
    }
}

async fn handshake<S>(stream: S) -> Result<http2::SendRequest<Body>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false)
        .handshake(TokioIo::new(stream))
        .await?;
    // Ends by itself when the last handle and stream are gone; what ends it early reaches every stream as an error.
    tokio::spawn(connection);
    Ok(sender)
}

/// A token that expired or is older than a change of users and roles.
fn is_stale_token(status: &Status) -> bool {
    match status.code() {
        Code::Unauthenticated => true,
        Code::InvalidArgument => status.message().contains("revision of auth store is old"),
        _ => false,
    }
}

/// Whether another member may do better. A status with a source was made on our side, from a broken connection.
fn is_worth_another_member(status: &Status) -> bool {
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

fn is_auth_off(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("authentication is not enabled")
}

/// A status in words, with the causes below it.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = Error::source(status);
    while let Some(error) = cause {
        if dial::is_end(error) {
            return dial::GONE.to_owned();
        }
        let words = error.to_string();
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        cause = error.source();
    }
    if text.is_empty() {
        text = status.code().description().to_owned();
    }
    text
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        self.sent.fetch_add(1, Ordering::Relaxed);
        if let Some(token) = &self.token {
            request.headers_mut().insert("token", token.clone());
        }
        let (answer, answered) = (self.sender.send_request(request), Arc::clone(&self.answered));
        Box::pin(async move {
            let answer = answer.await;
            answered.fetch_or(answer.is_ok(), Ordering::Relaxed);
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_described_with_its_causes_each_said_once() {
        assert_eq!(
            describe(&Status::unavailable("")),
            Code::Unavailable.description()
        );
        assert_eq!(describe(&Status::unavailable("why")), "why");
        let caused = |message: &str| {
            let mut status = Status::unavailable(message);
            status.set_source(Arc::new(std::io::Error::other("broken pipe")));
            describe(&status)
        };
        assert_eq!(caused("transport"), "transport: broken pipe");
        assert_eq!(caused("a broken pipe it is"), "a broken pipe it is");
        assert_eq!(caused(""), "broken pipe");
        let mut ended = Status::unavailable("an essay");
        ended.set_source(Arc::new(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "with an address",
        )));
        assert_eq!(describe(&ended), "the server is gone");
    }

    #[test]
    fn a_server_without_authentication_is_told_from_one_that_refuses() {
        let off = "etcdserver: authentication is not enabled";
        assert!(is_auth_off(&Status::failed_precondition(off)));
        assert!(!is_auth_off(&Status::failed_precondition(
            "etcdserver: user name not found"
        )));
        assert!(!is_auth_off(&Status::invalid_argument(off)));
    }

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
        let silent: CallError<Status> = CallError::Unreachable("x".to_owned());
        assert!(silent.status().is_none());
        assert_eq!(
            RegistryError::from(silent),
            RegistryError::Unreachable("x".to_owned())
        );
    }
}
