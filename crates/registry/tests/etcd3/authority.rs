//! An authority and certificates from it, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// It lives as long as its directory.
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    pub fn new() -> Authority {
        let authority = Authority {
            dir: tempfile::tempdir().unwrap(),
        };
        let (key, cert) = authority.pair("ca");
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            &text(&key),
            "-out",
            &text(&cert),
        ]);
        authority
    }

    fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
        let path = |end: &str| self.dir.path().join(format!("{name}.{end}"));
        (path("key"), path("pem"))
    }

    pub fn cafile(&self) -> PathBuf {
        self.pair("ca").1
    }

    /// Key and certificate for 127.0.0.1 and localhost.
    pub fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        self.issue_for(name, 2)
    }

    /// The same, good for so many days from now; negative: until so many days ago.
    pub fn issue_for(&self, name: &str, days: i32) -> (PathBuf, PathBuf) {
        let ((key, cert), (ca_key, ca)) = (self.pair(name), self.pair("ca"));
        let request = self.dir.path().join(format!("{name}.csr"));
        let extensions = self.dir.path().join(format!("{name}.ext"));
        std::fs::write(&extensions, "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        let subject = format!("/CN={name}");
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &text(&key),
            "-out",
            &text(&request),
        ]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            &text(&request),
            "-CA",
            &text(&ca),
            "-CAkey",
            &text(&ca_key),
            "-CAcreateserial",
            "-days",
            &days.to_string(),
            "-extfile",
            &text(&extensions),
            "-out",
            &text(&cert),
        ]);
        (key, cert)
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output().unwrap();
    assert!(
        output.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
