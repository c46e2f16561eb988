//! What this process keeps to itself: it holds a password, and writes routes.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing::warn;

/// Leaves no core file, whatever handles those on this host, and shows its environment and memory to nobody but root. Closes what
/// whoever started it left open, which it neither needs nor is to hand to the programs it runs.
///
/// To be called once, when what a predecessor has handed over is taken.
pub fn begin() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // The kernel lets nobody off a smaller limit of its own.
    let _ = setrlimit(Resource::Core, none);
    if let Err(failure) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!("a core file of this process would hold what it knows: {failure}");
    }
    match kernel::inherit::close_strays() {
        Ok(0) => {}
        Ok(n) => warn!("closed {n} descriptors that whoever started this left open"),
        Err(failure) => warn!("descriptors that whoever started this left open stay so: {failure}"),
    }
}
