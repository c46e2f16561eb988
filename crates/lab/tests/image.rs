//! The container image: what is in its archive, whether its programs start, and what becomes of the commands that manifests run in it.
//!
//! `cargo xtask test --suite image` makes the image of the executables under test, and names it in `FLANNEL_IMAGE`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "image/container.rs"]
mod container;
#[path = "image/manifests.rs"]
mod manifests;
#[path = "deploy/objects.rs"]
#[allow(dead_code, reason = "shared with the suite `deploy`")]
mod objects;
#[path = "image/rootfs.rs"]
mod rootfs;

#[path = "image/archive_tests.rs"]
mod archive_tests;
#[path = "image/daemon_tests.rs"]
mod daemon_tests;
#[path = "image/manifest_tests.rs"]
mod manifest_tests;
#[path = "image/program_tests.rs"]
mod program_tests;
