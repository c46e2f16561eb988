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
    let arguments = Value::Object(chain.head.arguments.clone());
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

/// Plugins that note their calls; one of a name that is in the file `refusing` fails.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new(plugins: &[&str]) -> Bench {
        use std::os::unix::fs::PermissionsExt;
        let bench = Bench(tempfile::tempdir().unwrap());
        for name in plugins {
            let folder = bench.0.path().display();
            let script = format!(
                "#!/bin/sh\necho \"{name} $CNI_COMMAND $(cat)\" >> {folder}/calls\n\
                 grep -q {name} {folder}/refusing 2>/dev/null && {{ echo '{{\"code\":7,\"msg\":\"no\"}}'; exit 1; }}\n\
                 [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.0.0.{}/24\"}}]}}'\nexit 0\n",
                name.len()
            );
            let file = bench.0.path().join(name);
            std::fs::write(&file, script).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        bench
    }

    fn refuse(&self, name: &str) {
        std::fs::write(self.0.path().join("refusing"), name).unwrap();
    }

    fn call(&self, verb: &str, more: &str) -> Call {
        let mut call = call(verb, more);
        call.env.path = self.0.path().to_str().unwrap().to_owned();
        call
    }

    fn configs(&self) -> SavedConfigs {
        let folder = self.0.path().join("flannel");
        SavedConfigs::create(folder.to_str().unwrap(), "c1", "eth0").unwrap()
    }

    /// Plugin and verb of each call since the last look, and what each was told.
    fn calls(&self) -> Vec<(String, Value)> {
        let path = self.0.path().join("calls");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(path);
        let read = |line: &str| {
            let (call, told) = line.split_once(" {").unwrap();
            (
                call.to_owned(),
                serde_json::from_str(&format!("{{{told}")).unwrap(),
            )
        };
        text.lines().map(read).collect()
    }

    fn names(&self) -> Vec<String> {
        self.calls().into_iter().map(|(call, _)| call).collect()
    }
}

const TWO: &str = r#","chain":[{"type":"one","capabilities":{"mac":true,"other":false}},{"type":"second"}],"runtimeConfig":{"mac":"m","other":1}"#;
const FIRST: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.99/24"}]}"#;

#[test]
fn add_when_each_plugin_works_hands_the_result_on_and_saves_what_a_del_needs() {
    let bench = Bench::new(&["one", "second"]);
    let (call, configs) = (bench.call("ADD", TWO), bench.configs());
    let chain = Chain::of(&call).unwrap().unwrap();
    let result = chain.add(&call, &configs, FIRST).unwrap();
    assert!(result.contains("10.0.0.6/24"), "{result}");
    let calls = bench.calls();
    assert_eq!(
        calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(),
        ["one ADD", "second ADD"]
    );
    let told = &calls[0].1;
    assert_eq!(
        (&told["name"], &told["cniVersion"]),
        (&Value::from("cbr0"), &Value::from("1.0.0"))
    );
    assert_eq!(told["runtimeConfig"], serde_json::json!({"mac": "m"}));
    assert_eq!(told["prevResult"]["ips"][0]["address"], "10.0.0.99/24");
    assert_eq!(calls[1].1["prevResult"]["ips"][0]["address"], "10.0.0.3/24");
    assert!(calls[1].1.get("runtimeConfig").is_none());
    // The DEL of a call that brings nothing: the last one first, with the result of the last.
    let del = bench.call("DEL", "");
    let saved = Chain::of_attachment(&del, Some(&configs)).unwrap().unwrap();
    saved.del(&del).unwrap();
    let calls = bench.calls();
    assert_eq!(
        calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(),
        ["second DEL", "one DEL"]
    );
    assert_eq!(calls[1].1["prevResult"]["ips"][0]["address"], "10.0.0.6/24");
    assert!(Chain::of_attachment(&del, None).unwrap().is_none());
    bench.refuse("second");
    let refused = saved.del(&del).unwrap_err();
    assert!(
        refused
            .msg
            .starts_with(r#"plugin type="second" failed (delete): no"#),
        "{refused}"
    );
    assert_eq!(
        bench.names(),
        ["second DEL", "one DEL"],
        "one that fails keeps no other from its DEL"
    );
}

#[test]
fn add_when_a_plugin_fails_undoes_it_and_those_before_it() {
    let bench = Bench::new(&["one", "second", "third"]);
    let more = r#","chain":[{"type":"one"},{"type":"second"},{"type":"third"}]"#;
    let (call, configs) = (bench.call("ADD", more), bench.configs());
    let chain = || Chain::of(&call).unwrap().unwrap();
    bench.refuse("second");
    let failed = chain().add(&call, &configs, FIRST).unwrap_err();
    assert_eq!((failed.failure.code, failed.clean), (7, false));
    assert!(
        failed
            .failure
            .msg
            .starts_with(r#"plugin type="second" failed (add): no"#),
        "{}",
        failed.failure
    );
    assert_eq!(bench.names(), ["one ADD", "second ADD", "second DEL", "one DEL"]);
    let missing = bench.call("ADD", r#","chain":[{"type":"one"},{"type":"nosuch"}]"#);
    bench.refuse("-");
    let failed = Chain::of(&missing)
        .unwrap()
        .unwrap()
        .add(&missing, &configs, FIRST)
        .unwrap_err();
    assert!(!failed.clean && failed.failure.msg.contains("failed to find plugin"));
    let failed = chain().add(&call, &configs, "no JSON").unwrap_err();
    assert!(failed.clean && failed.failure.msg.starts_with("a result is no JSON"));
}

#[test]
fn result_when_the_last_plugin_leaves_it_as_it_was_is_saved_once() {
    let bench = Bench::new(&["one"]);
    let (call, configs) = (bench.call("ADD", r#","chain":[{"type":"one"}]"#), bench.configs());
    let same = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.3/24"}]}"#;
    Chain::of(&call)
        .unwrap()
        .unwrap()
        .add(&call, &configs, same)
        .unwrap();
    assert_eq!(configs.chain().unwrap().1, None);
    Chain::of(&call)
        .unwrap()
        .unwrap()
        .add(&call, &configs, FIRST)
        .unwrap();
    assert!(configs.chain().unwrap().1.is_some());
}

#[test]
fn check_and_status_when_a_plugin_fails_end_there_and_gc_goes_on() {
    let bench = Bench::new(&["one", "second"]);
    let call = |verb: &str| bench.call(verb, &format!(r#"{TWO},"prevResult":{FIRST}"#));
    let check = call("CHECK");
    let chain = Chain::of(&check).unwrap().unwrap();
    chain.check(&check).unwrap();
    let calls = bench.calls();
    assert_eq!(calls[1].0, "second CHECK");
    assert_eq!(calls[1].1["prevResult"]["ips"][0]["address"], "10.0.0.99/24");
    // A result in another version than the ADD's is not what the plugins are told.
    let mut saved = chain.clone();
    saved.head.version = "0.4.0".into();
    saved.result = Some(serde_json::json!({"saved": true}));
    saved.check(&check).unwrap();
    assert_eq!(
        bench.calls()[0].1["prevResult"],
        serde_json::json!({"saved": true})
    );
    let mut new = call("CHECK");
    new.version = "1.1.0".into();
    status(&new).unwrap();
    let told = bench.calls();
    assert_eq!(
        (told[1].0.as_str(), told[1].1.get("runtimeConfig")),
        ("second STATUS", None)
    );
    gc(&new, &[Owner::new("c9", "eth0")]).unwrap();
    let list = serde_json::json!([{"containerID": "c9", "ifname": "eth0"}]);
    let told = bench.calls();
    assert_eq!(
        (
            &told[0].1["cni.dev/valid-attachments"],
            &told[1].1["cni.dev/attachments"]
        ),
        (&list, &list)
    );
    bench.refuse("one");
    assert!(
        chain
            .check(&check)
            .unwrap_err()
            .msg
            .starts_with(r#"plugin type="one" failed (check)"#)
    );
    let unavailable = status(&new).unwrap_err();
    assert_eq!(unavailable.code, 50);
    assert_eq!(bench.names(), ["one CHECK", "one STATUS"]);
    assert!(gc(&new, &[]).unwrap_err().msg.contains("failed (gc): no"));
    assert_eq!(bench.names(), ["one GC", "second GC"]);
    let wrong = bench.call("ADD", r#","chain":5"#);
    assert_eq!(status(&wrong).unwrap_err().code, 50);
    let without = bench.call("ADD", "");
    assert!(status(&without).is_ok() && gc(&without, &[]).is_ok());
}

#[test]
fn del_when_of_a_version_that_has_no_result_for_it_brings_none() {
    let bench = Bench::new(&["one"]);
    for (version, told) in [("0.3.1", false), ("0.4.0", true), ("1.0.0", true)] {
        let mut call = bench.call("DEL", r#","chain":[{"type":"one"}]"#);
        call.version = version.into();
        let mut chain = Chain::of(&call).unwrap().unwrap();
        chain.result = Some(serde_json::json!({"x": 1}));
        chain.del(&call).unwrap();
        assert_eq!(bench.calls()[0].1.get("prevResult").is_some(), told, "{version}");
    }
}
