//! flannel's own configuration, and the delegate's that is made of it.

use serde_json::{Map, Value};

use crate::call::Call;
use crate::failure::Failure;
use crate::flannel::subnet_env::PodSettings;
use crate::json::{self, FieldError, JsonObject};
use crate::ordered::Ordered;
use crate::result::Route;

/// Where flanneld writes what the node was given.
pub const SUBNET_FILE: &str = fabric::status::SUBNET_FILE;
/// Where the delegates' configurations are saved.
pub const DATA_DIR: &str = "/var/lib/cni/flannel";

/// The keys flannel reads. An empty path is taken as it is; only absence gives the default.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// Network name.
    pub name: String,
    /// As given; may be empty.
    pub cni_version: String,
    /// Path of subnet.env.
    pub subnet_file: String,
    /// Folder of saved delegate configurations.
    pub data_dir: String,
    /// Base of the delegate's `ipam`.
    pub ipam: Map<String, Value>,
    /// Base of the delegate's configuration; `None` when absent or `null`.
    pub delegate: Option<Map<String, Value>>,
    /// Capability arguments.
    pub runtime_config: Option<Map<String, Value>>,
}

impl NetConf {
    /// Reads the configuration of a call; the error is the text behind Go's prefixes.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn load(call: &Call) -> Result<NetConf, String> {
        let fields = call.fields();
        let read = || -> Result<NetConf, FieldError> {
            let map = |name: &str| fields.object(name).map(|object| object.map().cloned());
            Ok(NetConf {
                name: call.name.clone(),
                cni_version: fields.string("cniVersion")?.unwrap_or_default().to_owned(),
                subnet_file: fields.string("subnetFile")?.unwrap_or(SUBNET_FILE).to_owned(),
                data_dir: fields.string("dataDir")?.unwrap_or(DATA_DIR).to_owned(),
                ipam: map("ipam")?.unwrap_or_default(),
                delegate: map("delegate")?,
                runtime_config: map("runtimeConfig")?,
            })
        };
        read().map_err(|e| format!("failed to load netconf: {e}"))
    }

    /// Type of the delegate; `bridge` when none is given.
    pub fn delegate_type(&self) -> &str {
        let given = self.delegate.as_ref().and_then(|d| d.get("type"));
        given.and_then(Value::as_str).unwrap_or("bridge")
    }
}

/// The delegate's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Delegate {
    /// Its plugin.
    pub kind: String,
    /// The configuration as a tree.
    pub config: Value,
    /// The bytes Go gives the delegate and saves.
    pub text: String,
}

/// Refuses what only flannel may set.
///
/// # Errors
///
/// The key that is set.
pub fn check_delegate(conf: &NetConf) -> Result<(), Failure> {
    let Some(delegate) = &conf.delegate else {
        return Ok(());
    };
    if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
        return Err(Failure::internal(
            "'delegate' dictionary, if present, must have (string) 'type' field",
        ));
    }
    for name in ["name", "ipam"] {
        if delegate.contains_key(name) {
            return Err(Failure::internal(format!(
                "'delegate' dictionary must not have '{name}' field, it'll be set by flannel"
            )));
        }
    }
    Ok(())
}

/// Makes the delegate's configuration of flannel's and of what the node was given.
///
/// # Errors
///
/// Keys of the delegate that are flannel's to set, or routes that cannot be read.
pub fn build(conf: &NetConf, env: &PodSettings) -> Result<Delegate, Failure> {
    check_delegate(conf)?;
    let mut delegate = conf.delegate.clone().unwrap_or_default();
    if let Some(runtime) = &conf.runtime_config {
        delegate.insert("runtimeConfig".to_owned(), Value::Object(runtime.clone()));
    }
    delegate.insert("name".to_owned(), Value::from(conf.name.as_str()));
    let kind = conf.delegate_type().to_owned();
    delegate.insert("type".to_owned(), Value::from(kind.as_str()));
    let mut default = |name: &str, value: Value| {
        delegate.entry(name.to_owned()).or_insert(value);
    };
    default("ipMasq", Value::from(!env.ipmasq));
    default("mtu", Value::from(env.mtu));
    if kind == "bridge" {
        default("isGateway", Value::from(true));
    }
    if !conf.cni_version.is_empty() {
        delegate.insert("cniVersion".to_owned(), Value::from(conf.cni_version.as_str()));
    }
    let (ipam, routes) = build_ipam(conf, env)
        .map_err(|e| Failure::internal(format!("failed to assemble Delegate IPAM: {e}")))?;
    let ipam_text = json::object_text(&ipam, Some(("routes", &routes)));
    delegate.insert("ipam".to_owned(), Value::Object(ipam));
    let text = json::object_text(&delegate, Some(("ipam", &ipam_text)));
    Ok(Delegate {
        kind,
        config: Value::Object(delegate),
        text,
    })
}

/// The delegate's `ipam`, and its routes as text: Go writes those from a struct, in the order of its fields.
fn build_ipam(conf: &NetConf, env: &PodSettings) -> Result<(Map<String, Value>, String), String> {
    let mut ipam = conf.ipam.clone();
    ipam.entry("type".to_owned())
        .or_insert_with(|| Value::from("host-local"));
    let subnets = env.subnet.iter().chain(&env.subnet6);
    let ranges = subnets.map(|subnet| serde_json::json!([{ "subnet": subnet.to_string() }]));
    let ranges: Vec<Value> = ranges.collect();

    let mut routes = given_routes(&conf.ipam).map_err(|e| format!("failed to read IPAM routes: {e}"))?;
    routes.extend(
        env.networks
            .iter()
            .chain(&env.networks6)
            .map(|net| Route::to(*net, None)),
    );
    let text = Ordered::List(routes.iter().map(Route::to_ordered).collect()).compact();

    ipam.insert("ranges".to_owned(), Value::Array(ranges));
    ipam.insert(
        "routes".to_owned(),
        Value::Array(routes.iter().map(Route::to_value).collect()),
    );
    Ok((ipam, text))
}

fn given_routes(ipam: &Map<String, Value>) -> Result<Vec<Route>, String> {
    let object = JsonObject::at(ipam, "ipam");
    let failed = |e: &dyn std::fmt::Display| format!("failed to parse ipam.routes: {e}");
    let routes = object.objects("routes").map_err(|e| failed(&e))?;
    let read = |route: &JsonObject<'_>| {
        // COMPAT: the one mistake people make here has Go's words.
        match route.string("dst") {
            Ok(Some(text)) if fabric::go_json::parse_cidr(text).is_none() => {
                Err(failed(&format_args!("invalid CIDR address: {text}")))
            }
            _ => Route::parse(route).map_err(|e| failed(&e)),
        }
    };
    routes.iter().map(read).collect()
}

#[cfg(test)]
mod tests;
