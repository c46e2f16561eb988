//! Operations on links: few, each a conversation of its own, for what follows needs the index.

use fabric::object::{Key, Link, LinkKind, LinkName, Object, Op, Vxlan};
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
        let LinkKind::Vxlan(vxlan) = &link.kind else {
            return Err(refuse(Errno::OPNOTSUPP, "links of this kind are not made by us"));
        };
        let lower = match self.mirror.index(vxlan.lower) {
            Some(index) => index,
            None => match self.rtnl.link_by_name(vxlan.lower)? {
                Some(lower) => lower.index,
                None => {
                    return Err(refuse(
                        Errno::NODEV,
                        format!("there is no link {} below it", vxlan.lower),
                    ));
                }
            },
        };
        match self.rtnl.add_vxlan(link, vxlan, lower) {
            Ok(()) => {
                let _ = self.absorb_own(link.name);
                self.observe_own_link(link.name)?;
                // The addresses of a router's advertisements are not for a tunnel. Not worth failing for.
                let _ = sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", link.name), "0");
                Ok(Outcome::Done)
            }
            Err(error) if error.is_exists() => {
                self.observe_own_link(link.name)?;
                match self.mirror.objects().get(&Key::Link(link.name)) {
                    Some(Object::Link(there)) if same_link(there, link) => Ok(Outcome::Already),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn change_link(&mut self, from: &Link, to: &Link) -> Result<Outcome, NetlinkError> {
        let learning = match (&from.kind, &to.kind) {
            (LinkKind::Vxlan(from), LinkKind::Vxlan(to)) => {
                let mut same = from.clone();
                same.learning = to.learning;
                if same != *to && !(to.port.is_none() && same.port.is_some() && same_but_port(&same, to)) {
                    return Err(refuse(
                        Errno::OPNOTSUPP,
                        "what makes a vxlan device cannot be changed in place",
                    ));
                }
                (from.learning != to.learning).then_some(to.learning)
            }
            (from, to) if from == to => None,
            _ => {
                return Err(refuse(
                    Errno::OPNOTSUPP,
                    "the kind of a link cannot be changed in place",
                ));
            }
        };
        let Some(index) = self.mirror.index(to.name) else {
            return Err(refuse(Errno::NODEV, "there is no such link"));
        };
        if let Some(learning) = learning {
            self.rtnl.set_vxlan_learning(index, learning)?;
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

/// Equal as far as asked: a vxlan device without a port has the kernel's default.
fn same_link(there: &Link, wanted: &Link) -> bool {
    let kinds = match (&there.kind, &wanted.kind) {
        (LinkKind::Vxlan(there), LinkKind::Vxlan(wanted)) => {
            there == wanted || (wanted.port.is_none() && same_but_port(there, wanted))
        }
        (there, wanted) => there == wanted,
    };
    let mac = wanted.mac.is_none() || there.mac == wanted.mac;
    kinds && mac && there.mtu == wanted.mtu && there.up == wanted.up
}

fn same_but_port(one: &Vxlan, other: &Vxlan) -> bool {
    let mut one = one.clone();
    one.port = other.port;
    one == *other
}
