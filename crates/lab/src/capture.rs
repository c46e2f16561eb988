//! Counting packets on a link with `tcpdump`.

use std::time::{Duration, Instant};

use crate::command::LabError;
use crate::node::Node;
use crate::process::Process;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
}

impl Capture {
    /// Starts; when this returns, the link is being listened to.
    pub fn start(node: &Node, label: &str, link: &str, filter: &str) -> Result<Capture, LabError> {
        let label = format!("capture-{label}");
        let mut process = node.spawn(
            &label,
            &[
                "tcpdump",
                "-n",
                "-l",
                "-Z",
                "root",
                "--immediate-mode",
                "-i",
                link,
                filter,
            ],
        )?;
        let start = Instant::now();
        while !process.log().contains("listening on") {
            if process.ended().is_some() || start.elapsed() > Duration::from_secs(10) {
                process.kill();
                return Err(LabError::Command {
                    command: format!("tcpdump -i {link} {filter}"),
                    status: "did not listen".to_owned(),
                    stderr: process.log(),
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Capture { process })
    }

    /// Ends the capture; the packets seen, one line each.
    pub fn stop(mut self) -> Vec<String> {
        std::thread::sleep(Duration::from_millis(100));
        self.process.stop(Duration::from_secs(2));
        let is_packet = |l: &&str| l.starts_with(|c: char| c.is_ascii_digit()) && l.contains("IP");
        self.process
            .log()
            .lines()
            .filter(is_packet)
            .map(str::to_owned)
            .collect()
    }
}
