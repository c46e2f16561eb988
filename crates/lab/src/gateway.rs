//! A connection to etcd's JSON gateway: writes without the start of a client process in the measured time, and the
//! server's own counters.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::command::LabError;
use crate::inside;
use crate::node::Node;

/// An open connection, kept alive between requests.
#[derive(Debug)]
pub struct Gateway {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Gateway {
    /// Connects from a node's network to `http://ADDRESS:PORT`.
    pub fn connect(node: &Node, endpoint: &str) -> Result<Gateway, LabError> {
        let address: SocketAddr = endpoint
            .trim_start_matches("http://")
            .parse()
            .map_err(|_| LabError::Invalid(format!("endpoint {endpoint:?}: expected http://ADDRESS:PORT")))?;
        let stream = inside::run(&node.network_file(), || {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            Ok(stream)
        })?;
        Ok(Gateway {
            stream: BufReader::new(stream),
            address,
        })
    }

    /// Writes pairs in one transaction (etcd takes 128 at most).
    pub fn put(&mut self, pairs: &[(String, String)]) -> Result<(), LabError> {
        let puts: Vec<Value> = pairs
            .iter()
            .map(|(k, v)| json!({ "request_put": { "key": base64(k.as_bytes()), "value": base64(v.as_bytes()) } }))
            .collect();
        self.post("/v3/kv/txn", &json!({ "success": puts })).map(|_| ())
    }

    /// Removes a key.
    pub fn delete(&mut self, key: &str) -> Result<(), LabError> {
        self.post("/v3/kv/deleterange", &json!({ "key": base64(key.as_bytes()) }))
            .map(|_| ())
    }

    /// Removes all keys that begin with `prefix`.
    pub fn delete_all(&mut self, prefix: &str) -> Result<(), LabError> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            // No prefix of text ends with 0xff.
            *last = last.saturating_add(1);
        }
        let range = json!({ "key": base64(prefix.as_bytes()), "range_end": base64(&end) });
        self.post("/v3/kv/deleterange", &range).map(|_| ())
    }

    /// gRPC calls the server has started so far, by method, without those of this gateway's own connection.
    pub fn calls(&mut self) -> Result<Vec<(String, u64)>, LabError> {
        let text = self.request("GET", "/metrics", "")?;
        let mut calls = Vec::new();
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("grpc_server_started_total{") else {
                continue;
            };
            let method = rest
                .split("grpc_method=\"")
                .nth(1)
                .and_then(|m| m.split('"').next())
                .unwrap_or_default();
            let count = line
                .rsplit(' ')
                .next()
                .and_then(|n| n.parse::<f64>().ok())
                .unwrap_or(0.0);
            if count > 0.0 {
                calls.push((method.to_owned(), count as u64));
            }
        }
        Ok(calls)
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<String, LabError> {
        self.request("POST", path, &body.to_string())
    }

    fn request(&mut self, method: &str, path: &str, body: &str) -> Result<String, LabError> {
        let bad = |problem: String| LabError::Output {
            command: format!("{method} {path}"),
            problem,
        };
        let result = (|| -> std::io::Result<(String, Vec<u8>)> {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
                self.address,
                body.len()
            );
            self.stream.get_mut().write_all(head.as_bytes())?;
            let (mut status, mut length, mut chunked) = (String::new(), 0_usize, false);
            self.stream.read_line(&mut status)?;
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line)?;
                let line = line.trim_end().to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
                chunked |= line == "transfer-encoding: chunked";
            }
            let mut whole = Vec::new();
            loop {
                let size = if chunked {
                    let mut line = String::new();
                    self.stream.read_line(&mut line)?;
                    usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?
                } else {
                    length
                };
                let start = whole.len();
                whole.resize(start + size, 0);
                self.stream.read_exact(&mut whole[start..])?;
                if chunked {
                    self.stream.read_line(&mut String::new())?;
                }
                if !chunked || size == 0 {
                    return Ok((status, whole));
                }
            }
        })();
        let (status, body) = result.map_err(|e| bad(e.to_string()))?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if status.split(' ').nth(1) == Some("200") {
            Ok(body)
        } else {
            Err(bad(format!("{} {body}", status.trim())))
        }
    }
}

/// RFC 4648 with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (index, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let letter = LETTERS[(group >> shift) as usize & 63];
            text.push(if index <= chunk.len() { letter as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
