//! The writing thread: requests become changes in memory, a batch of changes one commit, a commit many answers.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use etcd_proto::etcdserverpb as pb;
use tokio::sync::watch;

use super::{Answer, Job, SAVE_EVERY, Size};
use crate::refusal::Refusal;
use crate::store::disk::{CLOCK, COMPACTED, HISTORY, LEASES, META, REVISION, encode, random_id};
use crate::store::index::At;
use crate::store::state::{Revision, Writing, header};
use crate::store::{Store, history, txn};

/// Requests in one commit at most.
const BATCH: usize = 1024;
/// Compacted rows removed per commit: a large compaction does not hold up writers.
const REMOVALS: usize = 2000;
/// Leases ended per commit.
const EXPIRIES: usize = 1000;

/// Starts the thread. It ends when it is told to stop, when nobody can ask any more, or at the first failed commit.
pub fn start(
    store: Arc<Store>,
    queue: Receiver<Job>,
    failed: watch::Sender<Option<String>>,
    removable: Vec<At>,
) -> io::Result<()> {
    let thread = Thread {
        store,
        queue,
        failed,
        staged: Staged::default(),
        removable: removable.into(),
        saved: Instant::now(),
        failure: None,
    };
    thread::Builder::new()
        .name("registry-writer".into())
        .spawn(move || thread.run())?;
    Ok(())
}

/// An answer held back until its effect is durable; given the failure instead, if there was one.
type Held = Box<dyn FnOnce(Option<&Refusal>) + Send>;

/// What the next commit writes, and who waits for it.
#[derive(Default)]
struct Staged {
    revisions: Vec<Revision>,
    /// Lease id → its terms, or `None` when it is gone.
    leases: Vec<(i64, Option<(i64, u64)>)>,
    compacted: Option<i64>,
    held: Vec<Held>,
}

struct Thread {
    store: Arc<Store>,
    queue: Receiver<Job>,
    failed: watch::Sender<Option<String>>,
    staged: Staged,
    removable: VecDeque<At>,
    saved: Instant,
    /// INVARIANT: after one failed commit there is no other: memory is ahead of the disk.
    failure: Option<Refusal>,
}

impl Thread {
    fn run(mut self) {
        loop {
            let (jobs, end) = self.collect();
            self.expire();
            let mut stopping = None;
            for job in jobs {
                if let Job::Stop(answer) = job {
                    stopping = Some(answer);
                } else {
                    self.apply(job);
                }
            }
            let end = end || stopping.is_some();
            let outcome = self.commit(end);
            if let Some(answer) = stopping {
                // The asker may be gone; the thread ends all the same.
                let _ = answer.send(outcome.clone());
            }
            if let Err(refusal) = outcome {
                self.failed.send_replace(Some(refusal.to_string()));
                return;
            }
            if end {
                return;
            }
        }
    }

    /// Waits for requests or for something to do, and takes all that are queued. True when nobody can ask any more.
    fn collect(&self) -> (Vec<Job>, bool) {
        let mut jobs = Vec::new();
        match self.queue.recv_timeout(self.idle_for()) {
            Ok(job) => jobs.push(job),
            Err(RecvTimeoutError::Timeout) => return (jobs, false),
            Err(RecvTimeoutError::Disconnected) => return (jobs, true),
        }
        while jobs.len() < BATCH
            && let Ok(job) = self.queue.try_recv()
        {
            jobs.push(job);
        }
        (jobs, false)
    }

    fn idle_for(&self) -> Duration {
        if !self.removable.is_empty() {
            return Duration::ZERO;
        }
        let state = self.store.read_state();
        match state.leases.first_to_end() {
            Some((deadline_ms, _)) => {
                let until_expiry = Duration::from_millis(deadline_ms.saturating_sub(state.clock.now_ms()));
                until_expiry.min(SAVE_EVERY.saturating_sub(self.saved.elapsed()))
            }
            None => Duration::from_secs(3600),
        }
    }

    fn expire(&mut self) {
        for _ in 0..EXPIRIES {
            let due = {
                let state = self.store.read_state();
                state
                    .leases
                    .first_to_end()
                    .filter(|(deadline_ms, _)| *deadline_ms <= state.clock.now_ms())
            };
            let Some((_, id)) = due else { return };
            tracing::info!(lease = format_args!("{id:x}"), "lease expired");
            self.end_lease(id);
        }
    }

    fn apply(&mut self, job: Job) {
        match job {
            Job::Put(request, answer) => {
                let result = self.put(&request);
                self.hold(answer, result);
            }
            Job::Delete(request, answer) => {
                let result = self.write(|writing, _| Ok(writing.delete(&request)));
                self.hold(answer, result);
            }
            Job::Txn(request, answer) => {
                let result = self.txn(&request);
                self.hold(answer, result);
            }
            Job::Compact(request, answer) => {
                let result = self.compact(request);
                self.hold(answer, result);
            }
            Job::Grant(request, answer) => {
                let result = self.grant(request);
                self.hold(answer, result);
            }
            Job::Revoke(request, answer) => {
                let result = self.revoke(request);
                self.hold(answer, result);
            }
            Job::Renew(request, answer) => {
                let result = self.renew(request);
                self.hold(answer, Ok(result));
            }
            Job::TimeToLive(request, answer) => {
                let result = self.time_to_live(request);
                self.hold(answer, Ok(result));
            }
            Job::Leases(answer) => {
                let result = self.leases();
                self.hold(answer, Ok(result));
            }
            Job::Size(answer) => {
                let result = self.size();
                self.hold(answer, result);
            }
            Job::Defragment(answer) => {
                let result = self.commit(false).and_then(|()| self.defragment());
                self.hold(answer, result);
            }
            Job::Stop(_) => {}
        }
    }

    fn hold<T: Send + 'static>(&mut self, answer: Answer<T>, result: Result<T, Refusal>) {
        self.staged.held.push(Box::new(move |failure| {
            // The asker may have gone away: what it asked for has happened all the same.
            let _ = answer.send(match failure {
                Some(failure) => Err(failure.clone()),
                None => result,
            });
        }));
    }

    /// One writing transaction in memory; its revision is staged for the disk.
    fn write<T>(
        &mut self,
        change: impl FnOnce(&mut Writing<'_>, &Store) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut state = self.store.write_state();
        let mut writing = Writing::begin(&mut state);
        match change(&mut writing, &self.store) {
            Ok(response) => {
                self.staged.revisions.extend(writing.finish());
                Ok(response)
            }
            Err(refusal) => {
                writing.undo();
                Err(refusal)
            }
        }
    }

    fn put(&mut self, request: &pb::PutRequest) -> Result<pb::PutResponse, Refusal> {
        self.write(|writing, _| {
            if request.lease != 0 && writing.state().leases.get(request.lease).is_none() {
                return Err(Refusal::LeaseNotFound);
            }
            writing.put(request)
        })
    }

    fn txn(&mut self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Refusal> {
        self.write(|writing, store| {
            let chosen = txn::choose(writing.state(), &store.disk, request, writing.revision())?;
            chosen.apply(writing, &store.disk)
        })
    }

    /// Commits first: readers see nothing above the last commit, and must find there what they look for.
    fn compact(&mut self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, Refusal> {
        self.commit(false)?;
        let mut state = self.store.write_state();
        if request.revision <= state.compacted {
            return Err(Refusal::Compacted);
        }
        if request.revision > state.revision {
            return Err(Refusal::FutureRevision);
        }
        state.compacted = request.revision;
        let dropped = state.index.compact(request.revision);
        let revision = state.revision;
        drop(state);
        self.removable.extend(dropped);
        self.staged.compacted = Some(request.revision);
        while request.physical && !self.removable.is_empty() {
            self.commit(false)?;
        }
        Ok(pb::CompactionResponse {
            header: header(revision),
        })
    }

    fn grant(&mut self, request: pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse, Refusal> {
        let mut state = self.store.write_state();
        let mut id = request.id;
        while id == 0 || (request.id == 0 && state.leases.get(id).is_some()) {
            id = random_id();
        }
        let now_ms = state.clock.now_ms();
        let ttl = state.leases.grant(id, request.ttl, now_ms)?;
        let revision = state.revision;
        drop(state);
        self.stage_lease(id);
        Ok(pb::LeaseGrantResponse {
            header: header(revision),
            id,
            ttl,
            error: String::new(),
        })
    }

    fn revoke(&mut self, request: pb::LeaseRevokeRequest) -> Result<pb::LeaseRevokeResponse, Refusal> {
        if self.store.read_state().leases.get(request.id).is_none() {
            return Err(Refusal::LeaseNotFound);
        }
        self.end_lease(request.id);
        Ok(pb::LeaseRevokeResponse {
            header: header(self.store.read_state().revision),
        })
    }

    /// Deletes the lease's keys, in key order and as one revision, and the lease.
    fn end_lease(&mut self, id: i64) {
        let mut state = self.store.write_state();
        let keys = state
            .leases
            .get(id)
            .map(|lease| lease.keys.clone())
            .unwrap_or_default();
        let mut writing = Writing::begin(&mut state);
        for key in &keys {
            writing.delete_key(key);
        }
        self.staged.revisions.extend(writing.finish());
        state.leases.remove(id);
        drop(state);
        self.stage_lease(id);
    }

    fn renew(&mut self, request: pb::LeaseKeepAliveRequest) -> pb::LeaseKeepAliveResponse {
        let mut state = self.store.write_state();
        let now_ms = state.clock.now_ms();
        let renewed = state.leases.renew(request.id, now_ms);
        let header = header(state.revision);
        drop(state);
        if renewed.is_ok() {
            self.stage_lease(request.id);
        }
        pb::LeaseKeepAliveResponse {
            header,
            id: request.id,
            ttl: renewed.unwrap_or(0),
        }
    }

    fn time_to_live(&self, request: pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse {
        let state = self.store.read_state();
        let header = header(state.revision);
        let Some(lease) = state.leases.get(request.id) else {
            let (granted_ttl, keys) = (0, Vec::new());
            return pb::LeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: -1,
                granted_ttl,
                keys,
            };
        };
        let keys = if request.keys {
            lease.keys.iter().map(|key| key.to_vec()).collect()
        } else {
            Vec::new()
        };
        let ttl = lease.remaining(state.clock.now_ms());
        pb::LeaseTimeToLiveResponse {
            header,
            id: request.id,
            ttl,
            granted_ttl: lease.ttl,
            keys,
        }
    }

    fn leases(&self) -> pb::LeaseLeasesResponse {
        let state = self.store.read_state();
        let leases = state.leases.ids().map(|id| pb::LeaseStatus { id }).collect();
        pb::LeaseLeasesResponse {
            header: header(state.revision),
            leases,
        }
    }

    fn stage_lease(&mut self, id: i64) {
        let terms = self
            .store
            .read_state()
            .leases
            .get(id)
            .map(|lease| (lease.ttl, lease.deadline_ms));
        self.staged.leases.push((id, terms));
    }

    fn size(&self) -> Result<Size, Refusal> {
        let db = self.store.disk.shared();
        let txn = db.begin_write().map_err(history::storage)?;
        let stats = txn.stats().map_err(history::storage)?;
        txn.abort().map_err(history::storage)?;
        let page = u64::try_from(stats.page_size()).unwrap_or(4096);
        let pages = stats.leaf_pages() + stats.branch_pages();
        Ok(Size {
            allocated: stats.allocated_pages() * page,
            used: pages * page,
        })
    }

    /// Readers of older rows hold up the engine's compaction for as long as they read: a few milliseconds.
    fn defragment(&mut self) -> Result<(), Refusal> {
        let mut last = Refusal::Stopped;
        for _ in 0..100 {
            match self.store.disk.exclusive().compact() {
                Ok(_) => return Ok(()),
                Err(error) => last = history::storage(error),
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(last)
    }

    /// Makes everything staged durable, shows it to readers and watchers, and answers. `ending` saves the clock even
    /// when nothing else is to be written.
    fn commit(&mut self, ending: bool) -> Result<(), Refusal> {
        let mut staged = std::mem::take(&mut self.staged);
        let removals: Vec<At> = self
            .removable
            .drain(..self.removable.len().min(REMOVALS))
            .collect();
        let idle = staged.revisions.is_empty() && staged.leases.is_empty() && staged.compacted.is_none();
        let clock_due = {
            let leases = &self.store.read_state().leases;
            !leases.is_empty() && (ending || self.saved.elapsed() >= SAVE_EVERY)
        };
        if !idle || !removals.is_empty() || clock_due {
            if self.failure.is_none() {
                self.failure = self.write_to_disk(&staged, &removals).err();
            }
            if let Some(failure) = self.failure.clone() {
                for answer in staged.held {
                    answer(Some(&failure));
                }
                return Err(failure);
            }
            self.saved = Instant::now();
            if let Some(newest) = staged.revisions.last() {
                self.store.acknowledged.note(newest.main);
            }
        }
        self.show(std::mem::take(&mut staged.revisions));
        for answer in staged.held {
            answer(None);
        }
        Ok(())
    }

    fn write_to_disk(&self, staged: &Staged, removals: &[At]) -> Result<(), Refusal> {
        let clock = i64::try_from(self.store.read_state().clock.now_ms()).unwrap_or(i64::MAX);
        let db = self.store.disk.shared();
        let txn = db.begin_write().map_err(history::storage)?;
        {
            let mut history = txn.open_table(HISTORY).map_err(history::storage)?;
            for change in staged.revisions.iter().flat_map(|revision| &revision.changes) {
                let bytes = encode(change.tombstone, &change.row);
                history
                    .insert((change.at.main, change.at.sub), bytes.as_slice())
                    .map_err(history::storage)?;
            }
            for at in removals {
                history.remove((at.main, at.sub)).map_err(history::storage)?;
            }
            let mut leases = txn.open_table(LEASES).map_err(history::storage)?;
            for (id, terms) in &staged.leases {
                match terms {
                    Some(terms) => leases.insert(id, terms).map_err(history::storage)?,
                    None => leases.remove(id).map_err(history::storage)?,
                };
            }
            let mut meta = txn.open_table(META).map_err(history::storage)?;
            if let Some(revision) = staged.revisions.last() {
                meta.insert(REVISION, revision.main).map_err(history::storage)?;
            }
            if let Some(compacted) = staged.compacted {
                meta.insert(COMPACTED, compacted).map_err(history::storage)?;
            }
            meta.insert(CLOCK, clock).map_err(history::storage)?;
        }
        txn.commit().map_err(history::storage)
    }

    fn show(&self, revisions: Vec<Revision>) {
        let Some(newest) = revisions.last().map(|revision| revision.main) else {
            return;
        };
        {
            let mut state = self.store.write_state();
            state.visible = newest;
            for change in revisions.iter().flat_map(|revision| &revision.changes) {
                if let Some((at, row)) = &change.before {
                    state.index.drop_row(&row.key, *at);
                }
            }
        }
        self.store.feed.publish(revisions);
    }
}
