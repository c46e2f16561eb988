use super::*;

fn masquerade() -> Masquerade {
    Masquerade {
        network: "cbr0".into(),
        container: "c1".into(),
        ifname: "eth0".into(),
        backend: None,
    }
}

#[test]
fn names_when_made_are_gos() {
    assert_eq!(masquerade().chain(), "CNI-68f1f1eeb62cad3d0bdd579c");
    let golden = Masquerade {
        container: "c0ffee0123456789".into(),
        ..masquerade()
    };
    assert_eq!(golden.chain(), "CNI-2221f4dc78971479c8f12d4e");
    assert_eq!(
        golden.nft_comment(),
        "cb6e746fae1a4d6c-d4583dafd1439c34, net: cbr0, if: eth0, id: c0ffee0123456789"
    );
    let long = Masquerade {
        container: "x".repeat(200),
        ..masquerade()
    };
    assert_eq!(long.nft_comment().len(), 128);
    assert_eq!(
        rules(&masquerade(), "10.244.7.2/24".parse().unwrap()),
        [
            r#"-A CNI-68f1f1eeb62cad3d0bdd579c -d 10.244.7.0/24 -m comment --comment "name: \"cbr0\" id: \"c1\"" -j ACCEPT"#,
            r#"-A CNI-68f1f1eeb62cad3d0bdd579c ! -d 224.0.0.0/4 -m comment --comment "name: \"cbr0\" id: \"c1\"" -j MASQUERADE"#,
            r#"-A POSTROUTING -s 10.244.7.2/32 -m comment --comment "name: \"cbr0\" id: \"c1\"" -j CNI-68f1f1eeb62cad3d0bdd579c"#,
        ]
    );
}

#[test]
fn leftovers_when_another_attachment_uses_the_chain_spare_it() {
    let nets: Vec<IpNet> = ["10.244.7.2/24", "10.244.7.3/24"]
        .map(|t| t.parse().unwrap())
        .to_vec();
    let m = masquerade();
    let chain = m.chain();
    let mut table = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n:{chain} - [0:0]\n");
    for net in &nets {
        table.push_str(&rules(&m, *net).join("\n"));
        table.push('\n');
    }
    table.push_str("-A POSTROUTING -s 10.244.7.2/32 -j CNI-other\n");
    let jump = |i: usize| rules(&m, nets[i])[2].replacen("-A", "-D", 1);
    assert_eq!(leftovers(&table, &chain, &nets[..1], &[]), [jump(0)]);
    let gone = [format!("-F {chain}"), format!("-X {chain}")];
    assert_eq!(
        leftovers(&table, &chain, &nets, &[]),
        [&[jump(0), jump(1)][..], &gone[..]].concat()
    );
    assert_eq!(
        leftovers(&table, &chain, &[], &[]),
        leftovers(&table, &chain, &nets, &[])
    );
    assert_eq!(leftovers("*nat\n", &chain, &nets, &[]), Vec::<String>::new());
    // Nothing is known of this attachment any more, but the other one lives.
    assert_eq!(leftovers(&table, &chain, &[], &[nets[1].addr()]), [jump(0)]);
    // What an old version or a cut off ADD left.
    let old = format!(":{chain} - [0:0]\n-A POSTROUTING -s 10.244.7.0/24 -j {chain}\n");
    assert_eq!(leftovers(&old, &chain, &nets[..1], &[]).len(), 3);
}

#[test]
fn backend_when_named_is_read_and_anything_else_is_unknown() {
    assert_eq!(MasqueradeBackend::read("iptables"), MasqueradeBackend::Iptables);
    assert_eq!(MasqueradeBackend::read("nftables"), MasqueradeBackend::Nftables);
    assert_eq!(
        MasqueradeBackend::read("x"),
        MasqueradeBackend::Unknown("x".into())
    );
    let env = crate::call::Environment {
        command: "ADD".into(),
        container_id: "c1".into(),
        ifname: "eth0".into(),
        ..Default::default()
    };
    let call = Call::check(env, br#"{"name":"cbr0"}"#.to_vec()).unwrap();
    assert_eq!(Masquerade::of(&call, None), masquerade());
}

#[test]
fn rules_when_of_ipv6_spare_its_multicast() {
    let [own, all, jump] = rules(&masquerade(), "fd00::2/64".parse().unwrap());
    assert!(
        own.contains(" -d fd00::/64 ")
            && all.contains(" ! -d ff00::/8 ")
            && jump.contains(" -s fd00::2/128 ")
    );
    let nets: Vec<IpNet> = ["10.0.0.2/24", "fd00::2/64"].map(|t| t.parse().unwrap()).to_vec();
    assert_eq!(
        (of_family(&nets, false), of_family(&nets, true)),
        (nets[..1].to_vec(), nets[1..].to_vec())
    );
}

#[test]
fn containers_when_not_listed_are_told_once_and_by_network() {
    let line = |network: &str, id: &str| {
        let m = Masquerade {
            network: network.into(),
            container: id.into(),
            ..masquerade()
        };
        rules(&m, "10.0.0.2/24".parse().unwrap()).join("\n")
    };
    let present = [
        line("cbr0", "dead"),
        line("cbr0", "alive"),
        line("other", "dead2"),
        line("cbr0", "dead"),
    ]
    .join("\n");
    let valid = [Owner::new("alive", "net1")];
    assert_eq!(unlisted(&present, "cbr0", &valid), ["dead"]);
    assert_eq!(unlisted(&present, "cbr0", &[]), ["alive", "dead"]);
    assert_eq!(unlisted(&present, "cbr", &valid), Vec::<String>::new());
}

#[test]
fn nft_rules_when_their_attachment_is_not_listed_are_stale() {
    let of = |network: &str, container: &str, ifname: &str| Masquerade {
        network: network.into(),
        container: container.into(),
        ifname: ifname.into(),
        backend: None,
    };
    let text = |m: &Masquerade| {
        nft_text(
            m,
            &["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
            &["5".into()],
        )
    };
    let written = text(&of("cbr0", "c1", "eth0"));
    assert!(written.contains("delete rule inet cni_plugins_masquerade masq_checks handle 5\nadd rule "));
    assert!(written.contains(
        "masq_checks ip saddr == 10.0.0.2 ip daddr != 10.0.0.0/24 masquerade comment \"cb6e746fae1a4d6c-"
    ));
    assert!(
        written.contains("masq_checks ip6 saddr == fd00::2 ip6 daddr != fd00::/64 masquerade comment \"")
    );
    let listed: String = [
        of("cbr0", "c1", "eth0"),
        of("cbr0", "c1", "net1"),
        of("cbr0", "c2", "eth0"),
        of("other", "c9", "eth0"),
    ]
    .iter()
    .enumerate()
    .map(|(n, m)| {
        format!(
            "\t\tip saddr 10.0.0.2 masquerade comment \"{}\" # handle {n} \n",
            m.nft_comment()
        )
    })
    .collect();
    let rules = rules_in(&format!("table inet x {{\n{listed}}}\n"));
    assert_eq!(rules.len(), 4);
    assert_eq!(rules[2].1, "2");
    let valid = [Owner::new("c1", "eth0")];
    assert_eq!(stale(rules.clone(), "cbr0", &valid), ["1", "2"]);
    assert_eq!(stale(rules, "none", &valid), Vec::<String>::new());
    assert_eq!(deletions(&[]), "");
}
