//! The archive, in the hands of those who load it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::process::Process;
use serde_json::Value;

use crate::objects::at;
use crate::rootfs::{Folder, Image, archive, run};

const NAME: &str = concat!("localhost/flannel:", env!("CARGO_PKG_VERSION"));

fn digest(file: &Path) -> String {
    let text = run(Command::new("sha256sum").arg(file));
    format!("sha256:{}", text.split(' ').next().unwrap())
}

#[test]
fn archive_when_followed_from_either_index_leads_to_the_same_sound_blobs() {
    let image = Image::open();
    let folder = image.unpacked();
    let blob = |descriptor: &Value| {
        let digest_of = at(descriptor, "/digest").as_str().unwrap();
        let path = folder.join("blobs").join(digest_of.replacen(':', "/", 1));
        assert_eq!(digest(&path), digest_of);
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            descriptor["size"].as_u64().unwrap()
        );
        path
    };
    let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    assert_eq!(json(&folder.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let index = json(&folder.join("index.json"));
    let entry = at(&index, "/manifests/0");
    assert_eq!(entry["annotations"]["io.containerd.image.name"], NAME);
    let manifest = json(&blob(entry));
    let config = json(&blob(at(&manifest, "/config")));
    let layer = blob(at(&manifest, "/layers/0"));
    assert_eq!(config, image.config);
    assert_eq!(layer, image.layer());
    assert_eq!(image.docker[0]["RepoTags"][0], NAME);
    let plain = image.host("layer").join("tar");
    let out = std::fs::File::create(&plain).unwrap();
    let gzip = Command::new("gzip")
        .arg("-dc")
        .arg(&layer)
        .stdout(Stdio::from(out))
        .status();
    assert!(gzip.unwrap().success());
    assert_eq!(
        digest(&plain),
        at(&config, "/rootfs/diff_ids/0").as_str().unwrap()
    );
    assert_eq!(config["architecture"], entry["platform"]["architecture"]);
    assert_eq!(
        at(&config, "/config/Entrypoint"),
        &serde_json::json!(["/opt/bin/flanneld"])
    );
    assert_eq!(std::fs::read_dir(folder.join("blobs/sha256")).unwrap().count(), 3);
}

/// Times, owners and order are what two builds of one source could differ in.
#[test]
fn archive_and_layer_hold_nothing_of_when_and_by_whom_they_were_made() {
    let image = Image::open();
    for file in [archive(), image.layer()] {
        let mut tar = Command::new("tar");
        let text = run(tar
            .args(["-tv", "--utc", "--full-time", "--numeric-owner", "-f"])
            .arg(&file));
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert!(lines.len() > 5);
        let names: Vec<&str> = lines.iter().map(|line| line[5].trim_end_matches('/')).collect();
        assert!(names.is_sorted(), "{names:?}");
        for line in &lines {
            assert_eq!(
                (line[1], line[3], line[4]),
                ("0/0", "1970-01-01", "00:00:00"),
                "{line:?}"
            );
        }
    }
}

#[test]
fn archive_when_loaded_by_podman_is_there_under_its_name() {
    let folder = Folder::new();
    let podman = || {
        let mut command = Command::new("podman");
        command.arg("--root").arg(folder.path().join("root"));
        command.arg("--runroot").arg(folder.path().join("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    };
    run(podman().arg("load").arg("--input").arg(archive()));
    let text = run(podman().args(["image", "inspect", NAME]));
    let inspected: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(inspected[0]["RepoTags"][0], NAME);
    assert_eq!(inspected[0]["Config"]["Entrypoint"][0], "/opt/bin/flanneld");
}

#[test]
fn archive_when_imported_by_containerd_is_there_under_its_name() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let config = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n",
        path("root"),
        path("state"),
        path("socket"),
        path("socket.ttrpc"),
    );
    std::fs::write(path("config.toml"), config).unwrap();
    let mut command = Command::new("containerd");
    command.args(["--config", &path("config.toml")]);
    let mut daemon = Process::start(command, Path::new(&path("log"))).unwrap();
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new("ctr");
        command
            .args(["--address", &path("socket"), "--namespace", "k8s.io"])
            .args(arguments);
        command
    };
    let since = Instant::now();
    while !ctr(&["version"]).output().unwrap().status.success() {
        assert!(since.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let archive = archive();
    // As kubelet's containerd has it unpacked, but for the snapshots, which need a file system that is made for them.
    run(&mut ctr(&[
        "images",
        "import",
        "--snapshotter",
        "native",
        archive.to_str().unwrap(),
    ]));
    let listed = run(&mut ctr(&["images", "list"]));
    daemon.stop(Duration::from_secs(10));
    assert!(
        listed.lines().any(|line| line.starts_with(&format!("{NAME} "))),
        "{listed}"
    );
    assert!(
        listed.contains("linux/amd64") || listed.contains("linux/arm64"),
        "{listed}"
    );
}
