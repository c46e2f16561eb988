//! One call from environment and stdin to stdout and exit status.

use std::io::{Read, Write};

use crate::call::{Call, Environment, Verb};
use crate::failure::{Code, Failure};
use crate::{bandwidth, bridge, flannel, host_local, loopback, netns, portmap, version};

/// What the executable is, by the name it was called as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// The meta plugin.
    Flannel,
    /// Links into a bridge.
    Bridge,
    /// Addresses.
    HostLocal,
    /// `lo`.
    Loopback,
    /// Ports of the host.
    Portmap,
    /// Limits of what is sent and received.
    Bandwidth,
}

impl Plugin {
    /// The plugin of a file name; any name that is not another plugin's is flannel's.
    pub fn of(program: &str) -> Plugin {
        match program.rsplit('/').next().unwrap_or_default() {
            "bridge" => Plugin::Bridge,
            "host-local" => Plugin::HostLocal,
            "loopback" => Plugin::Loopback,
            "portmap" => Plugin::Portmap,
            "bandwidth" => Plugin::Bandwidth,
            _ => Plugin::Flannel,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Plugin::Flannel => "flannel",
            Plugin::Bridge => "bridge",
            Plugin::HostLocal => "host-local",
            Plugin::Loopback => "loopback",
            Plugin::Portmap => "portmap",
            Plugin::Bandwidth => "bandwidth",
        }
    }

    /// Versions it speaks, oldest first: results without interfaces say nothing to bandwidth.
    pub fn versions(self) -> &'static [&'static str] {
        let all = &version::SUPPORTED;
        match self {
            Plugin::Bandwidth => all.get(2..).unwrap_or_default(),
            _ => all,
        }
    }

    fn about(self) -> String {
        let (name, version) = (self.name(), env!("CARGO_PKG_VERSION"));
        let commit = option_env!("FLANNEL_COMMIT").unwrap_or("unknown");
        match self {
            Plugin::Flannel => format!(
                "CNI Plugin flannel version v{version} ({}/{}) commit {commit}",
                std::env::consts::OS,
                match std::env::consts::ARCH {
                    "x86_64" => "amd64",
                    "aarch64" => "arm64",
                    other => other,
                }
            ),
            _ => format!("CNI {name} plugin v{version}"),
        }
    }

    /// Does what a checked call asks for; the text is the answer, empty where there is none.
    pub fn run(self, call: &Call) -> Result<String, Failure> {
        let print = |result: crate::result::AddResult| result.print(&call.version);
        let silent = |()| String::new();
        match (self, call.verb) {
            (Plugin::Flannel, Verb::Add) => flannel::add(call),
            (Plugin::Flannel, Verb::Del) => flannel::del(call).map(silent),
            (Plugin::Flannel, Verb::Check) => flannel::check(call).map(silent),
            (Plugin::Flannel, Verb::Gc) => flannel::gc(call).map(silent),
            (Plugin::Flannel, Verb::Status) => flannel::status(call).map(silent),
            (Plugin::Bridge, Verb::Add) => bridge::add(call, None).map_err(|e| e.failure).and_then(print),
            (Plugin::Bridge, Verb::Del) => bridge::del(call).map(silent),
            (Plugin::Bridge, Verb::Check) => bridge::check(call).map(silent),
            (Plugin::Bridge, Verb::Status) => bridge::status(call).map(silent),
            (Plugin::Bridge, Verb::Gc) => bridge::gc(call).map(silent),
            (Plugin::HostLocal, Verb::Add) => host_local::add(call).and_then(print),
            (Plugin::HostLocal, Verb::Del) => host_local::del(call).map(silent),
            (Plugin::HostLocal, Verb::Check) => host_local::check(call).map(silent),
            (Plugin::HostLocal, Verb::Status) => host_local::status(call).map(silent),
            (Plugin::HostLocal, Verb::Gc) => host_local::gc(call).map(silent),
            (Plugin::Loopback, Verb::Add) => loopback::add(call).and_then(print),
            (Plugin::Loopback, Verb::Del) => loopback::del(call).map(silent),
            (Plugin::Loopback, Verb::Check) => loopback::check(call).map(silent),
            (Plugin::Portmap, Verb::Add) => portmap::add(call).and_then(print),
            (Plugin::Portmap, Verb::Del) => portmap::del(call).map(silent),
            (Plugin::Portmap, Verb::Check) => portmap::check(call).map(silent),
            (Plugin::Portmap, Verb::Gc) => portmap::gc(call).map(silent),
            (Plugin::Bandwidth, Verb::Add) => bandwidth::add(call).and_then(print),
            (Plugin::Bandwidth, Verb::Del) => bandwidth::del(call).map(silent),
            (Plugin::Bandwidth, Verb::Check) => bandwidth::check(call).map(silent),
            (Plugin::Bandwidth, Verb::Gc) => bandwidth::gc(call).map(silent),
            _ => Ok(String::new()),
        }
    }
}

/// Runs a call; returns the exit status.
pub fn main(
    plugin: Plugin,
    env: Environment,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    if env.command.is_empty() {
        let _ = writeln!(stderr, "{}", plugin.about());
        let _ = writeln!(
            stderr,
            "CNI protocol versions supported: {}",
            plugin.versions().join(", ")
        );
        return 0;
    }
    let (text, status) = match answer(plugin, env, stdin) {
        Ok(text) => (text, 0),
        Err(failure) => (failure.to_json(), 1),
    };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => status,
        // Nobody hears the answer; the status is all that is left to say so.
        Err(_) => 1,
    }
}

fn answer(plugin: Plugin, env: Environment, stdin: &mut dyn Read) -> Result<String, Failure> {
    env.check()?;
    if env.command == Verb::Version.as_str() {
        return Ok(version::answer(plugin.versions()));
    }
    let mut config = Vec::with_capacity(4096);
    stdin
        .read_to_end(&mut config)
        .map_err(|e| Failure::new(Code::Io, format!("error reading from stdin: {e}")))?;
    let call = Call::check(env, config)?;
    version::check_supported(&call.version, plugin.versions())?;
    if matches!(call.verb, Verb::Add | Verb::Del) {
        netns::guard(&call.env)?;
    }
    plugin.run(&call)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &str, variables: &[(&str, &str)], stdin: &str) -> (u8, String, String) {
        let env = Environment::read(|name| {
            let found = variables.iter().find(|(have, _)| name == format!("CNI_{have}"));
            found.map(|(_, value)| (*value).to_owned()).unwrap_or_default()
        });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = main(
            Plugin::of(program),
            env,
            &mut stdin.as_bytes(),
            &mut out,
            &mut err,
        );
        (
            status,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }

    #[test]
    fn call_when_no_verb_is_given_tells_about_itself_and_succeeds() {
        let (status, out, err) = run("/opt/cni/bin/flannel", &[], "");
        assert_eq!((status, out.as_str()), (0, ""));
        assert!(err.starts_with("CNI Plugin flannel version v"), "{err}");
        assert!(
            err.ends_with(
                "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
            )
        );
        assert!(run("bridge", &[], "").2.starts_with("CNI bridge plugin v"));
    }

    #[test]
    fn p19_version_when_asked_answers_without_stdin() {
        struct Never;
        impl Read for Never {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                panic!("stdin is not to be read");
            }
        }
        let env = Environment {
            command: "VERSION".into(),
            netns: "dummy".into(),
            ..Environment::default()
        };
        let mut out = Vec::new();
        assert_eq!(
            main(Plugin::Flannel, env, &mut Never, &mut out, &mut Vec::new()),
            0
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            version::answer(Plugin::Flannel.versions())
        );
    }

    #[test]
    fn call_when_stdin_cannot_be_read_or_parsed_prints_one_error_object() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other("banana"))
            }
        }
        let env = Environment {
            command: "STATUS".into(),
            path: "/p".into(),
            ..Environment::default()
        };
        let mut out = Vec::new();
        assert_eq!(
            main(Plugin::Flannel, env, &mut Broken, &mut out, &mut Vec::new()),
            1
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\n    \"code\": 5,\n    \"msg\": \"error reading from stdin: banana\"\n}"
        );
        let (status, out, _) = run("flannel", &[("COMMAND", "STATUS"), ("PATH", "/p")], "{");
        assert_eq!(status, 1);
        assert!(out.contains("\"code\": 6"), "{out}");
    }

    #[test]
    fn check_when_nothing_is_known_of_the_attachment_has_nothing_to_say() {
        let env = [
            ("COMMAND", "CHECK"),
            ("CONTAINERID", "c"),
            ("NETNS", "/x"),
            ("IFNAME", "e"),
            ("PATH", "/p"),
        ];
        assert_eq!(run("flannel", &env, r#"{"name":"n","cniVersion":"0.4.0","subnetFile":"/nonexistent/x","dataDir":"/nonexistent/y"}"#).0, 0);
        assert_eq!(run("flannel", &env, r#"{"name":"n","cniVersion":"0.3.1"}"#).0, 1);
    }

    #[test]
    fn p20_status_when_subnet_env_is_missing_says_not_available() {
        let env = [("COMMAND", "STATUS"), ("PATH", "/p")];
        let stdin = r#"{"name":"n","cniVersion":"1.1.0","subnetFile":"/nonexistent/subnet.env"}"#;
        let (status, out, _) = run("flannel", &env, stdin);
        assert_eq!(status, 1);
        assert!(out.contains("\"code\": 50"), "{out}");
        assert!(out.contains("failed to load flannel 'subnet.env' file: open /nonexistent/subnet.env: no such file or directory. Check the flannel pod log for this node."), "{out}");
    }
}
