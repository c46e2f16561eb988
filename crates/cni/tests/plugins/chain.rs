//! The whole chain in one call of flannel: the state of separate calls, what fails undone, what a DEL needs kept.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::rig::{Answer, Call, GO_PLUGINS, Host, ID, walk};

const DELEGATE: &str = r#","delegate":{"hairpinMode":true,"isDefaultGateway":true}"#;
const CAPABILITIES: &str = r#","capabilities":{"portMappings":true,"bandwidth":true}"#;

/// Capability arguments as a runtime has them for a pod.
fn arguments(with_limits: bool) -> Value {
    let mut all = json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ]});
    if with_limits {
        all["bandwidth"] = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 1_600_000});
    }
    all
}

fn portmap(backend: &str) -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}, "backend": backend})
}

fn bandwidth() -> Value {
    json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})
}

/// flannel's configuration with more fields, as a runtime passes it.
fn outer(host: &Host, arguments: &Value, more: &[(&str, Value)]) -> Value {
    let text = host.config("cbr0", &format!("{DELEGATE}{CAPABILITIES}"));
    let mut config: Value = serde_json::from_str(&text).unwrap();
    if !arguments.is_null() {
        config["runtimeConfig"] = arguments.clone();
    }
    for (name, value) in more {
        config[*name] = value.clone();
    }
    config
}

fn whole(host: &mut Host, verb: &'static str, arguments: &Value, chain: &[Value]) -> Call<'static> {
    let config = outer(host, arguments, &[("chain", json!(chain))]);
    host.call("flannel", verb, config.to_string())
}

/// A configuration as a runtime's library gives it to one plugin of a list.
fn injected(host: &Host, plugin: &Value, arguments: &Value, previous: &Value) -> Value {
    if plugin["type"] == "flannel" {
        let mut config = outer(host, arguments, &[]);
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        return config;
    }
    let mut config = plugin.clone();
    config["name"] = json!("cbr0");
    config["cniVersion"] = json!("1.0.0");
    if !previous.is_null() {
        config["prevResult"] = previous.clone();
    }
    let mut own = json!({});
    for (name, value) in arguments.as_object().unwrap() {
        if plugin["capabilities"][name] == true {
            own[name] = value.clone();
        }
    }
    if own != json!({}) {
        config["runtimeConfig"] = own;
    }
    config
}

/// What a runtime's library does with a list: each plugin called by itself.
fn separately(
    host: &mut Host,
    verb: &'static str,
    arguments: &Value,
    chain: &[Value],
    result: &str,
) -> String {
    let mut plugins = vec![json!({"type": "flannel"})];
    plugins.extend(chain.iter().cloned());
    if verb == "DEL" {
        plugins.reverse();
    }
    let mut text = result.to_owned();
    for plugin in &plugins {
        let previous = serde_json::from_str(&text).unwrap_or(Value::Null);
        let config = injected(host, plugin, arguments, &previous);
        let kind = plugin["type"].as_str().unwrap();
        let call = host.call(kind, verb, config.to_string());
        let answer = host.run(&call).ok();
        if verb == "ADD" {
            text = answer.stdout;
        }
    }
    text
}

fn is_mac(bytes: &[u8]) -> bool {
    bytes.len() == 17
        && bytes.iter().enumerate().all(|(i, b)| match i % 3 {
            2 => *b == b':',
            _ => b.is_ascii_hexdigit(),
        })
}

/// The text with hardware addresses numbered as they come and without the host's own name and folder.
fn normalise(host: &Host, text: &str) -> String {
    let folder = host.folder.path().to_str().unwrap().to_owned();
    let text = text.replace(&folder, "FOLDER").replace(&host.name, "HOST");
    let (mut out, mut seen): (String, Vec<String>) = (String::new(), Vec::new());
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let here = rest.as_bytes().get(..17).filter(|bytes| is_mac(bytes));
        let length = if here.is_some() { 17 } else { first.len_utf8() };
        let (piece, after) = rest.split_at(length);
        if here.is_some() {
            let at = seen.iter().position(|mac| mac == piece).unwrap_or_else(|| {
                seen.push(piece.to_owned());
                seen.len() - 1
            });
            out.push_str(&format!("MAC{at}"));
        } else {
            out.push_str(piece);
        }
        rest = after;
    }
    out
}

/// A tree without fields of these names, and without addresses and routes the kernel makes of hardware addresses.
fn without(value: Value, names: &[&str]) -> Value {
    let of_the_link = |item: &Value| {
        let of = |name: &str| item[name].as_str().unwrap_or_default();
        ["dst", "local"]
            .iter()
            .any(|name| of(name).starts_with("fe80:") || of(name).starts_with("ff00:"))
    };
    match value {
        Value::Object(map) => {
            let kept = map
                .into_iter()
                .filter(|(name, _)| !names.contains(&name.as_str()));
            kept.map(|(name, value)| (name, without(value, names))).collect()
        }
        Value::Array(items) => {
            let kept = items.into_iter().filter(|item| !of_the_link(item));
            kept.map(|item| without(item, names)).collect()
        }
        leaf => leaf,
    }
}

/// Everything that calls leave: links, addresses, routes, sysctls, rules, queues, files.
fn picture(host: &mut Host) -> Vec<(String, String)> {
    host.pod(0);
    let mut seen = Vec::new();
    // What is a matter of time: states, detection of duplicates, timers, counters.
    let moving = [
        "operstate",
        "flags",
        "tentative",
        "valid_life_time",
        "preferred_life_time",
        "packets",
        "bytes",
        "state",
    ];
    let mut tree = |what: &str, text: String| {
        let value: Value = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap(),
        };
        let value = without(value, &moving);
        seen.push((what.to_owned(), serde_json::to_string_pretty(&value).unwrap()));
    };
    for (what, args) in [
        ("addresses", &["-j", "addr"][..]),
        ("routes", &["-j", "route", "show", "table", "all"]),
        ("routes 6", &["-6", "-j", "route", "show", "table", "all"]),
    ] {
        tree(&format!("host {what}"), host.ip(args));
        tree(&format!("pod {what}"), host.pod_ip(0, args));
    }
    tree("ports", host.exec(&["bridge", "-j", "-d", "link"]));
    tree("nftables", host.exec(&["nft", "-j", "list", "ruleset"]));
    tree("queues", host.exec(&["tc", "-j", "qdisc"]));
    let mut text = |what: &str, text: String| seen.push((what.to_owned(), text));
    for link in host.links() {
        let filters = host.exec(&["tc", "filter", "show", "dev", &link, "parent", "ffff:"]);
        text(&format!("filters of {link}"), filters);
    }
    for program in ["iptables-save", "ip6tables-save"] {
        let rules = host.exec(&[program]);
        let rules = rules.lines().filter(|line| !line.starts_with('#'));
        // Without the counters of chains.
        let rules: Vec<&str> = rules.map(|line| line.split(" [").next().unwrap()).collect();
        text(program, rules.join("\n"));
    }
    let sysctls = "cd /proc/sys/net && grep -rs . ipv4 ipv6 | grep -v -e stable_secret -e icmp_ -e tcp_ -e /neigh/ | sort";
    text("host sysctls", host.exec(&["sh", "-c", sysctls]));
    text("pod sysctls", host.pod_exec(0, &["sh", "-c", sysctls]));
    let mut files = Vec::new();
    for folder in ["networks", "flannel"] {
        walk(host.path(folder).as_ref(), &mut |path| {
            files.push(path.to_owned())
        });
    }
    files.sort();
    // What a chain's own DEL needs is the one thing there is more of.
    for path in files.iter().filter(|path| !path.contains("/eth0:")) {
        let content = std::fs::read(path).map_or_else(
            |_| "a folder".into(),
            |b| String::from_utf8_lossy(&b).into_owned(),
        );
        text(path, content);
    }
    seen.into_iter()
        .map(|(what, text)| (normalise(host, &what), normalise(host, &text)))
        .collect()
}

fn assert_same(one: &[(String, String)], other: &[(String, String)], when: &str) {
    let names = |picture: &[(String, String)]| -> Vec<String> {
        picture.iter().map(|(what, _)| what.clone()).collect()
    };
    assert_eq!(names(one), names(other), "{when}");
    for ((what, one), (_, other)) in one.iter().zip(other) {
        assert_eq!(one, other, "{when}: {what}");
    }
}

fn assert_gone(host: &mut Host, when: &str) {
    let rules = host.exec(&["nft", "list", "ruleset"]);
    assert!(
        !rules.contains(ID) && !rules.contains("CNI-DN-"),
        "{when}: {rules}"
    );
    let links = host.links();
    let left: Vec<_> = links.iter().filter(|l| *l != "cni0").collect();
    assert!(left.is_empty(), "{when}: {left:?}");
    assert_eq!(host.pod_links(0), Vec::<String>::new(), "{when}");
    assert_eq!(host.reservations("cbr0"), [], "{when}");
    assert_eq!(host.saved(), Vec::<String>::new(), "{when}");
}

#[test]
fn state_when_the_chain_is_one_call_is_that_of_separate_calls() {
    for case in 0..8 {
        let backend = if case & 1 == 0 { "iptables" } else { "nftables" };
        let (dual, with_limits) = (case & 2 != 0, case & 4 != 0);
        let case = format!("{backend}, dual stack {dual}, limits {with_limits}");
        let arguments = arguments(with_limits);
        let chain = [portmap(backend), bandwidth()];
        let mut hosts = [Host::new(), Host::new()];
        if dual {
            hosts.iter().for_each(Host::dual_stack);
        }
        let [one, other] = &mut hosts;
        let before = [picture(one), picture(other)];
        assert_same(&before[0], &before[1], &format!("{case}, before"));
        let separate = separately(one, "ADD", &arguments, &chain, "");
        let call = whole(other, "ADD", &arguments, &chain);
        let added = other.run(&call).ok();
        assert_eq!(
            normalise(one, &separate),
            normalise(other, &added.stdout),
            "{case}"
        );
        let interfaces = added.json()["interfaces"].as_array().unwrap().len();
        assert_eq!(interfaces, if with_limits { 4 } else { 3 }, "{case}");
        let seen = picture(one);
        assert_same(&seen, &picture(other), &format!("{case}, after ADD"));
        // What there is to be the same.
        for (what, part, there) in [
            ("nftables", "8080", true),
            ("iptables-save", "--dport 53 -j DNAT", backend == "iptables"),
            (
                "ip6tables-save",
                "--dport 8080 -j DNAT",
                backend == "iptables" && dual,
            ),
            ("host sysctls", "ipv4/conf/cni0/route_localnet:1", true),
            ("queues", "tbf", with_limits),
            ("filters of veth", "mirred", with_limits),
        ] {
            let found = seen
                .iter()
                .any(|(name, text)| name.starts_with(what) && text.contains(part));
            assert_eq!(found, there, "{case}: {what} with {part}");
        }

        separately(one, "DEL", &arguments, &chain, &separate);
        let mut del = outer(other, &arguments, &[("chain", json!(chain))]);
        del["prevResult"] = added.json();
        let del = other.call("flannel", "DEL", del.to_string());
        assert_eq!(other.run(&del).ok().stdout, "");
        assert_same(&picture(one), &picture(other), &format!("{case}, after DEL"));
        for host in &mut hosts {
            assert_gone(host, &case);
        }
        assert_eq!(hosts[1].run(&del).status, 0, "{case}: twice");
    }
}

/// A plugin of a chain that writes down how it is called and hands the previous result on, unless `more` ends it before.
fn recorder(host: &Host, name: &str, more: &str) -> Value {
    let file = host.folder.path().join("bin").join(name);
    let script = format!(
        "#!/bin/sh\nread -r config\necho \"{name} $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS\" >> {log}\n\
         echo \"$config\" >> {log}.{name}.$CNI_COMMAND\n{more}\n\
         [ $CNI_COMMAND = ADD ] && echo \"$config\" | sed -e 's/.*\"prevResult\"://' -e 's/,\"runtimeConfig\":.*//' -e 's/,\"type\":.*//'\nexit 0\n",
        log = host.path("log"),
    );
    // A link to our own executable may be in its place.
    let _ = std::fs::remove_file(&file);
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    json!({"type": name})
}

/// The calls recorders have seen, as `name VERB`.
fn seen(host: &Host) -> Vec<String> {
    let log = std::fs::read_to_string(host.path("log")).unwrap_or_default();
    let short = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    log.lines().map(short).collect()
}

/// The last configuration a recorder was given with a verb.
fn told(host: &Host, name: &str, verb: &str) -> Value {
    let all = host.read(&format!("log.{name}.{verb}"));
    serde_json::from_str(all.lines().last().unwrap()).unwrap()
}

const FAIL: &str = r#"echo '{"code":42,"msg":"no","details":"why"}'; exit 1"#;

#[test]
fn other_plugins_when_in_a_chain_are_told_what_a_runtime_would_tell_them() {
    let mut host = Host::new();
    let arguments = arguments(true);
    let mut second = recorder(&host, "second", "");
    second["own"] = json!({"big": 1_000_000_000_000_i64, "text": "<&>"});
    second["capabilities"] = json!({"portMappings": true, "bandwidth": false, "mac": true});
    let chain = [
        recorder(&host, "first", ""),
        bandwidth(),
        second,
        recorder(&host, "third", ""),
    ];
    let add = whole(&mut host, "ADD", &arguments, &chain);
    let added = host.run(&add).ok().json();
    assert_eq!(seen(&host), ["first ADD", "second ADD", "third ADD"]);
    let first = told(&host, "first", "ADD")["prevResult"].clone();
    assert_eq!(first["interfaces"].as_array().unwrap().len(), 3);
    let previous = told(&host, "second", "ADD")["prevResult"].clone();
    assert_eq!(previous, added, "with the device of bandwidth");
    let wanted = injected(&host, &chain[2], &arguments, &added);
    assert_eq!(told(&host, "second", "ADD"), wanted);
    assert_eq!(
        wanted["runtimeConfig"],
        json!({"portMappings": arguments["portMappings"]})
    );
    assert_eq!(
        told(&host, "first", "ADD"),
        injected(&host, &chain[0], &arguments, &first)
    );

    // Neither previous result nor arguments come with it: both are known.
    let del = whole(&mut host, "DEL", &Value::Null, &chain);
    host.run(&del).ok();
    assert_eq!(seen(&host)[3..], ["third DEL", "second DEL", "first DEL"]);
    assert_eq!(told(&host, "second", "DEL"), wanted);
    let log = host.read("log");
    let netns = host.pod(0);
    assert!(
        log.lines()
            .all(|line| line.ends_with(&format!(" {ID} eth0 {netns}"))),
        "{log}"
    );
    assert_gone(&mut host, "after DEL");
}

#[test]
fn versions_when_old_are_followed_in_the_chain() {
    for (version, shape, del_knows) in [
        ("0.2.0", "ip4", false),
        ("0.3.1", "ips", false),
        ("0.4.0", "ips", true),
    ] {
        let mut host = Host::new();
        let chain = [portmap("iptables"), recorder(&host, "last", "")];
        let mut config = outer(&host, &arguments(false), &[("chain", json!(chain))]);
        config["cniVersion"] = json!(version);
        let add = host.call("flannel", "ADD", config.to_string());
        let result = host.run(&add).ok().json();
        assert_eq!(result["cniVersion"], version);
        assert!(!result[shape].is_null(), "{result}");
        assert_eq!(told(&host, "last", "ADD")["prevResult"], result);
        let del = host.call("flannel", "DEL", config.to_string());
        host.run(&del).ok();
        assert_eq!(
            !told(&host, "last", "DEL")["prevResult"].is_null(),
            del_knows,
            "{version}"
        );
        assert_gone(&mut host, version);
    }
    // What a plugin does not speak is refused, and undone.
    let mut host = Host::new();
    let mut config = outer(
        &host,
        &arguments(true),
        &[("chain", json!([portmap("iptables"), bandwidth()]))],
    );
    config["cniVersion"] = json!("0.2.0");
    let add = host.call("flannel", "ADD", config.to_string());
    let failure = host.run(&add).failure();
    assert_eq!(
        failure,
        (
            1,
            "plugin type=\"bandwidth\" failed (add): incompatible CNI versions".to_owned()
        )
    );
    assert_gone(&mut host, "refused");
}

#[test]
fn add_when_a_plugin_fails_undoes_all_of_it_and_names_the_plugin() {
    for at in 0..=2 {
        let mut host = Host::new();
        let mut chain = vec![portmap("iptables"), bandwidth()];
        let fails = "[ $CNI_COMMAND = ADD ] && { echo half; ip link add half type dummy; } >/dev/null\n";
        let fails = format!(
            "{fails}[ $CNI_COMMAND = DEL ] && ip link del half\n[ $CNI_COMMAND = ADD ] && {{ {FAIL}; }}"
        );
        chain.insert(at, recorder(&host, "broken", &fails));
        let add = whole(&mut host, "ADD", &arguments(true), &chain);
        let answer = host.run(&add);
        let wanted = json!({"code": 42, "msg": "plugin type=\"broken\" failed (add): no", "details": "why"});
        assert_eq!((answer.status, answer.json()), (1, wanted));
        assert_eq!(seen(&host), ["broken ADD", "broken DEL"]);
        assert_gone(&mut host, &format!("broken at {at}"));
        let del = whole(&mut host, "DEL", &arguments(true), &chain);
        host.run(&del).ok();
    }
    // One of our own that fails, and one that is nowhere.
    let mut host = Host::new();
    let mut wrong = portmap("iptables");
    wrong["conditionsV4"] = json!(["-m", "nonsense"]);
    let nowhere = json!({"type": "nowhere", "name": "n"});
    for (plugin, start) in [
        (wrong, "plugin type=\"portmap\" failed (add): iptables-restore "),
        (
            nowhere,
            "plugin type=\"nowhere\" name=\"n\" failed (add): failed to find plugin \"nowhere\" in path [",
        ),
    ] {
        let found = plugin["type"] == "portmap";
        let add = whole(&mut host, "ADD", &arguments(true), &[bandwidth(), plugin]);
        let (_, msg) = host.run(&add).failure();
        assert!(msg.starts_with(start), "{msg}");
        if found {
            assert_gone(&mut host, start);
        } else {
            // Whatever it would have done cannot be undone, so there is something to be deleted.
            assert!(!host.saved().is_empty());
            let del = whole(&mut host, "DEL", &arguments(true), &[bandwidth()]);
            host.run(&del).failure();
            recorder(&host, "nowhere", "");
            host.run(&del).ok();
            assert_gone(&mut host, start);
        }
    }
}

#[test]
fn del_when_one_plugin_fails_tries_all_others_and_keeps_what_the_next_one_needs() {
    let mut host = Host::new();
    let stuck = format!(
        "[ $CNI_COMMAND = DEL ] && [ -e {} ] && {{ {FAIL}; }}",
        host.path("stuck")
    );
    let chain = [
        recorder(&host, "first", ""),
        portmap("iptables"),
        recorder(&host, "second", &stuck),
        bandwidth(),
    ];
    let add = whole(&mut host, "ADD", &arguments(true), &chain);
    host.run(&add).ok();
    let saved = host.saved();
    std::fs::write(host.path("stuck"), "").unwrap();
    // The configuration has changed meanwhile and the call brings nothing.
    let del = whole(&mut host, "DEL", &Value::Null, &[]);
    for _ in 0..2 {
        let (code, msg) = host.run(&del).failure();
        assert_eq!(
            (code, msg.as_str()),
            (42, "plugin type=\"second\" failed (delete): no")
        );
        assert_eq!(host.saved(), saved);
        assert_eq!(host.links(), ["cni0"]);
        assert!(!host.nat().iter().any(|rule| rule.contains("CNI-DN-")));
        assert_eq!(host.reservations("cbr0"), []);
        assert_eq!(seen(&host).last().unwrap(), "first DEL");
    }
    std::fs::remove_file(host.path("stuck")).unwrap();
    host.remove_pod(0);
    host.run(&del).ok();
    host.pod(0);
    assert_gone(&mut host, "in the end");
    // Nothing is known of it any more.
    host.run(&del).ok();
    assert_eq!(seen(&host).iter().filter(|call| *call == "second DEL").count(), 3);
}

#[test]
fn del_when_nothing_was_saved_does_what_the_call_says() {
    let mut host = Host::new();
    let chain = [portmap("iptables"), bandwidth(), recorder(&host, "last", "")];
    separately(&mut host, "ADD", &arguments(true), &chain, "");
    let del = whole(&mut host, "DEL", &arguments(true), &chain);
    host.run(&del).ok();
    assert_gone(&mut host, "made by separate calls");
    host.run(&del).ok();
    assert_eq!(seen(&host), ["last ADD", "last DEL", "last DEL"]);
    assert!(told(&host, "last", "DEL")["prevResult"].is_null());
    std::fs::remove_dir_all(host.path("flannel")).unwrap();
    host.run(&del).ok();
    assert_eq!(seen(&host).len(), 4);
}

#[test]
fn separate_calls_of_go_plugins_when_made_for_a_pod_of_one_call_remove_it() {
    for backend in ["iptables", "nftables"] {
        let mut host = Host::new();
        let chain = [portmap(backend), bandwidth()];
        let add = whole(&mut host, "ADD", &arguments(true), &chain);
        let result = host.run(&add).ok().json();
        let legacy = host.read(&format!("flannel/{ID}"));
        assert_eq!(legacy, host.read(&format!("flannel/.v2/{ID}/eth0")));
        assert!(!legacy.contains("chain"), "{legacy}");
        for plugin in chain.iter().rev() {
            let config = injected(&host, plugin, &arguments(true), &result);
            let mut del = host.call(plugin["type"].as_str().unwrap(), "DEL", config.to_string());
            // Debian's portmap is older than nftables rules.
            if backend == "iptables" || plugin["type"] == "bandwidth" {
                del.program = format!("{GO_PLUGINS}/{}", plugin["type"].as_str().unwrap()).into();
            }
            host.run(&del).ok();
        }
        let rules = host.exec(&["nft", "list", "ruleset"]);
        assert!(!rules.contains(ID) && !rules.contains("CNI-DN-"), "{rules}");
        assert!(!host.links().iter().any(|link| link.starts_with("bwp")));
        // What Go's flannel does with its file: the delegate's DEL, and the file goes.
        let mut del = host.call("bridge", "DEL", legacy);
        del.program = format!("{GO_PLUGINS}/bridge").into();
        del.path = GO_PLUGINS.to_owned();
        host.run(&del).ok();
        std::fs::remove_file(host.path(&format!("flannel/{ID}"))).unwrap();
        assert_eq!(host.reservations("cbr0"), []);
        // The rest goes with the next DEL of ours, or GC.
        let del = whole(&mut host, "DEL", &Value::Null, &[]);
        host.run(&del).ok();
        assert_gone(&mut host, backend);
    }
}

#[test]
fn own_plugins_when_told_to_or_by_an_unknown_key_leave_the_work_to_those_on_the_path() {
    let runs = |more: &[(&str, Value)],
                own: &[(&str, Value)],
                variables: &[(&'static str, &'static str)]|
     -> Vec<String> {
        let mut host = Host::new();
        let mut plugin = recorder(&host, "portmap", "");
        for (name, value) in own {
            plugin[*name] = value.clone();
        }
        let chain = [plugin, bandwidth()];
        let mut more = more.to_vec();
        more.push(("chain", json!(chain)));
        let config = outer(&host, &arguments(true), &more);
        for verb in ["ADD", "DEL"] {
            let mut call = host.call("flannel", verb, config.to_string());
            call.variables = variables.to_vec();
            host.run(&call).ok();
        }
        assert_gone(&mut host, "either way");
        seen(&host)
    };
    let (none, both) = (Vec::<String>::new(), ["portmap ADD", "portmap DEL"]);
    assert_eq!(
        runs(&[], &[("snat", json!(false)), ("capabilities", json!({}))], &[]),
        none
    );
    assert_eq!(runs(&[], &[("new", json!(1))], &[]), both);
    assert_eq!(runs(&[("nativeDelegate", json!(false))], &[], &[]), both);
    assert_eq!(runs(&[], &[], &[("FLANNEL_CNI_EXEC", "1")]), both);
    // An unknown key where there is no other plugin: ours after all.
    let mut host = Host::new();
    std::fs::remove_file(host.path("bin/portmap")).unwrap();
    let mut plugin = portmap("iptables");
    plugin["new"] = json!(1);
    let add = whole(&mut host, "ADD", &arguments(false), std::slice::from_ref(&plugin));
    host.run(&add).ok();
    assert!(host.nat().iter().any(|rule| rule.contains("CNI-DN-")));
    let del = whole(&mut host, "DEL", &arguments(false), &[plugin]);
    host.run(&del).ok();
    assert_gone(&mut host, "ours after all");
}

#[test]
fn check_when_something_of_the_chain_is_missing_names_the_plugin() {
    let mut host = Host::new();
    let chain = [portmap("iptables"), bandwidth(), recorder(&host, "last", "")];
    let add = whole(&mut host, "ADD", &arguments(true), &chain);
    let result = host.run(&add).ok().json();
    let mut config = outer(&host, &arguments(true), &[("chain", json!(chain))]);
    config["prevResult"] = result.clone();
    let check = host.call("flannel", "CHECK", config.to_string());
    host.run(&check).ok();
    assert_eq!(told(&host, "last", "CHECK")["prevResult"], result);
    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    host.exec(&["tc", "qdisc", "del", "dev", veth, "root"]);
    let (_, msg) = host.run(&check).failure();
    assert!(
        msg.starts_with("plugin type=\"bandwidth\" failed (check): "),
        "{msg}"
    );
    host.exec(&["iptables", "-t", "nat", "-F", "CNI-HOSTPORT-DNAT"]);
    let (_, msg) = host.run(&check).failure();
    assert!(
        msg.starts_with("plugin type=\"portmap\" failed (check): "),
        "{msg}"
    );
    host.exec(&["ip", "link", "del", veth]);
    let (_, msg) = host.run(&check).failure();
    assert!(
        !msg.starts_with("plugin type="),
        "flannel's own goes first: {msg}"
    );
    let del = whole(&mut host, "DEL", &arguments(true), &chain);
    host.run(&del).ok();
    assert_gone(&mut host, "afterwards");
}

#[test]
fn status_and_gc_when_asked_reach_every_plugin() {
    let mut host = Host::new();
    let busy = format!(
        "[ $CNI_COMMAND = STATUS ] && [ -e {} ] && {{ {FAIL}; }}",
        host.path("busy")
    );
    let chain = [
        portmap("iptables"),
        recorder(&host, "first", &busy),
        bandwidth(),
        recorder(&host, "second", ""),
    ];
    let ask = |host: &mut Host, verb: &'static str, more: &[(&str, Value)]| -> Answer {
        let mut more = more.to_vec();
        more.extend([("chain", json!(chain)), ("cniVersion", json!("1.1.0"))]);
        let config = outer(host, &Value::Null, &more);
        let mut call = host.call("flannel", verb, config.to_string());
        (call.container, call.ifname, call.netns) = ("", "", String::new());
        host.run(&call)
    };
    ask(&mut host, "STATUS", &[]).ok();
    assert_eq!(seen(&host), ["first STATUS", "second STATUS"]);
    assert_eq!(
        told(&host, "second", "STATUS"),
        json!({"type": "second", "name": "cbr0", "cniVersion": "1.1.0"})
    );
    std::fs::write(host.path("busy"), "").unwrap();
    let failure = ask(&mut host, "STATUS", &[]).failure();
    assert_eq!(
        failure,
        (50, "plugin type=\"first\" failed (status): no".to_owned())
    );
    std::fs::remove_file(host.path("bin/first")).unwrap();
    assert_eq!(ask(&mut host, "STATUS", &[]).failure().0, 50);
    recorder(&host, "first", "");

    // Two pods; the runtime knows of one.
    for (i, id) in ["gone", "alive"].into_iter().enumerate() {
        let mut arguments = arguments(true);
        for mapping in arguments["portMappings"].as_array_mut().unwrap() {
            mapping["hostPort"] = json!(mapping["hostPort"].as_u64().unwrap() + i as u64);
        }
        let netns = host.pod(i);
        let add = Call {
            container: id,
            netns,
            ..whole(&mut host, "ADD", &arguments, &chain)
        };
        host.run(&add).ok();
    }
    // Its container is gone, and so is its link.
    host.remove_pod(0);
    let gone = host.path("flannel/.v2/gone/eth0");
    assert!(std::fs::exists(&gone).unwrap());
    host.exec(&["touch", "-d", "1 hour ago", &gone]);
    std::fs::remove_file(host.path("log")).unwrap();
    let valid = json!([{"containerID": "alive", "ifname": "eth0"}]);
    ask(&mut host, "GC", &[("cni.dev/valid-attachments", valid.clone())]).ok();
    assert_eq!(seen(&host), ["second DEL", "first DEL", "first GC", "second GC"]);
    assert!(
        host.read("log").starts_with("second DEL gone eth0 \n"),
        "{}",
        host.read("log")
    );
    assert_eq!(told(&host, "first", "GC")["cni.dev/valid-attachments"], valid);
    let rules = host.nat().join("\n");
    assert!(!rules.contains("\"gone") && rules.contains("alive"), "{rules}");
    let devices = host.links().iter().filter(|link| link.starts_with("bwp")).count();
    assert_eq!(devices, 1);
    let saved = host.saved();
    assert!(!saved.iter().any(|path| path.contains("gone")), "{saved:?}");
}

#[test]
fn attachments_when_two_of_a_container_have_chains_are_deleted_one_by_one() {
    for order in [["eth0", "net1"], ["net1", "eth0"]] {
        let mut host = Host::new();
        let chain = [bandwidth(), recorder(&host, "last", "")];
        for ifname in ["eth0", "net1"] {
            let add = Call {
                ifname,
                ..whole(&mut host, "ADD", &arguments(true), &chain)
            };
            host.run(&add).ok();
        }
        for (ifname, left) in [(order[0], 1), (order[1], 0)] {
            let del = Call {
                ifname,
                ..whole(&mut host, "DEL", &Value::Null, &[])
            };
            host.run(&del).ok();
            let devices = host.links().iter().filter(|link| link.starts_with("bwp")).count();
            assert_eq!(devices, left, "{order:?}");
            assert_eq!(host.reservations("cbr0").len(), left);
        }
        assert_gone(&mut host, "both");
    }
}

#[test]
fn add_when_made_again_keeps_the_chain_of_the_first_until_it_works() {
    let mut host = Host::new();
    let chain = [portmap("iptables"), bandwidth()];
    let add = whole(&mut host, "ADD", &arguments(true), &chain);
    host.run(&add).ok();
    let before = (host.nat(), host.links(), picture(&mut host));
    let path = format!("flannel/.v2/{ID}/eth0:chain");
    let saved = host.read(&path);
    let mut others = arguments(false);
    others["portMappings"][0]["hostPort"] = json!(9090);
    let again = whole(&mut host, "ADD", &others, &chain);
    host.run(&again).failure();
    assert_eq!((host.nat(), host.links(), picture(&mut host)), before);
    assert_eq!(host.read(&path), saved);
    // The link and the address are lost, the container's id and its saved state are the old ones.
    host.exec(&["ip", "link", "del", &before.1[1]]);
    std::fs::remove_dir_all(host.path("networks")).unwrap();
    host.run(&again).ok();
    assert!(host.read(&path).contains("9090"));
    assert!(
        !host.exists(&path.replace("chain", "result")),
        "without limits there is no later result"
    );
    let rules = host.nat().join("\n");
    assert!(rules.contains("9090") && !rules.contains("8080"), "{rules}");
    let del = whole(&mut host, "DEL", &Value::Null, &[]);
    host.run(&del).ok();
    assert_gone(&mut host, "after both");
}

#[test]
fn go_plugins_when_in_a_chain_do_their_work() {
    let mut host = Host::new();
    let tuning = json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}, "mtu": 1300});
    let chain = [portmap("iptables"), tuning];
    let mut calls = ["ADD", "CHECK", "DEL"].map(|verb| {
        let config = outer(&host, &arguments(false), &[("chain", json!(chain))]);
        let mut call = host.call("flannel", verb, config.to_string());
        call.path = format!("{}:{GO_PLUGINS}", call.path);
        call
    });
    let result = host.run(&calls[0]).ok().json();
    assert_eq!(
        host.pod_exec(0, &["cat", "/proc/sys/net/core/somaxconn"]),
        "512\n"
    );
    assert!(host.pod_ip(0, &["link", "show", "eth0"]).contains(" mtu 1300 "));
    let mut config: Value = serde_json::from_str(&calls[1].stdin).unwrap();
    config["prevResult"] = result;
    calls[1].stdin = config.to_string();
    host.run(&calls[1]).ok();
    host.pod_exec(0, &["ip", "link", "set", "eth0", "mtu", "1200"]);
    let (_, msg) = host.run(&calls[1]).failure();
    assert!(
        msg.starts_with("plugin type=\"tuning\" failed (check): "),
        "{msg}"
    );
    host.run(&calls[2]).ok();
    assert_gone(&mut host, "with tuning");
}

/// Programs executed by a call, itself left out.
fn programs(host: &Host, call: &Call<'_>) -> Vec<String> {
    let (file, trace) = (host.folder.path().join("tracer"), host.path("trace"));
    let program = call.program.display();
    let script = format!("#!/bin/sh\nexec strace -f -qq -e trace=execve -o {trace} {program}\n");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    host.run(&Call {
        program: file,
        ..call.clone()
    })
    .ok();
    let trace = host.read("trace");
    let done = trace
        .lines()
        .filter(|line| line.contains("execve(") && line.ends_with(" = 0"));
    let names = done.map(|line| {
        line.split('"')
            .nth(1)
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned()
    });
    names.skip(1).collect()
}

#[test]
fn programs_when_a_pod_has_ports_and_limits_are_one_of_the_firewall_a_family() {
    for (backend, dual, wanted) in [
        ("iptables", false, &["iptables-restore"][..]),
        ("iptables", true, &["iptables-restore", "ip6tables-restore"]),
        ("nftables", false, &["nft"]),
        ("nftables", true, &["nft"]),
    ] {
        let mut host = Host::new();
        if dual {
            host.dual_stack();
        }
        let chain = [portmap(backend), bandwidth()];
        let add = whole(&mut host, "ADD", &arguments(true), &chain);
        let del = whole(&mut host, "DEL", &arguments(true), &chain);
        // The chains that all pods share are there on a node that has seen ports before.
        host.run(&add).ok();
        host.run(&del).ok();
        assert_eq!(programs(&host, &add), wanted, "{backend} {dual} ADD");
        assert_eq!(programs(&host, &del), wanted, "{backend} {dual} DEL");
        assert_gone(&mut host, backend);
    }
}
