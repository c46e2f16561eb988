use super::*;

struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    fn new() -> Room {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("opt/cni/bin")).unwrap();
        Room { folder }
    }

    fn bin(&self) -> PathBuf {
        self.folder.path().join("opt/cni/bin")
    }

    /// An executable of ours.
    fn version(&self, number: u32) -> PathBuf {
        let file = self.folder.path().join(format!("flannel-cni-{number}"));
        let ours = [
            b"\x7fELF ff",
            MARK[0],
            &[BETWEEN],
            MARK[1],
            number.to_string().as_bytes(),
        ]
        .concat();
        std::fs::write(&file, ours).unwrap();
        file
    }

    /// What a program that looks for the mark may hold.
    fn seeker(&self) -> PathBuf {
        let file = self.folder.path().join("flannelctl");
        std::fs::write(&file, [MARK[0], MARK[1], MARK[0]].concat()).unwrap();
        file
    }

    fn foreign(&self, name: &str, content: &str) {
        std::fs::write(self.bin().join(name), content).unwrap();
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.bin().join(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.bin()).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn install_when_others_are_there_keeps_them_and_uninstall_gives_back_what_was_replaced() {
    let (room, bin) = (Room::new(), Room::bin);
    let bin = bin(&room);
    for name in ["bridge", "flannel", "macvlan"] {
        room.foreign(name, &format!("Go's {name}"));
    }
    let ours = room.version(1);
    assert!(is_ours(&ours).unwrap() && !is_ours(&room.seeker()).unwrap());
    let installed = install(&ours, &bin, DEFAULT, false).unwrap();
    assert_eq!(installed.done, [bin.join("flannel")]);
    assert_eq!(
        installed.replaced,
        [(bin.join("flannel"), bin.join(".flannel.before"))]
    );
    assert_eq!(room.content("flannel"), std::fs::read(&ours).unwrap());
    let mode = bin.join("flannel").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);

    let installed = install(&ours, &bin, ALL, false).unwrap();
    assert_eq!(installed.kept, [bin.join("bridge")]);
    assert_eq!(room.content("bridge"), b"Go's bridge");
    let installed = install(&ours, &bin, ALL, true).unwrap();
    assert_eq!(
        installed.replaced,
        [(bin.join("bridge"), bin.join(".bridge.before"))]
    );

    let gone = uninstall(&bin, ALL).unwrap();
    assert_eq!(gone.restored, [bin.join("flannel"), bin.join("bridge")]);
    assert_eq!(gone.removed.len(), 4);
    assert_eq!(room.names(), ["bridge", "flannel", "macvlan"]);
    assert_eq!(room.content("flannel"), b"Go's flannel");
    assert_eq!(uninstall(&bin, ALL).unwrap(), Uninstalled::default());
    assert_eq!(room.names(), ["bridge", "flannel", "macvlan"]);
}

#[test]
fn install_when_another_version_of_ours_is_there_keeps_what_was_there_before_the_first() {
    let room = Room::new();
    let bin = room.bin();
    room.foreign("flannel", "Go's, old");
    for number in 1..4 {
        let ours = room.version(number);
        install(&ours, &bin, DEFAULT, false).unwrap();
        assert_eq!(room.content("flannel"), std::fs::read(&ours).unwrap());
        assert_eq!(room.content(".flannel.before"), b"Go's, old");
    }
    // A manifest has put a newer one of Go's over ours: that is what goes back.
    room.foreign("flannel", "Go's, new");
    install(&room.version(4), &bin, DEFAULT, false).unwrap();
    assert_eq!(room.content(".flannel.before"), b"Go's, new");
    // And once more, after which nothing is installed: both stay.
    room.foreign("flannel", "Go's, newest");
    let gone = uninstall(&bin, ALL).unwrap();
    assert_eq!(gone.aside, [bin.join(".flannel.before")]);
    assert_eq!(room.content("flannel"), b"Go's, newest");
}

#[test]
fn install_when_killed_before_at_any_step_goes_on_from_there() {
    // What each step leaves: the second name of what was there; half a file; the new file before the rename.
    type Step = fn(&Room);
    let steps: [Step; 4] = [
        |room| std::fs::hard_link(room.bin().join("flannel"), room.bin().join(".flannel.before")).unwrap(),
        |room| {
            std::fs::hard_link(
                room.bin().join("flannel"),
                room.bin().join("..flannel.before.new"),
            )
            .unwrap()
        },
        |room| room.foreign(".flannel.new", "ha"),
        |room| {
            std::fs::copy(room.version(1), room.bin().join(".flannel.new")).unwrap();
        },
    ];
    for (number, step) in steps.into_iter().enumerate() {
        let room = Room::new();
        room.foreign("flannel", "Go's");
        step(&room);
        let ours = room.version(2);
        install(&ours, &room.bin(), DEFAULT, false).unwrap();
        assert_eq!(room.content("flannel"), std::fs::read(&ours).unwrap(), "{number}");
        assert_eq!(room.names(), [".flannel.before", "flannel"], "{number}");
        uninstall(&room.bin(), ALL).unwrap();
        assert_eq!(room.content("flannel"), b"Go's");
        assert_eq!(room.names(), ["flannel"], "{number}");
        step(&room);
        uninstall(&room.bin(), ALL).unwrap();
        assert_eq!(room.content("flannel"), b"Go's");
        assert_eq!(room.names(), ["flannel"], "{number}");
    }
}

#[test]
fn install_when_the_place_is_a_symlink_replaces_the_link_and_gives_it_back() {
    let room = Room::new();
    let (bin, target) = (room.bin(), room.folder.path().join("flannel-1.9"));
    std::fs::write(&target, "Go's").unwrap();
    std::os::unix::fs::symlink("../../../flannel-1.9", bin.join("flannel")).unwrap();
    install(&room.version(1), &bin, DEFAULT, false).unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"Go's");
    uninstall(&bin, ALL).unwrap();
    assert!(bin.join("flannel").is_symlink());
    assert_eq!(room.content("flannel"), b"Go's");
    // One that leads nowhere is no plugin; it is given back all the same.
    std::fs::remove_file(&target).unwrap();
    install(&room.version(1), &bin, DEFAULT, false).unwrap();
    assert!(is_ours(&bin.join("flannel")).unwrap());
    uninstall(&bin, ALL).unwrap();
    assert!(bin.join("flannel").is_symlink());
    std::fs::remove_file(bin.join("flannel")).unwrap();
    std::fs::create_dir(bin.join("flannel")).unwrap();
    let error = install(&room.version(1), &bin, DEFAULT, false).unwrap_err();
    assert!(
        error.to_string().ends_with("flannel: not a regular file"),
        "{error}"
    );
}
