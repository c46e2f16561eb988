//! Waiting for threads to end, within a bound.

use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(5);

/// Threads that were started.
#[derive(Debug, Default)]
pub struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// One more.
    pub fn add(&mut self, thread: JoinHandle<()>) {
        self.0.push(thread);
    }

    /// Waits for their ends; the names of those that have not come by then, which are left to themselves.
    pub async fn join(mut self, within: Duration) -> Vec<String> {
        let end = Instant::now() + within;
        loop {
            let (ended, running): (Vec<_>, Vec<_>) = self.0.into_iter().partition(JoinHandle::is_finished);
            for thread in ended {
                // What a panic had to say was said.
                let _ = thread.join();
            }
            self.0 = running;
            if self.0.is_empty() || Instant::now() >= end {
                break;
            }
            sleep(LOOK).await;
        }
        let name = |thread: &JoinHandle<()>| thread.thread().name().unwrap_or("without a name").to_owned();
        self.0.iter().map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread::Builder;

    use super::*;

    #[tokio::test]
    async fn join_when_one_hangs_then_it_is_named_and_the_others_are_waited_for() {
        let (end, hangs) = channel::<()>();
        let mut threads = Threads::default();
        let named = |name: &str| Builder::new().name(name.to_owned());
        threads.add(named("a").spawn(|| {}).unwrap());
        threads.add(
            named("b")
                .spawn(move || {
                    let _ = hangs.recv();
                })
                .unwrap(),
        );
        assert_eq!(threads.join(Duration::from_millis(50)).await, ["b"]);
        drop(end);
        let mut threads = Threads::default();
        threads.add(named("c").spawn(|| {}).unwrap());
        assert_eq!(threads.join(Duration::from_secs(60)).await, Vec::<String>::new());
    }
}
