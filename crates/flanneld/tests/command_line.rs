//! Whole command lines: those of the documents users come from, and those that must be refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use flanneld::flags::{CommandLine, EtcdApi, RegistryOptions, Start, TABLE, command_line};
use proptest::prelude::*;

fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> CommandLine {
    let arguments = std::iter::once("flanneld")
        .chain(arguments.iter().copied())
        .map(OsString::from);
    let variable = |name: &str| {
        variables
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| OsString::from(v))
    };
    command_line(arguments, variable, "1.2.3")
}

fn started(arguments: &[&str]) -> Start {
    match start_with(arguments, &[]) {
        CommandLine::Run(start) => *start,
        CommandLine::Exit { text, .. } => panic!("{arguments:?} refused: {text}"),
    }
}

fn refused(arguments: &[&str]) -> String {
    match start_with(arguments, &[]) {
        CommandLine::Exit { code: 2, text } => {
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 2, "{text}");
            assert_eq!(lines[1], "Usage: flanneld [OPTION]... (--help lists them)");
            lines[0].to_owned()
        }
        other => panic!("{arguments:?} not refused: {other:?}"),
    }
}

/// What systemd makes of
/// `FLANNEL_OPTIONS=" --etcd-endpoints=… \⏎--etcd-ca-file=… "` and `ExecStart=flanneld --ip-masq ${FLANNEL_OPTIONS}`.
const ONE_ARGUMENT: &str = " --etcd-endpoints=https://10.211.55.100:2379,https://10.211.55.101:2379,https://10.211.55.102:2379 \
--etcd-ca-file=/opt/etcd/ssl/ca.pem \
--etcd-cert-file=/opt/etcd/ssl/server.pem \
--etcd-key-file=/opt/etcd/ssl/server-key.pem ";

#[test]
fn unit_with_braces_when_started_runs_on_defaults_and_names_what_it_ignored() {
    let start = started(&["--ip-masq", ONE_ARGUMENT]);
    assert!(start.options.masquerade);
    let endpoints: Vec<String> = start
        .options
        .registry
        .etcd()
        .unwrap()
        .endpoints
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(start.warnings.len(), 1);
    let warning = &start.warnings[0];
    for part in [
        "--etcd-endpoints,",
        "--etcd-ca-file (no such flag; did you mean --etcd-cafile?)",
        "--etcd-cert-file (no such flag; did you mean --etcd-certfile?)",
        "--etcd-key-file (no such flag; did you mean --etcd-keyfile?)",
        "$FLANNEL_OPTIONS without braces",
    ] {
        assert!(warning.contains(part), "{part} not in: {warning}");
    }
    assert!(!warning.contains('\n'));
}

#[test]
fn unit_with_braces_and_no_leading_blank_when_started_says_the_cure() {
    let line = refused(&["--ip-masq", ONE_ARGUMENT.trim_start()]);
    assert!(line.starts_with("invalid --etcd-endpoints: "), "{line}");
    assert!(line.contains("not ${FLANNEL_OPTIONS}"), "{line}");
    let line = refused(&["--ip-masq --etcd-prefix=/x"]);
    assert!(line.contains("not ${FLANNEL_OPTIONS}"), "{line}");
}

#[test]
fn unit_without_braces_when_flags_are_misspelt_names_the_right_ones() {
    let words: Vec<&str> = ["--ip-masq"]
        .into_iter()
        .chain(ONE_ARGUMENT.split_whitespace())
        .collect();
    let line = refused(&words);
    assert_eq!(
        line,
        "flag provided but not defined: -etcd-ca-file (did you mean --etcd-cafile?)"
    );
}

#[test]
fn unit_with_single_dashes_when_started_means_what_it_says() {
    let start = started(&[
        "-etcd-cafile=/etc/kubernetes/cert/ca.pem",
        "-etcd-certfile=/etc/flanneld/cert/flanneld.pem",
        "-etcd-keyfile=/etc/flanneld/cert/flanneld-key.pem",
        "-etcd-endpoints=https://172.24.8.71:2379,https://172.24.8.72:2379,https://172.24.8.73:2379",
        "-etcd-prefix=/kubernetes/network",
        "-iface=eth0",
        "-ip-masq",
    ]);
    assert!(start.warnings.is_empty() && start.errors.is_empty());
    let etcd = start.options.registry.etcd().unwrap();
    assert_eq!(etcd.prefix, "/kubernetes/network");
    assert_eq!(etcd.endpoints[2].to_string(), "https://172.24.8.73:2379");
    assert_eq!(
        etcd.cafile.as_deref().unwrap().to_str(),
        Some("/etc/kubernetes/cert/ca.pem")
    );
    let client = etcd.client.as_ref().unwrap();
    assert_eq!(client.certfile.to_str(), Some("/etc/flanneld/cert/flanneld.pem"));
    assert_eq!(
        client.keyfile.to_str(),
        Some("/etc/flanneld/cert/flanneld-key.pem")
    );
    assert_eq!(start.options.interface.iface, ["eth0"]);
    assert!(start.options.masquerade);
}

#[test]
fn leftovers_when_a_boolean_was_given_a_word_name_the_cure() {
    let start = started(&["--ip-masq", "false", "--healthz-port=9"]);
    assert!(start.options.masquerade && start.options.health.is_none());
    assert_eq!(
        start.warnings,
        ["ignored: --healthz-port; a boolean flag takes its value after =: write --ip-masq=false"]
    );
    assert_eq!(started(&["--ip-masq", "--"]).warnings, Vec::<String>::new());
    assert_eq!(
        started(&["--", "-v=3"]).warnings,
        ["ignored: --v; flags after -- are not read"]
    );
    assert_eq!(started(&["x", "y"]).warnings.len(), 1);
}

#[test]
fn options_when_nothing_is_given_are_the_defaults_of_the_reference() {
    let options = started(&[]).options;
    assert_eq!(options.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(options.renew_margin, Duration::from_secs(3600));
    assert_eq!(options.firewall_resync, Duration::from_secs(5));
    assert!(!options.masquerade && options.forward_rules && options.fully_random);
    assert!(options.health.is_none() && options.registry.etcd().unwrap().credentials.is_none());
    assert_eq!(options.registry.etcd().unwrap().prefix, "/coreos.com/network");
}

#[test]
fn values_when_out_of_range_are_refused_with_value_and_expectation() {
    for (argument, name, expected) in [
        (
            "--subnet-lease-renew-margin=0",
            "subnet-lease-renew-margin",
            "1 to 1439",
        ),
        (
            "--subnet-lease-renew-margin=1440",
            "subnet-lease-renew-margin",
            "1 to 1439",
        ),
        (
            "--subnet-lease-renew-margin=-5",
            "subnet-lease-renew-margin",
            "1 to 1439",
        ),
        ("--iptables-resync=0", "iptables-resync", "seconds from 1"),
        ("--iptables-resync=-3", "iptables-resync", "seconds from 1"),
        ("--healthz-port=65536", "healthz-port", "65535"),
        ("--public-ip=fd00::1", "public-ip", "IPv4"),
        ("--public-ip=10.0.0.300", "public-ip", "IPv4"),
        ("--public-ip=0.0.0.0", "public-ip", "IPv4"),
        ("--public-ipv6=10.0.0.1", "public-ipv6", "IPv6"),
        ("--public-ipv6=::ffff:10.0.0.1", "public-ipv6", "IPv6"),
        ("--iface-can-reach=router", "iface-can-reach", "IP address"),
        ("--etcd-endpoints=", "etcd-endpoints", "at least one"),
        ("--etcd-endpoints=ftp://x", "etcd-endpoints", "http"),
        ("--subnet-file=", "subnet-file", "path of a file"),
        ("--subnet-file=/run/", "subnet-file", "path of a file"),
        ("--etcd-api=v4", "etcd-api", "auto or v3 or v2"),
        ("--healthz-ip=a b", "healthz-ip", "IP address"),
    ] {
        let needed = if argument.contains("healthz-ip") {
            vec!["--healthz-port=1", argument]
        } else {
            vec![argument]
        };
        let line = refused(&needed);
        let value = argument.split_once('=').unwrap().1;
        for part in [name, expected, value] {
            assert!(line.contains(part), "{part:?} not in {line}");
        }
    }
}

#[test]
fn values_when_of_another_form_are_refused_with_what_was_expected() {
    for (argument, line) in [
        (
            "-v=much",
            "invalid value \"much\" for flag -v: invalid syntax (expected a whole number, such as 0)",
        ),
        (
            "--healthz-port=http",
            "invalid value \"http\" for flag -healthz-port: parse error (expected a whole number, such as 0)",
        ),
        (
            "--ip-masq=yes",
            "invalid boolean value \"yes\" for -ip-masq: parse error (expected true or false)",
        ),
    ] {
        assert_eq!(refused(&[argument]), line);
    }
    for pattern in ["[", "(eth", "(?=e)"] {
        let line = refused(&["--iface-regex=eth.*", &format!("--iface-regex={pattern}")]);
        assert!(
            line.starts_with(&format!(
                "invalid --iface-regex=\"{pattern}\": expected a regular expression: "
            )),
            "{line}"
        );
    }
    started(&["--iface-regex=", "--iface-regex=^eth[0-9]+$"]);
}

#[test]
fn etcd_api_when_given_is_the_one_and_else_it_is_found_out() {
    for (arguments, api) in [
        (&[][..], EtcdApi::Auto),
        (&["--etcd-api=auto"][..], EtcdApi::Auto),
        (&["--etcd-api", "v2"][..], EtcdApi::V2),
        (&["-etcd-api=v3"][..], EtcdApi::V3),
    ] {
        let registry = started(arguments).options.registry;
        assert_eq!(registry.etcd().unwrap().api, api, "{arguments:?}");
    }
}

#[test]
fn flags_when_their_feature_is_not_built_are_refused_only_when_they_ask_for_it() {
    let line = refused(&["--ip-blackhole-route"]);
    assert!(
        line.contains("not built yet") && line.contains("--ip-blackhole-route"),
        "{line}"
    );
    started(&["--ip-blackhole-route=0"]);
    let CommandLine::Exit { code: 2, text } = start_with(&[], &[("FLANNELD_IP_BLACKHOLE_ROUTE", "true")])
    else {
        panic!("not refused");
    };
    assert!(
        text.starts_with("FLANNELD_IP_BLACKHOLE_ROUTE=\"true\": "),
        "{text}"
    );
}

#[test]
fn kubernetes_when_asked_for_is_the_registry_and_its_flags_count_only_then() {
    let kube = |arguments: &[&str]| {
        let start = started(&[&["--kube-subnet-mgr"], arguments].concat());
        match start.options.registry {
            RegistryOptions::Kube(kube) => (kube, start.warnings),
            RegistryOptions::Etcd(_) => panic!("etcd"),
        }
    };
    let (defaults, warnings) = kube(&[]);
    assert_eq!((defaults.url, defaults.kubeconfig), (None, None));
    assert_eq!(defaults.prefix.to_string(), "flannel.alpha.coreos.com/");
    assert_eq!(defaults.config, Path::new("/etc/kube-flannel/net-conf.json"));
    assert!(defaults.sets_condition && warnings.is_empty(), "{warnings:?}");
    let (given, warnings) = kube(&[
        "--kube-api-url=https://[fd00::1]:6443",
        "--kubeconfig-file=/k",
        "--kube-annotation-prefix=example.org/net2",
        "--net-config-path=/n",
        "--set-node-network-unavailable=false",
        "--etcd-prefix=/x",
    ]);
    assert_eq!(given.url.as_deref(), Some("https://[fd00::1]:6443"));
    assert_eq!(given.kubeconfig.as_deref(), Some(Path::new("/k")));
    assert_eq!(given.prefix.to_string(), "example.org/net2-");
    assert_eq!(given.config, Path::new("/n"));
    assert!(!given.sets_condition);
    assert_eq!(warnings, ["--etcd-prefix has no effect with --kube-subnet-mgr"]);
    for (argument, words) in [
        (
            "--kube-api-url=x:1",
            "invalid --kube-api-url=\"x:1\": expected http:// or https:// and a host",
        ),
        (
            "--kube-annotation-prefix=",
            "invalid --kube-annotation-prefix=\"\": expected a domain",
        ),
        (
            "--net-config-path=",
            "invalid --net-config-path=\"\": expected the path of a file",
        ),
    ] {
        let line = refused(&["--kube-subnet-mgr", argument]);
        assert!(line.starts_with(words), "{line}");
    }
    let start = started(&["--kubeconfig-file=/k", "--kube-subnet-mgr=false"]);
    assert!(start.options.registry.etcd().is_some());
    assert_eq!(
        start.warnings,
        ["--kubeconfig-file has no effect without --kube-subnet-mgr"]
    );
}

#[test]
fn environment_when_values_are_bad_keeps_the_defaults_and_names_every_one() {
    let CommandLine::Run(start) = start_with(
        &["-v=2"],
        &[
            ("FLANNELD_HEALTHZ_PORT", "http"),
            ("FLANNELD_IP_MASQ", "yes"),
            ("FLANNELD_ETCD_PREFIX", "/x"),
            ("FLANNELD_V", "9"),
            ("FLANNELD_VERSION", "true"),
        ],
    ) else {
        panic!("refused");
    };
    assert_eq!(start.errors.len(), 2, "{:?}", start.errors);
    assert!(
        start
            .errors
            .iter()
            .any(|e| e.contains("FLANNELD_IP_MASQ") && e.contains("\"yes\""))
    );
    assert!(
        start
            .errors
            .iter()
            .any(|e| e.contains("FLANNELD_HEALTHZ_PORT") && e.contains("\"http\""))
    );
    assert_eq!(start.options.registry.etcd().unwrap().prefix, "/x");
    assert_eq!(start.options.verbosity, 2);
    assert!(!start.options.masquerade);
}

#[test]
fn help_and_version_when_asked_for_end_with_zero() {
    for argument in ["-h", "--help", "-help"] {
        let CommandLine::Exit { code: 0, text } = start_with(&[argument], &[]) else {
            panic!("{argument}")
        };
        assert!(text.starts_with("Usage: flanneld [OPTION]...\n"), "{text}");
        for flag in TABLE {
            assert!(
                text.contains(&format!("-{}", flag.name)),
                "{} is not in the usage",
                flag.name
            );
        }
    }
    for arguments in [
        &["--version"][..],
        &["-version", "--kube-subnet-mgr"],
        &["--version", "rest"],
    ] {
        let CommandLine::Exit { code: 0, text } = start_with(arguments, &[]) else {
            panic!("{arguments:?}")
        };
        assert_eq!(text, "1.2.3\n");
    }
    let CommandLine::Exit { code: 2, text } = start_with(&["--version", "--nonsense"], &[]) else {
        panic!()
    };
    assert!(
        text.starts_with("flag provided but not defined: -nonsense\nUsage: flanneld"),
        "{text}"
    );
}

#[test]
fn secrets_when_options_are_printed_do_not_show() {
    let start = started(&["--etcd-username=u", "--etcd-password=hunter2"]);
    assert_eq!(
        start
            .options
            .registry
            .etcd()
            .unwrap()
            .credentials
            .as_ref()
            .unwrap()
            .password
            .reveal(),
        "hunter2"
    );
    assert!(!format!("{start:?}").contains("hunter2"));
    let line = refused(&["--etcd-endpoints=http://root:hunter2@h:1"]);
    assert!(
        !line.contains("hunter2") && line.contains("--etcd-password"),
        "{line}"
    );
}

#[test]
fn halves_when_given_without_their_other_half_are_warned_about() {
    assert_eq!(started(&["--etcd-certfile=/c"]).warnings.len(), 1);
    assert_eq!(started(&["--etcd-password=p"]).warnings.len(), 1);
    assert_eq!(
        started(&["--etcd-cafile=/c"]).warnings.len(),
        1,
        "a CA for http:// endpoints only"
    );
    assert!(
        started(&["--etcd-cafile=/c", "--etcd-endpoints=https://h:1"])
            .warnings
            .is_empty()
    );
    assert!(
        started(&["--etcd-cafile=/c", "--etcd-endpoints=h:1"])
            .options
            .registry
            .etcd()
            .unwrap()
            .endpoints[0]
            .tls
    );
    assert_eq!(
        started(&["--vmodule=a=1", "--log_backtrace_at=a.go:1"])
            .warnings
            .len(),
        2
    );
}

fn word() -> impl Strategy<Value = String> {
    let names: Vec<&str> = TABLE.iter().map(|flag| flag.name).collect();
    prop_oneof![
        (
            proptest::sample::select(names),
            "-{1,2}",
            proptest::option::of("[ -~]{0,12}")
        )
            .prop_map(|(name, dashes, value)| {
                match value {
                    Some(value) => format!("{dashes}{name}={value}"),
                    None => format!("{dashes}{name}"),
                }
            }),
        "(?s).{0,16}",
    ]
}

proptest! {
    #[test]
    fn command_line_when_given_anything_answers_with_one_clear_line(words in proptest::collection::vec(word(), 0..6)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match start_with(&words, &[]) {
            CommandLine::Run(start) => {
                prop_assert!(start.warnings.iter().chain(&start.errors).all(|line| !line.contains('\n')));
                if let Some(etcd) = start.options.registry.etcd() {
                    prop_assert!(!etcd.endpoints.is_empty());
                }
                prop_assert!(start.options.firewall_resync >= Duration::from_secs(1));
            }
            CommandLine::Exit { code, text } => {
                prop_assert!(code == 0 || code == 2);
                if code == 2 {
                    prop_assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("Usage: ")), "{}", text);
                    prop_assert_eq!(text.lines().count(), 2, "{}", text);
                    prop_assert!(!text.contains("strconv"), "{}", text);
                }
            }
        }
    }

    #[test]
    fn order_when_scalars_are_given_twice_takes_the_last(a in "[a-z/]{1,9}", b in "[a-z/]{1,9}") {
        let start = started(&["-etcd-prefix", &a, &format!("--etcd-prefix={b}"), "-iface", &a, &format!("--iface={b}")]);
        prop_assert_eq!(&start.options.registry.etcd().unwrap().prefix, &b);
        prop_assert_eq!(start.options.interface.iface, vec![a, b]);
    }
}
