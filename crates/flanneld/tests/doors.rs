//! The health port and the status socket, spoken to over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fabric::status::{PodNetwork, Pods, Status};
use flanneld::flags::Health;
use flanneld::http::{self, Later, Subject};
use flanneld::metrics::Numbers;
use flanneld::socket::{self, SocketError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A daemon that says what it is told to say.
#[derive(Default)]
struct Fake {
    dead: AtomicBool,
    paused: AtomicBool,
    reasons: Mutex<Vec<String>>,
}

impl Subject for Fake {
    fn silence(&self) -> Option<String> {
        let dead = self.dead.load(Ordering::Relaxed);
        dead.then(|| "thread engine is silent for 23 s".to_owned())
    }

    fn reasons(&self) -> Vec<String> {
        self.reasons.lock().unwrap().clone()
    }

    fn pods(&self) -> Pods {
        Pods {
            network: PodNetwork::Member,
            reasons: self.reasons(),
        }
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            peers: 3,
            ..Numbers::default()
        }
    }

    fn status(&self) -> Later<'_, Status> {
        let status = Status {
            paused: self.paused.load(Ordering::Relaxed),
            mtu: 1450,
            ..Status::default()
        };
        Box::pin(async { status })
    }

    fn plan(&self) -> Later<'_, Result<Vec<String>, String>> {
        let dead = self.dead.load(Ordering::Relaxed);
        Box::pin(async move {
            if dead {
                Err("no leases yet".into())
            } else {
                Ok(vec!["add route".into()])
            }
        })
    }

    fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
}

struct Served {
    fake: Arc<Fake>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
}

fn health(host: &str, port: u16) -> Health {
    Health {
        host: host.into(),
        port,
    }
}

/// Serves on a free loopback port.
fn served() -> Served {
    let fake = Arc::new(Fake::default());
    let listener = http::bind(&health("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let subject = Arc::clone(&fake);
    let server = tokio::spawn(async move { http::serve_tcp(listener, subject, stopped).await.unwrap() });
    Served {
        fake,
        address,
        stop,
        server,
    }
}

/// Status line, head, and body of an answer.
struct Answer {
    status: String,
    head: String,
    body: String,
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, method: &str, path: &str) -> Answer {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.lines().next().unwrap().to_owned();
    Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

impl Served {
    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        ask(TcpStream::connect(self.address).await.unwrap(), method, path).await
    }
}

#[tokio::test]
async fn healthz_and_readyz_when_asked_answer_as_the_reference_byte_for_byte() {
    let served = served();
    let answer = served.get("/healthz").await;
    assert_eq!(
        (answer.status.as_str(), answer.body.as_str()),
        ("HTTP/1.1 200 OK", "flanneld is running")
    );
    assert!(
        answer.head.contains("content-type: text/plain; charset=utf-8"),
        "{}",
        answer.head
    );
    let answer = served.get("/readyz").await;
    assert_eq!(
        (answer.status.as_str(), answer.body.as_str()),
        ("HTTP/1.1 200 OK", "flanneld is ready")
    );

    *served.fake.reasons.lock().unwrap() = vec!["no lease yet".into(), "rules are missing".into()];
    let answer = served.get("/readyz").await;
    assert_eq!(answer.status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(answer.body, "flanneld is not ready yet");
    let answer = served.get("/readyz?verbose").await;
    assert_eq!(
        answer.body,
        "flanneld is not ready yet\nno lease yet\nrules are missing\n"
    );
    assert_eq!(
        served.get("/healthz").await.status,
        "HTTP/1.1 200 OK",
        "not ready is not dead"
    );

    served.fake.dead.store(true, Ordering::Relaxed);
    let answer = served.get("/healthz").await;
    assert_eq!(answer.status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(
        answer.body,
        "flanneld does not come round\nthread engine is silent for 23 s\n"
    );
}

#[tokio::test]
async fn health_port_when_asked_anything_takes_any_method_and_shows_nothing_else() {
    let served = served();
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(
            served.ask(method, "/healthz").await.body,
            "flanneld is running",
            "{method}"
        );
    }
    let answer = served.ask("HEAD", "/readyz").await;
    assert_eq!(
        (answer.status.as_str(), answer.body.as_str()),
        ("HTTP/1.1 200 OK", "")
    );
    for path in [
        "/",
        "/healthz/",
        "/status",
        "/plan",
        "/pause",
        "/resume",
        "/%00",
        "/healthz%20",
    ] {
        let answer = served.ask("POST", path).await;
        assert_eq!(
            (answer.status.as_str(), answer.body.as_str()),
            ("HTTP/1.1 404 Not Found", "404 page not found\n")
        );
    }
    assert!(!served.fake.paused.load(Ordering::Relaxed));
}

#[tokio::test]
async fn metrics_when_scraped_are_open_metrics() {
    let served = served();
    let answer = served.get("/metrics").await;
    assert!(
        answer
            .head
            .contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{}",
        answer.head
    );
    assert!(
        answer.body.contains("\nflannel_leases 3\n") && answer.body.ends_with("# EOF\n"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn health_port_when_many_ask_at_once_or_send_rubbish_answers_all() {
    let served = served();
    for rubbish in [
        &b"\x00\xff\r\n\r\n"[..],
        b"GET",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(rubbish).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut ignored = Vec::new();
        let _ = stream.read_to_end(&mut ignored).await;
    }
    let all: Vec<_> = (0..200)
        .map(|_| {
            let address = served.address;
            tokio::spawn(async move {
                ask(TcpStream::connect(address).await.unwrap(), "GET", "/healthz")
                    .await
                    .body
            })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap(), "flanneld is running");
    }
}

#[tokio::test]
async fn serve_when_told_to_stop_ends_although_a_connection_stays_open() {
    let served = served();
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut start = [0; 15];
    idle.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    served.stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(30), served.server)
        .await
        .expect("the server ends")
        .unwrap();
    assert!(
        TcpStream::connect(served.address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn bind_when_the_address_cannot_be_had_says_which() {
    let taken = http::bind(&health("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = http::bind(&health("127.0.0.1", port)).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot serve health on 127.0.0.1:{port}: ")),
        "{error}"
    );
    assert!(
        http::bind(&health("192.0.2.254", port)).is_err(),
        "not an address of this host"
    );
    assert!(http::bind(&health("not a name", 0)).is_err());
    assert!(
        http::bind(&health("", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .ip()
            .is_unspecified()
    );
    assert_eq!(
        http::bind(&health("0.0.0.0", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .ip(),
        Ipv4Addr::UNSPECIFIED
    );
    assert!(
        http::bind(&health("localhost", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .ip()
            .is_loopback()
    );
}

#[tokio::test]
async fn status_socket_when_asked_serves_status_plan_pause_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/flannel/flanneld.sock");
    let (listener, held) = socket::take(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    let fake = Arc::new(Fake::default());
    let (stop, stopped) = watch::channel(false);
    let subject = Arc::clone(&fake) as Arc<dyn Subject>;
    let server = tokio::spawn(async move { http::serve_unix(listener, subject, stopped).await.unwrap() });
    let request =
        async |method: &str, what: &str| ask(UnixStream::connect(&path).await.unwrap(), method, what).await;

    let status: Status = serde_json::from_str(&request("GET", "/status").await.body).unwrap();
    assert_eq!((status.mtu, status.paused), (1450, false));
    assert_eq!(request("GET", "/healthz").await.body, "flanneld is running");
    assert_eq!(request("GET", "/plan").await.body, r#"{"ops":["add route"]}"#);
    assert_eq!(
        request("GET", "/pods").await.body,
        r#"{"network":"member","reasons":[]}"#
    );
    let answer = request("GET", "/pause").await;
    assert_eq!(answer.status, "HTTP/1.1 405 Method Not Allowed");
    assert!(answer.head.contains("allow: post"), "{}", answer.head);
    assert_eq!(request("POST", "/pause").await.body, r#"{"paused":true}"#);
    let status: Status = serde_json::from_str(&request("GET", "/status").await.body).unwrap();
    assert!(status.paused);
    assert_eq!(request("POST", "/resume").await.body, r#"{"paused":false}"#);
    assert!(!fake.paused.load(Ordering::Relaxed));
    assert_eq!(
        request("POST", "/status").await.status,
        "HTTP/1.1 405 Method Not Allowed"
    );
    fake.dead.store(true, Ordering::Relaxed);
    let answer = request("GET", "/plan").await;
    assert_eq!(
        (answer.status.as_str(), answer.body.as_str()),
        ("HTTP/1.1 503 Service Unavailable", "no leases yet")
    );

    stop.send(true).unwrap();
    server.await.unwrap();
    drop(held);
    assert!(!path.exists(), "the socket goes with its holder");
}

#[tokio::test]
async fn take_when_a_dead_daemon_left_its_socket_replaces_it_and_refuses_a_living_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a listener that dies leaves its socket");
    let (listener, held) = socket::take(&path).unwrap();
    let error = socket::take(&path).unwrap_err();
    assert!(
        matches!(error, SocketError::Taken { .. }) && error.to_string().contains("another flanneld"),
        "{error}"
    );
    // The holder dies without cleaning up, another takes over; the first one's late clean-up leaves that alone.
    drop(listener);
    let (_other_listener, other) = socket::take(&path).unwrap();
    drop(held);
    assert!(path.exists());
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    drop(other);
    assert!(!path.exists());
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing is left behind"
    );
}

#[tokio::test]
async fn take_when_something_else_is_there_leaves_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "text").unwrap();
    assert!(matches!(socket::take(&path), Err(SocketError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    let long: PathBuf = folder.path().join("x".repeat(100));
    assert!(matches!(socket::take(&long), Err(SocketError::TooLong { .. })));
    assert!(matches!(
        socket::take(&path.join("below-a-file")),
        Err(SocketError::System { .. })
    ));
}

#[test]
fn path_for_when_daemons_have_different_subnet_files_gives_different_sockets() {
    let path = |file: &str| socket::path_for(Path::new(file)).to_str().unwrap().to_owned();
    assert_eq!(path("/run/flannel/subnet.env"), "/run/flannel/flanneld.sock");
    assert_eq!(path("/vxlan.env"), "/vxlan.env.sock");
    assert_eq!(path("/run/flannel/two.env"), "/run/flannel/two.env.sock");
    assert!(path("relative.env").starts_with('/'));
}

/// A server with a thread of its own, as the daemon's is one.
struct Apart {
    address: SocketAddr,
    socket: PathBuf,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.thread.take().unwrap().join();
    }
}

fn apart() -> Apart {
    let listener = http::bind(&health("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a.sock");
    let (local, held) = socket::take(&socket).unwrap();
    let (stop, stopped) = watch::channel(false);
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let subject = Arc::new(Fake::default());
        runtime.block_on(async {
            let network = http::serve_tcp(listener, Arc::clone(&subject) as _, stopped.clone());
            let local = http::serve_unix(local, subject, stopped);
            let (network, local) = tokio::join!(network, local);
            network.and(local).unwrap();
        });
        drop(held);
    });
    Apart {
        address,
        socket,
        stop,
        thread: Some(thread),
        _folder: folder,
    }
}

/// Both doors, as a client that blocks sees them.
trait Client: std::io::Read + std::io::Write + Send {
    fn block(&self, block: bool);
}

impl Client for std::net::TcpStream {
    fn block(&self, block: bool) {
        self.set_nonblocking(!block).unwrap();
    }
}

impl Client for std::os::unix::net::UnixStream {
    fn block(&self, block: bool) {
        self.set_nonblocking(!block).unwrap();
    }
}

const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

/// What a crowd does to a door. Whoever is thrown out comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crowd {
    /// Connects and says nothing.
    Silent,
    /// Asks once, takes the answer and stays.
    KeepAlive,
    /// Asks a byte a second.
    Slow,
    /// Asks on and on and takes no answer.
    Greedy,
}

impl Crowd {
    fn comes<S: Client>(self, connect: impl Fn() -> std::io::Result<S>) -> Option<S> {
        let mut stream = connect().ok()?;
        if self == Crowd::KeepAlive {
            stream.write_all(REQUEST).ok()?;
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).ok()?;
        }
        stream.block(false);
        Some(stream)
    }

    /// Goes on with what it does; false when it was thrown out.
    fn acts(self, stream: &mut (impl Client + ?Sized), n: usize) -> bool {
        let alive = |done: std::io::Result<usize>| match done {
            Ok(n) => n > 0,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        };
        match self {
            Crowd::Silent | Crowd::KeepAlive => alive(stream.read(&mut [0; 1024])),
            Crowd::Slow => alive(stream.write(&REQUEST[n % REQUEST.len()..][..1])),
            Crowd::Greedy => alive(stream.write(&REQUEST.repeat(100))),
        }
    }
}

/// Lets a crowd in, and measures how long a prober waits meanwhile; the waits, in order.
fn probe_beside<S: Client>(
    crowd: Crowd,
    many: usize,
    connect: impl Fn() -> std::io::Result<S> + Sync,
) -> Vec<Duration> {
    let stop = AtomicBool::new(false);
    let there = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut all: Vec<Option<S>> = (0..many).map(|_| crowd.comes(&connect)).collect();
            there.wait();
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                for place in &mut all {
                    if !place.as_mut().is_some_and(|stream| crowd.acts(stream, rounds)) {
                        *place = crowd.comes(&connect);
                    }
                }
                rounds += 1;
                let pause = if crowd == Crowd::Slow { 1000 } else { 50 };
                std::thread::sleep(Duration::from_millis(pause));
            }
        });
        there.wait();
        let mut waits: Vec<Duration> = (0..20)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(60));
                let asked = std::time::Instant::now();
                let mut stream = connect().unwrap();
                stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = String::new();
                let read = stream.read_to_string(&mut answer);
                assert!(
                    read.is_ok() && answer.ends_with("flanneld is running"),
                    "{crowd:?}: {read:?} {answer:?}"
                );
                asked.elapsed()
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        waits.sort();
        waits
    })
}

#[test]
fn doors_when_others_hold_connections_without_end_answer_a_prober_at_once() {
    let served = apart();
    for (crowd, many) in [
        (Crowd::Silent, 64),
        (Crowd::Silent, 200),
        (Crowd::KeepAlive, 200),
        (Crowd::Slow, 200),
        (Crowd::Greedy, 64),
    ] {
        let by_port = probe_beside(crowd, many, || std::net::TcpStream::connect(served.address));
        let by_socket = probe_beside(crowd, many, || {
            std::os::unix::net::UnixStream::connect(&served.socket)
        });
        for waits in [by_port, by_socket] {
            // The median, because this machine may have other things to do.
            assert!(waits[10] < Duration::from_millis(100), "{crowd:?}: {waits:?}");
        }
    }
}

#[test]
fn doors_when_a_request_comes_slowly_or_its_answer_is_not_fetched_close_the_connection() {
    let served = apart();
    let lasts = |crowd: Crowd, mut stream: Box<dyn Client>| {
        stream.block(false);
        let begun = std::time::Instant::now();
        for n in 0.. {
            let acted = match crowd {
                Crowd::Greedy => crowd.acts(&mut *stream, n),
                // A byte every now and then is progress and no excuse.
                _ => crowd.acts(&mut *stream, n.min(REQUEST.len() - 3)),
            };
            if !acted || begun.elapsed() > Duration::from_secs(60) {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        begun.elapsed()
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = [Crowd::Slow, Crowd::Greedy]
            .into_iter()
            .flat_map(|crowd| {
                let by_port = std::net::TcpStream::connect(served.address).unwrap();
                let by_socket = std::os::unix::net::UnixStream::connect(&served.socket).unwrap();
                let streams: [Box<dyn Client>; 2] = [Box::new(by_port), Box::new(by_socket)];
                streams.map(|stream| (crowd, scope.spawn(move || lasts(crowd, stream))))
            })
            .collect();
        for (crowd, lasted) in all {
            let lasted = lasted.join().unwrap();
            assert!(
                (4..30).contains(&lasted.as_secs()),
                "{crowd:?}: closed after {lasted:?}"
            );
        }
    });
}
