//! A relay before a server: it can be cut, can keep HTTP/2 out, as a server from before etcd 3 does, and HTTP/1, as a proxy may.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What Go's HTTP/1 server says to who begins with HTTP/2.
const UNKNOWN_VERSION: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported: unsupported protocol version\r\nConnection: close\r\n\r\n";

/// What comes through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lets {
    /// All.
    All,
    /// Who begins with HTTP/2 is turned away.
    Http1,
    /// Who begins with anything else is never answered.
    Http2,
}

/// Ends with its drop.
pub struct Relay {
    pub endpoint: String,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Before a server on this port of loopback.
    pub async fn start(port: u16, lets: Lets) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (cut, is_cut) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut cut = is_cut.clone();
                // What is cut off ends with its connection.
                if *cut.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        _ = cut.wait_for(|cut| *cut) => {}
                        _ = carry(near, port, lets) => {}
                    }
                });
            }
        });
        Relay { endpoint, cut, task }
    }

    /// Ends all connections, and every new one, until it is mended.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.cut.send_replace(true);
    }
}

async fn carry(mut near: TcpStream, port: u16, lets: Lets) -> std::io::Result<()> {
    let mut first = vec![0; 4096];
    let read = near.read(&mut first).await?;
    match (lets, first.starts_with(b"PRI ")) {
        (Lets::Http1, true) => return near.write_all(UNKNOWN_VERSION).await,
        (Lets::Http2, false) => {
            while near.read(&mut first).await? > 0 {}
            return Ok(());
        }
        _ => {}
    }
    let mut far = TcpStream::connect(("127.0.0.1", port)).await?;
    far.write_all(&first[..read]).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}
