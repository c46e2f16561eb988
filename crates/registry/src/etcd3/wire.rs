//! From etcd's replies to leases. Everything here reads what others wrote: no input may panic, and no bad entry may take a
//! good one with it.

use etcd_proto::etcdserverpb::WatchResponse;
use etcd_proto::mvccpb::event::EventType;
use etcd_proto::mvccpb::{Event, KeyValue};
use fabric::lease::{Delta, Lease, Rejected, Snapshot, Subnet};

use super::keys::Keys;

/// Takes one listed entry into a snapshot; its lease, if it is one. Keys elsewhere are not ours to judge.
pub fn take_entry<'a>(keys: &Keys, entry: &KeyValue, snapshot: &'a mut Snapshot) -> Option<&'a Lease> {
    let key = keys.below(&entry.key)?;
    match Lease::read(&key, &entry.value, entry.create_revision) {
        Ok(lease) => {
            let place = snapshot.leases.entry(lease.subnet);
            Some(place.insert_entry(lease).into_mut())
        }
        Err(rejected) => {
            snapshot.rejected.push(rejected);
            None
        }
    }
}

/// What the events of one revision or more change; `None` when that is nothing.
///
/// A put that makes a good entry unreadable changes nothing: the lease that was there stays, and the entry is reported.
/// Deleting an entry that never was a lease changes nothing either.
pub fn delta_from(keys: &Keys, events: &[Event]) -> Option<Delta> {
    let mut delta = Delta::default();
    for event in events {
        let Some(entry) = &event.kv else {
            continue;
        };
        delta.revision = delta.revision.max(entry.mod_revision);
        let Some(key) = keys.below(&entry.key) else {
            continue;
        };
        match EventType::try_from(event.r#type) {
            Ok(EventType::Put) => match Lease::read(&key, &entry.value, entry.create_revision) {
                Ok(lease) => {
                    delta.rejected.retain(|earlier| earlier.key != key);
                    delta.changes.push((lease.subnet, Some(lease)));
                }
                Err(rejected) => delta.rejected.push(rejected),
            },
            Ok(EventType::Delete) => {
                if let Ok(subnet) = Subnet::parse_key(&key) {
                    delta.rejected.retain(|earlier| earlier.key != key);
                    delta.changes.push((subnet, None));
                }
            }
            Err(_) => delta.rejected.push(Rejected {
                key: key.into_owned(),
                reason: format!("event of unknown type {}, expected put or delete", event.r#type),
            }),
        }
    }
    (!delta.changes.is_empty() || !delta.rejected.is_empty()).then_some(delta)
}

/// What a response on the watch means.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The watch stands, or nothing happened up to this revision.
    Progress(i64),
    /// These events happened; more of the same revision follow when `more`.
    Events {
        /// In order.
        events: Vec<Event>,
        /// This was a fragment.
        more: bool,
    },
    /// The revision asked for is compacted: list again.
    Compacted(i64),
    /// The server ended the watch, in its words.
    Canceled(String),
}

/// Reads a response on the watch.
pub fn told(response: WatchResponse) -> Told {
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    if response.compact_revision != 0 {
        return Told::Compacted(response.compact_revision);
    }
    if response.canceled {
        let reason = response.cancel_reason;
        return Told::Canceled(if reason.is_empty() {
            "the server ended the watch".to_owned()
        } else {
            reason
        });
    }
    if response.events.is_empty() && !response.fragment {
        return Told::Progress(revision);
    }
    Told::Events {
        events: response.events,
        more: response.fragment,
    }
}

/// For fuzzing: a watch response as it came from the wire, decoded, judged and turned into leases.
pub fn delta_from_bytes(keys: &Keys, bytes: &[u8]) -> Option<Delta> {
    use prost::Message;
    match told(WatchResponse::decode(bytes).ok()?) {
        Told::Events { events, .. } => delta_from(keys, &events),
        Told::Progress(_) | Told::Compacted(_) | Told::Canceled(_) => None,
    }
}

/// For fuzzing: a page of a listing as it came from the wire.
pub fn snapshot_from_bytes(keys: &Keys, bytes: &[u8]) -> Option<Snapshot> {
    use prost::Message;
    let page = etcd_proto::etcdserverpb::RangeResponse::decode(bytes).ok()?;
    let mut snapshot = Snapshot::default();
    for entry in &page.kvs {
        take_entry(keys, entry, &mut snapshot);
    }
    Some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etcd_proto::etcdserverpb::ResponseHeader;

    const GOOD: &str = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"host-gw"}"#;

    fn event(kind: i32, key: &str, value: &str, revision: i64) -> Event {
        let kv = KeyValue {
            key: format!("/n/subnets/{key}").into_bytes(),
            value: value.as_bytes().to_vec(),
            create_revision: revision,
            mod_revision: revision,
            ..Default::default()
        };
        Event {
            r#type: kind,
            kv: Some(kv),
            prev_kv: None,
        }
    }

    #[test]
    fn a_bad_put_that_is_made_good_at_once_is_no_longer_rejected_and_a_later_one_is() {
        let keys = Keys::new("/n");
        let (bad, good) = (event(0, "10.5.1.0-24", "{", 5), event(0, "10.5.1.0-24", GOOD, 6));
        let delta = delta_from(&keys, &[bad.clone(), good.clone()]).unwrap();
        assert_eq!((delta.changes.len(), delta.rejected.len()), (1, 0));
        let delta = delta_from(&keys, &[good, bad]).unwrap();
        assert_eq!((delta.changes.len(), delta.rejected.len()), (1, 1));
    }

    #[test]
    fn a_bad_put_is_rejected_and_takes_no_lease_away() {
        let keys = Keys::new("/n");
        let events = [
            event(0, "10.5.1.0-24", GOOD, 5),
            event(0, "10.5.2.0-24", "{\"PublicIP\":null}", 6),
            event(0, "junk", GOOD, 7),
            event(1, "junk", "", 8),
            event(1, "10.5.3.0-24", "", 9),
            event(7, "10.5.4.0-24", GOOD, 10),
            Event::default(),
        ];
        let delta = delta_from(&keys, &events).unwrap();
        assert_eq!(delta.revision, 10);
        let changes: Vec<(String, bool)> = delta
            .changes
            .iter()
            .map(|(subnet, lease)| (subnet.to_string(), lease.is_some()))
            .collect();
        assert_eq!(
            changes,
            [
                ("10.5.1.0-24".to_owned(), true),
                ("10.5.3.0-24".to_owned(), false)
            ]
        );
        let rejected: Vec<&str> = delta.rejected.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(rejected, ["10.5.2.0-24", "junk", "10.5.4.0-24"]);
    }

    #[test]
    fn events_elsewhere_or_of_nothing_make_no_delta() {
        let keys = Keys::new("/other");
        assert_eq!(delta_from(&keys, &[event(0, "10.5.1.0-24", GOOD, 5)]), None);
        assert_eq!(delta_from(&keys, &[]), None);
        assert_eq!(delta_from(&Keys::new("/n"), &[event(1, "junk", "", 5)]), None);
    }

    #[test]
    fn a_watch_response_is_told_apart_from_its_end() {
        let header = Some(ResponseHeader {
            revision: 7,
            ..Default::default()
        });
        let created = WatchResponse {
            header,
            created: true,
            ..Default::default()
        };
        assert_eq!(told(created.clone()), Told::Progress(7));
        let compacted = WatchResponse {
            canceled: true,
            compact_revision: 9,
            ..created.clone()
        };
        assert_eq!(told(compacted), Told::Compacted(9));
        let canceled = WatchResponse {
            canceled: true,
            cancel_reason: "etcdserver: permission denied".to_owned(),
            ..created.clone()
        };
        assert_eq!(
            told(canceled),
            Told::Canceled("etcdserver: permission denied".to_owned())
        );
        let fragment = WatchResponse {
            fragment: true,
            created: false,
            ..created
        };
        assert!(matches!(told(fragment), Told::Events { more: true, .. }));
    }
}
