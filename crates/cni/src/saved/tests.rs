use super::*;
use std::os::unix::fs::PermissionsExt;

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Room {
        Room(tempfile::tempdir().unwrap())
    }
    fn dir(&self) -> String {
        self.0.path().join("flannel").to_str().unwrap().to_owned()
    }
    fn state(&self, ifname: &str) -> SavedConfigs {
        SavedConfigs::create(&self.dir(), "c1", ifname).unwrap()
    }
    fn legacy(&self) -> Option<String> {
        std::fs::read_to_string(self.0.path().join("flannel/c1")).ok()
    }
    fn write_legacy(&self, text: &str) {
        std::fs::create_dir_all(self.dir()).unwrap();
        std::fs::write(self.0.path().join("flannel/c1"), text).unwrap();
    }
    fn begin(&self, ifname: &str, text: &str) -> Begun {
        self.state(ifname).begin(text).unwrap()
    }
    /// Loads and forgets, as a DEL does that works.
    fn del(&self, ifname: &str, keep_legacy: bool) -> Saved {
        let saved = self.state(ifname).load().unwrap();
        self.state(ifname).remove(&saved, keep_legacy).unwrap();
        saved
    }
    fn is_empty(&self) -> bool {
        std::fs::read_dir(self.dir()).unwrap().next().is_none()
    }
}

fn own(text: &str) -> Saved {
    Saved::Own(text.as_bytes().to_vec())
}

#[test]
fn state_when_one_attachment_comes_and_goes_is_gos_file_then_nothing() {
    let room = Room::new();
    assert_eq!(room.begin("eth0", "{1}"), Begun::Fresh);
    assert_eq!(room.legacy().as_deref(), Some("{1}"));
    let mode = |path: &str| {
        std::fs::metadata(format!("{}{path}", room.dir()))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode(""), mode("/c1"), mode("/.v2/c1/eth0")),
        (0o700, 0o600, 0o600)
    );
    assert_eq!(room.del("eth0", false), own("{1}"));
    assert!(room.is_empty());
    assert_eq!(room.del("eth0", false), Saved::Missing);
}

#[test]
fn p16_state_when_two_attachments_share_a_container_serves_each_its_own_in_any_order() {
    for order in [["eth0", "net1"], ["net1", "eth0"]] {
        let room = Room::new();
        room.begin("eth0", "{0}");
        room.begin("net1", "{1}");
        assert_eq!(room.legacy().as_deref(), Some("{0}"));
        let text = |ifname| if ifname == "eth0" { "{0}" } else { "{1}" };
        assert_eq!(room.del(order[0], false), own(text(order[0])));
        // What remains for a rolled back plugin is the attachment that remains.
        assert_eq!(room.legacy().as_deref(), Some(text(order[1])));
        // The doubled DEL finds nothing of its own and must not take the other's.
        assert_eq!(room.del(order[0], false), Saved::Missing);
        assert_eq!(room.legacy().as_deref(), Some(text(order[1])));
        assert_eq!(room.del(order[1], false), own(text(order[1])));
        assert!(room.is_empty());
    }
}

#[test]
fn p17_state_when_added_twice_is_kept_until_the_second_has_worked() {
    let room = Room::new();
    room.begin("eth0", "{1}");
    let begun = room.begin("eth0", "{2}");
    assert_eq!(begun, Begun::Repeated);
    assert_eq!(room.legacy().as_deref(), Some("{1}"));
    assert_eq!(room.state("eth0").load().unwrap(), own("{1}"));
    room.state("eth0").commit(&begun, "{2}").unwrap();
    assert_eq!(room.legacy().as_deref(), Some("{2}"));
    assert_eq!(room.del("eth0", false), own("{2}"));
    assert!(room.is_empty());
}

#[test]
fn c9_state_when_go_deleted_what_we_added_is_whole_again_with_the_next_add() {
    let room = Room::new();
    room.begin("eth0", "{1}");
    std::fs::remove_file(room.0.path().join("flannel/c1")).unwrap();
    assert_eq!(room.begin("eth0", "{2}"), Begun::Fresh);
    assert_eq!(
        room.legacy().as_deref(),
        Some("{2}"),
        "what Go's plugin needs for the next change"
    );
    assert_eq!(room.del("eth0", false), own("{2}"));
    assert!(room.is_empty());
}

#[test]
fn c5_state_when_go_made_one_attachment_and_we_the_other_serves_both() {
    for order in [["eth0", "net1"], ["net1", "eth0"]] {
        let room = Room::new();
        room.write_legacy(r#"{"go":0}"#);
        assert_eq!(room.begin("net1", "{1}"), Begun::Fresh);
        assert_eq!(room.legacy().as_deref(), Some(r#"{"go":0}"#));
        for ifname in order {
            let expected = match ifname {
                "eth0" => Saved::Legacy(br#"{"go":0}"#.to_vec()),
                _ => own("{1}"),
            };
            assert_eq!(room.del(ifname, false), expected, "{ifname} of {order:?}");
        }
        assert!(room.is_empty(), "{order:?}");
    }
}

#[test]
fn legacy_when_another_of_gos_attachments_hangs_on_it_is_kept() {
    let room = Room::new();
    room.write_legacy("{}");
    assert_eq!(room.del("net1", true), Saved::Legacy(b"{}".to_vec()));
    assert_eq!(room.del("eth0", false), Saved::Legacy(b"{}".to_vec()));
    assert!(room.is_empty());
}

#[test]
fn legacy_when_broken_is_replaced_by_the_next_add() {
    let room = Room::new();
    room.write_legacy("");
    room.begin("eth0", "{1}");
    assert_eq!(room.legacy().as_deref(), Some("{1}"));
    assert_eq!(room.del("eth0", false), own("{1}"));
    assert!(room.is_empty());
}

#[test]
fn folder_when_it_cannot_be_made_is_named_in_gos_words() {
    let error = |path: &str| SavedConfigs::create(path, "c1", "eth0").unwrap_err().to_string();
    assert_eq!(error("/proc/nope"), "mkdir /proc/nope: no such file or directory");
    assert_eq!(error(""), "mkdir : no such file or directory");
    assert_eq!(error("/dev/null"), "mkdir /dev/null: not a directory");
    let room = Room::new();
    std::fs::create_dir_all(room.dir()).unwrap();
    assert_eq!(
        SavedConfigs::open(&format!("{}/x", room.dir()), "c1", "eth0")
            .unwrap()
            .map(drop),
        None
    );
}

#[test]
fn state_when_attachments_of_a_container_come_and_go_at_once_keeps_each_and_ends_empty() {
    let room = Room::new();
    room.state("eth0");
    std::thread::scope(|scope| {
        for i in 0..4 {
            let room = &room;
            scope.spawn(move || {
                let (ifname, text) = (format!("net{i}"), format!("{{\"i\":{i}}}"));
                for _ in 0..50 {
                    assert_eq!(room.begin(&ifname, &text), Begun::Fresh);
                    assert_eq!(room.del(&ifname, false), own(&text));
                }
            });
        }
    });
    assert!(room.is_empty(), "{:?}", all(&room.dir()));
}

#[test]
fn reservation_when_its_network_is_anothers_is_not_taken_for_one_of_flannels() {
    let room = Room::new();
    let config = |name: &str| format!(r#"{{"name":"{name}","type":"bridge"}}"#);
    let may_know = |container: &str, ifname: &str, network: &str| {
        super::may_know(&room.dir(), &Owner::new(container, ifname), network)
    };
    assert!(!may_know("c1", "eth0", "cbr0"), "nothing is saved at all");
    room.begin("eth0", &config("cbr0"));
    assert!(may_know("c1", "eth0", "cbr0"));
    // An interface of another plugin's in the same container, and an interface of flannel's in another network.
    assert!(!may_know("c1", "net1", "macvlan") && !may_know("c1", "eth0", "macvlan"));
    assert!(!may_know("c2", "eth0", "cbr0"));
    // Names that lead elsewhere.
    assert!(!may_know("../c1", "eth0", "cbr0") && !may_know("c1", "../c1/eth0", "cbr0"));
    room.del("eth0", true);
    // Go's one file does not tell its interfaces.
    room.write_legacy(&config("cbr0"));
    assert!(may_know("c1", "eth0", "cbr0") && may_know("c1", "net1", "second"));
}

#[test]
fn attachments_when_all_are_listed_are_each_there_once_with_their_age() {
    let room = Room::new();
    assert!(all(&room.dir()).unwrap().is_empty());
    room.begin("eth0", "{0}");
    room.begin("net1", "{1}");
    room.state("eth0").save_chain("[]").unwrap();
    std::fs::write(format!("{}/.v2/c1/.tmp-x", room.dir()), "").unwrap();
    std::fs::write(format!("{}/c2", room.dir()), "{2}").unwrap();
    std::fs::create_dir(format!("{}/.v2/.x", room.dir())).unwrap();
    std::fs::write(format!("{}/.v2/.x/eth0", room.dir()), "{3}").unwrap();
    std::fs::write(format!("{}/.hidden", room.dir()), "{4}").unwrap();
    let listed = || {
        let mut all = all(&room.dir()).unwrap();
        all.sort_by(|a, b| (&a.container, &a.ifname).cmp(&(&b.container, &b.ifname)));
        all
    };
    let names: Vec<_> = listed()
        .into_iter()
        .map(|a| (a.container, a.ifname, a.text))
        .collect();
    let text = |text: &str| text.as_bytes().to_vec();
    assert_eq!(
        names,
        [
            ("c1".to_owned(), Some("eth0".to_owned()), text("{0}")),
            ("c1".to_owned(), Some("net1".to_owned()), text("{1}")),
            ("c2".to_owned(), None, text("{2}")),
        ]
    );
    assert!(listed().iter().all(Attachment::is_young));
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let file = std::fs::File::open(format!("{}/c2", room.dir())).unwrap();
    file.set_modified(hour_ago).unwrap();
    assert_eq!(
        listed().iter().map(Attachment::is_young).collect::<Vec<_>>(),
        [true, true, false]
    );
    // Another text than any of ours is Go's own.
    room.write_legacy("{9}");
    assert_eq!(listed().len(), 4);
    assert!(all("/nonexistent/x").unwrap().is_empty());
}

#[test]
fn chain_when_saved_is_read_with_its_result_and_goes_with_its_attachment() {
    let room = Room::new();
    room.begin("eth0", "{0}");
    room.begin("net1", "{1}");
    let state = room.state("eth0");
    assert_eq!(state.chain(), None);
    state.save_result("{r}").unwrap();
    assert_eq!(state.chain(), None, "no result without a chain");
    state.save_chain("{a}").unwrap();
    assert_eq!(
        state.chain(),
        Some((b"{a}".to_vec(), None)),
        "what was before is gone"
    );
    state.save_result("{r}").unwrap();
    assert_eq!(state.chain(), Some((b"{a}".to_vec(), Some(b"{r}".to_vec()))));
    assert_eq!(room.state("net1").chain(), None);
    assert_eq!(state.other_interfaces(), ["net1"]);
    assert_eq!(room.state("net2").other_interfaces(), ["eth0", "net1"]);
    room.del("eth0", false);
    assert_eq!(
        (state.chain(), state.other_interfaces()),
        (None, vec!["net1".to_owned()])
    );
    room.del("net1", false);
    assert!(room.is_empty() && room.state("eth0").other_interfaces().is_empty());
}

#[test]
fn configuration_when_something_else_is_in_its_place_counts_as_lost() {
    let room = Room::new();
    room.begin("eth0", "{0}");
    let file = format!("{}/.v2/c1/eth0", room.dir());
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_eq!(room.state("eth0").load().unwrap(), own(""));
    let room = Room::new();
    std::fs::create_dir_all(format!("{}/c1", room.dir())).unwrap();
    assert_eq!(room.state("eth0").load().unwrap(), Saved::Legacy(Vec::new()));
    // A file where the folder of ours should be makes way.
    for place in [".v2", ".v2/c1"] {
        let room = Room::new();
        if place == ".v2/c1" {
            std::fs::create_dir_all(format!("{}/.v2", room.dir())).unwrap();
        }
        std::fs::create_dir_all(room.dir()).unwrap();
        std::fs::write(format!("{}/{place}", room.dir()), "").unwrap();
        assert_eq!(room.begin("eth0", "{0}"), Begun::Fresh, "{place}");
        assert_eq!(room.state("eth0").load().unwrap(), own("{0}"), "{place}");
    }
}

#[test]
fn repeated_add_when_it_works_changes_gos_file_only_where_that_was_a_copy() {
    let room = Room::new();
    room.begin("eth0", "{0}");
    room.begin("net1", "{1}");
    let begun = room.begin("net1", "{2}");
    assert_eq!(begun, Begun::Repeated);
    room.state("net1").commit(&begun, "{2}").unwrap();
    assert_eq!(room.legacy().as_deref(), Some("{0}"));
    assert_eq!(room.state("net1").load().unwrap(), own("{2}"));
    room.state("net1").commit(&Begun::Fresh, "{3}").unwrap();
    assert_eq!(
        room.state("net1").load().unwrap(),
        own("{2}"),
        "nothing was to be done"
    );
    room.state("net1").commit(&Begun::Repeated, "{2}").unwrap();
    assert_eq!(room.legacy().as_deref(), Some("{0}"));
    // Go's file is somebody's own, ours goes without touching it.
    room.write_legacy("{go}");
    room.del("net1", false);
    assert_eq!(room.legacy().as_deref(), Some("{go}"));
}
