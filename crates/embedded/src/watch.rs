//! One Watch stream: any number of watchers, one response at a time, no revision split over two responses.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::watch_create_request::FilterType;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::mvccpb::event::EventType;
use etcd_proto::mvccpb::{Event, KeyValue};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tonic::{Status, Streaming};

use crate::refusal::Refusal;
use crate::store::{Change, Inbox, Span, Store, Tap};

/// How often a watcher that asked for progress hears of it when nothing else is sent (etcd's default).
const PROGRESS_EVERY: Duration = Duration::from_secs(600);
/// Answers to requests that may wait; more requests are then left unread.
const MAX_ANSWERS: usize = 256;
/// The id of answers that belong to no watcher.
const NO_WATCHER: i64 = -1;

/// Serves one stream until the client leaves or `stopping` becomes true.
pub async fn serve(
    store: Arc<Store>,
    mut requests: Streaming<pb::WatchRequest>,
    responses: mpsc::Sender<Result<pb::WatchResponse, Status>>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut stream = Stream {
        store,
        inbox: Arc::default(),
        watchers: BTreeMap::new(),
        answers: VecDeque::new(),
        next_id: 0,
        progress_wanted: false,
    };
    let mut ticks = interval_at(Instant::now() + PROGRESS_EVERY, PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reading = true;
    loop {
        let to_send = stream.has_something();
        let inbox = stream.inbox.clone();
        tokio::select! {
            request = requests.message(), if reading && stream.answers.len() < MAX_ANSWERS => match request {
                Ok(Some(request)) => stream.take(request),
                // COMPAT: a client that only closed its half still gets events.
                Ok(None) => reading = false,
                Err(_) => return,
            },
            permit = responses.reserve(), if to_send => {
                let Ok(permit) = permit else { return };
                match stream.next() {
                    Ok(Some(response)) => permit.send(Ok(response)),
                    Ok(None) => {}
                    Err(refusal) => return permit.send(Err(refusal.into())),
                }
            }
            () = inbox.filled(), if !to_send => {}
            () = responses.closed() => return,
            _ = ticks.tick() => stream.tick(),
            _ = stopping.wait_for(|stop| *stop) => {
                // A client that does not read would not read this either.
                let _ = responses.try_send(Err(Refusal::Stopped.into()));
                return;
            }
        }
    }
}

struct Watcher {
    tap: Arc<Tap>,
    /// The first revision this watcher may still be sent.
    next: i64,
    puts: bool,
    deletes: bool,
    prev_kv: bool,
    progress_notify: bool,
    /// Nothing was sent since the last tick.
    quiet: bool,
    /// It was told that its revision is compacted and gets nothing more; the id stays taken, as in etcd.
    compacted: bool,
}

struct Stream {
    store: Arc<Store>,
    inbox: Arc<Inbox>,
    watchers: BTreeMap<i64, Watcher>,
    /// Answers to requests, sent before events: a watcher's creation comes first.
    answers: VecDeque<pb::WatchResponse>,
    next_id: i64,
    progress_wanted: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        for watcher in self.watchers.values() {
            self.store.feed.unwatch(&watcher.tap);
        }
    }
}

impl Stream {
    fn has_something(&self) -> bool {
        !self.answers.is_empty() || !self.inbox.is_empty() || self.progress_wanted
    }

    fn take(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request),
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.progress_wanted = true,
            None => {}
        }
    }

    fn create(&mut self, request: pb::WatchCreateRequest) {
        let key = if request.key.is_empty() {
            vec![0]
        } else {
            request.key
        };
        let span = Span::new(&key, &request.range_end);
        let refused = if span.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if request.watch_id != 0 && self.watchers.contains_key(&request.watch_id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else {
            None
        };
        if let Some(reason) = refused {
            let mut answer = self.response(NO_WATCHER, self.store.feed.visible());
            (answer.created, answer.canceled, answer.cancel_reason) = (true, true, reason.into());
            self.answers.push_back(answer);
            return;
        }
        let id = if request.watch_id == 0 {
            self.free_id()
        } else {
            request.watch_id
        };
        let (tap, visible) = self
            .store
            .feed
            .watch(id, span, request.start_revision, self.inbox.clone());
        let next = if request.start_revision == 0 {
            visible + 1
        } else {
            request.start_revision
        };
        let has = |filter: FilterType| request.filters.contains(&(filter as i32));
        let watcher = Watcher {
            tap,
            next,
            puts: !has(FilterType::Noput),
            deletes: !has(FilterType::Nodelete),
            prev_kv: request.prev_kv,
            progress_notify: request.progress_notify,
            quiet: true,
            compacted: false,
        };
        self.watchers.insert(id, watcher);
        let mut answer = self.response(id, visible);
        answer.created = true;
        self.answers.push_back(answer);
    }

    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn cancel(&mut self, id: i64) {
        let Some(watcher) = self.watchers.remove(&id) else {
            return;
        };
        self.store.feed.unwatch(&watcher.tap);
        let mut answer = self.response(id, self.store.feed.visible());
        answer.canceled = true;
        self.answers.push_back(answer);
    }

    fn tick(&mut self) {
        let visible = self.store.feed.visible();
        let idle = self.inbox.is_empty();
        let mut told = Vec::new();
        for (id, watcher) in &mut self.watchers {
            if watcher.progress_notify && watcher.quiet && idle && !watcher.compacted {
                told.push(*id);
            }
            watcher.quiet = true;
        }
        for id in told {
            let answer = self.response(id, visible);
            self.answers.push_back(answer);
        }
    }

    /// The next response, if there is one after all.
    fn next(&mut self) -> Result<Option<pb::WatchResponse>, Refusal> {
        if let Some(answer) = self.answers.pop_front() {
            return Ok(Some(answer));
        }
        // INVARIANT: read before the inbox is looked at, so that an empty inbox means all up to here was sent.
        let visible = self.store.feed.visible();
        if let Some(id) = self.inbox.next() {
            return self.serve_watcher(id);
        }
        if std::mem::take(&mut self.progress_wanted) {
            return Ok(Some(self.response(NO_WATCHER, visible)));
        }
        Ok(None)
    }

    fn serve_watcher(&mut self, id: i64) -> Result<Option<pb::WatchResponse>, Refusal> {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return Ok(None);
        };
        let pending = watcher.tap.take_pending();
        if pending == 0 || watcher.compacted {
            return Ok(None);
        }
        let from = pending.max(watcher.next);
        let (revisions, last) = match self.store.revisions(from) {
            Ok(read) => read,
            Err(Refusal::Compacted) => return Ok(Some(self.compacted(id))),
            Err(refusal) => return Err(refusal),
        };
        let mut events = Vec::new();
        for revision in &revisions {
            for change in revision.changes.iter().filter(|change| watcher.wants(change)) {
                events.push(watcher.event(change, &self.store));
            }
        }
        watcher.next = watcher.next.max(last + 1);
        // More than one portion, or new revisions meanwhile: look again. A note too many costs one empty look.
        if watcher.next <= self.store.feed.visible() {
            watcher.tap.note(watcher.next);
        }
        if events.is_empty() {
            return Ok(None);
        }
        watcher.quiet = false;
        let mut response = self.response(id, last);
        response.events = events;
        Ok(Some(response))
    }

    /// COMPAT: etcd leaves the revision in the header 0 here, and the reason empty.
    fn compacted(&mut self, id: i64) -> pb::WatchResponse {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.compacted = true;
            self.store.feed.unwatch(&watcher.tap);
        }
        let mut response = self.response(id, 0);
        (response.canceled, response.compact_revision) = (true, self.store.compacted());
        response
    }

    fn response(&self, watch_id: i64, revision: i64) -> pb::WatchResponse {
        let header = Some(self.store.header(revision));
        pb::WatchResponse {
            header,
            watch_id,
            ..Default::default()
        }
    }
}

impl Watcher {
    fn wants(&self, change: &Change) -> bool {
        let kind = if change.tombstone { self.deletes } else { self.puts };
        kind && change.at.main >= self.next && self.tap.span().contains(&change.row.key)
    }

    fn event(&self, change: &Change, store: &Store) -> Event {
        let created = !change.tombstone && change.row.create_revision == change.row.mod_revision;
        let prev_kv = if self.prev_kv && !created {
            store.before(change)
        } else {
            None
        };
        Event {
            r#type: if change.tombstone {
                EventType::Delete
            } else {
                EventType::Put
            } as i32,
            kv: Some(KeyValue::clone(&change.row)),
            prev_kv: prev_kv.map(|row| KeyValue::clone(&row)),
        }
    }
}

#[cfg(test)]
mod tests;
