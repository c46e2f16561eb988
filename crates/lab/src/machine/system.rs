//! What a machine's disk has beside Debian's packages, before its first start.

/// A script that writes it below `root`.
pub(super) fn files(root: &str, host: usize) -> String {
    // The computer's own parameters are read-only here. Programs that insist on these may have them: they change nothing.
    let pretended: String = PRETENDED
        .iter()
        .map(|(name, value)| format!("pretend {name} {value}\n"))
        .collect();
    format!(
        r#"cat >{root}/usr/local/lib/lab-machine <<'LAB'
#!/bin/sh
# Before anything else: what a machine has that its container manager does not give.
set -e
mount --make-rshared /
for group in /sys/fs/cgroup /sys/fs/cgroup/*/; do
	! mountpoint -q $group || mount -o remount,rw,bind $group
done
[ -e /dev/kmsg ] || ln -s /dev/null /dev/kmsg
mkdir -p /run/lab-parameters
pretend() {{
	echo $2 >/run/lab-parameters/$(echo $1 | tr / .)
	mount --bind /run/lab-parameters/$(echo $1 | tr / .) /proc/sys/$1
}}
{pretended}LAB
        chmod 755 {root}/usr/local/lib/lab-machine
        cat >{root}/etc/systemd/system/lab-machine.service <<LAB
[Unit]
DefaultDependencies=no
Before=sysinit.target systemd-sysctl.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/lab-machine
[Install]
WantedBy=sysinit.target
LAB
        # As documents on container hosts ask for.
        cat >{root}/etc/sysctl.d/90-lab.conf <<LAB
net.ipv4.ip_forward = 1
net.ipv6.conf.all.forwarding = 1
net.bridge.bridge-nf-call-iptables = 1
net.bridge.bridge-nf-call-ip6tables = 1
LAB
        mkdir -p {root}/etc/systemd/system/sysinit.target.wants
        ln -sf ../lab-machine.service {root}/etc/systemd/system/sysinit.target.wants/
        echo h{host} >{root}/etc/hostname
        printf '127.0.0.1 localhost\n::1 localhost\n' >{root}/etc/hosts
        : >{root}/etc/resolv.conf"#
    )
}

/// Kernel parameters that kubelet sets, and their values then.
const PRETENDED: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
