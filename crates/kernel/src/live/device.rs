//! Operations on links: few, each a conversation of its own, for what follows needs the index.

use fabric::kind::Likeness;
use fabric::object::{Key, Link, LinkName, Object, Op};
use fabric::parameter::Parameter;
use rustix::io::Errno;

use crate::host::{KernelError, Outcome};
use crate::mirror::Origin;
use crate::nl::NetlinkError;
use crate::rtnl::LinkChange;
use crate::sysctl;

use super::{Kernel, refuse};

impl Kernel {
    pub(super) fn apply_link(&mut self, op: &Op) -> Outcome {
        let done = match op {
            Op::Add(Object::Link(link)) => self.add_link(link),
            Op::Change {
                from: Object::Link(from),
                to: Object::Link(to),
            } => self.change_link(from, to),
            Op::Remove(Object::Link(link)) => self.remove_link(link.name),
            _ => Err(refuse(Errno::INVAL, "a change must be of one kind of object")),
        };
        done.unwrap_or_else(|error| Outcome::Failed(Box::new(error.of(op))))
    }

    fn add_link(&mut self, link: &Link) -> Result<Outcome, NetlinkError> {
        let lower = match link.kind.lower() {
            Some(lower) => self.index_below(lower)?,
            None => 0,
        };
        match self.rtnl.add_link(link, lower) {
            Ok(()) => {
                let _ = self.absorb_own(link.name);
                self.observe_own_link(link.name)?;
                // At once, before anybody's advertisement comes in. It is looked at again by whoever keeps the parameters, who says so
                // where it cannot be set.
                for parameter in Parameter::of(&[link.name]) {
                    let _ = sysctl::set(&parameter.path(), parameter.wanted());
                }
                Ok(Outcome::Done)
            }
            Err(error) if error.is_exists() => {
                self.observe_own_link(link.name)?;
                match self.mirror.objects().get(&Key::Link(link.name)) {
                    Some(Object::Link(there)) if link.is_met_by(there) => Ok(Outcome::Already),
                    Some(there) => Err(NetlinkError {
                        text: format!("its name is taken by {there}").into(),
                        ..error
                    }),
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Index of the link that another is to lie on, which need not be one of interest.
    fn index_below(&mut self, lower: LinkName) -> Result<u32, NetlinkError> {
        if let Some(index) = self.mirror.index(lower) {
            return Ok(index);
        }
        let seen = self.rtnl.link_by_name(lower)?;
        let index = seen.map(|link| link.index);
        index.ok_or_else(|| refuse(Errno::NODEV, format!("there is no link {lower} below it")))
    }

    fn change_link(&mut self, from: &Link, to: &Link) -> Result<Outcome, NetlinkError> {
        let likeness = to.likeness(from);
        match likeness {
            Likeness::Met | Likeness::Changeable => {}
            Likeness::Another => {
                return Err(refuse(
                    Errno::OPNOTSUPP,
                    format!(
                        "what makes a {} device cannot be changed in place",
                        to.kind.name()
                    ),
                ));
            }
            Likeness::Stranger => {
                return Err(refuse(
                    Errno::OPNOTSUPP,
                    "the kind of a link cannot be changed in place",
                ));
            }
        }
        let Some(index) = self.mirror.index(to.name) else {
            return Err(refuse(Errno::NODEV, "there is no such link"));
        };
        if likeness == Likeness::Changeable {
            self.rtnl.set_kind(index, &to.kind)?;
        }
        let change = LinkChange {
            mtu: (from.mtu != to.mtu).then_some(to.mtu),
            mac: to.mac.filter(|mac| from.mac != Some(*mac)),
            up: (from.up != to.up).then_some(to.up),
        };
        if change != LinkChange::default() {
            match self.rtnl.set_link(index, change) {
                // Some kinds of links change their address only while down.
                Err(error) if error.is(Errno::BUSY) && change.mac.is_some() => {
                    self.rtnl.set_link(
                        index,
                        LinkChange {
                            up: Some(false),
                            ..LinkChange::default()
                        },
                    )?;
                    self.rtnl.set_link(
                        index,
                        LinkChange {
                            up: Some(to.up),
                            ..change
                        },
                    )?;
                }
                other => other?,
            }
        }
        // Neighbours go with the address, routes with the state: what went must be known, and told.
        self.observe_link_after_change(to.name)?;
        Ok(Outcome::Done)
    }

    fn remove_link(&mut self, name: LinkName) -> Result<Outcome, NetlinkError> {
        let Some(index) = self.mirror.index(name) else {
            return Ok(Outcome::Already);
        };
        match self.rtnl.delete_link(index) {
            Ok(()) => {
                self.mirror.forget_link(index, Origin::Own);
                let _ = self.absorb_own(name);
                Ok(Outcome::Done)
            }
            Err(error) if error.is_absent() => {
                self.mirror.forget_link(index, Origin::Own);
                Ok(Outcome::Already)
            }
            Err(error) => Err(error),
        }
    }

    fn observe_own_link(&mut self, name: LinkName) -> Result<(), NetlinkError> {
        self.observe_link(name, Origin::Own)
            .map_err(|KernelError::Netlink(error)| error)
    }

    fn observe_link_after_change(&mut self, name: LinkName) -> Result<(), NetlinkError> {
        if let Some(seen) = self.rtnl.link_by_name(name)? {
            self.mirror.set_link(&seen, Origin::Own);
        }
        let _ = self.absorb();
        if let Some(seen) = self.rtnl.link_by_name(name)? {
            self.mirror.set_link(&seen, Origin::Own);
        }
        self.observe_link(name, Origin::Foreign(None))
            .map_err(|KernelError::Netlink(error)| error)
    }
}
