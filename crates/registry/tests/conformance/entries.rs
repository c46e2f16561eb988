//! What is made of a store's entries, whatever the store is.

use fabric::lease::{LARGEST_VALUE, Lease, Rejected};
use registry::entries::{Change, Entry, Listing, Scope, Wish, delta};
use registry::etcd3::Stamp;
use registry::memory::Store;

use crate::ground::{subnet, value_of};

const KEY: &str = "10.5.1.0-24";

fn entry(key: &str, value: &str, created: i64) -> Entry<u8> {
    Entry {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        created,
        handle: 0,
    }
}

#[test]
fn an_entry_is_cut_to_what_shows_that_it_is_too_large() {
    let cut = |length: usize| entry(KEY, &"x".repeat(length), 1).cut().value.len();
    assert_eq!(cut(LARGEST_VALUE), LARGEST_VALUE);
    assert_eq!(cut(LARGEST_VALUE + 1), LARGEST_VALUE + 1);
    assert_eq!(cut(LARGEST_VALUE + 100), LARGEST_VALUE + 1);
}

#[test]
fn a_change_tells_its_key_whatever_it_is() {
    let gone: Change<u8> = Change::Gone { key: "a".to_owned() };
    let rejected = Rejected {
        key: "b".to_owned(),
        reason: String::new(),
    };
    let unclear: Change<u8> = Change::Unclear(rejected);
    assert_eq!(
        (gone.key(), unclear.key(), Change::Put(entry("c", "", 1)).key()),
        ("a", "b", "c")
    );
}

#[test]
fn a_delta_is_what_the_changes_come_to() {
    let good = value_of("192.0.2.1");
    let gone = |key: &str| Change::Gone { key: key.to_owned() };
    let nothing: Vec<(i64, Change<u8>)> = Vec::new();
    assert!(delta(&nothing).is_none());
    let changes = [
        (7, Change::Put(entry("junk", "x", 7))),
        (8, Change::Put(entry(KEY, &good, 5))),
        (6, gone("10.5.2.0-24")),
        (9, gone("other")),
    ];
    let told = delta(&changes).unwrap();
    assert_eq!(told.revision, 9);
    let changed: Vec<_> = told
        .changes
        .iter()
        .map(|(subnet, lease)| (*subnet, lease.as_ref().map(|l| l.created)))
        .collect();
    assert_eq!(changed, [(subnet(KEY), Some(5)), (subnet("10.5.2.0-24"), None)]);
    assert_eq!(
        (told.rejected[0].key.as_str(), told.gone),
        ("junk", vec!["other".to_owned()])
    );
    let unclear = Rejected {
        key: "other".to_owned(),
        reason: "x".to_owned(),
    };
    let again = delta::<u8>(&[
        (1, gone("other")),
        (2, Change::Unclear(unclear.clone())),
        (3, Change::Unclear(unclear)),
    ])
    .unwrap();
    assert_eq!((again.gone.len(), again.rejected.len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_listing_takes_leases_what_is_noted_and_the_own_entry_in_full() {
    use registry::entries::Entries;
    let store = Store::new(std::time::Duration::from_secs(60));
    let client = store.client();
    let large = format!("{}{}", value_of("192.0.2.1"), " ".repeat(2 * LARGEST_VALUE));
    store.put(KEY, &value_of("192.0.2.1"), None);
    store.put("10.5.2.0-24", &value_of("192.0.2.2"), None);
    store.put("large", &large, None);
    let note =
        |key: &str, _: &registry::memory::Stamp, lease: Option<&Lease>| key == "large" && lease.is_none();
    let wish = Wish {
        scope: Scope::All,
        note: &note,
        own: Some("large"),
    };
    let listing = client.list(&wish).await.unwrap();
    assert_eq!(
        (listing.snapshot.leases.len(), listing.snapshot.rejected.len()),
        (2, 1)
    );
    assert_eq!(listing.noted.len(), 1);
    assert_eq!(listing.own.unwrap().value.len(), LARGEST_VALUE + 1);
    let later = client.list(&Wish::leases(Scope::CreatedAfter(1))).await.unwrap();
    assert_eq!(
        later.snapshot.leases.into_keys().collect::<Vec<_>>(),
        [subnet("10.5.2.0-24")]
    );
    assert!(later.noted.is_empty() && later.own.is_none());
    let nothing: Listing<Stamp> = Listing::default();
    assert!(nothing.snapshot.leases.is_empty() && nothing.own.is_none());
}
