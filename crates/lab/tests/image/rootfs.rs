//! The image in a folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The archive.
pub fn archive() -> PathBuf {
    let path = std::env::var_os("FLANNEL_IMAGE");
    let path = path.unwrap_or_else(|| {
        panic!(
            "FLANNEL_IMAGE names the image's archive; `cargo xtask test --suite image` makes it and sets this"
        )
    });
    PathBuf::from(path)
}

/// Runs a program, which has to succeed; what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("flannel-image-{}", lab::rig::unique_name()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The image as an engine unpacks it.
pub struct Image {
    folder: Folder,
    /// Its manifest for Docker.
    pub docker: Value,
    /// Its configuration.
    pub config: Value,
}

impl Image {
    /// Unpacks the archive, and its layer.
    pub fn open() -> Image {
        let folder = Folder::new();
        let blobs = folder.path().join("archive");
        std::fs::create_dir_all(&blobs).unwrap();
        run(Command::new("tar")
            .arg("-xf")
            .arg(archive())
            .arg("-C")
            .arg(&blobs));
        let json = |name: &str| -> Value {
            serde_json::from_slice(&std::fs::read(blobs.join(name)).unwrap()).unwrap()
        };
        let docker = json("manifest.json");
        let config = json(docker[0]["Config"].as_str().unwrap());
        let image = Image {
            folder,
            docker,
            config,
        };
        std::fs::create_dir_all(image.root()).unwrap();
        run(Command::new("tar")
            .arg("-xzf")
            .arg(image.layer())
            .arg("-C")
            .arg(image.root()));
        image
    }

    /// Where the archive is unpacked.
    pub fn unpacked(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    /// The one layer.
    pub fn layer(&self) -> PathBuf {
        let layers = self.docker[0]["Layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1);
        self.unpacked().join(layers[0].as_str().unwrap())
    }

    /// The root of its file system.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    /// A folder of the node's, empty at first.
    pub fn host(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join("host").join(name.trim_start_matches('/'));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// What a file of the image says.
    pub fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root().join(path)).unwrap()
    }
}
