//! Asking the daemon: HTTP over its unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use anyhow::{Context, anyhow, bail};
use fabric::causes::in_full;

/// Where the daemon listens.
pub const DEFAULT: &str = fabric::status::SOCKET;
/// More than any answer is long: 10,000 peers are about 10 MB.
const LONGEST: u64 = 256 << 20;
/// A daemon that has not begun to answer by then, and gives no sign of life, hangs.
const PATIENCE: Duration = Duration::from_millis(1500);
/// One that is alive has this long: with very many peers it is at work.
const LONGEST_WORK: Duration = Duration::from_secs(25);
/// A pause between two pieces of an answer.
const STALLED: Duration = Duration::from_secs(10);

/// Status and body of the answer to one request.
pub fn ask(socket: &str, method: &str, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    let Some(mut stream) = connect(socket)? else {
        bail!("{}", silence(socket, None));
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: flanneld\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let asked = Instant::now();
    let mut first = [0];
    let begun = loop {
        match stream.read(&mut first) {
            Ok(begun) => break begun,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_late(&error) => {
                let is_alive = last_sign(socket).is_some_and(|age| age < PATIENCE);
                if !is_alive || asked.elapsed() >= LONGEST_WORK {
                    bail!("{}", silence(socket, holder(&stream)));
                }
            }
            Err(error) => return Err(error).with_context(|| format!("the daemon at {socket}")),
        }
    };
    stream.set_read_timeout(Some(STALLED))?;
    let mut answer = first.get(..begun).unwrap_or_default().to_vec();
    if let Err(error) = (&stream).take(LONGEST).read_to_end(&mut answer) {
        if is_late(&error) {
            bail!("{}", silence(socket, holder(&stream)));
        }
        return Err(error).with_context(|| format!("the daemon at {socket}"));
    }
    let (status, body) =
        parse(&answer).ok_or_else(|| anyhow!("what answers at {socket} does not speak HTTP"))?;
    match status {
        200 | 503 => Ok((status, body)),
        404 => bail!("the daemon at {socket} does not know {path}: it is of another version"),
        _ => bail!(
            "the daemon answered {status}: {}",
            String::from_utf8_lossy(&body).trim()
        ),
    }
}

/// What keeps a daemon that runs from answering, as a sentence; nothing when it does.
pub fn why_silent(socket: &str) -> Option<String> {
    ask(socket, "GET", "/pods")
        .err()
        .map(|error| in_full(error.as_ref()))
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Connects; `None` where the daemon does not even take connections any more.
fn connect(socket: &str) -> anyhow::Result<Option<UnixStream>> {
    // On a thread of its own: there is no time limit to connecting to a socket in the file system.
    let (tell, told) = mpsc::channel();
    let path = socket.to_owned();
    thread::Builder::new().spawn(move || tell.send(UnixStream::connect(path)))?;
    match told.recv_timeout(PATIENCE) {
        Ok(connected) => Ok(Some(connected.with_context(|| {
            format!("no daemon answers at {socket} (is flanneld running? --socket names another)")
        })?)),
        Err(_) => Ok(None),
    }
}

/// How long ago the daemon left the time at its socket, as it does every second.
fn last_sign(socket: &str) -> Option<Duration> {
    let left = fs::symlink_metadata(socket).ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(left).unwrap_or_default())
}

/// The process that listens there.
fn holder(stream: &UnixStream) -> Option<u32> {
    let holder = rustix::net::sockopt::socket_peercred(stream).ok()?;
    u32::try_from(holder.pid.as_raw_nonzero().get()).ok()
}

/// One sentence on a daemon that does not answer: who, since when, and what can be seen of it.
fn silence(socket: &str, holder: Option<u32>) -> String {
    let who = holder.map_or("the daemon".to_owned(), |pid| format!("the daemon (pid {pid})"));
    let since = match last_sign(socket) {
        Some(age) if age >= PATIENCE => format!("since {} s ago", age.as_secs()),
        Some(_) => format!(
            "within {} s, though it gives signs of life",
            LONGEST_WORK.as_secs()
        ),
        None => format!("within {:.1} s", PATIENCE.as_secs_f64()),
    };
    let state = holder.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    let state = state.and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
    let why = match state {
        Some('T' | 't') => "; it is stopped (by SIGSTOP or a debugger; SIGCONT lets it go on)",
        Some('D') => "; it waits in the kernel, for a disk perhaps",
        _ => "",
    };
    format!("{who} at {socket} does not answer {since}{why}")
}

/// Status and body of a whole HTTP/1.1 answer.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let body = answer.get(end + 4..)?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let chunked = head
        .lines()
        .any(|l| l.to_ascii_lowercase().replace(' ', "") == "transfer-encoding:chunked");
    Some((status, if chunked { dechunk(body)? } else { body.to_vec() }))
}

fn dechunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(body.get(..end)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(body.get(end + 2..(end + 2).checked_add(size)?)?);
        body = body.get((end + 4).checked_add(size)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_chunked_answers_are_read() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(plain), Some((200, b"{}".to_vec())));
        let chunked =
            b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked), Some((503, b"abcde".to_vec())));
    }

    #[test]
    fn cut_or_foreign_answers_are_no_panic() {
        let chunked: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for end in 0..chunked.len() - 4 {
            assert_eq!(parse(&chunked[..end]), None, "{end}");
        }
        assert_eq!(
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx"),
            None
        );
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n\r\n"), None);
    }
}
