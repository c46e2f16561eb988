//! Pod to pod beside the bare underlay: throughput of one TCP stream and round trips.
//!
//! `cargo xtask bench path [--json] [--seconds N] [--repeat N]`. On two processors repeats differ by 15 %; the order of the paths
//! is interleaved, medians are printed.

#![allow(clippy::unwrap_used, clippy::panic)] // A bench is run by people and stops at the first thing that is wrong.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use lab::reach::End;
use lab::rig::{Rig, Wish};
use lab::speed::stream;
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: u64| {
        let position = arguments.iter().position(|a| a == name);
        position
            .and_then(|p| arguments.get(p + 1))
            .map_or(default, |n| n.parse().unwrap())
    };
    let (seconds, repeat) = (number("--seconds", 3), number("--repeat", 3));
    let mut results: Vec<Value> = Vec::new();
    for backend in ["host-gw", "vxlan"] {
        let mut rig = Rig::start(&Wish::new(json!({ "Type": backend }))).unwrap();
        rig.lab.add_pods().unwrap();
        let pods = rig.lab.state.pods.clone();
        for family in [4, 6] {
            let (mut rows, mut times) = (vec![Vec::new(); 2], vec![Vec::new(); 2]);
            let paths = [
                (
                    rig.lab.host_end(1),
                    rig.lab.host_end(2),
                    rig.lab.spec.host_address(2, family),
                ),
                (
                    rig.lab.pod_end(&pods[0]),
                    rig.lab.pod_end(&pods[1]),
                    pods[1].address(family).unwrap(),
                ),
            ];
            for _ in 0..repeat {
                for (index, (from, to, address)) in paths.iter().enumerate() {
                    rows[index].push(throughput(*from, *to, *address, seconds));
                    let echo = from
                        .ping(&["-c", "500", "-i", "0.002", &address.to_string()])
                        .unwrap()
                        .unwrap();
                    times[index].push(echo.mean_ms.unwrap());
                }
            }
            let tcp: Vec<f64> = rows.into_iter().map(median).collect();
            let rtt: Vec<f64> = times.into_iter().map(median).collect();
            results.push(json!({
                "backend": backend, "family": family, "underlay Gbit/s": tcp[0], "pod to pod Gbit/s": tcp[1],
                "ratio": tcp[1] / tcp[0], "underlay rtt ms": rtt[0], "pod to pod rtt ms": rtt[1],
            }));
        }
    }
    let mut out = std::io::stdout().lock();
    if arguments.iter().any(|a| a == "--json") {
        writeln!(out, "{:#}", json!(results)).unwrap();
        return;
    }
    writeln!(
        out,
        "{:<8} {:>6} {:>14} {:>14} {:>6} {:>12} {:>12}",
        "backend", "family", "underlay Gb/s", "pod-pod Gb/s", "ratio", "underlay ms", "pod-pod ms"
    )
    .unwrap();
    for r in &results {
        writeln!(
            out,
            "{:<8} {:>6} {:>14.2} {:>14.2} {:>6.2} {:>12.3} {:>12.3}",
            r["backend"].as_str().unwrap(),
            format!("IPv{}", r["family"]),
            r["underlay Gbit/s"].as_f64().unwrap(),
            r["pod to pod Gbit/s"].as_f64().unwrap(),
            r["ratio"].as_f64().unwrap(),
            r["underlay rtt ms"].as_f64().unwrap(),
            r["pod to pod rtt ms"].as_f64().unwrap(),
        )
        .unwrap();
    }
}

/// By iperf3 where it is installed, else by a plain stream; Gbit/s at the receiver.
fn throughput(from: End<'_>, to: End<'_>, address: std::net::IpAddr, seconds: u64) -> f64 {
    if !lab::witness::installed("iperf3") {
        return stream(from, to, address, Duration::from_secs(seconds)).unwrap() / 1e9;
    }
    let mut server = to
        .command(&["iperf3", "-s", "-1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (seconds, address) = (seconds.to_string(), address.to_string());
    let mut rate = None;
    for _ in 0..50 {
        let text = lab::command::output(
            &mut from.command(&["iperf3", "-J", "-t", &seconds, "-c", &address]),
            "",
        )
        .unwrap()
        .1;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        rate = value["end"]["sum_received"]["bits_per_second"].as_f64();
        if rate.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = server.wait();
    rate.unwrap() / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
