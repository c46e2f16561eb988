//! The kernel as the engine's host.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use fabric::object::{LinkName, Objects, Op};

use crate::host::{ApplyOptions, Drained, Host, Interest, KernelError, Outcome, Scope};

use super::Kernel;

impl Host for Kernel {
    fn set_interest(&mut self, interest: Interest) {
        Kernel::set_interest(self, interest);
    }

    fn monitor_fd(&self) -> BorrowedFd<'_> {
        Kernel::monitor_fd(self)
    }

    fn has_news(&self) -> bool {
        Kernel::has_news(self)
    }

    fn observe(&mut self, scope: Scope) -> Result<(), KernelError> {
        Kernel::observe(self, scope)
    }

    fn drain(&mut self) -> Result<Drained, KernelError> {
        Kernel::drain(self)
    }

    fn objects(&self) -> &Objects {
        Kernel::objects(self)
    }

    fn apply(&mut self, ops: &[Op], how: ApplyOptions) -> Vec<Outcome> {
        Kernel::apply(self, ops, how)
    }

    fn has_carrier(&self, link: LinkName) -> Option<bool> {
        self.mirror.has_carrier(link)
    }

    fn direct(&mut self, peers: &[IpAddr]) -> Result<Vec<Option<LinkName>>, KernelError> {
        Kernel::direct(self, peers)
    }

    fn compact(&mut self) {
        Kernel::compact(self);
    }
}
