//! Pods that never come to run leave nothing once they are deleted.

use lab::kube::IMAGE;
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::trace;

/// On which machine.
const HOST: usize = 1;

pub fn rows(bed: &mut Bed) {
    let container = |image: &str, command: &[&str]| {
        json!({
            "name": "c", "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
            "ports": [{ "containerPort": 80, "hostPort": 8085 }],
        })
    };
    let works = container(IMAGE, &["sleep", "1000"]);
    // The plugin for ports makes chains with the first one it is asked for, and leaves them, empty, as Go's does.
    bed.row("a pod with a port of the host is there, deleted", &[], |bed| {
        make(bed, "works", json!({ "containers": [works.clone()] }));
        bed.kubectl(&["wait", "--for=condition=Ready", "pod/works", "--timeout=60s"]);
        bed.kubectl(&["delete", "pod", "works"]);
    });
    let ends = container(IMAGE, &["false"]);
    for (number, (what, reason, mut spec)) in [
        (
            "a command that is not there",
            "RunContainerError|CrashLoopBackOff|StartError",
            json!({ "containers": [container(IMAGE, &["/no/such/command"])] }),
        ),
        (
            "a container that ends at once, again and again",
            "CrashLoopBackOff",
            json!({ "containers": [ends] }),
        ),
        (
            "an image that is nowhere",
            "ErrImagePull|ImagePullBackOff",
            json!({ "containers": [container("localhost/no-such-image:1", &["true"])] }),
        ),
        (
            "an init container that fails",
            "Init:Error|CrashLoopBackOff",
            json!({ "containers": [works], "initContainers": [{ "name": "i", "image": IMAGE, "command": ["false"] }] }),
        ),
        (
            "a Secret that is not there",
            "CreateContainerConfigError",
            json!({ "containers": [{
                "name": "c", "image": IMAGE, "command": ["true"], "envFrom": [{ "secretRef": { "name": "no-such-secret" } }],
            }] }),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        // The one before may not have gone yet by kubelet's word.
        if let Some(port) = spec.pointer_mut("/containers/0/ports/0/hostPort") {
            *port = json!(8090 + number);
        }
        bed.row(&format!("a pod with {what}, deleted"), &[], |bed| {
            fails(bed, &format!("fails-{number}"), reason, spec);
        });
    }
}

fn make(bed: &mut Bed, name: &str, mut spec: Value) {
    spec["nodeName"] = json!(format!("h{HOST}"));
    spec["terminationGracePeriodSeconds"] = json!(1);
    bed.cluster()
        .apply(&json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec }))
        .unwrap();
}

/// Such a pod is made, fails for one of these reasons, and goes, with all that was there for it.
fn fails(bed: &mut Bed, name: &str, reasons: &str, spec: Value) {
    let before = trace::of_pods(bed.lab.host(HOST));
    make(bed, name, spec);
    bed.wait(&format!("a pod that fails by {reasons}"), |bed| {
        let text = bed.kubectl(&["get", "pod", name, "-o", "json"]);
        let pod: Value = serde_json::from_str(&text).unwrap();
        let statuses = ["initContainerStatuses", "containerStatuses"]
            .iter()
            .filter_map(|key| pod["status"][*key].as_array())
            .flatten();
        let said: Vec<String> = statuses
            .flat_map(|status| ["waiting", "terminated"].map(|key| status["state"][key]["reason"].clone()))
            .filter_map(|reason| reason.as_str().map(str::to_owned))
            .collect();
        let is_so = said
            .iter()
            .any(|reason| reasons.split('|').any(|expected| reason == expected));
        (!is_so).then(|| format!("{said:?}"))
    });
    // It had its place in the network.
    let during = trace::of_pods(bed.lab.host(HOST));
    assert!(during.len() > before.len(), "{during:?}");
    // What kubelet says of it may come half a minute after what it does.
    bed.kubectl(&["delete", "pod", name, "--wait=false"]);
    bed.wait("nothing being left of it", |bed| {
        let now = trace::of_pods(bed.lab.host(HOST));
        (now != before).then(|| crate::bed::difference(&now, &before))
    });
}
