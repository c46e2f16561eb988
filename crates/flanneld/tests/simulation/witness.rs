//! A registry as its node sees it, with a witness beside it who hears what the node is told of its own lease.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fabric::lease::Update;
use registry::{AcquireError, Held, Holding, Over, Pending, Registry, RegistryError, States, Wanted};
use tokio::time::Instant;

/// What a process was told of its own lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Belief {
    pub subnet: Option<String>,
    /// `None`: for ever.
    pub expires: Option<Instant>,
    /// The registry does not have it at the moment.
    pub lost: bool,
}

impl Belief {
    /// The subnet that the process may use, as far as it was told.
    pub fn holds(&self) -> Option<&str> {
        let alive = !self.lost && self.expires.is_none_or(|at| at > Instant::now());
        self.subnet.as_deref().filter(|_| alive)
    }
}

pub struct Witnessed {
    pub inner: Arc<dyn Registry>,
    pub belief: Arc<Mutex<Belief>>,
}

impl Registry for Witnessed {
    fn network_config(&self) -> Pending<'_, Result<Vec<u8>, RegistryError>> {
        self.inner.network_config()
    }

    fn acquire<'a>(&'a self, wanted: &'a Wanted<'a>) -> Pending<'a, Result<Held, AcquireError>> {
        Box::pin(async move {
            let held = self.inner.acquire(wanted).await?;
            *self.belief.lock().unwrap() = Belief {
                subnet: Some(held.lease.subnet.to_string()),
                expires: held.expires,
                lost: false,
            };
            Ok(held)
        })
    }

    fn keep<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        held: Held,
        margin: Duration,
        report: &'a (dyn Fn(Holding) + Send + Sync),
    ) -> Pending<'a, Over> {
        Box::pin(async move {
            let told = |holding: Holding| {
                let mut belief = self.belief.lock().unwrap();
                match &holding {
                    Holding::Renewed { expires } => belief.expires = *expires,
                    Holding::Lost | Holding::Occupied => belief.lost = true,
                    Holding::Regained { expires, .. } => {
                        belief.expires = *expires;
                        belief.lost = false;
                    }
                    Holding::Failing { .. } | Holding::Unwritten { .. } | Holding::Repaired => {}
                }
                drop(belief);
                report(holding);
            };
            let over = self.inner.keep(wanted, held, margin, &told).await;
            *self.belief.lock().unwrap() = Belief::default();
            over
        })
    }

    fn watch<'a>(&'a self, sink: &'a (dyn Fn(Update) + Send + Sync)) -> Pending<'a, Infallible> {
        self.inner.watch(sink)
    }

    fn watch_config<'a>(
        &'a self,
        sink: &'a (dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
    ) -> Pending<'a, Infallible> {
        self.inner.watch_config(sink)
    }

    fn resume(&self, revision: i64, spoken: Option<&str>) {
        self.inner.resume(revision, spoken);
    }

    fn reconnect(&self) -> Pending<'_, ()> {
        self.inner.reconnect()
    }

    fn hurry(&self) {
        self.inner.hurry();
    }

    fn states(&self) -> States {
        self.inner.states()
    }

    fn requests(&self) -> u64 {
        self.inner.requests()
    }
}
