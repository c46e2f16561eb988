//! What flannel's plugin and its companions have made for an attachment goes: its saved configuration, masquerading, published ports,
//! limits.

use serde_json::{Value, json};

use super::del::del;
use crate::call::{Call, Environment, Verb};
use crate::companions;
use crate::failure::Failure;
use crate::inventory::Folders;
use crate::owner::Owner;
use crate::saved::{Saved, SavedConfigs};

/// Does what a runtime's DEL of the attachment would do, in the order it would; says what could not be removed.
pub fn detach(folders: &Folders, network: &str, owner: &Owner) -> Vec<String> {
    let config = json!({
        "subnetFile": folders.subnet_file,
        "dataDir": folders.flannel_dir,
        "ipam": { "dataDir": folders.data_dir },
    });
    let mut failures = match call(network, owner, json!({})) {
        Ok(plain) => companions::del(&plain),
        Err(failure) => vec![failure],
    };
    let own = call(network, owner, config).and_then(|call| del_saved(folders, owner, &call));
    failures.extend(own.err());
    failures.iter().map(Failure::to_string).collect()
}

fn call(network: &str, owner: &Owner, mut config: Value) -> Result<Call, Failure> {
    if let Some(map) = config.as_object_mut() {
        map.insert("name".to_owned(), Value::from(network));
        map.insert("cniVersion".to_owned(), Value::from("0.3.1"));
    }
    let env = Environment {
        command: Verb::Del.as_str().to_owned(),
        container_id: owner.container.clone(),
        ifname: owner.ifname.clone(),
        // Its namespace is gone.
        ..Environment::default()
    };
    Call::check(env, config.to_string().into_bytes())
}

fn del_saved(folders: &Folders, owner: &Owner, call: &Call) -> Result<(), Failure> {
    let saved = SavedConfigs::open(&folders.flannel_dir, &owner.container, &owner.ifname)?;
    if let Some(Saved::Own(bytes) | Saved::Legacy(bytes)) = saved.map(|saved| saved.load()).transpose()? {
        let saved = crate::json::parse(&bytes).unwrap_or_default();
        let kind = saved.get("type").and_then(Value::as_str).unwrap_or("bridge");
        if kind != "bridge" {
            let folder = &folders.flannel_dir;
            return Err(Failure::internal(format!(
                "its configuration in {folder} stays: plugin {kind:?} has to be called with it"
            )));
        }
    }
    del(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_when_it_is_another_plugins_is_not_undone_without_that() {
        let room = tempfile::tempdir().unwrap();
        let path = |name: &str| room.path().join(name).to_str().unwrap().to_owned();
        let folders = Folders {
            data_dir: path("networks"),
            flannel_dir: path("flannel"),
            subnet_file: path("subnet.env"),
        };
        let owner = Owner::new("c1", "eth0");
        let saved = SavedConfigs::create(&folders.flannel_dir, "c1", "eth0").unwrap();
        saved.begin(r#"{"name":"n","type":"ipvlan"}"#).unwrap();
        let call = call("n", &owner, json!({"x": 1})).unwrap();
        assert_eq!(
            (call.verb, call.name.as_str(), call.version.as_str()),
            (Verb::Del, "n", "0.3.1")
        );
        assert_eq!(
            (
                call.env.container_id.as_str(),
                call.env.ifname.as_str(),
                call.env.netns.as_str()
            ),
            ("c1", "eth0", "")
        );
        assert_eq!(call.fields().whole("x"), Ok(Some(1)));
        let failure = del_saved(&folders, &owner, &call).unwrap_err();
        assert_eq!(
            failure.msg,
            format!(
                "its configuration in {} stays: plugin \"ipvlan\" has to be called with it",
                folders.flannel_dir
            )
        );
        assert!(super::call("a/b", &owner, json!({})).is_err());
    }
}
