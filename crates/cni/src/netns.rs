//! The container's namespace: refusing our own, and working inside from the main thread.

use std::io;

use kernel::netns::{Identity, Netns, NetnsError};

use crate::call::Environment;
use crate::failure::{Code, Failure};
use crate::files::errno_text;

/// Refuses to work on our own namespace, before anything is done. A path that leads nowhere is not ours.
///
/// # Errors
///
/// Code 8.
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
///
/// # Errors
///
/// It is there and no namespace, or may not be opened.
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
///
/// # Errors
///
/// As [`open`].
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
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn new(pod: Netns) -> Result<Sides, Failure> {
        let host = Netns::current().map_err(|e| Failure::internal(e.to_string()))?;
        Ok(Sides { host, pod })
    }

    /// Works in the container's namespace and comes back.
    ///
    /// # Errors
    ///
    /// It cannot be entered or left.
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

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "/proc/self/ns/net";

    #[test]
    fn namespace_when_it_is_our_own_is_refused_unless_that_is_allowed() {
        let guarded = |netns: &str, netns_override: &str| {
            guard(&Environment {
                netns: netns.into(),
                netns_override: netns_override.into(),
                ..Environment::default()
            })
        };
        assert_eq!(guarded(OWN, "").unwrap_err().code, 8);
        assert_eq!(guarded(OWN, "0").unwrap_err().code, 8);
        for (netns, netns_override) in [(OWN, "1"), ("", ""), ("/nonexistent/ns", ""), ("/dev/null", "")] {
            assert_eq!(guarded(netns, netns_override), Ok(()), "{netns}");
        }
    }

    #[test]
    fn namespace_when_missing_is_none_and_when_it_is_none_is_refused_but_for_what_is_to_go() {
        assert!(open(OWN).unwrap().is_some() && open_leftover(OWN).unwrap().is_some());
        assert!(open("/nonexistent/ns").unwrap().is_none());
        assert!(open_leftover("/nonexistent/ns").unwrap().is_none());
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let refused = open(path).unwrap_err().msg;
        assert!(
            refused.starts_with(&format!("failed to open netns {path:?}: unknown FS magic on ")),
            "{refused}"
        );
        // As after an unmount.
        assert!(open_leftover(path).unwrap().is_none());
        assert_eq!(
            missing("/x").msg,
            "failed to open netns \"/x\": failed to Statfs \"/x\": no such file or directory"
        );
    }

    #[test]
    fn kernels_words_when_there_are_some_stand_behind_those_of_the_number() {
        let error = |text: &str| kernel::NetlinkError {
            verb: "x".into(),
            errno: rustix::io::Errno::PERM.raw_os_error(),
            text: text.into(),
            offset: None,
            fault: kernel::nl::Fault::Refused,
        };
        assert_eq!(kernel_text(&error("")), "operation not permitted");
        assert_eq!(kernel_text(&error("why")), "operation not permitted (why)");
    }

    #[test]
    fn work_when_done_inside_our_own_namespace_gives_its_answer() {
        let sides = Sides::new(open(OWN).unwrap().unwrap()).unwrap();
        assert_eq!(sides.host.identity(), sides.pod.identity());
    }
}
