//! ipip where the kernel has it; where it has not, what is said about that. Which of the two was tested is printed.

use std::io::Write as _;

use fabric::kind::Ipip;
use fabric::object::{Key, Link, Object, Op};
use kernel::{ApplyOptions, Kernel, Scope};
use rustix::io::Errno;
use serde_json::json;

use crate::scratch::{Scratch, link};

const PLAIN: ApplyOptions = ApplyOptions {
    nexthop_objects: false,
};

/// Whether the kernel makes ipip tunnels, as another program finds out; it leaves the namespace as it was.
fn is_there(scratch: &Scratch) -> bool {
    let tried = std::process::Command::new("ip")
        .args(["-n", scratch.name(), "link", "add", "probe", "type", "ipip"])
        .args(["local", "192.0.2.99"])
        .output()
        .unwrap();
    let there = tried.status.success();
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "ipip: this kernel has {}", if there { "it" } else { "none" });
    if there {
        scratch.ip("link del probe");
    }
    there
}

fn tunnel() -> Link {
    Link {
        name: link("flannel.ipip"),
        kind: Ipip {
            local: "192.0.2.1".parse().unwrap(),
            remote: None,
            plain: true,
        }
        .into(),
        mac: None,
        mtu: 1480,
        up: true,
    }
}

fn object(link: &Link) -> Object {
    Object::Link(Box::new(link.clone()))
}

fn seen(kernel: &mut Kernel) -> Object {
    kernel.observe(Scope::All).unwrap();
    let key = Key::Link(link("flannel.ipip"));
    kernel.objects().get(&key).cloned().unwrap()
}

#[test]
fn tunnel_when_made_changed_and_refused_then_as_iproute2_sees_it_or_said_in_plain_words() {
    let scratch = Scratch::new();
    let has_ipip = is_there(&scratch);
    let mut kernel = scratch.kernel(&["flannel.ipip", "eth0"], &["10.5.0.0/16"]);
    kernel.observe(Scope::All).unwrap();
    let add = Op::Add(object(&tunnel()));
    let outcome = kernel.apply(std::slice::from_ref(&add), PLAIN).remove(0);
    if !has_ipip {
        let error = outcome.error().expect("refused");
        assert!(error.is(Errno::OPNOTSUPP), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("this kernel has no ipip tunnels (module ipip); `modprobe ipip`"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
        return;
    }
    assert!(outcome.is_ok(), "{outcome}");
    let shown = scratch.ip_json("-d link show flannel.ipip").remove(0);
    let data = &shown["linkinfo"]["info_data"];
    for (what, found, expected) in [
        ("kind", &shown["linkinfo"]["info_kind"], json!("ipip")),
        ("type", &shown["link_type"], json!("ipip")),
        ("mtu", &shown["mtu"], json!(1480)),
        ("queue", &shown["txqlen"], json!(null)),
        ("proto", &data["proto"], json!("any")),
        ("remote", &data["remote"], json!("any")),
        ("local", &data["local"], json!("192.0.2.1")),
        ("ttl", &data["ttl"], json!(0)),
        ("pmtudisc", &data["pmtudisc"], json!(false)),
    ] {
        assert_eq!(found, &expected, "{what}: {shown}");
    }
    assert_eq!(seen(&mut kernel), object(&tunnel()));
    assert_eq!(
        kernel.apply(std::slice::from_ref(&add), PLAIN)[0].to_string(),
        "already"
    );

    // Options of others are put right on the same device.
    let index = kernel.link_index(link("flannel.ipip"));
    scratch.ip("link set flannel.ipip type ipip local 192.0.2.1 ttl 64 tos 1 pmtudisc");
    let bent = seen(&mut kernel);
    let mut expected = tunnel();
    expected.kind = Ipip {
        local: "192.0.2.1".parse().unwrap(),
        remote: None,
        plain: false,
    }
    .into();
    assert_eq!(bent, object(&expected));
    let change = Op::Change {
        from: bent,
        to: object(&tunnel()),
    };
    assert!(kernel.apply(&[change], PLAIN)[0].is_ok());
    assert_eq!(seen(&mut kernel), object(&tunnel()));
    assert_eq!(kernel.link_index(link("flannel.ipip")), index);

    // Another tunnel with the same ends keeps ours from being made, and is named.
    let mut other = tunnel();
    scratch.ip("link set flannel.ipip down");
    scratch.ip("link set flannel.ipip name other");
    kernel.observe(Scope::All).unwrap();
    let refused = kernel.apply(std::slice::from_ref(&add), PLAIN).remove(0);
    let text = refused.to_string();
    assert!(
        text.ends_with("another ipip tunnel of this host has the same local address and no remote one"),
        "{text}"
    );
    scratch.ip("link del other");

    // One under our name with another end is said to be there.
    scratch.ip("link add flannel.ipip type ipip local 192.0.2.1 remote 192.0.2.2");
    let refused = kernel.apply(&[add], PLAIN).remove(0);
    assert!(
        refused
            .to_string()
            .contains("its name is taken by link flannel.ipip"),
        "{refused}"
    );
    other.kind = Ipip {
        local: "192.0.2.1".parse().unwrap(),
        remote: "192.0.2.2".parse().ok(),
        plain: false,
    }
    .into();
    let Object::Link(there) = seen(&mut kernel) else {
        panic!()
    };
    assert_eq!(there.kind, other.kind);
}
