//! What is in etcd: too much, of another time, nothing.

use std::time::Duration;

use lab::store::{CONFIG_KEY, SUBNETS};
use rustix::process::Signal;
use serde_json::json;

use crate::bed::{AIM, Bed, network};

/// A registry that went back is believed after this: its nodes say again what is theirs.
const REASSERTION: Duration = Duration::from_secs(10);

pub fn rows(bed: &mut Bed) {
    full(bed);
    restored(bed);
    emptied(bed);
}

fn full(bed: &mut Bed) {
    let big = "x".repeat(100_000);
    bed.row_within(
        "etcd has no space left: every node says so",
        Duration::from_secs(110),
        |bed| {
            let fill = |number: usize| {
                bed.cluster
                    .ctl(&bed.lab, &["put", &format!("/big/{number}"), &big])
            };
            assert!((0..100).any(|number| fill(number).is_err()), "etcd took 10 MB");
            // A watch that stands asks seldom, one that begins soon.
            bed.signal(Signal::HUP);
        },
        |bed| bed.lab.all_say("alarm NOSPACE"),
    );
    bed.row_within(
        "    and is ready all the same",
        AIM,
        |_| {},
        |bed| bed.lab.all_ready(),
    );
    bed.row_within(
        "    space is made: nobody says so any more",
        Duration::from_secs(15),
        |bed| {
            let ctl = |words: &[&str]| bed.cluster.ctl(&bed.lab, words).unwrap();
            ctl(&["del", "/big/", "--prefix"]);
            let text = ctl(&["get", "/none", "--write-out=json"]);
            let reply: serde_json::Value = serde_json::from_str(&text).unwrap();
            ctl(&["compact", &reply["header"]["revision"].to_string()]);
            ctl(&["defrag"]);
            ctl(&["alarm", "disarm"]);
        },
        |bed| match bed.lab.all_say("alarm NOSPACE") {
            Ok(()) => Err("it is still said".to_owned()),
            Err(_) => Ok(()),
        },
    );
}

fn restored(bed: &mut Bed) {
    let snapshot = bed.cluster.save(&bed.lab);
    let (then, late) = (bed.ghosts(), bed.ghost());
    bed.row("a snapshot is taken, and a lease written after it", |bed| {
        bed.write(std::slice::from_ref(&late), &[]);
    });
    bed.row_within(
        "the snapshot is restored: the lease after it is gone, as what nobody says again",
        REASSERTION + AIM,
        |bed| {
            bed.cluster.kill_all();
            bed.cluster.restore(&bed.lab, &snapshot);
            bed.cluster.run_all(&bed.lab);
            bed.expect(&then);
        },
        Bed::is_followed,
    );
    // Its count of changes passes what the daemons knew before they hear of it again.
    bed.row_within(
        "another is restored and overtakes what was known, while the daemons are held",
        REASSERTION + AIM,
        |bed| {
            let snapshot = bed.cluster.save(&bed.lab);
            let (then, late) = (bed.ghosts(), bed.ghost());
            bed.write(std::slice::from_ref(&late), &[]);
            std::thread::sleep(Duration::from_millis(300));
            bed.signal(Signal::STOP);
            bed.cluster.kill_all();
            bed.cluster.restore(&bed.lab, &snapshot);
            bed.cluster.run_all(&bed.lab);
            for number in 0..5 {
                bed.cluster
                    .ctl(&bed.lab, &["put", &format!("/other/{number}"), "x"])
                    .unwrap();
            }
            bed.expect(&then);
            bed.signal(Signal::CONT);
        },
        Bed::is_followed,
    );
    bed.row_within("    all are ready", AIM, |_| {}, |bed| bed.lab.all_ready());
}

fn emptied(bed: &mut Bed) {
    bed.cluster.kill_all();
    bed.cluster.empty();
    bed.cluster.run_all(&bed.lab);
    // Somebody's guess at what the network was.
    let other = json!({ "Network": "10.9.0.0/16", "Backend": { "Type": "vxlan" } });
    bed.row_within(
        "etcd lost all, and has another Network: every node says so",
        REASSERTION + AIM,
        |bed| {
            bed.cluster
                .ctl(&bed.lab, &["put", CONFIG_KEY, &other.to_string()])
                .unwrap();
        },
        |bed| bed.lab.all_say("10.9.0.0/16"),
    );
    let right = network();
    bed.row_within(
        "    the right one is written: the hosts have written their leases again, and nothing else is left",
        REASSERTION + AIM,
        |bed| {
            bed.cluster
                .ctl(&bed.lab, &["put", CONFIG_KEY, &right.to_string()])
                .unwrap();
            bed.expect(&std::collections::BTreeMap::new());
        },
        |bed| {
            bed.is_followed()?;
            let keys = bed
                .cluster
                .ctl(&bed.lab, &["get", SUBNETS, "--prefix", "--keys-only"]);
            let keys = keys.map_err(|error| error.to_string())?;
            let count = keys.lines().filter(|line| !line.is_empty()).count();
            (count == 3).then_some(()).ok_or(keys)
        },
    );
    bed.row_within("    all are ready", AIM, |_| {}, |bed| bed.lab.all_ready());
}
