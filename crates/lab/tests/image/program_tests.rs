//! The programs of the image, each in a container of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::container::{Container, Network};
use crate::rootfs::{Image, run};

/// With no right but those that ours asks for.
fn container(words: &[&str]) -> Container {
    Container {
        name: "program".to_owned(),
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        capabilities: ["NET_ADMIN", "NET_RAW"].map(str::to_owned).to_vec(),
        read_only: true,
        no_new_privileges: true,
        ..Container::default()
    }
}

#[test]
fn programs_when_started_are_there_by_name_and_have_their_libraries() {
    let image = Image::open();
    let network = Network::new();
    let version = env!("CARGO_PKG_VERSION");
    for (words, expected) in [
        (&["/opt/bin/flanneld", "--version"][..], version),
        (&["flannelctl", "--version"], version),
        (
            &["/opt/bin/install-conf", "--help"],
            "Usage: flannelctl cni install-conf",
        ),
        (&["nft", "--version"], "nftables v"),
        (&["iptables-nft", "--version"], "(nf_tables)"),
        (&["ip6tables-nft-restore", "--version"], "(nf_tables)"),
        (&["iptables-legacy-save", "--version"], "(legacy)"),
        (&["ip6tables-legacy", "--version"], "(legacy)"),
        (&["sh", "-c", "cat /etc/passwd"], "root:x:0:0"),
        (&["sh", "/opt/bin/mk-docker-opts.sh", "-h"], "mk-docker-opts"),
    ] {
        let output = container(words).run(&image, &network);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(text.contains(expected), "{words:?}: {}\n{text}", output.status);
    }
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files.extend(below(&entry.path())),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

/// Rules of others name any extension, and are listed by loading it.
#[test]
fn libraries_and_extensions_when_loaded_find_all_they_need_in_the_image() {
    let image = Image::open();
    let root = image.root();
    let files = below(&root.join("usr/lib"));
    let is_loader = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("ld-linux")
    };
    let loader = files.iter().find(|path| is_loader(path)).unwrap();
    let inside = |path: &Path| format!("/{}", path.strip_prefix(&root).unwrap().display());
    let extensions = files
        .iter()
        .filter(|path| path.parent().unwrap().ends_with("xtables"))
        .count();
    assert!(extensions > 100, "{extensions}");
    let libraries = files
        .iter()
        .filter(|path| path.to_str().unwrap().contains(".so") && !is_loader(path));
    let programs = below(&root.join("usr/sbin"));
    let programs = programs
        .iter()
        .filter(|path| std::fs::read(path).unwrap().starts_with(b"\x7fELF"));
    let mut looked_at = 0;
    for file in libraries.chain(programs) {
        let mut command = Command::new("chroot");
        let output = command
            .arg(&root)
            .arg(inside(loader))
            .arg("--list")
            .arg(inside(file))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            output.status.success() && !text.contains("not found"),
            "{}: {text}",
            file.display()
        );
        looked_at += 1;
    }
    assert!(looked_at > extensions + 15, "{looked_at}");
}

#[test]
fn files_of_the_image_have_plain_modes_and_say_whose_they_are_and_mounts_have_places() {
    let image = Image::open();
    let root = image.root();
    for file in below(&root) {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.symlink_metadata().unwrap().permissions().mode() & 0o7777;
        assert!([0o644, 0o755].contains(&mode), "{}: {mode:o}", file.display());
    }
    let bundle = String::from_utf8(image.read("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(bundle.matches("BEGIN CERTIFICATE").count() > 100);
    // Whose programs they are, and under which licence.
    for package in ["iptables", "nftables", "libc6", "busybox-static"] {
        assert!(
            root.join(format!("usr/share/doc/{package}/copyright")).is_file(),
            "{package}"
        );
        let status = String::from_utf8(image.read(&format!("var/lib/dpkg/status.d/{package}"))).unwrap();
        assert!(status.contains(&format!("Package: {package}\n")), "{status}");
    }
    for path in [
        "proc",
        "sys",
        "dev",
        "tmp",
        "run/flannel",
        "var/lib/flannel",
        "etc/kube-flannel",
        "var/run",
    ] {
        let there = root.join(path).symlink_metadata().unwrap();
        assert!(there.is_dir(), "{path}");
    }
}

/// A program of this machine's, and what it is told.
type Rule<'a> = (&'a str, &'a [&'a str]);

/// Who wrote first on this node, and with which of the two variants, decides.
#[test]
fn iptables_when_kubelet_or_others_have_rules_is_the_variant_that_they_use() {
    let image = Image::open();
    let chain = ["-t", "mangle", "-N", "KUBE-KUBELET-CANARY"];
    let hint = ["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"];
    let rule = ["-t", "nat", "-A", "POSTROUTING", "-j", "RETURN"];
    let table: &[(&str, &[Rule], &str)] = &[
        ("nothing", &[], "nf_tables"),
        ("kubelet by nft", &[("iptables-nft", &chain)], "nf_tables"),
        (
            "kubelet of today by nft, IPv6 alone",
            &[("ip6tables-nft", &hint)],
            "nf_tables",
        ),
        ("kubelet by legacy", &[("iptables-legacy", &chain)], "legacy"),
        (
            "kubelet by legacy, IPv6 alone",
            &[("ip6tables-legacy", &chain)],
            "legacy",
        ),
        (
            "kubelet by nft, and a stray rule by legacy",
            &[("iptables-legacy", &rule), ("iptables-nft", &chain)],
            "nf_tables",
        ),
        (
            "kubelet by legacy, and docker by nft",
            &[("iptables-nft", &rule), ("iptables-legacy", &chain)],
            "legacy",
        ),
        ("others by legacy", &[("iptables-legacy", &rule)], "legacy"),
        ("others by nft", &[("iptables-nft", &rule)], "nf_tables"),
        (
            "others by both",
            &[("iptables-legacy", &rule), ("iptables-nft", &rule)],
            "nf_tables",
        ),
    ];
    for (case, before, expected) in table {
        let network = Network::new();
        for (program, arguments) in *before {
            run(network.command(program).args(*arguments));
        }
        for program in ["iptables", "ip6tables", "iptables-save", "ip6tables-restore"] {
            let text = container(&[program, "--version"]).succeed(&image, &network);
            assert!(
                text.contains(&format!("({expected})")),
                "{case}: {program}: {text}"
            );
        }
        if *expected == "nf_tables" && before.is_empty() {
            // Asking has made no table.
            let names = run(network.command("cat").arg("/proc/net/ip_tables_names"));
            assert_eq!(names, "", "{case}");
            assert_eq!(run(network.command("nft").args(["list", "tables"])), "", "{case}");
        }
    }
}

#[test]
fn iptables_when_called_through_the_choice_passes_rules_and_words_on() {
    let image = Image::open();
    let network = Network::new();
    let restore = "printf '*nat\\n:X - [0:0]\\n-A X -m comment --comment \"a b\" -j RETURN\\nCOMMIT\\n' | iptables-restore --noflush -w 5";
    container(&["sh", "-c", restore]).succeed(&image, &network);
    let text = container(&["iptables-save", "-t", "nat"]).succeed(&image, &network);
    assert!(
        text.contains("-A X -m comment --comment \"a b\" -j RETURN"),
        "{text}"
    );
    let seen = run(network.command("iptables-nft-save").args(["-t", "nat"]));
    assert!(
        seen.contains("-A X -m comment --comment \"a b\" -j RETURN"),
        "{seen}"
    );
    let refused = container(&["iptables", "-t", "nat", "-D", "NONE"]).run(&image, &network);
    assert!(!refused.status.success());
}
