//! Who reaches whom, and with how large a packet: a matrix made by `ping`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::command::{LabError, output};
use crate::node::Node;
use crate::pod::Pod;
use crate::topology::Lab;
use crate::witness::{counter, json};

/// What a series of pings gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Echo {
    /// Sent.
    pub sent: u32,
    /// Answered.
    pub received: u32,
    /// Smallest round trip in milliseconds.
    pub least_ms: Option<f64>,
    /// Mean round trip in milliseconds.
    pub mean_ms: Option<f64>,
}

/// Reads the summary of iputils' `ping -q`.
pub fn parse_echo(text: &str) -> Option<Echo> {
    let summary = text.lines().find(|l| l.contains("packets transmitted"))?;
    let number = |tail: &str| {
        let head = summary.split(tail).next()?;
        head.rsplit([' ', ',']).find(|w| !w.is_empty())?.parse().ok()
    };
    let times = text
        .lines()
        .find_map(|l| l.strip_prefix("rtt "))
        .and_then(|l| l.split("= ").nth(1));
    let mut times = times.unwrap_or("").split('/').map(|t| t.parse::<f64>().ok());
    Some(Echo {
        sent: number(" packets transmitted")?,
        received: number(" received")?,
        least_ms: times.next().flatten(),
        mean_ms: times.next().flatten(),
    })
}

/// One end of a path: a host, or a pod of one.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The host.
    pub node: &'a Node,
    /// The pod, if it is one.
    pub pod: Option<&'a Pod>,
}

impl End<'_> {
    /// `h1` or `h1-p1`.
    pub fn name(&self) -> String {
        self.pod.map_or_else(|| self.node.name.clone(), Pod::full_name)
    }

    /// A command in this end's network.
    pub fn command(&self, program: &[&str]) -> Command {
        match self.pod {
            Some(pod) => self.node.pod_command(&pod.name, program),
            None => self.node.network_command(program),
        }
    }

    /// The file of its network namespace.
    pub fn netns(&self) -> std::path::PathBuf {
        match self.pod {
            Some(pod) => self.node.pod_netns(&pod.name),
            None => self.node.network_file(),
        }
    }

    /// `ping ARGS` from here; `None` when nothing could be sent.
    pub fn ping(&self, arguments: &[&str]) -> Result<Option<Echo>, LabError> {
        let mut words = vec!["ping", "-n", "-q"];
        words.extend(arguments);
        let (_, stdout, ..) = output(&mut self.command(&words), "")?;
        Ok(parse_echo(&stdout))
    }

    /// MTU of the link a packet to `address` leaves by.
    pub fn mtu_towards(&self, address: IpAddr) -> Result<u32, LabError> {
        let text =
            crate::command::run(&mut self.command(&["ip", "-j", "route", "get", &address.to_string()]))?;
        let link = json("ip route get", &text)?[0]["dev"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.link_mtu(&link)
    }

    /// MTU of a link here.
    pub fn link_mtu(&self, link: &str) -> Result<u32, LabError> {
        let text = crate::command::run(&mut self.command(&["ip", "-j", "link", "show"]))?;
        let links = json("ip link", &text)?;
        let found = links
            .as_array()
            .into_iter()
            .flatten()
            .find(|l| l["ifname"] == link);
        found
            .and_then(|l| u32::try_from(l["mtu"].as_u64()?).ok())
            .ok_or_else(|| LabError::Missing {
                what: "link",
                name: link.to_owned(),
                hint: format!("not in {}", self.name()),
            })
    }

    /// The largest IP packet that reaches `address` and is answered without being fragmented, in bytes, at most `most`.
    pub fn largest_packet(&self, address: IpAddr, most: u32) -> Result<Option<u32>, LabError> {
        let passes = |size: u32| -> Result<bool, LabError> {
            let header = if address.is_ipv4() { 28 } else { 48 };
            let (size, target) = ((size - header).to_string(), address.to_string());
            let echo = self.ping(&["-c", "1", "-W", "1", "-M", "do", "-s", &size, &target])?;
            Ok(echo.is_some_and(|e| e.received > 0))
        };
        // Twice: the first may be what teaches the path MTU.
        if passes(most)? || passes(most)? {
            return Ok(Some(most));
        }
        let (mut good, mut bad) = (100, most);
        if !passes(good)? {
            return Ok(None);
        }
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if passes(middle)? {
                good = middle
            } else {
                bad = middle
            }
        }
        Ok(Some(good))
    }
}

/// One path, one family.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Who sent: `h1` or `h1-p1`.
    pub from: String,
    /// To which pod.
    pub to: String,
    /// 4 or 6.
    pub family: u8,
    /// Answered at least once, and nothing after the first answer was lost.
    pub reachable: bool,
    /// Smallest round trip.
    pub rtt_ms: Option<f64>,
    /// Bytes of the largest IP packet that came back whole.
    pub largest: Option<u32>,
    /// Bytes it should have been: the smaller MTU of the sender's way out and the receiver.
    pub expected: u32,
}

impl Cell {
    /// Reached, with packets of full size.
    pub fn good(&self) -> bool {
        self.reachable && self.largest == Some(self.expected)
    }
}

/// All paths.
#[derive(Debug, Clone, Serialize)]
pub struct Matrix {
    /// In order of sender, receiver, family.
    pub cells: Vec<Cell>,
    /// Fragments the hosts made while the matrix was taken: outer packets too count here.
    pub fragments: u64,
}

impl Matrix {
    /// Every cell is good, and nothing was fragmented on the way.
    pub fn good(&self) -> bool {
        self.fragments == 0 && !self.cells.is_empty() && self.cells.iter().all(Cell::good)
    }

    /// Cells that are not.
    pub fn bad(&self) -> Vec<&Cell> {
        self.cells.iter().filter(|c| !c.good()).collect()
    }
}

impl Lab {
    /// A host as the end of a path.
    pub fn host_end(&self, host: usize) -> End<'_> {
        End {
            node: self.host(host),
            pod: None,
        }
    }

    /// A pod as the end of a path.
    pub fn pod_end<'a>(&'a self, pod: &'a Pod) -> End<'a> {
        End {
            node: self.host(pod.host),
            pod: Some(pod),
        }
    }

    /// Pings every pod from every other pod and from every host.
    pub fn matrix(&self) -> Result<Matrix, LabError> {
        let pods = &self.state.pods;
        let mut paths = Vec::new();
        for from in pods
            .iter()
            .map(|p| self.pod_end(p))
            .chain((1..=self.spec.hosts).map(|n| self.host_end(n)))
        {
            for to in pods.iter().filter(|p| from.pod != Some(p)) {
                for address in &to.addresses {
                    paths.push((from, to, address.addr()));
                }
            }
        }
        let before = self.fragments()?;
        let mut widths = BTreeMap::new();
        for pod in pods {
            widths.insert(pod.full_name(), self.pod_end(pod).link_mtu("eth0")?);
        }
        let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..8.min(paths.len()) {
                scope.spawn(|| {
                    while let Some((from, to, address)) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let cell = self.check().and_then(|()| cell(*from, to, *address, &widths));
                        if let Ok(mut results) = results.lock() {
                            results.push(cell);
                        }
                    }
                });
            }
        });
        let cells: Result<Vec<Cell>, LabError> = results
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .into_iter()
            .collect();
        let mut cells = cells?;
        let order = |name: &str| {
            let (host, pod) = name.split_once('-').unwrap_or((name, ""));
            (
                pod.is_empty(),
                host[1..].parse::<usize>().unwrap_or(0),
                pod.to_owned(),
            )
        };
        cells.sort_by_key(|c| (order(&c.from), order(&c.to), c.family));
        Ok(Matrix {
            cells,
            fragments: self.fragments()? - before,
        })
    }

    /// Fragments all hosts have made so far.
    fn fragments(&self) -> Result<u64, LabError> {
        let mut sum = 0;
        for node in self.hosts() {
            sum += counter(node, "Ip FragCreates")?;
            sum += counter(node, "Ip6FragCreates").unwrap_or(0);
        }
        Ok(sum)
    }
}

/// Measures one path. `widths` are the MTUs of the pods.
fn cell(from: End<'_>, to: &Pod, address: IpAddr, widths: &BTreeMap<String, u32>) -> Result<Cell, LabError> {
    let target = address.to_string();
    let mut echo = None;
    // The first packets may wait for a neighbour entry; one lost there is no lost path.
    for _ in 0..3 {
        echo = from.ping(&["-c", "2", "-i", "0.01", "-W", "1", &target])?;
        if echo.is_some_and(|e| e.received == e.sent) {
            break;
        }
    }
    let reachable = echo.is_some_and(|e| e.sent > 0 && e.received == e.sent);
    let width = |name: &str| widths.get(name).copied();
    let out = match width(&from.name()) {
        Some(mtu) => mtu,
        None => from.mtu_towards(address).unwrap_or(0),
    };
    let expected = out.min(width(&to.full_name()).unwrap_or(0));
    let largest = if reachable {
        from.largest_packet(address, expected)?
    } else {
        None
    };
    Ok(Cell {
        from: from.name(),
        to: to.full_name(),
        family: if address.is_ipv4() { 4 } else { 6 },
        reachable,
        rtt_ms: echo.and_then(|e| e.least_ms),
        largest,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_ping_is_read_with_and_without_losses() {
        let text = "PING 10.1.1.1 (10.1.1.1) 56(84) bytes of data.\n\n--- 10.1.1.1 ping statistics ---\n\
            3 packets transmitted, 2 received, 33.3333% packet loss, time 20ms\nrtt min/avg/max/mdev = 0.029/0.034/0.039/0.005 ms\n";
        let echo = parse_echo(text).unwrap();
        assert_eq!((echo.sent, echo.received), (3, 2));
        assert_eq!((echo.least_ms, echo.mean_ms), (Some(0.029), Some(0.034)));
        let text = "2 packets transmitted, 0 received, +2 errors, 100% packet loss, time 10ms\n";
        assert_eq!(
            parse_echo(text),
            Some(Echo {
                sent: 2,
                received: 0,
                least_ms: None,
                mean_ms: None
            })
        );
        assert_eq!(parse_echo("ping: connect: Network is unreachable"), None);
    }
}
