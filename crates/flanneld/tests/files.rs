//! The subnet file and the state on a real disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use fabric::object::LinkName;
use fabric::subnet_env::SubnetEnv;
use flanneld::state_dir::{State, StateDir};
use flanneld::subnet_file::{self, Repaired};
use proptest::prelude::*;

const TEXT: &str =
    "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn wanted() -> SubnetEnv {
    SubnetEnv {
        network: "10.5.0.0/16".parse().ok(),
        subnet: "10.5.1.0/24".parse().ok(),
        network6: None,
        subnet6: None,
        mtu: 1450,
        ipmasq: true,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn write_when_nothing_is_there_makes_folders_and_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/flannel/subnet.env");
    subnet_file::write(&path, &wanted()).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
    assert_eq!(mode(&path), 0o644);
    assert_eq!(
        names(path.parent().unwrap()),
        ["subnet.env"],
        "nothing is left behind"
    );
}

#[test]
fn write_when_the_file_says_it_already_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subnet.env");
    fs::write(&path, TEXT).unwrap();
    let before = fs::metadata(&path).unwrap().ino();
    subnet_file::write(&path, &wanted()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
}

#[test]
fn write_when_docker_wrote_over_the_file_replaces_it_whole_and_keeps_its_mode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subnet.env");
    fs::write(&path, "DOCKER_OPT_BIP=\"--bip=10.5.9.1/24\"\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(&path).unwrap().ino();
    subnet_file::write(&path, &wanted()).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
    assert_eq!(mode(&path), 0o640);
    assert_ne!(
        fs::metadata(&path).unwrap().ino(),
        before,
        "moved into place, not written over"
    );
}

#[test]
fn write_when_a_crash_left_a_temporary_file_or_somebody_a_link_is_not_led_astray() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bait) = (folder.path().join("subnet.env"), folder.path().join("bait"));
    fs::write(&bait, "precious").unwrap();
    std::os::unix::fs::symlink(&bait, folder.path().join(".subnet.env.new")).unwrap();
    subnet_file::write(&path, &wanted()).unwrap();
    assert_eq!(fs::read_to_string(&bait).unwrap(), "precious");
    assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
}

#[test]
fn write_when_it_cannot_says_what_and_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subnet.env");
    fs::create_dir(&path).unwrap();
    let error = subnet_file::write(&path, &wanted()).unwrap_err().to_string();
    assert!(error.contains("subnet.env") && !error.contains('\n'), "{error}");
    assert_eq!(names(folder.path()), ["subnet.env"]);
    let below_a_file = folder.path().join("file/subnet.env");
    fs::write(folder.path().join("file"), "").unwrap();
    assert!(subnet_file::write(&below_a_file, &wanted()).is_err());
}

#[test]
fn repair_when_something_else_than_a_file_of_lines_is_in_its_place_then_the_file_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bait) = (folder.path().join("subnet.env"), folder.path().join("bait"));
    fs::write(&bait, "precious").unwrap();
    let make = |what: &str| {
        let _ = fs::remove_file(&path);
        match what {
            "a FIFO" => rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap(),
            "a link to a device" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
            "a link" => std::os::unix::fs::symlink(&bait, &path).unwrap(),
            "a long file" => fs::write(&path, vec![b'x'; 2 << 20]).unwrap(),
            _ => fs::write(&path, [0xff, 0, 0x80]).unwrap(),
        }
    };
    for what in ["a FIFO", "a link to a device", "a link", "a long file", "garbage"] {
        make(what);
        assert!(!subnet_file::is_right(&path, &wanted()), "{what}");
        assert_eq!(
            subnet_file::repair(&path, &wanted()).unwrap(),
            Repaired::Written,
            "{what}"
        );
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{what}");
        assert!(
            fs::read_to_string(&path).unwrap().contains("FLANNEL_MTU=1450"),
            "{what}"
        );
        assert!(subnet_file::is_right(&path, &wanted()), "{what}");
        make(what);
        let previous = subnet_file::read_previous(&path);
        assert_eq!(previous.subnet, None, "{what}");
        subnet_file::write(&path, &wanted()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT, "{what}");
    }
    assert_eq!(fs::read_to_string(&bait).unwrap(), "precious");
}

#[test]
fn repair_when_all_is_right_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subnet.env");
    fs::write(
        &path,
        format!("# mine\n{TEXT}DOCKER_OPTS=\"--bip=10.5.1.1/24\"\n"),
    )
    .unwrap();
    let before = fs::metadata(&path).unwrap();
    assert_eq!(
        subnet_file::repair(&path, &wanted()).unwrap(),
        Repaired::Unchanged
    );
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.ino(), before.mtime_nsec()),
        (after.ino(), after.mtime_nsec())
    );
}

#[test]
fn repair_when_docker_wrote_over_the_file_puts_ours_back_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subnet.env");
    let docker = "DOCKER_OPT_BIP=\"--bip=10.5.1.1/24\"\nDOCKER_NETWORK_OPTIONS=\" --bip=10.5.1.1/24\"\n";
    fs::write(&path, docker).unwrap();
    assert_eq!(subnet_file::repair(&path, &wanted()).unwrap(), Repaired::Written);
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{TEXT}{docker}"));
    fs::write(&path, format!("{docker}{}", TEXT.replace("1450", "1500"))).unwrap();
    assert_eq!(subnet_file::repair(&path, &wanted()).unwrap(), Repaired::Written);
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{TEXT}{docker}"));
    assert_eq!(
        subnet_file::repair(&path, &wanted()).unwrap(),
        Repaired::Unchanged
    );
}

#[test]
fn repair_when_file_or_folder_is_gone_makes_them_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flannel/subnet.env");
    assert_eq!(subnet_file::repair(&path, &wanted()).unwrap(), Repaired::Written);
    assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    assert_eq!(subnet_file::repair(&path, &wanted()).unwrap(), Repaired::Written);
    assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
}

#[test]
fn read_previous_when_there_is_none_or_rubbish_says_so_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subnet.env");
    assert_eq!(subnet_file::read_previous(&path).problems.len(), 0);
    fs::write(&path, TEXT).unwrap();
    assert_eq!(
        subnet_file::read_previous(&path).subnet,
        "10.5.1.0/24".parse().ok()
    );
    fs::write(&path, [0xff, b'=', 0, b'\n']).unwrap();
    assert_eq!(subnet_file::read_previous(&path).subnet, None);
    assert_eq!(subnet_file::read_previous(folder.path()).problems.len(), 1);
}

#[test]
fn state_when_saved_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let place = StateDir::under(folder.path(), Path::new("/run/flannel/subnet.env"));
    assert_eq!(place.load(), State::default());
    let mut state = State::default();
    state.lease = Some("10.5.1.0-24".into());
    state.add_networks(["10.5.7.9/16".parse().unwrap(), "10.4.0.0/16".parse().unwrap()]);
    state.add_networks(["10.5.0.0/16".parse().unwrap()]);
    state.add_links([LinkName::new("flannel.1").unwrap()]);
    let route = |to: &str, via: &str| (to.parse().unwrap(), via.parse().unwrap());
    state.set_leases([route("10.5.9.0/24", "10.5.9.0")]);
    let hops = ["10.5.2.0", "192.0.2.2", "10.5.2.0"];
    state.set_leases(hops.map(|hop| route("10.5.2.0/24", hop)));
    place.save(&state).unwrap();
    assert_eq!(mode(&place.file()), 0o600);
    assert_eq!(names(folder.path()), ["state.json"]);

    let read = StateDir::under(folder.path(), Path::new("/run/flannel/subnet.env")).load();
    assert_eq!(
        read.former_networks().map(|n| n.to_string()).collect::<Vec<_>>(),
        ["10.5.0.0/16", "10.4.0.0/16"]
    );
    assert_eq!(
        read.former_links().map(|l| l.to_string()).collect::<Vec<_>>(),
        ["flannel.1"]
    );
    let hops: Vec<String> = read
        .former_leases()
        .values()
        .flatten()
        .map(ToString::to_string)
        .collect();
    assert_eq!(hops, ["10.5.2.0", "192.0.2.2"]);
    assert_eq!(read.lease.as_deref(), Some("10.5.1.0-24"));
}

#[test]
fn state_when_the_subnet_file_is_another_lies_in_a_folder_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let a = StateDir::under(folder.path(), Path::new("/vxlan.env"));
    let b = StateDir::under(folder.path(), Path::new("/host-gw.env"));
    // sha256sum of "/vxlan.env"
    assert_eq!(a.file(), folder.path().join("93f8e27c3f3d8527/state.json"));
    assert_ne!(a.file(), b.file());
    let mut state = State::default();
    state.lease = Some("a".into());
    a.save(&state).unwrap();
    assert_eq!(b.load().lease, None);
    let read = a.load();
    assert_eq!(
        (read.lease.as_deref(), read.subnet_file.as_str()),
        (Some("a"), "/vxlan.env")
    );
    assert_eq!(
        StateDir::for_subnet_file(Path::new("/run/flannel/subnet.env")).file(),
        Path::new("/var/lib/flannel/state.json")
    );
}

#[test]
fn state_when_unreadable_or_unwritable_is_done_without() {
    let folder = tempfile::tempdir().unwrap();
    let place = StateDir::under(folder.path(), Path::new("/run/flannel/subnet.env"));
    for text in [
        "",
        "{",
        "[]",
        "null",
        r#"{"networks":["x"]}"#,
        r#"{"format":2,"lease":"a"}"#,
        "\u{0}\u{0}",
    ] {
        fs::write(place.file(), text).unwrap();
        assert_eq!(place.load(), State::default(), "{text}");
    }
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let place = StateDir::under(&blocked, Path::new("/x.env"));
    assert_eq!(place.load(), State::default());
    let mut state = State::default();
    state.lease = Some("10.5.1.0-24".into());
    assert!(place.save(&state).is_err() && place.is_unsaved());
    assert_eq!(place.load(), state, "what is to be written is not forgotten");
    fs::remove_file(&blocked).unwrap();
    place.save(&place.load()).unwrap();
    assert!(!place.is_unsaved());
    assert_eq!(place.load().lease, state.lease);
}

proptest! {
    #[test]
    fn repair_when_the_file_holds_anything_ends_with_ours_in_it(bytes in proptest::collection::vec(any::<u8>(), 0..80), cut in 0usize..100) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        let mut content = bytes;
        content.extend_from_slice(TEXT.as_bytes());
        content.truncate(cut);
        fs::write(&path, &content).unwrap();
        subnet_file::repair(&path, &wanted()).unwrap();
        prop_assert_eq!(subnet_file::repair(&path, &wanted()).unwrap(), Repaired::Unchanged);
        let previous = subnet_file::read_previous(&path);
        let written = fs::read(&path).unwrap();
        prop_assert!(TEXT.lines().all(|line| String::from_utf8_lossy(&written).lines().any(|found| found == line)));
        prop_assert!(previous.subnet.is_none() || previous.subnet == wanted().subnet);
    }

    #[test]
    fn state_when_the_file_holds_anything_is_read_or_done_without(text in "(?s).{0,60}") {
        let folder = tempfile::tempdir().unwrap();
        let place = StateDir::under(folder.path(), Path::new("/run/flannel/subnet.env"));
        fs::write(place.file(), text).unwrap();
        let _ = place.load();
    }
}
