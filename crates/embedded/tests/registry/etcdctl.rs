//! Debian's etcdctl against our server, its output compared with what it prints for a real etcd.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::rig::{PATIENCE, Process};

/// What one run of etcdctl left.
#[derive(Debug, PartialEq)]
struct Run {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

fn etcdctl(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", url])
        .args(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run_with(url: &str, args: &[&str], input: &str) -> Run {
    let mut child = etcdctl(url, args)
        .spawn()
        .expect("etcdctl (Debian package etcd-client) runs");
    child
        .stdin
        .take()
        .expect("stdin")
        .write_all(input.as_bytes())
        .expect("etcdctl reads");
    let output = child.wait_with_output().expect("etcdctl ends");
    // Log lines carry times and addresses; what is said about them is the last field.
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let stderr = stderr
        .lines()
        .filter(|line| !line.starts_with('{'))
        .collect::<Vec<_>>()
        .join("\n");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Run {
        stdout,
        stderr,
        code: output.status.code(),
    }
}

fn run(url: &str, args: &[&str]) -> Run {
    run_with(url, args, "")
}

/// Both servers as processes.
struct Both {
    ours: Process,
    etcd: Process,
    _dir: TempDir,
}

impl Both {
    async fn start() -> Both {
        let dir = TempDir::new().expect("a directory");
        Both {
            ours: Process::ours(dir.path()),
            etcd: Process::etcd().await,
            _dir: dir,
        }
    }

    /// The same command on both must print the same.
    fn same_with(&self, args: &[&str], input: &str) -> Run {
        let (ours, etcd) = (
            run_with(&self.ours.url, args, input),
            run_with(&self.etcd.url, args, input),
        );
        assert_eq!(ours, etcd, "left ours, right etcd: etcdctl {args:?}");
        ours
    }

    fn same(&self, args: &[&str]) -> String {
        self.same_with(args, "").stdout
    }

    /// JSON without what names the server.
    fn same_json(&self, args: &[&str]) -> Value {
        let json = |url: &str| {
            let run = run(url, args);
            let mut value: Value = serde_json::from_str(&run.stdout)
                .unwrap_or_else(|error| panic!("etcdctl {args:?} printed {run:?}: {error}"));
            if let Some(header) = value.get_mut("header").and_then(Value::as_object_mut) {
                for name in ["cluster_id", "member_id", "raft_term"] {
                    header.remove(name);
                }
            }
            value
        };
        let (ours, etcd) = (json(&self.ours.url), json(&self.etcd.url));
        assert_eq!(ours, etcd, "left ours, right etcd: etcdctl {args:?}");
        ours
    }
}

#[tokio::test]
async fn etcdctl_when_it_reads_and_writes_prints_what_it_prints_for_a_real_etcd() {
    let both = Both::start().await;
    assert_eq!(both.same(&["put", "a/1", "one"]), "OK\n");
    both.same(&["put", "a/2", "two"]);
    both.same(&["put", "--prev-kv", "a/2", "zwei"]);
    both.same(&["put", "b", "three"]);
    assert_eq!(both.same(&["get", "a/1"]), "a/1\none\n");
    both.same(&["get", "--prefix", "a/"]);
    both.same(&["get", "--prefix", "--keys-only", "a/"]);
    both.same(&[
        "get",
        "--prefix",
        "--print-value-only",
        "--order=DESCEND",
        "--sort-by=MODIFY",
        "",
    ]);
    both.same(&["get", "--from-key", "--limit=1", "a/2"]);
    both.same(&["get", "--rev=2", "--prefix", "a"]);
    assert_eq!(
        both.same_json(&["get", "--prefix", "a", "-w", "json"])["count"],
        2
    );
    both.same_json(&["get", "nothing", "-w", "json"]);
    both.same_with(&["get", ""], "");
    assert_eq!(
        both.same(&["del", "--prefix", "--prev-kv", "a/"]),
        "2\na/1\none\na/2\nzwei\n"
    );
    both.same(&["del", "a/1"]);

    let txn = "value(\"b\") = \"three\"\nversion(\"new\") = \"0\"\n\nput new created\nget b\n\nget new\n\n";
    assert!(both.same_with(&["txn"], txn).stdout.starts_with("SUCCESS"));
    assert!(both.same_with(&["txn"], txn).stdout.starts_with("FAILURE"));

    assert_eq!(both.same(&["compaction", "4"]), "compacted revision 4\n");
    assert!(
        both.same_with(&["compaction", "4"], "")
            .stderr
            .contains("has been compacted")
    );
    assert!(
        both.same_with(&["compaction", "99"], "")
            .stderr
            .contains("future revision")
    );
    assert!(
        both.same_with(&["get", "--rev=2", "b"], "")
            .stderr
            .contains("has been compacted")
    );
    both.same(&["compaction", "--physical", "5"]);
    both.same(&["get", "--prefix", ""]);
    both.same_json(&["get", "--prefix", "", "-w", "json"]);
    both.same(&["alarm", "list"]);
    both.same_json(&["alarm", "list", "-w", "json"]);
    both.same(&["alarm", "disarm"]);
}

#[tokio::test]
async fn etcdctl_when_it_leases_prints_what_it_prints_for_a_real_etcd() {
    let both = Both::start().await;
    assert_eq!(both.same(&["lease", "list"]), "found 0 leases\n");
    // etcdctl lets the server choose: what is printed is compared without the id.
    let mut ids = Vec::new();
    for url in [&both.ours.url, &both.etcd.url] {
        let granted = run(url, &["lease", "grant", "300"]).stdout;
        let words: Vec<&str> = granted.split_whitespace().collect();
        assert_eq!(
            [words[0], words[2], words[3]],
            ["lease", "granted", "with"],
            "{granted}"
        );
        let id = words[1].to_owned();
        assert_eq!(run(url, &["put", "--lease", &id, "leased", "v"]).stdout, "OK\n");
        let left = run(url, &["lease", "timetolive", "--keys", &id]).stdout;
        assert!(
            left.contains("granted with TTL(300s)") && left.contains("attached keys([leased])"),
            "{left}"
        );
        let alive = run(url, &["lease", "keep-alive", "--once", &id]).stdout;
        assert_eq!(alive, format!("lease {id} keepalived with TTL(300)\n"));
        assert_eq!(
            run(url, &["lease", "list"]).stdout,
            format!("found 1 leases\n{id}\n")
        );
        ids.push(id);
    }
    both.same_json(&[
        "get",
        "--prefix",
        "leas",
        "-w",
        "json",
        "--keys-only",
        "--rev",
        "1",
    ]);
    for (url, id) in [&both.ours.url, &both.etcd.url].into_iter().zip(&ids) {
        assert_eq!(
            run(url, &["lease", "revoke", id]).stdout,
            format!("lease {id} revoked\n")
        );
    }
    assert_eq!(both.same(&["get", "leased"]), "");
    assert_eq!(both.same(&["lock", "l", "echo", "held"]), "held\n");
    both.same(&["lease", "timetolive", "1234"]);
    both.same_with(&["lease", "revoke", "1234"], "");
    both.same_with(&["lease", "keep-alive", "--once", "1234"], "");
    both.same_with(&["put", "--lease=1234", "k", "v"], "");
}

/// etcdctl watching, ended when dropped.
struct Watching(Child);

impl Drop for Watching {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn etcdctl_when_it_watches_prints_what_it_prints_for_a_real_etcd() {
    let both = Both::start().await;
    both.same(&["put", "w/before", "1"]);
    let mut printed = Vec::new();
    for url in [&both.ours.url, &both.etcd.url] {
        let mut child = etcdctl(url, &["watch", "--prefix", "--prev-kv", "--rev=2", "w/"])
            .spawn()
            .expect("etcdctl");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let _watching = Watching(child);
        // The past comes first: once it is here, the watch is on.
        let mut text: Vec<String> = lines.by_ref().take(3).map(|line| line.expect("a line")).collect();
        run(url, &["put", "w/before", "2"]);
        run(url, &["del", "w/before"]);
        run(url, &["put", "w/last", "3"]);
        for line in lines {
            let line = line.expect("a line");
            let last = line == "3";
            text.push(line);
            if last {
                break;
            }
        }
        printed.push(text);
    }
    assert_eq!(
        printed[0],
        [
            "PUT", "w/before", "1", "PUT", "w/before", "1", "w/before", "2", "DELETE", "w/before", "2",
            "w/before", "", "PUT", "w/last", "3"
        ]
    );
    assert_eq!(printed[0], printed[1], "left ours, right etcd");
    both.same(&["compaction", "4"]);
    let compacted = |url: &str| {
        let mut child = etcdctl(url, &["watch", "--rev=2", "w/before"])
            .spawn()
            .expect("etcdctl");
        let started = Instant::now();
        while child.try_wait().expect("etcdctl").is_none() {
            assert!(
                started.elapsed() < PATIENCE,
                "etcdctl watches below a compaction for ever on {url}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut text = String::new();
        child
            .stderr
            .take()
            .expect("stderr")
            .read_to_string(&mut text)
            .expect("text");
        text.lines()
            .filter(|line| !line.starts_with('{'))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (ours, etcd) = (compacted(&both.ours.url), compacted(&both.etcd.url));
    assert_eq!(ours, etcd, "left ours, right etcd");
    assert!(ours.concat().contains("compacted"), "{ours:?}");
}

#[tokio::test]
async fn etcdctl_when_it_asks_for_status_gets_a_healthy_single_member() {
    let dir = TempDir::new().expect("a directory");
    let ours = Process::ours(dir.path());
    let health = run(&ours.url, &["endpoint", "health", "-w", "json"]);
    let health: Value = serde_json::from_str(&health.stdout).expect("JSON");
    assert_eq!(health[0]["health"], true, "{health}");
    let status = run(&ours.url, &["endpoint", "status", "-w", "json"]);
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    let status = &status[0]["Status"];
    assert_eq!(status["leader"], status["header"]["member_id"]);
    assert!(
        status["version"].as_str().expect("a version").starts_with("3.4."),
        "{status}"
    );
    assert!(status["dbSize"].as_u64().expect("a size") >= status["dbSizeInUse"].as_u64().expect("a size"));
    let members = run(&ours.url, &["member", "list", "-w", "json"]);
    let members: Value = serde_json::from_str(&members.stdout).expect("JSON");
    assert_eq!(members["members"][0]["ID"], status["leader"]);
    assert_eq!(members["members"][0]["clientURLs"][0], ours.url);
    // Given by the member list, so that the address in it must be one that answers.
    let cluster = run(&ours.url, &["endpoint", "health", "--cluster"]);
    assert_eq!(cluster.code, Some(0), "{cluster:?}");
    assert_eq!(run(&ours.url, &["defrag"]).code, Some(0));
}
