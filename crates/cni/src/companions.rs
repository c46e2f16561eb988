//! The plugins of ours that are chained after the one with the addresses.
//!
//! What others need of them stands in a table: `flannel` runs them in its own process, and a GC of the plugin with the addresses
//! removes what they have made. They know neither.

use crate::failure::Failure;
use crate::gc::all_of;
use crate::offer::Offer;
use crate::owner::{Holding, Owner};
use crate::{bandwidth, portmap};

/// Removes what was made in a network (the first argument) for attachments that are gone (the second); the third stay.
pub type RemoveOf = fn(&str, &[Holding], &[Owner]) -> Result<(), Failure>;

/// What such a plugin offers.
#[derive(Debug)]
pub struct Companion {
    /// Its verbs.
    pub offer: Offer,
    /// Keys of a configuration that it knows.
    pub keys: &'static [&'static str],
    /// Removes what it has made for attachments that are gone.
    pub remove_of: RemoveOf,
}

/// All of them.
static ALL: [Companion; 2] = [
    Companion {
        offer: portmap::OFFER,
        keys: portmap::config::KEYS,
        remove_of: portmap::remove_of,
    },
    Companion {
        offer: bandwidth::OFFER,
        keys: bandwidth::KEYS,
        remove_of: bandwidth::remove_of,
    },
];

/// The one of a name.
pub fn named(name: &str) -> Option<&'static Companion> {
    ALL.iter().find(|companion| companion.offer.name == name)
}

/// DEL of each, for an attachment without its configuration; each failure.
pub fn del(call: &crate::call::Call) -> Vec<Failure> {
    let failed = |companion: &Companion| (companion.offer.del)(call).err();
    ALL.iter().filter_map(failed).collect()
}

/// Removes what all of them have made in a network for attachments that are gone: published ports and limits.
///
/// # Errors
///
/// Those of each, in one.
pub fn remove_of(network: &str, gone: &[Holding], valid: &[Owner]) -> Result<(), Failure> {
    let failed = |companion: &Companion| (companion.remove_of)(network, gone, valid).err();
    all_of(ALL.iter().filter_map(failed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companion_when_named_is_the_one_of_that_name() {
        for (name, key) in [("portmap", "conditionsV4"), ("bandwidth", "egressRate")] {
            let companion = named(name).unwrap();
            assert_eq!(companion.offer.name, name);
            assert!(companion.keys.contains(&key), "{name}");
        }
        assert!(named("tuning").is_none() && named("").is_none());
    }
}
