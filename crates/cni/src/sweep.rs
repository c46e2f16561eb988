//! Collecting what containers that are gone have left, for runtimes that never call GC: flannel's ADD does it.
//!
//! Before an ADD fails because no address is free, always. Besides, after an ADD that has worked, if none has done so since the
//! machine was started or for a while: the mark of the last time is beside subnet.env, in a folder that is emptied with every start.
//! What is dead, [`inventory`] says; all that an attachment has goes as by its DEL, the reservation last, so that one that is cut off
//! is finished by the next.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};

use crate::bridge::{self, HOST_LOCAL};
use crate::files::FileError;
use crate::flannel::netconf::NetConf;
use crate::flannel::state::{self, Saved};
use crate::host_local::config::DATA_DIR;
use crate::host_local::store::Owner;
use crate::inventory::{self, Inventory, Place, Reservation, State};
use crate::json::{self, Object};

/// At most so often where there is no need.
const PERIOD: Duration = Duration::from_secs(600);
/// What is not older may be of an ADD under way.
const YOUNG: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// After the name of the subnet file.
const MARK: &str = ".swept";

/// The place of a configuration.
pub fn place_of(conf: &NetConf) -> Place {
    let given = conf.ipam.get("dataDir").and_then(serde_json::Value::as_str);
    Place {
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
        let place = place_of(conf);
        if let Some(found) = twice(|| inventory::glance(&place)) {
            free(&place, &conf.name, &found);
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
    let place = place_of(conf);
    let found = twice(|| inventory::look(&place));
    let freed = found.is_some_and(|found| free(&place, &conf.name, &found));
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
    if found.reservations.iter().any(|r| r.state == State::Garbage) {
        std::thread::sleep(BETWEEN_LOOKS);
        let again = look().ok()?;
        // It stays in the list: what is not in it counts as without an address, and loses its saved configuration.
        let doubtful = |r: &&mut Reservation| r.state == State::Garbage && !again.reservations.contains(r);
        for reservation in found.reservations.iter_mut().filter(doubtful) {
            reservation.state = State::Unknown;
        }
    }
    Some(found)
}

/// Frees what is dead in a network and in flannel's others; true when that was something.
fn free(place: &Place, network: &str, found: &Inventory) -> bool {
    let others = found.networks.iter().filter(|n| n.is_flannels);
    let ours = |name: &str| name == network || others.clone().any(|n| n.name == name);
    let dead = |r: &&Reservation| r.state == State::Garbage && ours(&r.network);
    let mut attachments: BTreeMap<(&str, &Owner), Vec<&Reservation>> = BTreeMap::new();
    for r in found.reservations.iter().filter(dead) {
        attachments.entry((&r.network, &r.owner)).or_default().push(r);
    }
    let (mut freed, mut failed): (Vec<String>, Vec<String>) = Default::default();
    for attachment in attachments.values() {
        match inventory::free(place, attachment, true) {
            Ok(done) => {
                freed.extend(done.addresses.iter().map(ToString::to_string));
                failed.extend(done.left);
            }
            Err(e) => failed.push(e.to_string()),
        }
    }
    forget_unreserved(place, network, found);
    if !freed.is_empty() {
        let _ = writeln!(
            std::io::stderr(),
            "freed {} that containers have left which are gone: {}",
            match freed.len() {
                1 => "an address".to_owned(),
                n => format!("{n} addresses"),
            },
            freed.join(" ")
        );
    }
    for why in failed {
        let _ = writeln!(
            std::io::stderr(),
            "something of a container that is gone is left: {why}"
        );
    }
    !freed.is_empty()
}

/// Deletes once more attachments that have a saved configuration but no address: their DEL, or the sweep that took them, was cut off
/// at its end or could not remove all. An attachment that lives all the same needs no configuration for its own DEL.
fn forget_unreserved(place: &Place, network: &str, found: &Inventory) {
    let holders: HashSet<&str> = found
        .reservations
        .iter()
        .map(|r| r.owner.container.as_str())
        .collect();
    let reserves_here = |text: &[u8]| -> Option<bool> {
        let value = json::parse(text).ok()?;
        let config = Object::of(&value).ok()?;
        let ipam = config.object("ipam").ok()?;
        let folder = ipam.string("dataDir").ok()?.filter(|dir| !dir.is_empty());
        Some(
            config.string("name").ok()? == Some(network)
                && ipam.string("type").ok()? == Some(HOST_LOCAL)
                && folder.unwrap_or(DATA_DIR) == place.data_dir,
        )
    };
    for attachment in state::all(&place.flannel_dir).unwrap_or_default() {
        let ifname = attachment.ifname.as_deref().unwrap_or_default();
        let lives = holders.contains(attachment.container.as_str())
            || attachment.is_young()
            || bridge::has_host_end(&Owner::new(&attachment.container, ifname));
        if lives || reserves_here(&attachment.text) != Some(true) {
            continue;
        }
        if !ifname.is_empty() {
            let _ = inventory::detach(place, network, &Owner::new(&attachment.container, ifname));
            continue;
        }
        // Go's file does not tell the interface.
        if let Ok(Some(state)) = state::State::open(&place.flannel_dir, &attachment.container, ifname) {
            let _ = state.forget(&Saved::Legacy(attachment.text), false);
        }
    }
    // A container's folder that is empty, and not because its ADD has just made it.
    let own = format!("{}/.v2", place.flannel_dir);
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
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |flags| rustix::fs::open(path, flags, Mode::from_raw_mode(0o600));
        if let Ok(fd) = open(flags) {
            return Some(Mark(fd));
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

    fn seen(state: State) -> Inventory {
        Inventory {
            reservations: vec![Reservation {
                network: "cbr0".into(),
                address: "10.244.7.2".parse().unwrap(),
                owner: Owner::new("c1", "eth0"),
                since: SystemTime::UNIX_EPOCH,
                state,
                why: state.as_str().into(),
            }],
            ..Inventory::default()
        }
    }

    #[test]
    fn garbage_when_the_second_look_doubts_it_still_counts_as_held() {
        for (second, judged) in [
            (State::Garbage, State::Garbage),
            (State::Alive, State::Unknown),
            (State::Unknown, State::Unknown),
        ] {
            let looks = Cell::new(0);
            let found = twice(|| {
                looks.set(looks.get() + 1);
                Ok(seen(if looks.get() == 1 { State::Garbage } else { second }))
            });
            let states: Vec<State> = found.unwrap().reservations.iter().map(|r| r.state).collect();
            assert_eq!((states, looks.get()), (vec![judged], 2));
        }
    }
}
