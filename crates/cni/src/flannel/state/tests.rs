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
    fn state(&self, ifname: &str) -> State {
        State::create(&self.dir(), "c1", ifname).unwrap()
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
        self.state(ifname).forget(&saved, keep_legacy).unwrap();
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
    assert!(knows(&room.dir(), "c1") && !knows(&room.dir(), "c2"));
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
    let error = |path: &str| State::create(path, "c1", "eth0").unwrap_err().to_string();
    assert_eq!(error("/proc/nope"), "mkdir /proc/nope: no such file or directory");
    assert_eq!(error(""), "mkdir : no such file or directory");
    assert_eq!(error("/dev/null"), "mkdir /dev/null: not a directory");
    let room = Room::new();
    std::fs::create_dir_all(room.dir()).unwrap();
    assert_eq!(
        State::open(&format!("{}/x", room.dir()), "c1", "eth0")
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
