//! What is in the store, and the rules by which it changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::entries::{Change, Entry, Handle, Life, Mark, Seen};

/// Handle on an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    modified: i64,
    /// 0: no time to live.
    grant: u64,
}

impl Stamp {
    /// Number of the revision of the write that made it.
    pub(super) fn modified(&self) -> i64 {
        self.modified
    }

    /// The grant of time it lives by; 0 for none.
    pub(super) fn grant(&self) -> u64 {
        self.grant
    }
}

impl Handle for Stamp {
    fn is_reservation(&self) -> bool {
        self.grant == 0
    }

    fn shares_life(&self, other: &Stamp) -> bool {
        self.grant == other.grant
    }
}

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A client, by its [number](super::Client::number).
    Client(u32),
    /// The store's owner.
    Operator,
    /// The end of a time to live.
    Time,
    /// A restore.
    Restore,
}

/// Something that was done to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// By whom.
    pub who: Who,
    /// When.
    pub at: Instant,
    /// To which key.
    pub key: String,
    /// What was there.
    pub before: Option<Vec<u8>>,
    /// What is there since.
    pub after: Option<Vec<u8>>,
}

/// An entry, for those who look from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Key below the parent of all leases.
    pub key: String,
    /// Value.
    pub value: String,
    /// Number of the revision of its creation.
    pub created: i64,
    /// Number of the revision of the last write.
    pub modified: i64,
    /// When it ends.
    pub expires: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Stored {
    value: Vec<u8>,
    created: i64,
    modified: i64,
    /// Which grant of time, and when it ends.
    grant: Option<(u64, Instant)>,
}

impl Stored {
    fn stamp(&self) -> Stamp {
        Stamp {
            modified: self.modified,
            grant: self.grant.map_or(0, |(grant, _)| grant),
        }
    }

    fn entry(&self, key: &str) -> Entry<Stamp> {
        Entry {
            key: key.to_owned(),
            value: self.value.clone(),
            created: self.created,
            handle: self.stamp(),
        }
    }
}

/// A state that was kept.
#[derive(Debug, Clone, Default)]
pub struct Backup {
    number: i64,
    entries: BTreeMap<String, Stored>,
}

/// A watch that stands.
pub(super) struct Watcher {
    client: u32,
    pub(super) news: Arc<Notify>,
    /// It is over.
    pub(super) cut: bool,
    /// Number of the last revision it was told of.
    pub(super) told: i64,
}

/// The outcome of opening a watch.
pub(super) enum Opened {
    Standing(u64, Arc<Notify>),
    /// What was to be told next is forgotten.
    Compacted,
    /// The store is not what it was then.
    Exchanged,
}

/// The outcome of a write.
pub(super) enum Wrote {
    Done { stamp: Stamp, expires: Option<Instant> },
    Found(Seen<Stamp>),
}

#[derive(Default)]
pub(super) struct State {
    number: i64,
    /// How often the store became another.
    restores: u64,
    entries: BTreeMap<String, Stored>,
    /// Nothing ends before; `None`: not known.
    quiet_until: Option<Instant>,
    /// What happened, after `compacted`.
    history: VecDeque<(i64, Change<Stamp>)>,
    compacted: i64,
    watchers: BTreeMap<u64, Watcher>,
    deeds: Vec<Deed>,
    clients: u32,
    granted: u64,
    watched: u64,
    /// Clients that nothing reaches and that reach nothing.
    pub(super) cut_off: std::collections::BTreeSet<u32>,
}

/// Watches further behind than this list again.
const HISTORY: usize = 4096;
/// Deeds that nobody takes are not kept for ever.
const DEEDS: usize = 1 << 16;

impl State {
    pub(super) fn number(&self) -> i64 {
        self.number
    }

    pub(super) fn next_client(&mut self) -> u32 {
        self.clients += 1;
        self.clients
    }

    pub(super) fn next_grant(&mut self) -> u64 {
        self.granted += 1;
        self.granted
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        let ends = self.entries.values().filter_map(|stored| stored.grant);
        ends.map(|(_, at)| at).min()
    }

    /// Ends what is over, the earliest first.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.quiet_until.is_some_and(|until| until > now) {
            return;
        }
        self.end_until(now);
        self.quiet_until = self.next_end();
    }

    fn end_until(&mut self, now: Instant) {
        loop {
            let over = self
                .entries
                .iter()
                .filter_map(|(key, stored)| Some((stored.grant?.1, key)))
                .min()
                .filter(|(at, _)| *at <= now)
                .map(|(_, key)| key.clone());
            match over {
                Some(key) => self.delete(Who::Time, &key),
                None => return,
            };
        }
    }

    pub(super) fn shown(&self) -> Vec<Shown> {
        let shown = |(key, stored): (&String, &Stored)| Shown {
            key: key.clone(),
            value: String::from_utf8_lossy(&stored.value).into_owned(),
            created: stored.created,
            modified: stored.modified,
            expires: stored.grant.map(|(_, at)| at),
        };
        self.entries.iter().map(shown).collect()
    }

    /// Visits every entry.
    pub(super) fn visit(&self, mut visit: impl FnMut(&str, &[u8], i64, Stamp)) {
        for (key, stored) in &self.entries {
            visit(key, &stored.value, stored.created, stored.stamp());
        }
    }

    pub(super) fn seen(&self, key: &str) -> Seen<Stamp> {
        Seen {
            number: self.number,
            entry: self.entries.get(key).map(|stored| stored.entry(key)),
        }
    }

    pub(super) fn expires(&self, grant: u64) -> Option<Instant> {
        let grants = self.entries.values().filter_map(|stored| stored.grant);
        grants.into_iter().find(|(id, _)| *id == grant).map(|(_, at)| at)
    }

    /// Whether an entry was once in this state; `None` when what was then is forgotten.
    pub(super) fn was(&self, key: &str, known: &Stamp) -> Option<bool> {
        if self
            .entries
            .get(key)
            .is_some_and(|stored| stored.stamp() == *known)
        {
            return Some(true);
        }
        let is_it = |(_, change): &(i64, Change<Stamp>)| match change {
            Change::Put(entry) => entry.key == key && entry.handle == *known,
            Change::Gone { .. } | Change::Unclear(_) => false,
        };
        (known.modified > self.compacted).then(|| self.history.iter().any(is_it))
    }

    fn note(&mut self, who: Who, key: &str, before: Option<Vec<u8>>, after: Option<Vec<u8>>) {
        self.deeds.push(Deed {
            who,
            at: Instant::now(),
            key: key.to_owned(),
            before,
            after,
        });
        if self.deeds.len() > DEEDS {
            self.deeds.drain(..DEEDS / 2);
        }
    }

    fn tell(&mut self, change: Change<Stamp>) {
        self.history.push_back((self.number, change));
        if self.history.len() > HISTORY
            && let Some((number, _)) = self.history.pop_front()
        {
            self.compacted = number;
        }
        for watcher in self.watchers.values() {
            watcher.news.notify_one();
        }
    }

    pub(super) fn put(&mut self, who: Who, key: &str, value: &[u8], grant: Option<(u64, Instant)>) -> Stamp {
        self.number += 1;
        self.quiet_until = None;
        let before = self.entries.remove(key);
        let stored = Stored {
            value: value.to_vec(),
            created: before.as_ref().map_or(self.number, |before| before.created),
            modified: self.number,
            grant,
        };
        let (stamp, entry) = (stored.stamp(), stored.entry(key));
        self.entries.insert(key.to_owned(), stored);
        self.note(who, key, before.map(|before| before.value), Some(value.to_vec()));
        self.tell(Change::Put(entry));
        stamp
    }

    pub(super) fn delete(&mut self, who: Who, key: &str) -> bool {
        let Some(before) = self.entries.remove(key) else {
            return false;
        };
        self.number += 1;
        self.note(who, key, Some(before.value), None);
        self.tell(Change::Gone { key: key.to_owned() });
        true
    }

    /// Puts an entry where there is none, to live by this grant. One that lives by it already is this very write, whose
    /// answer was lost.
    pub(super) fn create(&mut self, who: Who, key: &str, value: &[u8], grant: (u64, Instant)) -> Wrote {
        match self.entries.get(key) {
            Some(stored) if stored.value == value && stored.stamp().grant == grant.0 => Wrote::Done {
                stamp: stored.stamp(),
                expires: stored.grant.map(|(_, at)| at),
            },
            Some(_) => Wrote::Found(self.seen(key)),
            None => Wrote::Done {
                stamp: self.put(who, key, value, Some(grant)),
                expires: Some(grant.1),
            },
        }
    }

    /// Puts an entry over the state of it that is known. `grant` is for a life that is to be a new one.
    pub(super) fn swap(
        &mut self,
        who: Who,
        key: &str,
        value: &[u8],
        known: &Stamp,
        life: Life,
        grant: (u64, Instant),
    ) -> Wrote {
        let Some(stored) = self.entries.get(key) else {
            return Wrote::Found(self.seen(key));
        };
        let (there, lives) = (stored.stamp(), stored.grant);
        let wanted = match life {
            Life::Same => lives,
            Life::Whole => Some(grant),
        };
        let same_life = there.grant == wanted.map_or(0, |(grant, _)| grant);
        let done_before = there.modified > known.modified && stored.value == value && same_life;
        if there != *known && !done_before {
            return Wrote::Found(self.seen(key));
        }
        let stamp = if done_before {
            there
        } else {
            self.put(who, key, value, wanted)
        };
        Wrote::Done {
            stamp,
            expires: (life == Life::Whole).then_some(grant.1),
        }
    }

    /// Deletes an entry if it is as known; whether it is gone now.
    pub(super) fn remove(&mut self, who: Who, key: &str, known: &Stamp) -> bool {
        match self.entries.get(key) {
            None => true,
            Some(stored) if stored.stamp() == *known => self.delete(who, key),
            Some(_) => false,
        }
    }

    /// Gives what lives by a grant of time until then. Whether anything does.
    pub(super) fn prolong(&mut self, grant: u64, until: Instant) -> bool {
        let grants = self
            .entries
            .values_mut()
            .filter_map(|stored| stored.grant.as_mut());
        let alive = grants.filter(|(id, _)| *id == grant).map(|(_, at)| *at = until);
        alive.count() > 0
    }

    /// Ends what lives by a grant of time.
    pub(super) fn revoke(&mut self, who: Who, grant: u64) {
        let bound: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, stored)| stored.stamp().grant == grant)
            .map(|(key, _)| key.clone())
            .collect();
        for key in bound {
            self.delete(who, &key);
        }
    }

    /// Where a watch goes on from now.
    pub(super) fn mark(&self) -> Mark {
        let writes = self.entries.values().map(|stored| stored.modified);
        Mark {
            number: self.number,
            newest: writes.max().unwrap_or(0),
            history: self.restores,
        }
    }

    /// A watch from the revision after this one.
    pub(super) fn watch(&mut self, client: u32, after: Mark) -> Opened {
        if after.history != self.restores {
            return Opened::Exchanged;
        }
        let after = after.number;
        if after < self.compacted {
            return Opened::Compacted;
        }
        self.watched += 1;
        let news = Arc::new(Notify::new());
        let watcher = Watcher {
            client,
            news: Arc::clone(&news),
            cut: false,
            told: after,
        };
        self.watchers.insert(self.watched, watcher);
        Opened::Standing(self.watched, news)
    }

    pub(super) fn unwatch(&mut self, watcher: u64) {
        self.watchers.remove(&watcher);
    }

    pub(super) fn watcher(&self, watcher: u64) -> Option<&Watcher> {
        self.watchers.get(&watcher)
    }

    /// What a watcher has not been told yet; `None` when that is forgotten.
    pub(super) fn news(&mut self, watcher: u64) -> Option<Vec<(i64, Change<Stamp>)>> {
        let watcher = self.watchers.get_mut(&watcher)?;
        if watcher.told < self.compacted {
            return None;
        }
        let from = self
            .history
            .partition_point(|(number, _)| *number <= watcher.told);
        let news: Vec<_> = self.history.range(from..).cloned().collect();
        watcher.told = watcher.told.max(self.number);
        Some(news)
    }

    pub(super) fn cut_watches(&mut self, client: Option<u32>) {
        for watcher in self.watchers.values_mut() {
            if client.is_none_or(|client| watcher.client == client) {
                watcher.cut = true;
                watcher.news.notify_one();
            }
        }
    }

    /// Wakes a client's watches, to look whether they are still told.
    pub(super) fn wake(&self, client: u32) {
        for watcher in self.watchers.values().filter(|watcher| watcher.client == client) {
            watcher.news.notify_one();
        }
    }

    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.number;
    }

    pub(super) fn backup(&self) -> Backup {
        Backup {
            number: self.number,
            entries: self.entries.clone(),
        }
    }

    pub(super) fn restore(&mut self, backup: &Backup, until: Instant) {
        let mut entries = backup.entries.clone();
        for (_, at) in entries.values_mut().filter_map(|stored| stored.grant.as_mut()) {
            *at = until;
        }
        self.quiet_until = None;
        let before = std::mem::replace(&mut self.entries, entries);
        let mut keys: Vec<&String> = before.keys().chain(backup.entries.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let value =
                |entries: &BTreeMap<String, Stored>| entries.get(key).map(|stored| stored.value.clone());
            let (was, is) = (value(&before), value(&backup.entries));
            if was != is {
                self.note(Who::Restore, key, was, is);
            }
        }
        self.number = backup.number;
        self.restores += 1;
        self.history.clear();
        self.compacted = self.number;
        self.cut_watches(None);
    }

    pub(super) fn jump(&mut self, by: Duration) {
        let now = Instant::now();
        self.quiet_until = None;
        for (_, at) in self
            .entries
            .values_mut()
            .filter_map(|stored| stored.grant.as_mut())
        {
            *at = at.checked_sub(by).unwrap_or(now);
        }
    }

    pub(super) fn take_deeds(&mut self) -> Vec<Deed> {
        std::mem::take(&mut self.deeds)
    }
}
