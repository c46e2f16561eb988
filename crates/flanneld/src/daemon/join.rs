//! From nothing to a lease: waiting for the config, for an underlay that can carry the network, and for a subnet.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use fabric::config::{self, NetworkConfig};
use fabric::lease::{Attributes, Subnet};
use fabric::plan;
use fabric::subnet_env::Previous;
use registry::{AcquireError, Backoff, Held, Registry, RegistryError, Wanted};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::Daemon;
use super::ground::{Config, Ground, previous_subnet};
use super::machine::Unfit;
use crate::state_dir::State;

/// A family that cannot be served by then does not hold up the other any longer: addresses come late after a boot.
const WHOLE: Duration = Duration::from_secs(5);
/// How long a config that this node stood on is tried, while there is another by now.
const STANDING: Duration = Duration::from_secs(30);
/// Between two attempts to get what the registry hands out itself.
const GIVEN_LOOK: Duration = Duration::from_millis(200);
/// How often it is looked whether a subnet has become free, and half as long at random.
const ALLOC_LOOK: Duration = Duration::from_secs(3);
/// How often it is looked whether another daemon still keeps our device.
const DEVICE_LOOK: Duration = Duration::from_millis(500);

/// Reads a network config as far as that can be done without knowing the host.
pub(super) fn understand(registry: &dyn Registry, json: &[u8]) -> Result<NetworkConfig, String> {
    let network = registry.understand(json).map_err(|refused| refused.to_string())?;
    plan::check(&network).map_err(|refused| refused.to_string())?;
    Ok(network)
}

impl Daemon {
    /// Waits for what only the registry can give: the config, and, on the ground that it makes, a lease.
    pub(super) async fn join(&self, previous: &Previous, state: &State) -> anyhow::Result<(Ground, Held)> {
        loop {
            // A node that has to find its lease anew goes on with the config it stands on, as long as that leads anywhere.
            let standing = self.standing().take();
            let patience = standing.as_ref().map_or(Duration::ZERO, |_| STANDING);
            let config = match standing {
                Some(config) => config,
                None => self.network_config().await,
            };
            let network = config.network.clone();
            let another = async {
                sleep(patience).await;
                self.config_is_another(&network).await;
            };
            tokio::select! {
                biased;
                joined = self.join_by(config.clone(), previous, state) => {
                    *self.standing() = Some(config);
                    return joined;
                }
                () = another => {
                    info!("the network config is another by now: starting anew with it");
                    self.truth.update(|situation| situation.config_news = None);
                }
            }
        }
    }

    fn standing(&self) -> MutexGuard<'_, Option<Config>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn join_by(
        &self,
        config: Config,
        previous: &Previous,
        state: &State,
    ) -> anyhow::Result<(Ground, Held)> {
        self.learn_addresses().await;
        let ground = self.ground(config).await?;
        let attributes = |subnet: &Subnet, own: Option<&Attributes>| ground.attributes(subnet, own);
        let wanted = Wanted {
            config: ground.network(),
            me: ground.me(),
            previous: previous_subnet(ground.network(), previous, state),
            attributes: &attributes,
        };
        let held = self.acquire(&wanted).await;
        Ok((ground, held))
    }

    /// How long to wait between two attempts to get what is missing.
    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(Duration::from_millis(200), Duration::from_secs(2), &self.chance)
    }

    /// Waits for a network config that holds together.
    pub(super) async fn network_config(&self) -> Config {
        let mut backoff = self.backoff();
        loop {
            let (waiting, missing) = match self.registry.network_config().await {
                // What its backend makes of it belongs to it: no part of a config ends a daemon, since another one cures it.
                Ok(json) => match understand(&*self.registry, &json) {
                    Ok(network) => {
                        self.truth.update(|situation| situation.config_missing = false);
                        for said in config::without_effect(&json, &network) {
                            warn!("network config ({}): {said}", self.config_place());
                        }
                        let text = String::from_utf8_lossy(&json).into_owned();
                        return Config { text, network };
                    }
                    Err(refused) => (format!("{refused} ({})", self.config_place()), true),
                },
                Err(missing @ RegistryError::NotFound { .. }) => (missing.to_string(), true),
                Err(failure) => (failure.to_string(), false),
            };
            self.truth.update(|situation| situation.config_missing = missing);
            self.truth.wait_for(waiting);
            self.doubt.notify_one();
            tokio::time::sleep(backoff.step()).await;
        }
    }

    /// Waits for what the registry says of this node's addresses.
    async fn learn_addresses(&self) {
        let mut backoff = self.backoff();
        loop {
            match self.registry.ordered().await {
                Ok(ordered) => {
                    *self.ordered.lock().unwrap_or_else(PoisonError::into_inner) = ordered;
                    return;
                }
                Err(failure) => self.truth.wait_for(failure.to_string()),
            }
            self.doubt.notify_one();
            tokio::time::sleep(backoff.step()).await;
        }
    }

    /// Where the network config lies.
    pub(super) fn config_place(&self) -> String {
        self.options.registry.config_place()
    }

    /// Waits for an underlay that can carry the network.
    pub(super) async fn ground(&self, config: Config) -> anyhow::Result<Ground> {
        let began = Instant::now();
        let mut backoff = self.backoff();
        loop {
            let pause = match self.find("ground", config.clone()).await {
                Ok(Ground {
                    unserved: Some(unserved),
                    ..
                }) if began.elapsed() < WHOLE => {
                    self.truth.wait_for(unserved.to_string());
                    DEVICE_LOOK
                }
                Ok(ground) => {
                    if !self.truth.situation().serves() {
                        self.show(&ground);
                    }
                    return Ok(ground);
                }
                Err(Unfit::Broken(failure)) => return Err(failure),
                Err(failure) => {
                    self.truth.wait_for(failure.to_string());
                    match failure {
                        // The holder's end is told by nobody.
                        Unfit::Kept(_) => DEVICE_LOOK,
                        _ => backoff.step(),
                    }
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    pub(super) async fn acquire(&self, wanted: &Wanted<'_>) -> Held {
        let mut backoff = self.backoff();
        loop {
            let pause = match self.registry.acquire(wanted).await {
                Ok(held) => return held,
                Err(failure) => {
                    let no_subnet = matches!(failure, AcquireError::Alloc(_));
                    self.truth.update(|situation| situation.no_subnet = no_subnet);
                    self.truth.wait_for(format!("no lease yet: {failure}"));
                    match failure {
                        // The next attempt waits for it to be given, itself.
                        AcquireError::Registry(RegistryError::NotFound { .. }) => GIVEN_LOOK,
                        // A look at all leases. A range that is widened is told of.
                        AcquireError::Alloc(_) => self.chance.jitter(ALLOC_LOOK),
                        AcquireError::Registry(_) | AcquireError::Contended(_) => backoff.step(),
                    }
                }
            };
            self.doubt.notify_one();
            tokio::time::sleep(pause).await;
        }
    }
}
