//! What carries the tunnel: its MTU, its carrier, its address.

use std::time::Instant;

use crate::bed::Bed;
use crate::table::{Row, Table, nothing};

pub fn rows(bed: &mut Bed, table: &mut Table) {
    bed.restart(&[]);
    bed.ready();
    table.unready(
        bed,
        &Row::new("underlay MTU 100", "underlay: ", "underlay", "failure"),
        |bed| bed.shell("ip link set eth0 mtu 100"),
        nothing,
        |bed| bed.shell("ip link set eth0 mtu 1500"),
    );
    let port = |bed: &Bed, state: &str| {
        let now = Instant::now();
        bed.rig.lab.switch().ip(&["link", "set", "p1", state]).unwrap();
        now
    };
    table.unready(
        bed,
        &Row::new(
            "underlay without a carrier",
            "interface eth0 has no carrier",
            "underlay",
            "failure",
        ),
        |bed| port(bed, "down"),
        nothing,
        |bed| port(bed, "up"),
    );
    table.unready(
        bed,
        &Row::new(
            "underlay without its address",
            "address 198.18.0.11 is gone from interface eth0",
            "underlay",
            "failure",
        ),
        |bed| bed.shell("ip addr del 198.18.0.11/20 dev eth0"),
        nothing,
        |bed| bed.shell("ip addr add 198.18.0.11/20 dev eth0; ip route add default via 198.18.0.1"),
    );
}
