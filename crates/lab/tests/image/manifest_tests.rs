//! The commands of manifests, exactly, and what the node has of them.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::container::Network;
use crate::manifests::{Manifest, flannels, ours};
use crate::rootfs::{Image, run};

const CONFLIST: &str = "10-flannel.conflist";

fn all(image: &Image) -> Vec<Manifest> {
    let mut all = flannels(image);
    all.push(ours(image));
    all
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn inits_of_every_manifest_when_run_twice_leave_the_plugin_and_the_configuration() {
    let shared = Image::open();
    let versions: Vec<&str> = all(&shared).iter().map(|manifest| manifest.name).collect();
    assert_eq!(versions, ["v0.11", "v0.20", "v0.28", "ours"]);
    for version in versions {
        let image = Image::open();
        let network = Network::new();
        let manifest = all(&image).into_iter().find(|m| m.name == version).unwrap();
        manifest.configure(&image);
        let (conf, bin) = (image.host("/etc/cni/net.d"), image.host("/opt/cni/bin"));
        let mut inodes = Vec::new();
        for _ in 0..2 {
            for container in manifest.inits() {
                container.succeed(&image, &network);
            }
            let place = conf.join(CONFLIST);
            assert_eq!(
                std::fs::read_to_string(&place).unwrap(),
                manifest.cni_conf,
                "{version}"
            );
            inodes.push((
                place.metadata().unwrap().ino(),
                place.metadata().unwrap().mtime_nsec(),
            ));
        }
        assert_eq!(names(&conf), [CONFLIST], "{version}");
        // A runtime reads what is written anew.
        let is_written_once = inodes[0] == inodes[1];
        assert_eq!(is_written_once, ["v0.28", "ours"].contains(&version), "{version}");
        let expected: &[&str] = match version {
            // It had plugins installed by somebody else.
            "v0.11" => &[],
            "ours" => &[
                "bandwidth",
                "bridge",
                "flannel",
                "host-local",
                "loopback",
                "portmap",
            ],
            _ => &["flannel"],
        };
        assert_eq!(names(&bin), expected, "{version}");
        for plugin in expected {
            assert!(
                image.read("flannel") == std::fs::read(bin.join(plugin)).unwrap(),
                "{version}: {plugin}"
            );
            let mut command = Command::new(bin.join(plugin));
            let answer = run(command.env_clear().env("CNI_COMMAND", "VERSION"));
            assert!(
                answer.contains("supportedVersions"),
                "{version}: {plugin}: {answer}"
            );
        }
    }
}

/// An upgrade: what flannel's init left is taken over, what the node's admin put there stays.
#[test]
fn inits_of_ours_when_run_over_flannels_keep_its_plugin_aside_and_others_in_place() {
    let image = Image::open();
    let network = Network::new();
    let (conf, bin) = (image.host("/etc/cni/net.d"), image.host("/opt/cni/bin"));
    for (name, text) in [("flannel", "Go's"), ("portmap", "an admin's")] {
        std::fs::write(bin.join(name), text).unwrap();
    }
    std::fs::write(conf.join(CONFLIST), "{}").unwrap();
    let ours = ours(&image);
    ours.configure(&image);
    for container in ours.inits() {
        container.succeed(&image, &network);
    }
    assert_eq!(
        std::fs::read_to_string(bin.join(".flannel.before")).unwrap(),
        "Go's"
    );
    assert_eq!(
        std::fs::read_to_string(bin.join("portmap")).unwrap(),
        "an admin's"
    );
    assert!(image.read("flannel") == std::fs::read(bin.join("flannel")).unwrap());
    assert_eq!(
        std::fs::read_to_string(conf.join(CONFLIST)).unwrap(),
        ours.cni_conf
    );
    // And back, by the command of flannel's own.
    let back = flannels(&image)
        .into_iter()
        .find(|manifest| manifest.name == "v0.28")
        .unwrap();
    back.configure(&image);
    for container in back.inits() {
        container.succeed(&image, &network);
    }
    assert_eq!(
        std::fs::read_to_string(conf.join(CONFLIST)).unwrap(),
        back.cni_conf
    );
}

/// Kubespray gives both folders to a user of its own, and an archive of plugins that is unpacked into one to whoever packed it.
#[test]
fn inits_of_ours_when_the_folders_are_another_users_write_to_them_all_the_same() {
    let image = Image::open();
    let network = Network::new();
    let ours = ours(&image);
    ours.configure(&image);
    for folder in ["/etc/cni/net.d", "/opt/cni/bin"] {
        std::os::unix::fs::chown(image.host(folder), Some(1001), Some(1001)).unwrap();
    }
    let plugin = image.host("/opt/cni/bin").join("flannel");
    std::fs::write(&plugin, "Go's").unwrap();
    std::os::unix::fs::chown(&plugin, Some(1001), Some(1001)).unwrap();
    for container in ours.inits() {
        container.succeed(&image, &network);
    }
    assert!(image.read("flannel") == std::fs::read(&plugin).unwrap());
    let aside = image.host("/opt/cni/bin").join(".flannel.before");
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "Go's");
    assert!(image.host("/etc/cni/net.d").join(CONFLIST).is_file());
}

#[test]
fn install_conf_when_the_configuration_is_none_says_so_and_leaves_what_is_there() {
    let image = Image::open();
    let network = Network::new();
    let mut manifest = ours(&image);
    manifest.cni_conf = "{ \"name\": ".to_owned();
    manifest.configure(&image);
    let place = image.host("/etc/cni/net.d").join(CONFLIST);
    std::fs::write(&place, "before").unwrap();
    let container = manifest
        .inits()
        .iter()
        .find(|container| container.name == "install-cni")
        .unwrap();
    let output = container.run(&image, &network);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("/etc/kube-flannel/cni-conf.json is no JSON"),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "before");
}

/// Nobody answers for the API here: the daemon has to stay, say so, and be alive to probes.
#[test]
fn flanneld_of_every_manifest_when_the_api_is_away_waits_says_so_and_is_alive() {
    let image = Image::open();
    for manifest in all(&image) {
        let network = Network::new();
        let name = manifest.name;
        manifest.configure(&image);
        let container = manifest.flanneld(&image);
        let has_port = container
            .words
            .iter()
            .any(|word| word.starts_with("--healthz-port"));
        let mut running = container.start(&image, &network);
        let since = Instant::now();
        let is_told = || running_says(&running.log());
        while !is_told() {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "{name}: {}",
                running.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        if has_port {
            let ask = |path: &str| {
                let url = format!("http://127.0.0.1:8081{path}");
                let mut curl = network.command("curl");
                run(curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]))
            };
            assert_eq!(
                (ask("/healthz").as_str(), ask("/readyz").as_str()),
                ("200", "503"),
                "{name}"
            );
        }
        assert!(running.is_running(), "{name}: {}", running.log());
        assert_eq!(running.stop(), Some(0), "{name}: {}", running.log());
    }
}

fn running_says(log: &str) -> bool {
    log.contains("127.0.0.1:9")
}
