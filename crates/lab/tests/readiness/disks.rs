//! Disks that take nothing: read-only, full, hanging; under the subnet file and under the state directory.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::bed::Bed;
use crate::table::{Row, Table, nothing};

const FOLDER: &str = "/run/env";
const SUBNET_FILE: &str = "/run/env/subnet.env";
const STATE: &str = "/var/lib/flannel";

pub fn rows(bed: &mut Bed, table: &mut Table) {
    subnet_file(bed, table);
    state(bed, table);
    bed.restart(&[]);
    bed.ready();
}

/// A file system of its own.
struct Disk {
    thaw: Command,
    unmount: Command,
}

impl Disk {
    /// One that is soon full.
    fn small(bed: &Bed, folder: &'static str) -> Disk {
        bed.shell(&format!(
            "mkdir -p {folder}; mount -t tmpfs -o size=256k lab {folder}"
        ));
        Disk::mounted(bed, folder)
    }

    /// One that can be frozen: whatever writes there hangs.
    fn frozen(bed: &Bed, folder: &'static str) -> Disk {
        let image = format!("{}.img", folder.replace('/', "-"));
        bed.shell(&format!(
            "mkdir -p {folder} && truncate -s 8M /run/{image} && mkfs.ext4 -q /run/{image} &&
             mount -o loop /run/{image} {folder}"
        ));
        Disk::mounted(bed, folder)
    }

    fn for_way(bed: &Bed, how: &str, folder: &'static str) -> Disk {
        match how {
            "hanging" => Disk::frozen(bed, folder),
            _ => Disk::small(bed, folder),
        }
    }

    fn mounted(bed: &Bed, folder: &'static str) -> Disk {
        Disk {
            thaw: bed.host().command(&["fsfreeze", "-u", folder]),
            unmount: bed.host().command(&["umount", "-l", folder]),
        }
    }
}

/// What a disk does, what makes it so, what cures it, and the system's words.
struct Way {
    how: &'static str,
    made: String,
    cured: String,
    words: &'static str,
}

impl Way {
    fn all(folder: &str) -> [Way; 3] {
        let way = |how, made, cured, words| Way {
            how,
            made,
            cured,
            words,
        };
        [
            way(
                "read-only",
                format!("mount -o remount,ro {folder}"),
                format!("mount -o remount,rw {folder}"),
                "Read-only file system",
            ),
            way(
                "full",
                format!("cat /dev/zero 2>/dev/null >{folder}/fill || true"),
                format!("rm {folder}/fill"),
                "No space left on device",
            ),
            way(
                "hanging",
                format!("fsfreeze -f {folder}"),
                format!("fsfreeze -u {folder}"),
                "",
            ),
        ]
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever hangs could not be killed.
        let _ = self.thaw.stderr(Stdio::null()).status();
        let _ = self.unmount.status();
    }
}

fn subnet_file(bed: &mut Bed, table: &mut Table) {
    let socket = format!("{SUBNET_FILE}.sock");
    for way in Way::all(FOLDER) {
        let Way {
            how,
            made,
            cured,
            words,
        } = way;
        bed.end_daemon();
        let _disk = Disk::for_way(bed, how, FOLDER);
        bed.restart(&["--subnet-file", SUBNET_FILE]);
        bed.ready();
        let deed = format!("subnet.env gone, its disk {how}");
        let (cause, kind) = match words {
            "" => ("it is being written", "pending"),
            words => (words, "failure"),
        };
        let row = Row {
            socket: &socket,
            ..Row::new(&deed, cause, "subnet-file", kind)
        };
        table.unready(
            bed,
            &row,
            |bed| bed.stroke(&format!("rm {SUBNET_FILE}; {made}")),
            nothing,
            |bed| bed.shell(&cured),
        );
        assert!(bed.host().has(SUBNET_FILE), "{how}: it is there again");
        bed.end_daemon();
    }
}

/// What survives a reboot is not needed until then: the node stays ready, and says so.
fn state(bed: &mut Bed, table: &mut Table) {
    for way in Way::all(STATE) {
        let Way {
            how,
            made,
            cured,
            words,
        } = way;
        let words = if words.is_empty() {
            "the state directory does not answer"
        } else {
            words
        };
        bed.end_daemon();
        let _disk = Disk::for_way(bed, how, STATE);
        bed.shell(&made);
        bed.restart(&[]);
        bed.ready();
        let start = Instant::now();
        table.ready(
            bed,
            &format!("the state directory's disk {how}"),
            |_| start,
            |bed| {
                let metric = "flannel_findings{part=\"state\",kind=\"remark\"}";
                let limit = std::time::Duration::from_secs(15);
                while bed.metric(metric) == 0 && start.elapsed() < limit {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                bed.until("a line of the log", |bed| bed.log().contains(words));
                let (status, exit) = bed.status(crate::table::SOCKET);
                let line = status
                    .lines()
                    .find(|line| line.contains(words))
                    .unwrap_or_default();
                let lines = bed.log().lines().filter(|line| line.contains(words)).count();
                let found = format!(
                    "named after {:.1} s: {:?}; {metric} {}; {lines} lines in the log",
                    start.elapsed().as_secs_f64(),
                    line.trim(),
                    bed.metric(metric)
                );
                match exit == 0 && line.contains("remark") && (1..=2).contains(&lines) {
                    true => Ok(found),
                    false => Err(format!("{found}; {status}; {}", bed.log())),
                }
            },
            |bed| {
                bed.shell(&cured);
            },
        );
        bed.end_daemon();
    }
}
