//! The machine a daemon runs on, as far as the daemon asks it itself: interfaces, devices, and the hand that keeps the
//! firewall. What the engine keeps in the kernel is the engine's.

use std::sync::Arc;
use std::time::Duration;

use fabric::causes::in_full;
use fabric::config::NetworkConfig;
use fabric::object::{LinkName, Objects};
use fabric::plan;
use kernel::nl::NetlinkError;
use kernel::rtnl::Rtnl;
use kernel::{Interest, Kernel, KernelError, Scope};
use registry::Pending;

use crate::device_lock::{DeviceLocks, Kept};
use crate::errand::{Errands, NoAnswer};
use crate::firewall::Rules;
use crate::interface::{self, ChooseError, Held, Selected, Wish};
use crate::reconcile::keeper::Letters;

/// The kernel that has not told its interfaces by then does not answer.
const CHOOSING: Duration = Duration::from_secs(10);

/// Why the machine does not give what is asked of it.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// No interface fits.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// Another daemon has the device.
    #[error(transparent)]
    Kept(#[from] Kept),
    /// The devices that are there could not be asked for.
    #[error("asking the kernel for its devices: {0}")]
    Kernel(#[from] KernelError),
    /// The thread that looks does not answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// No waiting will cure it.
    #[error("{}", in_full(.0.as_ref()))]
    Broken(anyhow::Error),
}

/// What a machine gives a network to stand on.
#[derive(Debug)]
pub struct Place {
    /// The interface, and the addresses.
    pub selected: Selected,
    /// The devices of the plan as they are now, with what hangs on them.
    pub devices: Objects,
}

/// What is left of devices of former times.
#[derive(Debug, Default)]
pub struct Claimed {
    /// They are there, and nobody else's.
    pub left: Vec<LinkName>,
    /// Who has which of the others.
    pub kept: Vec<Kept>,
}

/// What a daemon asks of the machine it runs on. Nothing here blocks who waits.
pub trait Machine: Send + Sync {
    /// Chooses the interface and takes the devices, for nobody else. `kind` names the errand: a later one of the same kind
    /// replaces it.
    ///
    /// # Errors
    /// See [`Unfit`]; all but [`Unfit::Broken`] may be cured by waiting.
    fn place<'a>(
        &'a self,
        kind: &'static str,
        wish: &'a Wish,
        network: &'a NetworkConfig,
    ) -> Pending<'a, Result<Place, Unfit>>;

    /// Chooses the interface anew; one that is `held` stays when it was only renamed.
    ///
    /// # Errors
    /// See [`Unfit`].
    fn choose<'a>(
        &'a self,
        wish: &'a Wish,
        network: &'a NetworkConfig,
        held: Held,
    ) -> Pending<'a, Result<Selected, Unfit>>;

    /// Looks what is left of devices of former times, and takes it.
    ///
    /// # Errors
    /// See [`Unfit`].
    fn claim(&self, former: Vec<LinkName>) -> Pending<'_, Result<Claimed, Unfit>>;

    /// All devices that are wanted have been asked for: what a predecessor held beyond them may go.
    fn settled(&self);

    /// Gives the firewall what to keep from now on.
    fn keep_rules(&self, rules: Rules);

    /// Says whose kernel parameters are to be kept from now on.
    fn keep_parameters(&self, links: Vec<LinkName>);
}

/// This machine.
pub(super) struct Here {
    /// Asks the kernel, and reads what lies in `/run`.
    pub(super) host: Arc<Errands>,
    pub(super) locks: Arc<DeviceLocks>,
    /// The firewall's keeper.
    pub(super) rules: Arc<Letters<Rules>>,
    /// The keeper of kernel parameters.
    pub(super) parameters: Arc<Letters<Vec<LinkName>>>,
}

impl Machine for Here {
    fn place<'a>(
        &'a self,
        kind: &'static str,
        wish: &'a Wish,
        network: &'a NetworkConfig,
    ) -> Pending<'a, Result<Place, Unfit>> {
        Box::pin(async move {
            let (wish, network, locks) = (wish.clone(), network.clone(), Arc::clone(&self.locks));
            self.host
                .ask(kind, CHOOSING, move || find(&wish, &network, &locks))
                .await?
        })
    }

    fn choose<'a>(
        &'a self,
        wish: &'a Wish,
        network: &'a NetworkConfig,
        held: Held,
    ) -> Pending<'a, Result<Selected, Unfit>> {
        Box::pin(async move {
            let (wish, network) = (wish.clone(), network.clone());
            let choose = move || interface::choose(&wish, &network, Some(held));
            let chosen = self.host.ask("underlay", CHOOSING, choose);
            Ok(chosen.await??)
        })
    }

    fn claim(&self, former: Vec<LinkName>) -> Pending<'_, Result<Claimed, Unfit>> {
        Box::pin(async move {
            let locks = Arc::clone(&self.locks);
            let left = self
                .host
                .ask("former devices", CHOOSING, move || devices_left(former, &locks));
            Ok(left.await?.map_err(KernelError::from)?)
        })
    }

    fn settled(&self) {
        self.locks.drop_inherited();
    }

    fn keep_rules(&self, rules: Rules) {
        self.rules.set(rules);
    }

    fn keep_parameters(&self, links: Vec<LinkName>) {
        self.parameters.set(links);
    }
}

/// Chooses the interface and takes the devices. Blocks for as long as the kernel takes to answer.
fn find(wish: &Wish, network: &NetworkConfig, locks: &DeviceLocks) -> Result<Place, Unfit> {
    let selected = interface::choose(wish, network, None)?;
    let backend = plan::backend(&network.backend).map_err(|failure| Unfit::Broken(failure.into()))?;
    let links = backend.links(network);
    locks.take(&links)?;
    let devices = observe(links)?;
    Ok(Place { selected, devices })
}

fn observe(links: Vec<LinkName>) -> Result<Objects, KernelError> {
    let mut kernel = Kernel::open(Interest {
        links,
        networks: Vec::new(),
    })?;
    kernel.observe(Scope::All)?;
    Ok(kernel.objects().clone())
}

/// Leaves devices out that are gone, or have become another daemon's; of those, who that is. Blocks.
fn devices_left(devices: Vec<LinkName>, locks: &DeviceLocks) -> Result<Claimed, NetlinkError> {
    let mut rtnl = Rtnl::open()?;
    let (mut left, mut gone) = (Vec::new(), Vec::new());
    for device in devices {
        match rtnl.link_by_name(device)? {
            Some(_) => left.push(device),
            None => gone.push(device),
        }
    }
    locks.remove(&gone);
    let kept = locks.take_former(&left);
    left.retain(|device| kept.iter().all(|kept| kept.device != *device));
    Ok(Claimed { left, kept })
}
