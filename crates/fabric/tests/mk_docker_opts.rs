//! `scripts/mk-docker-opts.sh` through real shells: `/bin/sh` and `bash --posix`, output compared byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.74.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
";
const EACH: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"
DOCKER_OPT_IPMASQ=\"--ip-masq=true\"
DOCKER_OPT_MTU=\"--mtu=1472\"
";
const ALL: &str = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";
const SHELLS: [&[&str]; 2] = [&["/bin/sh"], &["bash", "--posix"]];

/// A folder with the script's input and output, and a `bin` that comes first in `PATH`.
struct Bench {
    folder: tempfile::TempDir,
    shell: &'static [&'static str],
}

struct Run {
    code: Option<i32>,
    errors: String,
    /// The output file, where there is one.
    out: Option<String>,
}

impl Bench {
    fn each() -> impl Iterator<Item = Bench> {
        SHELLS.into_iter().map(|shell| {
            let bench = Bench {
                folder: tempfile::tempdir().unwrap(),
                shell,
            };
            fs::create_dir(bench.path("bin")).unwrap();
            bench.ip("default via 192.0.2.1 dev eth0");
            bench.write("subnet.env", ENV);
            bench
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Makes `ip route show` print these lines.
    fn ip(&self, routes: &str) {
        let script = format!("#!/bin/sh\n[ \"$*\" = 'route show' ] || exit 2\ncat <<'END'\n{routes}\nEND\n");
        self.write("bin/ip", &script);
        fs::set_permissions(self.path("bin/ip"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Run {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/mk-docker-opts.sh");
        let path = format!(
            "{}:{}",
            self.path("bin").display(),
            std::env::var("PATH").unwrap()
        );
        let output = Command::new(self.shell[0])
            .args(&self.shell[1..])
            .arg(script)
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", path)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "",
            "nothing is for stdout"
        );
        Run {
            code: output.status.code(),
            errors: String::from_utf8(output.stderr).unwrap(),
            out: fs::read_to_string(self.path("out")).ok(),
        }
    }

    /// Runs with `-f subnet.env -d out` and further options; the output.
    fn convert(&self, options: &[&str], environment: &[(&str, &str)]) -> String {
        let run = self.run(
            &[&["-f", "./subnet.env", "-d", "out"], options].concat(),
            environment,
        );
        assert_eq!(
            (run.code, run.errors.as_str()),
            (Some(0), ""),
            "{:?} {options:?}",
            self.shell
        );
        run.out.unwrap()
    }
}

#[test]
fn output_when_options_choose_the_form_is_byte_for_byte_the_documented_one() {
    for bench in Bench::each() {
        let custom = ALL.replace("DOCKER_OPTS", "CUSTOM_KEY");
        let unmasked = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\nDOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n";
        for (options, expected) in [
            (&[][..], format!("{EACH}{ALL}")),
            (&["-i"], EACH.to_owned()),
            (&["-c"], ALL.to_owned()),
            (&["-i", "-c"], format!("{EACH}{ALL}")),
            (&["-k", "CUSTOM_KEY"], format!("{EACH}{custom}")),
            (&["-k", "X", "-kCUSTOM_KEY"], format!("{EACH}{custom}")),
            (&["-m"], unmasked.to_owned()),
            (&["-c", "ignored", "-i"], ALL.to_owned()),
        ] {
            assert_eq!(
                bench.convert(options, &[]),
                expected,
                "{:?} {options:?}",
                bench.shell
            );
        }
    }
}

#[test]
fn input_when_it_is_no_file_is_taken_for_missing_and_output_that_cannot_be_written_is_an_error() {
    for bench in Bench::each() {
        fs::remove_file(bench.path("subnet.env")).unwrap();
        let made = Command::new("mkfifo").arg(bench.path("fifo")).status().unwrap();
        assert!(made.success());
        for input in ["./subnet.env", "./fifo", "./bin", "/dev/zero"] {
            let run = bench.run(&["-c", "-f", input, "-d", "out"], &[]);
            let out = run.out.as_deref();
            assert_eq!((run.code, out), (Some(0), Some("DOCKER_OPTS=\"\"\n")), "{input}");
        }
        bench.write("subnet.env", ENV);
        for output in ["/dev/full", "./bin", "./absent/out"] {
            let run = bench.run(&["-c", "-f", "./subnet.env", "-d", output], &[]);
            assert_eq!(run.code, Some(1), "{output}");
            assert!(!run.errors.is_empty(), "{output}");
        }
    }
}

#[test]
fn output_when_variables_are_inherited_carries_them_on() {
    for bench in Bench::each() {
        let inherited = bench.convert(&["-c"], &[("DOCKER_OPTS", "--debug")]);
        assert_eq!(inherited, ALL.replace("\" ", "\"--debug  "));
        let foo = bench.convert(&["-i"], &[("DOCKER_OPT_FOO", "--foo=1")]);
        assert_eq!(
            foo,
            EACH.replace(
                "DOCKER_OPT_IPMASQ",
                "DOCKER_OPT_FOO=\"--foo=1\"\nDOCKER_OPT_IPMASQ"
            )
        );
        bench.write(
            "subnet.env",
            &format!("{ENV}DOCKER_OPT_ZED=--zed\nDOCKER_OPTS=--here\n"),
        );
        let from_file = bench.convert(&[], &[]);
        assert_eq!(
            from_file,
            format!(
                "{EACH}DOCKER_OPT_ZED=\"--zed\"\n{}",
                ALL.replace("\" ", "\"--here  ").replace("1472\"", "1472 --zed\"")
            )
        );
    }
}

#[test]
fn output_when_values_hold_blanks_quotes_or_lines_sources_back_unchanged() {
    let awkward = "--label=\"a b\" $HOME `x` \\\nDOCKER_OPT_FAKE=1";
    for bench in Bench::each() {
        let out = bench.convert(
            &["-i"],
            &[("DOCKER_OPT_A", awkward), ("NOTE", "x\nDOCKER_OPT_NOT=1")],
        );
        assert!(!out.contains("DOCKER_OPT_NOT"), "{out}");
        let read = Command::new("/bin/sh")
            .args(["-c", ". ./out; printf %s \"$DOCKER_OPT_A\""])
            .current_dir(bench.folder.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(read.stdout).unwrap(), awkward, "{out}");
    }
}

#[test]
fn output_when_input_is_missing_or_only_ipv6_holds_what_there_is() {
    for bench in Bench::each() {
        let run = bench.run(&["-f", "nowhere/subnet.env", "-d", "out"], &[]);
        assert_eq!(
            (run.code, run.out.as_deref()),
            (Some(0), Some("DOCKER_OPTS=\"\"\n"))
        );
        let run = bench.run(&["-f", "nowhere/subnet.env", "-d", "out", "-i"], &[]);
        assert_eq!((run.code, run.out.as_deref()), (Some(0), Some("")));
        bench.write(
            "subnet.env",
            "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n",
        );
        assert_eq!(
            bench.convert(&[], &[]),
            "DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1430\"\nDOCKER_OPTS=\" --ip-masq=false --mtu=1430\"\n"
        );
        let run = bench.run(&["-f", "subnet.env", "-d", "out", "-c"], &[]);
        assert_eq!(
            run.out.as_deref(),
            Some("DOCKER_OPTS=\" --ip-masq=false --mtu=1430\"\n"),
            "a bare name is a file here"
        );
    }
}

#[test]
fn output_when_it_is_the_input_file_can_be_written_again_and_again() {
    for bench in Bench::each() {
        let arguments = [
            "-k",
            "DOCKER_NETWORK_OPTIONS",
            "-f",
            "./subnet.env",
            "-d",
            "./subnet.env",
        ];
        let expected = format!("{EACH}{}", ALL.replace("DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS"));
        for time in 1..=3 {
            let run = bench.run(&arguments, &[]);
            assert_eq!((run.code, run.errors.as_str()), (Some(0), ""));
            assert_eq!(
                fs::read_to_string(bench.path("subnet.env")).unwrap(),
                expected,
                "time {time}"
            );
        }
        // The daemon puts its own keys back in front of what the script wrote.
        bench.write("subnet.env", &format!("{ENV}{expected}"));
        bench.run(&arguments, &[]);
        assert_eq!(fs::read_to_string(bench.path("subnet.env")).unwrap(), expected);
    }
}

#[test]
fn script_when_misused_prints_usage_and_touches_nothing() {
    for bench in Bench::each() {
        for arguments in [
            &["-h"][..],
            &["-?"],
            &["-x"],
            &["-f"],
            &["-d", "out", "-k"],
            &["-d", "out", "-k", "A-B"],
        ] {
            let run = bench.run(arguments, &[]);
            assert_eq!((run.code, run.out), (Some(1), None), "{arguments:?}");
            let expected = if arguments.contains(&"A-B") {
                "expected the name of a variable"
            } else {
                "usage: mk-docker-opts.sh"
            };
            assert!(run.errors.contains(expected), "{arguments:?}: {}", run.errors);
        }
    }
}

#[test]
fn script_when_ipmasq_is_neither_true_nor_false_refuses_before_writing() {
    for bench in Bench::each() {
        bench.write("subnet.env", &ENV.replace("false", "maybe"));
        let run = bench.run(&["-f", "./subnet.env", "-d", "out"], &[]);
        assert_eq!((run.code, run.out), (Some(1), None));
        assert!(
            run.errors
                .contains("FLANNEL_IPMASQ is 'maybe': expected true or false"),
            "{}",
            run.errors
        );
        assert!(
            !bench.convert(&["-m"], &[]).contains("masq"),
            "with -m the value is not looked at"
        );
    }
}

#[test]
fn script_when_the_output_cannot_be_written_fails() {
    for bench in Bench::each() {
        let run = bench.run(&["-f", "./subnet.env", "-d", "nowhere/out"], &[]);
        assert_eq!(run.code, Some(1));
        assert!(run.errors.contains("nowhere/out"), "{}", run.errors);
    }
}

#[test]
fn script_when_another_host_routes_the_subnet_writes_and_fails() {
    for bench in Bench::each() {
        bench.ip("default via 192.0.2.1 dev eth0\n10.1.74.0/24 via 192.0.2.7 dev eth0");
        let run = bench.run(&["-f", "./subnet.env", "-d", "out"], &[]);
        assert_eq!((run.code, run.out), (Some(1), Some(format!("{EACH}{ALL}"))));
        assert!(
            run.errors.contains("10.1.74.0/24 is routed to another host"),
            "{}",
            run.errors
        );
        for harmless in [
            "10.1.74.0/24 dev docker0 proto kernel scope link src 10.1.74.1",
            "10.1.75.0/24 via 10.1.75.0 dev flannel.1 onlink",
            "110.1.74.0/24 via 192.0.2.7 dev eth0",
            "10.1.74.0/24 dev via0 scope link",
        ] {
            bench.ip(harmless);
            assert_eq!(
                bench.run(&["-f", "./subnet.env", "-d", "out"], &[]).code,
                Some(0),
                "{harmless}"
            );
        }
    }
}
