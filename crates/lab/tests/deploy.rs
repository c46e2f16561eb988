//! What is in `deploy/`, as text: objects, names, rights, flags; the chart's copies beside the manifest.
//!
//! Whether a cluster takes it is for tests with a cluster to say.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "deploy/objects.rs"]
mod objects;

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/manifest.rs"]
mod manifest;
#[path = "deploy/places.rs"]
mod places;
