//! Freeing what a dead container held.

use std::net::IpAddr;

use super::{Folders, Reservation, written};
use crate::call::is_plain_name;
use crate::files::FileError;
use crate::host_local::store::Store;
use crate::owner::Owner;

/// Does what a runtime's DEL of an attachment in a network would do.
pub type Detach<'a> = &'a dyn Fn(&Folders, &str, &Owner) -> Vec<String>;

/// What became of an attachment's reservations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// What is free now; nothing where all has changed hands, or was released, since it was judged.
    pub addresses: Vec<IpAddr>,
    /// What could not be taken along, and why.
    pub left: Vec<String>,
}

/// Frees reservations of one attachment in one network, looked at once more under the network's lock: what has changed hands since
/// it was judged stays.
///
/// `detach`: what else was made for the attachment goes along, by that, as by a runtime's DEL; it tells what could not be removed.
///
/// # Errors
///
/// Those of the store's files.
pub fn free(
    folders: &Folders,
    attachment: &[&Reservation],
    detach: Option<Detach<'_>>,
) -> Result<Freed, FileError> {
    let Some(first) = attachment.first() else {
        return Ok(Freed::default());
    };
    let Some(mut store) = Store::open(&folders.data_dir, &first.network)? else {
        return Ok(Freed::default());
    };
    let same: Vec<&Reservation> = attachment
        .iter()
        .copied()
        .filter(|it| stands(&store, it))
        .collect();
    let judged = |ip: &IpAddr| same.iter().any(|it| it.address == *ip);
    if same.is_empty() || !store.held_by(&first.owner)?.iter().all(judged) {
        // An attachment that has got another address meanwhile lives.
        return Ok(Freed::default());
    }
    let mut left = Vec::new();
    if let Some(detach) = detach
        && is_plain_name(&first.owner.container)
        && !first.owner.ifname.is_empty()
    {
        // Each of these takes the lock itself. Until the reservation goes nobody can get the address, nor its holder another.
        drop(store);
        left = detach(folders, &first.network, &first.owner);
        match Store::open(&folders.data_dir, &first.network)? {
            Some(again) => store = again,
            None => {
                let addresses = same.iter().map(|it| it.address).collect();
                return Ok(Freed { addresses, left });
            }
        }
    }
    let rest: Vec<&Reservation> = same.iter().copied().filter(|it| stands(&store, it)).collect();
    if !rest.is_empty() {
        let gone: Vec<IpAddr> = rest.iter().map(|it| it.address).collect();
        let held = store.held_by(&first.owner)?;
        store.remove(&gone)?;
        let held: Vec<IpAddr> = held.into_iter().filter(|ip| !gone.contains(ip)).collect();
        store.index(&first.owner, &held);
    }
    let addresses = same.iter().map(|it| it.address).collect();
    Ok(Freed { addresses, left })
}

/// The reservation is the one that was judged.
fn stands(store: &Store, it: &Reservation) -> bool {
    let file = format!("{}/{}", store.path(), it.address);
    store.holder(it.address).as_ref() == Some(&it.owner) && written(&file).is_ok_and(|at| at == it.since)
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::{Fate, tests::Room};
    use std::cell::RefCell;
    use std::time::SystemTime;

    fn judged(room: &Room, ip: &str, owner: &Owner) -> Reservation {
        let file = room.path(&format!("networks/n/{ip}"));
        Reservation {
            network: "n".into(),
            address: ip.parse().unwrap(),
            owner: owner.clone(),
            since: written(&file).unwrap(),
            fate: Fate::Garbage,
            why: String::new(),
        }
    }

    fn addresses(freed: &Freed) -> Vec<String> {
        freed.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn attachment_when_it_is_as_it_was_judged_is_freed_and_otherwise_stays() {
        let room = Room::new();
        let (folders, owner) = (room.folders(), Owner::new("c1", "eth0"));
        assert_eq!(free(&folders, &[], None).unwrap(), Freed::default());
        room.reserve("n", "10.0.0.2", &owner, 3600);
        room.reserve("n", "10.0.0.3", &owner, 3600);
        let (two, three) = (
            judged(&room, "10.0.0.2", &owner),
            judged(&room, "10.0.0.3", &owner),
        );
        assert_eq!(
            free(&folders, &[&two], None).unwrap(),
            Freed::default(),
            "it has another address"
        );
        // Written again since, as by a runtime that gave the same address to the same name.
        std::fs::File::open(room.path("networks/n/10.0.0.3"))
            .unwrap()
            .set_modified(SystemTime::now())
            .unwrap();
        assert_eq!(free(&folders, &[&two, &three], None).unwrap(), Freed::default());
        let three = judged(&room, "10.0.0.3", &owner);
        let freed = free(&folders, &[&two, &three], None).unwrap();
        assert_eq!(
            (addresses(&freed), freed.left.is_empty()),
            (vec!["10.0.0.2".into(), "10.0.0.3".into()], true)
        );
        assert!(!std::fs::exists(room.path("networks/n/10.0.0.2")).unwrap());
        assert_eq!(free(&folders, &[&two], None).unwrap(), Freed::default(), "gone");
        room.reserve("n", "10.0.0.2", &Owner::new("c2", "eth0"), 3600);
        let anothers = Reservation {
            since: written(&room.path("networks/n/10.0.0.2")).unwrap(),
            ..two.clone()
        };
        assert_eq!(
            free(&folders, &[&anothers], None).unwrap(),
            Freed::default(),
            "it has changed hands"
        );
        let elsewhere = Reservation {
            network: "none".into(),
            ..two
        };
        assert_eq!(free(&folders, &[&elsewhere], None).unwrap(), Freed::default());
    }

    #[test]
    fn attachment_when_freed_is_detached_first_where_its_name_allows() {
        let room = Room::new();
        let folders = room.folders();
        let calls = RefCell::new(Vec::new());
        let detach = |_: &Folders, network: &str, owner: &Owner| {
            calls
                .borrow_mut()
                .push(format!("{network} {} {}", owner.container, owner.ifname));
            vec!["something".to_owned()]
        };
        let freed = |container: &str, ifname: &str| {
            let owner = Owner::new(container, ifname);
            room.reserve("n", "10.0.0.2", &owner, 3600);
            free(&folders, &[&judged(&room, "10.0.0.2", &owner)], Some(&detach)).unwrap()
        };
        let first = freed("c1", "eth0");
        assert_eq!(
            (addresses(&first), first.left),
            (vec!["10.0.0.2".to_owned()], vec!["something".to_owned()])
        );
        assert!(freed("c1", "").left.is_empty() && freed("a b", "eth0").left.is_empty());
        assert_eq!(*calls.borrow(), ["n c1 eth0"]);
        assert!(!std::fs::exists(room.path("networks/n/10.0.0.2")).unwrap());
        // One that does all of it.
        let owner = Owner::new("c1", "eth0");
        room.reserve("n", "10.0.0.2", &owner, 3600);
        let whole = |folders: &Folders, _: &str, _: &Owner| {
            std::fs::remove_dir_all(&folders.data_dir).unwrap();
            Vec::new()
        };
        let done = free(&folders, &[&judged(&room, "10.0.0.2", &owner)], Some(&whole)).unwrap();
        assert_eq!(addresses(&done), ["10.0.0.2"]);
    }
}
