//! Others at work on the same host: routes, rules, and an admin who holds the daemon back.

use std::time::{Duration, Instant};

use lab::rig::vxlan_lease;

use crate::bed::{Bed, PROGRAMS};
use crate::table::{Row, Table, nothing};

pub fn rows(bed: &mut Bed, table: &mut Table) {
    routes(bed, table);
    fight(bed, table);
    pause(bed, table);
    programs(bed, table);
}

fn routes(bed: &mut Bed, table: &mut Table) {
    bed.restart(&[]);
    bed.ready();
    bed.shell("ip route add 10.244.250.0/24 via 198.18.0.12 proto static");
    table.unready(
        bed,
        &Row::new(
            "an admin's route in the place of a peer that joins",
            "10.244.250.0/24 via 198.18.0.12",
            "kernel",
            "conflict",
        ),
        |bed| {
            let now = Instant::now();
            let lease = vxlan_lease("198.18.0.250", None, "02:00:00:00:00:0b", None);
            bed.rig.put_lease("10.244.250.0-24", &lease).unwrap();
            now
        },
        nothing,
        |bed| bed.shell("ip route del 10.244.250.0/24 proto static"),
    );
    bed.rig.delete_lease("10.244.250.0-24").unwrap();

    let peer = bed.peer();
    for protocol in ["static", "boot"] {
        bed.end_daemon();
        bed.shell(&format!(
            "ip route replace {peer} via 198.18.0.1 proto {protocol}"
        ));
        bed.restart(&[]);
        let start = Instant::now();
        let named = bed.prober.wait(start, Duration::from_secs(15), |answer| {
            answer.code == 503 && answer.reasons.iter().any(|reason| reason.contains(&peer))
        });
        table.start(
            bed,
            &format!("an admin's route (protocol {protocol}) in a peer's place before the start"),
            named.map(|answer| (answer.answered - start, answer.reasons)),
            &peer,
            |bed| bed.shell(&format!("ip route del {peer} proto {protocol}")),
        );
    }

    let inside = peer.replace("/24", "/25");
    table.unready(
        bed,
        &Row::new(
            "a /25 of another inside a peer's subnet",
            "draws traffic away",
            "kernel",
            "conflict",
        ),
        |bed| bed.shell(&format!("ip route add {inside} via 198.18.0.1")),
        nothing,
        |bed| bed.shell(&format!("ip route del {inside}")),
    );
}

/// A place that is replaced as often as it is put right is left alone for longer and longer.
fn fight(bed: &mut Bed, table: &mut Table) {
    bed.restart(&[]);
    bed.ready();
    let peer = bed.peer();
    let row = Row {
        turns: 20,
        ..Row::new(
            "a peer's route replaced again and again",
            "is changed again and again",
            "kernel",
            "fight",
        )
    };
    table.unready(
        bed,
        &row,
        |bed| {
            // Until it has been left alone for longer than any look takes.
            let (start, mut blows, mut last) = (Instant::now(), 0, Instant::now());
            while last.elapsed() < Duration::from_millis(1000) && start.elapsed() < Duration::from_secs(12) {
                let route = bed.host().ip(&["route", "show", &peer]).unwrap();
                if route.contains("flannel.1") {
                    blows += 1;
                    last = Instant::now();
                    bed.shell(&format!("ip route replace {peer} via 198.18.0.1 proto static"));
                }
            }
            crate::table::print(&format!("    ({blows} blows)"));
            last
        },
        nothing,
        // Nobody strikes any more: the next repair is the cure.
        |bed| {
            bed.until("our route", |bed| {
                bed.host()
                    .ip(&["route", "show", &peer])
                    .unwrap()
                    .contains("flannel.1")
            });
            Instant::now()
        },
    );
}

fn pause(bed: &mut Bed, table: &mut Table) {
    bed.restart(&[]);
    bed.ready();
    let peer = bed.peer();
    table.unready(
        bed,
        &Row::new(
            "pause, with a peer's route missing",
            "paused: ",
            "kernel",
            "paused",
        ),
        |bed| {
            let now = bed.shell("flannelctl pause");
            bed.shell(&format!("ip route del {peer}"));
            now
        },
        |bed| {
            let (status, _) = bed.status(crate::table::SOCKET);
            let plan = bed.host().run(&["sh", "-c", "flannelctl plan; true"]).unwrap();
            let found = format!("plan: {:?}", plan.trim());
            let is_named = status.contains("MISSING") && status.contains("FAILED") && plan.contains(&peer);
            if is_named {
                Ok(found)
            } else {
                Err(format!("{found}; {status}"))
            }
        },
        |bed| bed.shell("flannelctl resume"),
    );
}

/// A program that never comes back.
fn programs(bed: &mut Bed, table: &mut Table) {
    bed.restart(&[]);
    bed.ready();
    let hung = format!("{PROGRAMS}/iptables-restore");
    bed.host()
        .write(&hung, "#!/bin/sh\necho $$ >/run/hung\nexec sleep 1000\n")
        .unwrap();
    table.unready(
        bed,
        &Row::new(
            "a flush, and an iptables-restore that never returns",
            "iptables-restore",
            "firewall",
            "pending",
        ),
        |bed| bed.shell(&format!("chmod +x {hung}; iptables -w -t nat -F FLANNEL-POSTRTG")),
        |bed| {
            // Nothing else waits for it.
            let now = bed.shell("ip link del flannel.1");
            let is_back = |bed: &mut Bed| bed.host().ip(&["link", "show", "flannel.1"]).is_ok();
            bed.until("flannel.1 again", is_back);
            let found = format!(
                "flannel.1 deleted: back after {:.3} s",
                now.elapsed().as_secs_f64()
            );
            if is_back(bed) {
                Ok(found)
            } else {
                Err("flannel.1 stays away".to_owned())
            }
        },
        |bed| bed.shell(&format!("rm {hung}; kill $(cat /run/hung); rm /run/hung")),
    );
    // Nothing of ours is wrong; but nobody knows.
    let hung = format!("{PROGRAMS}/iptables-save");
    bed.host()
        .write(&hung, "#!/bin/sh\necho $$ >/run/hung\nexec sleep 1000\n")
        .unwrap();
    let rule = "POSTROUTING -d 203.0.113.9/32 -j RETURN";
    table.unready(
        bed,
        &Row {
            // It is given 5 s before it counts as one that does not answer.
            within: std::time::Duration::from_secs(8),
            ..Row::new(
                "a rule of somebody else's, and an iptables-save that never returns",
                "iptables-save (reading IPv4 firewall rules",
                "firewall",
                "failure",
            )
        },
        |bed| bed.shell(&format!("chmod +x {hung}; iptables -w -t nat -A {rule}")),
        crate::table::nothing,
        |bed| {
            let now = bed.shell(&format!("rm {hung}; kill $(cat /run/hung); rm /run/hung"));
            bed.shell(&format!("iptables -w -t nat -D {rule}"));
            now
        },
    );
}
