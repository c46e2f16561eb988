//! Which plugins a machine has: Debian's Go ones, ours put over them, or a recorder before them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lab::rig::executables;

use crate::machine::{HOME, Machine, PLUGIN_FILES};

/// What our executable is installed as.
const OURS: [&str; 6] = [
    "flannel",
    "bridge",
    "host-local",
    "loopback",
    "portmap",
    "bandwidth",
];

/// Debian has no Go `flannel`: this does what it does to the state on disk and hands the same configuration to Go's bridge.
const GO_FLANNEL: &str = r#"#!/bin/sh
set -e
conf=$(cat)
file=/var/lib/cni/flannel/$CNI_CONTAINERID
case $CNI_COMMAND in
VERSION) exec /usr/lib/cni/bridge </dev/null ;;
ADD)
    . /run/flannel/subnet.env
    mkdir -p /var/lib/cni/flannel
    s4=$(echo $FLANNEL_SUBNET | sed 's|[.]1/|.0/|') s6=$(echo $FLANNEL_IPV6_SUBNET | sed 's|::1/|::/|')
    printf %s "$conf" | jq -cS --arg n4 "$FLANNEL_NETWORK" --arg s4 "$s4" --arg n6 "$FLANNEL_IPV6_NETWORK" \
        --arg s6 "$s6" --argjson mtu "$FLANNEL_MTU" '{cniVersion, name} + .delegate + {type: "bridge",
        mtu: $mtu, ipMasq: false, isGateway: true, ipam: {type: "host-local", ranges: [[{subnet: $s4}], [{subnet: $s6}]],
        routes: [{dst: $n4}, {dst: $n6}]}}' >$file
    exec /usr/lib/cni/bridge <$file ;;
DEL)
    [ -e $file ] || exit 0
    /usr/lib/cni/bridge <$file
    rm $file ;;
esac
"#;

impl Machine {
    /// Puts a file over what is there, whole: a runtime may be starting it.
    fn put(&self, name: &str, content: &[u8]) {
        let place = self.node.path(&format!("{PLUGIN_FILES}/{name}"));
        let new = place.with_file_name(format!(".{name}.new"));
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &place).unwrap();
    }

    /// Debian's plugins, and the stand-in for Go's flannel.
    pub fn install_go(&self) {
        for entry in fs::read_dir("/usr/lib/cni").unwrap() {
            let entry = entry.unwrap();
            self.put(
                &entry.file_name().to_string_lossy(),
                &fs::read(entry.path()).unwrap(),
            );
        }
        self.put("flannel", GO_FLANNEL.as_bytes());
    }

    /// Ours over them, by every name it knows or, as is the default, by that of `flannel` alone.
    pub fn install_ours(&self, all: bool) {
        let mut words = vec!["flannelctl", "cni", "install", "--dir", "/usr/lib/cni"];
        words.extend(if all { &["--all", "--replace"][..] } else { &[] });
        self.run(&words).unwrap();
        assert!(self.is_ours("flannel"));
        assert_eq!(self.is_ours("bridge"), all);
    }

    /// Debian's back.
    pub fn uninstall_ours(&self) {
        self.run(&["flannelctl", "cni", "uninstall", "--dir", "/usr/lib/cni"])
            .unwrap();
        assert!(OURS.iter().all(|name| !self.is_ours(name)));
    }

    fn is_ours(&self, name: &str) -> bool {
        let size = |path: &std::path::Path| fs::metadata(path).unwrap().len();
        let executable = executables().unwrap().join("flannel-cni");
        size(&self.node.path(&format!("{PLUGIN_FILES}/{name}"))) == size(&executable)
    }

    /// A recorder before every plugin of ours, which writes down verb, name and interface.
    pub fn install_recorder(&self) {
        let folder = self.node.path(PLUGIN_FILES);
        fs::create_dir(folder.join("real")).unwrap();
        for name in OURS {
            fs::rename(folder.join(name), folder.join("real").join(name)).unwrap();
            let script = format!(
                "#!/bin/sh\necho \"$CNI_COMMAND {name} $CNI_IFNAME\" >>{HOME}/calls\nexec {PLUGIN_FILES}/real/{name}\n"
            );
            self.put(name, script.as_bytes());
        }
    }

    /// What the recorders have written, in order.
    pub fn calls(&self) -> Vec<String> {
        let text = self.node.read(&format!("{HOME}/calls")).unwrap_or_default();
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    }
}
