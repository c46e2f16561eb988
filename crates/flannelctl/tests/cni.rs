//! `flannelctl cni`: installing under fire, going back, and the configuration in the hands of old and new runtimes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
mod nodes;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cni::conflist;
use nodes::{GO_PLUGINS, Node, executable};
use serde_json::{Value, json};

const ALL: [&str; 6] = [
    "flannel",
    "bridge",
    "host-local",
    "loopback",
    "portmap",
    "bandwidth",
];

/// A folder of plugins, and what `flannelctl cni` says about it: exit status, stdout and stderr.
struct Bin {
    folder: tempfile::TempDir,
}

impl Bin {
    fn new() -> Bin {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        Bin { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("bin").join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("bin")).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(executable("flannelctl"));
        command
            .arg("cni")
            .args(arguments)
            .arg("--dir")
            .arg(self.folder.path().join("bin"));
        command
    }

    fn cni(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8(text).unwrap(),
        )
    }

    /// Other versions of ours: an executable does not mind what is behind its end.
    fn versions(&self) -> [PathBuf; 2] {
        [b"one", b"two"].map(|end| {
            let file = self.folder.path().join(String::from_utf8_lossy(end).into_owned());
            let mut bytes = std::fs::read(executable("flannel-cni")).unwrap();
            bytes.extend_from_slice(end);
            std::fs::write(&file, bytes).unwrap();
            Command::new("chmod").arg("755").arg(&file).status().unwrap();
            file
        })
    }
}

#[test]
fn install_when_others_plugins_are_there_takes_flannel_alone_and_uninstall_gives_it_back() {
    let bin = Bin::new();
    let go = |name: &str| std::fs::read(format!("{GO_PLUGINS}/{name}")).unwrap();
    std::fs::write(bin.path("flannel"), go("bridge")).unwrap();
    std::fs::write(bin.path("bridge"), go("bridge")).unwrap();
    std::fs::write(bin.path("portmap"), go("portmap")).unwrap();
    let ours = std::fs::read(executable("flannel-cni")).unwrap();

    let (code, text) = bin.cni(&["install"]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("flannel is ours; what was there is kept as ") && text.contains("/.flannel.before")
    );
    assert_eq!(bin.names(), [".flannel.before", "bridge", "flannel", "portmap"]);
    assert_eq!(bin.read("flannel"), ours);
    assert_eq!(bin.read("bridge"), go("bridge"));

    let (code, text) = bin.cni(&["install", "--all"]);
    assert_eq!(code, 0, "{text}");
    for kept in ["bridge", "portmap"] {
        assert!(
            text.contains(&format!("/{kept} is another's and stays")),
            "{text}"
        );
        assert_eq!(bin.read(kept), go(kept));
    }
    let (code, text) = bin.cni(&["install", "--all", "--replace", "--json"]);
    assert_eq!(code, 0, "{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["installed"].as_array().unwrap().len(), ALL.len());
    assert_eq!(value["replaced"].as_array().unwrap().len(), 2);
    assert!(ALL.iter().all(|name| bin.read(name) == ours));
    assert_eq!(bin.read(".flannel.before"), go("bridge"));

    let (code, text) = bin.cni(&["uninstall"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(bin.names(), ["bridge", "flannel", "portmap"]);
    assert_eq!(bin.read("flannel"), go("bridge"));
    assert_eq!(bin.read("portmap"), go("portmap"));
    let (code, text) = bin.cni(&["uninstall"]);
    assert_eq!((code, text.starts_with("nothing of ours is in ")), (0, true));
}

#[test]
fn install_when_what_it_is_given_is_no_plugin_of_ours_says_so_and_touches_nothing() {
    let bin = Bin::new();
    let nothing = bin.folder.path().join("nothing");
    let broken = bin.folder.path().join("broken");
    let mut bytes = std::fs::read(executable("flannel-cni")).unwrap();
    bytes[..4].copy_from_slice(b"nELF");
    std::fs::write(&broken, bytes).unwrap();
    for (from, word) in [
        (nothing.to_str().unwrap(), "name its place by --from"),
        ("/usr/lib/cni/bridge", "is not flannel-cni"),
        (executable("flannelctl").to_str().unwrap(), "is not flannel-cni"),
        (broken.to_str().unwrap(), "does not run on this machine"),
    ] {
        let (code, text) = bin.cni(&["install", "--from", from]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(word), "{text}");
    }
    for (arguments, code, word) in [
        (&["install", "--al"][..], 2, "--al"),
        (&["nosuch"], 2, "nosuch"),
        (&["install", "--help"], 0, "Examples:"),
        (&["uninstall", "--help"], 0, "Examples:"),
        (&["conf", "--help"], 0, "Examples:"),
        (&["conf", "--name", "a/b"], 2, "--name"),
        (&["conf", "--write", "/x/10-flannel.conf"], 2, ".conflist"),
    ] {
        let (got, text) = bin.cni(arguments);
        assert_eq!(got, code, "{text}");
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(bin.names(), Vec::<String>::new());
}

#[test]
fn install_when_killed_anywhere_leaves_a_whole_plugin_and_gos_is_never_lost() {
    let bin = Bin::new();
    let go = std::fs::read(format!("{GO_PLUGINS}/bridge")).unwrap();
    let versions = bin.versions();
    let whole: Vec<Vec<u8>> = versions.iter().map(|v| std::fs::read(v).unwrap()).collect();
    let install = |from: &Path| bin.command(&["install", "--from", from.to_str().unwrap()]);

    let start = Instant::now();
    std::fs::write(bin.path("flannel"), &go).unwrap();
    assert!(install(&versions[0]).output().unwrap().status.success());
    let takes = start.elapsed();
    let (mut unfinished, rounds) = (0, 80);
    for round in 0..rounds {
        if round % 8 == 0 {
            // From the beginning: Go's is there, and nothing of ours.
            bin.command(&["uninstall"]).output().unwrap();
            assert_eq!(bin.names(), ["flannel"], "in round {round}");
            assert_eq!(bin.read("flannel"), go, "in round {round}");
        }
        let mut child = install(&versions[round % 2])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the whole run, whatever that takes here.
        let steps = u32::try_from(round * 7 % rounds).unwrap();
        std::thread::sleep(takes * steps / u32::try_from(rounds).unwrap());
        child.kill().unwrap();
        unfinished += usize::from(!child.wait().unwrap().success());
        let now = bin.read("flannel");
        assert!(
            now == go || whole.contains(&now),
            "half a plugin in round {round}"
        );
        if now != go {
            assert_eq!(bin.read(".flannel.before"), go, "in round {round}");
        }
    }
    assert!(unfinished > rounds / 4, "only {unfinished} were killed in time");
    assert!(install(&versions[0]).output().unwrap().status.success());
    assert_eq!(bin.names(), [".flannel.before", "flannel"]);
    assert_eq!(bin.read("flannel"), whole[0]);
    bin.command(&["uninstall"]).output().unwrap();
    assert_eq!(bin.names(), ["flannel"]);
    assert_eq!(bin.read("flannel"), go);
}

#[test]
fn plugin_when_called_again_and_again_while_it_is_replaced_always_answers() {
    let bin = Bin::new();
    let versions = bin.versions();
    let install = |from: &Path| {
        let output = bin
            .command(&["install", "--from", from.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    install(&versions[0]);
    // One that runs all the time: it waits for its configuration.
    let mut waiting = Command::new(bin.path("flannel"))
        .env("CNI_COMMAND", "STATUS")
        .env("CNI_PATH", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let done = AtomicBool::new(false);
    let plugin = bin.path("flannel");
    let calls = std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut calls = 0;
            while !done.load(Ordering::Relaxed) || calls < 20 {
                let output = Command::new(&plugin)
                    .env("CNI_COMMAND", "VERSION")
                    .stdin(Stdio::null())
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{output:?}");
                let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!(answer["supportedVersions"][0], "0.1.0");
                calls += 1;
            }
            calls
        });
        for round in 0..20 {
            install(&versions[round % 2]);
        }
        done.store(true, Ordering::Relaxed);
        caller.join().unwrap()
    });
    assert!(calls >= 20);
    waiting.stdin.take().unwrap().write_all(b"{}").unwrap();
    let output = waiting.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["msg"], "missing network name");
}

fn shipped() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/cni/10-flannel.conflist");
    std::fs::read_to_string(file).unwrap()
}

#[test]
fn conf_when_printed_and_written_is_what_is_shipped_and_what_differs_stays() {
    let bin = Bin::new();
    assert_eq!(bin.cni(&["install", "--all"]).0, 0);
    assert_eq!(bin.cni(&["conf"]), (0, shipped()));
    let file = bin.folder.path().join("net.d/10-flannel.conflist");
    let place = file.to_str().unwrap();
    assert_eq!(bin.cni(&["conf", "--write", place]).0, 0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), shipped());
    let (code, text) = bin.cni(&["conf", &format!("--write={place}")]);
    assert_eq!((code, text), (0, format!("{place} says so already\n")));

    let (code, text) = bin.cni(&["conf", "--write", place, "--name", "pods"]);
    assert_eq!(code, 1);
    assert!(text.contains("--replace"), "{text}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), shipped());
    std::fs::write(bin.folder.path().join("net.d/05-other.conf"), "{}").unwrap();
    let (code, text) = bin.cni(&["conf", "--write", place, "--name", "pods", "--replace"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("05-other.conf comes before it"), "{text}");
    let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(written["name"], "pods");
    assert_eq!(
        std::fs::read_dir(bin.folder.path().join("net.d"))
            .unwrap()
            .count(),
        2
    );
}

/// `install-conf SOURCE DESTINATION`, by either name.
fn install_conf(bin: &Bin, by_name: bool, source: &Path, destination: &Path) -> (i32, String) {
    let mut command = if by_name {
        let program = bin.folder.path().join("install-conf");
        if program.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(executable("flannelctl"), &program).unwrap();
        }
        Command::new(program)
    } else {
        let mut command = Command::new(executable("flannelctl"));
        command.args(["cni", "install-conf"]);
        command
    };
    let output = command.arg(source).arg(destination).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8(text).unwrap(),
    )
}

#[test]
fn install_conf_when_called_by_either_name_writes_what_is_new_and_touches_nothing_else() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    for by_name in [true, false] {
        let bin = Bin::new();
        let (source, place) = (bin.path("cni-conf.json"), bin.path("10-flannel.conflist"));
        std::fs::write(&source, "{\"name\": \"a\"}").unwrap();
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o640)).unwrap();
        let (code, text) = install_conf(&bin, by_name, &source, &place);
        assert_eq!((code, text.ends_with(" is written\n")), (0, true), "{text}");
        assert_eq!(std::fs::read(&place).unwrap(), std::fs::read(&source).unwrap());
        assert_eq!(place.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        let inode = place.metadata().unwrap().ino();
        let (code, text) = install_conf(&bin, by_name, &source, &place);
        assert_eq!((code, text.ends_with(" says so already\n")), (0, true), "{text}");
        assert_eq!(place.metadata().unwrap().ino(), inode);
        std::fs::write(bin.path("05-other.conf"), "{}").unwrap();
        std::fs::write(&source, "{\"name\": \"b\"}").unwrap();
        let (code, text) = install_conf(&bin, by_name, &source, &place);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("/05-other.conf comes before it"), "{text}");
        assert_ne!(place.metadata().unwrap().ino(), inode);
        assert_eq!(
            bin.names(),
            ["05-other.conf", "10-flannel.conflist", "cni-conf.json"]
        );
    }
}

#[test]
fn install_conf_when_it_cannot_be_done_says_why_and_leaves_what_is_there() {
    let bin = Bin::new();
    let (source, place) = (bin.path("cni-conf.json"), bin.path("10-flannel.conflist"));
    std::fs::write(&place, "{}").unwrap();
    let absent = install_conf(&bin, true, &source, &place);
    assert_eq!(
        (absent.0, absent.1.contains("there is no ")),
        (1, true),
        "{}",
        absent.1
    );
    for (text, word) in [
        ("", "is no JSON:"),
        ("{", "is no JSON:"),
        ("[]", "is no JSON object"),
    ] {
        std::fs::write(&source, text).unwrap();
        let (code, said) = install_conf(&bin, true, &source, &place);
        assert_eq!((code, said.contains(word)), (1, true), "{said}");
        assert_eq!(std::fs::read(&place).unwrap(), b"{}");
    }
    std::fs::write(&source, "{\"a\": 1}").unwrap();
    let folder = bin.path("folder.conflist");
    std::fs::create_dir(&folder).unwrap();
    assert_eq!(install_conf(&bin, true, &source, &folder).0, 1);
    // A FIFO that nobody writes to is waited for by nobody.
    let fifo = bin.path("fifo.conflist");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let (code, said) = install_conf(&bin, true, &source, &fifo);
    assert_eq!(
        (code, said.contains("/fifo.conflist is written\n")),
        (0, true),
        "{said}"
    );
    assert!(fifo.symlink_metadata().unwrap().is_file());
    let mut command = Command::new(executable("flannelctl"));
    let wrong = command.args(["cni", "install-conf", "one"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn conf_when_something_else_than_a_file_is_in_its_place_ends_at_once_and_leaves_it() {
    let bin = Bin::new();
    assert_eq!(bin.cni(&["install", "--all"]).0, 0);
    let folder = bin.folder.path().join("net.d");
    std::fs::create_dir_all(&folder).unwrap();
    let place = folder.join("10-flannel.conflist");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let word = place.to_str().unwrap();
    for options in [
        &["conf", "--write", word][..],
        &["conf", "--write", word, "--replace"],
    ] {
        let (code, text) = bin.cni(options);
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains(word) && text.contains("not a regular file"),
            "{text}"
        );
    }
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(
        &place.metadata().unwrap().file_type()
    ));
    // Nor does one in a plugin's place hang the installation.
    let plugin = bin.path("flannel");
    std::fs::remove_file(&plugin).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &plugin, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (code, text) = bin.cni(&["install"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("not a regular file"), "{text}");
}

/// libcni takes the highest version offered that it knows itself, and never asks the plugins.
#[test]
fn conf_when_gos_portmap_of_debian_is_beside_ours_offers_no_version_that_it_does_not_speak() {
    let bin = Bin::new();
    std::fs::copy(format!("{GO_PLUGINS}/portmap"), bin.path("portmap")).unwrap();
    assert_eq!(bin.cni(&["install"]).0, 0);
    let conf = |arguments: &[&str]| {
        let output = bin.command(arguments).output().unwrap();
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        (
            list["cniVersions"].clone(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (versions, notes) = conf(&["conf", "--all-versions"]);
    assert_eq!(versions, json!(["0.3.1", "0.4.0", "1.0.0"]));
    assert!(notes.contains("portmap does not speak 1.1.0"), "{notes}");
    assert_eq!(conf(&["conf"]), (json!(["0.3.1", "0.4.0"]), String::new()));
    std::fs::write(bin.path("multus"), "").unwrap();
    let (_, notes) = conf(&["conf", "--all-versions"]);
    assert!(
        notes.contains("multus hands results on in the newest version offered"),
        "{notes}"
    );
    assert_eq!(conf(&["conf"]).1, "");
}

/// Thin Multus 4.3 takes the newest version that its own libcni, 1.3, finds in the list, and prints results in it as they are. Its
/// caller's libcni has to read them: 0.8 (containerd 1.5) knows 0.4.0, 1.1 (containerd 1.6 and 1.7) knows 1.0.0.
#[test]
fn shipped_list_when_thin_multus_reads_it_leads_to_results_that_every_runtime_can_read() {
    let list: Value = serde_json::from_str(&shipped()).unwrap();
    for (libcni, knows, reads_versions) in [
        ("0.8", "0.4.0", false),
        ("1.0", "1.0.0", false),
        ("1.1", "1.0.0", false),
        ("1.2", "1.1.0", true),
        ("1.3", "1.1.0", true),
    ] {
        let results = [
            selected(&list, "1.1.0", true),         // Multus 4.3
            selected(&list, "1.0.0", false),        // Multus 3.9 to 4.2
            selected(&list, knows, reads_versions), // the runtime by itself
        ];
        for result in results {
            assert!(result.as_str() <= knows, "libcni {libcni} is handed {result}");
        }
    }
}

/// The version a runtime calls plugins with: `known` is the newest its libcni knows, and whether that reads `cniVersions`.
fn selected(list: &Value, known: &str, reads_versions: bool) -> String {
    let mut offered = vec![list["cniVersion"].as_str().unwrap()];
    if reads_versions {
        offered.extend(
            list["cniVersions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_str().unwrap()),
        );
    }
    // Of versions like these the order of text is that of numbers.
    offered
        .into_iter()
        .filter(|v| *v <= known)
        .max()
        .unwrap()
        .to_owned()
}

/// The list in the hands of a runtime, on a node whose `/run` and `/var/lib` are its own.
struct Runtime {
    node: Node,
    holder: u32,
    list: Value,
    version: String,
}

impl Runtime {
    fn call(&self, plugin: &Value, verb: &str, netns: &str, more: &[(&str, Value)]) -> Value {
        let mut config = plugin.clone();
        config["name"] = self.list["name"].clone();
        config["cniVersion"] = json!(self.version);
        if plugin["capabilities"]["portMappings"] == json!(true) {
            config["runtimeConfig"] =
                json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
        }
        for (name, value) in more {
            config[*name] = value.clone();
        }
        let kind = plugin["type"].as_str().unwrap();
        let mut child = Command::new("nsenter")
            .args(["--target", &self.holder.to_string(), "--mount", "--net"])
            .arg(self.node.path(&format!("bin/{kind}")))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", &self.node.id("pod")),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", &self.node.path("bin")),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.to_string().as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{verb} of {kind}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn plugins(&self) -> Vec<Value> {
        self.list["plugins"].as_array().unwrap().clone()
    }

    fn add(&self, netns: &str) -> Value {
        self.plugins().iter().fold(Value::Null, |previous, plugin| {
            let previous: &[_] = if previous.is_null() {
                &[]
            } else {
                &[("prevResult", previous)]
            };
            self.call(plugin, "ADD", netns, previous)
        })
    }

    fn nat(&self) -> String {
        self.node.on_node(&["iptables-save", "-t", "nat"])
    }

    fn reservations(&self) -> usize {
        let folder = format!("/proc/{}/root/var/lib/cni/networks/cbr0", self.holder);
        let entries = std::fs::read_dir(folder).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .count()
    }
}

#[test]
fn shipped_list_when_used_by_an_old_and_a_new_runtime_gives_pods_addresses_and_ports() {
    let all = conflist::text(conflist::NAME, &conflist::OFFERED).unwrap();
    for (text, known, reads_versions, expected) in [
        (&shipped(), "0.4.0", false, "0.3.1"),
        (&shipped(), "1.1.0", true, "0.4.0"),
        (&all, "1.0.0", false, "0.3.1"),
        (&all, "1.1.0", true, "1.1.0"),
        (&all, "1.2.0", true, "1.1.0"),
    ] {
        let mut node = Node::new();
        let list: Value = serde_json::from_str(text).unwrap();
        let version = selected(&list, known, reads_versions);
        assert_eq!(version, expected);
        let holder = node.process(&format!(
            "exec nsenter --net=/run/netns/{} unshare --mount --propagation private bash -c 'mount -t tmpfs none /var/lib && mount -t tmpfs none /run && mkdir /run/flannel && cp {} /run/flannel/subnet.env && echo ready && exec sleep 600'",
            node.name,
            node.path("subnet.env")
        ));
        let pod = node.process("exec unshare --net bash -c 'echo ready; exec sleep 600'");
        let netns = format!("/proc/{pod}/ns/net");
        let runtime = Runtime {
            node,
            holder,
            list,
            version,
        };
        let result = runtime.add(&netns);
        let address = result["ips"][0]["address"].as_str().unwrap();
        assert!(address.starts_with(&runtime.node.subnet), "{result}");
        assert!(runtime.nat().contains(":80"), "{}", runtime.nat());
        assert_eq!(runtime.reservations(), 2);
        let plugins = runtime.plugins();
        if expected == "1.1.0" {
            for plugin in &plugins {
                runtime.call(plugin, "STATUS", "", &[]);
                runtime.call(plugin, "CHECK", &netns, &[("prevResult", result.clone())]);
                let valid = json!([{ "containerID": runtime.node.id("pod"), "ifname": "eth0" }]);
                runtime.call(plugin, "GC", "", &[("cni.dev/valid-attachments", valid)]);
            }
            assert_eq!(runtime.reservations(), 2);
        }
        for plugin in plugins.iter().rev() {
            runtime.call(plugin, "DEL", &netns, &[("prevResult", result.clone())]);
        }
        assert_eq!(runtime.reservations(), 0);
        assert!(!runtime.nat().contains("DNAT --to"), "{}", runtime.nat());
    }
}
