use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Room {
        Room(tempfile::tempdir().unwrap())
    }
    fn dir(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
    fn store(&self) -> Store {
        Store::create(self.dir(), "cbr0").unwrap()
    }
    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join("cbr0").join(name)
    }
    fn reserve(&self, owner: &Owner, ip: &str) -> bool {
        let mut store = self.store();
        let ip: IpAddr = ip.parse().unwrap();
        let before = store.held_by(owner).unwrap();
        let found = store
            .reserve(owner, std::iter::once((ip, ())), |_| false)
            .unwrap();
        let held: Vec<IpAddr> = before.into_iter().chain(found.map(|(ip, ())| ip)).collect();
        store.index(owner, &held);
        found.is_some()
    }
    fn held(&self, owner: &Owner) -> Vec<String> {
        self.store()
            .held_by(owner)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect()
    }
    fn is_sealed(&self) -> bool {
        is_sealed(&files::open_folder(self.file("").to_str().unwrap()).unwrap())
    }
}

fn owner(container: &str, ifname: &str) -> Owner {
    Owner::new(container, ifname)
}

#[test]
fn reservation_when_made_is_gos_file_and_found_again_by_its_owner_alone() {
    let room = Room::new();
    assert!(room.reserve(&owner("c1", "eth0"), "10.0.0.2"));
    assert!(!room.reserve(&owner("c2", "eth0"), "10.0.0.2"));
    assert_eq!(std::fs::read(room.file("10.0.0.2")).unwrap(), b"c1\r\neth0");
    assert_eq!(
        room.file("10.0.0.2").metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(room.reserve(&owner("c1", "eth0"), "fd00::2"));
    assert_eq!(room.held(&owner("c1", "eth0")), ["10.0.0.2", "fd00::2"]);
    assert_eq!(room.held(&owner("c2", "eth0")), Vec::<String>::new());
    assert!(room.is_sealed());
    assert_eq!(room.store().release(&owner("c1", "eth0"), &[]).unwrap(), 2);
    assert_eq!(room.store().release(&owner("c1", "eth0"), &[]).unwrap(), 0);
    let left: Vec<_> = std::fs::read_dir(room.file(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lock"]);
    assert!(!room.0.path().join(".owners").exists());
}

#[test]
fn index_when_others_change_the_folder_is_made_anew() {
    let room = Room::new();
    room.reserve(&owner("c1", "eth0"), "10.0.0.2");
    room.reserve(&owner("c2", "eth0"), "10.0.0.3");
    // Go releases c1's, gives the address to c9, and adds one that names no interface.
    std::fs::remove_file(room.file("10.0.0.2")).unwrap();
    std::fs::write(room.file("10.0.0.2"), "c9\r\neth0").unwrap();
    std::fs::write(room.file("10.0.0.7"), " old \n").unwrap();
    assert!(!room.is_sealed());
    assert_eq!(room.held(&owner("c1", "eth0")), Vec::<String>::new());
    assert!(room.is_sealed());
    assert_eq!(room.held(&owner("c9", "eth0")), ["10.0.0.2"]);
    assert_eq!(room.held(&owner("c2", "eth0")), ["10.0.0.3"]);
    assert_eq!(room.held(&owner("old", "any")), ["10.0.0.7"]);
    assert_eq!(room.store().release(&owner("old", "any"), &[]).unwrap(), 1);
    assert!(!room.file("10.0.0.7").exists());
}

#[test]
fn index_when_lost_or_wrong_never_frees_what_another_holds() {
    let room = Room::new();
    room.reserve(&owner("c1", "eth0"), "10.0.0.2");
    room.reserve(&owner("c2", "eth0"), "10.0.0.3");
    let index = room.0.path().join(".owners/cbr0");
    // Content changed in place leaves the folder as it was: the file decides, not the index.
    std::fs::write(room.file("10.0.0.2"), "c9\r\neth0").unwrap();
    assert!(room.is_sealed());
    assert_eq!(room.store().release(&owner("c1", "eth0"), &[]).unwrap(), 0);
    assert!(room.file("10.0.0.2").exists());
    std::fs::remove_dir_all(&index).unwrap();
    assert_eq!(room.held(&owner("c2", "eth0")), ["10.0.0.3"]);
    assert!(index.exists());
}

#[test]
fn file_when_empty_is_free_for_others_and_still_its_owners() {
    let room = Room::new();
    room.reserve(&owner("c1", "eth0"), "10.0.0.2");
    std::fs::write(room.file("10.0.0.2"), "").unwrap();
    assert!(room.reserve(&owner("c2", "eth0"), "10.0.0.2"));
    assert_eq!(room.held(&owner("c1", "eth0")), Vec::<String>::new());
    std::fs::write(room.file("10.0.0.2"), "\n").unwrap();
    assert_eq!(room.store().release(&owner("c2", "eth0"), &[]).unwrap(), 1);
    assert!(!room.file("10.0.0.2").exists());
    // One that no index knows goes with the next look at everything.
    std::fs::write(room.file("10.0.0.9"), "").unwrap();
    room.store().all().unwrap();
    assert!(!room.file("10.0.0.9").exists());
}

#[test]
fn owner_when_too_long_for_a_file_name_is_found_by_reading_all() {
    let room = Room::new();
    let long = owner(&"x".repeat(255), "eth0");
    assert!(room.reserve(&long, "10.0.0.2"));
    assert!(room.reserve(&owner("c2", "eth0"), "10.0.0.3"));
    assert_eq!(room.held(&long), ["10.0.0.2"]);
    assert_eq!(room.store().release(&long, &[]).unwrap(), 1);
    assert_eq!(room.held(&owner("c2", "eth0")), ["10.0.0.3"]);
}

#[test]
fn pointer_when_written_is_plain_text_also_over_a_longer_one() {
    let room = Room::new();
    let store = room.store();
    assert_eq!(store.last_reserved(0), None);
    store.set_last_reserved(0, "10.244.7.100".parse().unwrap());
    store.set_last_reserved(0, "10.244.7.9".parse().unwrap());
    assert_eq!(
        std::fs::read_to_string(room.file("last_reserved_ip.0")).unwrap(),
        "10.244.7.9"
    );
    assert_eq!(store.last_reserved(0), Some("10.244.7.9".parse().unwrap()));
    std::fs::write(room.file("last_reserved_ip.0"), "junk").unwrap();
    assert_eq!(store.last_reserved(0), None);
}

#[test]
fn reserve_when_many_are_taken_skips_them_and_ends_when_all_are() {
    let room = Room::new();
    let ips: Vec<IpAddr> = (2..60).map(|i| format!("10.0.0.{i}").parse().unwrap()).collect();
    for i in 0..50 {
        assert!(room.reserve(&owner(&format!("c{i}"), "eth0"), &format!("10.0.0.{}", i + 2)));
    }
    let mut store = room.store();
    let found = store
        .reserve(&owner("new", "eth0"), ips.iter().map(|ip| (*ip, ())), |_| false)
        .unwrap();
    assert_eq!(found.unwrap().0.to_string(), "10.0.0.52");
    let found = store
        .reserve(
            &owner("new", "eth1"),
            ips.iter().take(51).map(|ip| (*ip, ())),
            |_| false,
        )
        .unwrap();
    assert_eq!(found, None);
    let last: IpAddr = "10.0.0.53".parse().unwrap();
    let found = store
        .reserve(&owner("new", "eth1"), ips.iter().map(|ip| (*ip, ())), |ip| {
            ip == last
        })
        .unwrap();
    assert_eq!(found.unwrap().0.to_string(), "10.0.0.54");
}

#[test]
fn reservation_when_looked_at_tells_its_holder_and_its_age() {
    let room = Room::new();
    let ip: IpAddr = "10.0.0.2".parse().unwrap();
    room.reserve(&owner("c1", "eth0"), "10.0.0.2");
    let written = |ago: u64| {
        let at = SystemTime::now() - Duration::from_secs(ago);
        let file = std::fs::File::open(room.file("10.0.0.2")).unwrap();
        file.set_modified(at).unwrap();
    };
    let store = room.store();
    assert_eq!(
        store.path(),
        room.file("").to_str().unwrap().trim_end_matches('/')
    );
    assert_eq!(store.holder(ip), Some(owner("c1", "eth0")));
    assert!(store.is_reserved(ip) && !store.is_reserved("10.0.0.3".parse().unwrap()));
    assert!(store.is_young(ip) && store.age(ip).unwrap() < Duration::from_secs(50));
    written(3600);
    assert!(!store.is_young(ip));
    let age = store.age(ip).unwrap().as_secs();
    assert!((3599..3700).contains(&age), "{age}");
    let none: IpAddr = "10.0.0.9".parse().unwrap();
    assert!(!store.is_young(none) && store.age(none).is_none());
    // One of a clock that was wrong.
    let file = std::fs::File::open(room.file("10.0.0.2")).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(3600))
        .unwrap();
    assert!(store.is_young(ip) && store.age(ip).is_none());
}

#[test]
fn container_when_another_interface_of_it_holds_an_address_says_so_but_for_the_exceptions() {
    let room = Room::new();
    room.reserve(&owner("c1", "eth0"), "10.0.0.2");
    room.reserve(&owner("c2", "net1"), "10.0.0.3");
    let another = |except: &[String]| {
        room.store()
            .holds_another_of(&owner("c1", "eth0"), except)
            .unwrap()
    };
    assert!(!another(&[]));
    room.reserve(&owner("c1", "net1"), "10.0.0.4");
    assert!(another(&[]) && another(&["net2".to_owned()]));
    assert!(!another(&["net1".to_owned()]));
}

#[test]
fn hint_when_the_index_knows_nothing_of_it_is_released_if_it_is_the_owners() {
    let room = Room::new();
    room.reserve(&owner("c1", "eth0"), "10.0.0.2");
    room.reserve(&owner("c2", "eth0"), "10.0.0.3");
    let index = room.0.path().join(".owners/cbr0/c1:eth0");
    std::fs::remove_file(index).unwrap();
    assert!(room.is_sealed(), "only the index has changed");
    let hints: Vec<IpAddr> = ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
        .map(|ip| ip.parse().unwrap())
        .to_vec();
    assert_eq!(room.store().release(&owner("c1", "eth0"), &hints).unwrap(), 1);
    assert!(!room.file("10.0.0.2").exists() && room.file("10.0.0.3").exists());
    // Known and hinted at counts once.
    assert_eq!(room.store().release(&owner("c2", "eth0"), &hints).unwrap(), 1);
}

#[test]
fn attachment_when_old_files_name_no_interface_holds_them_unless_it_has_its_own() {
    let room = Room::new();
    room.reserve(&owner("c1", "eth0"), "10.0.0.2");
    std::fs::write(room.file("10.0.0.7"), "c1").unwrap();
    assert_eq!(room.held(&owner("c1", "eth0")), ["10.0.0.2"]);
    assert_eq!(room.held(&owner("c1", "net1")), ["10.0.0.7"]);
    assert_eq!(room.held(&owner("c1", "")), ["10.0.0.7"]);
}

#[test]
fn place_of_a_file_when_it_holds_something_else_is_cleared() {
    let room = Room::new();
    room.store();
    std::fs::create_dir(room.file("10.0.0.2")).unwrap();
    assert!(room.reserve(&owner("c1", "eth0"), "10.0.0.2"));
    std::os::unix::fs::symlink("elsewhere", room.file("10.0.0.3")).unwrap();
    std::fs::write(room.file("10.0.0.4"), "c9\r\neth0").unwrap();
    let all = room.store().all().unwrap();
    assert_eq!(all.len(), 2);
    assert!(room.file("10.0.0.3").symlink_metadata().is_err(), "nobody's");
    std::fs::remove_file(room.file("lock")).unwrap();
    std::os::unix::fs::symlink("elsewhere", room.file("lock")).unwrap();
    room.store();
    assert!(room.file("lock").symlink_metadata().unwrap().is_file() && !room.file("elsewhere").exists());
    let file = room.0.path().join("file");
    std::fs::write(&file, "").unwrap();
    let path = file.to_str().unwrap();
    assert!(Store::create(path, "n").is_err());
    assert!(Store::open(path, "n").unwrap().is_none());
    assert!(Store::open("/nonexistent", "n").unwrap().is_none());
}
