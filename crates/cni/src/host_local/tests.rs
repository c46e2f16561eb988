use super::*;
use crate::call::Environment;
use crate::saved::SavedConfigs;

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Room {
        Room(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A call about five addresses, 10.0.0.2 to 10.0.0.6, unless `more` says otherwise.
    fn call(&self, verb: &str, container: &str, more: &str) -> Call {
        let env = Environment {
            command: verb.into(),
            container_id: container.into(),
            ifname: "eth0".into(),
            ..Environment::default()
        };
        let ranges = match more.contains("subnet") {
            true => "",
            false => r#","ranges":[[{"subnet":"10.0.0.0/29"}]],"routes":[{"dst":"0.0.0.0/0"}]"#,
        };
        let stdin = format!(
            r#"{{"name":"n","cniVersion":"1.1.0","ipam":{{"type":"host-local","dataDir":"{}"{ranges}{more}}}}}"#,
            self.path("networks")
        );
        Call::check(env, stdin.into_bytes()).unwrap()
    }

    fn add(&self, container: &str, more: &str) -> Result<Vec<String>, Failure> {
        let result = add(&self.call("ADD", container, more))?;
        Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
    }

    fn fill(&self) {
        for i in 2..7 {
            assert_eq!(
                self.add(&format!("c{i}"), "").unwrap(),
                [format!("10.0.0.{i}/29")]
            );
        }
    }

    fn held(&self) -> Vec<String> {
        let store = Store::open(&self.path("networks"), "n").unwrap();
        let all = store.unwrap().all().unwrap();
        all.into_values().flatten().map(|ip| ip.to_string()).collect()
    }
}

#[test]
fn attachment_when_added_checked_and_deleted_holds_its_address_meanwhile() {
    let room = Room::new();
    std::fs::write(room.path("resolv"), "nameserver 10.0.0.53\n").unwrap();
    let more = format!(r#","resolvConf":"{}""#, room.path("resolv"));
    let result = add(&room.call("ADD", "c1", &more)).unwrap();
    let ip = &result.ips[0];
    assert_eq!(
        (ip.address.to_string().as_str(), ip.interface),
        ("10.0.0.2/29", None)
    );
    assert_eq!(ip.gateway, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(result.routes[0].dst.to_string(), "0.0.0.0/0");
    assert_eq!(result.dns.nameservers, ["10.0.0.53"]);
    assert_eq!(room.held(), ["10.0.0.2"]);
    check(&room.call("CHECK", "c1", "")).unwrap();
    let other = check(&room.call("CHECK", "c2", "")).unwrap_err();
    assert_eq!(
        other.msg,
        "host-local: Failed to find address added by container c2"
    );
    let again = room.add("c1", "").unwrap_err();
    assert!(
        again
            .msg
            .contains("10.0.0.2 has been allocated to c1, duplicate allocation is not allowed")
    );
    del(&room.call("DEL", "c2", "")).unwrap();
    assert_eq!(room.held(), ["10.0.0.2"]);
    del(&room.call("DEL", "c1", "")).unwrap();
    del(&room.call("DEL", "c1", "")).unwrap();
    assert_eq!(room.held(), Vec::<String>::new());
    assert!(check(&room.call("CHECK", "c1", "")).is_err());
    // Not the one that was just given back.
    assert_eq!(room.add("c1", "").unwrap(), ["10.0.0.3/29"]);
    let nowhere = Room::new();
    assert!(check(&nowhere.call("CHECK", "c1", "")).is_err());
}

#[test]
fn address_when_asked_for_is_given_or_the_refusal_says_who_has_it() {
    let room = Room::new();
    let ask = |container: &str, ip: &str| {
        let mut call = room.call("ADD", container, "");
        call.env.args = format!("IP={ip}");
        add(&call).map(|result| result.ips[0].address.to_string())
    };
    assert_eq!(ask("c1", "10.0.0.5"), Ok("10.0.0.5/29".into()));
    let held = ask("c2", "10.0.0.5").unwrap_err();
    assert_eq!(
        held.msg,
        "failed to allocate for range 0: requested IP address 10.0.0.5 is not available in range set 10.0.0.1-10.0.0.6"
    );
    assert!(lacks_an_address(&held));
    assert!(held.details.starts_with("c1 eth0 has held it for "), "{held}");
    assert!(
        held.details
            .contains(&format!(" in {}: ", room.path("networks/n"))),
        "{held}"
    );
    let gateway = ask("c2", "10.0.0.1").unwrap_err();
    assert!(
        gateway.msg.ends_with("requested ip 10.0.0.1 is subnet's gateway"),
        "{gateway}"
    );
    let outside = ask("c2", "10.9.9.9").unwrap_err();
    assert_eq!(outside.msg, "failed to allocate all requested IPs: 10.9.9.9");
    assert!(!lacks_an_address(&outside));
    assert_eq!(
        room.held(),
        ["10.0.0.5"],
        "what was taken beside it is free again"
    );
    // Where the next one goes on from has not gone back with it.
    assert_eq!(room.add("c3", "").unwrap(), ["10.0.0.2/29"]);
}

#[test]
fn pool_when_exhausted_names_its_holders_and_is_not_available() {
    let room = Room::new();
    let status = || status(&room.call("STATUS", "", ""));
    status().unwrap();
    room.fill();
    let failure = room.add("c7", "").unwrap_err();
    assert!(lacks_an_address(&failure));
    assert_eq!(
        failure.msg,
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6"
    );
    assert_eq!(
        failure.details,
        format!(
            "5 held in {}: 10.0.0.2 by c2 eth0, 10.0.0.3 by c3 eth0, 10.0.0.4 by c4 eth0, 10.0.0.5 by c5 eth0, 10.0.0.6 by c6 eth0; \
             `flannelctl ipam list` shows which are dead, `flannelctl ipam gc` frees those",
            room.path("networks/n")
        )
    );
    let refused = status().unwrap_err();
    assert_eq!(
        (refused.code, refused.msg.as_str()),
        (50, "no IP addresses available in range set: 10.0.0.1-10.0.0.6")
    );
    del(&room.call("DEL", "c4", "")).unwrap();
    status().unwrap();
}

#[test]
fn pool_when_it_has_many_holders_names_some_and_counts_the_others() {
    let room = Room::new();
    let more = r#","subnet":"10.0.0.0/28""#;
    for i in 0..13 {
        room.add(&format!("c{i}"), more).unwrap();
    }
    // What is outside of the range does not count.
    let elsewhere = r#","subnet":"10.7.0.0/29""#;
    room.add("x", elsewhere).unwrap();
    let details = room.add("c99", more).unwrap_err().details;
    assert!(details.starts_with("13 held in "), "{details}");
    assert!(details.contains("10.0.0.6 by c4 eth0 and 8 more; "), "{details}");
    let refused = status(&room.call("STATUS", "", more)).unwrap_err();
    assert_eq!(refused.code, 50);
}

#[test]
fn sets_when_one_has_no_address_left_keep_what_the_other_had() {
    let room = Room::new();
    let both = r#","ranges":[[{"subnet":"10.0.0.0/29"}],[{"subnet":"fd00::/126"}]]"#;
    assert_eq!(room.add("c1", both).unwrap(), ["10.0.0.2/29", "fd00::2/126"]);
    room.add("c2", both).unwrap();
    let failure = room.add("c3", both).unwrap_err();
    assert!(
        failure.msg.starts_with("failed to allocate for range 1: "),
        "{failure}"
    );
    let mut held = room.held();
    held.sort();
    assert_eq!(held, ["10.0.0.2", "10.0.0.3", "fd00::2", "fd00::3"]);
    // One set of two being exhausted is enough.
    assert_eq!(status(&room.call("STATUS", "", both)).unwrap_err().code, 50);
}

#[test]
fn garbage_when_a_list_is_given_is_what_is_not_in_it() {
    let room = Room::new();
    room.fill();
    let gc_with = |list: &str| {
        let mut call = room.call("GC", "", "");
        if let Some(map) = call.config.as_object_mut() {
            let list = serde_json::from_str(list).unwrap();
            map.insert("cni.dev/valid-attachments".into(), list);
        }
        gc(&call).unwrap();
    };
    gc_with("null");
    assert_eq!(room.held().len(), 5, "nothing is known to be garbage");
    gc_with(
        r#"[{"containerID":"c2","ifname":"eth0"},{"containerID":"c5","ifname":"eth0"},{"containerID":"c6","ifname":"net1"}]"#,
    );
    assert_eq!(room.held(), ["10.0.0.2", "10.0.0.5"]);
    gc_with("[]");
    assert_eq!(room.held(), Vec::<String>::new());
    gc(&Room::new().call("GC", "", "")).unwrap();
}

#[test]
fn release_when_it_is_asked_how_many_says_so() {
    let room = Room::new();
    room.fill();
    let release =
        |container: &str| release(&room.path("networks"), "n", &Owner::new(container, "eth0"), &[]).unwrap();
    assert_eq!((release("c2"), release("c2"), release("nobody")), (1, 0, 0));
    assert_eq!(
        super::release(&room.path("none"), "n", &Owner::new("c", ""), &[]).unwrap(),
        0
    );
}

#[test]
fn address_when_a_sibling_network_of_flannels_holds_it_is_not_taken() {
    let room = Room::new();
    let allocate = |container: &str, flannel: Option<&str>| {
        let config = HostLocalConfig::load(&room.call("ADD", container, "")).unwrap();
        let result = allocate(&config, &Owner::new(container, "eth0"), flannel)?;
        Ok::<_, Failure>(result.ips[0].address.addr().to_string())
    };
    let hold = |network: &str, container: &str, ip: &str| {
        std::fs::create_dir_all(room.path(&format!("networks/{network}"))).unwrap();
        let file = room.path(&format!("networks/{network}/{ip}"));
        std::fs::write(file, Owner::new(container, "eth0").content()).unwrap();
    };
    let flannel = room.path("flannel");
    // The folder is made for the lock where there is none.
    assert_eq!(allocate("c0", Some(&flannel)).unwrap(), "10.0.0.2");
    hold("m", "c1", "10.0.0.3");
    hold("m", "c2", "10.0.0.4");
    hold(".m", "c1", "10.0.0.5");
    let saved = SavedConfigs::create(&flannel, "c1", "eth0").unwrap();
    saved.begin(r#"{"name":"m","type":"bridge"}"#).unwrap();
    // Of c2 flannel knows nothing: it is another plugin's.
    assert_eq!(allocate("c3", Some(&flannel)).unwrap(), "10.0.0.4");
    assert_eq!(allocate("c4", None).unwrap(), "10.0.0.5");
    assert_eq!(allocate("c5", Some(&flannel)).unwrap(), "10.0.0.6");
    let failure = allocate("c6", Some(&flannel)).unwrap_err();
    assert!(failure.details.contains("4 held in "), "{failure}");
    assert!(
        failure.details.contains("; 1 in other networks of flannel's; "),
        "{failure}"
    );
    let mut call = room.call("ADD", "c7", "");
    call.env.args = "IP=10.0.0.3".into();
    let config = HostLocalConfig::load(&call).unwrap();
    let asked = super::allocate(&config, &Owner::new("c7", "eth0"), Some(&flannel)).unwrap_err();
    assert!(asked.details.starts_with("c1 eth0 has held it in "), "{asked}");
    assert!(asked.details.contains(&room.path("networks/m")), "{asked}");
}

#[test]
fn time_when_said_is_in_its_largest_unit() {
    let of = |seconds| words_of(Duration::from_secs(seconds));
    assert_eq!((of(119).as_str(), of(120).as_str()), ("119 s", "2 min"));
    assert_eq!((of(7199).as_str(), of(7200).as_str()), ("119 min", "2 h"));
    assert_eq!((of(172_799).as_str(), of(172_800).as_str()), ("47 h", "2 d"));
}
