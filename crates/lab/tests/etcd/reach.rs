//! The way to etcd: names, certificates, users, members that say nothing.

use std::time::Duration;

use crate::bed::{AIM, Bed};
use crate::cluster::{MEMBERS, NAME, port};

pub fn rows(bed: &mut Bed) {
    names(bed);
    silence(bed);
    certificates(bed);
    users(bed);
}

/// Endpoints by name, as a host's file of names has it.
fn names(bed: &mut Bed) {
    let address = bed.lab.spec.gateway4(0).to_string();
    let host = bed.lab.host(3);
    // A file of its own for this host alone.
    host.shell("cp /etc/hosts /run/hosts; mount --bind /run/hosts /etc/hosts")
        .unwrap();
    let know = |bed: &Bed, addresses: &[&str]| {
        let lines: Vec<String> = addresses
            .iter()
            .map(|address| format!("{address} {NAME}\n"))
            .collect();
        bed.lab.host(3).write("/etc/hosts", &lines.concat()).unwrap();
    };
    let mut flags = bed.cluster.flags();
    let all: Vec<String> = (0..MEMBERS)
        .map(|member| format!("https://{NAME}:{}", port(member)))
        .collect();
    flags[0] = format!("--etcd-endpoints={}", all.join(","));

    // 198.18.15.254 is on the underlay, and nobody's.
    bed.row(
        "h3 starts with names for endpoints; of two addresses the first is nobody's; a lease is written",
        |bed| {
            know(bed, &["198.18.15.254", &address]);
            bed.restart(3, &flags);
            let ghost = bed.ghost();
            bed.write(std::slice::from_ref(&ghost), &[]);
        },
    );
    bed.row_within("    and h3 is ready", AIM, |_| {}, |bed| bed.lab.all_ready());
    know(bed, &[]);
    (0..MEMBERS).for_each(|member| bed.cluster.kill(member));
    bed.row_within(
        "the name is gone and the members are, too: h3 says which name is not known",
        Duration::from_secs(10),
        |_| {},
        |bed| match bed.status(3)["registry"]["error"].as_str() {
            Some(error) if error.contains(NAME) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    bed.row("    both are back, and a lease is written", |bed| {
        know(bed, &[&address]);
        bed.cluster.run_all(&bed.lab);
        let ghost = bed.ghost();
        bed.write(std::slice::from_ref(&ghost), &[]);
    });
    let flags = bed.cluster.flags();
    bed.row("    h3 starts with addresses again", |bed| {
        bed.restart(3, &flags);
        bed.lab.host(3).shell("umount /etc/hosts").unwrap();
    });
}

/// Packets to a member go nowhere.
fn silence(bed: &mut Bed) {
    let rule = |verb: &str, port: usize| format!("iptables -w 5 -{verb} INPUT -p tcp --dport {port} -j DROP");
    let flags = bed.cluster.flags();
    let member = bed.member_of(1);
    let ghost = bed.ghost();
    // An idle watch notices after the ping and the time for its answer.
    bed.row_within(
        "packets to h1's member go nowhere, and a lease is written",
        Duration::from_secs(15) + AIM,
        |bed| {
            bed.lab.switch().shell(&rule("I", port(member))).unwrap();
            bed.write(std::slice::from_ref(&ghost), &[]);
        },
        Bed::is_followed,
    );
    // Each of the two that are not served costs the time of a connection.
    bed.lab
        .switch()
        .shell(&rule("I", port((member + 1) % MEMBERS)))
        .unwrap();
    let ghost = bed.ghost();
    bed.row_within(
        "the same with two of three, while h2's daemon starts",
        Duration::from_secs(15) + AIM,
        |bed| {
            bed.restart(2, &flags);
            bed.write(std::slice::from_ref(&ghost), &[]);
        },
        Bed::is_followed,
    );
    bed.row_within("    all are ready", AIM, |_| {}, |bed| bed.lab.all_ready());
    bed.lab.switch().shell("iptables -w 5 -F INPUT").unwrap();
}

/// Files that are exchanged while daemons run.
fn certificates(bed: &mut Bed) {
    bed.cluster.certify(&bed.lab, "server", 2);
    bed.cluster.certify(&bed.lab, "client", 2);
    for member in 0..MEMBERS {
        bed.cluster.restart(&bed.lab, member);
    }
    let ghost = bed.ghost();
    bed.row(
        "all certificates are others and the members restarted; a lease is written",
        |bed| {
            bed.write(std::slice::from_ref(&ghost), &[]);
        },
    );
    bed.cluster.kill_all();
    bed.cluster.certify(&bed.lab, "server", -1);
    for member in 0..MEMBERS {
        bed.cluster.run(&bed.lab, member);
    }
    bed.row_within(
        "the servers' certificates have expired: every node says so",
        Duration::from_secs(10),
        |_| {},
        |bed| bed.lab.all_say("invalid peer certificate: Expired"),
    );
    bed.stands("    what is known stays", Duration::from_secs(1));
    let ghost = bed.ghost();
    bed.row("    they are good again, and a lease is written", |bed| {
        bed.cluster.kill_all();
        bed.cluster.certify(&bed.lab, "server", 2);
        bed.cluster.run_all(&bed.lab);
        bed.write(std::slice::from_ref(&ghost), &[]);
    });
    bed.row_within("    all are ready", AIM, |_| {}, |bed| bed.lab.all_ready());
}

/// A cluster that knows users from now on, of which the certificate's name is one that may do nothing.
fn users(bed: &mut Bed) {
    let ctl = |bed: &Bed, words: &[&str]| bed.cluster.ctl(&bed.lab, words).unwrap();
    ctl(bed, &["user", "add", "root:secret"]);
    ctl(bed, &["user", "grant-role", "root", "root"]);
    ctl(bed, &["user", "add", "client:secret"]);
    ctl(bed, &["auth", "enable"]);
    bed.cluster.kill_all();
    (0..MEMBERS).for_each(|member| bed.cluster.run(&bed.lab, member));
    bed.row_within(
        "the daemons' user may read nothing any more: every node says so",
        Duration::from_secs(15),
        |_| {},
        |bed| bed.lab.all_say("permission denied"),
    );
    bed.stands("    what is known stays", Duration::from_secs(1));
    bed.cluster
        .ctl(&bed.lab, &["--user", "root:secret", "auth", "disable"])
        .unwrap();
    let ghost = bed.ghost();
    bed.row("    there are no users any more, and a lease is written", |bed| {
        bed.write(std::slice::from_ref(&ghost), &[]);
    });
    bed.row_within("    all are ready", AIM, |_| {}, |bed| bed.lab.all_ready());
}
