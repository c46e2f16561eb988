//! What an operator wants to know of the connection to a registry.

use std::time::SystemTime;

use tokio::sync::watch;

/// The connection now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// What is spoken, such as `etcd v2`; `None` until that is found out, and where there is nothing to find out.
    pub spoken: Option<&'static str>,
    /// The endpoint that answers, without credentials; `None` while none does.
    pub endpoint: Option<String>,
    /// Since when `endpoint` is what it is.
    pub since: Option<SystemTime>,
    /// The watch is established and has delivered a snapshot: what the consumer knows is current.
    pub watching: bool,
    /// The newest revision seen.
    pub revision: i64,
    /// The last thing that went wrong, also when all is well again.
    pub last_failure: Option<Failure>,
    /// What is wrong with the registry though it answers, by its own word.
    pub trouble: Option<Trouble>,
}

/// Something that is wrong with a registry that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What, and what it means for this node and others.
    pub text: String,
    /// What cures it.
    pub hint: String,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: SystemTime,
    /// What, naming the endpoint; never a secret.
    pub error: String,
}

/// The state and its changes: `borrow()` for now, `changed()` to wait.
pub type States = watch::Receiver<State>;
