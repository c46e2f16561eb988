//! The rules as nftables has them.

use super::super::nft;
use super::*;

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
fn listing_when_it_stops_in_the_middle_then_it_is_not_whole() {
    assert!(nft::is_whole("") && nft::is_whole(NFT));
    let lines: Vec<&str> = NFT.lines().collect();
    for end in 1..lines.len() {
        let torn = lines[..end].join("\n");
        assert!(!nft::is_whole(&torn), "{torn}");
    }
}

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

/// A rule of flannel's form but for one word is none of flannel's.
#[test]
fn nft_when_a_rule_says_anything_else_then_it_is_not_read_as_ours() {
    let spoilt = |from: &str, to: &str| {
        assert!(NFT.contains(from), "{from}");
        let script = nft::merge(&NFT.replace(from, to), &wish(), true);
        assert!(script.is_some(), "{to}");
    };
    let mark = "meta mark & 0x00004000 == 0x00004000 return";
    spoilt(mark, "meta mark & 0x00008000 == 0x00004000 return");
    spoilt(mark, "meta mark & 0x00004000 == 0x00008000 return");
    spoilt(mark, "meta mark 0x00008000 return");
    spoilt(
        mark,
        "meta mark & 0x00004000 == 0x00004000 meta mark 0x00004000 return",
    );
    spoilt(mark, "meta mark & 0x00004000 == 0x00004000 accept");
    let accept = "ip saddr 10.5.0.0/16 accept";
    spoilt(accept, "ip6 saddr 10.5.0.0/16 accept");
    spoilt(accept, "ip saddr != 10.5.0.0/16 accept");
    spoilt(accept, "ip daddr 10.5.0.0/16 accept");
    spoilt(accept, "ip saddr 10.5.0.0/16 ip saddr 10.5.0.0/16 accept");
    spoilt(accept, "ip saddr 10.5.0.0/16 return");
    spoilt(accept, "ip saddr 10.5.0.0/16 counter accept");
    spoilt("masquerade fully-random", "masquerade");
    let decimal = NFT.replace("0x00004000", "16384");
    assert_eq!(nft::merge(&decimal, &wish(), true), None);
}

#[test]
fn nft_when_both_families_then_their_tables_and_words() {
    let v6 = Wish::new(net("fd10::/48"), net("fd10:0:0:1::/64"), true, true, false, &[]);
    let script = nft::merge("", &v6, false).unwrap();
    assert!(script.starts_with("add table ip6 flannel-ipv6\n"), "{script}");
    assert!(
        script.contains("postrtg ip6 saddr fd10::/48 ip6 daddr != ff00::/8 masquerade\n"),
        "{script}"
    );
    let probe = nft::fully_random_probe(Family::V6);
    assert_eq!(
        probe,
        "add table ip6 flannel-ipv6\nadd chain ip6 flannel-ipv6 probe { type nat hook postrouting priority 100 ; }\nadd rule ip6 flannel-ipv6 probe masquerade fully-random\n"
    );
    assert_eq!(
        nft::comment_probe(Family::V4),
        "add table ip flannel-ipv4 { comment \"probe\" ; }\nadd chain ip flannel-ipv4 probe { comment \"probe\" ; }\n"
    );
}

#[test]
fn nft_when_ports_are_not_taken_at_random_then_plain_masquerading_is_right() {
    let plain = Wish::new(net("10.5.0.0/16"), net("10.5.1.0/24"), true, true, false, &[]);
    let live = NFT.replace("masquerade fully-random", "masquerade");
    assert_eq!(nft::merge(&live, &plain, true), None);
    assert!(nft::merge(NFT, &plain, true).is_some());
}

#[test]
fn nft_when_anothers_rule_speaks_of_a_hook_or_goes_on_over_lines_then_kept_as_it_is() {
    let accept = "ip saddr 10.5.0.0/16 accept\n";
    let hook = format!("{accept}\t\tip saddr 10.9.0.0/16 accept comment \"a hook b\"\n");
    assert_eq!(nft::merge(&NFT.replace(accept, &hook), &wish(), true), None);
    let set = "ip saddr { 10.1.0.0/16,\n\t\t\t10.2.0.0/16,\n\t\t\t10.3.0.0/16 } drop\n";
    let script = nft::merge(&NFT.replace(accept, set), &wish(), true).unwrap();
    assert!(
        script.contains("forward ip saddr { 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16 } drop\n"),
        "{script}"
    );
}

/// What tests one thing twice is not what we write, whatever it comes to.
#[test]
fn nft_when_a_rule_says_the_same_twice_then_it_is_not_read_as_ours() {
    for said in [
        "meta mark & 0x00004000 == 0x00004000 ",
        "ip saddr 10.5.0.0/16 accept",
        "ip daddr 10.5.0.0/16 accept",
    ] {
        let test = said.trim_end_matches("accept");
        let twice = NFT.replacen(said, &format!("{test}{said}"), 1);
        assert_ne!(twice, NFT);
        assert!(nft::merge(&twice, &wish(), true).is_some(), "{said}");
    }
    assert_eq!(nft::merge(NFT, &wish(), true), None);
}

#[test]
fn nft_when_nothing_is_wanted_and_somebodys_chain_is_in_the_table_then_that_stays() {
    let shared = NFT.replacen(
        "\tchain forward",
        "\tchain somebodys {\n\t}\n\n\tchain forward",
        1,
    );
    let script = nft::merge(&shared, &off(), true).unwrap();
    assert!(
        !script.contains("delete table") && !script.contains("somebodys"),
        "{script}"
    );
    assert!(
        script.contains("delete chain ip flannel-ipv4 postrtg"),
        "{script}"
    );
    let alone = nft::merge(NFT, &off(), true).unwrap();
    assert_eq!(alone, "delete table ip flannel-ipv4\n");
}
