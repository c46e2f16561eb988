//! Where leases come from: away, and with an entry in it that is no lease.

use std::time::Instant;

use lab::store::{Kind, SUBNETS};

use crate::bed::Bed;
use crate::table::{Row, Table};

pub fn rows(bed: &mut Bed, table: &mut Table) {
    bed.restart(&[]);
    bed.ready();
    let key = "10.244.77.0-24";
    table.ready(
        bed,
        "a peer's lease that cannot be read",
        |bed| {
            let now = Instant::now();
            bed.rig
                .lab
                .put(&format!("{SUBNETS}{key}"), "{\"PublicIP\":\"x\"")
                .unwrap();
            now
        },
        |bed| {
            let metric = "flannel_findings{part=\"registry\",kind=\"degraded\"}";
            bed.until("the finding", |bed| bed.metric(metric) > 0);
            bed.until("the line in the log", |bed| bed.log().contains(key));
            let (status, exit) = bed.status(crate::table::SOCKET);
            let line = status.lines().find(|line| line.contains(key)).unwrap_or_default();
            let lines = bed.log().lines().filter(|line| line.contains(key)).count();
            let found = format!(
                "named: {:?}; {metric} {}; {lines} line in the log",
                line.trim(),
                bed.metric(metric)
            );
            match exit == 0 && line.contains("degraded") && bed.metric(metric) == 1 && lines == 1 {
                true => Ok(found),
                false => Err(format!("{found}; {status}")),
            }
        },
        |bed| bed.rig.delete_lease(key).unwrap(),
    );
    table.unready(
        bed,
        &Row::new("registry away", "stale: ", "registry", "stale"),
        |bed| {
            let now = Instant::now();
            bed.rig.lab.kill_store();
            now
        },
        |bed| {
            let (said, answered, _) = bed.ping();
            if answered {
                Ok(format!("ping to the peer's pod: {said:?}"))
            } else {
                Err(said)
            }
        },
        |bed| {
            bed.rig.store = bed.rig.lab.start_store(Kind::Etcd).unwrap();
            Instant::now()
        },
    );
    // What others hear of it: once in the life of a daemon.
    let readies = bed.readies();
    assert_eq!(readies, 1, "READY=1 is said {readies} times");
}
