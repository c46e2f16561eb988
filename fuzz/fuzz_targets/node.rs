#![no_main]

#[path = "../src/fabric.rs"]
#[allow(dead_code)]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::node(data));
