use super::*;
use crate::call::{Call, Environment};

fn config(more: &str) -> PortmapConfig {
    let env = Environment {
        command: "ADD".into(),
        container_id: "c1".into(),
        ifname: "eth0".into(),
        ..Environment::default()
    };
    let stdin = format!(r#"{{"name":"cbr0","cniVersion":"1.0.0"{more}}}"#);
    PortmapConfig::load(&Call::check(env, stdin.into_bytes()).unwrap()).unwrap()
}

#[test]
fn rules_when_written_are_gos_in_their_order() {
    let config = config(
        r#","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":8053,"containerPort":53,"protocol":"udp","hostIP":"127.0.0.1"}]},"conditionsV4":["!","-d","192.0.2.0/24"]"#,
    );
    assert_eq!(chain("cbr0", "c1"), "CNI-DN-68f1f1eeb62cad3d0bdd5");
    assert_eq!(
        translations(&config, "10.244.7.3/24".parse().unwrap()),
        [
            "-s 10.244.7.0/24 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            "-s 127.0.0.1 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            "-p tcp --dport 8080 -j DNAT --to-destination 10.244.7.3:80",
            "-s 10.244.7.0/24 -d 127.0.0.1 -p udp --dport 8053 -j CNI-HOSTPORT-SETMARK",
            "-s 127.0.0.1 -d 127.0.0.1 -p udp --dport 8053 -j CNI-HOSTPORT-SETMARK",
            "-d 127.0.0.1 -p udp --dport 8053 -j DNAT --to-destination 10.244.7.3:53",
        ]
    );
    assert_eq!(
        translations(&config, "fd00::3/64".parse().unwrap()),
        [
            "-s fd00::/64 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
            "-p tcp --dport 8080 -j DNAT --to-destination [fd00::3]:80",
        ]
    );
    assert_eq!(
        entries(&config, false)[0],
        "-p tcp -m comment --comment \"dnat name: \\\"cbr0\\\" id: \\\"c1\\\"\" -m multiport --dports 8080 ! -d 192.0.2.0/24 -j CNI-DN-68f1f1eeb62cad3d0bdd5"
    );
}

#[test]
fn entries_when_ports_are_many_are_split_by_fifteen() {
    let ports: Vec<String> = (1..=31)
        .map(|p| format!(r#"{{"hostPort":{p},"containerPort":1,"protocol":"tcp"}}"#))
        .collect();
    let config = config(&format!(
        r#","runtimeConfig":{{"portMappings":[{}]}}"#,
        ports.join(",")
    ));
    let entries = entries(&config, true);
    assert_eq!(entries.len(), 3);
    assert!(entries[2].contains("--dports 31 -j"), "{}", entries[2]);
}

const PORT: &str =
    r#","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;

#[test]
fn shared_rules_when_nothing_is_masqueraded_by_us_are_the_entries_alone() {
    let places = |more: &str| -> Vec<(&str, bool)> {
        shared(&config(&format!("{PORT}{more}")))
            .iter()
            .map(|Shared(at, _, first)| (*at, *first))
            .collect()
    };
    let entries = [("PREROUTING", false), ("OUTPUT", false)];
    let marks = [(SETMARK, false), (MASQ, false), ("POSTROUTING", true)];
    assert_eq!(places(""), [&marks[..], &entries].concat());
    assert_eq!(places(r#","snat":false"#), entries);
    assert_eq!(places(r#","externalSetMarkChain":"KUBE-MARK-MASQ""#), entries);
    let Shared(_, rule, _) = &shared(&config(r#","markMasqBit":5"#))[0];
    assert!(rule.ends_with("-j MARK --set-xmark 0x20/0x20"), "{rule}");
}

#[test]
fn translations_when_all_or_nothing_is_masqueraded_mark_all_or_nothing() {
    let of =
        |more: &str, address: &str| translations(&config(&format!("{PORT}{more}")), address.parse().unwrap());
    let dnat = "-p tcp --dport 8080 -j DNAT --to-destination 10.244.7.3:80";
    assert_eq!(
        of(r#","masqAll":true"#, "10.244.7.3/24"),
        ["-s 0.0.0.0/0 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK", dnat]
    );
    assert!(of(r#","masqAll":true"#, "fd00::3/64")[0].starts_with("-s ::/0 "));
    assert_eq!(of(r#","snat":false"#, "10.244.7.3/24"), [dnat]);
    assert!(of(r#","externalSetMarkChain":"X""#, "10.244.7.3/24")[0].ends_with("-j X"));
    assert_eq!(
        container_lines(&config(PORT), "fd00::3/64".parse().unwrap(), "-N x".into()).len(),
        1 + 2 + 1
    );
}

#[test]
fn word_when_the_program_would_take_it_apart_is_quoted() {
    for (word, quoted) in [
        ("plain", "plain"),
        ("", "\"\""),
        ("a b", "\"a b\""),
        ("a\"b", "\"a\\\"b\""),
        ("a'b", "\"a'b\""),
        ("a\\b", "\"a\\\\b\""),
        ("a\nb", "\"a b\""),
    ] {
        assert_eq!(quote(word), quoted, "{word}");
    }
}

#[test]
fn comment_when_it_is_longer_than_the_kernel_takes_is_cut() {
    let mut config = config(PORT);
    let comment = |config: &PortmapConfig| {
        let entry = entries(config, false).remove(0);
        let (_, rest) = entry.split_once("--comment ").unwrap();
        rest.split_once(" -m multiport").unwrap().0.replace("\\\"", "'")
    };
    // "dnat name: 'cbr0' id: '...'", without the quotes around it.
    config.container = "x".repeat(255 - 24);
    assert_eq!(comment(&config).len(), 2 + 255);
    assert!(comment(&config).ends_with("x'\""));
    config.container.push('x');
    assert_eq!(comment(&config).len(), 2 + 256);
    assert!(comment(&config).ends_with("x...\""), "{}", comment(&config));
}

#[test]
fn chains_when_their_containers_are_not_kept_go_after_what_leads_there() {
    let entry = |network: &str, id: &str, port: u16| {
        format!(
            "-A {DNAT} -p tcp -m comment --comment \"dnat name: \\\"{network}\\\" id: \\\"{id}\\\"\" -m multiport --dports {port} -j X"
        )
    };
    let gone = [entry("n", "dead", 80), entry("n", "dead", 81)];
    let present = [
        ":X - [0:0]".to_owned(),
        gone[0].clone(),
        entry("n", "alive", 82),
        entry("other", "dead", 83),
        gone[1].clone(),
        "-A OTHER -m comment --comment \"dnat name: \\\"n\\\" id: \\\"dead\\\"\"".to_owned(),
    ]
    .join("\n");
    let own = chain("n", "dead");
    let (lines, chains) = unwanted(&present, "n", &|id: &str| id == "alive");
    assert_eq!(
        lines,
        [
            gone[0].replacen("-A", "-D", 1),
            gone[1].replacen("-A", "-D", 1),
            format!("-F {own}"),
            format!("-X {own}")
        ]
    );
    assert_eq!(chains, [own]);
    assert_eq!(unwanted(&present, "n", &|_: &str| true), (Vec::new(), Vec::new()));
    let present =
        format!(":CNI-DN-a - [0:0]\n-A {DNAT} -j CNI-DN-a\n-A {DNAT} -j CNI-DN-ab\n-N x -j CNI-DN-a\n");
    assert_eq!(
        stale_entries(&present, "CNI-DN-a"),
        [format!("-D {DNAT} -j CNI-DN-a")]
    );
}
