//! A network namespace for one test, gone when the test is.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use kernel::netns::Netns;
use serde_json::Value;

pub struct Scratch {
    name: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Scratch {
    /// A namespace with `lo` up and a veth `eth0` (192.0.2.1/24, 2001:db8::1/64) whose other end is up too.
    pub fn new() -> Scratch {
        let scratch = Scratch::empty();
        scratch.ip("link add eth0 type veth peer name far0");
        scratch.ip("link set far0 up");
        scratch.ip("link set eth0 up");
        scratch.ip("address add 192.0.2.1/24 dev eth0");
        scratch.ip("address add 2001:db8::1/64 dev eth0 nodad");
        scratch
    }

    pub fn empty() -> Scratch {
        let name = format!(
            "kt{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        run("ip", &["netns", "add", &name]);
        let scratch = Scratch { name };
        scratch.ip("link set lo up");
        scratch
    }

    /// As `ip -n` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    pub fn netns(&self) -> Netns {
        Netns::open(self.path()).unwrap()
    }

    /// Moves the calling (test's own) thread inside, and opens a kernel there.
    pub fn kernel(&self, links: &[&str], networks: &[&str]) -> kernel::Kernel {
        self.netns().enter().unwrap();
        kernel::Kernel::open(interest(links, networks)).unwrap()
    }

    pub fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    pub fn bridge(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run("bridge", &all)
    }

    /// `ip -j <arguments>`.
    pub fn ip_json(&self, arguments: &str) -> Vec<Value> {
        parse(&self.ip(&format!("-j {arguments}")))
    }

    pub fn bridge_json(&self, arguments: &str) -> Vec<Value> {
        parse(&self.bridge(&format!("-j {arguments}")))
    }

    /// Runs `ip -batch` over these lines, in one process.
    pub fn batch(&self, program: &str, lines: &str) {
        use std::io::Write;
        let mut child = Command::new(program)
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{program} -batch");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub fn interest(links: &[&str], networks: &[&str]) -> kernel::Interest {
    kernel::Interest {
        links: links.iter().map(|name| link(name)).collect(),
        networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

pub fn link(name: &str) -> fabric::object::LinkName {
    fabric::object::LinkName::new(name).unwrap()
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {}: {stderr}",
        arguments.join(" ")
    );
    String::from_utf8(output.stdout).unwrap()
}

/// iproute2 prints nothing at all for an empty list.
fn parse(text: &str) -> Vec<Value> {
    if text.trim().is_empty() {
        Vec::new()
    } else {
        serde_json::from_str(text).unwrap()
    }
}
