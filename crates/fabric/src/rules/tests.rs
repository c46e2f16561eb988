use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn wish() -> Wish {
    Wish::new(
        net("10.5.0.0/16"),
        net("10.5.1.0/24"),
        true,
        true,
        true,
        &[net("10.4.0.0/16"), net("fd00::/48")],
    )
}

fn other() -> Wish {
    Wish::new(net("10.9.0.0/16"), net("10.9.7.0/24"), true, true, true, &[])
}

fn off() -> Wish {
    Wish::nothing(Family::V4, &[net("10.5.0.0/16")])
}

const EMPTY: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";
const EMPTY_FILTER: &str =
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
const JUMP: &str = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG";
const CHAIN: &str = ":FLANNEL-POSTRTG - [0:0]";

/// A listing of `nat` with these lines after the built-in chains.
fn nat(lines: &[impl AsRef<str>]) -> String {
    let lines: String = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect();
    EMPTY.replace("COMMIT", &format!("{lines}COMMIT"))
}

fn right() -> Vec<String> {
    let mut lines = vec![CHAIN.to_owned()];
    lines.extend(iptables::lines(Table::Nat, &wish()));
    lines
}

fn payload(live: &str, wish: &Wish) -> String {
    iptables::merge(Table::Nat, live, wish).unwrap().unwrap()
}

#[test]
fn lines_when_both_sets_are_wanted_are_those_of_the_reference() {
    let nat = r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#;
    let filter = r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s fd10::/48 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d fd10::/48 -m comment --comment "flanneld forward" -j ACCEPT"#;
    assert_eq!(iptables::lines(Table::Nat, &wish()).join("\n"), nat);
    let v6 = Wish::new(net("fd10::/48"), net("fd10:0:0:1::/64"), true, true, false, &[]);
    assert_eq!(iptables::lines(Table::Filter, &v6).join("\n"), filter);
    let lines = iptables::lines(Table::Nat, &v6);
    assert_eq!(
        lines[5],
        "-A FLANNEL-POSTRTG -s fd10::/48 ! -d ff00::/8 -m comment --comment \"flanneld masq\" -j MASQUERADE"
    );
    assert!(iptables::lines(Table::Nat, &off()).is_empty());
}

#[test]
fn merge_when_nothing_is_there_builds_all_in_one_transaction() {
    for live in ["", EMPTY] {
        let payload = payload(live, &wish());
        let lines = iptables::lines(Table::Nat, &wish());
        let expected = format!("*nat\n{CHAIN}\n{}\n{JUMP}\nCOMMIT\n", lines[1..].join("\n"));
        assert_eq!(payload, expected);
    }
    assert_eq!(iptables::merge(Table::Nat, EMPTY, &off()), Ok(None));
    assert_eq!(iptables::merge(Table::Nat, "", &off()), Ok(None));
}

#[test]
fn merge_when_all_is_right_does_nothing_wherever_others_stand() {
    assert_eq!(iptables::merge(Table::Nat, &nat(&right()), &wish()), Ok(None));
    let mut lines = right();
    lines.insert(
        2,
        "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE".into(),
    );
    lines.insert(
        5,
        "-A FLANNEL-POSTRTG -s 10.77.3.0/24 -p tcp -m tcp --dport 80 -m comment --comment \"theirs \\\"x\\\"\" -j RETURN"
            .into(),
    );
    lines.push("-A POSTROUTING -j KUBE-POSTROUTING".into());
    lines.extend(iptables::lines(Table::Nat, &other())[2..].iter().cloned());
    assert_eq!(iptables::merge(Table::Nat, &nat(&lines), &wish()), Ok(None));
    assert_eq!(iptables::merge(Table::Nat, &nat(&lines), &other()), Ok(None));
}

#[test]
fn merge_when_only_the_jump_is_wrong_leaves_the_chain_alone() {
    let mut lines = right();
    lines.remove(1);
    assert_eq!(payload(&nat(&lines), &wish()), format!("*nat\n{JUMP}\nCOMMIT\n"));
    let doubled = [&[JUMP.to_owned(), JUMP.to_owned()], right().as_slice()].concat();
    let delete = JUMP.replace("-A ", "-D ");
    assert_eq!(
        payload(&nat(&doubled), &wish()),
        format!("*nat\n{delete}\n{delete}\nCOMMIT\n")
    );
}

#[test]
fn merge_when_own_rules_are_missing_doubled_stale_or_out_of_order_rewrites_and_keeps_the_others() {
    let kept =
        "-A FLANNEL-POSTRTG -s 10.9.7.0/24 -d 10.9.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN";
    let admin = "-A FLANNEL-POSTRTG -s 10.5.0.0/16 -j LOG --log-prefix \"a b\"";
    let stale = |text: &str| iptables::lines(Table::Nat, &wish())[2].replace("10.5.1.0/24", text);
    let own = iptables::lines(Table::Nat, &wish());
    let former = own[5].replace("10.5.", "10.4.");
    let plain = own[5].replace(" --random-fully", "");
    let whole_mark = own[1].replace("0x4000/0x4000", "0x4000");
    let mut cases: Vec<Vec<String>> = vec![
        vec![stale("10.5.2.0/24")],
        vec![former],
        vec![plain],
        vec![own[3].clone()],
        vec![whole_mark],
        vec![own[1].clone()],
    ];
    cases
        .iter_mut()
        .for_each(|extra| extra.splice(0..0, right()).for_each(drop));
    let mut swapped = right();
    swapped.swap(3, 4);
    let mut missing = right();
    missing.remove(7);
    let mut late_mark = right();
    late_mark.swap(2, 3);
    cases.extend([swapped, missing, late_mark, vec![CHAIN.into(), JUMP.into()]]);
    for mut lines in cases {
        lines.extend([kept.to_owned(), admin.to_owned()]);
        let payload = payload(&nat(&lines), &wish());
        let expected: Vec<&str> = [own[1].as_str(), kept]
            .into_iter()
            .chain(own[2..].iter().map(String::as_str))
            .collect();
        assert_eq!(
            payload,
            format!("*nat\n{CHAIN}\n{}\nCOMMIT\n", expected.join("\n")),
            "{lines:#?}"
        );
    }
}

#[test]
fn merge_when_a_rule_was_put_into_our_chain_by_hand_takes_it_out() {
    let forward = Wish {
        nat: Vec::new(),
        ..wish()
    };
    let live = |rule: &str| {
        let mut lines = vec![
            ":FORWARD DROP [0:0]".to_owned(),
            ":FLANNEL-FWD - [0:0]".to_owned(),
        ];
        let right = iptables::lines(Table::Filter, &forward);
        lines.push(right[0].clone());
        lines.extend((!rule.is_empty()).then(|| format!("-A FLANNEL-FWD {rule}")));
        lines.extend(right[1..].iter().cloned());
        format!("*filter\n{}\nCOMMIT\n", lines.join("\n"))
    };
    assert_eq!(iptables::merge(Table::Filter, &live(""), &forward), Ok(None));
    for rule in [
        "-j DROP",
        "-s 10.5.0.0/16 -j DROP",
        "-s 10.5.7.9/32 -p tcp -j RETURN",
    ] {
        let payload = iptables::merge(Table::Filter, &live(rule), &forward)
            .unwrap()
            .expect(rule);
        assert!(!payload.contains(rule), "{payload}");
    }
    assert_eq!(
        iptables::merge(Table::Filter, &live("-s 10.9.0.0/16 -j DROP"), &forward),
        Ok(None)
    );
}

#[test]
fn merge_when_v0_11_left_rules_in_the_built_in_chain_removes_exactly_these() {
    let gone = [
        "-A POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -j RETURN",
        "-A POSTROUTING -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
        "-A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.9.0/24 -j RETURN",
        "-A POSTROUTING ! -s 10.4.0.0/16 -d 10.4.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE",
    ];
    let stays = [
        "-A POSTROUTING -s 10.6.0.0/16 -d 10.6.0.0/16 -j RETURN",
        "-A POSTROUTING -s 10.5.0.0/16 -j MASQUERADE",
        "-A POSTROUTING -s 10.5.0.0/16 ! -d 10.5.0.0/16 -j MASQUERADE",
        "-A POSTROUTING ! -s 10.5.0.0/16 -d 10.9.0.0/24 -j RETURN",
        "-A POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment mine -j RETURN",
        "-A OUTPUT -s 10.5.0.0/16 -d 10.5.0.0/16 -j RETURN",
    ];
    let lines: Vec<String> = right()
        .into_iter()
        .chain(gone.iter().chain(&stays).map(|l| l.to_string()))
        .collect();
    let deletions: String = gone
        .iter()
        .map(|line| line.replacen("-A", "-D", 1) + "\n")
        .collect();
    assert_eq!(
        payload(&nat(&lines), &wish()),
        format!("*nat\n{deletions}COMMIT\n")
    );
}

#[test]
fn merge_when_forward_rules_without_comment_may_be_the_administrators_leaves_them_unless_ours_say_the_same() {
    let anonymous = "-A FORWARD -s 10.5.0.0/16 -j ACCEPT";
    let commented = "-A FORWARD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT";
    let live = EMPTY_FILTER.replace("COMMIT", &format!("{anonymous}\n{commented}\nCOMMIT"));
    let payload = |wish: &Wish| iptables::merge(Table::Filter, &live, wish).unwrap().unwrap();
    let (first, second) = (anonymous.replace("-A", "-D"), commented.replace("-A", "-D"));
    assert!(payload(&wish()).contains(&format!("{first}\n{second}\n")));
    assert_eq!(payload(&off()), format!("*filter\n{second}\nCOMMIT\n"));
}

#[test]
fn merge_when_nothing_is_wanted_removes_ours_and_the_chain_only_with_the_last_user() {
    let delete = JUMP.replace("-A ", "-D ");
    let gone = format!("*nat\n{delete}\n-F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n");
    assert_eq!(payload(&nat(&right()), &off()), gone);
    assert_eq!(payload(&nat(&[CHAIN, JUMP]), &off()), gone);
    let others = iptables::lines(Table::Nat, &other());
    let shared: Vec<String> = right().into_iter().chain(others[2..].iter().cloned()).collect();
    assert_eq!(
        payload(&nat(&shared), &off()),
        format!("*nat\n{CHAIN}\n{}\nCOMMIT\n", others[1..].join("\n"))
    );
    let alone: Vec<String> = [vec![CHAIN.into()], others].concat();
    assert_eq!(iptables::merge(Table::Nat, &nat(&alone), &off()), Ok(None));
}

#[test]
fn merge_when_somebody_else_jumps_to_the_chain_empties_it_and_lets_it_be() {
    let jump = "-A POSTROUTING -o eth0 -j FLANNEL-POSTRTG";
    let mut lines = right();
    lines.push(jump.into());
    let delete = JUMP.replace("-A ", "-D ");
    assert_eq!(
        payload(&nat(&lines), &off()),
        format!("*nat\n{delete}\n-F FLANNEL-POSTRTG\nCOMMIT\n")
    );
    assert_eq!(
        iptables::merge(Table::Nat, &nat(&[CHAIN, jump]), &off()),
        Ok(None)
    );
}

#[test]
fn merge_when_iptables_cannot_show_the_table_says_so() {
    let live = "# Table `nat' is incompatible, use 'nft' tool.\n";
    let error = iptables::merge(Table::Nat, live, &wish()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("table nat holds rules that iptables cannot show")
    );
    assert!(iptables::merge(Table::Filter, live, &wish()).is_ok());
}

#[test]
fn version_when_old_knows_no_random_fully() {
    for (version, knows) in [
        ("iptables v1.8.9 (nf_tables)\n", true),
        ("ip6tables v1.6.2", true),
        ("iptables v1.10", true),
        ("iptables v1.6.1", false),
        ("iptables v1.4.21\n", false),
        ("", false),
        ("iptables vx", false),
    ] {
        assert_eq!(iptables::knows_fully_random(version), knows, "{version:?}");
    }
}

const NFT: &str = "table ip flannel-ipv4 {
	comment \"rules for flannel-ipv4\"
	chain postrtg {
		comment \"chain to manage traffic masquerading by flannel\"
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return
		ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return
		ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
	}

	chain forward {
		comment \"chain to accept flannel traffic\"
		type filter hook forward priority filter; policy accept;
		ip saddr 10.5.0.0/16 accept
		ip daddr 10.5.0.0/16 accept
	}
}
";

const SCRIPT: &str = "add table ip flannel-ipv4 { comment \"rules for flannel-ipv4\" ; }
add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority 100 ; policy accept ; comment \"chain to manage traffic masquerading by flannel\" ; }
flush chain ip flannel-ipv4 postrtg
add rule ip flannel-ipv4 postrtg meta mark & 0x4000 == 0x4000 return
add rule ip flannel-ipv4 postrtg ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return
add rule ip flannel-ipv4 postrtg ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return
add rule ip flannel-ipv4 postrtg ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return
add rule ip flannel-ipv4 postrtg ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
add rule ip flannel-ipv4 postrtg ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
add chain ip flannel-ipv4 forward { type filter hook forward priority 0 ; policy accept ; comment \"chain to accept flannel traffic\" ; }
flush chain ip flannel-ipv4 forward
add rule ip flannel-ipv4 forward ip saddr 10.5.0.0/16 accept
add rule ip flannel-ipv4 forward ip daddr 10.5.0.0/16 accept
";

#[test]
fn nft_when_nothing_is_there_builds_the_table_in_one_script() {
    assert_eq!(nft::merge("", &wish(), true).as_deref(), Some(SCRIPT));
    let bare = nft::merge("", &wish(), false).unwrap();
    assert!(bare.starts_with("add table ip flannel-ipv4\nadd chain ip flannel-ipv4 postrtg { type nat hook postrouting priority 100 ; policy accept ; }\n"), "{bare}");
    assert!(!bare.contains("comment"));
    assert_eq!(nft::merge("", &off(), true), None);
}

#[test]
fn nft_when_listed_in_any_spelling_is_right() {
    assert_eq!(nft::merge(NFT, &wish(), true), None);
    for (from, to) in [
        ("priority srcnat; policy accept;", "priority 100;"),
        (
            "meta mark & 0x00004000 == 0x00004000",
            "mark and 0x4000 == 0x4000",
        ),
        ("\tcomment \"rules for flannel-ipv4\"\n", ""),
        (
            "10.5.0.0/16 accept\n",
            "10.5.0.0/16 accept\n\t\tip saddr { 10.1.0.0/16, 10.2.0.0/16,\n\t\t\t     10.3.0.0/16 } drop\n",
        ),
    ] {
        assert!(NFT.contains(from));
        assert_eq!(nft::merge(&NFT.replace(from, to), &wish(), true), None, "{to}");
    }
}

#[test]
fn nft_when_the_reference_wrote_the_rules_replaces_the_mark_test_and_rule_four() {
    let go = NFT
        .replace("meta mark & 0x00004000 == 0x00004000", "meta mark 0x00004000")
        .replace(
            "ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24",
            "ip saddr != 10.5.1.0/24 ip daddr 10.5.0.0/16",
        );
    let script = nft::merge(&go, &wish(), true).unwrap();
    let nat_only: String = SCRIPT
        .split_inclusive('\n')
        .filter(|line| !line.contains("forward"))
        .collect();
    assert_eq!(script, nat_only);
}

#[test]
fn nft_when_chains_are_damaged_makes_them_right() {
    let damage = |from: &str, to: &str| {
        assert!(NFT.contains(from));
        nft::merge(&NFT.replace(from, to), &wish(), true).unwrap()
    };
    let moved = damage("priority srcnat", "priority srcnat + 1");
    assert!(
        moved.contains("delete chain ip flannel-ipv4 postrtg\nadd chain ip flannel-ipv4 postrtg { type nat"),
        "{moved}"
    );
    assert!(
        moved.contains(
            "add rule ip flannel-ipv4 postrtg ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return\n"
        )
    );
    let closed = damage("priority filter; policy accept;", "priority filter; policy drop;");
    assert!(
        !closed.contains("delete chain") && closed.contains("add chain ip flannel-ipv4 forward"),
        "{closed}"
    );
    let asleep = damage("\tcomment \"rules", "\tflags dormant\n\tcomment \"rules");
    assert_eq!(
        asleep,
        "add table ip flannel-ipv4 { comment \"rules for flannel-ipv4\" ; }\n"
    );
    let empty = nft::merge("table ip flannel-ipv4 {\n}\n", &wish(), true);
    assert_eq!(empty.as_deref(), Some(SCRIPT));
}

#[test]
fn nft_when_another_instance_shares_the_table_keeps_its_rules_to_the_letter() {
    let theirs = "ip saddr 10.9.0.0/16 ip daddr != 224.0.0.0/4 counter packets 5 bytes 300 masquerade comment \"a { b\"";
    let live = NFT
        .replace("ip saddr 10.5.1.0/24", theirs)
        .replace(&format!("{theirs} ip daddr 10.5.0.0/16 return"), theirs);
    let script = nft::merge(&live, &wish(), true).unwrap();
    assert!(
        script.contains(&format!(
            "0x4000 return\nadd rule ip flannel-ipv4 postrtg {theirs}\nadd rule"
        )),
        "{script}"
    );
    let removal = nft::merge(&live, &off(), true).unwrap();
    assert_eq!(
        removal,
        format!(
            "add chain ip flannel-ipv4 postrtg {{ type nat hook postrouting priority 100 ; policy accept ; comment \"chain to manage traffic masquerading by flannel\" ; }}
flush chain ip flannel-ipv4 postrtg
add rule ip flannel-ipv4 postrtg meta mark & 0x00004000 == 0x00004000 return
add rule ip flannel-ipv4 postrtg {theirs}
flush chain ip flannel-ipv4 forward
delete chain ip flannel-ipv4 forward
"
        )
    );
}

#[test]
fn nft_when_nothing_is_wanted_deletes_the_table_unless_something_else_is_in_it() {
    assert_eq!(
        nft::merge(NFT, &off(), true).as_deref(),
        Some("delete table ip flannel-ipv4\n")
    );
    assert_eq!(
        nft::merge("table ip flannel-ipv4 {\n}\n", &off(), true).as_deref(),
        Some("delete table ip flannel-ipv4\n")
    );
    let with_set = NFT.replace(
        "\n\tchain postrtg",
        "\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n\n\tchain postrtg",
    );
    let script = nft::merge(&with_set, &off(), true).unwrap();
    assert_eq!(script.matches("delete chain").count(), 2);
    assert!(
        !script.contains("delete table") && !script.contains("add "),
        "{script}"
    );
    let other_table = NFT.replace("flannel-ipv4", "mine");
    assert_eq!(nft::merge(&other_table, &off(), true), None);
}

#[test]
fn wish_when_a_network_has_host_bits_or_another_family_is_put_right() {
    let wish = Wish::new(
        net("10.5.7.7/16"),
        net("10.5.1.1/24"),
        true,
        true,
        true,
        &[net("fd00::/48")],
    );
    assert_eq!(wish.networks, [net("10.5.0.0/16")]);
    assert_eq!(iptables::merge(Table::Nat, &nat(&right()), &wish), Ok(None));
}
