//! Nodes that are machines: containerd, kubelet and kube-proxy under systemd, and images without a registry.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::{assets, program};
use crate::command::{LabError, file, line, run, words};
use crate::flannel::NETWORK;
use crate::layout::Families;
use crate::topology::Lab;

/// The image of pods of a lab: a static busybox under all its names, which does nothing by itself.
pub const IMAGE: &str = "localhost/lab:1";

impl Lab {
    /// Makes a Node of every machine: its own kubelet registers it. It is not ready before it has a network.
    pub(super) fn join_machines(&self) -> Result<(), LabError> {
        if self.spec.families != Families::V4 {
            return Err(LabError::Invalid(
                "family: expected 4 where hosts run kubelets".to_owned(),
            ));
        }
        for name in ["kubelet", "kube-proxy"] {
            program(name)?;
        }
        let image = self.make_image()?;
        self.on_all_hosts(|host| {
            self.write_node(host)?;
            self.host(host)
                .shell("systemctl daemon-reload; systemctl enable --now --quiet containerd")?;
            self.import_on(host, &image)?;
            self.host(host)
                .run(&["systemctl", "enable", "--now", "--quiet", "kubelet", "kube-proxy"])?;
            Ok(())
        })?;
        for host in 1..=self.spec.hosts {
            self.cluster().wait_for_cidrs(&format!("h{host}"))?;
        }
        Ok(())
    }

    /// The same with every host, side by side; the first error.
    fn on_all_hosts(&self, work: impl Fn(usize) -> Result<(), LabError> + Sync) -> Result<(), LabError> {
        let results: Vec<Result<(), LabError>> = std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (1..=self.spec.hosts)
                .map(|host| scope.spawn(move || work(host)))
                .collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect()
        });
        results.into_iter().collect()
    }

    /// Imports an archive of images, as `docker save` and `cargo xtask dist --image` write it, on every machine.
    pub fn import_image(&self, archive: &Path) -> Result<(), LabError> {
        self.on_all_hosts(|host| self.import_on(host, archive))
    }

    fn import_on(&self, host: usize, archive: &Path) -> Result<(), LabError> {
        let archive_file = file(archive, File::open(archive))?;
        let mut command = self
            .host(host)
            .command(&["ctr", "-n", "k8s.io", "images", "import", "-"]);
        let output = command.stdin(Stdio::from(archive_file)).output();
        let output = output.map_err(|source| LabError::Start {
            command: line(&command),
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        Err(LabError::Command {
            command: format!("{} <{}", line(&command), archive.display()),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// The archive of [`IMAGE`].
    fn make_image(&self) -> Result<std::path::PathBuf, LabError> {
        let folder = self.spec.directory().join("image");
        file(&folder, fs::create_dir_all(&folder))?;
        let script = format!(
            r#"cd {folder}
            mkdir -p root/bin root/etc root/proc root/sys root/dev root/run root/var root/tmp root/srv
            cp /bin/busybox root/bin/
            for name in $(root/bin/busybox --list); do [ $name = busybox ] || ln -s busybox root/bin/$name; done
            tar -C root -cf layer.tar .
            digest=$(sha256sum layer.tar)
            cat >config.json <<JSON
{{"architecture": "{architecture}", "os": "linux", "config": {{"Cmd": ["tail", "-f", "/dev/null"], "Env": ["PATH=/bin"]}},
 "rootfs": {{"type": "layers", "diff_ids": ["sha256:${{digest%% *}}"]}}, "history": [{{}}]}}
JSON
            echo '[{{"Config": "config.json", "RepoTags": ["{IMAGE}"], "Layers": ["layer.tar"]}}]' >manifest.json
            tar -cf lab.tar manifest.json config.json layer.tar
            rm -r root layer.tar"#,
            folder = folder.display(),
            architecture = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        );
        run(&mut words(&["sh", "-ec", &script]))?;
        Ok(folder.join("lab.tar"))
    }

    /// The files of a node, before its programs are started.
    fn write_node(&self, host: usize) -> Result<(), LabError> {
        let node = self.host(host);
        let folder = self.kube_folder();
        node.shell("mkdir -p /etc/kubernetes/manifests /etc/containerd /etc/cni/net.d /opt/cni/bin")?;
        for (from, to) in [
            (format!("h{host}.conf"), "/etc/kubernetes/kubelet.conf"),
            ("proxy.conf".to_owned(), "/etc/kubernetes/proxy.conf"),
            ("ca.crt".to_owned(), "/etc/kubernetes/ca.crt"),
        ] {
            let path = folder.join(from);
            node.write(to, &file(&path, fs::read_to_string(&path))?)?;
        }
        node.write("/etc/containerd/config.toml", &containerd())?;
        node.write("/etc/kubernetes/kubelet.yaml", KUBELET)?;
        let assets = assets();
        let assets = assets.display();
        let address = self.spec.host4(host);
        node.write(
            "/etc/systemd/system/kubelet.service",
            &format!(
                "[Unit]\nAfter=containerd.service\n[Service]\nExecStart={assets}/kubelet --config=/etc/kubernetes/kubelet.yaml \
                 --kubeconfig=/etc/kubernetes/kubelet.conf --container-runtime=remote \
                 --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
                 --hostname-override=h{host} --node-ip={address}\n{SERVICE}"
            ),
        )?;
        // What is left of connection tracking's limits is the computer's.
        node.write(
            "/etc/systemd/system/kube-proxy.service",
            &format!(
                "[Service]\nExecStart={assets}/kube-proxy --kubeconfig=/etc/kubernetes/proxy.conf --hostname-override=h{host} \
                 --cluster-cidr={NETWORK} --proxy-mode=iptables --conntrack-max-per-core=0 \
                 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0\n{SERVICE}"
            ),
        )
    }

    /// Waits until every Node is ready, by its own kubelet's word.
    pub fn wait_for_nodes(&self, limit: Duration) -> Result<Duration, LabError> {
        self.wait("ready Nodes", limit, || {
            for host in 1..=self.spec.hosts {
                let name = format!("h{host}");
                let node = self.cluster().node(&name)?.unwrap_or_default();
                let all = node["status"]["conditions"].as_array().into_iter().flatten();
                let ready = all.clone().find(|condition| condition["type"] == "Ready");
                if ready.is_none_or(|condition| condition["status"] != "True") {
                    return Ok(Some(format!("{name}: {:?}", ready.map(|c| c["message"].clone()))));
                }
            }
            Ok(None)
        })
    }
}

const SERVICE: &str = "Restart=always\nRestartSec=1\n[Install]\nWantedBy=multi-user.target\n";

fn containerd() -> String {
    // A process of a machine may not be given less of a chance against the computer's memory than the machine itself has.
    format!(
        "version = 2\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{IMAGE}\"\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"/opt/cni/bin\"\n\
         conf_dir = \"/etc/cni/net.d\"\n"
    )
}

/// No name server is there, and the computer's disk is nobody's business.
const KUBELET: &str = r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failSwapOn: false
staticPodPath: /etc/kubernetes/manifests
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/ca.crt}}
authorization: {mode: Webhook}
evictionHard: {nodefs.available: "0%", imagefs.available: "0%", memory.available: "10Mi"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 2s
"#;
