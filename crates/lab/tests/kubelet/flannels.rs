//! The objects that flannel v0.28 runs as, by what its users know of them: names, labels, commands, mounts, rights.

use serde_json::{Value, json};

const NAME: &str = "flannel";
const NAMESPACE: &str = "kube-flannel";
const RBAC: &str = "rbac.authorization.k8s.io";
const CONFIG_MAP: &str = "kube-flannel-cfg";
const CONFIGURATION: (&str, &str) = ("flannel-cfg", "/etc/kube-flannel/");

/// Folders of the host, and a file: volume, path, type.
const OF_THE_HOST: &[(&str, &str, &str)] = &[
    ("run", "/run/flannel", ""),
    ("cni-plugin", "/opt/cni/bin", ""),
    ("cni", "/etc/cni/net.d", ""),
    ("xtables-lock", "/run/xtables.lock", "FileOrCreate"),
];

/// All of them, with `image` in place of flannel's two.
pub fn objects(image: &str) -> Value {
    let of_flannel = json!({ "k8s-app": NAME });
    let of_nodes = json!({ "k8s-app": NAME, "app": NAME, "tier": "node" });
    let rule = |resource: &str, verbs: &[&str]| json!({ "apiGroups": [""], "resources": [resource], "verbs": verbs });
    let rbac = format!("{RBAC}/v1");
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE, "labels": {
            "k8s-app": NAME, "pod-security.kubernetes.io/enforce": "privileged",
        } } },
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
            "name": NAME, "namespace": NAMESPACE, "labels": of_flannel,
        } },
        { "apiVersion": rbac, "kind": "ClusterRole", "metadata": { "name": NAME, "labels": of_flannel }, "rules": [
            rule("pods", &["get"]), rule("nodes", &["get", "list", "watch"]), rule("nodes/status", &["patch"]),
        ] },
        { "apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": { "name": NAME, "labels": of_flannel },
          "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": NAME },
          "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE }] },
        { "apiVersion": "v1", "kind": "ConfigMap",
          "metadata": { "name": CONFIG_MAP, "namespace": NAMESPACE, "labels": of_nodes },
          "data": { "cni-conf.json": cni_conf().to_string(), "net-conf.json": net_conf().to_string() } },
        { "apiVersion": "apps/v1", "kind": "DaemonSet",
          "metadata": { "name": "kube-flannel-ds", "namespace": NAMESPACE, "labels": of_nodes },
          "spec": {
              "selector": { "matchLabels": { "app": NAME } },
              "template": { "metadata": { "labels": { "app": NAME, "tier": "node" } }, "spec": pod(image) },
          } },
    ] })
}

fn cni_conf() -> Value {
    json!({ "name": "cbr0", "cniVersion": "0.3.1", "plugins": [
        { "type": NAME, "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ] })
}

fn net_conf() -> Value {
    json!({ "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" } })
}

fn pod(image: &str) -> Value {
    let mut volumes: Vec<Value> = OF_THE_HOST
        .iter()
        .map(|(name, path, kind)| json!({ "name": name, "hostPath": { "path": path, "type": kind } }))
        .collect();
    volumes.push(json!({ "name": CONFIGURATION.0, "configMap": { "name": CONFIG_MAP } }));
    let of_linux = json!({ "key": "kubernetes.io/os", "operator": "In", "values": ["linux"] });
    json!({
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [of_linux] }],
        } } },
        "hostNetwork": true,
        "priorityClassName": "system-node-critical",
        "tolerations": [{ "operator": "Exists", "effect": "NoSchedule" }],
        "serviceAccountName": NAME,
        "initContainers": [
            container(image, "install-cni-plugin", &["cp", "-f", "/flannel", "/opt/cni/bin/flannel"], &["cni-plugin"]),
            container(
                image,
                "install-cni",
                &["/opt/bin/install-conf", "/etc/kube-flannel/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"],
                &["cni", CONFIGURATION.0],
            ),
        ],
        "containers": [daemon(image)],
        "volumes": volumes,
    })
}

fn daemon(image: &str) -> Value {
    let words = [
        "/opt/bin/flanneld",
        "--ip-masq",
        "--kube-subnet-mgr",
        "--healthz-port=8081",
    ];
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut daemon = container(
        image,
        "kube-flannel",
        &words,
        &["run", CONFIGURATION.0, "xtables-lock"],
    );
    daemon["ports"] = json!([{ "name": "healthz", "containerPort": 8081, "protocol": "TCP" }]);
    daemon["livenessProbe"] = json!({ "httpGet": { "path": "/healthz", "port": "healthz" } });
    daemon["resources"] = json!({ "requests": { "cpu": "100m", "memory": "50Mi" } });
    daemon["securityContext"] =
        json!({ "privileged": false, "capabilities": { "add": ["NET_ADMIN", "NET_RAW"] } });
    daemon["env"] = json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        { "name": "EVENT_QUEUE_DEPTH", "value": "5000" },
        { "name": "CONT_WHEN_CACHE_NOT_READY", "value": "false" },
    ]);
    daemon
}

fn container(image: &str, name: &str, words: &[&str], volumes: &[&str]) -> Value {
    let path_of = |volume: &str| {
        let of_the_host = OF_THE_HOST.iter().find(|(name, ..)| *name == volume);
        of_the_host.map_or(CONFIGURATION.1, |(_, path, _)| path)
    };
    let mounts: Vec<Value> = volumes
        .iter()
        .map(|volume| json!({ "name": volume, "mountPath": path_of(volume) }))
        .collect();
    json!({ "name": name, "image": image, "command": words[..1], "args": words[1..], "volumeMounts": mounts })
}
