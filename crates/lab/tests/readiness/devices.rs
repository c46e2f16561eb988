//! The tunnel's device: something else under its name, its VNI or its port another's, another daemon that wants it.

use std::cell::RefCell;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use lab::capture::Capture;
use lab::flannel::config;
use lab::witness::picture;
use lab::{Families, inside};
use serde_json::json;

use crate::bed::Bed;
use crate::table::{Row, Table};

pub fn rows(bed: &mut Bed, table: &mut Table) {
    foreign(bed, table);
    taken(bed, table);
    second(bed, table);
}

/// A device of another kind under the name of ours.
fn foreign(bed: &mut Bed, table: &mut Table) {
    for (deed, made) in [
        (
            "a bridge in the place of flannel.1",
            "ip link add flannel.1 type bridge",
        ),
        (
            "a veth in the place of flannel.1",
            "ip link add flannel.1 type veth peer name other",
        ),
        (
            "a macvlan in the place of flannel.1",
            "ip link add flannel.1 link eth0 type macvlan",
        ),
        (
            "a tun in the place of flannel.1",
            "ip tuntap add dev flannel.1 mode tun",
        ),
    ] {
        bed.restart(&[]);
        bed.ready();
        table.unready(
            bed,
            &Row::new(deed, "in the place of link flannel.1", "kernel", "conflict"),
            |bed| {
                bed.stroke(&format!(
                    "ip link del flannel.1; {made}; ip link set flannel.1 up"
                ))
            },
            nothing_in_the_clear,
            |bed| bed.shell("ip link del flannel.1"),
        );
    }
}

/// A packet to a peer's pod is refused at once, and leaves by no other way.
fn nothing_in_the_clear(bed: &mut Bed) -> Result<String, String> {
    let filter = format!("host {}", bed.target);
    let capture = Capture::start(bed.host(), "clear", "eth0", &filter).unwrap();
    // The kernel says so to one sender a few times a second only.
    let (mut said, mut answered, mut took) = bed.ping();
    for _ in 0..3 {
        if said.contains("nreachable") {
            break;
        }
        (said, answered, took) = bed.ping();
    }
    let left = capture.stop();
    let found = format!(
        "ping to the peer's pod: {said:?} after {:.3} s; {} packets in the clear",
        took.as_secs_f64(),
        left.len()
    );
    let is_refused = said.contains("nreachable") && took < Duration::from_secs(1);
    let is_closed = bed
        .host()
        .shell("ip route show type unreachable proto 241")
        .unwrap()
        .contains(&bed.peer());
    let is_refused = is_refused && is_closed;
    match !answered && is_refused && left.is_empty() {
        true => Ok(found),
        false => Err(format!(
            "{found}\n{}",
            bed.host().shell("ip -d link; ip route").unwrap()
        )),
    }
}

fn taken(bed: &mut Bed, table: &mut Table) {
    bed.restart(&[]);
    bed.ready();
    table.unready(
        bed,
        &Row::new(
            "VNI 1 taken by another device",
            "File exists",
            "kernel",
            "failure",
        ),
        |bed| {
            bed.stroke(
                "ip link del flannel.1
                ip link add other type vxlan id 1 dstport 8472 local 198.18.0.11 dev eth0; ip link set other up",
            )
        },
        nothing_in_the_clear,
        |bed| bed.shell("ip link del other"),
    );

    bed.restart(&[]);
    bed.ready();
    let netns = bed.host().network_file();
    let holder = RefCell::new(None);
    table.unready(
        bed,
        &Row::new(
            "UDP port 8472 taken by a socket",
            "its UDP port is taken by somebody else",
            "kernel",
            "failure",
        ),
        |bed| {
            // As long as ours has the port nobody else can.
            for attempt in 1.. {
                let done = bed.stroke("ip link del flannel.1");
                match inside::run(&netns, || UdpSocket::bind("0.0.0.0:8472")) {
                    Ok(socket) => {
                        holder.replace(Some(socket));
                        return done;
                    }
                    Err(failure) => assert!(attempt < 50, "{failure}"),
                }
            }
            unreachable!()
        },
        nothing_in_the_clear,
        |_| {
            let now = Instant::now();
            holder.take();
            now
        },
    );
}

/// A daemon of another network that has the same VNI, and so the same device.
fn second(bed: &mut Bed, table: &mut Table) {
    bed.restart(&[]);
    bed.ready();
    let mut other = config(Families::V4, json!({ "Type": "vxlan" }));
    other["Network"] = json!("10.99.0.0/16");
    bed.rig
        .lab
        .put("/second/network/config", &other.to_string())
        .unwrap();
    let endpoint = bed.rig.lab.store().unwrap().endpoint.clone();
    let before = picture(bed.host()).unwrap();
    let mut process = None;
    table.ready(
        bed,
        "a second daemon with the same VNI",
        |bed| {
            let words = [
                "flanneld",
                "--etcd-endpoints",
                &endpoint,
                "--etcd-prefix=/second/network",
                "--iface=eth0",
                "--subnet-file=/run/flannel/second.env",
            ];
            let now = Instant::now();
            process = Some(bed.host().spawn("second", &words).unwrap());
            now
        },
        |bed| {
            let reason = format!("device flannel.1 is kept by flanneld pid {} ", bed.daemon().pid());
            let said = |bed: &Bed| bed.status("/run/flannel/second.env.sock");
            bed.until("the second's reason to wait", |bed| said(bed).0.contains(&reason));
            let (text, exit) = said(bed);
            let untouched = picture(bed.host()).unwrap() == before;
            let words = text.lines().find(|line| line.contains(&reason)).unwrap_or(&text);
            let found = format!(
                "the second exits its status with {exit}: {}; the first's objects untouched: {untouched}",
                words.trim()
            );
            match untouched && exit == 1 && text.contains(&reason) {
                true => Ok(found),
                false => Err(found),
            }
        },
        |_| {},
    );
    if let Some(mut process) = process {
        process.kill();
    }
}
