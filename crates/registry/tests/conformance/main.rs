//! What every store of entries comes to under the one acquire, keep and watch: the same tests over a real etcd by either
//! of its APIs and over the store in memory.

// Everything here is test code, the helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod acquire;
mod entries;
mod faults;
mod ground;
mod keep;
mod memory;
mod watch;

/// Makes a test of each function: over etcd in real time, over memory on a moved clock.
macro_rules! conform {
    ($($name:ident),* $(,)?) => {
        mod etcd2 {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(crate::ground::EtcdV2::start()).await;
                }
            )*
        }
        mod etcd3 {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(crate::ground::Etcd::start()).await;
                }
            )*
        }
        mod memory {
            $(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    super::$name(crate::ground::InMemory::start()).await;
                }
            )*
        }
    };
}
pub(crate) use conform;
