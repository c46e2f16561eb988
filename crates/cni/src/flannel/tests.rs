use super::*;
use crate::call::Environment;
use crate::flannel::del::Way;
use crate::host_local::store::Store;
use crate::owner::Owner;

/// A node on which a delegate that is no plugin of ours notes its calls and may refuse.
struct Room(tempfile::TempDir);

const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

impl Room {
    fn new() -> Room {
        use std::os::unix::fs::PermissionsExt;
        let room = Room(tempfile::tempdir().unwrap());
        std::fs::write(room.path("subnet.env"), ENV).unwrap();
        let script = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND $(cat)\" >> {0}\ngrep -q $CNI_COMMAND {1} 2>/dev/null && {{ echo '{{\"code\":7,\"msg\":\"no\"}}'; exit 1; }}\n\
             [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\":\"0.4.0\",\"ips\":[{{\"address\":\"10.244.7.2/24\"}}]}}'\nexit 0\n",
            room.path("calls"),
            room.path("refusing")
        );
        let file = room.path("ipvlan");
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        room
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn call(&self, verb: &str, more: &str) -> Call {
        let env = Environment {
            command: verb.into(),
            container_id: "c1".into(),
            netns: "/nonexistent/ns".into(),
            ifname: "eth0".into(),
            path: self.path(""),
            ..Environment::default()
        };
        let delegate = match more.contains("delegate") {
            true => "",
            false => r#","delegate":{"type":"ipvlan"}"#,
        };
        let version = if matches!(verb, "GC" | "STATUS") {
            "1.1.0"
        } else {
            "0.4.0"
        };
        let stdin = format!(
            r#"{{"name":"pods","cniVersion":"{version}","subnetFile":"{}","dataDir":"{}","ipam":{{"dataDir":"{}"}}{delegate}{more}}}"#,
            self.path("subnet.env"),
            self.path("flannel"),
            self.path("networks")
        );
        Call::check(env, stdin.into_bytes()).unwrap()
    }

    fn refuse(&self, verbs: &str) {
        std::fs::write(self.path("refusing"), verbs).unwrap();
    }

    fn verbs(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("calls"));
        text.lines()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    }

    fn saved(&self) -> Saved {
        let saved = SavedConfigs::create(&self.path("flannel"), "c1", "eth0").unwrap();
        saved.load().unwrap()
    }
}

#[test]
fn add_when_the_delegate_works_gives_its_result_and_saves_its_configuration() {
    let room = Room::new();
    let result = add(&room.call("ADD", "")).unwrap();
    assert!(
        result.contains("\"address\": \"10.244.7.2/24\"") && result.contains("\"cniVersion\": \"0.4.0\"")
    );
    let Saved::Own(saved) = room.saved() else {
        panic!("{:?}", room.saved())
    };
    let (kind, config) = read_saved(&saved).unwrap();
    assert_eq!(
        (kind.as_str(), &config["ipam"]["ranges"][0][0]["subnet"]),
        ("ipvlan", &Value::from("10.244.7.0/24"))
    );
    assert_eq!(room.verbs(), ["ADD"]);
    // The mark of the sweep that has followed.
    assert!(std::fs::exists(room.path("subnet.env.swept")).unwrap());
    // Once more, with another configuration: what is saved is the new one.
    add(&room.call("ADD", r#","delegate":{"type":"ipvlan","mtu":1300}"#)).unwrap();
    let Saved::Own(saved) = room.saved() else {
        panic!("{:?}", room.saved())
    };
    assert_eq!(read_saved(&saved).unwrap().1["mtu"], 1300);
}

#[test]
fn add_when_the_delegate_fails_is_undone_and_forgotten_unless_something_may_be_left() {
    let room = Room::new();
    room.refuse("ADD");
    let failure = add(&room.call("ADD", "")).unwrap_err();
    assert_eq!((failure.code, failure.msg.as_str()), (7, "no"));
    assert_eq!(room.verbs(), ["ADD", "DEL"]);
    assert_eq!(room.saved(), Saved::Missing);
    room.refuse("ADD DEL");
    add(&room.call("ADD", "")).unwrap_err();
    assert_eq!(room.verbs(), ["ADD", "DEL"]);
    assert!(matches!(room.saved(), Saved::Own(_)), "a DEL has to try again");
    // What was there before belongs to another ADD, which nobody undoes.
    room.refuse("ADD");
    add(&room.call("ADD", "")).unwrap_err();
    assert_eq!(room.verbs(), ["ADD"]);
    assert!(matches!(room.saved(), Saved::Own(_)));
    // Nor where Go's plugin has made one.
    let room = Room::new();
    std::fs::create_dir(room.path("flannel")).unwrap();
    std::fs::write(room.path("flannel/c1"), "{}").unwrap();
    room.refuse("ADD");
    add(&room.call("ADD", "")).unwrap_err();
    assert_eq!(room.verbs(), ["ADD"]);
    let missing = add(&room.call("ADD", r#","delegate":{"type":"nosuch"}"#)).unwrap_err();
    assert!(
        missing
            .msg
            .starts_with("failed to delegate add: failed to find plugin \"nosuch\""),
        "{missing}"
    );
}

#[test]
fn add_when_what_flanneld_wrote_is_missing_says_so_in_the_words_people_search_for() {
    let room = Room::new();
    std::fs::remove_file(room.path("subnet.env")).unwrap();
    let failure = add(&room.call("ADD", "")).unwrap_err();
    assert_eq!(
        failure.msg,
        format!(
            "failed to load flannel 'subnet.env' file: open {}: no such file or directory. Check the flannel pod log for this node.",
            room.path("subnet.env")
        )
    );
    let wrong = room.call("ADD", r#","delegate":5"#);
    assert!(
        add(&wrong)
            .unwrap_err()
            .msg
            .starts_with("failed to load flannel netconf file: failed to load netconf: delegate is 5")
    );
}

#[test]
fn add_when_a_plugin_after_the_delegate_fails_is_undone_as_a_whole() {
    let room = Room::new();
    let chain = r#","chain":[{"type":"nosuch"}]"#;
    let failure = add(&room.call("ADD", chain)).unwrap_err();
    assert!(
        failure.msg.contains("failed to find plugin \"nosuch\""),
        "{failure}"
    );
    assert_eq!(room.verbs(), ["ADD", "DEL"]);
    // The plugin that is not there could not be called for its DEL either.
    assert!(matches!(room.saved(), Saved::Own(_)));
    let room = Room::new();
    let result = add(&room.call("ADD", r#","chain":[{"type":"ipvlan"}]"#)).unwrap();
    assert!(result.contains("10.244.7.2/24"));
    assert_eq!(room.verbs(), ["ADD", "ADD"]);
}

#[test]
fn check_when_the_attachment_is_known_is_the_delegates_with_the_result() {
    let room = Room::new();
    let previous = r#","prevResult":{"cniVersion":"0.4.0","x":1}"#;
    check(&room.call("CHECK", "")).unwrap();
    assert_eq!(
        room.verbs(),
        Vec::<String>::new(),
        "nothing is known, nothing to be said"
    );
    add(&room.call("ADD", "")).unwrap();
    room.verbs();
    check(&room.call("CHECK", previous)).unwrap();
    let told = std::fs::read_to_string(room.path("calls")).unwrap();
    assert!(
        told.starts_with("CHECK {") && told.contains(r#""prevResult":{"cniVersion":"0.4.0","x":1}"#),
        "{told}"
    );
    room.refuse("CHECK");
    assert_eq!(check(&room.call("CHECK", previous)).unwrap_err().code, 7);
    // Go's file counts where it is of this network; else what an ADD would use now.
    let room = Room::new();
    std::fs::create_dir(room.path("flannel")).unwrap();
    let legacy = |text: &str| std::fs::write(room.path("flannel/c1"), text).unwrap();
    room.refuse("CHECK");
    legacy(r#"{"name":"pods","type":"ipvlan"}"#);
    assert!(check(&room.call("CHECK", "")).is_err());
    legacy(r#"{"name":"others","type":"ipvlan"}"#);
    check(&room.call("CHECK", "")).unwrap();
    assert!(check(&room.call("CHECK", previous)).is_err());
    std::fs::remove_file(room.path("subnet.env")).unwrap();
    check(&room.call("CHECK", previous)).unwrap();
}

#[test]
fn status_when_an_add_could_work_says_nothing_and_else_why_not() {
    let room = Room::new();
    status(&room.call("STATUS", "")).unwrap();
    assert_eq!(room.verbs(), ["STATUS"]);
    room.refuse("STATUS");
    assert_eq!(status(&room.call("STATUS", "")).unwrap_err().code, 50);
    assert_eq!(
        status(&room.call("STATUS", r#","delegate":{"type":5}"#))
            .unwrap_err()
            .code,
        50
    );
    assert_eq!(
        status(&room.call("STATUS", r#","delegate":5"#)).unwrap_err().code,
        50
    );
    room.refuse("-");
    let after = status(&room.call("STATUS", r#","chain":[{"type":"nosuch"}]"#)).unwrap_err();
    assert_eq!(after.code, 50);
    std::fs::remove_file(room.path("subnet.env")).unwrap();
    let missing = status(&room.call("STATUS", "")).unwrap_err();
    assert_eq!((missing.code, missing.details.as_str()), (50, ""));
}

#[test]
fn status_when_the_daemon_has_no_network_for_pods_says_its_reasons() {
    let room = Room::new();
    let ask = |json: &str| {
        let call = room.call("STATUS", "");
        let conf = NetConf::load(&call).unwrap();
        status_told(&call, &conf, Some(serde_json::from_str(json).unwrap()))
    };
    let none = ask(r#"{"network":"none","reasons":["no config","x"]}"#).unwrap_err();
    assert_eq!(
        (none.code, none.msg.as_str()),
        (51, "this host has no place in the flannel network: no config; x")
    );
    let silent = ask(r#"{"network":"none"}"#).unwrap_err();
    assert!(silent.msg.ends_with(": no reason given"), "{silent}");
    assert_eq!(ask(r#"{"network":"unknown","reasons":["x"]}"#), Ok(()));
    assert_eq!(ask(r#"{"network":"member"}"#), Ok(()));
    std::fs::remove_file(room.path("subnet.env")).unwrap();
    let missing = ask(r#"{"network":"unknown","reasons":["waiting"]}"#).unwrap_err();
    assert_eq!(
        (missing.code, missing.details.as_str()),
        (50, "flanneld: waiting")
    );
}

#[test]
fn way_when_a_bridge_and_every_key_are_known_is_this_process() {
    use super::del::way;
    let room = Room::new();
    let of = |kind: &str, config: &str, bridge_is_there: bool| {
        let mut call = room.call("ADD", "");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("bridge"), "").unwrap();
        if bridge_is_there {
            call.env.path = folder.path().to_str().unwrap().to_owned();
        }
        way(&call, kind, &json::parse(config.as_bytes()).unwrap())
    };
    let ipam = r#""ipam":{"type":"host-local","ranges":[],"dataDir":"/x"}"#;
    let known =
        format!(r#"{{"name":"n","bridge":"cni0","vlan":0,"vlanTrunk":[],"macspoofchk":false,{ipam}}}"#);
    assert_eq!(of("bridge", &known, true), Way::Native);
    assert_eq!(of("macvlan", &known, true), Way::Exec);
    for unknown in [
        format!(r#"{{"newKey":1,{ipam}}}"#),
        format!(r#"{{"vlan":7,{ipam}}}"#),
        format!(r#"{{"vlanTrunk":[1],{ipam}}}"#),
        format!(r#"{{"macspoofchk":true,{ipam}}}"#),
        format!(r#"{{"vlan":"x",{ipam}}}"#),
        r#"{"ipam":{"type":"dhcp"}}"#.to_owned(),
        r#"{"ipam":{"type":"host-local","newKey":1}}"#.to_owned(),
        r#"{"name":"n"}"#.to_owned(),
        "[]".to_owned(),
    ] {
        assert_eq!(of("bridge", &unknown, true), Way::Exec, "{unknown}");
        // Ours after all, where there is no other.
        assert_eq!(of("bridge", &unknown, false), Way::Native, "{unknown}");
    }
    let mut forced = room.call("ADD", r#","nativeDelegate":false"#);
    forced.env.path.clear();
    assert_eq!(
        way(&forced, "bridge", &json::parse(known.as_bytes()).unwrap()),
        Way::Exec
    );
}

#[test]
fn saved_configuration_when_read_names_its_plugin_or_is_broken() {
    assert_eq!(read_saved(br#"{"type":"bridge","x":1}"#).unwrap().0, "bridge");
    for broken in [&b""[..], b"{", b"[]", b"{}", br#"{"type":5}"#] {
        assert!(read_saved(broken).is_none(), "{broken:?}");
    }
}

#[test]
fn gos_file_when_its_network_has_other_interfaces_of_the_container_alone_is_anothers() {
    use super::del::is_of_another_network;
    let room = Room::new();
    let call = room.call("DEL", "");
    let config = |name: &str| {
        serde_json::json!({"name": name, "cniVersion": "0.4.0",
            "ipam": {"type": "host-local", "dataDir": room.path("networks"), "ranges": [[{"subnet": "10.9.0.0/24"}]]}})
    };
    let hold = |network: &str, ifname: &str, ip: &str| {
        let mut store = Store::create(&room.path("networks"), network).unwrap();
        let candidates = std::iter::once((ip.parse().unwrap(), ()));
        store
            .reserve(&Owner::new("c1", ifname), candidates, |_| false)
            .unwrap();
    };
    assert!(
        !is_of_another_network(&call, &config("others")),
        "nobody has an address there"
    );
    hold("others", "net1", "10.9.0.2");
    assert!(is_of_another_network(&call, &config("others")));
    assert!(!is_of_another_network(&call, &config("pods")), "it is this one");
    hold("others", "eth0", "10.9.0.3");
    assert!(
        !is_of_another_network(&call, &config("others")),
        "this interface has one there as well"
    );
}
