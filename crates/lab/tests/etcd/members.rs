//! Members come and go.

use std::time::Duration;

use crate::bed::{AIM, Bed};
use crate::cluster::MEMBERS;

pub fn rows(bed: &mut Bed) {
    let first = bed.ghost();
    bed.row("a lease is written", |bed| {
        bed.write(std::slice::from_ref(&first), &[])
    });

    let member = bed.member_of(1);
    let second = bed.ghost();
    bed.row(
        "the member that h1 is connected to is killed, and a lease written",
        |bed| {
            bed.cluster.kill(member);
            bed.write(std::slice::from_ref(&second), &[]);
        },
    );
    bed.cluster.run_all(&bed.lab);

    let leader = bed.cluster.leader(&bed.lab);
    let third = bed.ghost();
    bed.row(
        "the leader is killed, and a lease written once there is another",
        |bed| {
            bed.cluster.kill(leader);
            bed.cluster.wait(&bed.lab);
            bed.write(std::slice::from_ref(&third), &[]);
        },
    );
    bed.cluster.run_all(&bed.lab);

    // It takes connections, and answers nobody. What is written meanwhile has to be heard from another.
    let member = bed.member_of(2);
    let fourth = bed.ghost();
    // An idle watch notices after the ping and the time for its answer.
    let pings = Duration::from_secs(15);
    bed.row_within(
        "the member that h2 is connected to hangs, and a lease is written",
        pings + AIM,
        |bed| {
            bed.cluster.hold(member, true);
            std::thread::sleep(Duration::from_secs(2));
            bed.write(std::slice::from_ref(&fourth), &[]);
        },
        Bed::is_followed,
    );
    bed.cluster.hold(member, false);
    bed.cluster.wait(&bed.lab);

    for member in 0..MEMBERS {
        let ghost = bed.ghost();
        bed.row(
            &format!("member {member} is restarted in order, and a lease written"),
            |bed| {
                bed.cluster.restart(&bed.lab, member);
                bed.write(std::slice::from_ref(&ghost), &[]);
            },
        );
    }

    // Two of three: nobody can write, and a member without a leader must not keep a watch that hears nothing.
    let leader = bed.cluster.leader(&bed.lab);
    let kept = (leader + 1) % MEMBERS;
    for member in (0..MEMBERS).filter(|member| *member != kept) {
        bed.cluster.kill(member);
    }
    bed.stands("two of three members are away", Duration::from_secs(4));
    bed.row_within(
        "    meanwhile every node says that what it has is stale",
        Duration::from_secs(10),
        |_| {},
        |bed| bed.lab.all_say("stale: "),
    );
    let ghost = bed.ghost();
    bed.row("    they are back, and a lease is written", |bed| {
        bed.cluster.run_all(&bed.lab);
        bed.write(std::slice::from_ref(&ghost), &[]);
    });
    bed.row("    and every node is ready", |_| {});
    bed.row_within("    by its own word", AIM, |_| {}, |bed| bed.lab.all_ready());

    // Two hundred at once, half of them gone again, while nobody hears and what was is forgotten.
    let many: Vec<(String, String)> = (0..100).map(|_| bed.ghost()).collect();
    let ghosts = bed.ghosts();
    let old: Vec<String> = ghosts.keys().cloned().collect();
    bed.row(
        "all members are killed; once back, 100 leases come, all others go, and history is compacted",
        |bed| {
            bed.signal(rustix::process::Signal::STOP);
            bed.cluster.kill_all();
            bed.cluster.run_all(&bed.lab);
            bed.write(&many[..50], &old);
            bed.write(&many[50..], &[]);
            let revision = revision(bed);
            bed.cluster.ctl(&bed.lab, &["compact", &revision]).unwrap();
            bed.signal(rustix::process::Signal::CONT);
        },
    );
    let keys: Vec<String> = many.iter().map(|(key, _)| key.clone()).collect();
    let others: Vec<(String, String)> = (0..100).map(|_| bed.ghost()).collect();
    bed.row("200 leases change at once: 100 go and 100 others come", |bed| {
        bed.write(&others[..60], &keys[..60]);
        bed.write(&others[60..], &keys[60..]);
    });
    let keys: Vec<String> = others[..95].iter().map(|(key, _)| key.clone()).collect();
    bed.row("    most of them go", |bed| bed.write(&[], &keys));
}

fn revision(bed: &Bed) -> String {
    let text = bed
        .cluster
        .ctl(&bed.lab, &["get", "/none", "--write-out=json"])
        .unwrap();
    let reply: serde_json::Value = serde_json::from_str(&text).unwrap();
    reply["header"]["revision"].to_string()
}
