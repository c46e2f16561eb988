//! Making namespaces, links, and the processes that hold them: all hosts at once, by few processes.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::command::{LabError, file, line, run, run_with_input, words};
use crate::layout::Spec;
use crate::node::mark;
use crate::process::{Record, stat};

use super::{bridge, node_names, port};

/// Namespaces, then the switch with one end of every link: two `ip` processes however many hosts.
pub(super) fn namespaces(spec: &Spec) -> Result<(), LabError> {
    // A machine gets its network when it is started.
    let hosts = if spec.machines { 0 } else { spec.hosts };
    let lines: String = node_names(spec)
        .iter()
        .take(1 + hosts)
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
    for host in 1..=hosts {
        lines.push_str(&link(spec, host));
    }
    run_with_input(
        &mut words(&["ip", "-n", &spec.netns("sw"), "-batch", "-"]),
        &lines,
    )
    .map(|_| ())
}

/// On the switch: a host's link, one end of it in the host.
fn link(spec: &Spec, host: usize) -> String {
    let (port, mtu, netns) = (port(host), spec.mtu, spec.netns(&format!("h{host}")));
    // A machine's card is the same after a restart: neighbours remember it.
    let card = match spec.machines {
        true => format!("address 02:00:c6:12:{:02x}:{:02x} ", host / 256, host % 256),
        false => String::new(),
    };
    format!(
        "link add {port} mtu {mtu} type veth peer name eth0 {card}mtu {mtu} netns {netns}\nlink set {port} master {} up\n",
        bridge(spec.segment(host))
    )
}

/// In a host: its addresses and its way out.
fn addresses(spec: &Spec, host: usize) -> String {
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
    batch
}

/// Makes a machine's network: namespace, link, addresses.
pub(crate) fn make_network(spec: &Spec, host: usize) -> Result<(), LabError> {
    let (netns, switch) = (spec.netns(&format!("h{host}")), spec.netns("sw"));
    let batch = |place: &str, lines: &str| {
        run_with_input(&mut words(&["ip", "-n", place, "-batch", "-"]), lines).map(|_| ())
    };
    run(&mut words(&["ip", "netns", "add", &netns]))?;
    batch(&switch, &link(spec, host))?;
    batch(&netns, &addresses(spec, host))
}

/// Takes it away with all that the kernel has in it; one that is not there is no error.
pub(crate) fn remove_network(spec: &Spec, host: usize) -> Result<(), LabError> {
    // The kernel takes a namespace apart when it comes to it; what is on the switch goes at once this way.
    let _ = run(&mut words(&[
        "ip",
        "-n",
        &spec.netns("sw"),
        "link",
        "del",
        &port(host),
    ]));
    let netns = spec.netns(&format!("h{host}"));
    if Path::new("/run/netns").join(&netns).exists() {
        run(&mut words(&["ip", "netns", "del", &netns]))?;
    }
    Ok(())
}

/// A script with a node's network, and mounts and a host name of its own.
fn in_network(spec: &Spec, name: &str, script: &str) -> Command {
    let mut command = words(&["setsid", "nsenter"]);
    command.arg(format!("--net=/run/netns/{}", spec.netns(name)));
    command.args(["unshare", "--mount", "--uts", "--propagation", "private"]);
    command.args(["sh", "-ec", script]);
    command
}

/// Starts all holders at once and waits for each to say that its host stands.
pub(super) fn holders(spec: &Spec, executables: &Path) -> Result<Vec<Record>, LabError> {
    let mut waiting: Vec<(Record, Child, String)> = Vec::new();
    for (number, name) in node_names(spec).iter().enumerate() {
        let log = spec.directory().join(format!("{name}.log"));
        let mut command = match number {
            0 => in_network(spec, name, &switch_script()),
            _ if spec.machines => crate::machine::disk(spec, number)?,
            _ => in_network(spec, name, &host_script(spec, number, executables)),
        };
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
    let batch = addresses(spec, host);
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
