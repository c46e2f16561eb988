//! containerd as kubelet drives it: pods without containers, through CRI v1 (k8s.io/cri-api, runtime.v1), spoken by `curl`.

use std::net::IpAddr;

use lab::command::{LabError, run_with_input};

use crate::containerd::{Containerd, place_of};
use crate::machine::{HOME, Machine, ROOTFS};
use crate::place::Place;

const IMAGE: &str = "localhost/pod:1";

/// Without control groups' controllers, see [`crate::machine`]. A pod's own process is a web server that serves its host name.
const CONF: &str = r#"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pod:1"
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
"#;

/// Makes an OCI image of one layer from a folder (image-spec 1.0, image layout).
const IMAGE_SCRIPT: &str = r#"
mkdir -p $1/blobs/sha256; cd $1
put() { s=$(sha256sum $1); s=${s%% *}; printf '"digest":"sha256:%s","size":%s' $s $(stat -c %s $1); mv $1 blobs/sha256/$s; }
kind=application/vnd.oci.image
tar -C $2 -cf layer .
sum=$(sha256sum layer); layer=$(put layer)
cat >config
sed -i "s/SUM/${sum%% *}/" config
config=$(put config)
printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json",%s},"layers":[{"mediaType":"%s.layer.v1.tar",%s}]}' \
    $kind $kind "$config" $kind "$layer" >manifest
manifest=$(put manifest)
printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.manifest.v1+json",%s,"annotations":{"io.containerd.image.name":"%s"}}]}' \
    $kind "$manifest" $3 >index.json
printf '{"imageLayoutVersion":"1.0.0"}' >oci-layout
tar -cf ../pod.tar .
ctr -n k8s.io image import --snapshotter native ../pod.tar
"#;

const IMAGE_CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/bin/busybox","sh","-c",
"mkdir /dev/srv; cd /dev/srv; printf %s $(hostname) >name; ln -s /srv/large .; exec httpd -f -p 80"]},
"rootfs":{"type":"layers","diff_ids":["sha256:SUM"]}}"#;

/// A port of a pod: protocol (0 is TCP, 1 is UDP), of the container, of the host.
pub type Port = (u64, u64, u64);

/// containerd with CRI.
pub struct Kubernetes<'a>(&'a Machine);

/// A pod.
pub struct Pod {
    /// As containerd calls it.
    pub id: String,
    /// Its network.
    pub place: Place,
}

impl<'a> Kubernetes<'a> {
    /// Starts containerd and gives it the pods' image.
    pub fn start(machine: &'a Machine) -> Kubernetes<'a> {
        Containerd::start_with(machine, CONF);
        let image = format!("{HOME}/image");
        if !machine.node.has(&image) {
            let mut command = machine.command(&["sh", "-ec", IMAGE_SCRIPT, "sh", &image, ROOTFS, IMAGE]);
            run_with_input(&mut command, IMAGE_CONFIG).unwrap();
        }
        Kubernetes(machine)
    }

    /// One call; gives the bytes of the answer.
    fn call(&self, method: &str, body: &[u8], label: &str) -> Result<Vec<u8>, String> {
        let file = format!("{HOME}/{method}-{label}");
        // gRPC: not compressed, length, message.
        let mut request = vec![0];
        request.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        request.extend(body);
        std::fs::write(self.0.node.path(&file), request).unwrap();
        let data = format!("@{file}");
        let (answer, url) = (
            format!("{file}.answer"),
            format!("http://cri/runtime.v1.RuntimeService/{method}"),
        );
        let socket = format!("{HOME}/containerd/socket");
        let mut words = vec!["curl", "-sS", "--http2-prior-knowledge", "--unix-socket", &socket];
        words.extend(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        words.extend(["--data-binary", &data, "-o", &answer, "-D", "-", &url]);
        let head = self.0.run(&words).map_err(|e: LabError| e.to_string())?;
        if !head.lines().any(|l| l.trim() == "grpc-status: 0") {
            return Err(head);
        }
        let bytes = std::fs::read(self.0.node.path(&answer)).unwrap_or_default();
        Ok(bytes.get(5..).unwrap_or_default().to_vec())
    }

    /// Whether containerd sees a network it can use.
    pub fn has_network(&self) -> bool {
        // StatusResponse.status.conditions: RuntimeReady and NetworkReady, each with `status` only when true.
        let answer = self.call("Status", &[], "").unwrap();
        let condition = [&field(1, b"NetworkReady")[..], &number(2, 1)[..]].concat();
        answer.windows(condition.len()).any(|w| w == condition)
    }

    /// RunPodSandbox.
    pub fn start_pod(
        &self,
        name: &str,
        ports: &[Port],
        annotations: &[(&str, &str)],
    ) -> Result<String, String> {
        let metadata = [
            field(1, name.as_bytes()),
            field(2, name.as_bytes()),
            field(3, b"default"),
        ]
        .concat();
        let mut config = [field(1, &metadata), field(2, name.as_bytes())].concat();
        for (protocol, inner, outer) in ports {
            config.extend(field(
                5,
                &[number(1, *protocol), number(2, *inner), number(3, *outer)].concat(),
            ));
        }
        for (key, value) in annotations {
            config.extend(field(
                7,
                &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat(),
            ));
        }
        config.extend(field(8, &field(1, b"/pods")));
        let answer = self.call("RunPodSandbox", &field(1, &config), name)?;
        Ok(String::from_utf8_lossy(answer.get(2..).unwrap_or_default()).into_owned())
    }

    /// As [`Kubernetes::start_pod`]; waits for its web server.
    pub fn run_pod(&self, name: &str, ports: &[Port], annotations: &[(&str, &str)]) -> Pod {
        let id = self.start_pod(name, ports, annotations).unwrap();
        self.pod(name, id)
    }

    /// A pod that was started.
    pub fn pod(&self, name: &str, id: String) -> Pod {
        let place = place_of(self.0, "k8s.io", &id, name);
        self.0.wait_for_server(&place);
        Pod { id, place }
    }

    /// Whether PodSandboxStatus names these addresses.
    pub fn knows_addresses(&self, pod: &Pod, addresses: &[IpAddr]) -> bool {
        let answer = self
            .call("PodSandboxStatus", &field(1, pod.id.as_bytes()), &pod.place.name)
            .unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        addresses
            .iter()
            .all(|address| text.contains(&address.to_string()))
    }

    /// StopPodSandbox, twice as kubelet does, then RemovePodSandbox.
    pub fn end_pod(&self, id: &str) {
        for method in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox"] {
            self.call(method, &field(1, id.as_bytes()), id).unwrap();
        }
    }
}

/// A number as protobuf writes it.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field with a message or a text.
fn field(number: u64, content: &[u8]) -> Vec<u8> {
    [
        varint(number << 3 | 2),
        varint(content.len() as u64),
        content.to_vec(),
    ]
    .concat()
}

/// A field with a number.
fn number(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}
