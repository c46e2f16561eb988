//! What must be installed, and installing it on Debian.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{root, run};
use crate::say;

/// A program and the Debian package it comes from.
pub type Need = (&'static str, &'static str);

/// A lab cannot stand without these.
pub const LAB: &[Need] = &[
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("mount", "mount"),
    ("hostname", "hostname"),
    ("ping", "iputils-ping"),
    ("iptables", "iptables"),
    ("ip6tables-save", "iptables"),
    ("nft", "nftables"),
];

/// A real etcd.
pub const ETCD: &[Need] = &[("etcd", "etcd-server"), ("etcdctl", "etcd-client")];

/// What the tests use besides.
pub const TESTS: &[Need] = &[
    ("tcpdump", "tcpdump"),
    ("strace", "strace"),
    ("iperf3", "iperf3"),
    ("jq", "jq"),
    ("kill", "procps"),
    ("dash", "dash"),
    ("openssl", "openssl"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
];

/// Container runtimes that drive the CNI plugins, and what their containers run.
pub const RUNTIMES: &[Need] = &[
    ("podman", "podman"),
    ("conmon", "conmon"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("curl", "curl"),
    ("/bin/busybox", "busybox-static"),
];

/// What Kubernetes' own programs are built with: Debian's Go, and of a package that crashes with it a later version.
pub const BUILD_KUBE: &[Need] = &[
    ("/usr/lib/go-1.19/bin/go", "golang-1.19-go"),
    (
        "/usr/share/gocode/src/github.com/modern-go/reflect2",
        "golang-github-modern-go-reflect2-dev",
    ),
    ("dpkg-source", "dpkg-dev"),
    ("make", "make"),
    ("strip", "binutils"),
    ("rsync", "rsync"),
    ("jq", "jq"),
];

/// What the cluster of a lab is made and spoken to with.
pub const KUBE: &[Need] = &[("openssl", "openssl"), ("curl", "curl")];

/// What machines of a lab are made and started with; the images of their pods hold busybox.
pub const HOST_ROOT: &[Need] = &[
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("/bin/busybox", "busybox-static"),
];

/// Debian's packages on every machine, beside systemd: what a lab does there, and what kubelet, kube-proxy and containerd call.
pub const IN_HOST_ROOT: &[&str] = &[
    "conntrack",
    "containerd",
    "curl",
    "ethtool",
    "iproute2",
    "ipset",
    "iptables",
    "iputils-ping",
    "kmod",
    "mount",
    "nftables",
    "procps",
    "runc",
    "socat",
    "util-linux",
];

/// Refuses to go on where labs cannot be made.
pub fn check_machine() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("labs are made of Linux network namespaces; this is no Linux");
    }
    let id = Command::new("id").arg("-u").output().context("id -u")?;
    if id.stdout != b"0\n" {
        bail!("network namespaces need root: run it as root (or by sudo)");
    }
    Ok(())
}

/// Installs what is missing (Debian and its kin) without a service of it, or says what to install.
pub fn ensure(needs: &[&[Need]]) -> Result<()> {
    let missing: Vec<Need> = needs
        .iter()
        .flat_map(|n| n.iter())
        .copied()
        .filter(|n| !is_there(n.0))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut names: Vec<&str> = missing.iter().map(|n| n.1).collect();
    names.sort_unstable();
    names.dedup();
    let programs: Vec<&str> = missing.iter().map(|n| n.0).collect();
    if !Path::new("/etc/debian_version").exists() {
        bail!(
            "missing: {}. On Debian they are in {}",
            programs.join(", "),
            names.join(", ")
        );
    }
    say(&format!(
        "installing {} (for {})",
        names.join(" "),
        programs.join(", ")
    ));
    // In a script, since what comes before cargo installs a compiler by it too.
    run(Command::new(root().join("scripts/install-packages"))
        .args(&names)
        .stdin(Stdio::null()))?;
    let still: Vec<&str> = programs.into_iter().filter(|p| !is_there(p)).collect();
    if !still.is_empty() {
        bail!("installed, but still not found: {}", still.join(", "));
    }
    Ok(())
}

fn is_there(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|d| Path::new(d).join(program).is_file())
}
