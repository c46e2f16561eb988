//! One node: a kernel and a disk that outlive its processes, and the process that runs now.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::net::Ipv4Addr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use fabric::object::{Address, Key, Link, LinkKind, LinkName, Object, Objects, Op, ROUTE_PROTOCOL};
use flanneld::board::Reporter;
use flanneld::daemon::{Daemon, Ending, Parts};
use flanneld::engine::{Engine, Outlets};
use flanneld::flags::{self, CommandLine, Options};
use flanneld::mailbox::Mailbox;
use flanneld::reconcile::keeper::Keeper;
use flanneld::reconcile::keeper::Letters;
use flanneld::subnet_file::{self, SubnetFile};
use flanneld::truth::{RegistryName, Truth};
use kernel::memory::Memory;
use registry::{Chance, Registry};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::host::{Host, Run, UNDERLAY};
use crate::witness::{Belief, Witnessed};

pub struct Node {
    pub address: Ipv4Addr,
    pub host: Arc<Host>,
    /// The kernel while no process runs.
    kernel: Option<Memory>,
    pub process: Option<Process>,
    /// The process is stopped and does not know.
    pub frozen: bool,
    /// Since when the kernel has had each route of ours, or what it says was so.
    pub routes: BTreeMap<Key, Instant>,
    pub starts: u64,
}

pub struct Process {
    pub engine: Engine<Memory>,
    /// Keeps the subnet file.
    pub file: Keeper<SubnetFile<Run>>,
    pub client: u32,
    pub truth: Truth,
    pub belief: Arc<Mutex<Belief>>,
    pub task: Option<tokio::task::JoinHandle<()>>,
    pub waker: Option<Waker>,
    /// Since when it runs.
    pub began: Instant,
    /// Since when it has heard of the leases.
    pub heard: Option<Instant>,
}

fn name(text: &str) -> LinkName {
    LinkName::new(text).unwrap()
}

pub fn underlay(up: bool) -> Object {
    Object::Link(Box::new(Link {
        name: name(UNDERLAY),
        kind: LinkKind::Other("".into()),
        mac: None,
        mtu: 1500,
        up,
    }))
}

fn booted(address: Ipv4Addr) -> Memory {
    let mut kernel = Memory::new().unwrap();
    let net = format!("{address}/24").parse().unwrap();
    let link = name(UNDERLAY);
    for object in [underlay(true), Object::Address(Address { link, address: net })] {
        kernel.act(&Op::Add(object), None).unwrap();
    }
    kernel
}

impl Node {
    pub fn new(address: Ipv4Addr, host: Host) -> Node {
        Node {
            address,
            host: Arc::new(host),
            kernel: Some(booted(address)),
            process: None,
            frozen: false,
            routes: BTreeMap::new(),
            starts: 0,
        }
    }

    /// The kernel, whoever has it.
    pub fn kernel(&mut self) -> &mut Memory {
        match (&mut self.process, &mut self.kernel) {
            (Some(process), _) => process.engine.host(),
            (None, kernel) => kernel.get_or_insert_with(|| Memory::new().unwrap()),
        }
    }

    pub fn wake(&self) {
        let process = self.process.as_ref();
        if let Some(waker) = process.and_then(|process| process.waker.as_ref()) {
            waker.wake_by_ref();
        }
    }

    /// The process is killed. What is in the kernel stays there.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            if let Some(task) = process.task.take() {
                task.abort();
            }
            self.kernel = Some(std::mem::replace(process.engine.host(), Memory::new().unwrap()));
        }
        self.frozen = false;
    }

    /// The machine starts anew.
    pub fn reboot(&mut self) {
        self.kill();
        self.kernel = Some(booted(self.address));
        self.routes.clear();
        self.host.reboot();
    }

    /// Starts a process; what runs it is to be spawned.
    pub fn start(
        &mut self,
        registry: Arc<dyn Registry>,
        client: u32,
        chance: &Chance,
        margin: std::time::Duration,
    ) -> Daemon {
        let mut kernel = self.kernel.take().unwrap();
        self.starts += 1;
        let devices: Objects = kernel
            .truth()
            .values()
            .filter(|object| object.link().as_str().starts_with("flannel"))
            .cloned()
            .collect();
        self.host.set_devices(devices);
        kernel.take_done();
        let belief = Arc::new(Mutex::new(Belief::default()));
        let registry: Arc<dyn Registry> = Arc::new(Witnessed {
            inner: registry,
            belief: Arc::clone(&belief),
        });
        let (mailbox, reporter) = (Mailbox::new().unwrap(), Reporter::default());
        let underlay_changed = Arc::new(Notify::new());
        let notify = Arc::clone(&underlay_changed);
        let letters = Letters::new().unwrap();
        let outlets = Outlets {
            reporter: reporter.clone(),
            subnet_file: Arc::clone(&letters),
            on_underlay: Box::new(move || notify.notify_one()),
            on_pause: {
                let letters = Arc::clone(&letters);
                Box::new(move |paused| letters.pause(paused))
            },
        };
        let now = Instant::now().into_std();
        let engine = Engine::over(kernel, Arc::clone(&mailbox), outlets, chance.bits(), now);
        let file = SubnetFile::within(Run(Arc::clone(&self.host)), reporter.clone());
        let file = Keeper::new(file, letters, subnet_file::LOOK, now);
        let daemon = Daemon::over(Parts {
            options: options(margin),
            registry,
            name: RegistryName::etcd("/simulation"),
            machine: Arc::clone(&self.host) as _,
            records: Arc::clone(&self.host) as _,
            reporter,
            mailbox,
            underlay_changed,
            chance: chance.clone(),
        });
        let truth = daemon.truth().clone();
        self.process = Some(Process {
            engine,
            file,
            client,
            truth,
            belief,
            task: None,
            waker: None,
            began: Instant::now(),
            heard: None,
        });
        self.frozen = false;
        daemon
    }
}

fn options(margin: std::time::Duration) -> Options {
    let arguments = [
        "flanneld".to_owned(),
        "--subnet-file=/run/flannel/subnet.env".to_owned(),
    ];
    let arguments = arguments.map(std::ffi::OsString::from);
    let CommandLine::Run(start) = flags::command_line(arguments, |_| None, "0") else {
        panic!("these are right");
    };
    let mut options = start.options;
    options.renew_margin = margin;
    options.forward_rules = false;
    options.masquerade = false;
    options
}

/// Whether an object is one that flannel makes, by the design's text.
pub fn is_ours(object: &Object) -> bool {
    let on_ours = object.link().as_str().starts_with("flannel");
    match object {
        Object::Route(route) => route.protocol == ROUTE_PROTOCOL,
        _ => on_ours,
    }
}

/// Runs the daemon and, after everything it does and whenever the engine's own clock says so, a round of the engine, which
/// says when the next is due. Nothing happens while the process is frozen.
pub async fn run(
    daemon: Daemon,
    frozen: impl Fn(&Context<'_>) -> bool,
    mut round: impl FnMut() -> Instant,
) -> anyhow::Result<Ending> {
    let mut work = pin!(async move {
        loop {
            match daemon.run().await {
                Ok(Ending::Readdressed(_)) => {}
                ended => return ended,
            }
        }
    });
    let mut clock: Pin<Box<Sleep>> = Box::pin(sleep_until(Instant::now()));
    poll_fn(|context| {
        let mut rounds = 0;
        if frozen(context) {
            return Poll::Pending;
        }
        if let Poll::Ready(ended) = work.as_mut().poll(context) {
            return Poll::Ready(ended);
        }
        // What a round says to the daemon wakes this task again.
        loop {
            clock.as_mut().reset(round().max(Instant::now()));
            if clock.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            rounds += 1;
            assert!(rounds < 100, "the engine spins");
        }
    })
    .await
}
