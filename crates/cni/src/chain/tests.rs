use super::*;
use crate::call::Environment;

fn call(verb: &str, more: &str) -> Call {
    let env = Environment {
        command: verb.into(),
        container_id: "c1".into(),
        netns: "/nonexistent/netns".into(),
        ifname: "eth0".into(),
        path: "/nonexistent/bin".into(),
        ..Environment::default()
    };
    let stdin = format!(r#"{{"name":"cbr0","cniVersion":"1.0.0"{more}}}"#);
    Call::check(env, stdin.into_bytes()).unwrap()
}

const CHAIN: &str = r#","chain":[{"type":"portmap","capabilities":{"portMappings":true}},{"type":"tuning","name":"x"}],"runtimeConfig":{"portMappings":[{"hostPort":1}],"mac":"m"}"#;

#[test]
fn chain_when_absent_null_or_empty_is_none() {
    for more in ["", r#","chain":null"#, r#","chain":[]"#] {
        assert!(Chain::of(&call("ADD", more)).unwrap().is_none(), "{more}");
    }
}

#[test]
fn chain_when_wrong_names_field_value_and_expectation() {
    for (more, msg) in [
        (r#","chain":{}"#, "chain is {}: expected an array"),
        (r#","chain":["x"]"#, r#"chain[0] is "x": expected an object"#),
        (
            r#","chain":[{"type":"portmap"},{}]"#,
            r#"chain[1].type is "": expected the name of a plugin that can run after flannel"#,
        ),
        (
            r#","chain":[{"type":"flannel"}]"#,
            r#"chain[0].type is "flannel": expected the name of a plugin that can run after flannel"#,
        ),
        (
            r#","chain":[{"type":"portmap","capabilities":{"portMappings":"yes"}}]"#,
            r#"chain[0].capabilities.portMappings is "yes": expected true or false, without quotes"#,
        ),
    ] {
        let failure = Chain::of(&call("ADD", more)).unwrap_err();
        assert_eq!((failure.code, failure.msg.as_str()), (7, msg));
    }
}

#[test]
fn record_when_saved_and_read_is_the_same_and_broken_is_none() {
    let mut chain = Chain::of(&call("ADD", CHAIN)).unwrap().unwrap();
    chain.result = Some(serde_json::json!({"cniVersion": "1.0.0"}));
    let text = chain.to_text();
    assert_eq!(Chain::read(text.as_bytes(), None), Some(chain.clone()));
    let later = Chain::read(text.as_bytes(), Some(br#"{"ips":[]}"#)).unwrap();
    assert_eq!(later.result, Some(serde_json::json!({"ips": []})));
    // A later result that is broken leaves the earlier one.
    assert_eq!(Chain::read(text.as_bytes(), Some(b"")), Some(chain));
    for broken in ["", "{}", "[]", &text[..text.len() / 2], r#"{"chain":[{}]}"#] {
        assert_eq!(Chain::read(broken.as_bytes(), None), None, "{broken}");
    }
}

#[test]
fn arguments_when_a_call_brings_some_replace_those_of_the_add_one_by_one() {
    let mut chain = Chain::of(&call("ADD", CHAIN)).unwrap().unwrap();
    chain.take_arguments(&call("DEL", ""));
    chain.take_arguments(&call(
        "DEL",
        r#","runtimeConfig":{"mac":"n","portMappings":null}"#,
    ));
    let arguments = Value::Object(chain.arguments.clone());
    assert_eq!(
        arguments,
        serde_json::json!({"portMappings": [{"hostPort": 1}], "mac": "n"})
    );
}

#[test]
fn failure_when_a_plugin_is_to_be_had_nowhere_names_it_as_libcni_does() {
    let chain = Chain::of(&call(
        "ADD",
        r#","chain":[{"type":"tuning","name":"x"},{"type":"vrf"}]"#,
    ));
    let failure = chain.unwrap().unwrap().del(&call("DEL", "")).unwrap_err();
    assert_eq!(
        failure.msg,
        r#"plugin type="vrf" failed (delete): failed to find plugin "vrf" in path [/nonexistent/bin]"#
    );
    let chain = Chain::of(&call("ADD", r#","chain":[{"type":"tuning","name":"x"}]"#));
    let failure = chain.unwrap().unwrap().del(&call("DEL", "")).unwrap_err();
    assert!(
        failure
            .msg
            .starts_with(r#"plugin type="tuning" name="x" failed (delete): "#),
        "{failure}"
    );
}

#[test]
fn result_when_of_another_family_is_put_into_the_configurations() {
    let old = r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{}}"#;
    let new = read(&restate(old, "1.0.0").unwrap()).unwrap();
    assert_eq!(
        new,
        serde_json::json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]})
    );
    assert_eq!(restate(old, "0.4.0").unwrap(), old);
    assert!(restate("x", "1.0.0").is_err());
}
