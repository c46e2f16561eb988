//! Telling the service manager how things stand (`sd_notify(3)`): readiness, status line, watchdog, reload, stop.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// One thing to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice<'a> {
    /// `READY=1`: start, or reload, is complete.
    Ready,
    /// `STATUS=`: one line for `systemctl status`.
    Status(&'a str),
    /// `EXTEND_TIMEOUT_USEC=`: start or stop takes up to this much longer.
    ExtendTimeout(Duration),
    /// `WATCHDOG=1`: alive.
    Watchdog,
    /// `STOPPING=1`.
    Stopping,
    /// `RELOADING=1` with the moment it began, as `Type=notify-reload` wants it.
    Reloading,
    /// `MAINPID=`: this process is the service from now on.
    MainPid(u32),
}

impl Notice<'_> {
    fn line(&self) -> String {
        match self {
            Notice::Ready => "READY=1".into(),
            Notice::Status(text) => {
                // A newline would begin another assignment.
                let one_line = text.replace(|c: char| c.is_control(), " ");
                format!("STATUS={one_line}")
            }
            Notice::ExtendTimeout(time) => format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()),
            Notice::Watchdog => "WATCHDOG=1".into(),
            Notice::Stopping => "STOPPING=1".into(),
            Notice::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros()),
            Notice::MainPid(pid) => format!("MAINPID={pid}"),
        }
    }
}

/// Microseconds of `CLOCK_MONOTONIC`, which the manager compares with its own.
fn monotonic_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// The way to the service manager; without one, everything is said into the air.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Takes `NOTIFY_SOCKET` (a path, or an abstract name after `@`), `WATCHDOG_USEC` and `WATCHDOG_PID` from the
    /// environment; `pid` is this process.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> io::Result<Notifier> {
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Notifier::default());
        };
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(&name)?,
            _ => {
                let text = format!(
                    "NOTIFY_SOCKET={:?}: expected a path or an abstract name after @",
                    name
                );
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not listen must not hold the daemon.
        socket.set_nonblocking(true)?;
        let number = |name| variable(name).and_then(|value| value.to_str()?.parse::<u64>().ok());
        // Set for another process (a wrapper that started us), it is not meant for us.
        let ours = number("WATCHDOG_PID").is_none_or(|meant| meant == u64::from(pid));
        let watchdog = number("WATCHDOG_USEC")
            .filter(|micros| ours && *micros > 0)
            .map(Duration::from_micros);
        Ok(Notifier {
            socket: Some((socket, address)),
            watchdog,
        })
    }

    /// Whether there is a service manager to talk to.
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// The longest time between two [`Notice::Watchdog`]: half of what the manager allows. `None` when it does not watch.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Says several things at once. Does not wait: a manager that has no room for it at the moment is an error
    /// ([`io::ErrorKind::WouldBlock`]), and it is to be said again.
    pub fn tell(&self, notices: &[Notice<'_>]) -> io::Result<()> {
        let Some((socket, address)) = &self.socket else {
            return Ok(());
        };
        let lines: Vec<String> = notices.iter().map(Notice::line).collect();
        let text = lines.join("\n");
        socket.send_to_addr(text.as_bytes(), address).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(set: &[(&str, String)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| {
            set.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value.into())
        }
    }

    fn received(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer.get(..length).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn tell_when_the_socket_is_a_path_arrives_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let set = [("NOTIFY_SOCKET", path.to_str().unwrap().to_owned())];
        let notifier = Notifier::from_environment(variables(&set), 1).unwrap();
        assert!(notifier.is_heard() && notifier.watchdog_period().is_none());
        notifier
            .tell(&[Notice::Ready, Notice::Status("two\nlines")])
            .unwrap();
        assert_eq!(received(&manager), "READY=1\nSTATUS=two lines");
        notifier
            .tell(&[
                Notice::ExtendTimeout(Duration::from_secs(30)),
                Notice::MainPid(7),
                Notice::Stopping,
            ])
            .unwrap();
        assert_eq!(
            received(&manager),
            "EXTEND_TIMEOUT_USEC=30000000\nMAINPID=7\nSTOPPING=1"
        );
    }

    #[test]
    fn tell_when_the_socket_is_abstract_arrives_there() {
        let name = format!("flanneld-notify-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let set = [
            ("NOTIFY_SOCKET", format!("@{name}")),
            ("WATCHDOG_USEC", "6000000".to_owned()),
            ("WATCHDOG_PID", "42".to_owned()),
        ];
        let notifier = Notifier::from_environment(variables(&set), 42).unwrap();
        assert_eq!(notifier.watchdog_period(), Some(Duration::from_secs(3)));
        notifier.tell(&[Notice::Watchdog]).unwrap();
        assert_eq!(received(&manager), "WATCHDOG=1");
        let others = Notifier::from_environment(variables(&set), 43).unwrap();
        assert_eq!(
            others.watchdog_period(),
            None,
            "the watchdog is another process's"
        );
    }

    #[test]
    fn tell_when_reloading_gives_a_moment_of_the_monotonic_clock() {
        let name = format!("flanneld-reload-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let set = [("NOTIFY_SOCKET", format!("@{name}"))];
        let before = monotonic_micros();
        Notifier::from_environment(variables(&set), 1)
            .unwrap()
            .tell(&[Notice::Reloading])
            .unwrap();
        let text = received(&manager);
        let micros: u64 = text
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap()
            .parse()
            .unwrap();
        assert!((before..=monotonic_micros()).contains(&micros), "{text}");
    }

    #[test]
    fn tell_when_nobody_listens_says_nothing_or_fails_cleanly() {
        assert!(
            Notifier::from_environment(variables(&[]), 1)
                .unwrap()
                .tell(&[Notice::Ready])
                .is_ok()
        );
        let gone = [("NOTIFY_SOCKET", "/nonexistent/notify".to_owned())];
        assert!(
            Notifier::from_environment(variables(&gone), 1)
                .unwrap()
                .tell(&[Notice::Ready])
                .is_err()
        );
        let odd = [("NOTIFY_SOCKET", "vsock:2:1".to_owned())];
        assert!(Notifier::from_environment(variables(&odd), 1).is_err());
    }
}
