//! The network config while the fabric stands: what it is by now is said, and not done. A typo in one key takes no cluster down.

use std::convert::Infallible;
use std::time::Duration;

use fabric::config::{NetworkConfig, differences};
use fabric::lease::Subnet;
use registry::RegistryError;
use tokio::time::sleep;
use tracing::warn;

use super::Daemon;
use super::ground::Ground;
use super::join::understand;
use crate::truth::ConfigNews;

/// What a start waits for comes first: the config was read just now.
const BEFORE: Duration = Duration::from_secs(1);
const GOES_ON: &str = "this node goes on with the one it has";

impl Daemon {
    /// Follows the network config, and says when it is another than the one this node works by.
    pub(super) async fn follow_config(&self, ground: &Ground, subnet: Subnet) -> Infallible {
        let tell = |read: Result<Vec<u8>, RegistryError>| {
            let news = self.outlook(ground, subnet, read);
            self.truth.update(|situation| situation.config_news = news);
        };
        sleep(BEFORE).await;
        self.registry.watch_config(&tell).await
    }

    /// Comes back when the network config is another than this, not only in writing.
    pub(super) async fn config_is_another(&self, network: &NetworkConfig) {
        let (told, mut heard) = tokio::sync::watch::channel(false);
        let tell = |read: Result<Vec<u8>, RegistryError>| {
            // One that is gone or cannot be used is no reason to give up what there is.
            let now = read.ok().and_then(|json| understand(&*self.registry, &json).ok());
            let is_another = now.is_some_and(|now| !differences(network, &now).is_empty());
            told.send_replace(is_another);
        };
        sleep(BEFORE).await;
        tokio::select! {
            biased;
            never = self.registry.watch_config(&tell) => match never {},
            _ = heard.wait_for(|is_another| *is_another) => {}
        }
    }

    fn outlook(
        &self,
        ground: &Ground,
        subnet: Subnet,
        read: Result<Vec<u8>, RegistryError>,
    ) -> Option<ConfigNews> {
        let place = self.config_place();
        let unusable = |what: String| ConfigNews {
            text: format!("the network config {what}; {GOES_ON}"),
            hint: format!("a node that starts now waits: put a valid one at {place}"),
        };
        let json = match read {
            Ok(json) => json,
            Err(missing @ RegistryError::NotFound { .. }) => {
                return Some(unusable(format!("is not there any more ({missing})")));
            }
            Err(failure) => {
                warn!("network config: {failure}");
                return None;
            }
        };
        let network = match understand(&*self.registry, &json) {
            Ok(network) => network,
            Err(refused) => return Some(unusable(format!("({place}) cannot be used: {refused}"))),
        };
        let differences = differences(ground.asked(), &network);
        if differences.is_empty() {
            return None;
        }
        let differences = differences.join("; ");
        let reload = self.options.registry.how_to_reload();
        let hint = match keeps(&network, &subnet) {
            true => format!("{reload} takes it up"),
            false => format!(
                "{reload} takes it up, and with it another subnet than {subnet}: pods here have to be started anew then"
            ),
        };
        Some(ConfigNews {
            text: format!("the network config ({place}) is another by now: {differences}; {GOES_ON}"),
            hint,
        })
    }
}

/// Whether a subnet lies inside a network, in every family that both have, and is one of each it has.
fn keeps(network: &NetworkConfig, subnet: &Subnet) -> bool {
    network.families().all(|family| {
        let space = network.space(family).map(|space| space.network);
        match (space, subnet.of(family)) {
            (Some(space), Some(half)) => space.contains(&half),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_when_the_subnet_lies_inside_of_every_family_then_it_does() {
        let network = |text: &str| NetworkConfig::parse(text.as_bytes()).unwrap();
        let subnet = Subnet::parse_key("10.1.5.0-24").unwrap();
        assert!(keeps(&network(r#"{"Network":"10.0.0.0/8"}"#), &subnet));
        assert!(!keeps(&network(r#"{"Network":"10.2.0.0/16"}"#), &subnet));
        let dual = r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;
        assert!(!keeps(&network(dual), &subnet));
    }
}
