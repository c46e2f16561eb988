//! What flanneld says of itself: one question over its status socket, answered in a few hundred bytes.
//!
//! The data path works without the daemon, so no answer is no reason against the node: not one that hangs, not one that cannot
//! be read, not the absence of a socket (Go's flanneld has none). All of it is over within [`LIMIT`].

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use fabric::status::{Pods, socket_of};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

/// How long the daemon may take. It answers in a fraction of a millisecond when it can answer at all.
pub const LIMIT: Duration = Duration::from_millis(50);
/// Most bytes of an answer that are read.
const ANSWER_LIMIT: usize = 64 << 10;
const QUESTION: &[u8] = b"GET /pods HTTP/1.1\r\nHost: flanneld\r\nConnection: close\r\n\r\n";

/// Asks the daemon that writes this subnet file whether it has a network for pods; `None` when it does not say.
pub fn ask(subnet_file: &str) -> Option<Pods> {
    ask_within(LIMIT, subnet_file)
}

fn ask_within(limit: Duration, subnet_file: &str) -> Option<Pods> {
    let path = std::path::absolute(subnet_file).ok()?;
    let end = Instant::now() + limit;
    let socket = connect(&socket_of(path.to_str()?))?;
    let mut rest = QUESTION;
    while !rest.is_empty() {
        match rustix::net::send(&socket, rest, SendFlags::NOSIGNAL) {
            Ok(sent) => rest = rest.get(sent..)?,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    let (mut answer, mut length) = (vec![0; 4096], 0);
    // Also one that never lets us wait has no longer.
    while Instant::now() < end {
        if length == answer.len() {
            if length >= ANSWER_LIMIT {
                return None;
            }
            answer.resize(length * 2, 0);
        }
        match rustix::io::read(&socket, answer.get_mut(length..)?) {
            // Whoever closes before the answer is whole has not answered.
            Ok(0) => return None,
            Ok(more) => {
                length += more;
                match parse(answer.get(..length)?) {
                    Answer::Cut => {}
                    Answer::Whole(pods) => return Some(pods),
                    Answer::Foreign => return None,
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(&socket, end)?,
            Err(_) => return None,
        }
    }
    None
}

/// Never waits: a daemon whose queue is full does not answer.
fn connect(path: &str) -> Option<OwnedFd> {
    let address = SocketAddrUnix::new(path).ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    rustix::net::connect(&socket, &address).ok()?;
    Some(socket)
}

/// Waits until there is something to read; `None` when the time is over.
fn wait(socket: &OwnedFd, end: Instant) -> Option<()> {
    let left = end.checked_duration_since(Instant::now())?;
    let left = Timespec::try_from(left).ok()?;
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
        Ok(0) => None,
        Ok(_) | Err(Errno::INTR) => Some(()),
        Err(_) => None,
    }
}

/// What bytes from the socket are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The beginning of an answer.
    Cut,
    /// The daemon's.
    Whole(Pods),
    /// No answer to this question, however long one waits: another version's, or not flanneld's at all.
    Foreign,
}

/// Reads the answer as far as it has come.
pub fn parse(bytes: &[u8]) -> Answer {
    const START: &[u8] = b"HTTP/1.1 200 ";
    if bytes.iter().zip(START).any(|(have, want)| have != want) {
        return Answer::Foreign;
    }
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Answer::Cut;
    };
    let (head, body) = bytes.split_at(end + 4);
    let length = String::from_utf8_lossy(head).lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.trim().eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    let Some(length) = length.filter(|length| *length <= ANSWER_LIMIT) else {
        return Answer::Foreign;
    };
    let Some(body) = body.get(..length) else {
        return Answer::Cut;
    };
    serde_json::from_slice(body).map_or(Answer::Foreign, Answer::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::status::PodNetwork;

    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: 36\r\n\r\n{\"network\":\"none\",\"reasons\":[\"why\"]}";

    #[test]
    fn answer_when_it_has_come_in_part_is_waited_for_and_then_read() {
        for end in 0..WHOLE.len() {
            assert_eq!(parse(&WHOLE[..end]), Answer::Cut, "{end}");
        }
        let Answer::Whole(pods) = parse(WHOLE) else {
            panic!("{WHOLE:?}")
        };
        assert_eq!(
            (pods.network, pods.reasons),
            (PodNetwork::None, vec!["why".to_owned()])
        );
    }

    #[test]
    fn answer_when_it_is_no_answer_to_this_question_is_foreign_at_once() {
        for bytes in [
            &b"HTTP/1.1 404 Not Found\r\n"[..],
            b"SSH-2.0",
            b"HTTP/1.1 200 OK\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[[",
            b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{\"network\":\"odd\"}",
            b"\0\xff",
        ] {
            assert_eq!(
                parse(bytes),
                Answer::Foreign,
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// Asks a daemon that answers in these pieces, and then hangs up or stays.
    fn answered(pieces: &[&[u8]], limit: Duration, and_stays: bool) -> Option<Pods> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subnet.env");
        let listener = UnixListener::bind(folder.path().join("subnet.env.sock")).unwrap();
        let (over, is_over) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                let mut question = vec![0; QUESTION.len()];
                socket.read_exact(&mut question).unwrap();
                assert_eq!(question, QUESTION);
                for piece in pieces {
                    let _ = socket.write_all(piece);
                    std::thread::sleep(Duration::from_millis(3));
                }
                if and_stays {
                    let _ = is_over.recv();
                }
            });
            let said = ask_within(limit, file.to_str().unwrap());
            drop(over);
            said
        })
    }

    /// Longer than any machine that is busy takes.
    const AGES: Duration = Duration::from_secs(20);

    #[test]
    fn daemon_when_it_answers_in_time_is_heard_however_the_answer_comes() {
        let (head, body) = WHOLE.split_at(40);
        let said = answered(&[head, body], AGES, true).unwrap();
        assert_eq!(said.network, PodNetwork::None);
        // One that takes more than the first buffer.
        let reason = "x".repeat(10_000);
        let json = format!(r#"{{"network":"member","reasons":["{reason}"]}}"#);
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len());
        let said = answered(&[text.as_bytes()], AGES, false).unwrap();
        assert_eq!((said.network, said.reasons), (PodNetwork::Member, vec![reason]));
    }

    #[test]
    fn daemon_when_it_says_nothing_too_much_or_is_not_there_has_not_answered() {
        assert_eq!(answered(&[], LIMIT, true), None, "silent");
        assert_eq!(answered(&[b"HTTP/1.1 200 OK\r\n"], AGES, false), None, "cut off");
        assert_eq!(answered(&[b"HTTP/1.1 500 Oh\r\n\r\n"], AGES, true), None);
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(200_000));
        assert_eq!(answered(&[endless.as_bytes()], AGES, true), None);
        assert_eq!(ask("/nonexistent/subnet.env"), None);
    }
}
