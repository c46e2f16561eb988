//! What may block, done by a thread of its own: whoever waits for it can stop waiting, and goes on.
//!
//! A file system that hangs takes the thread with it and nobody else. What cannot be begun meanwhile is kept in a place of depth
//! one for each kind of errand, in which the latest wins.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use crate::heartbeat::{Heartbeat, Heartbeats, PERIOD};
use crate::logging::utc;

/// The thread has its work done elsewhere; between two errands it is never silent for this long.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether all is done.
const LOOK: Duration = Duration::from_millis(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// What the thread is at does not come to an end.
    #[error("{whom} does not answer since {}", utc(*.since))]
    Late {
        /// What the thread has to do with.
        whom: &'static str,
        /// Since when it is at what it is at.
        since: SystemTime,
    },
    /// There is no thread to be had.
    #[error("thread {name} cannot be started: {source}")]
    NoThread {
        /// Its name.
        name: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A later errand of the same kind came before this one was begun, or the daemon ends.
    #[error("{whom}: given up")]
    GivenUp {
        /// What the thread has to do with.
        whom: &'static str,
    },
}

/// One thing to do.
struct Errand {
    kind: &'static str,
    work: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Errand>,
    /// Since when the thread has been at the one it is at.
    begun: Option<Instant>,
    thread: Option<JoinHandle<()>>,
    stop: bool,
}

#[derive(Default)]
struct Desk {
    queue: Mutex<Queue>,
    news: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, heartbeat: &Heartbeat) {
        loop {
            heartbeat.beat();
            let mut queue = self.lock();
            let Some(errand) = queue.waiting.pop_front() else {
                if queue.stop {
                    return;
                }
                drop(self.news.wait_timeout(queue, PERIOD));
                continue;
            };
            queue.begun = Some(Instant::now());
            drop(queue);
            heartbeat.outside(errand.work);
            self.lock().begun = None;
        }
    }
}

/// A thread that does errands, one after the other. It is started by the first.
pub struct Errands {
    name: &'static str,
    whom: &'static str,
    heartbeats: Heartbeats,
    desk: Arc<Desk>,
}

impl Errands {
    /// A thread of this name; `whom` is what it has to do with, as a subject: "the state directory".
    pub fn new(name: &'static str, whom: &'static str, heartbeats: Heartbeats) -> Errands {
        Errands {
            name,
            whom,
            heartbeats,
            desk: Arc::default(),
        }
    }

    /// Has something done. An errand of the same kind that waits is given up for it.
    ///
    /// # Errors
    /// There is no thread and none to be had: then it is not done.
    pub fn send(&self, kind: &'static str, work: impl FnOnce() + Send + 'static) -> Result<(), NoAnswer> {
        let mut queue = self.desk.lock();
        if queue.thread.is_none() {
            let heartbeat = self.heartbeats.watch(self.name, LONGEST_SILENCE);
            let desk = Arc::clone(&self.desk);
            let started = Builder::new()
                .name(self.name.to_owned())
                .spawn(move || desk.work(&heartbeat));
            queue.thread = Some(started.map_err(|source| NoAnswer::NoThread {
                name: self.name,
                source,
            })?);
        }
        queue.waiting.retain(|errand| errand.kind != kind);
        let work = Box::new(work);
        queue.waiting.push_back(Errand { kind, work });
        drop(queue);
        self.desk.news.notify_one();
        Ok(())
    }

    /// Has something done and waits for what comes of it.
    ///
    /// # Errors
    /// It is not done within this time. If it was not begun by then, it never will be.
    pub async fn ask<T: Send + 'static>(
        &self,
        kind: &'static str,
        within: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.send(kind, move || {
            if !reply.is_closed() {
                let _ = reply.send(work());
            }
        })?;
        match tokio::time::timeout(within, answer).await {
            Ok(answer) => answer.map_err(|_| NoAnswer::GivenUp { whom: self.whom }),
            Err(_) => Err(NoAnswer::Late {
                whom: self.whom,
                since: ago(self.since().unwrap_or(within)),
            }),
        }
    }

    /// How long the thread has been at what it is at.
    fn since(&self) -> Option<Duration> {
        self.desk.lock().begun.map(|begun| begun.elapsed())
    }

    /// The errand under way has taken this long or longer: nobody answers.
    pub fn late(&self, longest: Duration) -> Option<NoAnswer> {
        let since = self.since().filter(|since| *since >= longest)?;
        Some(NoAnswer::Late {
            whom: self.whom,
            since: ago(since),
        })
    }

    /// Waits until everything is done, but no longer than this.
    pub async fn done(&self, within: Duration) {
        let is_done = || {
            let queue = self.desk.lock();
            queue.waiting.is_empty() && queue.begun.is_none()
        };
        let all = async {
            while !is_done() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(within, all).await;
    }

    /// Ends the thread once everything is done. It is given back to be waited for.
    pub fn stop(&self) -> Option<JoinHandle<()>> {
        let mut queue = self.desk.lock();
        queue.stop = true;
        let thread = queue.thread.take();
        drop(queue);
        self.desk.news.notify_one();
        thread
    }
}

fn ago(time: Duration) -> SystemTime {
    SystemTime::now()
        .checked_sub(time)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn errands() -> (Errands, Heartbeats) {
        let heartbeats = Heartbeats::default();
        (
            Errands::new("disk", "the state directory", heartbeats.clone()),
            heartbeats,
        )
    }

    #[tokio::test]
    async fn ask_when_the_one_before_hangs_then_says_since_when_and_the_latest_is_done_when_it_comes_back() {
        let (errands, heartbeats) = errands();
        let (go_on, hangs) = channel::<()>();
        errands
            .send("write", move || {
                let _ = hangs.recv();
            })
            .unwrap();
        let late = errands
            .ask("read", Duration::from_millis(20), || 1)
            .await
            .unwrap_err();
        assert!(
            late.to_string()
                .starts_with("the state directory does not answer since 2"),
            "{late}"
        );
        assert!(errands.late(Duration::ZERO).is_some() && errands.late(LONG).is_none());
        assert_eq!(heartbeats.silent(), None, "a disk is not our fault");
        let (told, done) = channel();
        for n in 0..3 {
            let told = told.clone();
            errands.send("write", move || told.send(n).unwrap()).unwrap();
        }
        go_on.send(()).unwrap();
        assert_eq!(errands.ask("read", LONG, || 2).await.unwrap(), 2);
        assert_eq!(
            done.try_iter().collect::<Vec<_>>(),
            [2],
            "the earlier ones were history"
        );
        errands.stop().unwrap().join().unwrap();
    }

    #[tokio::test]
    async fn stop_when_something_waits_then_it_is_done_first() {
        let (errands, _) = errands();
        let (told, done) = channel();
        errands.send("write", move || told.send(()).unwrap()).unwrap();
        errands.done(LONG).await;
        errands.stop().unwrap().join().unwrap();
        assert_eq!(done.try_iter().count(), 1);
    }
}
