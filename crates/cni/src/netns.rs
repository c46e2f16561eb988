//! The container's namespace: refusing our own, and working inside from the main thread.

use std::io;

use kernel::netns::{Identity, Netns, NetnsError};

use crate::call::Environment;
use crate::failure::{Code, Failure};
use crate::files::errno_text;

/// Refuses to work on our own namespace, before anything is done. A path that leads nowhere is not ours.
pub fn guard(env: &Environment) -> Result<(), Failure> {
    if env.netns.is_empty() || env.allows_own_netns() {
        return Ok(());
    }
    // A stat is enough to tell two namespaces apart, and cheaper than opening both.
    let (Ok(theirs), Ok(ours)) = (rustix::fs::stat(&env.netns), Netns::current()) else {
        return Ok(());
    };
    if Identity::of(&theirs) == ours.identity() {
        return Err(Failure::new(
            Code::InvalidNetns,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        ));
    }
    Ok(())
}

/// Opens the container's namespace; `None` when there is none at the path.
pub fn open(path: &str) -> Result<Option<Netns>, Failure> {
    let failed = |why: String| Failure::internal(format!("failed to open netns {path:?}: {why}"));
    match Netns::open(path) {
        Ok(netns) => Ok(Some(netns)),
        Err(NetnsError::Missing { .. }) => Ok(None),
        Err(NetnsError::NotANamespace { .. }) => {
            let magic = rustix::fs::statfs(path).map_or(0, |fs| fs.f_type);
            Err(failed(format!("unknown FS magic on {path:?}: {magic:x}")))
        }
        Err(NetnsError::Refused { errno, .. }) => Err(failed(errno_text(errno))),
        Err(e) => Err(failed(e.to_string())),
    }
}

/// Opens the namespace of a container that is to go; `None` also where only an empty file is left of it, as after an unmount.
pub fn open_leftover(path: &str) -> Result<Option<Netns>, Failure> {
    match Netns::open(path) {
        Err(NetnsError::NotANamespace { .. }) => Ok(None),
        _ => open(path),
    }
}

/// The error of a namespace that has to be there and is not.
pub fn missing(path: &str) -> Failure {
    Failure::internal(format!(
        "failed to open netns {path:?}: failed to Statfs {path:?}: no such file or directory"
    ))
}

/// The calling thread's home and the container's namespace.
///
/// INVARIANT: the process has one thread, so going there and back moves nobody else.
#[derive(Debug)]
pub struct Sides {
    /// Where the plugin was started.
    pub host: Netns,
    /// The container's.
    pub pod: Netns,
}

impl Sides {
    /// Opens our own namespace beside the container's.
    pub fn new(pod: Netns) -> Result<Sides, Failure> {
        let host = Netns::current().map_err(|e| Failure::internal(e.to_string()))?;
        Ok(Sides { host, pod })
    }

    /// Works in the container's namespace and comes back.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> Result<T, Failure> {
        let failed = |e: NetnsError| Failure::internal(e.to_string());
        self.pod.enter().map_err(failed)?;
        let done = work();
        self.host.enter().map_err(failed)?;
        Ok(done)
    }
}

/// What the kernel said, without the number and with its own words where it gave any.
pub fn kernel_text(error: &kernel::NetlinkError) -> String {
    let text = io::Error::from_raw_os_error(error.errno)
        .raw_os_error()
        .map_or_else(String::new, |errno| {
            errno_text(rustix::io::Errno::from_raw_os_error(errno))
        });
    if error.text.is_empty() {
        text
    } else {
        format!("{text} ({})", error.text)
    }
}
