//! The way to a member that may have several addresses, and its end.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// An address that stays silent for so long is no longer waited for alone: the next is tried beside it (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// In place of what [is the end](is_end) in the TLS library's words: an essay with an address.
pub(crate) const GONE: &str = "the server is gone";

/// Whether a failure is nothing but the end of a connection. A server that was ended says no farewell.
pub(crate) fn is_end(cause: &(dyn Error + 'static)) -> bool {
    let io = cause.downcast_ref::<io::Error>();
    io.is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof)
}

/// A connection to the first of these addresses that takes it. One that refuses makes room for the next at once.
///
/// # Errors
/// The system's words when there is one address; with several, those of each. Without a deadline: that is the caller's.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    if let [only] = addresses {
        return TcpStream::connect(only).await;
    }
    let mut failures = Vec::new();
    let mut attempts = JoinSet::new();
    let mut rest = addresses.iter();
    loop {
        if let Some(&address) = rest.next() {
            attempts.spawn(async move { (address, TcpStream::connect(address).await) });
        }
        let more = !rest.as_slice().is_empty();
        tokio::select! {
            biased;
            ended = attempts.join_next() => match ended {
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                Some(Ok((address, Err(failure)))) => failures.push(format!("{address}: {failure}")),
                Some(Err(failure)) => failures.push(failure.to_string()),
                None if !more => return Err(io::Error::other(failures.join("; "))),
                None => {}
            },
            () = sleep(HEAD_START), if more => {}
        }
    }
}

/// Has whoever is gone without a word noticed within half a minute, also while nothing is being said.
pub(crate) fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3),
    )?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(25)))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;

    /// An address that says nothing to a new connection: its queue is full.
    struct Silent {
        listener: Socket,
        _queued: Vec<Socket>,
    }

    impl Silent {
        fn new() -> Silent {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener
                .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
                .unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap();
            let queue = |_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                // In progress, as anything is that does not block.
                drop(socket.connect(&address));
                socket
            };
            let queued = (0..4).map(queue).collect();
            Silent {
                listener,
                _queued: queued,
            }
        }

        fn address(&self) -> SocketAddr {
            self.listener.local_addr().unwrap().as_socket().unwrap()
        }
    }

    /// Where nobody listens.
    async fn refusing() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    }

    #[tokio::test]
    async fn connect_when_addresses_are_silent_or_refuse_then_the_one_behind_them_is_had_within_the_time_of_a_member()
     {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let good = listener.local_addr().unwrap();
        let (first, second) = (Silent::new(), Silent::new());
        let bad = refusing().await;
        for order in [
            vec![good],
            vec![bad, good],
            vec![first.address(), good],
            vec![bad, first.address(), second.address(), good],
        ] {
            let found = tokio::time::timeout(Duration::from_secs(2), connect(&order)).await;
            let found = found.unwrap_or_else(|_| panic!("{order:?}: late"));
            assert_eq!(found.unwrap().peer_addr().unwrap(), good, "{order:?}");
        }
        let alone = tokio::time::timeout(Duration::from_millis(600), connect(&[first.address()])).await;
        assert!(alone.is_err(), "the silent one is not silent");
    }

    #[tokio::test]
    async fn connect_when_all_refuse_then_each_is_named_and_one_alone_keeps_its_kind() {
        let (a, b) = (refusing().await, refusing().await);
        let failure = connect(&[a, b]).await.unwrap_err().to_string();
        assert!(
            failure.contains(&a.to_string()) && failure.contains(&b.to_string()),
            "{failure}"
        );
        let failure = connect(&[a]).await.unwrap_err();
        assert_eq!(failure.kind(), io::ErrorKind::ConnectionRefused);
    }
}
