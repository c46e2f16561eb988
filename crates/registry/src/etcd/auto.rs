//! `--etcd-api=auto`: the API under which the network config is, found out by asking both.
//!
//! INVARIANT: two nodes of one cluster never come to different answers for long. So an API that does not answer now is waited for;
//! only one that is not spoken there at all counts as one without a config. What lets v3 through and swallows v2 (a proxy for HTTP/2
//! alone) never says so: there v3 is taken when it has answered for [`V2_PATIENCE`] and v2 has not once, but by no node that knows the
//! cluster as one of v2.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fabric::lease::Update;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::members::{note_connected, note_failure};
use super::reach::{Protocol, reach};
use super::tls::TlsFiles;
use super::{ConnectError, Endpoint, Look, Options, OptionsError};
use crate::entries::{Entries, Scope, Wish};
use crate::state::{State, States, Trouble};
use crate::{
    AcquireError, Chance, Etcd2, Etcd3, Held, Holding, Leases, Over, Pending, Registry, RegistryError,
    Wanted, etcd2, etcd3,
};

/// Who speaks HTTP/2 begins to do so within this time.
const PREFACE_DEADLINE: Duration = Duration::from_secs(3);
/// A member that answers by v3 and has v2 answers by it within seconds, a lost leader included. So long without an answer is none.
const V2_PATIENCE: Duration = Duration::from_secs(60);
/// How a client begins (RFC 9113, section 3.4), with settings that are all as they are anyway.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Bytes of a frame's header.
const FRAME: usize = 9;
/// The type of the frame a server begins with.
const SETTINGS: u8 = 4;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    V2,
    V3,
}

/// The leases in etcd, by the API under which the network config is.
pub struct EtcdAuto {
    v2: Etcd2,
    v3: Etcd3,
    files: TlsFiles,
    state: watch::Sender<State>,
    chosen: watch::Sender<Option<Api>>,
    silence: Mutex<Silence>,
}

/// What is known of a v2 API that does not answer where v3 has the config.
#[derive(Debug, Default)]
struct Silence {
    /// Since when that is so, without a break.
    since: Option<Instant>,
    /// This node has spoken v2 before.
    is_of_v2: bool,
}

impl EtcdAuto {
    /// A client that is not connected yet, and has not made up its mind.
    pub fn new(options: &Options) -> Result<EtcdAuto, OptionsError> {
        options.warn();
        let state = watch::Sender::new(State::default());
        let v2 = etcd2::Store::reporting(options, state.clone(), true)?;
        let v3 = etcd3::Store::reporting(options, state.clone(), true)?;
        Ok(EtcdAuto {
            v2: Leases::over(v2, Chance::system()),
            v3: Leases::over(v3, Chance::system()),
            files: options.tls.clone(),
            state,
            chosen: watch::Sender::new(None),
            silence: Mutex::default(),
        })
    }

    fn by(&self, api: Api) -> &dyn Registry {
        match api {
            Api::V2 => &self.v2,
            Api::V3 => &self.v3,
        }
    }

    /// The registry by the API that is in use, once that is known.
    async fn found(&self) -> &dyn Registry {
        let mut chosen = self.chosen.subscribe();
        let known = chosen.wait_for(Option::is_some).await.map(|api| *api);
        match known {
            Ok(Some(api)) => self.by(api),
            // Cannot be, as the sender is ours.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Asks both, and makes up its mind where that can be done.
    async fn choose(&self) -> Result<Vec<u8>, RegistryError> {
        let (v3, v2) = tokio::join!(self.v3.entries().look(), self.v2.entries().look());
        let v3 = match v3 {
            Look::Failed(error) if matches!(v2, Look::Found(_) | Look::Missing(_)) => {
                self.second_look(error).await
            }
            v3 => v3,
        };
        self.note(&v3, &v2).await;
        let is_lasting = self.is_lasting_silence(&v3, &v2);
        match (v3, v2) {
            (Look::Found(config), Look::Missing(_) | Look::Foreign) => {
                self.settle(Api::V3, None).await;
                Ok(config)
            }
            (Look::Missing(_) | Look::Foreign, Look::Found(config)) => {
                self.settle(Api::V2, None).await;
                Ok(config)
            }
            (Look::Found(newer), Look::Found(older)) => self.settle_both(newer, older).await,
            (Look::Missing(missing), Look::Foreign) | (Look::Foreign, Look::Missing(missing)) => Err(missing),
            (Look::Missing(RegistryError::NotFound { what, place }), Look::Missing(_)) => {
                let place = place.replace("(etcd v3)", "(etcd v3 and v2)");
                Err(RegistryError::NotFound { what, place })
            }
            (Look::Missing(missing), Look::Missing(_)) => Err(missing),
            (Look::Found(config), Look::Failed(error)) if is_lasting => {
                self.settle(Api::V3, Some(unheard(&error))).await;
                Ok(config)
            }
            (Look::Found(_), Look::Failed(error)) => Err(one_sided("v3", "v2", &error)),
            (Look::Failed(error), Look::Found(_)) => Err(one_sided("v2", "v3", &error)),
            (Look::Failed(error), _) | (_, Look::Failed(error)) => Err(error),
            (Look::Foreign, Look::Foreign) => Err(RegistryError::Unreachable(
                "who answers speaks neither of etcd's APIs".to_owned(),
            )),
        }
    }

    /// Whether v3 has had a config, and v2 no answer at all, for as long as that is waited for.
    fn is_lasting_silence(&self, v3: &Look, v2: &Look) -> bool {
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        // Who refuses has heard.
        let is_silent = matches!(
            (v3, v2),
            (Look::Found(_), Look::Failed(RegistryError::Unreachable(_)))
        );
        if !is_silent {
            silence.since = None;
            return false;
        }
        let since = *silence.since.get_or_insert_with(Instant::now);
        since.elapsed() >= V2_PATIENCE && !silence.is_of_v2
    }

    /// Whether who answers by v2 fails to answer by v3 because it speaks nothing of the kind.
    async fn second_look(&self, failed: RegistryError) -> Look {
        let Some(endpoint) = self.v2.entries().members.endpoint().await else {
            return Look::Failed(failed);
        };
        match speaks_http2(&endpoint, &self.files).await {
            // One that was just ending would not answer by v2 either any more.
            Ok(false) if !matches!(self.v2.entries().look().await, Look::Failed(_)) => Look::Foreign,
            Ok(_) | Err(_) => Look::Failed(failed),
        }
    }

    /// Notes who answers, if anybody does.
    async fn note(&self, v3: &Look, v2: &Look) {
        let endpoint = match (v3, v2) {
            (Look::Failed(error), Look::Failed(_)) => {
                return note_failure(&self.state, &error.to_string(), true);
            }
            (Look::Failed(_) | Look::Foreign, _) => self.v2.entries().members.endpoint().await,
            _ => self.v3.entries().members.endpoint().await,
        };
        if let Some(endpoint) = endpoint {
            note_connected(&self.state, &endpoint);
        }
        if let (Look::Failed(error), _) | (_, Look::Failed(error)) = (v3, v2) {
            note_failure(&self.state, &error.to_string(), false);
        }
    }

    /// Both hold a config: somebody is moving from v2 to v3, and nobody may be left behind.
    async fn settle_both(&self, newer: Vec<u8>, older: Vec<u8>) -> Result<Vec<u8>, RegistryError> {
        let listing = self.v2.entries().list(&Wish::leases(Scope::All)).await?;
        let live = listing.snapshot.leases.len();
        if live == 0 {
            warn!(
                "both of etcd's APIs hold a network config: v3 is spoken, since v2 holds no lease; what is left under v2 has no effect"
            );
            self.settle(Api::V3, None).await;
            return Ok(newer);
        }
        let trouble = Trouble {
            text: format!("both of etcd's APIs hold a network config: v2 is spoken, since it holds live leases ({live})"),
            hint: "once all leases are under v3, remove the config under v2 and reload flanneld on every node; --etcd-api=v3 or v2 \
                   goes by one of them"
                .to_owned(),
        };
        self.settle(Api::V2, Some(trouble)).await;
        Ok(older)
    }

    async fn settle(&self, api: Api, trouble: Option<Trouble>) {
        let spoken = match api {
            Api::V2 => etcd2::SPOKEN,
            Api::V3 => etcd3::SPOKEN,
        };
        self.v2.entries().members.speak(api == Api::V2).await;
        self.v3.entries().members.speak(api == Api::V3).await;
        self.state.send_if_modified(|state| {
            let news = state.spoken != Some(spoken) || state.trouble != trouble;
            state.spoken = Some(spoken);
            state.trouble = trouble;
            news
        });
        let news = self
            .chosen
            .send_if_modified(|chosen| chosen.replace(api) != Some(api));
        if let Some(trouble) = &self.state.borrow().trouble
            && news
        {
            warn!("{}", trouble.text);
        }
        if news {
            info!("{spoken} is spoken: the network config is there");
        }
    }
}

fn one_sided(has: &str, lacks: &str, error: &RegistryError) -> RegistryError {
    RegistryError::Unreachable(format!(
        "the network config is there by etcd's {has} API, and whether {lacks} has one cannot be asked ({error}); \
         --etcd-api={has} goes by {has} alone"
    ))
}

fn unheard(error: &RegistryError) -> Trouble {
    Trouble {
        text: format!(
            "etcd v3 is spoken, since it holds the network config and nothing answered by v2 for {} s ({error}): a config and \
             leases under v2 would not be seen",
            V2_PATIENCE.as_secs()
        ),
        hint: "where etcd has no v2 API, --etcd-api=v3 says so and waits for nothing".to_owned(),
    }
}

/// Whether anybody there speaks HTTP/2, without which there is no v3 API.
async fn speaks_http2(endpoint: &Endpoint, files: &TlsFiles) -> Result<bool, ConnectError> {
    let asking = async {
        let reached = reach(endpoint, files, Protocol::Http2).await?;
        answers_preface(reached.stream).await
    };
    timeout(PREFACE_DEADLINE, asking).await?
}

async fn answers_preface(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<bool, ConnectError> {
    stream.write_all(PREFACE).await?;
    let mut header = [0; FRAME];
    let mut length = 0;
    while let Some(rest) = header.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest).await {
            Ok(0) => break,
            Ok(read) => length += read,
            // It hung up on what it took for nonsense.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(length == FRAME && matches!(header, [_, _, _, SETTINGS, ..]))
}

impl Registry for EtcdAuto {
    fn network_config(&self) -> Pending<'_, Result<Vec<u8>, RegistryError>> {
        Box::pin(async move {
            let chosen = *self.chosen.borrow();
            if let Some(api) = chosen {
                match self.by(api).network_config().await {
                    // It may be under the other by now.
                    Err(RegistryError::NotFound { .. }) => {}
                    answer => return answer,
                }
            }
            self.choose().await
        })
    }

    fn acquire<'a>(&'a self, wanted: &'a Wanted<'a>) -> Pending<'a, Result<Held, AcquireError>> {
        Box::pin(async move { self.found().await.acquire(wanted).await })
    }

    fn keep<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        held: Held,
        margin: Duration,
        report: &'a (dyn Fn(Holding) + Send + Sync),
    ) -> Pending<'a, Over> {
        Box::pin(async move { self.found().await.keep(wanted, held, margin, report).await })
    }

    fn watch<'a>(&'a self, sink: &'a (dyn Fn(Update) + Send + Sync)) -> Pending<'a, Infallible> {
        Box::pin(async move { self.found().await.watch(sink).await })
    }

    fn watch_config<'a>(
        &'a self,
        sink: &'a (dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
    ) -> Pending<'a, Infallible> {
        Box::pin(async move { self.found().await.watch_config(sink).await })
    }

    fn resume(&self, revision: i64, spoken: Option<&str>) {
        let api = match spoken {
            Some(etcd2::SPOKEN) => Api::V2,
            _ => Api::V3,
        };
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        silence.is_of_v2 = api == Api::V2;
        drop(silence);
        self.by(api).resume(revision, spoken);
    }

    fn reconnect(&self) -> Pending<'_, ()> {
        Box::pin(async move {
            self.v2.reconnect().await;
            self.v3.reconnect().await;
        })
    }

    fn hurry(&self) {
        self.v2.hurry();
        self.v3.hurry();
    }

    fn states(&self) -> States {
        self.state.subscribe()
    }

    fn requests(&self) -> u64 {
        self.v2.requests() + self.v3.requests()
    }
}
