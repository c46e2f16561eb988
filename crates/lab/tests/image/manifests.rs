//! What pods run, by the manifests that people have applied: commands, mounts and rights.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::container::{Container, DEFAULT};
use crate::objects::{MANIFEST, at, inner, named, objects, texts};
use crate::rootfs::{Image, run};

/// A manifest's pod.
pub struct Manifest {
    /// Whose.
    pub name: &'static str,
    /// Its init containers in order, and then flanneld.
    pub containers: Vec<Container>,
    /// Of its ConfigMap.
    pub cni_conf: String,
}

/// A container of flannel's own manifests: name, words, mounts (path on the host, in the container), capabilities added.
type Line = (
    &'static str,
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

const CFG: (&str, &str) = ("cfg", "/etc/kube-flannel/");
const NET_D: (&str, &str) = ("/etc/cni/net.d", "/etc/cni/net.d");
const BIN: (&str, &str) = ("/opt/cni/bin", "/opt/cni/bin");
const RUN: (&str, &str) = ("/run/flannel", "/run/flannel");
const LOCK: (&str, &str) = ("xtables.lock", "/run/xtables.lock");

const COPY_CONF: &[&str] = &[
    "cp",
    "-f",
    "/etc/kube-flannel/cni-conf.json",
    "/etc/cni/net.d/10-flannel.conflist",
];
const COPY_PLUGIN: &[&str] = &["cp", "-f", "/flannel", "/opt/cni/bin/flannel"];

const FLANNELS: &[(&str, &[Line])] = &[
    (
        "v0.11",
        &[
            ("install-cni", COPY_CONF, &[NET_D, CFG], &[]),
            (
                "kube-flannel",
                &["/opt/bin/flanneld", "--ip-masq", "--kube-subnet-mgr"],
                &[RUN, CFG],
                &["NET_ADMIN"],
            ),
        ],
    ),
    (
        "v0.20",
        &[
            ("install-cni-plugin", COPY_PLUGIN, &[BIN], &[]),
            ("install-cni", COPY_CONF, &[NET_D, CFG], &[]),
            (
                "kube-flannel",
                &["/opt/bin/flanneld", "--ip-masq", "--kube-subnet-mgr"],
                &[RUN, CFG, LOCK],
                &["NET_ADMIN", "NET_RAW"],
            ),
        ],
    ),
    (
        "v0.28",
        &[
            ("install-cni-plugin", COPY_PLUGIN, &[BIN], &[]),
            (
                "install-cni",
                &[
                    "/opt/bin/install-conf",
                    "/etc/kube-flannel/cni-conf.json",
                    "/etc/cni/net.d/10-flannel.conflist",
                ],
                &[NET_D, CFG],
                &[],
            ),
            (
                "kube-flannel",
                &[
                    "/opt/bin/flanneld",
                    "--ip-masq",
                    "--kube-subnet-mgr",
                    "--healthz-port=8081",
                ],
                &[RUN, CFG, LOCK],
                &["NET_ADMIN", "NET_RAW"],
            ),
        ],
    ),
];

/// flannel's ConfigMap holds no `cniVersions`.
const CNI_CONF: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#;

/// Flannel's manifests of three ages, with the image alone changed.
pub fn flannels(image: &Image) -> Vec<Manifest> {
    let of = |(name, lines): &(&'static str, &[Line])| Manifest {
        name,
        containers: lines.iter().map(|line| flannels_container(image, line)).collect(),
        cni_conf: CNI_CONF.to_owned(),
    };
    FLANNELS.iter().map(of).collect()
}

fn flannels_container(image: &Image, (name, words, mounts, added): &Line) -> Container {
    Container {
        name: (*name).to_owned(),
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        env: variables(),
        mounts: mounts
            .iter()
            .map(|(host, to)| (on_host(image, host), (*to).to_owned()))
            .collect(),
        capabilities: DEFAULT
            .iter()
            .chain(*added)
            .map(|name| (*name).to_owned())
            .collect(),
        read_only: false,
        no_new_privileges: false,
    }
}

/// Ours, as it stands in `deploy/`.
pub fn ours(image: &Image) -> Manifest {
    let objects = objects(MANIFEST);
    let config = &objects["ConfigMap kube-flannel-cfg"];
    let pod = at(&objects["DaemonSet kube-flannel-ds"], "/spec/template/spec");
    let volumes = named(pod, "/volumes");
    let container = |value: &Value| {
        let context = at(value, "/securityContext");
        // All the default ones are dropped.
        assert_eq!(texts(context.pointer("/capabilities/drop")), ["ALL"]);
        let words = [texts(value.get("command")), texts(value.get("args"))].concat();
        let mount = |mount: &Value| {
            let volume = volumes[at(mount, "/name").as_str().unwrap()];
            let path = match volume.pointer("/hostPath/path") {
                Some(path) if volume["hostPath"]["type"] == "FileOrCreate" => {
                    assert_eq!(path, "/run/xtables.lock");
                    "xtables.lock"
                }
                Some(path) => path.as_str().unwrap(),
                None => CFG.0,
            };
            (
                on_host(image, path),
                at(mount, "/mountPath").as_str().unwrap().to_owned(),
            )
        };
        Container {
            name: at(value, "/name").as_str().unwrap().to_owned(),
            words: words.into_iter().map(str::to_owned).collect(),
            env: variables(),
            mounts: at(value, "/volumeMounts")
                .as_array()
                .unwrap()
                .iter()
                .map(mount)
                .collect(),
            capabilities: texts(context.pointer("/capabilities/add"))
                .into_iter()
                .map(str::to_owned)
                .collect(),
            read_only: context["readOnlyRootFilesystem"] == true,
            no_new_privileges: context["allowPrivilegeEscalation"] == false,
        }
    };
    let containers = ["/initContainers", "/containers"].map(|list| at(pod, list).as_array().unwrap().clone());
    Manifest {
        name: "ours",
        containers: containers.iter().flatten().map(container).collect(),
        cni_conf: inner(config, "cni-conf.json").to_string(),
    }
}

/// As kubelet sets them; nobody answers there.
fn variables() -> Vec<(String, String)> {
    [
        ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
        ("KUBERNETES_SERVICE_PORT", "9"),
        ("NODE_NAME", "n1"),
        ("POD_NAME", "kube-flannel-ds-x"),
        ("POD_NAMESPACE", "kube-flannel"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// A path of the node's; the lock is a file.
fn on_host(image: &Image, path: &str) -> PathBuf {
    if path != LOCK.0 {
        return image.host(path);
    }
    let file = image.host("run").join(path);
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .unwrap();
    file
}

impl Manifest {
    /// Puts the ConfigMap and the service account where they are mounted from, the one as kubelet does: by links.
    pub fn configure(&self, image: &Image) {
        let account = image.host("account");
        std::fs::write(account.join("token"), "a token").unwrap();
        if !account.join("ca.crt").exists() {
            let mut openssl = Command::new("openssl");
            openssl.args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ]);
            openssl
                .args(["-subj", "/CN=cluster", "-days", "1", "-keyout"])
                .arg(account.join("ca.key"));
            run(openssl.arg("-out").arg(account.join("ca.crt")));
        }
        let folder = image.host(CFG.0);
        let data = folder.join("..data");
        std::fs::create_dir_all(&data).unwrap();
        let network =
            r#"{ "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" } }"#;
        for (name, text) in [
            ("cni-conf.json", self.cni_conf.as_str()),
            ("net-conf.json", network),
        ] {
            std::fs::write(data.join(name), text).unwrap();
            let link = folder.join(name);
            if link.symlink_metadata().is_err() {
                std::os::unix::fs::symlink(format!("..data/{name}"), link).unwrap();
            }
        }
    }

    pub fn inits(&self) -> &[Container] {
        &self.containers[..self.containers.len() - 1]
    }

    /// With what kubelet mounts into every pod.
    pub fn flanneld(&self, image: &Image) -> Container {
        let mut container = self.containers.last().unwrap().clone();
        let account = "/var/run/secrets/kubernetes.io/serviceaccount";
        container.mounts.push((image.host("account"), account.to_owned()));
        container
    }
}
