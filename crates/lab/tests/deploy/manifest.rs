//! The manifest beside flannel's own, and beside what our programs know.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::objects::{
    MANIFEST, at, executable, flags, inner, named, objects, output, read, rights, root, texts,
};

const DAEMON_SET: &str = "DaemonSet kube-flannel-ds";
const POD: &str = "/spec/template/spec";

fn daemon_set() -> Value {
    objects(MANIFEST)[DAEMON_SET].clone()
}

/// What `kubectl apply` over flannel v0.28 goes by: an object of another name would be a second one beside the old.
#[test]
fn objects_when_compared_with_flannels_own_have_its_names_labels_and_selector() {
    let objects = objects(MANIFEST);
    let app = json!({ "k8s-app": "flannel" });
    let all = json!({ "tier": "node", "app": "flannel", "k8s-app": "flannel" });
    let privileged = json!({ "k8s-app": "flannel", "pod-security.kubernetes.io/enforce": "privileged" });
    let rbac = "rbac.authorization.k8s.io/v1";
    let expected = [
        ("Namespace kube-flannel", "v1", None, &privileged),
        ("ClusterRole flannel", rbac, None, &app),
        ("ClusterRoleBinding flannel", rbac, None, &app),
        ("ServiceAccount flannel", "v1", Some("kube-flannel"), &app),
        ("ConfigMap kube-flannel-cfg", "v1", Some("kube-flannel"), &all),
        (DAEMON_SET, "apps/v1", Some("kube-flannel"), &all),
    ];
    assert_eq!(objects.len(), expected.len());
    for (name, version, namespace, labels) in expected {
        let object = &objects[name];
        assert_eq!(object["apiVersion"], version, "{name}");
        assert_eq!(at(object, "/metadata/labels"), labels, "{name}");
        let found = object.pointer("/metadata/namespace").and_then(Value::as_str);
        assert_eq!(found, namespace, "{name}");
    }
    let binding = &objects["ClusterRoleBinding flannel"];
    assert_eq!(
        at(binding, "/roleRef"),
        &json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel" })
    );
    assert_eq!(
        at(binding, "/subjects"),
        &json!([{ "kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel" }])
    );
    let set = &objects[DAEMON_SET];
    // The selector of a DaemonSet cannot be changed.
    assert_eq!(
        at(set, "/spec/selector"),
        &json!({ "matchLabels": { "app": "flannel" } })
    );
    assert_eq!(
        at(set, "/spec/template/metadata/labels"),
        &json!({ "tier": "node", "app": "flannel" })
    );
}

#[test]
fn pod_when_compared_with_flannels_own_has_its_containers_paths_and_place() {
    let set = daemon_set();
    let pod = at(&set, POD);
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["serviceAccountName"], "flannel");
    assert_eq!(
        pod["tolerations"],
        json!([{ "operator": "Exists", "effect": "NoSchedule" }])
    );
    let terms = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    assert_eq!(
        at(pod, terms),
        &json!([{ "matchExpressions": [{ "key": "kubernetes.io/os", "operator": "In", "values": ["linux"] }] }])
    );
    let mut expected = vec![
        // Name, path on the host, and its type; what is beyond flannel's own stands in the end.
        ("run", "/run/flannel", Value::Null),
        ("cni-plugin", "/opt/cni/bin", Value::Null),
        ("cni", "/etc/cni/net.d", Value::Null),
        ("xtables-lock", "/run/xtables.lock", json!("FileOrCreate")),
        ("state", "/var/lib/flannel", json!("DirectoryOrCreate")),
    ];
    let volumes = named(pod, "/volumes");
    for (name, path, kind) in expected.drain(..) {
        let volume = &volumes[name]["hostPath"];
        assert_eq!(
            (&volume["path"], &volume["type"]),
            (&json!(path), &kind),
            "{name}"
        );
    }
    assert_eq!(
        volumes["flannel-cfg"]["configMap"],
        json!({ "name": "kube-flannel-cfg" })
    );
    assert_eq!(volumes.len(), 6);

    let mounts = |container: &Value| -> Vec<String> {
        let mounts = at(container, "/volumeMounts").as_array().unwrap().iter();
        mounts
            .map(|m| {
                format!(
                    "{} {}",
                    m["name"].as_str().unwrap(),
                    m["mountPath"].as_str().unwrap()
                )
            })
            .collect()
    };
    let inits = named(pod, "/initContainers");
    assert_eq!(
        inits.keys().copied().collect::<Vec<_>>(),
        ["install-cni", "install-cni-plugin"]
    );
    assert_eq!(mounts(inits["install-cni-plugin"]), ["cni-plugin /opt/cni/bin"]);
    assert_eq!(
        mounts(inits["install-cni"]),
        ["cni /etc/cni/net.d", "flannel-cfg /etc/kube-flannel/"]
    );
    let containers = named(pod, "/containers");
    assert_eq!(containers.keys().copied().collect::<Vec<_>>(), ["kube-flannel"]);
    let flanneld = containers["kube-flannel"];
    assert_eq!(
        mounts(flanneld),
        [
            "run /run/flannel",
            "state /var/lib/flannel",
            "flannel-cfg /etc/kube-flannel/",
            "xtables-lock /run/xtables.lock",
        ]
    );
    let fields: Vec<(&str, &Value)> = named(flanneld, "/env")
        .into_iter()
        .map(|(name, entry)| (name, at(entry, "/valueFrom/fieldRef/fieldPath")))
        .collect();
    assert_eq!(
        fields,
        [
            ("NODE_NAME", &json!("spec.nodeName")),
            ("POD_NAME", &json!("metadata.name")),
            ("POD_NAMESPACE", &json!("metadata.namespace")),
        ]
    );
}

#[test]
fn probes_ask_the_port_that_flanneld_is_told_to_serve() {
    let set = daemon_set();
    let container = at(&set, &format!("{POD}/containers/0"));
    let port = at(container, "/ports/0");
    assert_eq!(port["name"], "healthz");
    let number = port["containerPort"].as_u64().unwrap();
    let arguments = texts(container.get("args"));
    assert!(
        arguments.contains(&format!("--healthz-port={number}").as_str()),
        "{arguments:?}"
    );
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(
            at(container, &format!("/{probe}/httpGet")),
            &json!({ "path": path, "port": "healthz" })
        );
    }
}

/// What each container may do, which is what it does: anything else here is a hole that nobody asked for.
#[test]
fn pod_when_it_runs_has_the_capabilities_of_its_work_and_writes_to_mounts_alone() {
    let set = daemon_set();
    let pod = at(&set, POD);
    assert_eq!(
        at(pod, "/securityContext"),
        &json!({ "seccompProfile": { "type": "RuntimeDefault" } })
    );
    for absent in ["hostPID", "hostIPC", "shareProcessNamespace"] {
        assert_eq!(pod.get(absent), None, "{absent}");
    }
    let copies = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"], "add": ["DAC_OVERRIDE"] },
    });
    let mut works = copies.clone();
    works["privileged"] = json!(false);
    works["capabilities"]["add"] = json!(["NET_ADMIN", "NET_RAW"]);
    for container in named(pod, "/initContainers").values() {
        assert_eq!(container["securityContext"], copies);
    }
    assert_eq!(at(pod, "/containers/0/securityContext"), &works);
}

/// Every request of `crates/registry/src/kube*`, by what it needs.
const REQUESTS: &[(&str, &str)] = &[
    ("/pods get", "which Node a pod is on, where NODE_NAME is not set"),
    ("/nodes get", "the own Node"),
    ("/nodes list", "all leases, page by page"),
    ("/nodes watch", "their changes"),
    (
        "/nodes/status patch",
        "own annotations, the condition NetworkUnavailable",
    ),
    ("/events create", "what an admin has to see"),
];

#[test]
fn rights_are_those_that_requests_need_and_no_others() {
    let needed: BTreeSet<String> = REQUESTS.iter().map(|(right, _)| (*right).to_owned()).collect();
    assert_eq!(rights(&objects(MANIFEST)["ClusterRole flannel"]), needed);
}

#[test]
fn flags_in_manifest_chart_and_units_are_flanneld_s() {
    let known = flags(&output(&executable("flanneld"), &["--help"]));
    assert!(known.contains("kube-subnet-mgr") && known.len() > 30, "{known:?}");
    let mut used: Vec<(&str, String)> = Vec::new();
    let set = daemon_set();
    for argument in texts(set.pointer(&format!("{POD}/containers/0/args"))) {
        used.push((MANIFEST, argument.to_owned()));
    }
    let values = "deploy/chart/flannel/values.yaml";
    let chart = &crate::objects::documents(values)[0];
    for argument in texts(chart.pointer("/flannel/args")) {
        used.push((values, argument.to_owned()));
    }
    let template = "deploy/chart/flannel/templates/daemonset.yaml";
    let text = read(template);
    for word in text.split('"').filter(|word| word.starts_with("--")) {
        used.push((template, word.to_owned()));
    }
    let unit = "packaging/systemd/flanneld.service";
    let text = read(unit);
    let starts = text.lines().filter(|line| line.starts_with("ExecStart="));
    for word in starts
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with('-'))
    {
        used.push((unit, word.to_owned()));
    }
    let variables = "packaging/systemd/flanneld.env";
    let text = read(variables);
    for line in text.lines().map(|line| line.trim_start_matches('#')) {
        if let Some(name) = line.strip_prefix("FLANNELD_").and_then(|l| l.split('=').next()) {
            used.push((variables, format!("--{}", name.to_lowercase().replace('_', "-"))));
        }
        if let Some(options) = line.strip_prefix("FLANNEL_OPTIONS=") {
            used.extend(options.split(' ').map(|word| (variables, word.to_owned())));
        }
    }
    assert!(used.len() > 15, "{used:?}");
    for (file, word) in used {
        let name = word.trim_start_matches('-').split('=').next().unwrap();
        assert!(word.starts_with("--") && known.contains(name), "{file}: {word}");
    }
}

#[test]
fn configuration_for_runtimes_is_the_one_that_flannelctl_writes() {
    let config = &objects(MANIFEST)["ConfigMap kube-flannel-cfg"];
    let folder = std::env::temp_dir().join(lab::rig::unique_name());
    // Without plugins there, what it says depends on nothing of this machine.
    let text = output(
        &executable("flannelctl"),
        &["cni", "conf", "--dir", folder.to_str().unwrap()],
    );
    // Behind the list stand notes that there are none.
    let mut reader = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    assert_eq!(inner(config, "cni-conf.json"), reader.next().unwrap().unwrap());
    assert_eq!(
        inner(config, "net-conf.json"),
        json!({ "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" } })
    );
    assert_eq!(at(config, "/data").as_object().unwrap().len(), 2);
}

#[test]
fn image_is_the_one_of_this_version_everywhere() {
    let image = format!("localhost/flannel:{}", env!("CARGO_PKG_VERSION"));
    let set = daemon_set();
    let pod = at(&set, POD);
    let containers = named(pod, "/containers");
    for (name, container) in named(pod, "/initContainers").into_iter().chain(containers) {
        assert_eq!(container["image"], json!(image), "{name}");
    }
    let chart = &crate::objects::documents("deploy/chart/flannel/Chart.yaml")[0];
    let values = &crate::objects::documents("deploy/chart/flannel/values.yaml")[0];
    let base = &crate::objects::documents("deploy/kustomize/base/kustomization.yaml")[0];
    for (file, value) in [
        ("Chart.yaml", at(chart, "/version")),
        ("Chart.yaml", at(chart, "/appVersion")),
        ("values.yaml", at(values, "/flannel/image/tag")),
        ("kustomization.yaml", at(base, "/images/0/newTag")),
    ] {
        assert_eq!(value, env!("CARGO_PKG_VERSION"), "{file}");
    }
}

/// No engine is here to build it; what it copies and links is the image's.
#[test]
fn dockerfile_copies_what_is_there_to_where_the_image_has_it() {
    let text = read("deploy/image/Dockerfile");
    let copies: Vec<Vec<&str>> = text
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .map(|line| line.split(' ').collect())
        .collect();
    let mut copied = 0;
    for words in copies
        .iter()
        .filter(|words| !words[0].starts_with("--from=") && words[0] != ".")
    {
        assert!(root().join(words[0]).is_file(), "{words:?}");
        copied += 1;
    }
    assert_eq!((copied, copies.len()), (2, 5));
    let version = env!("CARGO_PKG_VERSION");
    for part in [
        "FROM rust:1.95.0-",
        &format!("localhost/flannel:{version}"),
        "/out/flanneld /out/flannelctl /opt/bin/\n",
        "/out/flannel-cni /flannel\n",
        "deploy/image/iptables-either /usr/sbin/\n",
        "ln -s flannelctl /opt/bin/install-conf",
        "ENTRYPOINT [\"/opt/bin/flanneld\"]",
    ] {
        assert!(text.contains(part), "{part}");
    }
    assert!(read("rust-toolchain.toml").contains("1.95.0"));
}
