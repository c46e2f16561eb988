//! One call from environment and stdin to stdout and exit status.

use std::io::{Read, Write};

use crate::call::{Call, Environment, Verb};
use crate::failure::{Code, Failure};
use crate::host_local::{self, HOST_LOCAL};
use crate::offer::{self, Offer};
use crate::{bandwidth, bridge, flannel, loopback, netns, portmap, version};

/// Most bytes of a configuration: hundreds of times what a cluster's registry takes for all of a pod.
const MOST_STDIN: u64 = 4 << 20;
/// The executable's own name, under which it is flannel's plugin, as the first one is.
const EXECUTABLE: &str = "flannel-cni";

/// The plugins of the executable.
static ALL: [Offer; 6] = [
    Offer {
        name: "flannel",
        versions: &version::SUPPORTED,
        add: flannel::add,
        del: flannel::del::del,
        check: flannel::check,
        status: flannel::status,
        gc: flannel::gc::gc,
    },
    Offer {
        name: "bridge",
        versions: &version::SUPPORTED,
        add: |call| {
            bridge::add(call, None)
                .map_err(|e| e.failure)?
                .print(&call.version)
        },
        del: bridge::del,
        check: bridge::check,
        status: bridge::status,
        gc: bridge::gc,
    },
    Offer {
        name: HOST_LOCAL,
        versions: &version::SUPPORTED,
        add: |call| host_local::add(call)?.print(&call.version),
        del: host_local::del,
        check: host_local::check,
        status: host_local::status,
        gc: host_local::gc,
    },
    Offer {
        name: "loopback",
        versions: &version::SUPPORTED,
        add: |call| loopback::add(call)?.print(&call.version),
        del: loopback::del,
        check: loopback::check,
        status: offer::nothing,
        gc: offer::nothing,
    },
    portmap::OFFER,
    bandwidth::OFFER,
];

/// The plugin of a file name.
///
/// # Errors
///
/// It is no plugin's: what another plugin was to do is not done by flannel's.
pub fn named(program: &str) -> Result<&'static Offer, Failure> {
    let name = program.rsplit('/').next().unwrap_or_default();
    let [flannel, ..] = &ALL;
    if name == EXECUTABLE {
        return Ok(flannel);
    }
    let found = ALL.iter().find(|offer| offer.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|offer| offer.name).collect();
        Failure::new(
            Code::InvalidEnvironment,
            format!(
                "called as {name:?}: this executable is the plugin it is called as, one of {}",
                names.join(", ")
            ),
        )
    })
}

fn about(plugin: &Offer) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("FLANNEL_COMMIT").unwrap_or("unknown");
    match plugin.name {
        "flannel" => format!(
            "CNI Plugin flannel version v{version} ({}/{}) commit {commit}",
            std::env::consts::OS,
            match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
        ),
        name => format!("CNI {name} plugin v{version}"),
    }
}

/// Runs a call; returns the exit status.
pub fn main(
    plugin: Result<&Offer, Failure>,
    env: Environment,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let plugin = match plugin {
        Ok(plugin) => plugin,
        Err(failure) if env.command.is_empty() => {
            let _ = writeln!(stderr, "{failure}");
            return 1;
        }
        Err(failure) => {
            let _ = stdout.write_all(failure.to_json().as_bytes());
            return 1;
        }
    };
    if env.command.is_empty() {
        let _ = writeln!(stderr, "{}", about(plugin));
        let _ = writeln!(
            stderr,
            "CNI protocol versions supported: {}",
            plugin.versions.join(", ")
        );
        return 0;
    }
    let (text, status, added) = match answer(plugin, env, stdin) {
        Ok((text, call)) => (text, 0, call.filter(|call| call.verb == Verb::Add)),
        Err(failure) => (failure.to_json(), 1, None),
    };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => status,
        // Nobody hears the answer; the status is all that is left to say so. An ADD whose result is lost has failed, and a failed
        // one leaves nothing that its repetition would stumble over.
        Err(_) => {
            if let Some(call) = added {
                let _ = plugin.run(&call.with_verb(Verb::Del));
            }
            1
        }
    }
}

/// What is to be printed, and the call it answers.
fn answer(plugin: &Offer, env: Environment, stdin: &mut dyn Read) -> Result<(String, Option<Call>), Failure> {
    env.check()?;
    if env.command == Verb::Version.as_str() {
        return Ok((version::answer(plugin.versions), None));
    }
    let unread = |why: String| Failure::new(Code::Io, format!("error reading from stdin: {why}"));
    let mut config = Vec::with_capacity(4096);
    let mut bounded = stdin.take(MOST_STDIN + 1);
    bounded
        .read_to_end(&mut config)
        .map_err(|e| unread(e.to_string()))?;
    if config.len() as u64 > MOST_STDIN {
        let most = MOST_STDIN >> 20;
        return Err(unread(format!("a configuration of more than {most} MiB")));
    }
    let call = Call::check(env, config)?;
    version::check_supported(&call.version, plugin.versions)?;
    if matches!(call.verb, Verb::Add | Verb::Del) {
        netns::guard(&call.env)?;
    }
    let text = plugin.run(&call)?;
    Ok((text, Some(call)))
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
        let status = main(named(program), env, &mut stdin.as_bytes(), &mut out, &mut err);
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
            main(named("flannel"), env, &mut Never, &mut out, &mut Vec::new()),
            0
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            version::answer(named("flannel").unwrap().versions)
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
            main(named("flannel"), env, &mut Broken, &mut out, &mut Vec::new()),
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
    fn call_when_its_name_is_no_plugins_is_refused_with_the_names_there_are() {
        let names = "one of flannel, bridge, host-local, loopback, portmap, bandwidth";
        for name in ["/opt/cni/bin/macvlan", "flannel2", "Flannel", ""] {
            let (status, out, err) = run(name, &[("COMMAND", "ADD")], "{}");
            assert_eq!((status, err.as_str()), (1, ""), "{name}");
            assert!(out.contains("\"code\": 4") && out.contains(names), "{out}");
            let (status, out, err) = run(name, &[], "");
            assert_eq!((status, out.as_str()), (1, ""), "{name}");
            assert!(err.contains(names), "{err}");
        }
        assert_eq!(named("/x/flannel-cni").unwrap().name, "flannel");
    }

    #[test]
    fn configuration_when_it_has_no_end_is_refused() {
        let env = Environment {
            command: "STATUS".into(),
            path: "/p".into(),
            ..Environment::default()
        };
        let mut out = Vec::new();
        let mut endless = std::io::repeat(b' ');
        assert_eq!(
            main(named("flannel"), env, &mut endless, &mut out, &mut Vec::new()),
            1
        );
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains("\"code\": 5") && out.contains("more than 4 MiB"),
            "{out}"
        );
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
