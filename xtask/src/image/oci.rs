//! An image in the form of the Open Container Initiative: blobs named by their SHA-256, a manifest that lists them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::archive::{self, Tree, What, executable, put, text};

/// A blob, as others refer to it.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:...`
    pub digest: String,
    size: u64,
    content: What,
}

/// An image for one platform.
#[derive(Debug)]
pub struct Image {
    /// Of which platform.
    pub platform: &'static str,
    /// What it is known by.
    pub manifest: Blob,
    /// Bytes of its files.
    pub unpacked: u64,
    /// The archive that container engines load.
    pub archive: PathBuf,
    /// Its layer, as a file of its own.
    pub layer: PathBuf,
    blobs: Vec<Blob>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Makes the image of a tree in a folder; `effort` is gzip's.
pub fn image(
    platform: &'static str,
    tree: &Tree,
    reference: &str,
    labels: &BTreeMap<String, String>,
    folder: &Path,
    effort: u8,
) -> Result<Image> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let plain = folder.join(format!("layer-{platform}.tar"));
    let mut out = BufWriter::new(File::create(&plain).with_context(|| plain.display().to_string())?);
    archive::write(tree, &mut out)?;
    out.flush()?;
    drop(out);
    let unpacked = of_file(&plain)?;
    let compressed = folder.join(format!("layer-{platform}.tar.gz"));
    compress(&plain, &compressed, effort)?;
    let layer = of_file(&compressed)?;
    std::fs::remove_file(&plain).with_context(|| plain.display().to_string())?;
    let config = of_text(config(platform, labels, &unpacked.digest))?;
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":{},\"config\":{},\"layers\":[{}]}}",
        json(MANIFEST),
        descriptor(CONFIG, &config, ""),
        descriptor(LAYER, &layer, ""),
    );
    let manifest = of_text(manifest)?;
    let image = Image {
        platform,
        manifest: manifest.clone(),
        unpacked: unpacked.size,
        archive: folder.join(format!("flannel-{}-{platform}.tar", env!("CARGO_PKG_VERSION"))),
        layer: compressed,
        blobs: vec![manifest, config.clone(), layer.clone()],
    };
    // docker reads manifest.json and containerd index.json; they name the same blobs.
    let mut loaded = Tree::new();
    let of_docker = format!(
        "[{{\"Config\":{},\"RepoTags\":[{}],\"Layers\":[{}]}}]",
        json(&place(&config)),
        json(reference),
        json(&place(&layer)),
    );
    put(&mut loaded, "manifest.json", text(&of_docker));
    lay_out(&mut loaded, reference, &[&image])?;
    let mut out =
        BufWriter::new(File::create(&image.archive).with_context(|| image.archive.display().to_string())?);
    archive::write(&loaded, &mut out)?;
    out.flush()?;
    Ok(image)
}

/// Writes images of several platforms into a folder, as one; its digest.
pub fn layout(folder: &Path, reference: &str, images: &[Image]) -> Result<String> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut tree = Tree::new();
    let images: Vec<&Image> = images.iter().collect();
    let digest = lay_out(&mut tree, reference, &images)?;
    for (path, entry) in &tree {
        let path = folder.join(path);
        match &entry.what {
            What::Folder => std::fs::create_dir_all(&path),
            What::Copy(from) => std::fs::copy(from, &path).map(drop),
            What::Text(content) => path
                .parent()
                .map_or(Ok(()), std::fs::create_dir_all)
                .and_then(|()| std::fs::write(&path, content)),
            What::Link(_) => continue,
        }
        .with_context(|| path.display().to_string())?;
    }
    Ok(digest)
}

/// An OCI layout of images: of one it names the manifest, of several an index of theirs. The digest of what it names.
fn lay_out(tree: &mut Tree, reference: &str, images: &[&Image]) -> Result<String> {
    put(tree, "oci-layout", text("{\"imageLayoutVersion\":\"1.0.0\"}"));
    for blob in images.iter().flat_map(|image| &image.blobs) {
        let mut entry = executable(PathBuf::new());
        entry.what = blob.content.clone();
        entry.mode = 0o644;
        put(tree, &place(blob), entry);
    }
    let (_, tag) = reference.rsplit_once(':').context("a reference without a tag")?;
    let name = format!(
        ",\"annotations\":{{\"io.containerd.image.name\":{},\"org.opencontainers.image.ref.name\":{}}}",
        json(reference),
        json(tag)
    );
    let described: Vec<String> = images
        .iter()
        .map(|image| {
            let platform = format!(
                ",\"platform\":{{\"architecture\":{},\"os\":\"linux\"}}",
                json(image.platform)
            );
            let name = if images.len() == 1 { name.as_str() } else { "" };
            descriptor(MANIFEST, &image.manifest, &format!("{platform}{name}"))
        })
        .collect();
    let index = |entries: &str| {
        format!(
            "{{\"schemaVersion\":2,\"mediaType\":{},\"manifests\":[{entries}]}}",
            json(INDEX)
        )
    };
    let digest = match images {
        [one] => {
            put(tree, "index.json", text(&index(&described.join(","))));
            one.manifest.digest.clone()
        }
        _ => {
            let all = of_text(index(&described.join(",")))?;
            put(tree, "index.json", text(&index(&descriptor(INDEX, &all, &name))));
            let mut entry = executable(PathBuf::new());
            entry.what = all.content.clone();
            entry.mode = 0o644;
            put(tree, &place(&all), entry);
            all.digest
        }
    };
    Ok(digest)
}

fn config(platform: &str, labels: &BTreeMap<String, String>, layer: &str) -> String {
    let labels: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{}:{}", json(key), json(value)))
        .collect();
    format!(
        "{{\"created\":\"1970-01-01T00:00:00Z\",\"architecture\":{},\"os\":\"linux\",\"config\":{{\
         \"Env\":[\"PATH=/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin\"],\"Entrypoint\":[\"/opt/bin/flanneld\"],\
         \"WorkingDir\":\"/\",\"Labels\":{{{}}}}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}},\
         \"history\":[{{\"created\":\"1970-01-01T00:00:00Z\",\"created_by\":\"cargo xtask dist --image\"}}]}}",
        json(platform),
        labels.join(","),
        json(layer),
    )
}

fn descriptor(kind: &str, blob: &Blob, more: &str) -> String {
    format!(
        "{{\"mediaType\":{},\"digest\":{},\"size\":{}{more}}}",
        json(kind),
        json(&blob.digest),
        blob.size
    )
}

fn place(blob: &Blob) -> String {
    format!("blobs/{}", blob.digest.replacen(':', "/", 1))
}

/// A text as JSON.
fn json(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(character);
            }
            control if u32::from(control) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

fn compress(from: &Path, to: &Path, effort: u8) -> Result<()> {
    let failed = |path: &Path| path.display().to_string();
    let mut gzip = Command::new("gzip");
    let status = gzip
        // Without the name and time of the file.
        .args(["--no-name", "--stdout", &format!("-{effort}")])
        .stdin(File::open(from).with_context(|| failed(from))?)
        .stdout(File::create(to).with_context(|| failed(to))?)
        .status()
        .context("gzip")?;
    if !status.success() {
        bail!("gzip of {} failed", failed(from));
    }
    Ok(())
}

fn of_file(path: &Path) -> Result<Blob> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let size = file.metadata()?.len();
    Ok(Blob {
        digest: digest(Stdio::from(file), b"")?,
        size,
        content: What::Copy(path.to_owned()),
    })
}

fn of_text(content: String) -> Result<Blob> {
    Ok(Blob {
        digest: digest(Stdio::piped(), content.as_bytes())?,
        size: u64::try_from(content.len())?,
        content: What::Text(content),
    })
}

/// The SHA-256 of what is on standard input, or of what is written to it.
fn digest(stdin: Stdio, content: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .context("sha256sum")?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(content)?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    match text.split(' ').next() {
        Some(digest) if output.status.success() && digest.len() == 64 => Ok(format!("sha256:{digest}")),
        _ => bail!("sha256sum said {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_when_made_of_a_text_or_a_file_has_the_same_digest() {
        let made = of_text("flannel\n".to_owned()).unwrap();
        assert_eq!(
            made.digest,
            "sha256:530702654fea2f1fd29acc3078b7f80f7ed11de23ee7c2f2d2ac0cfa4f07009f"
        );
        assert_eq!(place(&made), format!("blobs/sha256/{}", &made.digest[7..]));
        let file = std::env::temp_dir().join(format!("flannel-blob-{}", std::process::id()));
        std::fs::write(&file, "flannel\n").unwrap();
        let read = of_file(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!((read.digest, read.size), (made.digest, made.size));
    }

    #[test]
    fn text_when_written_as_json_is_quoted() {
        assert_eq!(json("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}
