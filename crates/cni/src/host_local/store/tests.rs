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
    store
        .set_last_reserved(0, "10.244.7.100".parse().unwrap())
        .unwrap();
    store.set_last_reserved(0, "10.244.7.9".parse().unwrap()).unwrap();
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
