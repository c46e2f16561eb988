//! What the image takes from Debian's packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::{Entry, Tree, What, put, text};
use crate::cargo::run;
use crate::say;

/// The packages, and which of their files: those with one of these in their path.
const PACKAGES: &[Package] = &[
    ("busybox-static", &["bin/busybox"]),
    ("ca-certificates", &["usr/share/ca-certificates/mozilla/"]),
    ("iptables", &["usr/sbin/", "/xtables/"]),
    ("libbsd0", LIBRARIES),
    (
        "libc6",
        &[
            "/ld-linux",
            "/ld64",
            "/libc.so",
            "/libm.so",
            "/libdl.so",
            "/libpthread.so",
            "/libresolv.so",
        ],
    ),
    ("libedit2", LIBRARIES),
    ("libgmp10", LIBRARIES),
    ("libip4tc2", LIBRARIES),
    ("libip6tc2", LIBRARIES),
    ("libjansson4", LIBRARIES),
    ("libmd0", LIBRARIES),
    ("libmnl0", LIBRARIES),
    ("libnetfilter-conntrack3", LIBRARIES),
    ("libnfnetlink0", LIBRARIES),
    ("libnftables1", LIBRARIES),
    ("libnftnl11", LIBRARIES),
    ("libtinfo6", LIBRARIES),
    ("libxtables12", LIBRARIES),
    ("nftables", &["usr/sbin/nft"]),
];

const LIBRARIES: &[&str] = &[".so."];

/// Files that they are made into one of.
const AUTHORITIES: &str = "usr/share/ca-certificates/";
/// Where Debian's programs look for it, and flanneld.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// A package, and which of its files.
pub type Package = (&'static str, &'static [&'static str]);

/// What executables need that are linked as cargo does it by itself.
pub const OF_RUST: Package = ("libgcc-s1", LIBRARIES);

/// Puts the packages' files into a tree, and those of `more`; the packages with their versions. What was fetched is kept in a folder.
pub fn add(tree: &mut Tree, architecture: &str, cache: &Path, more: &[Package]) -> Result<Vec<String>> {
    let folder = cache.join(architecture);
    let packages = [PACKAGES, more].concat();
    fetch(architecture, &folder, &packages)?;
    let mut versions = Vec::new();
    let mut authorities = Vec::new();
    for (package, picks) in packages {
        let file = newest(&folder.join("archives"), package)?;
        versions.push(field(&file, "${Package}_${Version}")?);
        let unpacked = folder.join("unpacked").join(package);
        if unpacked.exists() {
            std::fs::remove_dir_all(&unpacked).with_context(|| unpacked.display().to_string())?;
        }
        std::fs::create_dir_all(&unpacked).with_context(|| unpacked.display().to_string())?;
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&file)
            .arg(&unpacked))?;
        let own = format!("usr/share/doc/{package}/copyright");
        for path in files_below(&unpacked)? {
            let name = path
                .strip_prefix(&unpacked)?
                .to_str()
                .context("a name that is no text")?;
            if name != own && !picks.iter().any(|pick| name.contains(pick)) {
                continue;
            }
            if name.starts_with(AUTHORITIES) {
                authorities.push(path);
                continue;
            }
            let entry = entry(&path)?;
            put(tree, &below_usr(name), entry);
        }
        // The form in which images without dpkg say what is in them.
        let place = format!("var/lib/dpkg/status.d/{package}");
        put(tree, &place, text(&format!("{}\n", described(&file)?)));
    }
    authorities.sort();
    let mut bundle = String::new();
    for file in &authorities {
        bundle.push_str(&std::fs::read_to_string(file).with_context(|| file.display().to_string())?);
    }
    put(tree, BUNDLE, text(&bundle));
    for name in ["bin", "lib", "lib64", "sbin"] {
        put(tree, name, super::link(&format!("usr/{name}")));
    }
    // Where nothing else does, lib64 leads somewhere all the same.
    super::archive::folder(tree, "usr/lib64", 0o755);
    Ok(versions)
}

/// Packages say `lib` or `usr/lib` as their age is; in the image the one is a link to the other.
fn below_usr(name: &str) -> String {
    let top = name.split('/').next().unwrap_or_default();
    if ["bin", "lib", "lib64", "sbin"].contains(&top) {
        format!("usr/{name}")
    } else {
        name.to_owned()
    }
}

fn entry(path: &Path) -> Result<Entry> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = path.symlink_metadata()?;
    if metadata.file_type().is_symlink() {
        let target = std::fs::read_link(path)?;
        return Ok(super::link(target.to_str().context("a link that is no text")?));
    }
    Ok(Entry {
        mode: metadata.permissions().mode() & 0o777,
        what: What::Copy(path.to_owned()),
    })
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Downloads the packages by lists of their own: what is known or installed on this machine stays as it is, and another architecture
/// is as good as its own.
fn fetch(architecture: &str, folder: &Path, packages: &[Package]) -> Result<()> {
    if !Path::new("/etc/debian_version").exists() {
        bail!(
            "the image's programs come from Debian's packages, by Debian's apt; elsewhere use deploy/image/Dockerfile"
        );
    }
    for name in ["lists/partial", "archives/partial"] {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let archives = folder.join("archives");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        for option in [
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            // A folder below a home cannot be read by apt's own user.
            "APT::Sandbox::User=root".to_owned(),
            format!("Dir::State::lists={}", folder.join("lists").display()),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", folder.display()),
        ] {
            command.arg("-o").arg(option);
        }
        command.arg("-qq").args(arguments).current_dir(&archives);
        command
    };
    say(&format!(
        "asking Debian for the image's packages ({architecture})"
    ));
    run(&mut apt(&["update"]))?;
    let names: Vec<&str> = packages.iter().map(|(name, _)| *name).collect();
    run(apt(&["download"]).args(&names))
}

/// The package's file; of several versions the one that was published last, since older ones stay.
fn newest(folder: &Path, package: &str) -> Result<PathBuf> {
    let start = format!("{package}_");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&start) && name.ends_with(".deb") {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    let newest = found.into_iter().max();
    Ok(newest.with_context(|| format!("apt has fetched no {package}"))?.1)
}

fn field(file: &Path, format: &str) -> Result<String> {
    ask(Command::new("dpkg-deb")
        .arg("--showformat")
        .arg(format)
        .arg("--show")
        .arg(file))
}

fn described(file: &Path) -> Result<String> {
    ask(Command::new("dpkg-deb").arg("--field").arg(file))
}

fn ask(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| crate::cargo::line(command))?;
    if !output.status.success() {
        bail!("{} failed", crate::cargo::line(command));
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_package_are_below_usr_however_old_it_is() {
        for (name, place) in [
            ("lib/x/libc.so.6", "usr/lib/x/libc.so.6"),
            ("usr/lib/x/libc.so.6", "usr/lib/x/libc.so.6"),
            ("lib64/ld", "usr/lib64/ld"),
            ("bin/busybox", "usr/bin/busybox"),
            ("library/x", "library/x"),
        ] {
            assert_eq!(below_usr(name), place);
        }
    }
}
