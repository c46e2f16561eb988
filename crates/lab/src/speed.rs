//! Throughput and round trips of a path.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::command::{LabError, file};
use crate::inside::enter;
use crate::reach::End;
use crate::topology::Lab;

/// Figures of one path.
#[derive(Debug, Clone, Serialize)]
pub struct Speed {
    /// From.
    pub from: String,
    /// To.
    pub to: String,
    /// 4 or 6.
    pub family: u8,
    /// One TCP stream, Gbit/s at the receiver.
    pub gbit_s: f64,
    /// Mean round trip of 200 pings, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// One TCP stream between two ends for so long; bits per second at the receiver.
pub fn stream(from: End<'_>, to: End<'_>, address: IpAddr, time: Duration) -> Result<f64, LabError> {
    let (from, to) = (from.netns(), to.netns());
    let (tell, told) = mpsc::channel();
    let receiver = std::thread::spawn(move || -> std::io::Result<f64> {
        enter(&to)?;
        let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
        let _ = tell.send(listener.local_addr()?);
        listener.set_nonblocking(true)?;
        let waiting = Instant::now();
        let mut stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && waiting.elapsed().as_secs() < 10 => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => return Err(e),
            }
        };
        stream.set_nonblocking(false)?;
        let mut buffer = vec![0; 256 * 1024];
        let (start, mut bytes) = (Instant::now(), 0_u64);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(bytes as f64 * 8.0 / start.elapsed().as_secs_f64()),
                n => bytes += n as u64,
            }
        }
    });
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        enter(&from)?;
        let lost = std::io::Error::other("the receiver could not listen");
        let target: SocketAddr = told.recv_timeout(Duration::from_secs(5)).map_err(|_| lost)?;
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let (start, buffer) = (Instant::now(), vec![0; 256 * 1024]);
        while start.elapsed() < time {
            stream.write_all(&buffer)?;
        }
        Ok(())
    });
    let ended = |_| LabError::Invalid("a measuring thread panicked".to_owned());
    file(format!("TCP to {address}"), sender.join().map_err(ended)?)?;
    let ended = |_| LabError::Invalid("a measuring thread panicked".to_owned());
    file(format!("TCP at {address}"), receiver.join().map_err(ended)?)
}

impl Lab {
    /// Bare underlay between the first two hosts, then the first pods of both, each family.
    pub fn speeds(&self, time: Duration) -> Result<Vec<Speed>, LabError> {
        let mut speeds = Vec::new();
        if self.spec.hosts < 2 {
            return Ok(speeds);
        }
        for family in self.spec.families.each() {
            let address = self.spec.host_address(2, family);
            speeds.push(self.speed(self.host_end(1), self.host_end(2), address, time)?);
        }
        let first = |host| self.state.pods.iter().find(|p| p.host == host);
        let (Some(from), Some(to)) = (first(1), first(2)) else {
            return Ok(speeds);
        };
        for address in &to.addresses {
            speeds.push(self.speed(self.pod_end(from), self.pod_end(to), address.addr(), time)?);
        }
        Ok(speeds)
    }

    fn speed(&self, from: End<'_>, to: End<'_>, address: IpAddr, time: Duration) -> Result<Speed, LabError> {
        self.check()?;
        let echo = from.ping(&["-c", "200", "-i", "0.002", "-W", "1", &address.to_string()])?;
        Ok(Speed {
            from: from.name(),
            to: to.name(),
            family: if address.is_ipv4() { 4 } else { 6 },
            gbit_s: stream(from, to, address, time)? / 1e9,
            rtt_ms: echo.and_then(|e| e.mean_ms),
        })
    }
}
