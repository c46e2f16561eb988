//! Pods of two hosts that ping each other for as long as a test lasts.

use std::process::{Child, Stdio};

use lab::Lab;
use lab::reach::parse_echo;
use rustix::process::Signal;

/// What runs, with the words for it.
pub struct Pings(Vec<(String, Child)>);

impl Pings {
    /// Both ways between the first pods of h1 and h2, 20 times a second, in the families they have.
    pub fn start(lab: &Lab) -> Pings {
        let pods = &lab.state.pods;
        let mut running = Vec::new();
        for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
            for family in [4, 6] {
                let Some(target) = to.address(family).map(|target| target.to_string()) else {
                    continue;
                };
                // The first packet may wait for neighbours; the count begins after it.
                let warm = lab.pod_end(from);
                warm.ping(&["-c", "3", "-i", "0.1", "-W", "3", &target]).unwrap();
                let mut command = warm.command(&["ping", "-n", "-q", "-i", "0.05", "-W", "2", &target]);
                let child = command.stdout(Stdio::piped()).spawn().unwrap();
                running.push((format!("{} -> {target}", from.full_name()), child));
            }
        }
        Pings(running)
    }

    /// Ends them: what was sent, and what was lost, in words.
    pub fn stop(&mut self) -> (u32, Vec<String>) {
        let (mut sent, mut lost) = (0, Vec::new());
        for (_, child) in &self.0 {
            lab::process::send(child.id(), Signal::INT);
        }
        for (path, child) in self.0.drain(..) {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let echo = parse_echo(&text).unwrap();
            sent += echo.sent;
            // The last one may still be under way.
            if echo.received + 1 < echo.sent {
                lost.push(format!(
                    "{path}: {} of {} lost",
                    echo.sent - echo.received,
                    echo.sent
                ));
            }
        }
        (sent, lost)
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
