//! `flannelctl lab up`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::lab::reach::Matrix;
use ::lab::speed::Speed;
use ::lab::store::Kind;
use ::lab::{Families, Lab, Spec};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{interrupted, show};
use crate::arguments::{Arguments, Ended, Grammar};
use crate::output::{Out, Progress};

const HELP: &str = "\
Builds a lab, proves it, measures it, and leaves it up.

Usage: flannelctl lab up [--nodes N] [--backend TYPE] [--family 4|6|46] [--etcd|--kube] [--name NAME] [--json] ...

  --nodes N         hosts, each with one pod (default 3)
  --backend TYPE    vxlan, host-gw or any other that is built (default vxlan)
  --option K=V,...  keys of the backend's configuration, such as VNI=7,Port=4789,DirectRouting=true
  --family F        4, 6, or 46 for both (default 46; with --kubelet 4)
  --etcd            Debian's etcd instead of the embedded registry
  --kube            Kubernetes: a real API server, every host a Node (`cargo xtask kube-assets` makes the programs)
  --kubelet         with --kube: every host a machine with systemd, containerd, kubelet and kube-proxy, flannel a DaemonSet of the
                    manifest, pods Kubernetes' own (IPv4; `cargo xtask host-root` makes the machines' root)
  --image FILE      with --kubelet: flannel's image, as `cargo xtask dist --image` leaves it
  --nftables        firewall rules by nftables instead of iptables
  --name NAME       name of the lab (default: $FLANNEL_LAB_NAME, else lab); several can be up
  --mtu N           of the underlay (default 1500)
  --routed          two segments with a router between; odd hosts on the first
  --no-speed        leave out the measuring
  --bin-dir DIR     where flanneld and flannel-cni are (default: where flannelctl is)
  --json            the result as JSON

Exit status 1 when not every pod answers every pod and host with packets of full size; the lab then stays up to be
looked at. Ctrl-C leaves nothing.

Examples:
  flannelctl lab up
  flannelctl lab up --nodes 5 --backend host-gw --family 4 --etcd --name second
  flannelctl lab up --kube --kubelet --image target/dist/image/flannel-VERSION-amd64.tar
";

/// What is applied to a cluster of machines, with the configuration that was asked for.
const MANIFEST: &str = include_str!("../../../../deploy/kube-flannel.yml");

/// `flannelctl lab up ...`.
pub fn run(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let grammar = Grammar {
        help: HELP,
        values: &[
            "nodes", "backend", "option", "family", "name", "mtu", "bin-dir", "image",
        ],
        switches: &[
            "etcd", "kube", "kubelet", "nftables", "routed", "no-speed", "json",
        ],
        stop_at_positional: false,
    };
    let read = grammar.read(arguments)?;
    read.exactly([])?;
    let is_kubelet = read.has("kubelet");
    let usage = |error: ::lab::LabError| Ended::Usage(error.to_string());
    let spec = Spec {
        name: super::name(&read),
        hosts: usize::try_from(read.number("nodes", 3)?).unwrap_or(usize::MAX),
        families: Families::parse(read.value_or("family", if is_kubelet { "4" } else { "46" }))
            .map_err(usage)?,
        mtu: u32::try_from(read.number("mtu", 1500)?).unwrap_or(u32::MAX),
        routed: read.has("routed"),
        machines: is_kubelet,
    };
    spec.validate().map_err(usage)?;
    let backend = backend(&read)?;
    check(&read, &spec)?;
    let interrupt = interrupt_flag()?;
    let progress = Progress::new(false);
    match build(&read, spec, &backend, &interrupt, &progress) {
        Ok((lab, matrix, speeds)) => {
            let good = matrix.good();
            show_all(&lab, &matrix, &speeds, read.has("json"), progress.seconds(), out)?;
            Ok(if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Err(_) if interrupt.load(Ordering::Relaxed) => Err(interrupted()),
        Err(error) => Err(error.into()),
    }
}

/// Refuses flags that do not go together, before anything is made.
fn check(read: &Arguments, spec: &Spec) -> Result<(), Ended> {
    let refuse = |why: String| Err(Ended::Usage(why));
    if read.has("etcd") && read.has("kube") {
        return refuse("--etcd and --kube: expected one of them".to_owned());
    }
    if spec.machines && !read.has("kube") {
        return refuse("--kubelet: expected --kube beside it".to_owned());
    }
    if spec.machines && spec.families != Families::V4 {
        return refuse(format!("--family {}: expected 4 with --kubelet", spec.families));
    }
    match read.value("image") {
        None if spec.machines => refuse("--kubelet: expected --image FILE beside it".to_owned()),
        Some(_) if !spec.machines => refuse("--image: expected --kubelet beside it".to_owned()),
        Some(image) if !Path::new(image).is_file() => {
            refuse(format!("--image {image}: expected the archive of an image"))
        }
        _ => Ok(()),
    }
}

fn backend(read: &Arguments) -> Result<Value, Ended> {
    let kind = read.value_or("backend", "vxlan");
    if !fabric::plan::is_built(kind) {
        let built = fabric::plan::built();
        return Err(Ended::Usage(format!("--backend={kind}: expected one of {built}")));
    }
    let mut backend = json!({ "Type": kind });
    for option in read
        .value("option")
        .unwrap_or_default()
        .split(',')
        .filter(|o| !o.is_empty())
    {
        let Some((key, value)) = option.split_once('=') else {
            return Err(Ended::Usage(format!("--option {option}: expected KEY=VALUE")));
        };
        backend[key] = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
    }
    Ok(backend)
}

fn kind(read: &Arguments) -> Kind {
    match (read.has("kube"), read.has("etcd")) {
        (true, _) => Kind::Kube,
        (false, true) => Kind::Etcd,
        (false, false) => Kind::Embedded,
    }
}

fn build(
    read: &Arguments,
    spec: Spec,
    backend: &Value,
    interrupt: &Arc<AtomicBool>,
    progress: &Progress,
) -> anyhow::Result<(Lab, Matrix, Vec<Speed>)> {
    let executables = executables(read.value("bin-dir"))?;
    let (hosts, kind) = (spec.hosts, kind(read));
    progress.step(&format!("{hosts} hosts and a switch"));
    let mut lab = Lab::up(spec, &executables, interrupt.clone())?;
    lab.state.backend = backend["Type"].as_str().unwrap_or_default().to_owned();
    progress.step(&kind.to_string());
    lab.start_store(kind)?;
    let mut config = ::lab::flannel::config(lab.spec.families, backend.clone());
    if read.has("nftables") {
        config["EnableNFTables"] = json!(true);
    }
    if let Some(image) = read.value("image") {
        progress.step("flannel's image on every host, and its manifest");
        lab.import_image(Path::new(image))?;
        let took = lab.deploy_flannel(MANIFEST, &config)?;
        progress.step(&format!(
            "flannel runs and all Nodes are ready after {:.2} s; a pod on every Node",
            took.as_secs_f64()
        ));
        lab.deploy_pods()?;
    } else {
        lab.configure(&config)?;
        progress.step("flanneld on every host");
        lab.start_daemons(&[])?;
        let took = lab.wait_for_routes(Duration::from_secs(30 + hosts as u64))?;
        progress.step(&format!(
            "every route on every host after {:.2} s; a pod on every host",
            took.as_secs_f64()
        ));
        lab.add_pods()?;
    }
    progress.step("who reaches whom, and with how large a packet");
    let matrix = lab.matrix()?;
    let speeds = if read.has("no-speed") {
        Vec::new()
    } else {
        progress.step("throughput and round trips");
        lab.speeds(Duration::from_secs(1))?
    };
    lab.check()?;
    lab.keep()?;
    progress.step("up");
    Ok((lab, matrix, speeds))
}

/// The directory of the programs under test, checked before anything is built.
fn executables(given: Option<&str>) -> anyhow::Result<PathBuf> {
    let directory = match given {
        Some(directory) => PathBuf::from(directory),
        None => {
            let own = std::env::current_exe().context("where am I?")?;
            own.parent().map(PathBuf::from).unwrap_or_default()
        }
    };
    let directory = directory
        .canonicalize()
        .with_context(|| directory.display().to_string())?;
    for program in ["flanneld", "flannel-cni", "flannelctl"] {
        if !directory.join(program).is_file() {
            bail!(
                "no {program} in {}: build it (`cargo build --bins`), or name its place by --bin-dir",
                directory.display()
            );
        }
    }
    Ok(directory)
}

/// Becomes true on SIGINT, SIGTERM or SIGHUP.
fn interrupt_flag() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(guard);
    let listen = move || {
        runtime.block_on(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            set.store(true, Ordering::Relaxed);
            // Later ones are heard, too, and change nothing: taking down must not be cut short.
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().spawn(listen)?;
    Ok(flag)
}

fn show_all(
    lab: &Lab,
    matrix: &Matrix,
    speeds: &[Speed],
    as_json: bool,
    seconds: f64,
    out: &mut Out,
) -> Result<(), Ended> {
    if as_json {
        let mut value = show::inventory_json(lab, &show::daemons(lab));
        value["seconds"] = json!(seconds);
        value["good"] = json!(matrix.good());
        value["matrix"] = serde_json::to_value(matrix)?;
        value["speeds"] = serde_json::to_value(speeds)?;
        return out.json(&value);
    }
    show::inventory(lab, &show::daemons(lab), out)?;
    out.line("")?;
    show::matrix(lab, matrix, out)?;
    if !speeds.is_empty() {
        out.line("")?;
        show::speeds(speeds, out)?;
    }
    out.line("")?;
    show::ways_in(lab, out)
}
