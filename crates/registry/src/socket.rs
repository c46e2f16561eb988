//! TCP to a registry: the first of several addresses that answers, and a connection whose silence is noticed.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connects to the first of the addresses that answers; each has so much time for it.
///
/// Whoever is gone without a word is noticed within half a minute, also while nothing is being said.
pub(crate) async fn connect(
    addresses: &[SocketAddr],
    each: Duration,
) -> Result<TcpStream, Box<dyn Error + Send + Sync>> {
    let stream = first(addresses, each).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3),
    )?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(25)))?;
    Ok(stream)
}

async fn first(addresses: &[SocketAddr], each: Duration) -> Result<TcpStream, Box<dyn Error + Send + Sync>> {
    let mut failure = "the name has no address".into();
    for address in addresses {
        match timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(refused)) => failure = refused.into(),
            Err(_) => failure = format!("no connection within {} s", each.as_secs()).into(),
        }
    }
    Err(failure)
}
