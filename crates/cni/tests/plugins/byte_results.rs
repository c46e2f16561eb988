//! C14: what an ADD prints is what Go's plugins print, to the byte: key order, indentation, no newline at the end.
//!
//! Up to 0.4.0 beside Debian's Go 1.1.1, which gets the very bytes our flannel has saved for its delegate. From 1.0.0 on Go's
//! text is another from one of its versions to the next (1.1.1 prints keys in the order of its structs and an empty `dns`, 1.9.1
//! alphabetically and none): the bytes are those captured from 1.9.1, and beside 1.1.1 the JSON is the same.

use serde_json::Value;

use crate::rig::{Call, GO_PLUGINS, Host, ID};

/// The text with names and addresses of links replaced that are random.
fn normalise(text: &str, host: &Host) -> String {
    let result: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let mut text = text.replace(&host.name, "HOST");
    let interfaces = result["interfaces"].as_array().cloned().unwrap_or_default();
    for (i, interface) in interfaces.iter().enumerate() {
        text = text.replace(interface["mac"].as_str().unwrap(), &format!("MAC{i}"));
        let name = interface["name"].as_str().unwrap();
        if name.starts_with("veth") {
            text = text.replace(name, "VETH");
        }
    }
    text
}

fn host(families: &str) -> Host {
    let host = Host::new();
    match families {
        "v4" => {}
        "v6" => host.subnet_env("", "", "fd00:10:244::/56", "fd00:10:244:7::1/64", true),
        _ => host.dual_stack(),
    }
    host
}

fn assert_same(version: &str, said: &str, by_go: &str, what: &str) {
    if version != "1.0.0" {
        assert_eq!(said, by_go, "{version} {what}");
        return;
    }
    let mut by_go: Value = serde_json::from_str(by_go).unwrap();
    if by_go["dns"] == serde_json::json!({}) {
        by_go.as_object_mut().unwrap().remove("dns");
    }
    let said: Value = serde_json::from_str(said).unwrap();
    assert_eq!(said, by_go, "{version} {what}");
}

#[test]
fn c14_results_when_any_version_and_family_is_asked_are_gos_bytes() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        for families in ["v4", "v6", "dual"] {
            let mut ours = host(families);
            let stdin = ours.config("cbr0", "").replace("1.0.0", version);
            let call = ours.call("flannel", "ADD", stdin);
            let said = ours.run(&call).ok().stdout;
            let saved = ours.read(&format!("flannel/{ID}"));
            let mut theirs = host(families);
            let stdin = saved.replace(&ours.path("networks"), &theirs.path("networks"));
            let call = Call {
                program: format!("{GO_PLUGINS}/bridge").into(),
                path: GO_PLUGINS.to_owned(),
                ..theirs.call("bridge", "ADD", stdin)
            };
            let expected = theirs.run(&call).ok().stdout;
            assert_same(
                version,
                &normalise(&said, &ours),
                &normalise(&expected, &theirs),
                families,
            );
            assert!(
                !said.ends_with('\n') && said.contains("\n    \"cniVersion\": "),
                "{said}"
            );
            // The next plugin of the chain hands it on unchanged, ours as Go's.
            let chained =
                format!(r#"{{"cniVersion":"{version}","name":"cbr0","type":"portmap","prevResult":{said}}}"#);
            let by_ours = ours.call("portmap", "ADD", chained);
            let by_go = Call {
                program: format!("{GO_PLUGINS}/portmap").into(),
                ..by_ours.clone()
            };
            let by_go = ours.run(&by_go).ok().stdout;
            assert_same(version, &ours.run(&by_ours).ok().stdout, &by_go, "portmap");
        }
    }
}

/// The printed text of a captured case's ADD; the capture has one blank where the plugin printed four.
fn captured(case: &str) -> String {
    let file = format!("{}/tests/golden/{case}/calls.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(file).unwrap();
    let (_, rest) = text.split_once("  \"stdout\": {\n").unwrap();
    let (body, _) = rest.split_once("\n  }").unwrap();
    let mut lines = vec!["{".to_owned()];
    for line in body.lines() {
        let words = line.trim_start();
        lines.push(format!("{}{words}", "    ".repeat(line.len() - words.len() - 2)));
    }
    lines.push("}".to_owned());
    lines.join("\n")
}

#[test]
fn c14_results_when_compared_with_the_captured_ones_are_the_same_bytes() {
    for (case, version, families) in [
        ("version-0.3.1", "0.3.1", "v4"),
        ("version-0.4.0", "0.4.0", "v4"),
        ("version-1.0.0", "1.0.0", "v4"),
        ("version-1.1.0", "1.1.0", "v4"),
    ] {
        let mut host = host(families);
        let stdin = host.config("cbr0", "").replace("1.0.0", version);
        let call = host.call("flannel", "ADD", stdin);
        let said = host.run(&call).ok().stdout;
        let said = normalise(&said, &host).replace("HOST-0", "POD");
        let expected = normalise(&captured(case), &host);
        assert_eq!(said, expected, "{case}");
    }
}
