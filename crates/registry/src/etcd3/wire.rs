//! From etcd's replies to leases. Everything here reads what others wrote: no input may panic, and no bad entry may take a
//! good one with it.

use etcd_proto::etcdserverpb::WatchResponse;
use etcd_proto::mvccpb::Event;
use etcd_proto::mvccpb::event::EventType;
use fabric::lease::{Delta, Rejected, Snapshot, name_of};

use super::store::{Stamp, entry_of};
use crate::entries::{Change, Listing, Scope, Wish, delta};
use crate::etcd::Keys;

/// What the events of one revision or more change, each with the number of its revision. Keys elsewhere are not ours to judge.
pub fn changes_from(keys: &Keys, events: Vec<Event>) -> Vec<(i64, Change<Stamp>)> {
    let change = |event: Event| {
        let kind = EventType::try_from(event.r#type);
        let entry = event.kv?;
        let number = entry.mod_revision;
        let change = match kind {
            Ok(EventType::Put) => Change::Put(entry_of(keys, entry)?),
            Ok(EventType::Delete) => Change::Gone {
                key: name_of(&keys.below(&entry.key)?).into_owned(),
            },
            Err(_) => Change::Unclear(Rejected {
                key: name_of(&keys.below(&entry.key)?).into_owned(),
                reason: format!("event of unknown type {}, expected put or delete", event.r#type),
            }),
        };
        Some((number, change))
    };
    events.into_iter().filter_map(change).collect()
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
        Told::Events { events, .. } => delta(&changes_from(keys, events)),
        Told::Progress(_) | Told::Compacted(_) | Told::Canceled(_) => None,
    }
}

/// For fuzzing: a page of a listing as it came from the wire.
pub fn snapshot_from_bytes(keys: &Keys, bytes: &[u8]) -> Option<Snapshot> {
    use prost::Message;
    let page = etcd_proto::etcdserverpb::RangeResponse::decode(bytes).ok()?;
    let mut listing = Listing::default();
    for entry in &page.kvs {
        if let Some(key) = keys.below(&entry.key) {
            let wish = Wish::leases(Scope::All);
            listing.take(key, &entry.value, entry.create_revision, &Stamp::of(entry), &wish);
        }
    }
    Some(listing.snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etcd_proto::etcdserverpb::ResponseHeader;
    use etcd_proto::mvccpb::KeyValue;

    fn delta_from(keys: &Keys, events: &[Event]) -> Option<Delta> {
        delta(&changes_from(keys, events.to_vec()))
    }

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
        assert_eq!(rejected, ["10.5.2.0-24", "10.5.4.0-24"]);
        assert_eq!(delta.gone, ["junk"]);
    }

    /// 1 MB of it, put and deleted again and again.
    #[test]
    fn an_entry_that_is_none_leaves_nothing_but_a_name_whatever_it_holds() {
        let keys = Keys::new("/n");
        let (key, value) = ("k".repeat(1 << 20), "v".repeat(1 << 20));
        let (put, deleted) = (event(0, &key, &value, 5), event(1, &key, "", 6));
        for (_, change) in changes_from(&keys, vec![put.clone(), deleted.clone()]) {
            assert!(change.key().len() < 200);
            let Change::Put(entry) = change else { continue };
            assert_eq!(entry.value.capacity(), fabric::lease::LARGEST_VALUE + 1);
        }
        let cycle = [put.clone(), deleted, put];
        let delta = delta_from(&keys, &cycle).unwrap();
        assert_eq!((delta.rejected.len(), delta.gone.len()), (1, 0));
        let (_, deleted) = (0, event(1, &key, "", 7));
        let gone = delta_from(&keys, &[cycle.to_vec(), vec![deleted]].concat()).unwrap();
        assert_eq!(
            (gone.rejected.len(), gone.gone),
            (0, vec![delta.rejected[0].key.clone()])
        );
        let large = delta_from(&keys, &[event(0, "10.5.1.0-24", &value, 5)]).unwrap();
        assert!(large.changes.is_empty());
        assert!(large.rejected[0].reason.contains("more bytes than a lease needs"));
    }

    #[test]
    fn events_elsewhere_or_of_nothing_make_no_delta() {
        let keys = Keys::new("/other");
        assert_eq!(delta_from(&keys, &[event(0, "10.5.1.0-24", GOOD, 5)]), None);
        assert_eq!(delta_from(&keys, &[]), None);
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
