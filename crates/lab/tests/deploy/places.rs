//! What differs from place to place: the folders below `deploy/kustomize`, each a patch of what is in the manifest.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::objects::{MANIFEST, at, differences, documents, inner, named, objects, read, root, texts};

/// The folders, with what may differ from the manifest: paths of a DaemonSet's volumes, keys of the network config.
const PLACES: &[(&str, &[&str], &[&str])] = &[
    ("host-gw", &[], &["/Backend/Type"]),
    ("k3s", &["cni", "cni-plugin"], &["/Network"]),
    ("microk8s", &["cni", "cni-plugin"], &["/Network"]),
];

#[test]
fn places_when_they_patch_the_manifest_name_what_is_there_and_change_what_they_say() {
    let manifest = objects(MANIFEST);
    let folders = std::fs::read_dir(root().join("deploy/kustomize")).unwrap();
    let folders: BTreeSet<String> = folders
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let places = PLACES.iter().map(|place| place.0).chain(["base"]);
    assert_eq!(folders, places.map(str::to_owned).collect());
    for (place, volumes, keys) in PLACES {
        let folder = format!("deploy/kustomize/{place}");
        let own = documents(&format!("{folder}/kustomization.yaml"));
        assert_eq!(texts(own[0].get("resources")), ["../base"]);
        let (mut moved, mut changed) = (BTreeSet::new(), BTreeSet::new());
        for patch in at(&own[0], "/patches").as_array().unwrap() {
            let patch = at(patch, "/path").as_str().unwrap();
            for (name, object) in objects(&format!("{folder}/{patch}")) {
                let patched = manifest
                    .get(&name)
                    .unwrap_or_else(|| panic!("{folder}: no {name}"));
                assert_eq!(object["metadata"]["namespace"], patched["metadata"]["namespace"]);
                if name.starts_with("ConfigMap") {
                    let (a, b) = (inner(patched, "net-conf.json"), inner(&object, "net-conf.json"));
                    differences(&a, &b, "", &mut changed);
                    assert_eq!(at(&object, "/data").as_object().unwrap().len(), 1);
                } else {
                    let path = "/spec/template/spec/volumes";
                    let there = named(patched, path);
                    for (volume, entry) in named(&object, path) {
                        let path = at(entry, "/hostPath/path").as_str().unwrap();
                        assert!(
                            there.contains_key(volume) && path.starts_with('/'),
                            "{folder}: {volume}"
                        );
                        moved.insert(volume.to_owned());
                    }
                    assert_eq!(
                        at(&object, "/spec/template/spec")
                            .as_object()
                            .map(serde_json::Map::len),
                        Some(1)
                    );
                }
            }
        }
        assert_eq!(
            moved,
            volumes.iter().map(|v| (*v).to_owned()).collect(),
            "{place}"
        );
        assert_eq!(changed, keys.iter().map(|k| (*k).to_owned()).collect(), "{place}");
    }
}

#[test]
fn base_is_the_manifest() {
    let base = documents("deploy/kustomize/base/kustomization.yaml");
    assert_eq!(texts(base[0].get("resources")), ["kube-flannel.yml"]);
    let image = at(&base[0], "/images/0");
    assert_eq!(image["name"], Value::from("localhost/flannel"));
    assert!(
        read("deploy/kustomize/base/kube-flannel.yml") == read(MANIFEST),
        "scripts/render-deploy copies it"
    );
}
