//! Servers to test against: ours in this process or as a process to be killed, and Debian's etcd.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use embedded::{Bound, ServeOptions};
use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::cluster_client::ClusterClient;
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_proto::etcdserverpb::watch_client::WatchClient;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// All clients of one server.
#[derive(Clone)]
pub struct Clients {
    pub kv: KvClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub lease: LeaseClient<Channel>,
    pub cluster: ClusterClient<Channel>,
    pub maintenance: MaintenanceClient<Channel>,
}

impl Clients {
    /// Connects, waiting for a server that is just starting.
    pub async fn connect(url: &str) -> Clients {
        let started = Instant::now();
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("URL");
        loop {
            let error = match endpoint.connect().await {
                Ok(channel) => {
                    let mut clients = Clients::over(channel);
                    // A real etcd accepts before it has a leader.
                    match clients
                        .kv
                        .range(pb::RangeRequest {
                            key: b"x".to_vec(),
                            ..Default::default()
                        })
                        .await
                    {
                        Ok(_) => return clients,
                        Err(status) => status.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            assert!(started.elapsed() < PATIENCE, "{url} does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn over(channel: Channel) -> Clients {
        let limit = 64 << 20;
        Clients {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(limit),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(limit),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel),
        }
    }
}

/// A server of ours in this process.
pub struct Ours {
    pub url: String,
    bound: Bound,
    stop: oneshot::Sender<()>,
}

impl Ours {
    pub async fn start(dir: &Path) -> Ours {
        let (stop, stopped) = oneshot::channel();
        let options = ServeOptions {
            listen: vec!["127.0.0.1:0".into()],
            data_dir: dir.to_owned(),
            tls: None,
            insecure: false,
        };
        let shutdown = async move {
            let _ = stopped.await;
        };
        let bound = embedded::serve(options, shutdown)
            .await
            .expect("our server starts");
        Ours {
            url: bound.urls()[0].clone(),
            bound,
            stop,
        }
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.bound.finished().await.expect("our server stops cleanly");
    }
}

/// A child process, killed when dropped.
pub struct Process {
    pub url: String,
    child: Child,
    _dir: Option<TempDir>,
}

impl Process {
    /// Ours, on data that outlives it.
    pub fn ours(dir: &Path) -> Process {
        let mut command = Command::new(example("serve"));
        command.arg(dir);
        Process::ready(command)
    }

    /// Ours, whose words are kept.
    pub fn ours_heard(dir: &Path) -> Process {
        let mut command = Command::new(example("serve"));
        command.arg(dir).stderr(Stdio::piped());
        Process::ready(command)
    }

    /// Kills it; what it has said on stderr.
    pub fn said(mut self) -> String {
        self.child.kill().expect("a child");
        let mut text = String::new();
        let stderr = self.child.stderr.take();
        stderr.expect("stderr").read_to_string(&mut text).expect("text");
        text
    }

    /// Ours on a disk that takes only so many kilobytes per file.
    pub fn ours_on_a_small_disk(dir: &Path, kilobytes: usize) -> Process {
        let mut command = Command::new("bash");
        // Ignored, so that the write fails instead of ending the process.
        let script = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$0\" \"$1\"");
        command
            .args(["-c", &script])
            .arg(example("serve"))
            .arg(dir)
            .stderr(Stdio::piped());
        Process::ready(command)
    }

    fn ready(mut command: Command) -> Process {
        let spawned = command.stdout(Stdio::piped()).spawn();
        let mut child = spawned.expect("examples/serve runs: cargo test -p embedded builds it");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the ready line");
        assert!(line.starts_with("http://"), "ready line: {line:?}");
        Process {
            url: line.trim().to_owned(),
            child,
            _dir: None,
        }
    }

    /// How it ended by itself, and what it said about that.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        while self.child.try_wait().expect("a child").is_none() {
            assert!(started.elapsed() < PATIENCE, "the server goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .expect("stderr")
            .read_to_string(&mut text)
            .expect("text");
        (self.child.wait().expect("a child").code(), text)
    }

    /// Starts ours and kills it, ready or not.
    pub fn killed_after(dir: &Path, time: Duration) {
        let child = Command::new(example("serve"))
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()
            .expect("examples/serve");
        std::thread::sleep(time);
        Process {
            url: String::new(),
            child,
            _dir: None,
        }
        .kill();
    }

    /// Debian's etcd, empty, writing to a directory of its own.
    pub async fn etcd() -> Process {
        for _ in 0..5 {
            let dir = TempDir::new().expect("a directory for etcd");
            let name = dir
                .path()
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let mut etcd = Process::spawn_etcd(dir, &name);
            if !etcd.listens().await {
                continue;
            }
            let mut clients = Clients::connect(&etcd.url).await;
            let request = pb::MemberListRequest { linearizable: false };
            let members = clients
                .cluster
                .member_list(request)
                .await
                .expect("members")
                .into_inner()
                .members;
            let status = clients
                .maintenance
                .status(pb::StatusRequest {})
                .await
                .expect("status")
                .into_inner();
            assert!(
                status.version.starts_with("3.4."),
                "the reference is etcd 3.4, not {}",
                status.version
            );
            // Ports are chosen before etcd takes them: another test's etcd may have been quicker.
            if members.iter().any(|member| member.name == name) {
                return etcd;
            }
        }
        panic!("no free ports for etcd");
    }

    fn spawn_etcd(dir: TempDir, name: &str) -> Process {
        let (client, peer) = (free_url(), free_url());
        let child = Command::new("etcd")
            .args(["--name", name, "--data-dir"])
            .arg(dir.path())
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args([
                "--initial-cluster",
                &format!("{name}={peer}"),
                "--logger",
                "zap",
                "--log-level",
                "error",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd (Debian package etcd-server) runs");
        Process {
            url: client,
            child,
            _dir: Some(dir),
        }
    }

    /// Waits for the port; false when the process has ended instead.
    async fn listens(&mut self) -> bool {
        let started = Instant::now();
        while std::net::TcpStream::connect(self.url.trim_start_matches("http://")).is_err() {
            if self.child.try_wait().expect("a child").is_some() {
                return false;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "etcd does not listen on {}",
                self.url
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // SIGKILL; an error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    test.parent()
        .and_then(Path::parent)
        .expect("target/debug")
        .join("examples")
        .join(name)
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("its address"))
}

/// Small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % u64::try_from(bound).expect("small")).expect("small")
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}
