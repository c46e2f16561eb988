//! The underlay as it changes under a running fabric.

use std::time::Duration;

use fabric::causes::in_full;
use fabric::lease::Subnet;
use fabric::node::Identity;
use fabric::object::Family;
use tracing::{info, warn};

use super::Daemon;
use super::ground::{Former, Ground, addresses};

/// After an underlay change its echoes are waited for before the choice is made anew.
const UNDERLAY_SETTLES: Duration = Duration::from_millis(200);
/// A choice that could not be made is tried again after this, though nothing seems to have changed.
const UNDERLAY_RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether a family that could not be served can be.
const UNSERVED_LOOK: Duration = Duration::from_secs(30);
/// How often it is looked whether devices of former times are gone.
const FORMER_LOOK: Duration = Duration::from_secs(2);

impl Daemon {
    /// Makes the choice of interface anew when the underlay changes, and sets everything up for what comes of it.
    pub(super) async fn follow_underlay(
        &self,
        ground: &Ground,
        subnet: Subnet,
        identity: Identity,
        mut former: Former,
    ) -> anyhow::Result<String> {
        let mut current = ground.underlay.clone();
        let mut moved: Option<Ground> = None;
        let mut failed = false;
        loop {
            let ground = moved.as_ref().unwrap_or(ground);
            tokio::select! {
                biased;
                () = self.underlay_changed.notified() => {
                    tokio::time::sleep(UNDERLAY_SETTLES).await;
                    self.registry.hurry();
                }
                () = tokio::time::sleep(UNDERLAY_RETRY), if failed => {}
                () = tokio::time::sleep(UNSERVED_LOOK), if ground.unserved.is_some() => {}
                () = tokio::time::sleep(FORMER_LOOK), if !former.links.is_empty() => {
                    let before = former.links.len();
                    self.claim(&mut former).await;
                    if former.links.len() != before {
                        // Another daemon may have them from now on.
                        self.set_up(ground, subnet, identity.clone(), former.clone(), None)?;
                    }
                    continue;
                }
            }
            self.truth.reporter().dumped("interfaces");
            let chosen = self
                .machine
                .choose(&self.wish(), ground.asked(), ground.held)
                .await;
            failed = chosen.is_err();
            let selected = match chosen {
                Ok(selected) => match (&ground.unserved, &selected.unserved) {
                    (Some(before), None) => return Ok(format!("{} can be served now", before.family)),
                    // It may be back in a moment; what is served goes on.
                    (None, Some(unserved)) => {
                        failed = true;
                        self.truth
                            .update(|situation| situation.underlay_trouble = Some(unserved.why.clone()));
                        continue;
                    }
                    _ => selected,
                },
                // The link may be gone for a moment; the engine keeps trying what can be tried without it.
                Err(failure) => {
                    self.truth
                        .update(|situation| situation.underlay_trouble = Some(failure.to_string()));
                    continue;
                }
            };
            let underlay = selected.underlay();
            if underlay == current {
                self.truth.update(|situation| situation.underlay_trouble = None);
                continue;
            }
            if (underlay.public4, underlay.public6) != (current.public4, current.public6) {
                return Ok(format!(
                    "the address peers know us by changed from {} to {}",
                    addresses(&current),
                    addresses(&underlay)
                ));
            }
            let new = match ground.moved(selected) {
                Ok(new) => new,
                Err(failure) => {
                    self.truth
                        .update(|situation| situation.underlay_trouble = Some(in_full(failure.as_ref())));
                    continue;
                }
            };
            self.truth.update(|situation| situation.underlay_trouble = None);
            let before = std::mem::replace(&mut current, underlay);
            let elsewhere = fabric::node::Underlay {
                segments: before.segments.clone(),
                ..current.clone()
            };
            // Segments of other links come and go with whatever else this host does.
            if elsewhere != before {
                info!(
                    "underlay changed: {} MTU {} ({})",
                    current.link,
                    current.mtu,
                    addresses(&current)
                );
            }
            self.show(&new);
            self.set_up(&new, subnet, identity.clone(), former.clone(), None)?;
            moved = Some(new);
        }
    }

    pub(super) fn show(&self, ground: &Ground) {
        let underlay = &ground.underlay;
        let shown = fabric::status::Underlay {
            link: underlay.link.to_string(),
            mtu: underlay.mtu,
            addresses: Family::BOTH.iter().filter_map(|f| underlay.address(*f)).collect(),
            public: Family::BOTH.iter().filter_map(|f| underlay.public(*f)).collect(),
            warnings: ground.warnings.clone(),
        };
        if self.truth.situation().underlay.as_ref() != Some(&shown) {
            for warning in &ground.warnings {
                warn!("{warning}");
            }
        }
        self.truth.update(|situation| {
            situation.networks = ground.network().networks().collect();
            situation.backend = ground.backend.name().to_owned();
            situation.mtu = ground.mtu;
            situation.underlay = Some(shown);
            situation.unserved = ground.unserved.as_ref().map(ToString::to_string);
        });
    }
}
