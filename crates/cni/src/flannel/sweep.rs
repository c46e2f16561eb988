//! Collecting what containers that are gone have left, for runtimes that never call GC: flannel's ADD does it.
//!
//! Before an ADD fails because no address is free, always. Besides, after an ADD that has worked, if none has done so since the
//! machine was started or for a while: the mark of the last time is beside subnet.env, in a folder that is emptied with every start.
//! What is dead, [`inventory`] says; all that an attachment has goes as by its DEL, the reservation last, so that one that is cut off
//! is finished by the next.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use super::detach::detach;
use super::netconf::NetConf;
use crate::files::FileError;
use crate::host_local::config::DATA_DIR;
use crate::inventory::{self, Fate, Folders, Inventory, Reservation};
use crate::links;
use crate::notice::say;
use crate::owner::Owner;
use crate::saved::{self, Saved, SavedConfigs};

/// At most so often where there is no need.
const PERIOD: Duration = Duration::from_secs(600);
/// What is not older may be of an ADD under way.
const YOUNG: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// After the name of the subnet file.
pub const MARK: &str = ".swept";

/// The folders of a configuration.
pub fn folders_of(conf: &NetConf) -> Folders {
    let given = conf.ipam.get("dataDir").and_then(serde_json::Value::as_str);
    Folders {
        data_dir: given.filter(|dir| !dir.is_empty()).unwrap_or(DATA_DIR).to_owned(),
        flannel_dir: conf.data_dir.clone(),
        subnet_file: conf.subnet_file.clone(),
    }
}

/// Sweeps if it is time to; one system call when it is not.
pub fn when_due(conf: &NetConf) {
    let path = format!("{}{MARK}", conf.subnet_file);
    let swept = std::fs::symlink_metadata(&path).and_then(|mark| mark.modified());
    if swept.is_ok_and(is_recent) {
        return;
    }
    // Who cannot leave a mark would do it with every ADD.
    let Some(mark) = Mark::open(&path) else { return };
    if mark.lock(FlockOperation::NonBlockingLockExclusive) && !mark.written().is_some_and(is_recent) {
        // First of all, so that one that is killed is not tried again and again.
        mark.write();
        let folders = folders_of(conf);
        if let Some(found) = twice(|| inventory::glance(&folders)) {
            free(&folders, &conf.name, &found);
        }
    }
}

/// Sweeps because a network has no address left. True when there may be one now: this call has freed some, or another one has swept
/// while it waited.
pub fn make_room(conf: &NetConf) -> bool {
    let begun = SystemTime::now();
    let mark = Mark::open(&format!("{}{MARK}", conf.subnet_file));
    if let Some(mark) = &mark
        && mark.lock(FlockOperation::LockExclusive)
        && mark.written().is_some_and(|at| at >= begun)
    {
        return true;
    }
    let folders = folders_of(conf);
    let found = twice(|| inventory::look(&folders));
    let freed = found.is_some_and(|found| free(&folders, &conf.name, &found));
    // Not before: whoever has waited takes it for done.
    if let Some(mark) = &mark {
        mark.write();
    }
    freed
}

fn is_recent(at: SystemTime) -> bool {
    // One in the future is of a clock that was wrong.
    at.elapsed().is_ok_and(|age| age < PERIOD)
}

/// What is garbage by two looks, if it is by one: what is not seen once may have been looked for at a bad moment.
fn twice(look: impl Fn() -> Result<Inventory, FileError>) -> Option<Inventory> {
    let mut found = look().ok()?;
    if found.reservations.iter().any(|r| r.fate == Fate::Garbage) {
        std::thread::sleep(BETWEEN_LOOKS);
        let again = look().ok()?;
        // It stays in the list: what is not in it counts as without an address, and loses its saved configuration.
        let doubtful = |r: &&mut Reservation| r.fate == Fate::Garbage && !again.reservations.contains(r);
        for reservation in found.reservations.iter_mut().filter(doubtful) {
            reservation.fate = Fate::Unknown;
        }
    }
    Some(found)
}

/// Frees what is dead in a network and in flannel's others; true when that was something.
fn free(folders: &Folders, network: &str, found: &Inventory) -> bool {
    let others = found.networks.iter().filter(|n| n.is_flannels);
    let ours = |name: &str| name == network || others.clone().any(|n| n.name == name);
    let dead = |r: &&Reservation| r.fate == Fate::Garbage && ours(&r.network);
    let mut attachments: BTreeMap<(&str, &Owner), Vec<&Reservation>> = BTreeMap::new();
    for r in found.reservations.iter().filter(dead) {
        attachments.entry((&r.network, &r.owner)).or_default().push(r);
    }
    let (mut freed, mut failed): (Vec<String>, Vec<String>) = Default::default();
    for attachment in attachments.values() {
        match inventory::free(folders, attachment, Some(&detach)) {
            Ok(done) => {
                freed.extend(done.addresses.iter().map(ToString::to_string));
                failed.extend(done.left);
            }
            Err(e) => failed.push(e.to_string()),
        }
    }
    remove_unreserved(folders, network, found);
    if !freed.is_empty() {
        say(&format!(
            "freed {} that containers have left which are gone: {}",
            match freed.len() {
                1 => "an address".to_owned(),
                n => format!("{n} addresses"),
            },
            freed.join(" ")
        ));
    }
    for why in failed {
        say(&format!("something of a container that is gone is left: {why}"));
    }
    !freed.is_empty()
}

/// Deletes once more attachments that have a saved configuration but no address: their DEL, or the sweep that took them, was cut off
/// at its end or could not remove all. An attachment that lives all the same needs no configuration for its own DEL.
fn remove_unreserved(folders: &Folders, network: &str, found: &Inventory) {
    let holders: HashSet<&str> = found
        .reservations
        .iter()
        .map(|r| r.owner.container.as_str())
        .collect();
    for attachment in saved::all(&folders.flannel_dir).unwrap_or_default() {
        let ifname = attachment.ifname.as_deref().unwrap_or_default();
        let lives = holders.contains(attachment.container.as_str())
            || attachment.is_young()
            || links::has_host_end(&Owner::new(&attachment.container, ifname));
        if lives || inventory::network_of(&attachment.text, &folders.data_dir).as_deref() != Some(network) {
            continue;
        }
        if !ifname.is_empty() {
            let _ = detach(folders, network, &Owner::new(&attachment.container, ifname));
            continue;
        }
        // Go's file does not tell the interface.
        if let Ok(Some(saved)) = SavedConfigs::open(&folders.flannel_dir, &attachment.container, ifname) {
            let _ = saved.remove(&Saved::Legacy(attachment.text), false);
        }
    }
    // A container's folder that is empty, and not because its ADD has just made it.
    let own = format!("{}/.v2", folders.flannel_dir);
    for entry in std::fs::read_dir(own).into_iter().flatten().flatten() {
        let made = entry.metadata().and_then(|folder| folder.modified());
        if made.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > YOUNG)) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// The file whose modification time says when there was a sweep, and whose lock keeps two from being at it.
struct Mark(OwnedFd);

impl Mark {
    fn open(path: &str) -> Option<Mark> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = |flags| rustix::fs::open(path, flags, Mode::from_raw_mode(0o600));
        match open(flags) {
            // Whatever it is, a folder or a FIFO, it has a date and can be locked.
            Ok(fd) => return Some(Mark(fd)),
            Err(Errno::LOOP | Errno::NXIO) => drop(rustix::fs::unlink(path)),
            Err(_) => {}
        }
        // One that is made now says nothing yet.
        let fd = open(flags | OFlags::CREATE).ok()?;
        let mark = Mark(fd);
        mark.set(Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        });
        Some(mark)
    }

    fn lock(&self, operation: FlockOperation) -> bool {
        rustix::io::retry_on_intr(|| rustix::fs::flock(&self.0, operation)).is_ok()
    }

    fn written(&self) -> Option<SystemTime> {
        let stat = rustix::fs::fstat(&self.0).ok()?;
        let (seconds, nanos) = (
            u64::try_from(stat.st_mtime).ok()?,
            u32::try_from(stat.st_mtime_nsec).ok()?,
        );
        Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
    }

    fn write(&self) {
        self.set(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        });
    }

    fn set(&self, at: Timespec) {
        let _ = rustix::fs::futimens(
            &self.0,
            &Timestamps {
                last_access: at,
                last_modification: at,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn seen(fate: Fate) -> Inventory {
        Inventory {
            reservations: vec![Reservation {
                network: "cbr0".into(),
                address: "10.244.7.2".parse().unwrap(),
                owner: Owner::new("c1", "eth0"),
                since: SystemTime::UNIX_EPOCH,
                fate,
                why: fate.as_str().into(),
            }],
            ..Inventory::default()
        }
    }

    #[test]
    fn garbage_when_the_second_look_doubts_it_still_counts_as_held() {
        for (second, judged) in [
            (Fate::Garbage, Fate::Garbage),
            (Fate::Alive, Fate::Unknown),
            (Fate::Unknown, Fate::Unknown),
        ] {
            let looks = Cell::new(0);
            let found = twice(|| {
                looks.set(looks.get() + 1);
                Ok(seen(if looks.get() == 1 { Fate::Garbage } else { second }))
            });
            let states: Vec<Fate> = found.unwrap().reservations.iter().map(|r| r.fate).collect();
            assert_eq!((states, looks.get()), (vec![judged], 2));
        }
    }

    fn conf(room: &tempfile::TempDir) -> NetConf {
        use crate::call::{Call, Environment};
        let path = |name: &str| room.path().join(name).to_str().unwrap().to_owned();
        let env = Environment {
            command: "ADD".into(),
            ..Environment::default()
        };
        let stdin = format!(
            r#"{{"name":"n","subnetFile":"{}","dataDir":"{}","ipam":{{"dataDir":"{}"}}}}"#,
            path("subnet.env"),
            path("flannel"),
            path("networks")
        );
        NetConf::load(&Call::check(env, stdin.into_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn folders_when_a_configuration_names_none_are_where_they_always_are() {
        let room = tempfile::tempdir().unwrap();
        let mut conf = conf(&room);
        let folders = folders_of(&conf);
        assert!(folders.data_dir.ends_with("/networks") && folders.flannel_dir.ends_with("/flannel"));
        assert!(folders.subnet_file.ends_with("/subnet.env"));
        conf.ipam.insert("dataDir".into(), "".into());
        assert_eq!(folders_of(&conf).data_dir, DATA_DIR);
        conf.ipam.clear();
        assert_eq!(folders_of(&conf).data_dir, DATA_DIR);
    }

    #[test]
    fn mark_when_made_says_nothing_and_when_written_says_now() {
        let room = tempfile::tempdir().unwrap();
        let path = |name: &str| room.path().join(name).to_str().unwrap().to_owned();
        let mark = Mark::open(&path("mark")).unwrap();
        assert_eq!(mark.written(), Some(SystemTime::UNIX_EPOCH));
        assert!(mark.lock(FlockOperation::NonBlockingLockExclusive));
        let other = Mark::open(&path("mark")).unwrap();
        assert!(!other.lock(FlockOperation::NonBlockingLockExclusive));
        mark.write();
        assert!(other.written().is_some_and(is_recent));
        // A link is followed nowhere, and whatever else is there will do.
        std::os::unix::fs::symlink("target", room.path().join("link")).unwrap();
        Mark::open(&path("link")).unwrap();
        assert!(room.path().join("link").symlink_metadata().unwrap().is_file());
        assert!(!room.path().join("target").exists());
        std::fs::create_dir(room.path().join("folder")).unwrap();
        assert!(
            Mark::open(&path("folder"))
                .unwrap()
                .written()
                .is_some_and(is_recent)
        );
        assert!(Mark::open(&path("none/mark")).is_none());
    }

    #[test]
    fn sweep_when_it_was_lately_is_not_due() {
        let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        assert!(is_recent(ago(0)) && is_recent(ago(590)) && !is_recent(ago(610)));
        assert!(!is_recent(SystemTime::now() + Duration::from_secs(60)));
        let room = tempfile::tempdir().unwrap();
        let conf = conf(&room);
        let mark = room.path().join("subnet.env.swept");
        when_due(&conf);
        let written = || std::fs::metadata(&mark).unwrap().modified().unwrap();
        assert!(is_recent(written()));
        let set = |at| std::fs::File::open(&mark).unwrap().set_modified(at).unwrap();
        set(ago(300));
        when_due(&conf);
        assert!(written() < ago(250), "not again");
        set(ago(3600));
        when_due(&conf);
        assert!(is_recent(written()));
        // Somebody else is at it.
        set(ago(3600));
        let held = Mark::open(mark.to_str().unwrap()).unwrap();
        assert!(held.lock(FlockOperation::LockExclusive));
        when_due(&conf);
        assert!(!is_recent(written()));
    }

    #[test]
    fn room_when_nothing_is_dead_is_made_only_by_who_swept_meanwhile() {
        let room = tempfile::tempdir().unwrap();
        let conf = conf(&room);
        assert!(!make_room(&conf));
        let mark = Mark::open(&format!("{}{MARK}", conf.subnet_file)).unwrap();
        assert!(mark.written().is_some_and(is_recent));
        assert!(!make_room(&conf), "that was before");
        let later = SystemTime::now() + Duration::from_secs(60);
        std::fs::File::open(room.path().join("subnet.env.swept"))
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert!(make_room(&conf));
    }

    #[test]
    fn saved_configurations_when_nobody_holds_an_address_for_them_go_if_they_are_old_and_of_the_network() {
        let room = tempfile::tempdir().unwrap();
        let folders = folders_of(&conf(&room));
        let record = |name: &str| {
            format!(
                r#"{{"name":"{name}","type":"bridge","ipam":{{"type":"host-local","dataDir":"{}"}}}}"#,
                folders.data_dir
            )
        };
        std::fs::create_dir(&folders.flannel_dir).unwrap();
        let write = |container: &str, network: &str, age: u64| {
            let file = format!("{}/{container}", folders.flannel_dir);
            std::fs::write(&file, record(network)).unwrap();
            let at = SystemTime::now() - Duration::from_secs(age);
            std::fs::File::open(file).unwrap().set_modified(at).unwrap();
        };
        for (container, network, age) in [
            ("dead", "n", 3600),
            ("young", "n", 0),
            ("held", "n", 3600),
            ("other", "m", 3600),
        ] {
            write(container, network, age);
        }
        let own = format!("{}/.v2", folders.flannel_dir);
        for (name, age) in [("empty", 3600), ("fresh", 0)] {
            std::fs::create_dir_all(format!("{own}/{name}")).unwrap();
            let at = SystemTime::now() - Duration::from_secs(age);
            std::fs::File::open(format!("{own}/{name}"))
                .unwrap()
                .set_modified(at)
                .unwrap();
        }
        let mut found = seen(Fate::Unknown);
        found.reservations[0].owner = Owner::new("held", "eth0");
        assert!(!free(&folders, "n", &found), "nothing of it is garbage");
        let mut left: Vec<String> = std::fs::read_dir(&folders.flannel_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".v2", "held", "other", "young"]);
        assert!(
            !std::fs::exists(format!("{own}/empty")).unwrap()
                && std::fs::exists(format!("{own}/fresh")).unwrap()
        );
    }
}
