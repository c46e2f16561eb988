//! How the rest of the daemon speaks to the engine's thread: a place of depth one in which the latest wins.
//!
//! The registry must never wait for the kernel, and the kernel must never be asked for states that are already history.
//! What is not taken yet is merged: a newer snapshot replaces an older one, deltas add up.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric::lease::{Delta, Lease, Rejected, Snapshot, Subnet, Update};
use fabric::node::Node;
use fabric::ownership::Ownership;
use fabric::plan::Backend;
use fabric::subnet_env::SubnetEnv;
use ipnet::IpNet;
use kernel::poll::Waker;
use tokio::sync::oneshot;

/// The engine answers between two steps, and a step with ten thousand peers takes a second at most.
const LONGEST_ANSWER: Duration = Duration::from_secs(20);

/// What the engine works on: made anew when the lease, the config or the underlay changes.
#[derive(Debug)]
pub struct Setup {
    /// How leases become objects.
    pub backend: Box<dyn Backend>,
    /// This node.
    pub node: Node,
    /// What it may touch.
    pub ownership: Ownership,
    /// The subnet file it keeps.
    pub subnet_file: PathBuf,
    /// What shall stand in it.
    pub env: SubnetEnv,
    /// What the registry said to an earlier process: good to serve from until it says something to this one.
    pub cached: Option<Snapshot>,
    /// The way to this address decides which interface is chosen (`--iface-can-reach`).
    pub reach: Option<IpAddr>,
}

/// A question or an order to the engine.
#[derive(Debug)]
pub enum Command {
    /// Look at the kernel anew and say which ops would be applied now; nothing is applied.
    Plan(oneshot::Sender<Vec<String>>),
    /// Say how every peer stands.
    Peers(oneshot::Sender<Vec<fabric::status::Peer>>),
    /// Say which routes the leases ask for: destination and next hop.
    Routes(oneshot::Sender<Vec<(IpNet, IpAddr)>>),
    /// Say what the leases are, if the registry has said so.
    Leases(oneshot::Sender<Option<Listing>>),
    /// Stop (true) or go on (false) changing the kernel.
    Pause(bool),
}

/// All leases at one revision, in the words of the [cache](crate::cache::lines): a copy of them as they are would be larger.
#[derive(Debug)]
pub struct Listing {
    /// The registry's revision.
    pub revision: i64,
    /// One line per lease.
    pub lines: Vec<u8>,
}

/// What has come in since the last look.
#[derive(Debug, Default)]
pub struct Mail {
    /// A new set-up.
    pub setup: Option<Setup>,
    /// News from the registry.
    pub update: Option<Update>,
    /// Questions and orders, oldest first.
    pub commands: Vec<Command>,
    /// The daemon ends.
    pub stop: bool,
}

/// The engine's letter box.
#[derive(Debug)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    waker: Waker,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> std::io::Result<Arc<Mailbox>> {
        Ok(Arc::new(Mailbox {
            mail: Mutex::new(Mail::default()),
            waker: Waker::new()?,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        // A poisoned letter box holds whole letters all the same: every change to it is one assignment.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.lock());
        self.waker.wake();
    }

    /// Hands over a set-up: the backend, the node, and what is ours.
    pub fn set_up(&self, setup: Setup) {
        self.put(|mail| mail.setup = Some(setup));
    }

    /// Hands over registry news.
    pub fn update(&self, update: Update) {
        self.put(|mail| mail.update = Some(merge(mail.update.take(), update)));
    }

    /// Asks or orders.
    pub fn command(&self, command: Command) {
        self.put(|mail| mail.commands.push(command));
    }

    /// Asks and waits for the answer; `None` when the engine does not give one in time.
    pub async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.command(question(reply));
        tokio::time::timeout(LONGEST_ANSWER, answer).await.ok()?.ok()
    }

    /// Ends the engine's loop after the step it is in.
    pub fn stop(&self) {
        self.put(|mail| mail.stop = true);
    }

    /// Takes everything and makes the waker silent.
    pub fn take(&self) -> Mail {
        self.waker.clear();
        std::mem::take(&mut *self.lock())
    }

    /// What becomes readable when there is mail.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }
}

/// Two pieces of news as one.
fn merge(earlier: Option<Update>, later: Update) -> Update {
    match (earlier, later) {
        (None, later) | (_, later @ Update::Snapshot(_)) => later,
        (Some(Update::Snapshot(mut snapshot)), Update::Delta(delta)) => {
            if delta.revision >= snapshot.revision {
                apply(&mut snapshot, delta);
            }
            Update::Snapshot(snapshot)
        }
        (Some(Update::Delta(earlier)), Update::Delta(later)) => {
            let mut rejected = earlier.rejected;
            set_right(&mut rejected, &later);
            let mut gone: BTreeSet<String> = earlier.gone.into_iter().collect();
            for entry in &later.rejected {
                gone.remove(&entry.key);
            }
            gone.extend(later.gone);
            rejected.extend(later.rejected);
            let mut changes: BTreeMap<Subnet, Option<Lease>> = earlier.changes.into_iter().collect();
            changes.extend(later.changes);
            Update::Delta(Delta {
                revision: later.revision,
                changes: changes.into_iter().collect(),
                rejected,
                gone: gone.into_iter().collect(),
            })
        }
    }
}

fn apply(snapshot: &mut Snapshot, delta: Delta) {
    snapshot.revision = delta.revision;
    set_right(&mut snapshot.rejected, &delta);
    for (subnet, lease) in delta.changes {
        match lease {
            Some(lease) => snapshot.leases.insert(subnet, lease),
            None => snapshot.leases.remove(&subnet),
        };
    }
    snapshot.rejected.extend(delta.rejected);
}

/// An entry that is a lease again, or gone, is none that cannot be read; and of one that cannot, the last word counts.
fn set_right(rejected: &mut Vec<Rejected>, later: &Delta) {
    if rejected.is_empty() {
        return;
    }
    let changed = later
        .changes
        .iter()
        .map(|(subnet, _)| Cow::Owned(subnet.to_string()));
    let gone = later.gone.iter().map(|key| Cow::Borrowed(key.as_str()));
    let again = later
        .rejected
        .iter()
        .map(|entry| Cow::Borrowed(entry.key.as_str()));
    let known: BTreeSet<Cow<'_, str>> = changed.chain(gone).chain(again).collect();
    rejected.retain(|entry| !known.contains(entry.key.as_str()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "10.5.1.0-24";

    fn lease() -> Lease {
        let value = br#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#;
        Lease::read(KEY, value, 1).unwrap()
    }

    fn rejected() -> Vec<Rejected> {
        vec![Rejected {
            key: KEY.to_owned(),
            reason: "junk".to_owned(),
        }]
    }

    fn delta(revision: i64, lease: Option<Option<Lease>>, rejected: Vec<Rejected>) -> Update {
        let changes = lease
            .map(|lease| (Subnet::parse_key(KEY).unwrap(), lease))
            .into_iter()
            .collect();
        Update::Delta(Delta {
            revision,
            changes,
            rejected,
            gone: Vec::new(),
        })
    }

    fn taken(updates: impl IntoIterator<Item = Update>) -> Update {
        let mailbox = Mailbox::new().unwrap();
        for update in updates {
            mailbox.update(update);
        }
        mailbox.take().update.unwrap()
    }

    fn snapshot(rejected: Vec<Rejected>) -> Update {
        Update::Snapshot(Snapshot {
            revision: 5,
            leases: BTreeMap::new(),
            rejected,
        })
    }

    #[test]
    fn take_when_a_rejected_entry_of_a_snapshot_was_deleted_or_mended_since_then_it_is_rejected_no_more() {
        let Update::Snapshot(gone) = taken([snapshot(rejected()), delta(6, Some(None), Vec::new())]) else {
            panic!("a snapshot stays one")
        };
        assert_eq!(
            (gone.revision, gone.leases.len(), gone.rejected),
            (6, 0, Vec::new())
        );
        let Update::Snapshot(mended) =
            taken([snapshot(rejected()), delta(6, Some(Some(lease())), Vec::new())])
        else {
            panic!("a snapshot stays one")
        };
        assert_eq!((mended.leases.len(), mended.rejected), (1, Vec::new()));
    }

    #[test]
    fn take_when_deltas_add_up_then_the_last_word_on_an_entry_counts() {
        let Update::Delta(mended) = taken([
            delta(6, None, rejected()),
            delta(7, Some(Some(lease())), Vec::new()),
        ]) else {
            panic!("deltas stay one")
        };
        assert_eq!(
            (mended.revision, mended.changes.len(), mended.rejected),
            (7, 1, Vec::new())
        );
        let Update::Delta(spoilt) = taken([
            delta(6, Some(Some(lease())), Vec::new()),
            delta(7, None, rejected()),
        ]) else {
            panic!("deltas stay one")
        };
        assert_eq!((spoilt.changes.len(), spoilt.rejected), (1, rejected()));
    }

    /// As many news of one key as there may be while nobody fetches them.
    #[test]
    fn take_when_one_entry_comes_and_goes_again_and_again_then_it_is_one_piece_of_news() {
        let junk = |gone: bool| {
            let entry = Rejected {
                key: "junk".to_owned(),
                reason: "junk".to_owned(),
            };
            Update::Delta(Delta {
                revision: 6,
                changes: Vec::new(),
                rejected: if gone { Vec::new() } else { vec![entry] },
                gone: if gone { vec!["junk".to_owned()] } else { Vec::new() },
            })
        };
        let news = |last: bool| {
            (0..1000)
                .map(|n| n % 2 == 0)
                .chain([last])
                .map(junk)
                .collect::<Vec<_>>()
        };
        for (last, expected) in [(true, (0, 1)), (false, (1, 0))] {
            let Update::Delta(delta) = taken(news(last)) else {
                panic!("deltas stay one")
            };
            assert_eq!((delta.rejected.len(), delta.gone.len()), expected);
            let snapshot = [snapshot(rejected())].into_iter().chain(news(last));
            let Update::Snapshot(snapshot) = taken(snapshot) else {
                panic!("a snapshot stays one")
            };
            assert_eq!(snapshot.rejected.len(), 1 + expected.0);
        }
    }

    #[test]
    fn take_when_a_delta_is_older_than_the_snapshot_then_it_is_history() {
        let update = taken([snapshot(Vec::new()), delta(4, Some(Some(lease())), Vec::new())]);
        assert_eq!(update, snapshot(Vec::new()));
    }
}
