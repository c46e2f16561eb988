//! `flannelctl registry serve` as a process: its lines, its exit statuses, its signals.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use tempfile::TempDir;

/// A server process, ended when dropped.
struct Server {
    child: Child,
    line: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannelctl"));
    command
        .args(["registry", "serve", "--data-dir"])
        .arg(dir)
        .args(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(dir: &Path) -> Server {
    let mut child = serve(dir, &["--listen", "127.0.0.1:0"])
        .spawn()
        .expect("flannelctl runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout"))
        .read_line(&mut line)
        .expect("a line");
    Server { child, line }
}

/// A run that ends by itself: its status and what it said on stderr, which is one line.
fn refused(command: &mut Command) -> (ExitStatus, String) {
    let output = command.output().expect("flannelctl runs");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
    (output.status, stderr)
}

#[test]
fn serve_when_it_is_ready_says_where_and_stops_on_a_signal() {
    let dir = TempDir::new().expect("a directory");
    for signal in ["TERM", "INT"] {
        let mut server = start(dir.path());
        let url = server
            .line
            .split_whitespace()
            .find(|word| word.starts_with("http://127.0.0.1:"));
        let address = url.expect("a URL").trim_start_matches("http://");
        assert!(std::net::TcpStream::connect(address).is_ok(), "{}", server.line);

        let (status, text) = refused(&mut serve(dir.path(), &["--listen", "127.0.0.1:0"]));
        assert_eq!(status.code(), Some(1));
        assert!(text.contains("another registry is running on it"), "{text}");
        let elsewhere = TempDir::new().expect("a directory");
        let (status, text) = refused(&mut serve(elsewhere.path(), &["--listen", address]));
        assert_eq!(status.code(), Some(1));
        assert!(text.contains(address) && text.contains("in use"), "{text}");

        let kill = Command::new("kill")
            .args(["-s", signal, &server.child.id().to_string()])
            .status();
        assert!(kill.expect("kill runs").success());
        assert_eq!(
            server.child.wait().expect("an end").code(),
            Some(0),
            "on SIG{signal}"
        );
        let mut stderr = String::new();
        server
            .child
            .stderr
            .take()
            .expect("stderr")
            .read_to_string(&mut stderr)
            .expect("text");
        assert_eq!(stderr, "");
    }
}

#[test]
fn serve_when_it_would_be_exposed_or_is_misused_says_so_in_one_line() {
    let dir = TempDir::new().expect("a directory");
    let (status, text) = refused(&mut serve(dir.path(), &["--listen", "0.0.0.0:0"]));
    assert_eq!(status.code(), Some(1));
    assert!(text.contains("--insecure"), "{text}");
    for args in [["--listen"].as_slice(), &["--cert-file", "c"], &["--frobnicate"]] {
        let (status, text) = refused(&mut serve(dir.path(), args));
        assert_eq!(status.code(), Some(2), "{text}");
        assert!(text.contains(args[0]), "{text}");
    }
}

/// On some of these pages the storage engine panics instead of returning an error.
#[test]
fn serve_when_a_page_of_its_file_is_zeroed_serves_or_says_damaged_in_one_line() {
    let dir = TempDir::new().expect("a directory");
    drop(start(dir.path()));
    let path = dir.path().join("registry.redb");
    let whole = fs::read(&path).expect("the store");
    let page = 4096;
    let mut refusals = 0;
    for at in (page..whole.len()).step_by(page).filter(|at| whole[*at] != 0) {
        let file = fs::File::options().write(true).open(&path).expect("the store");
        file.write_all_at(&vec![0; page], u64::try_from(at).expect("small"))
            .expect("a page");
        let mut server = start(dir.path());
        if server.line.is_empty() {
            let status = server.child.wait().expect("an end");
            let mut text = String::new();
            server
                .child
                .stderr
                .take()
                .expect("stderr")
                .read_to_string(&mut text)
                .expect("text");
            assert_eq!(status.code(), Some(1), "{text}");
            assert!(
                text.contains("damaged") && text.trim_end().lines().count() == 1,
                "{text}"
            );
            refusals += 1;
        }
        drop(server);
        fs::write(&path, &whole).expect("the whole store");
    }
    assert!(refusals > 0, "no page of the store counts");
    assert!(start(dir.path()).line.contains("listening"));
}

/// An authority, and a certificate of it for 127.0.0.1 that serves both sides.
fn certificates(dir: &Path) {
    let script = "set -e
        new='openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        $new -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        $new -x509 -days 2 -subj /CN=other -keyout other.key -out other.pem
        $new -subj /CN=lab -keyout lab.key -out lab.csr
        echo subjectAltName=IP:127.0.0.1 > lab.ext
        openssl x509 -req -in lab.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile lab.ext -out lab.pem";
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .output()
        .expect("sh runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn client_when_the_scheme_or_a_file_is_wrong_says_which() {
    let dir = TempDir::new().expect("a directory");
    let server = start(dir.path());
    let url = server
        .line
        .split_whitespace()
        .find(|word| word.starts_with("http://"));
    let url = url.expect("a URL").replace("http://", "https://");
    let ls = |url: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannelctl"));
        let (status, text) = refused(
            command
                .args(["registry", "ls", "--endpoints", url, "/"])
                .args(more),
        );
        assert_eq!(status.code(), Some(1), "{text}");
        text
    };
    certificates(dir.path());
    let authority = dir.path().join("ca.pem").display().to_string();
    let text = ls(&url, &["--cafile", &authority]);
    assert!(text.contains("its URL begins with http://"), "{text}");
    assert!(text.contains(&url), "{text}");
    // Told also where nobody listens, and once.
    for missing in ["/nonexistent/ca.pem", "/dev/null"] {
        let text = ls("https://127.0.0.1:1", &["--cafile", missing]);
        assert_eq!(text.matches(missing).count(), 1, "{text}");
        assert!(text.contains("etcd-cafile"), "{text}");
    }
}

#[test]
fn client_when_the_registry_speaks_tls_needs_the_right_files() {
    let dir = TempDir::new().expect("a directory");
    let files = dir.path();
    certificates(files);
    let file = |name: &str| files.join(name).display().to_string();
    let flags = [
        "--cert-file",
        &file("lab.pem"),
        "--key-file",
        &file("lab.key"),
        "--trusted-ca-file",
        &file("ca.pem"),
        "--listen",
        "127.0.0.1:0",
    ];
    let mut child = serve(&files.join("data"), &flags)
        .spawn()
        .expect("flannelctl runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout"))
        .read_line(&mut line)
        .expect("a line");
    let server = Server { child, line };
    let word = |word: &&str| word.starts_with("https://");
    let url = server.line.split_whitespace().find(word).expect("a URL");
    let client = |verb: &str, tls: &[&str], words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannelctl"));
        command
            .args(["registry", verb, "--endpoints", url])
            .args(tls)
            .args(words);
        let output = command.output().expect("flannelctl runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (ca, other, cert, key) = (
        file("ca.pem"),
        file("other.pem"),
        file("lab.pem"),
        file("lab.key"),
    );
    let right = ["--cafile", &ca, "--certfile", &cert, "--keyfile", &key];
    assert_eq!(client("put", &right, &["/a", "1"]).0, Some(0));
    assert_eq!(
        client("get", &right, &["/a"]),
        (Some(0), "1\n".to_owned(), String::new())
    );
    assert_eq!(client("ls", &right, &["/"]).1, "/a\n");
    for wrong in [
        &["--cafile", &ca][..],
        &["--cafile", &other, "--certfile", &cert, "--keyfile", &key],
        &["--certfile", &cert, "--keyfile", &key],
        &["--cafile", "/nonexistent"],
    ] {
        let (code, out, why) = client("get", wrong, &["/a"]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{wrong:?}: {why}");
        assert!(!why.is_empty() && why.lines().count() == 1, "{why}");
    }
    let (code, _, why) = client("get", &["--certfile", &cert], &["/a"]);
    assert_eq!(code, Some(2), "{why}");
    assert_eq!(client("del", &right, &["/a"]).0, Some(0));
    assert_eq!(client("get", &right, &["/a"]).0, Some(1));
}
