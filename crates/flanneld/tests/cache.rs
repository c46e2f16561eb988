//! The cache on disk: what was written is what is read, what was not is not served from, and the clocks decide as they should.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, Snapshot, Subnet, Update};
use fabric::node::{Node, Provided, Underlay};
use fabric::object::{LinkName, Objects};
use fabric::plan;
use fabric::world::World;
use flanneld::cache::{Cache, Head, Moment, Own, Source, Useless, lines, parse};
use flanneld::flags::{CommandLine, command_line};
use flanneld::state_dir::StateDir;
use proptest::prelude::*;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn source(flags: &[&str]) -> Source {
    let words = ["flanneld"].iter().chain(flags).map(OsString::from);
    let CommandLine::Run(start) = command_line(words, |_| None, "0") else {
        panic!("{flags:?}")
    };
    Source::of(&start.options.registry)
}

fn moment(wall: u64, boot: &str, uptime: u64) -> Moment {
    Moment {
        wall,
        boot: boot.to_owned(),
        uptime,
    }
}

fn head(left: Option<u64>, saved: Moment, text: &[u8]) -> Head {
    let own = Own {
        subnet: "10.5.0.0-24".to_owned(),
        value: r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#.to_owned(),
        left,
    };
    Head::new(source(&[]), None, saved, 7, CONFIG.to_owned(), own, text)
}

fn lease(subnet: u8, host: u8, mac: u8, kind: &str) -> Lease {
    let subnet = Subnet::parse_key(&format!("10.5.{subnet}.0-24")).unwrap();
    Lease {
        subnet,
        attributes: Attributes {
            public_ip: [192, 0, 2, host].into(),
            public_ip6: None,
            backend_type: kind.into(),
            data: Some(format!("{{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:{mac:02x}\"}}").into()),
            data6: None,
        },
        created: i64::from(host) + 3,
    }
}

fn snapshot(leases: impl IntoIterator<Item = Lease>) -> Snapshot {
    Snapshot {
        revision: 7,
        leases: leases.into_iter().map(|lease| (lease.subnet, lease)).collect(),
        rejected: Vec::new(),
    }
}

fn desired(snapshot: Snapshot) -> Objects {
    let network = NetworkConfig::parse(CONFIG.as_bytes()).unwrap();
    let backend = plan::backend(&network.backend).unwrap();
    let public = Some("192.0.2.1".parse().unwrap());
    let underlay = Underlay {
        link: LinkName::new("eth0").unwrap(),
        mtu: 1500,
        address4: public,
        address6: None,
        public4: public,
        public6: None,
        segments: Vec::new(),
    };
    let subnet = Subnet::parse_key("10.5.0.0-24").unwrap();
    let identity = backend.identity(&network, &subnet, &Objects::new(), None, &Provided::default());
    let mut world = World::new(
        backend,
        Node {
            network,
            underlay,
            subnet,
            identity,
            provided: Provided::default(),
        },
    );
    world.update(Update::Snapshot(snapshot));
    world.desired().clone()
}

fn written(folder: &Path, snapshot: &Snapshot) -> (Cache, Head) {
    let cache = Cache::at(folder.join("cache"));
    let text = lines(snapshot.leases.values());
    let head = head(Some(60), moment(1000, "a", 10), &text);
    cache.save(&head, &text).unwrap();
    (cache, head)
}

proptest! {
    #[test]
    fn plan_when_made_from_the_cache_is_the_one_made_from_the_snapshot(
        leases in proptest::collection::vec((any::<u8>(), any::<u8>(), any::<u8>(), "(vxlan|host-gw|\\PC{0,4})"), 0..20)
    ) {
        let all = snapshot(leases.iter().map(|(subnet, host, mac, kind)| lease(*subnet, *host, *mac, kind)));
        let folder = tempfile::tempdir().unwrap();
        let (cache, head) = written(folder.path(), &all);
        let (read, again) = cache.load().unwrap().unwrap();
        prop_assert_eq!(read, head);
        prop_assert_eq!(&again, &all);
        prop_assert_eq!(desired(again), desired(all));
    }

    #[test]
    fn parse_when_the_file_holds_anything_refuses_it(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse(&mut bytes.as_slice()).is_err());
        let mut like = b"flannel-cache 1 ".to_vec();
        like.append(&mut bytes);
        prop_assert!(parse(&mut like.as_slice()).is_err());
    }
}

#[test]
fn parse_when_the_file_is_torn_or_a_bit_of_it_flipped_refuses_it() {
    let all = snapshot((1..4).map(|n| lease(n, n, n, "vxlan")));
    let folder = tempfile::tempdir().unwrap();
    let (cache, _) = written(folder.path(), &all);
    let whole = fs::read(cache.file()).unwrap();
    assert!(parse(&mut whole.as_slice()).is_ok());
    for length in 0..whole.len() {
        assert!(parse(&mut &whole[..length]).is_err(), "torn at {length}");
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[length] ^= 1 << bit;
            assert!(
                parse(&mut flipped.as_slice()).is_err(),
                "bit {bit} of byte {length}"
            );
        }
    }
    for more in ["\n", "x", "10.5.9.0-24 1 {}\n"] {
        let longer = [&whole, more.as_bytes()].concat();
        assert!(parse(&mut longer.as_slice()).is_err(), "{more:?} at the end");
    }
    // Zeros where data had been promised: what some file systems leave after a power cut.
    for length in [0, 10, whole.len() / 2, whole.len() - 1] {
        let mut zeros = whole.clone();
        zeros[length..].fill(0);
        assert!(parse(&mut zeros.as_slice()).is_err(), "zeros from {length}");
    }
}

#[test]
fn head_when_the_leases_are_torn_is_still_read_and_the_whole_is_not() {
    let all = snapshot([lease(1, 1, 1, "vxlan")]);
    let folder = tempfile::tempdir().unwrap();
    let (cache, head) = written(folder.path(), &all);
    let whole = fs::read(cache.file()).unwrap();
    fs::write(cache.file(), &whole[..whole.len() - 1]).unwrap();
    assert_eq!(cache.head().unwrap(), Some(head));
    assert!(cache.load().is_err());
    cache.forget().unwrap();
    cache.forget().unwrap();
    assert_eq!((cache.head().unwrap(), cache.load().unwrap()), (None, None));
}

#[test]
fn judge_when_the_registry_is_another_says_so() {
    let now = moment(1000, "a", 10);
    let head = head(Some(60), now.clone(), b"");
    let judged = |flags: &[&str]| head.judge(&source(flags), &now);
    for same in [
        &[][..],
        &["--etcd-prefix=/coreos.com//network/"],
        &["--etcd-endpoints=https://127.0.0.1:2379,http://192.0.2.9:2379"],
        &["--etcd-endpoints=127.0.0.1:4001"],
    ] {
        assert_eq!(judged(same), Ok(None), "{same:?}");
    }
    assert!(matches!(
        judged(&["--etcd-prefix=/n"]),
        Err(Useless::Prefix { .. })
    ));
    for other in [
        "http://192.0.2.9:2379",
        "http://127.0.0.1:2380",
        "unix:///run/etcd",
    ] {
        let flag = format!("--etcd-endpoints={other}");
        assert!(matches!(judged(&[&flag]), Err(Useless::Endpoints(_))), "{other}");
    }
}

#[test]
fn judge_when_time_has_passed_goes_by_every_clock_that_can_tell() {
    let saved = moment(100_000, "a", 500);
    let is_good = |left, now: Moment| {
        let head = head(left, saved.clone(), b"");
        match head.judge(&source(&[]), &now) {
            Ok(None) => "good",
            Ok(Some(doubt)) => {
                let text = doubt.to_string();
                assert!(
                    text.contains("cannot be told") && text.contains("1970-01-02"),
                    "{text}"
                );
                "doubtful"
            }
            Err(Useless::Expired { .. }) => "expired",
            Err(other) => panic!("{other}"),
        }
    };
    for (now, expected) in [
        // The same boot: the clock that nobody sets decides.
        (moment(100_059, "a", 559), "good"),
        (moment(100_060, "a", 560), "expired"),
        (moment(100_010, "a", 560), "expired"),
        // The wall clock was set ahead, or back: the other one knows.
        (moment(900_000, "a", 510), "good"),
        (moment(5, "a", 559), "good"),
        (moment(5, "a", 560), "expired"),
        // Another boot: only the wall clock can tell, if it knows the time.
        (moment(100_059, "b", 3), "good"),
        (moment(100_060, "b", 3), "expired"),
        (moment(99_950, "b", 3), "good"),
        (moment(99_000, "b", 3), "doubtful"),
        (moment(5, "b", 3), "doubtful"),
        (moment(5, "", 300), "doubtful"),
        // Time since boot that went back is another boot, whatever its name.
        (moment(5, "a", 3), "doubtful"),
        // It has been running for longer than the lease had left.
        (moment(5, "b", 60), "expired"),
        (moment(100_010, "b", 60), "expired"),
    ] {
        assert_eq!(is_good(Some(60), now.clone()), expected, "{now:?}");
        assert_eq!(is_good(None, now), "good", "a reservation has no end");
    }
    assert_eq!(is_good(Some(0), saved.clone()), "expired");
}

#[test]
fn caches_of_two_daemons_on_one_host_are_two_files() {
    let folder = tempfile::tempdir().unwrap();
    let place = |file: &str| StateDir::under(folder.path(), Path::new(file)).cache();
    let default = place("/run/flannel/subnet.env");
    assert_eq!(default.file(), folder.path().join("cache"));
    assert_ne!(default.file(), place("/run/flannel/second.env").file());
    assert_ne!(place("/a.env").file(), place("/b.env").file());
}

#[test]
fn file_when_there_are_4000_leases_is_small() {
    let all: Vec<Lease> = (0..4000_u32)
        .map(|n| {
            let [_, _, high, low] = n.to_be_bytes();
            let mut lease = lease(low, high, low, "vxlan");
            lease.subnet = Subnet::parse_key(&format!("10.{high}.{low}.0-24")).unwrap();
            lease
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let (cache, _) = written(folder.path(), &snapshot(all));
    let size = fs::metadata(cache.file()).unwrap().len();
    assert!((400_000..600_000).contains(&size), "{size} bytes");
}
