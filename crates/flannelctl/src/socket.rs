//! Asking the daemon: HTTP over its unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

/// Where the daemon listens.
pub const DEFAULT: &str = fabric::status::SOCKET;
/// More than any answer is long: 10,000 peers are about 10 MB.
const LONGEST: u64 = 256 << 20;

/// Status and body of the answer to one request.
pub fn ask(socket: &str, method: &str, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!("no daemon answers at {socket} (is flanneld running? --socket names another)")
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: flanneld\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream
        .take(LONGEST)
        .read_to_end(&mut answer)
        .with_context(|| format!("the daemon at {socket}"))?;
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
