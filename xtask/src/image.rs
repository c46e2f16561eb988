//! `cargo xtask dist --image`: the container image, made without a container engine.
//!
//! One layer: our executables, linked statically; busybox, for the commands that manifests run; iptables and nft with the libraries
//! they need, from Debian's packages. The same source, compiler and packages give the same bytes.

mod archive;
mod debian;
mod oci;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::archive::{Tree, executable, link, text};
use crate::cargo::{build_static, root, target};
use crate::packages::{Need, ensure};
use crate::say;

/// What an image is made for. One more platform is one more line.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// The architecture, as container runtimes call it.
    pub name: &'static str,
    /// As Debian calls it.
    pub debian: &'static str,
    /// As Rust calls it; with musl, so that the executables need nothing of the image's libraries.
    pub rust: &'static str,
    /// What compiles C for it and links, and the package it is in.
    pub compiler: Need,
    /// What C looks into: that of any C library, since nothing of it is linked.
    pub headers: Need,
}

const PLATFORMS: &[Platform] = &[
    Platform {
        name: "amd64",
        debian: "amd64",
        rust: "x86_64-unknown-linux-musl",
        compiler: ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
        headers: ("/usr/include/stdint.h", "libc6-dev"),
    },
    Platform {
        name: "arm64",
        debian: "arm64",
        rust: "aarch64-unknown-linux-musl",
        compiler: ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        headers: ("/usr/aarch64-linux-gnu/include/stdint.h", "libc6-dev-arm64-cross"),
    },
];

/// Packages are fetched by apt, unpacked by dpkg, and layers compressed by gzip.
const TOOLS: &[Need] = &[
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("gzip", "gzip"),
    ("sha256sum", "coreutils"),
];

/// Under which name manifests ask for it. There is no registry: it is imported on every node, or pushed to one's own.
const NAME: &str = "localhost/flannel";

/// What manifests and people run by `cp`, `sh -c` and `kubectl exec`.
const APPLETS: &[&str] = &[
    "[", "cat", "chmod", "cmp", "cp", "cut", "date", "echo", "env", "false", "find", "grep", "head",
    "hostname", "id", "ip", "kill", "ln", "ls", "mkdir", "mount", "mv", "nc", "netstat", "nslookup", "ping",
    "ping6", "ps", "rm", "sed", "sh", "sleep", "sort", "tail", "test", "top", "touch", "tr", "true",
    "umount", "uname", "vi", "wc", "wget",
];

/// Each of these names of iptables is a choice between two programs.
const CHOSEN: &[&str] = &[
    "ip6tables",
    "ip6tables-restore",
    "ip6tables-save",
    "iptables",
    "iptables-restore",
    "iptables-save",
];

/// Where manifests mount something, in ours and in flannel's. A root that is read-only has to have them.
const FOLDERS: &[&str] = &[
    "dev",
    "etc/cni/net.d",
    "etc/kube-flannel",
    "opt/cni/bin",
    "proc",
    "run/flannel",
    "sys",
    // No link to /run: v0.10 mounts all of the host's /run there, and the pod's secrets would end up in it.
    "var/run",
    "var/lib/flannel",
];

/// The platform of this machine, when none is named.
fn own() -> Option<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Some("amd64"),
        "aarch64" => Some("arm64"),
        _ => None,
    }
}

/// Those of these names; that of this machine when there is none.
///
/// # Errors
///
/// A name that is in no line of the table.
pub fn platforms(names: &[String]) -> Result<Vec<Platform>> {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.extend(own().filter(|_| names.is_empty()));
    let known = PLATFORMS.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
    let find = |name: &&str| {
        let found = PLATFORMS.iter().find(|platform| platform.name == *name);
        found
            .copied()
            .with_context(|| format!("no platform {name:?}: {known}"))
    };
    let mut chosen: Vec<Platform> = names.iter().map(find).collect::<Result<_>>()?;
    chosen.sort_by_key(|platform| platform.name);
    chosen.dedup_by_key(|platform| platform.name);
    if chosen.is_empty() {
        bail!("--platform is needed on this machine: {known}");
    }
    Ok(chosen)
}

/// The image of what is shipped, for these platforms: as an OCI layout, and for each as an archive that container engines load.
pub fn dist(platforms: &[Platform]) -> Result<()> {
    let compilers: Vec<Need> = platforms
        .iter()
        .flat_map(|platform| [platform.compiler, platform.headers])
        .collect();
    ensure(&[TOOLS, &compilers])?;
    let folder = target().join("dist/image");
    let mut images = Vec::new();
    for platform in platforms {
        let executables = build_static(platform.rust, platform.compiler.0)?;
        images.push(make(platform, &executables, &[], &folder, 9)?);
    }
    let layout = folder.join("oci");
    let index = oci::layout(&layout, &reference(), &images)?;
    for image in &images {
        let size = std::fs::metadata(&image.archive)?.len();
        say(&format!(
            "{:>7.2} MB  {}  ({:.2} MB unpacked; {NAME}:{} for {}, manifest {})",
            size as f64 / 1e6,
            image.archive.display(),
            image.unpacked as f64 / 1e6,
            env!("CARGO_PKG_VERSION"),
            image.platform,
            image.manifest.digest,
        ));
    }
    say(&format!("            {}  (index {index})", layout.display()));
    // What they are made of is in them.
    for image in &images {
        let layer = &image.layer;
        std::fs::remove_file(layer).with_context(|| layer.display().to_string())?;
    }
    Ok(())
}

/// An image of executables as they are, for this machine and the tests: one archive, whose place is returned.
pub fn of(executables: &Path, folder: &Path) -> Result<PathBuf> {
    ensure(&[TOOLS])?;
    let platform = platforms(&[])?;
    let platform = platform.first().context("no platform")?;
    let stripped = folder.join("executables");
    std::fs::create_dir_all(&stripped).with_context(|| stripped.display().to_string())?;
    for name in EXECUTABLES {
        // What tests run has the lines of its source in it: ten times the size.
        let (from, to) = (executables.join(name), stripped.join(name));
        let mut strip = std::process::Command::new("strip");
        crate::cargo::run(strip.arg("-o").arg(&to).arg(&from))?;
    }
    Ok(make(platform, &stripped, &[debian::OF_RUST], folder, 1)?.archive)
}

const EXECUTABLES: [&str; 3] = ["flanneld", "flannelctl", "flannel-cni"];

fn reference() -> String {
    format!("{NAME}:{}", env!("CARGO_PKG_VERSION"))
}

fn make(
    platform: &Platform,
    executables: &Path,
    more: &[debian::Package],
    folder: &Path,
    effort: u8,
) -> Result<oci::Image> {
    let mut tree = Tree::new();
    let packages = debian::add(&mut tree, platform.debian, &target().join("debian"), more)?;
    ours(&mut tree, executables)?;
    let mut labels = BTreeMap::from([
        ("org.opencontainers.image.title".to_owned(), "flannel".to_owned()),
        (
            "org.opencontainers.image.version".to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
        (
            "org.opencontainers.image.licenses".to_owned(),
            "Apache-2.0".to_owned(),
        ),
    ]);
    labels.insert("flannel.debian-packages".to_owned(), packages.join(" "));
    oci::image(platform.name, &tree, &reference(), &labels, folder, effort)
}

/// What is not Debian's.
fn ours(tree: &mut Tree, executables: &Path) -> Result<()> {
    for folder in FOLDERS {
        archive::folder(tree, folder, 0o755);
    }
    archive::folder(tree, "tmp", 0o1777);
    for (place, name) in [
        ("opt/bin/flanneld", "flanneld"),
        ("opt/bin/flannelctl", "flannelctl"),
        // Where flannel's image of the plugin has it, for the manifests that copy it from there.
        ("flannel", "flannel-cni"),
    ] {
        archive::put(tree, place, executable(executables.join(name)));
    }
    // It looks at the name that it is called by.
    archive::put(tree, "opt/bin/install-conf", link("flannelctl"));
    archive::put(
        tree,
        "opt/bin/mk-docker-opts.sh",
        executable(root().join("scripts/mk-docker-opts.sh")),
    );
    let chooser = "usr/sbin/iptables-either";
    archive::put(
        tree,
        chooser,
        executable(root().join("deploy/image/iptables-either")),
    );
    for name in CHOSEN {
        archive::put(tree, &format!("usr/sbin/{name}"), link("iptables-either"));
    }
    for applet in APPLETS {
        archive::put(tree, &format!("usr/bin/{applet}"), link("busybox"));
    }
    archive::put(tree, "etc/passwd", text("root:x:0:0:root:/:/bin/sh\n"));
    archive::put(tree, "etc/group", text("root:x:0:\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_when_named_are_those_of_the_table_once_and_in_order() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            platforms(&names).map(|found| found.iter().map(|p| p.name).collect::<Vec<_>>())
        };
        assert_eq!(of(&["arm64", "amd64", "arm64"]).unwrap(), ["amd64", "arm64"]);
        assert_eq!(of(&[]).unwrap(), [own().unwrap()]);
        let error = of(&["amd64", "vax"]).unwrap_err().to_string();
        assert!(error.contains("vax") && error.contains("arm64"), "{error}");
    }
}
