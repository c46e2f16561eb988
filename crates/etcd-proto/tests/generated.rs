//! The checked-in code against the protos, without running the generator, and against bytes of the wire.

// The scanners below are test code; their expectations name what they found.
#![allow(clippy::expect_used)]

use std::collections::BTreeSet;

use etcd_proto::etcdserverpb::{
    AuthenticateRequest, Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, compare, request_op,
};
use prost::Message;

const PROTOS: [(&str, &str); 2] = [
    (
        include_str!("../proto/kv.proto"),
        include_str!("../src/generated/mvccpb.rs"),
    ),
    (
        include_str!("../proto/rpc.proto"),
        include_str!("../src/generated/etcdserverpb.rs"),
    ),
];

/// Go-style names of the protos as Rust's: `RequestOp` and `HashKVRequest` as the generator spells types.
fn rust_type(name: &str) -> String {
    name.replace("KVRe", "KvRe")
}

/// `(message, field number)` of every field, `service/method` of every method.
fn facts_of_proto(text: &str) -> (BTreeSet<(String, u32)>, BTreeSet<String>) {
    let (mut fields, mut methods) = (BTreeSet::new(), BTreeSet::new());
    let mut nesting: Vec<(String, String)> = Vec::new();
    let mut package = "";
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        let words: Vec<&str> = line
            .split(|c: char| c.is_whitespace() || ";(){}".contains(c))
            .collect();
        if let Some(rest) = line.strip_prefix("package ") {
            package = rest.trim_end_matches(';');
        } else if line.starts_with("rpc ") {
            let service = &nesting.last().expect("an rpc stands in a service").1;
            methods.insert(format!("/{package}.{service}/{}", words[1]));
        } else if line.ends_with('{') {
            nesting.push((words[0].to_owned(), words[1].to_owned()));
        } else if line == "}" {
            nesting.pop();
        } else if let Some((_, number)) = line.trim_end_matches(';').split_once(" = ")
            && nesting
                .last()
                .is_some_and(|(kind, _)| kind == "message" || kind == "oneof")
        {
            let message = nesting
                .iter()
                .rfind(|(kind, _)| kind == "message")
                .expect("a field stands in a message");
            fields.insert((rust_type(&message.1), number.parse().expect("a field number")));
        }
    }
    (fields, methods)
}

/// The same from the generated text: `pub struct X` (or the oneof enum of module x) and the `tag = "n"` below it.
fn facts_of_code(text: &str) -> (BTreeSet<(String, u32)>, BTreeSet<String>) {
    let (mut fields, mut methods) = (BTreeSet::new(), BTreeSet::new());
    let mut current = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            current = rest
                .split(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap_or_default()
                .to_owned();
        } else if line.starts_with("/// Nested message and enum types in `") {
            current = line.split('`').nth(1).expect("a quoted name").to_owned();
            current = rust_type(&current);
        } else if let Some(number) = line
            .split("tag = \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
        {
            fields.insert((current.clone(), number.parse().expect("a number")));
        } else if let Some(path) = line.strip_prefix("\"/").and_then(|rest| rest.split('"').next()) {
            methods.insert(format!("/{path}"));
        }
    }
    (fields, methods)
}

#[test]
fn generated_code_carries_every_field_number_and_method_of_the_protos() {
    for (proto, code) in PROTOS {
        let (wanted_fields, wanted_methods) = facts_of_proto(proto);
        let (fields, methods) = facts_of_code(code);
        assert!(
            wanted_fields.len() > 8,
            "the proto was not understood: {wanted_fields:?}"
        );
        assert_eq!(
            wanted_fields, fields,
            "proto and generated code differ: run the generator (README.md)"
        );
        assert_eq!(
            wanted_methods, methods,
            "proto and generated code differ: run the generator (README.md)"
        );
    }
    assert_eq!(facts_of_proto(PROTOS[1].0).1.len(), 5 + 1 + 5 + 5 + 7 + 4);
}

#[test]
fn create_if_absent_encodes_to_the_bytes_etcd_reads() {
    let put = PutRequest {
        key: b"k".to_vec(),
        value: b"v".to_vec(),
        lease: 7,
        ..Default::default()
    };
    let txn = TxnRequest {
        compare: vec![Compare {
            target: compare::CompareTarget::Version.into(),
            key: b"k".to_vec(),
            target_union: Some(compare::TargetUnion::Version(0)),
            ..Default::default()
        }],
        success: vec![RequestOp {
            request: Some(request_op::Request::RequestPut(put)),
        }],
        failure: Vec::new(),
    };
    let bytes = [
        0x0a, 5, 0x1a, 1, b'k', 0x20, 0, 0x12, 10, 0x12, 8, 0x0a, 1, b'k', 0x12, 1, b'v', 0x18, 7,
    ];
    assert_eq!(txn.encode_to_vec(), bytes);
    assert_eq!(TxnRequest::decode(&bytes[..]).expect("own bytes decode"), txn);
}

#[test]
fn a_prefix_range_encodes_to_the_bytes_etcd_reads() {
    let range = RangeRequest {
        key: b"a/".to_vec(),
        range_end: b"a0".to_vec(),
        limit: 500,
        revision: 3,
        ..Default::default()
    };
    let bytes = [0x0a, 2, b'a', b'/', 0x12, 2, b'a', b'0', 0x18, 0xf4, 3, 0x20, 3];
    assert_eq!(range.encode_to_vec(), bytes);
}

#[test]
fn a_password_is_not_shown_by_debug() {
    let request = AuthenticateRequest {
        name: "root".to_owned(),
        password: "s3cret".to_owned(),
    };
    let shown = format!("{request:?}");
    assert!(shown.contains("root") && !shown.contains("s3cret"), "{shown}");
}
