//! A real etcd on free loopback ports, and its own `etcdctl` as the independent witness.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fabric::alloc::PublicIps;
use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Delta, Snapshot, Subnet, Update};
use registry::etcd::{Options, TlsFiles};
use registry::{Etcd3, Registry, Wanted};
use tempfile::TempDir;

/// Long enough for anything on a loaded machine; no test passes or fails by less.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How clients reach the server.
#[derive(Debug, Clone, Default)]
pub struct ServerTls {
    pub certfile: PathBuf,
    pub keyfile: PathBuf,
    /// Demand client certificates from this authority.
    pub trusted: Option<PathBuf>,
}

/// One etcd; killed on drop.
pub struct Server {
    child: Child,
    pub dir: TempDir,
    client_port: u16,
    metrics_port: u16,
    peer_port: u16,
    tls: Option<ServerTls>,
    extra: Vec<String>,
}

pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn memory_dir() -> TempDir {
    let shm = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("registry-etcd-");
    if shm.is_dir() {
        builder.tempdir_in(shm).unwrap()
    } else {
        builder.tempdir().unwrap()
    }
}

impl Server {
    pub fn start() -> Server {
        Server::start_with(None, &[])
    }

    pub fn start_with(tls: Option<ServerTls>, extra: &[&str]) -> Server {
        let extra: Vec<String> = extra.iter().map(|word| (*word).to_owned()).collect();
        // Between choosing a port and binding it another test may take it: then again.
        for _ in 0..5 {
            let dir = memory_dir();
            let [client_port, metrics_port, peer_port] = [free_port(), free_port(), free_port()];
            let ports = [client_port, metrics_port, peer_port];
            let child = spawn(dir.path(), ports, tls.as_ref(), &extra);
            let mut server = Server {
                child,
                dir,
                client_port,
                metrics_port,
                peer_port,
                tls: tls.clone(),
                extra: extra.clone(),
            };
            if server.wait_healthy() {
                return server;
            }
        }
        panic!("etcd did not start; is the Debian package etcd-server installed?");
    }

    fn wait_healthy(&mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if healthy(self.metrics_port) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("etcd did not become healthy");
    }

    /// SIGKILL, and started again on the same data and ports.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        let ports = [self.client_port, self.metrics_port, self.peer_port];
        self.child = spawn(self.dir.path(), ports, self.tls.as_ref(), &self.extra);
        assert!(self.wait_healthy(), "etcd did not start again");
    }

    /// As [`start_again`](Server::start_again), with nothing in it any more.
    pub fn start_empty(&mut self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.start_again();
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(status.success());
    }

    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    pub fn client_port(&self) -> u16 {
        self.client_port
    }

    pub fn options(&self) -> Options {
        Options {
            endpoints: self.endpoint(),
            prefix: "/n".to_owned(),
            ..Options::default()
        }
    }

    pub fn client(&self) -> Arc<Etcd3> {
        Arc::new(Etcd3::new(&self.options()).unwrap())
    }

    fn etcdctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint()]);
        command.args(args);
        command
    }

    /// Runs etcdctl and returns what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = self.etcdctl_command(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {text}{errors}");
        text
    }

    /// One transaction of puts.
    pub fn put_all(&self, entries: &[(String, String)]) {
        let mut command = self.etcdctl_command(&["txn"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut text = "\n".to_owned();
        for (key, value) in entries {
            text.push_str(&format!("put {key} {value:?}\n"));
        }
        text.push_str("\n\n");
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && told.contains("SUCCESS"),
            "etcdctl txn: {told}{errors}"
        );
    }

    pub fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", key, value]);
    }

    /// Value of a key, in etcdctl's words.
    pub fn value(&self, key: &str) -> String {
        self.ctl(&["get", key, "--print-value-only"])
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Keys below a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let text = self.ctl(&["get", prefix, "--prefix", "--keys-only"]);
        text.lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// A number out of `etcdctl get -w json`: `create_revision`, `mod_revision`, `version` or `lease`; 0 when absent.
    pub fn field(&self, key: &str, name: &str) -> i64 {
        let text = self.ctl(&["get", key, "-w", "json"]);
        let kvs = text
            .split("\"kvs\":")
            .nth(1)
            .unwrap_or_else(|| panic!("no key {key}: {text}"));
        let Some(rest) = kvs.split(&format!("\"{name}\":")).nth(1) else {
            return 0;
        };
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }

    pub fn revision(&self) -> i64 {
        let text = self.ctl(&["get", "/none", "-w", "json"]);
        let rest = text.split("\"revision\":").nth(1).unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, ports: [u16; 3], tls: Option<&ServerTls>, extra: &[String]) -> Child {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let client = format!("{scheme}://127.0.0.1:{}", ports[0]);
    let metrics = format!("http://127.0.0.1:{}", ports[1]);
    let peer = format!("http://127.0.0.1:{}", ports[2]);
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir.join("data"));
    command.args([
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
    ]);
    command.args([
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
    ]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    command.args(["--listen-metrics-urls", &metrics]);
    if let Some(tls) = tls {
        command.arg("--cert-file").arg(&tls.certfile);
        command.arg("--key-file").arg(&tls.keyfile);
        if let Some(trusted) = &tls.trusted {
            command
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(trusted);
        }
    }
    command.args(extra);
    command
        .env_clear()
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null());
    command
        .spawn()
        .expect("etcd: install the Debian package etcd-server")
}

fn healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let request = "GET /health HTTP/1.0\r\n\r\n";
    let mut reply = String::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut reply).is_ok()
        && reply.contains("\"health\":\"true\"")
}

/// A network config as flannel reads it.
pub fn network(json: &str) -> NetworkConfig {
    NetworkConfig::parse(json.as_bytes()).unwrap()
}

/// What node `a.b.c.d` publishes with host-gw.
pub fn value_of(public_ip: &str) -> String {
    format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"host-gw"}}"#)
}

pub fn attributes_of(public_ip: &str) -> Attributes {
    Attributes::parse(value_of(public_ip).as_bytes()).unwrap()
}

pub fn subnet(key: &str) -> Subnet {
    Subnet::parse_key(key).unwrap()
}

/// What a node publishes for a subnet, given its former attributes.
pub type Publish = dyn Fn(&Subnet, Option<&Attributes>) -> Attributes + Send + Sync;

/// A node that publishes host-gw attributes.
pub struct Node {
    pub me: PublicIps,
    pub attributes: Box<Publish>,
    pub previous: Option<Subnet>,
}

impl Node {
    pub fn new(public_ip: &str) -> Node {
        let attributes = attributes_of(public_ip);
        Node {
            me: PublicIps {
                v4: Some(public_ip.parse().unwrap()),
                v6: None,
            },
            attributes: Box::new(move |_, _| attributes.clone()),
            previous: None,
        }
    }

    pub fn wanted<'a>(&'a self, config: &'a NetworkConfig) -> Wanted<'a> {
        Wanted {
            config,
            me: self.me,
            previous: self.previous,
            attributes: &*self.attributes,
        }
    }
}

/// A running watch and what it delivered. Ends with its drop.
pub struct Watching {
    task: tokio::task::JoinHandle<()>,
    updates: mpsc::Receiver<Update>,
}

impl Watching {
    pub fn start(etcd: &Arc<Etcd3>) -> Watching {
        let (sender, updates) = mpsc::channel();
        let etcd = Arc::clone(etcd);
        let task = tokio::spawn(async move {
            let sink = move |update| {
                let _ = sender.send(update);
            };
            match etcd.watch(&sink).await {}
        });
        Watching { task, updates }
    }

    pub async fn next(&self) -> Update {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.updates.try_recv() {
                Ok(update) => return update,
                Err(_) => assert!(Instant::now() < end, "no update arrived"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn snapshot(&self) -> Snapshot {
        match self.next().await {
            Update::Snapshot(snapshot) => snapshot,
            Update::Delta(delta) => panic!("expected a snapshot, got {delta:?}"),
        }
    }

    pub async fn delta(&self) -> Delta {
        match self.next().await {
            Update::Delta(delta) => delta,
            Update::Snapshot(snapshot) => panic!("expected a delta, got {snapshot:?}"),
        }
    }

    /// Whether nothing more has arrived by now.
    pub fn is_quiet(&self) -> bool {
        self.updates.try_recv().is_err()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Polls until `done`, or fails after [`PATIENCE`] naming what was waited for.
pub async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Options with these TLS files.
pub fn with_tls(server: &Server, cafile: &Path, pair: Option<(&Path, &Path)>) -> Options {
    Options {
        tls: TlsFiles {
            cafile: Some(cafile.to_owned()),
            certfile: pair.map(|(certfile, _)| certfile.to_owned()),
            keyfile: pair.map(|(_, keyfile)| keyfile.to_owned()),
        },
        ..server.options()
    }
}
