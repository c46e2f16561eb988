//! The machine under one node: an interface that never changes, and records in memory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fabric::config::NetworkConfig;
use fabric::lease::{Snapshot, snapshot_from};
use fabric::node::Underlay;
use fabric::object::{Family, LinkName, Objects};
use fabric::subnet_env::{self, Previous, SubnetEnv};
use flanneld::cache::{Head, Moment};
use flanneld::daemon::machine::{Claimed, Machine, Place, Unfit};
use flanneld::daemon::records::Records;
use flanneld::firewall::Rules;
use flanneld::interface::{Held, Selected, Unserved, Wish};
use flanneld::state_dir::State;
use flanneld::subnet_file::{Folder, SubnetFileError};
use ipnet::IpNet;
use kernel::KernelError;
use kernel::nl::{Fault, NetlinkError};
use registry::Pending;
use tokio::time::Instant;

pub const UNDERLAY: &str = "eth0";
/// Seconds since 1970 when the simulation begins.
const WALL: u64 = 1_800_000_000;

pub struct Host {
    address: Ipv4Addr,
    began: Instant,
    written: Mutex<Written>,
}

/// What lies on the node's disk, and what its clocks say.
#[derive(Default)]
struct Written {
    state: State,
    cache: Option<(Head, Vec<u8>)>,
    boot: u32,
    booted: u64,
    wall_offset: i64,
    devices: Objects,
    rules: Option<Rules>,
    subnet_env: Option<String>,
    /// The subnet file was touched since the process asked.
    touched: bool,
    /// So many further questions the kernel does not answer.
    refusals: u32,
    /// An IPv6 address of the interface.
    address6: Option<Ipv6Addr>,
}

impl Host {
    pub fn new(address: Ipv4Addr) -> Host {
        Host {
            address,
            began: Instant::now(),
            written: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap()
    }

    fn elapsed(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// The machine has started anew: what lies in `/run` is gone.
    pub fn reboot(&self) {
        self.remove_subnet_file();
        let now = self.elapsed();
        let mut written = self.lock();
        written.boot += 1;
        written.booted = now;
    }

    /// What the subnet file says; nothing where there is none.
    pub fn subnet_env(&self) -> String {
        self.lock().subnet_env.clone().unwrap_or_default()
    }

    pub fn remove_subnet_file(&self) {
        self.lock().put_subnet_env(None);
    }

    /// The disk is a new one.
    pub fn lose_records(&self) {
        let mut written = self.lock();
        written.state = State::default();
        written.cache = None;
    }

    /// The clock on the wall is set.
    pub fn set_clock(&self, by: i64) {
        self.lock().wall_offset += by;
    }

    /// The kernel does not answer the next so many questions.
    pub fn refuse(&self, questions: u32) {
        self.lock().refusals = questions;
    }

    /// The interface gets an IPv6 address.
    pub fn set_ipv6(&self, address: Ipv6Addr) {
        self.lock().address6 = Some(address);
    }

    /// An answer of the kernel, unless it gives none.
    fn answer<T>(&self, answer: T) -> Result<T, Unfit> {
        let mut written = self.lock();
        if written.refusals == 0 {
            return Ok(answer);
        }
        written.refusals -= 1;
        // What a dump comes to on a host where links come and go without end.
        let failure = NetlinkError {
            verb: "list links".into(),
            errno: 4,
            text: "interrupted by changes 10 times".into(),
            offset: None,
            fault: Fault::Interrupted,
        };
        Err(KernelError::from(failure).into())
    }

    /// The devices that are there as a process starts.
    pub fn set_devices(&self, devices: Objects) {
        self.lock().devices = devices;
    }

    /// Whether the firewall has rules for this subnet.
    pub fn keeps_rules_for(&self, subnet: IpNet) -> bool {
        let written = self.lock();
        let halves = written.rules.iter().flat_map(|rules| &rules.halves);
        halves.into_iter().any(|(_, own)| *own == subnet)
    }

    /// The networks of former times whose rules the firewall is to be rid of.
    pub fn former_rules(&self) -> Vec<IpNet> {
        let written = self.lock();
        written
            .rules
            .iter()
            .flat_map(|rules| rules.former.clone())
            .collect()
    }

    fn selected(&self, network: &NetworkConfig) -> Selected {
        let address = Some(self.address);
        let address6 = self.lock().address6.filter(|_| network.v6.is_some());
        let unserved = (network.v6.is_some() && address6.is_none()).then(|| Unserved {
            family: Family::V6,
            why: "eth0 has no IPv6 address".to_owned(),
        });
        Selected {
            underlay: Underlay {
                link: LinkName::new(UNDERLAY).unwrap(),
                mtu: 1500,
                address4: address,
                address6,
                public4: address,
                public6: address6,
                segments: Vec::new(),
            },
            index: 2,
            by: "the simulation".to_owned(),
            warnings: Vec::new(),
            guessed: false,
            unserved,
        }
    }
}

fn now<'a, T: Send + 'a>(value: T) -> Pending<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Written {
    fn put_subnet_env(&mut self, text: Option<String>) {
        self.subnet_env = text;
        self.touched = true;
    }
}

/// The folder of a host's subnet file, which tells of every change, those of the process itself too.
pub struct Run(pub Arc<Host>);

impl Folder for Run {
    fn follow(&mut self, _: &Path) {}

    fn is_watched(&self) -> bool {
        true
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn take_touched(&mut self) -> bool {
        std::mem::take(&mut self.0.lock().touched)
    }

    fn is_right(&self, _: &Path, wanted: &SubnetEnv) -> bool {
        let written = self.0.lock();
        let text = written.subnet_env.as_deref();
        text.is_some_and(|text| subnet_env::repair(text, wanted) == text)
    }

    fn write(&mut self, _: &Path, wanted: &SubnetEnv) -> Result<(), SubnetFileError> {
        self.0.lock().put_subnet_env(Some(wanted.render()));
        Ok(())
    }

    fn repair(&mut self, _: &Path, wanted: &SubnetEnv) -> Result<(), SubnetFileError> {
        let right = subnet_env::repair(&self.0.subnet_env(), wanted);
        self.0.lock().put_subnet_env(Some(right));
        Ok(())
    }
}

impl Machine for Host {
    fn place<'a>(
        &'a self,
        _: &'static str,
        _: &'a Wish,
        network: &'a NetworkConfig,
    ) -> Pending<'a, Result<Place, Unfit>> {
        let devices = self.lock().devices.clone();
        let selected = self.selected(network);
        now(self.answer(Place { selected, devices }))
    }

    fn choose<'a>(
        &'a self,
        _: &'a Wish,
        network: &'a NetworkConfig,
        _: Held,
    ) -> Pending<'a, Result<Selected, Unfit>> {
        let selected = self.selected(network);
        now(self.answer(selected))
    }

    fn claim(&self, former: Vec<LinkName>) -> Pending<'_, Result<Claimed, Unfit>> {
        let kept = Vec::new();
        now(self.answer(Claimed { left: former, kept }))
    }

    fn settled(&self) {}

    fn keep_rules(&self, rules: Rules) {
        self.lock().rules = Some(rules);
    }

    fn keep_parameters(&self, _: Vec<LinkName>) {}
}

impl Records for Host {
    fn now(&self) -> Moment {
        let elapsed = self.elapsed();
        let written = self.lock();
        Moment {
            wall: (WALL + elapsed).saturating_add_signed(written.wall_offset),
            boot: format!("boot {}", written.boot),
            uptime: elapsed - written.booted,
        }
    }

    fn state(&self) -> Pending<'_, State> {
        now(self.lock().state.clone())
    }

    fn save_state(&self, state: State) {
        self.lock().state = state;
    }

    fn note_leases(&self, routes: Vec<(IpNet, IpAddr)>) -> bool {
        self.lock().state.set_leases(routes);
        true
    }

    fn subnet_file(&self) -> Pending<'_, Previous> {
        let written = self.lock();
        let read = written.subnet_env.as_deref().map(subnet_env::read_previous);
        now(read.unwrap_or_default())
    }

    fn cached_head(&self) -> Pending<'_, Result<Option<Head>, String>> {
        let head = self.lock().cache.as_ref().map(|(head, _)| head.clone());
        now(Ok(head))
    }

    fn cached(&self) -> Pending<'_, Result<Option<(Head, Snapshot)>, String>> {
        let cache = self.lock().cache.clone();
        now(Ok(cache.map(|(head, lines)| {
            let lines = String::from_utf8(lines).unwrap();
            let entries = lines.lines().map(|line| {
                let mut words = line.splitn(3, ' ');
                let mut word = || words.next().unwrap();
                let (key, created, value) = (word(), word(), word());
                (key, value, created.parse().unwrap())
            });
            let snapshot = snapshot_from(head.revision, entries);
            (head, snapshot)
        })))
    }

    fn save_cache(&self, head: Head, lines: Vec<u8>) -> Pending<'_, Result<(), String>> {
        self.lock().cache = Some((head, lines));
        now(Ok(()))
    }

    fn forget_cache(&self) {
        self.lock().cache = None;
    }

    fn trouble(&self) -> Option<String> {
        None
    }

    fn done(&self, _: Duration) -> Pending<'_, ()> {
        now(())
    }
}
