//! libcni as runtimes and Multus use it: one configuration a plugin, a chain forward and back, and the cache of results.
//!
//! Facts are of containernetworking/cni `libcni/api.go`: `buildOneConfig` (name, cniVersion, prevResult and runtimeConfig are
//! put into each plugin's configuration, keys sorted), `cacheAdd` (the file a DEL and a CHECK read prevResult from),
//! `DelNetworkList` (reverse, the first failure ends it, no prevResult below 0.4.0, a broken cache file is dropped) and
//! `GCNetworkList` (a DEL of each cached attachment that is not listed, then the verb).

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::rig::{Answer, Call, Host};

/// A list of plugins, or one plugin as a list of one.
#[derive(Debug, Clone)]
pub struct List {
    pub name: String,
    pub version: String,
    pub plugins: Vec<Value>,
    pub text: String,
}

impl List {
    pub fn parse(text: &str) -> List {
        let value: Value = serde_json::from_str(text).unwrap();
        let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let plugins = match value.get("plugins") {
            Some(plugins) => plugins.as_array().unwrap().clone(),
            None => vec![value.clone()],
        };
        List {
            name: word("name"),
            version: word("cniVersion"),
            plugins,
            text: text.to_owned(),
        }
    }

    fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self
            .version
            .split('.')
            .map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(1)) >= (major, minor)
    }
}

/// What a runtime says of one attachment.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub container: String,
    pub netns: String,
    pub ifname: String,
    pub args: Vec<(String, String)>,
    pub capabilities: Map<String, Value>,
}

impl Attachment {
    pub fn of(container: &str, netns: &str, ifname: &str) -> Attachment {
        Attachment {
            container: container.to_owned(),
            netns: netns.to_owned(),
            ifname: ifname.to_owned(),
            args: Vec::new(),
            capabilities: Map::new(),
        }
    }
}

/// One program that calls plugins, with the folder of its cache.
#[derive(Debug, Clone)]
pub struct Libcni {
    /// `CNI_PATH` as the plugins see it.
    pub path: String,
    /// Where the plugins are found and started.
    pub programs: Vec<PathBuf>,
    /// Holds `results`.
    pub cache: PathBuf,
}

impl Libcni {
    /// A runtime of a host: our plugins first, then Go's.
    pub fn of(host: &Host, cache: &str) -> Libcni {
        let programs = vec![
            PathBuf::from(host.path("bin")),
            PathBuf::from(crate::rig::GO_PLUGINS),
        ];
        let path: Vec<&str> = programs.iter().map(|p| p.to_str().unwrap()).collect();
        Libcni {
            path: path.join(":"),
            cache: host.path(cache).into(),
            programs,
        }
    }

    pub fn cache_file(&self, network: &str, to: &Attachment) -> PathBuf {
        let name = format!("{network}-{}-{}", to.container, to.ifname);
        self.cache.join("results").join(name)
    }

    /// Names of the cached results.
    pub fn cached(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.cache.join("results")) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn execute(&self, host: &Host, verb: &str, config: &Value, to: &Attachment) -> Answer {
        let kind = config["type"].as_str().unwrap();
        let program = self.programs.iter().map(|folder| folder.join(kind));
        let Some(program) = program.into_iter().find(|file| file.exists()) else {
            let msg = format!("failed to find plugin {kind:?} in path");
            return Answer {
                status: 1,
                stdout: json!({ "code": 0, "msg": msg }).to_string(),
                stderr: String::new(),
            };
        };
        let args: Vec<String> = to
            .args
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        host.run(&Call {
            program,
            verb,
            container: &to.container,
            netns: to.netns.clone(),
            ifname: &to.ifname,
            args: &args.join(";"),
            path: self.path.clone(),
            stdin: config.to_string(),
            variables: Vec::new(),
        })
    }

    fn configure(&self, list: &List, plugin: &Value, previous: Option<&Value>, to: &Attachment) -> Value {
        let mut config = plugin.clone();
        config["name"] = json!(list.name);
        config["cniVersion"] = json!(list.version);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let declared = |name: &String| plugin["capabilities"][name].as_bool() == Some(true);
        let runtime: Map<String, Value> = to
            .capabilities
            .iter()
            .filter(|(name, _)| declared(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !runtime.is_empty() {
            config["runtimeConfig"] = Value::Object(runtime);
        }
        config
    }

    /// ADD of each plugin in turn; the answer of the last, or of the one that failed. stderr is that of all.
    pub fn add(&self, host: &Host, list: &List, to: &Attachment) -> Answer {
        let mut previous: Option<Value> = None;
        let mut stderr = String::new();
        let mut last = None;
        for plugin in &list.plugins {
            let config = self.configure(list, plugin, previous.as_ref(), to);
            let mut answer = self.execute(host, "ADD", &config, to);
            stderr.push_str(&answer.stderr);
            answer.stderr.clone_from(&stderr);
            if answer.status != 0 {
                return answer;
            }
            let mut result = answer.json();
            if result.get("cniVersion").is_none() {
                result["cniVersion"] = json!(list.version);
            }
            previous = Some(result);
            last = Some(answer);
        }
        self.write_cache(list, to, &previous.unwrap());
        last.unwrap()
    }

    fn write_cache(&self, list: &List, to: &Attachment, result: &Value) {
        use std::os::unix::fs::OpenOptionsExt;
        let args: Vec<[&String; 2]> = to.args.iter().map(|(key, value)| [key, value]).collect();
        let mut info = json!({
            "kind": "cniCacheV1",
            "containerId": to.container,
            "config": base64(list.text.as_bytes()),
            "ifName": to.ifname,
            "networkName": list.name,
            "netns": to.netns,
            "cniArgs": args,
            "result": result,
        });
        if !to.capabilities.is_empty() {
            info["capabilityArgs"] = Value::Object(to.capabilities.clone());
        }
        std::fs::create_dir_all(self.cache.join("results")).unwrap();
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.cache_file(&list.name, to));
        std::io::Write::write_all(&mut file.unwrap(), info.to_string().as_bytes()).unwrap();
    }

    fn read_cache(&self, list: &List, to: &Attachment) -> Option<Value> {
        if !list.is_at_least(0, 4) {
            return None;
        }
        let text = std::fs::read_to_string(self.cache_file(&list.name, to)).ok()?;
        let info: Option<Value> = serde_json::from_str(&text).ok();
        let result = info.and_then(|info| info.get("result").cloned());
        if result.is_none() {
            let _ = std::fs::remove_file(self.cache_file(&list.name, to));
        }
        result
    }

    /// DEL of each plugin from the last to the first; the first that fails ends it and the cached result stays.
    pub fn del(&self, host: &Host, list: &List, to: &Attachment) -> Result<(), String> {
        let previous = self.read_cache(list, to);
        for plugin in list.plugins.iter().rev() {
            let config = self.configure(list, plugin, previous.as_ref(), to);
            let answer = self.execute(host, "DEL", &config, to);
            if answer.status != 0 {
                return Err(format!("plugin {} failed (delete): {answer:?}", plugin["type"]));
            }
        }
        let _ = std::fs::remove_file(self.cache_file(&list.name, to));
        Ok(())
    }

    /// CHECK of each plugin with the final result of the ADD.
    pub fn check(&self, host: &Host, list: &List, to: &Attachment) -> Result<(), String> {
        assert!(list.is_at_least(0, 4), "{} has no CHECK", list.version);
        let previous = self.read_cache(list, to);
        for plugin in &list.plugins {
            let config = self.configure(list, plugin, previous.as_ref(), to);
            let answer = self.execute(host, "CHECK", &config, to);
            if answer.status != 0 {
                return Err(answer.stdout);
            }
        }
        Ok(())
    }

    /// DEL of each cached attachment of the network that is not among `valid`, then the verb with the list.
    pub fn gc(&self, host: &Host, list: &List, valid: &[(&str, &str)]) -> Result<(), String> {
        let mut failures = Vec::new();
        for name in self.cached() {
            let text = std::fs::read_to_string(self.cache.join("results").join(&name)).unwrap();
            let info: Value = serde_json::from_str(&text).unwrap();
            let word = |key: &str| info[key].as_str().unwrap_or_default();
            let listed = valid.contains(&(word("containerId"), word("ifName")));
            if word("networkName") != list.name || listed {
                continue;
            }
            let mut stale = Attachment::of(word("containerId"), word("netns"), word("ifName"));
            let args = info["cniArgs"].as_array().into_iter().flatten();
            stale.args = args
                .map(|pair| {
                    (
                        pair[0].as_str().unwrap().to_owned(),
                        pair[1].as_str().unwrap().to_owned(),
                    )
                })
                .collect();
            stale.capabilities = info["capabilityArgs"].as_object().cloned().unwrap_or_default();
            failures.extend(self.del(host, list, &stale).err());
        }
        if list.is_at_least(1, 1) {
            let entries: Vec<Value> = valid
                .iter()
                .map(|(container, ifname)| json!({ "containerID": container, "ifname": ifname }))
                .collect();
            for plugin in &list.plugins {
                let nobody = Attachment::of("", "", "");
                let mut config = self.configure(list, plugin, None, &nobody);
                config["cni.dev/valid-attachments"] = json!(entries);
                config["cni.dev/attachments"] = json!(entries);
                let answer = self.execute(host, "GC", &config, &nobody);
                if answer.status != 0 {
                    failures.push(answer.stdout);
                }
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures.join("\n"))
        }
    }

    /// STATUS of each plugin; the first that is not ready is the answer.
    pub fn status(&self, host: &Host, list: &List) -> Result<(), Value> {
        for plugin in list.plugins.iter().filter(|_| list.is_at_least(1, 1)) {
            let nobody = Attachment::of("", "", "");
            let answer = self.execute(
                host,
                "STATUS",
                &self.configure(list, plugin, None, &nobody),
                &nobody,
            );
            if answer.status != 0 {
                return Err(answer.json());
            }
        }
        Ok(())
    }
}

/// Go's encoding of bytes in JSON.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            match i <= chunk.len() {
                true => text.push(char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

/// The bytes of such a text.
pub fn unbase64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        bits = bits << 6 | u32::from(digit(c));
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
