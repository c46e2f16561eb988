//! Making namespaces, links, and the processes that hold them: all hosts at once, by few processes.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::command::{LabError, file, line, run_with_input, words};
use crate::layout::Spec;
use crate::node::mark;
use crate::process::{Record, stat};

use super::{bridge, node_names, port};

/// Namespaces, then the switch with one end of every link: two `ip` processes however many hosts.
pub(super) fn namespaces(spec: &Spec) -> Result<(), LabError> {
    let lines: String = node_names(spec)
        .iter()
        .map(|n| format!("netns add {}\n", spec.netns(n)))
        .collect();
    run_with_input(&mut words(&["ip", "-batch", "-"]), &lines)?;
    let mut lines = "link set lo up\n".to_owned();
    for segment in 0..spec.segments() {
        let bridge = bridge(segment);
        let _ = writeln!(
            lines,
            "link add {bridge} mtu {} type bridge mcast_snooping 0",
            spec.mtu
        );
        let _ = writeln!(lines, "link set {bridge} up");
        if spec.families.v4() {
            let _ = writeln!(lines, "addr add {}/20 dev {bridge}", spec.gateway4(segment));
        }
        if spec.families.v6() {
            let _ = writeln!(lines, "addr add {}/64 dev {bridge} nodad", spec.gateway6(segment));
            // A router asks for neighbours from its link-local address; the kernel's own is tentative for a second.
            let _ = writeln!(lines, "addr add fe80::1/64 dev {bridge} nodad");
        }
    }
    for host in 1..=spec.hosts {
        let (port, mtu, netns) = (port(host), spec.mtu, spec.netns(&format!("h{host}")));
        let _ = writeln!(
            lines,
            "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}"
        );
        let _ = writeln!(lines, "link set {port} master {} up", bridge(spec.segment(host)));
    }
    run_with_input(
        &mut words(&["ip", "-n", &spec.netns("sw"), "-batch", "-"]),
        &lines,
    )
    .map(|_| ())
}

/// Starts all holders at once and waits for each to say that its host stands.
pub(super) fn holders(spec: &Spec, executables: &Path) -> Result<Vec<Record>, LabError> {
    let mut waiting: Vec<(Record, Child, String)> = Vec::new();
    for (number, name) in node_names(spec).iter().enumerate() {
        let script = if number == 0 {
            switch_script()
        } else {
            host_script(spec, number, executables)
        };
        let log = spec.directory().join(format!("{name}.log"));
        let mut command = words(&["setsid", "nsenter"]);
        command.arg(format!("--net=/run/netns/{}", spec.netns(name)));
        command.args([
            "unshare",
            "--mount",
            "--uts",
            "--propagation",
            "private",
            "sh",
            "-ec",
            &script,
        ]);
        mark(&mut command, &spec.name);
        let errors = file(&log, fs::File::create(&log))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .current_dir("/");
        let child = command.spawn().map_err(|source| LabError::Start {
            command: line(&command),
            source,
        })?;
        let started = stat(child.id()).map_or(0, |s| s.started);
        waiting.push((
            Record {
                pid: child.id(),
                started,
                log,
            },
            child,
            name.clone(),
        ));
    }
    let mut holders = Vec::new();
    for (record, mut child, name) in waiting {
        let mut said = String::new();
        if let Some(pipe) = child.stdout.take() {
            let _ = BufReader::new(pipe).read_line(&mut said);
        }
        if said != "ready\n" {
            return Err(LabError::Command {
                command: format!("setting up {name}"),
                status: "ended early".to_owned(),
                stderr: fs::read_to_string(&record.log)
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
            });
        }
        holders.push(record);
    }
    Ok(holders)
}

/// Forwards between segments; bridged frames see no firewall.
fn switch_script() -> String {
    "hostname sw
    cd /proc/sys/net
    echo 1 >ipv4/ip_forward
    [ ! -e ipv6/conf/all/forwarding ] || echo 1 >ipv6/conf/all/forwarding
    for f in iptables ip6tables arptables; do [ ! -e bridge/bridge-nf-call-$f ] || echo 0 >bridge/bridge-nf-call-$f; done
    cd /
    echo ready
    exec sleep infinity >/dev/null 2>&1"
        .to_owned()
}

/// Private directories, sysctls as on a container host, addresses. A directory that this machine does not have is
/// made on an overlay, so that nothing is left on its disk.
fn host_script(spec: &Spec, host: usize, executables: &Path) -> String {
    let mut batch = "link set lo up\n".to_owned();
    let segment = spec.segment(host);
    if spec.families.v4() {
        let _ = writeln!(batch, "addr add {}/20 dev eth0", spec.host4(host));
    }
    if spec.families.v6() {
        let _ = writeln!(batch, "addr add {}/64 dev eth0 nodad", spec.host6(host));
    }
    batch.push_str("link set eth0 up\n");
    if spec.families.v4() {
        let _ = writeln!(batch, "route add default via {}", spec.gateway4(segment));
    }
    if spec.families.v6() {
        let _ = writeln!(batch, "route add default via {}", spec.gateway6(segment));
    }
    let executables = executables.display();
    format!(
        "hostname h{host}
        mount -t tmpfs -o mode=755 flannel-lab /run
        for d in /var/lib/cni /var/lib/flannel /etc/cni/net.d; do
            if [ ! -d $d ]; then
                p=$(dirname $(dirname $d)); [ $p != /var ] || p=/var/lib; o=/run/.overlay$(echo $p | tr / -)
                if [ ! -d $o ]; then
                    mkdir -p $o/upper $o/work
                    mount -t overlay -o lowerdir=$p,upperdir=$o/upper,workdir=$o/work flannel-lab $p
                fi
                mkdir -p $d
            fi
        done
        # Only now: an overlay would hide what is mounted below it.
        for d in /var/lib/cni /var/lib/flannel /etc/cni/net.d; do mount -t tmpfs -o mode=755 flannel-lab $d; done
        mount -t sysfs flannel-lab /sys
        mkdir -p /run/netns /run/lock /run/flannel /run/cni-bin
        for p in flannel bridge host-local loopback portmap; do ln -s {executables}/flannel-cni /run/cni-bin/$p; done
        cd /proc/sys/net
        echo 1 >ipv4/ip_forward
        echo 0 >ipv4/conf/all/rp_filter
        echo 0 >ipv4/conf/default/rp_filter
        [ ! -e ipv6/conf/all/forwarding ] || echo 1 >ipv6/conf/all/forwarding
        # The underlay's link is of the lab's making: its addresses are unique.
        [ ! -e ipv6/conf/eth0/accept_dad ] || echo 0 >ipv6/conf/eth0/accept_dad
        for f in iptables ip6tables; do [ ! -e bridge/bridge-nf-call-$f ] || echo 1 >bridge/bridge-nf-call-$f; done
        cd /
        ip -batch - <<BATCH\n{batch}BATCH
        echo ready
        exec sleep infinity >/dev/null 2>&1"
    )
}
