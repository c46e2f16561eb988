//! The addresses of a member, by its name.
//!
//! The system's look-up blocks, so it has a thread of its own. That there is none to be had is a failure like any other: tokio's
//! own pool of such threads ends the process instead.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

use tokio::sync::oneshot;

/// Look-ups at a time. One whose name server does not answer takes as long as the system has patience; who asks again and again
/// meanwhile gets no further threads.
const MOST: usize = 8;

/// Look-ups under way.
struct UnderWay(AtomicUsize);

/// Those of this process.
static UNDER_WAY: UnderWay = UnderWay(AtomicUsize::new(0));

impl UnderWay {
    /// One more, unless there are too many.
    fn take(&'static self) -> Option<Place> {
        let taken = |count: usize| (count < MOST).then_some(count + 1);
        let got = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        got.is_ok().then(|| Place(self))
    }
}

/// A place among the look-ups under way.
struct Place(&'static UnderWay);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The addresses of a host, which may be written as one.
///
/// # Errors
/// The system's; that it has no thread for it; that look-ups asked for earlier do not come to an end.
pub(crate) async fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    look_up_among(&UNDER_WAY, host, port).await
}

async fn look_up_among(under_way: &'static UnderWay, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let text = |text: String| io::Error::other(text);
    let place = under_way
        .take()
        .ok_or_else(|| text(format!("{host}: {MOST} look-ups of names have no answer yet")))?;
    let (reply, answer) = oneshot::channel();
    let name = host.to_owned();
    let ask = move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
        // Nobody may be waiting any more.
        drop(reply.send(found));
        drop(place);
    };
    Builder::new()
        .name("names".to_owned())
        .spawn(ask)
        .map_err(|failure| text(format!("{host}: no thread to look it up: {failure}")))?;
    let found: io::Result<Vec<SocketAddr>> = answer.await.unwrap_or_else(|_| Ok(Vec::new()));
    match found {
        Ok(found) if found.is_empty() => Err(text(format!("{host}: no address"))),
        Ok(found) => Ok(found),
        Err(failure) => Err(text(format!("{host}: {failure}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn look_up_when_it_is_an_address_then_it_is_that_and_when_a_name_what_the_system_says() {
        let found = look_up("192.0.2.1", 2379).await.unwrap();
        assert_eq!(found, ["192.0.2.1:2379".parse().unwrap()]);
        assert_eq!(look_up("::1", 1).await.unwrap(), ["[::1]:1".parse().unwrap()]);
        let found = look_up("localhost", 7).await.unwrap();
        assert!(
            found
                .iter()
                .all(|found| found.ip().is_loopback() && found.port() == 7)
        );
    }

    #[tokio::test]
    async fn look_up_when_the_earlier_ones_hang_then_there_is_no_further_thread_for_it() {
        static OTHERS: UnderWay = UnderWay(AtomicUsize::new(0));
        let hanging: Vec<Place> = std::iter::from_fn(|| OTHERS.take()).collect();
        assert_eq!(hanging.len(), MOST);
        let failure = look_up_among(&OTHERS, "localhost", 1)
            .await
            .unwrap_err()
            .to_string();
        assert!(failure.contains("have no answer yet"), "{failure}");
        let address = look_up_among(&OTHERS, "192.0.2.1", 1).await;
        assert!(address.is_ok(), "an address needs none");
        drop(hanging);
        assert!(look_up_among(&OTHERS, "localhost", 1).await.is_ok());
    }
}
