//! A network seen from inside: who answers, and with what.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use lab::command::{output, run, words};
use lab::inside;
use serde_json::Value;

/// A container, a host, or a machine outside.
#[derive(Debug, Clone)]
pub struct Place {
    /// For messages.
    pub name: String,
    /// The file of its network namespace.
    pub netns: PathBuf,
}

impl Place {
    fn run(&self, program: &[&str]) -> String {
        let mut command = words(&["nsenter", &format!("--net={}", self.netns.display()), "--"]);
        run(command.args(program)).unwrap()
    }

    /// `ping` of one packet of so many bytes, which nobody may fragment; whether it came back, and all it said.
    fn ping(&self, address: IpAddr, bytes: u32, wait: &str) -> (bool, String) {
        let size = bytes - if address.is_ipv4() { 28 } else { 48 };
        let mut command = words(&["nsenter", &format!("--net={}", self.netns.display()), "--"]);
        command.args(["ping", "-n", "-c", "1", "-W", wait, "-M", "do", "-s"]);
        command.args([size.to_string(), address.to_string()]);
        let (success, stdout, stderr, _) = output(&mut command, "").unwrap();
        (success, stdout + &stderr)
    }

    /// Whether an echo of a packet of so many bytes comes back unfragmented.
    pub fn pings(&self, address: IpAddr, bytes: u32) -> bool {
        // The first may wait for a neighbour.
        (0..3).any(|_| self.ping(address, bytes, "2").0)
    }

    /// Whether a packet of so many bytes is more than the way out of here takes.
    pub fn is_too_much(&self, address: IpAddr, bytes: u32) -> bool {
        let (success, said) = self.ping(address, bytes, "0.1");
        !success && said.contains("message too long")
    }

    /// A page of the web server there; empty when there is none.
    pub fn get(&self, address: IpAddr, port: u16, page: &str) -> String {
        let at = SocketAddr::new(address, port);
        let got = inside::run(&self.netns, || {
            let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(format!("GET /{page} HTTP/1.0\r\n\r\n").as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
        let text = got.unwrap_or_default();
        text.split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default()
    }

    /// What the echo server there says; empty when there is none.
    pub fn ask(&self, address: IpAddr, port: u16) -> String {
        self.ask_times(address, port, 4)
    }

    /// As [`Place::ask`], where no answer is expected.
    pub fn ask_once(&self, address: IpAddr, port: u16) -> String {
        self.ask_times(address, port, 1)
    }

    fn ask_times(&self, address: IpAddr, port: u16, tries: usize) -> String {
        let at = SocketAddr::new(address, port);
        let got = inside::run(&self.netns, || {
            let any: SocketAddr = if address.is_ipv4() {
                ([0; 4], 0).into()
            } else {
                ([0_u16; 8], 0).into()
            };
            let socket = UdpSocket::bind(any)?;
            // Connected: an answer from another address is none.
            socket.connect(at)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut bytes = [0; 64];
            for _ in 0..tries {
                if socket.send(b"who").is_ok()
                    && let Ok(length) = socket.recv(&mut bytes)
                {
                    return Ok(String::from_utf8_lossy(&bytes[..length]).into_owned());
                }
            }
            Ok(String::new())
        });
        got.unwrap_or_default()
    }

    fn link(&self, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.run(&["ip", "-j", "addr", "show"])).unwrap();
        let found = all.as_array().unwrap().iter().find(|l| l["ifname"] == name);
        found.cloned().unwrap_or_default()
    }

    /// Global addresses of a link, IPv4 first.
    pub fn addresses(&self, link: &str) -> Vec<IpNet> {
        let link = self.link(link);
        let all = link["addr_info"].as_array().into_iter().flatten();
        let global = all.filter(|a| a["scope"] == "global");
        let mut addresses: Vec<IpNet> = global
            .map(|a| {
                let text = format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]);
                text.parse().unwrap()
            })
            .collect();
        addresses.sort();
        addresses
    }

    /// MTU of a link.
    pub fn mtu(&self, link: &str) -> u64 {
        self.link(link)["mtu"].as_u64().unwrap_or_default()
    }
}

/// Answers every datagram to a port of a place with a word, until dropped.
pub struct Echo(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Echo {
    /// Listens in both families.
    pub fn start(place: &Place, port: u16, word: &str) -> Echo {
        let any: SocketAddr = ([0_u16; 8], port).into();
        let socket = inside::run(&place.netns, || UdpSocket::bind(any)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let (ended, word) = (over.clone(), word.to_owned());
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                match socket.recv_from(&mut bytes) {
                    Ok((_, from)) => drop(socket.send_to(word.as_bytes(), from)),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
        Echo(over, Some(thread))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().map(JoinHandle::join);
    }
}
