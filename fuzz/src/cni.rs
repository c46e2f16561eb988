//! Bodies of the fuzz targets for crate `cni`: each takes any bytes and panics where a promise is broken.
//!
//! Compiled twice: by the targets in `fuzz_targets/`, and by `crates/cni/tests/fuzz_bodies.rs`, which runs them over mutated seeds
//! with every `cargo test`.

use cni::call::{Call, Environment};
use cni::flannel::{daemon, netconf, subnet_env};
use cni::owner::Owner;
use cni::result::AddResult;
use cni::{args, bridge, host_local, json};

/// A body over any bytes.
pub type Body = fn(&[u8]);

/// Every target by name.
pub const TARGETS: &[(&str, Body)] = &[
    ("cni_stdin", stdin),
    ("cni_result", result),
    ("cni_reservation", reservation),
    ("cni_subnet_env", subnet_env),
    ("cni_args", arguments),
    ("cni_daemon", said_by_the_daemon),
];

const ENV: &[u8] =
    b"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn call(stdin: &[u8], args: &str) -> Option<Call> {
    let env = Environment {
        command: "ADD".into(),
        container_id: "c1".into(),
        netns: "/x".into(),
        ifname: "eth0".into(),
        path: "/nonexistent".into(),
        args: args.to_owned(),
        ..Environment::default()
    };
    Call::check(env, stdin.to_vec()).ok()
}

/// A configuration is refused with one error object, or every plugin reads it; what flannel gives its delegate reads back the
/// same, and as the same tree that runs in this process.
pub fn stdin(data: &[u8]) {
    let Some(call) = call(data, "") else { return };
    let _ = bridge::config::BridgeConfig::load(&call).map(|config| (config.check(), config.mac()));
    let _ = host_local::config::HostLocalConfig::load(&call).map(|config| {
        for set in &config.sets {
            assert!(
                set.candidates(None)
                    .take(9)
                    .all(|(ip, range)| range.contains(ip) && ip != range.gateway)
            );
        }
    });
    let _ = cni::gc::valid_attachments(&call);
    let env = subnet_env::parse("x", ENV).expect("a constant");
    let Ok(conf) = netconf::NetConf::load(&call) else {
        return;
    };
    let Ok(delegate) = netconf::build(&conf, &env) else {
        return;
    };
    let back = json::parse(delegate.text.as_bytes()).expect("what was written reads");
    assert_eq!(json::to_go_text(&back), json::to_go_text(&delegate.config));
    let inner = call.delegated(delegate.config, delegate.text.into_bytes());
    assert_eq!(inner.name, call.name);
    let _ = bridge::config::BridgeConfig::load(&inner);
    let _ = host_local::config::HostLocalConfig::load(&inner);
}

/// A result is refused, or printing and reading it settles at once in every version.
pub fn result(data: &[u8]) {
    let Ok(value) = json::parse(data) else { return };
    for version in cni::version::SUPPORTED {
        let _ = AddResult::parse_previous(&value, version);
        let Ok(read) = AddResult::parse(&value, version) else {
            continue;
        };
        for to in cni::version::SUPPORTED {
            let Ok(text) = read.print(to) else { continue };
            let again = json::parse(text.as_bytes()).expect("what was printed reads");
            let again = AddResult::parse(&again, to).expect("what was printed is a result");
            assert_eq!(again.print(to).as_ref(), Ok(&text), "{version} to {to}");
        }
    }
}

/// A reservation names nobody, or an owner whose own file says the same.
pub fn reservation(data: &[u8]) {
    let Some(owner) = Owner::parse(data) else { return };
    let again = Owner::parse(owner.content().as_bytes());
    if !owner.ifname.is_empty()
        && owner.ifname.trim() == owner.ifname
        && owner.container.trim() == owner.container
    {
        assert_eq!(again.as_ref(), Some(&owner));
    }
}

/// subnet.env is refused, or a delegate can be made of it.
pub fn subnet_env(data: &[u8]) {
    let Ok(env) = subnet_env::parse("x", data) else {
        return;
    };
    let call = call(br#"{"name":"n","type":"flannel"}"#, "").expect("a constant");
    let conf = netconf::NetConf::load(&call).expect("a constant");
    let delegate = netconf::build(&conf, &env).expect("any subnet.env that reads will do");
    assert!(json::parse(delegate.text.as_bytes()).is_ok());
}

/// `CNI_ARGS` are refused, or the value is one of the pairs.
pub fn arguments(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(Some(value)) = args::value(&text, "MAC") {
        assert!(text.contains(&format!("MAC={value}")));
    }
    if let Some(call) = call(
        br#"{"name":"n","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}]]}}"#,
        &text,
    ) {
        let _ = bridge::config::BridgeConfig::load(&call);
        let _ = host_local::config::HostLocalConfig::load(&call);
    }
}

/// What comes from the status socket is read or refused as soon as that can be told, and more bytes change neither.
pub fn said_by_the_daemon(data: &[u8]) {
    let whole = daemon::parse(data);
    for end in 0..data.len().min(400) {
        match daemon::parse(data.get(..end).unwrap_or_default()) {
            daemon::Answer::Cut => {}
            sooner => assert_eq!(sooner, whole, "after {end} bytes"),
        }
    }
}
