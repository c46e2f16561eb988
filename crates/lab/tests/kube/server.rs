//! The API server goes, in two ways, and comes back. What is in its store may have become another meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use lab::kube::SERVER;
use lab::store::Kind;

use crate::bed::{Bed, HOSTS, difference, seen, until};
use crate::peer::{Peer, data};

/// From when it is back: not all of a cluster may come at once.
const AIM: Duration = Duration::from_secs(3);
/// For a start out of what was written down.
const AFTER_REBOOT: Duration = Duration::from_secs(2);
/// How long it is away.
const AWAY: Duration = Duration::from_secs(5);

pub fn rows(bed: &mut Bed) {
    let (a, b) = (Peer::ghost("peer-a", 200), Peer::ghost("peer-b", 201));
    bed.row("a Node joins", |bed| bed.add(&a));
    bed.row("    and another, whose object is kept", |bed| bed.add(&b));
    // What is written is a protocol buffer: it is put back as it was.
    let etcd = |bed: &Bed, line: &str| {
        bed.rig
            .lab
            .switch()
            .shell(&format!("export ETCDCTL_API=3; {line}"))
            .unwrap()
    };
    let copy = bed.rig.lab.spec.directory().join("peer-b");
    let (key, copy) = ("/registry/minions", copy.display());
    etcd(
        bed,
        &format!("etcdctl get {key}/peer-b --print-value-only | head -c -1 >{copy}"),
    );
    bed.row("    which goes", |bed| bed.delete(&b));
    let changes = format!("etcdctl del {key}/peer-a; etcdctl put {key}/peer-b <{copy}");

    // It is there, takes connections, and answers nobody.
    bed.cluster().hold(SERVER).unwrap();
    stands(bed, "the API server answers nobody");
    etcd(bed, &changes);
    bed.row_until(
        "the API server answers again: one Node is gone meanwhile and one there",
        AIM,
        |bed| {
            bed.cluster().release(SERVER).unwrap();
            bed.forget(&a);
            bed.ghosts.push(b.clone());
        },
        |bed| bed.follow(),
    );

    bed.rig.lab.kill_store();
    stands(bed, "the API server is killed");
    reboots(bed);
    etcd(bed, &format!("etcdctl del {key}/peer-b"));
    bed.row_until(
        "the API server is back (from when it is ready): one Node is gone meanwhile",
        AIM,
        |bed| {
            bed.rig.store = bed.rig.lab.start_store(Kind::Kube).unwrap();
            bed.forget(&b);
        },
        |bed| bed.follow(),
    );

    // What comes after it is back.
    bed.row("    a Node joins", |bed| bed.add(&a));
    let mut now = a.clone();
    now.mac4 = "02:00:00:00:0d:04".to_owned();
    bed.row("    changes its VtepMAC", |bed| {
        bed.cluster()
            .annotate(&a.name, &[("backend-data", Some(&data(&now.mac4)))])
            .unwrap();
        bed.replace(&now);
    });
    bed.row("    and goes", |bed| bed.delete(&now));
    own_word(bed);
}

/// While it is away nothing is taken away, and daemons that are started anew know their peers from before.
fn stands(bed: &mut Bed, name: &str) {
    let before: Vec<BTreeSet<String>> = [1, 2].map(|host| seen(bed.rig.lab.host(host)).unwrap()).to_vec();
    // In order, so that it writes down what it knows: what it wrote before may be some seconds old.
    bed.rig.daemons[1].stop(Duration::from_secs(5)).unwrap();
    bed.rig.restart(2, &[]).unwrap();
    let start = std::time::Instant::now();
    while start.elapsed() < AWAY {
        for (index, before) in before.iter().enumerate() {
            let now = seen(bed.rig.lab.host(index + 1)).unwrap();
            if now != *before {
                let changes = difference(&now, before);
                bed.fail(format!("{name}: h{}: {changes}", index + 1));
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The last host loses what a kernel and `/run` hold, and its daemon starts while nobody answers.
fn reboots(bed: &mut Bed) {
    bed.row_until(
        "    a host reboots meanwhile and has its peers from its own record (from its daemon's start)",
        AFTER_REBOOT,
        |bed| {
            bed.rig.daemons[HOSTS - 1].stop(Duration::from_secs(5)).unwrap();
            let host = bed.rig.lab.host(HOSTS);
            host.shell("rm -r /run/flannel; ip link del flannel.1; ip link del flannel-v6.1; iptables -F; iptables -t nat -F")
                .unwrap();
            assert_eq!(seen(host).unwrap(), BTreeSet::new());
            bed.rig.restart(HOSTS, &[]).unwrap();
        },
        |bed| until(|| bed.is_followed_on(HOSTS)),
    );
}

/// All of it is well by its own word, too.
fn own_word(bed: &mut Bed) {
    bed.row_until(
        "every daemon calls itself ready",
        AIM,
        |_| {},
        |bed| {
            bed.rig.lab.hosts().iter().try_for_each(|host| {
                until(|| {
                    let said = host.run(&["flannelctl", "status"]);
                    said.map(|_| ())
                        .map_err(|error| format!("{}: {error}", host.name))
                })
            })
        },
    );
}
