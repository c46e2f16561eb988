//! The threads of a daemon: started together, and joined together.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use fabric::alloc::PublicIps;
use fabric::object::LinkName;
use registry::{Chance, Registry};
use tokio::sync::Notify;
use tracing::warn;

use super::Daemon;
use super::machine::Here;
use super::record::Recorder;
use super::records::{Disk, Records};
use crate::board::Reporter;
use crate::cache::Source;
use crate::device_lock::DeviceLocks;
use crate::engine::{Engine, Outlets};
use crate::errand::Errands;
use crate::firewall::{self, Installed, RuleSet, Rules};
use crate::flags::Options;
use crate::heartbeat::Heartbeats;
use crate::mailbox::Mailbox;
use crate::parameters::{self, Parameters, Proc};
use crate::reconcile::keeper::{Keeper, Letters};
use crate::state_dir::StateDir;
use crate::subnet_file::{self, SubnetFile};
use crate::threads::Threads;
use crate::truth::RegistryName;

/// One round of the firewall's keeper runs up to eight programs, none of them longer than 30 s, and an audit is a minute away.
const FIREWALL_SILENCE: Duration = Duration::from_secs(320);

/// The keeper of kernel parameters waits for nothing; without any to keep it comes round once a minute.
const SYSCTL_SILENCE: Duration = Duration::from_secs(120);

/// The threads that were started for a daemon.
pub(super) struct Crew {
    /// The firewall's keeper.
    rules: Arc<Letters<Rules>>,
    /// The subnet file's keeper.
    subnet_file: Arc<Letters<subnet_file::Order>>,
    /// The keeper of kernel parameters.
    parameters: Arc<Letters<Vec<LinkName>>>,
    errands: [Arc<Errands>; 2],
    threads: Mutex<Threads>,
}

impl Daemon {
    /// A daemon on this machine; starts its threads. Nothing is asked of the registry yet.
    ///
    /// # Errors
    /// The system lacks threads or descriptors: then it may be tried again.
    pub fn start(
        options: Options,
        registry: Arc<dyn Registry>,
        name: RegistryName,
        heartbeats: Heartbeats,
        locks: Arc<DeviceLocks>,
    ) -> anyhow::Result<Daemon> {
        let reporter = Reporter::watched(&heartbeats);
        let mailbox = Mailbox::new().context("making the engine's letter box")?;
        let rules = Letters::new().context("making the firewall's letter box")?;
        let subnet_file = Letters::new().context("making the subnet file's letter box")?;
        let parameters = Letters::new().context("making the letter box for kernel parameters")?;
        let wanted = firewall::Wanted::of(&options);
        let truth = Daemon::truth_of(&options, &*registry, name, reporter.clone());
        let underlay_changed = Arc::new(Notify::new());
        let notify = Arc::clone(&underlay_changed);
        let outlets = Outlets {
            reporter: reporter.clone(),
            subnet_file: Arc::clone(&subnet_file),
            on_underlay: Box::new(move || notify.notify_one()),
            on_pause: {
                let (rules, file) = (Arc::clone(&rules), Arc::clone(&subnet_file));
                let parameters = Arc::clone(&parameters);
                Box::new(move |paused| {
                    rules.pause(paused);
                    file.pause(paused);
                    parameters.pause(paused);
                })
            },
        };
        let engine = Engine::new(Arc::clone(&mailbox), outlets, seed())
            .context("opening the engine's netlink sockets")?;
        let mut threads = Threads::default();
        let now = std::time::Instant::now();
        let set = RuleSet::new(
            Installed::default(),
            wanted,
            truth.firewall().clone(),
            reporter.clone(),
        );
        let firewall = Keeper::new(set, Arc::clone(&rules), wanted.resync, now);
        let kept = Parameters::new(Proc, reporter.clone());
        let kept = Keeper::new(kept, Arc::clone(&parameters), parameters::LOOK, now);
        let file = SubnetFile::new(reporter);
        let file = Keeper::new(file, Arc::clone(&subnet_file), subnet_file::LOOK, now);
        let heartbeat = heartbeats.watch("firewall", FIREWALL_SILENCE);
        let pulse = heartbeats.watch("sysctl", SYSCTL_SILENCE);
        let started = spawn("engine", move || engine.run())
            .map(|thread| threads.add(thread))
            .and_then(|()| spawn("firewall", move || firewall.run(|| heartbeat.beat())))
            .map(|thread| threads.add(thread))
            .and_then(|()| spawn("subnet-file", move || file.run(|| {})))
            .map(|thread| threads.add(thread))
            .and_then(|()| spawn("sysctl", move || kept.run(|| pulse.beat())))
            .map(|thread| threads.add(thread));
        if let Err(failure) = started {
            // Those that could be started are not left behind.
            mailbox.stop();
            rules.stop();
            subnet_file.stop();
            parameters.stop();
            return Err(failure);
        }
        let state_dir = StateDir::for_subnet_file(&options.subnet_file);
        let disk = Arc::new(Errands::new("disk", "the state directory", heartbeats.clone()));
        let host = Arc::new(Errands::new("host", "the kernel", heartbeats));
        let records = Disk::new(
            Arc::clone(&disk),
            Arc::clone(&host),
            state_dir,
            options.subnet_file.clone(),
            truth.clone(),
        );
        let machine = Here {
            host: Arc::clone(&host),
            locks,
            rules: Arc::clone(&rules),
            parameters: Arc::clone(&parameters),
        };
        let records: Arc<dyn Records> = Arc::new(records);
        Ok(Daemon {
            recorder: Recorder::new(Arc::clone(&records), Source::of(&options.registry), truth.clone()),
            options,
            registry,
            truth,
            mailbox,
            machine: Arc::new(machine),
            records,
            underlay_changed,
            chance: Chance::system(),
            doubt: Notify::new(),
            ordered: Mutex::new(PublicIps { v4: None, v6: None }),
            standing: Mutex::default(),
            crew: Some(Crew {
                rules,
                subnet_file,
                parameters,
                errands: [disk, host],
                threads: Mutex::new(threads),
            }),
        })
    }

    /// Ends the threads after the step they are in, and waits for that and for one more, but no longer than this: one that hangs
    /// is named and left. The data path stays as it is.
    pub async fn stop(&self, one_more: Option<JoinHandle<()>>, within: Duration) {
        self.mailbox.stop();
        let Some(crew) = &self.crew else { return };
        crew.rules.stop();
        crew.subnet_file.stop();
        crew.parameters.stop();
        let mut threads = std::mem::take(&mut *crew.threads.lock().unwrap_or_else(PoisonError::into_inner));
        crew.errands
            .iter()
            .filter_map(|errands| errands.stop())
            .chain(one_more)
            .for_each(|thread| threads.add(thread));
        for name in threads.join(within).await {
            warn!("thread {name} does not end: it is left behind");
        }
    }
}

/// Starts a thread of this name.
fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.with_context(|| format!("starting the thread {name}"))
}

/// Spreads the timers of many hosts that start at once.
fn seed() -> u64 {
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    u64::from(time) ^ (u64::from(std::process::id()) << 32)
}
