//! The v2 API of a real etcd, by its own `etcdctl`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use super::rig::Server;

/// Events that the store of the v2 API remembers.
pub const MEMORY: usize = 1000;

/// Runs etcdctl of the v2 API; what it prints, or what it complains of.
pub fn try_ctl(server: &Server, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "2")
        .args(["--no-sync", "--endpoints", &server.endpoint()]);
    let output = command.args(args).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Runs etcdctl of the v2 API and returns what it prints.
pub fn ctl(server: &Server, args: &[&str]) -> String {
    try_ctl(server, args).unwrap_or_else(|errors| panic!("etcdctl {args:?}: {errors}"))
}

/// A number out of `etcdctl -o extended get` of the v2 API: `Created-Index`, `Modified-Index`, `TTL` or `Index`.
pub fn field(server: &Server, key: &str, name: &str) -> i64 {
    let text = ctl(server, &["-o", "extended", "get", key]);
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    let number = lines.find_map(|line| line.strip_prefix(&format!("{name}: ")));
    number
        .unwrap_or_else(|| panic!("no {name}: {text}"))
        .parse()
        .unwrap()
}

/// The index of the v2 API's store, which its etcdctl tells when it finds nothing.
pub fn index(server: &Server) -> i64 {
    let errors = try_ctl(server, &["get", "/none"]).unwrap_err();
    let index = errors
        .rsplit_once('[')
        .and_then(|(_, rest)| rest.trim().strip_suffix(']'));
    index
        .unwrap_or_else(|| panic!("no index: {errors}"))
        .parse()
        .unwrap()
}

/// So many writes by the v2 API to a key that is nobody's.
pub fn write_elsewhere(server: &Server, times: usize) {
    let stream = TcpStream::connect(server.endpoint().trim_start_matches("http://")).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..times {
        let request = "PUT /v2/keys/elsewhere?value=x HTTP/1.1\r\nHost: etcd\r\nContent-Length: 0\r\n\r\n";
        (&stream).write_all(request.as_bytes()).unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(replies.read_line(&mut line).unwrap() > 0, "etcd hung up");
            let line = line.trim().to_ascii_lowercase();
            if let Some(number) = line.strip_prefix("content-length: ") {
                length = number.parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        replies.read_exact(&mut vec![0; length]).unwrap();
    }
}
