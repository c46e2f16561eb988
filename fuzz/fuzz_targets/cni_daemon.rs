#![no_main]

#[path = "../src/cni.rs"]
#[allow(dead_code)]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::said_by_the_daemon(data));
