//! Being in another network namespace with a thread of one's own.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{LabError, file};

/// Moves the calling thread into a network namespace, for good.
pub fn enter(netns: &Path) -> std::io::Result<()> {
    let space = std::fs::File::open(netns)?;
    Ok(move_into_link_name_space(
        space.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Runs a closure on a thread inside a network namespace; sockets it makes and returns stay there.
pub fn run<T: Send>(netns: &Path, work: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T, LabError> {
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(netns)?;
            work()
        });
        thread
            .join()
            .map_err(|_| LabError::Invalid("a thread inside a namespace panicked".to_owned()))
    })?;
    file(netns, result)
}
