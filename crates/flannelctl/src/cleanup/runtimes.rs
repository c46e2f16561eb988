//! What the CNI plugins have made: executables, configurations, the bridge, records.

use std::path::{Path, PathBuf};

use cni::conflist;
use cni::flannel::netconf;
use cni::host_local::config as host_local;
use cni::install;
use kernel::rtnl::Rtnl;
use serde_json::Value;

use super::{Act, Findings, Places};

/// Where runtimes look for plugins.
pub const PLUGINS: &str = "/opt/cni/bin";
/// Where they look for configurations.
pub const CONFIGURATIONS: &str = "/etc/cni/net.d";
/// The bridge when the configuration names none.
const BRIDGE: &str = "cni0";

/// A configuration that has pods connected by flannel.
struct Configuration {
    file: PathBuf,
    network: String,
    bridge: String,
}

pub fn look(places: &Places<'_>, findings: &mut Findings) {
    let configurations = configurations(places.configurations);
    let mut bridges: Vec<String> = vec![BRIDGE.to_owned()];
    let mut networks: Vec<String> = vec![conflist::NAME.to_owned()];
    for configuration in &configurations {
        bridges.push(configuration.bridge.clone());
        networks.push(configuration.network.clone());
    }
    bridges.sort();
    bridges.dedup();
    networks.sort();
    networks.dedup();
    let is_connected = !configurations.is_empty() || Path::new(netconf::DATA_DIR).is_dir();
    if is_connected {
        look_at_bridges(&bridges, findings);
    }
    for configuration in configurations {
        let shown = configuration.file.display().to_string();
        findings.add("file", shown, Act::File(configuration.file));
    }
    let ours = install::ALL.iter().map(|name| places.plugins.join(name));
    let ours: Vec<PathBuf> = ours
        .filter(|place| place.exists() && install::is_ours(place).unwrap_or(false))
        .collect();
    if !ours.is_empty() {
        let names: Vec<String> = ours.iter().map(|place| place.display().to_string()).collect();
        let text = format!(
            "the plugins {} (what was there before is put back)",
            names.join(", ")
        );
        findings.add("plugins", text, Act::Plugins(places.plugins.to_path_buf()));
    }
    let records = networks
        .iter()
        .map(|network| Path::new(host_local::DATA_DIR).join(network))
        .filter(|_| is_connected)
        .chain([PathBuf::from(netconf::DATA_DIR)]);
    for folder in records.filter(|folder| folder.is_dir()) {
        findings.add(
            "folder",
            format!("{} and the records in it", folder.display()),
            Act::Folder(folder),
        );
    }
}

fn look_at_bridges(names: &[String], findings: &mut Findings) {
    let links = match Rtnl::open().and_then(|mut rtnl| rtnl.links()) {
        Ok(links) => links,
        Err(why) => {
            findings.unread.push(format!("bridges: {why}"));
            return;
        }
    };
    let bridges = links.iter().filter(|link| &*link.kind == "bridge");
    for bridge in bridges.filter(|link| names.iter().any(|name| name == link.name.as_str())) {
        let ports = links.iter().filter(|link| link.master == Some(bridge.index));
        let ports: Vec<String> = ports.map(|port| port.name.to_string()).collect();
        if ports.is_empty() {
            let act = Act::Bridge(bridge.name);
            findings.add("bridge", format!("bridge {}", bridge.name), act);
        } else {
            findings.stays.push(format!(
                "bridge {}, to which {} is attached",
                bridge.name,
                ports.join(", ")
            ));
            findings.attached.extend(ports);
        }
    }
}

fn configurations(folder: &Path) -> Vec<Configuration> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let end = path.extension().and_then(|end| end.to_str());
            end.is_some_and(|end| ["conf", "conflist", "json"].contains(&end))
        })
        .collect();
    files.sort();
    files.into_iter().filter_map(read).collect()
}

fn read(file: PathBuf) -> Option<Configuration> {
    let text = kernel::file::read(&file, conflist::LARGEST).ok()??;
    let value: Value = serde_json::from_slice(&text).ok()?;
    let is_flannel = |plugin: &&Value| plugin["type"] == "flannel";
    let plugins = value["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    let plugin = [&value].into_iter().chain(plugins).find(is_flannel)?;
    let bridge = plugin["delegate"]["bridge"].as_str().unwrap_or(BRIDGE).to_owned();
    // It becomes a part of a path.
    let network = value["name"].as_str().unwrap_or(conflist::NAME);
    let network = network
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        .then_some(network);
    let network = network.filter(|name| !name.starts_with('.'));
    Some(Configuration {
        network: network.unwrap_or(conflist::NAME).to_owned(),
        bridge,
        file,
    })
}

pub fn uninstall(folder: &Path) -> anyhow::Result<()> {
    install::uninstall(folder, install::ALL)?;
    Ok(())
}
