use super::*;

/// The folders of a node.
pub(super) struct Room(tempfile::TempDir);

impl Room {
    pub(super) fn new() -> Room {
        Room(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub(super) fn folders(&self) -> Folders {
        Folders {
            data_dir: self.path("networks"),
            flannel_dir: self.path("flannel"),
            subnet_file: self.path("subnet.env"),
        }
    }

    /// A reservation that was written so many seconds ago, or as many from now.
    pub(super) fn reserve(&self, network: &str, ip: &str, owner: &Owner, ago: i64) {
        let folder = self.path(&format!("networks/{network}"));
        std::fs::create_dir_all(&folder).unwrap();
        let file = format!("{folder}/{ip}");
        std::fs::write(&file, owner.content()).unwrap();
        let by = Duration::from_secs(ago.unsigned_abs());
        let at = if ago < 0 {
            SystemTime::now() + by
        } else {
            SystemTime::now() - by
        };
        std::fs::File::open(file).unwrap().set_modified(at).unwrap();
    }
}

#[test]
fn reservations_when_read_are_those_of_every_network_in_order_and_nothing_else() {
    let room = Room::new();
    let folders = room.folders();
    assert_eq!(read(&folders.data_dir).unwrap(), (Vec::new(), Vec::new()));
    let owner = Owner::new("c1", "eth0");
    for (network, ip) in [
        ("n", "10.0.0.10"),
        ("n", "10.0.0.9"),
        ("b", "fd00::2"),
        (".owners", "10.0.0.3"),
    ] {
        room.reserve(network, ip, &owner, 3600);
    }
    std::fs::write(room.path("networks/n/last_reserved_ip.0"), "10.0.0.9").unwrap();
    std::fs::write(room.path("networks/n/10.0.0.11"), "").unwrap();
    std::fs::create_dir(room.path("networks/n/10.0.0.12")).unwrap();
    std::fs::create_dir(room.path("networks/empty")).unwrap();
    let (names, found) = read(&folders.data_dir).unwrap();
    assert_eq!(names, ["b", "empty", "n"]);
    let found: Vec<String> = found
        .iter()
        .map(|r| format!("{} {} {}", r.network, r.address, r.owner.container))
        .collect();
    assert_eq!(found, ["b fd00::2 c1", "n 10.0.0.9 c1", "n 10.0.0.10 c1"]);
    // A file in the place of the folder is no folder either.
    assert!(read(&room.path("networks/n/10.0.0.9")).unwrap().0.is_empty());
}

#[test]
fn reservation_when_young_is_so_with_all_of_its_containers() {
    let room = Room::new();
    room.reserve("n", "10.0.0.2", &Owner::new("nobody-fresh", "eth0"), 0);
    room.reserve("n", "10.0.0.3", &Owner::new("nobody-fresh", "net1"), 3600);
    room.reserve("n", "10.0.0.4", &Owner::new("nobody-early", "eth0"), -3600);
    for look in [look, glance] {
        let found = look(&room.folders()).unwrap();
        let fates: Vec<(Fate, &str)> = found
            .reservations
            .iter()
            .map(|r| (r.fate, r.why.as_str()))
            .collect();
        assert_eq!(
            fates,
            [
                (Fate::Young, "less than a minute old"),
                (Fate::Young, "less than a minute old"),
                (Fate::Young, "its date is in the future")
            ]
        );
        assert_eq!(
            found.networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(),
            ["n"]
        );
        assert!(found.doubts.is_empty());
        let age = found.reservations[1].since.elapsed().unwrap().as_secs();
        assert!((3599..3700).contains(&age), "{age}");
    }
}

#[test]
fn reservation_when_old_and_seen_nowhere_is_garbage_or_there_is_a_doubt() {
    let room = Room::new();
    room.reserve(
        "n",
        "fd9b:7c1e:55aa::2",
        &Owner::new("nobody-has-this-id", "eth0"),
        3600,
    );
    let found = glance(&room.folders()).unwrap();
    match found.reservations[0].fate {
        Fate::Garbage => {
            assert!(found.doubts.is_empty() && found.reservations[0].why.contains("in no network namespace"))
        }
        Fate::Unknown => assert!(found.doubts.contains(&found.reservations[0].why)),
        other => panic!("{other:?}"),
    }
    let words = [Fate::Alive, Fate::Young, Fate::Garbage, Fate::Unknown].map(Fate::as_str);
    assert_eq!(words, ["alive", "young", "garbage", "unknown"]);
}
