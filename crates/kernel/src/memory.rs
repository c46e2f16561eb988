//! A kernel in memory, for driving the engine's loop step by step without a namespace, threads or real time.
//!
//! It has state and refuses as Linux does: a route before its link is up, a place that is taken, a link that is not there.
//! It takes IPv4 routes away with their link's state or last address without saying so, loses notifications when told to,
//! and refuses single keys for as long as wanted. Like the real one it shows a mirror, which learns of others' changes
//! through notifications and dumps only.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use fabric::object::{Key, LinkName, Object, Objects, Op};
use rustix::io::Errno;

use crate::host::{ApplyOptions, Changed, Drained, Host, Interest, KernelError, Outcome, Scope};
use crate::nl::{Fault, NetlinkError};
use crate::poll::Waker;

use self::state::{Notice, State};

/// A host in memory.
#[derive(Debug)]
pub struct Memory {
    state: State,
    mirror: Objects,
    interest: Interest,
    /// Notifications not read yet.
    queue: Vec<(Notice, Option<u32>)>,
    /// Some were lost.
    overrun: bool,
    news: Drained,
    refused: BTreeMap<Key, Errno>,
    snatched: BTreeSet<Key>,
    unreadable: bool,
    routed: BTreeMap<IpAddr, LinkName>,
    unplugged: BTreeSet<LinkName>,
    done: Vec<Op>,
    dumps: usize,
    waker: Waker,
}

impl Memory {
    /// A host without any object.
    pub fn new() -> std::io::Result<Memory> {
        Ok(Memory {
            state: State::default(),
            mirror: Objects::new(),
            interest: Interest::default(),
            queue: Vec::new(),
            overrun: false,
            news: Drained::default(),
            refused: BTreeMap::new(),
            snatched: BTreeSet::new(),
            unreadable: false,
            routed: BTreeMap::new(),
            unplugged: BTreeSet::new(),
            done: Vec::new(),
            dumps: 0,
            waker: Waker::new()?,
        })
    }

    /// What is really there, of interest or not.
    pub fn truth(&self) -> &Objects {
        self.state.objects()
    }

    /// Somebody else's deed, under the kernel's rules; the mirror hears of it by notification, with this sender.
    pub fn act(&mut self, op: &Op, by: Option<u32>) -> Result<(), NetlinkError> {
        let notices = self.state.execute(op).map_err(|errno| refusal(errno).of(op))?;
        self.queue.extend(notices.into_iter().map(|notice| (notice, by)));
        self.waker.wake();
        Ok(())
    }

    /// All notifications that wait are lost.
    pub fn lose_notifications(&mut self) {
        self.queue.clear();
        self.overrun = true;
        self.waker.wake();
    }

    /// From now on operations of the engine on this key fail; the kernel itself and others may still change it.
    pub fn refuse(&mut self, key: Key, errno: i32) {
        self.refused.insert(key, Errno::from_raw_os_error(errno));
    }

    /// From now on what the engine makes here is removed by somebody before the engine has looked at it: no notification is
    /// told from those of its own doing.
    pub fn snatch(&mut self, key: Key) {
        self.snatched.insert(key);
    }

    /// Nothing is refused any more, or snatched away.
    pub fn allow_all(&mut self) {
        self.refused.clear();
        self.snatched.clear();
    }

    /// Whether dumps fail.
    pub fn set_unreadable(&mut self, unreadable: bool) {
        self.unreadable = unreadable;
    }

    /// This address is reached through this link without a gateway, from now on; `None`: by a gateway.
    pub fn set_direct(&mut self, peer: IpAddr, link: Option<LinkName>) {
        match link {
            Some(link) => self.routed.insert(peer, link),
            None => self.routed.remove(&peer),
        };
        self.queue.push((Notice::OtherRoute(peer.into()), None));
        self.waker.wake();
    }

    /// A link loses its carrier, or has it again.
    pub fn set_carrier(&mut self, link: LinkName, carrier: bool) {
        if carrier {
            self.unplugged.remove(&link);
        } else {
            self.unplugged.insert(link);
        }
        self.queue.push((Notice::Carrier, None));
        self.waker.wake();
    }

    /// Operations that succeeded since the last call, oldest first.
    pub fn take_done(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.done)
    }

    /// Dumps made so far.
    pub fn dumps(&self) -> usize {
        self.dumps
    }

    fn is_wanted(&self, key: &Key) -> bool {
        match key {
            Key::Route(destination, _) => self.interest.networks.iter().any(|n| n.contains(destination)),
            Key::Neighbour(link, _) | Key::Forwarding(link, _) => {
                self.interest.links.contains(link) && self.state.has_entries(*link)
            }
            Key::Link(link) | Key::Address(link, _) => self.interest.links.contains(link),
        }
    }

    /// Takes what waits into the mirror and the news.
    fn absorb(&mut self) {
        self.waker.clear();
        if std::mem::take(&mut self.overrun) {
            self.news.want(Scope::All);
        }
        let mut before: BTreeMap<Key, (Option<Object>, Option<u32>)> = BTreeMap::new();
        for (notice, by) in std::mem::take(&mut self.queue) {
            match notice {
                Notice::OtherRoute(destination) => self.news.ways.note(destination),
                Notice::Carrier => {}
                Notice::Silent(link) => self.news.want(Scope::Link(link)),
                Notice::Set(key, object) => {
                    let outside = matches!(key, Key::Route(..)) && !self.is_wanted(&key);
                    let leaned_on = matches!(key, Key::Link(link) | Key::Address(link, _)
                        if self.interest.links.contains(&link) && !self.state.is_made(link));
                    if let Key::Route(destination, _) = key
                        && outside
                    {
                        self.news.ways.note(destination);
                    }
                    self.news.underlay_changed |= leaned_on;
                    self.news.device_gone |= matches!(key, Key::Link(_)) && object.is_none();
                    // What is told of a link that is gone by now was told while it was there.
                    if outside || !(self.is_wanted(&key) || self.mirror.contains_key(&key)) {
                        continue;
                    }
                    let old = match object {
                        Some(object) => self.mirror.insert(*object),
                        None => self.mirror.remove(&key),
                    };
                    before.entry(key).or_insert((old, None)).1 = by;
                }
            }
        }
        for (key, (old, by)) in before {
            if self.mirror.get(&key) != old.as_ref() {
                self.news.changed.retain(|changed| changed.key != key);
                self.news.changed.push(Changed { key, by });
            }
        }
    }

    fn apply_one(&mut self, op: &Op) -> Outcome {
        let key = op.key();
        if let Some(errno) = self.refused.get(&key) {
            return Outcome::Failed(Box::new(refusal(*errno).of(op)));
        }
        let there = self.state.objects().get(&key);
        let already = match op {
            Op::Add(object) => there == Some(object),
            Op::Change { .. } => false,
            Op::Remove(_) => there.is_none(),
        };
        if already {
            self.show(key);
            return Outcome::Already;
        }
        match self.state.execute(op) {
            Ok(notices) => {
                self.done.push(op.clone());
                self.take_echo(op, notices);
                if self.snatched.contains(&key)
                    && self.state.execute(&Op::Remove(op.object().clone())).is_ok()
                {
                    self.show(key);
                }
                Outcome::Done
            }
            Err(errno) => Outcome::Failed(Box::new(refusal(errno).of(op))),
        }
    }

    /// What came of an operation of ours: the object itself is no news, what went with it is.
    fn take_echo(&mut self, op: &Op, notices: Vec<Notice>) {
        self.show(op.key());
        for notice in notices {
            match notice {
                Notice::Set(key, _) if key == op.key() => {}
                Notice::Silent(link) => {
                    let gone: Vec<Key> = self.of_scope(Scope::Link(link));
                    for key in gone {
                        if self.state.objects().get(&key) != self.mirror.get(&key) {
                            self.show(key);
                            self.news.changed.push(Changed { key, by: None });
                        }
                    }
                }
                Notice::Set(key, _) if matches!(op, Op::Remove(Object::Link(_))) => self.show(key),
                notice => self.queue.push((notice, None)),
            }
        }
    }

    /// Makes the mirror true for one key.
    fn show(&mut self, key: Key) {
        match self.state.objects().get(&key) {
            Some(object) if self.is_wanted(&key) => self.mirror.insert(object.clone()),
            _ => self.mirror.remove(&key),
        };
    }

    /// Keys in a scope that are there or mirrored.
    fn of_scope(&self, scope: Scope) -> Vec<Key> {
        let both = self.state.objects().iter().chain(self.mirror.iter());
        let keys: BTreeSet<Key> = both
            .filter(|(_, object)| match scope {
                Scope::All => true,
                Scope::Link(link) => object.link() == link,
            })
            .map(|(key, _)| key)
            .collect();
        keys.into_iter().collect()
    }
}

fn refusal(errno: Errno) -> NetlinkError {
    NetlinkError::new("apply", Fault::Refused, errno, "")
}

impl Host for Memory {
    fn set_interest(&mut self, interest: Interest) {
        self.interest = interest;
        let outside: Vec<Key> = self.mirror.keys().filter(|key| !self.is_wanted(key)).collect();
        for key in outside {
            self.mirror.remove(&key);
        }
        self.news.want(Scope::All);
    }

    fn monitor_fd(&self) -> BorrowedFd<'_> {
        self.waker.fd()
    }

    fn has_news(&self) -> bool {
        !self.news.is_empty() || self.overrun || !self.queue.is_empty()
    }

    fn observe(&mut self, scope: Scope) -> Result<(), KernelError> {
        self.absorb();
        if self.unreadable {
            return Err(NetlinkError::new("dump", Fault::Timeout, Errno::TIMEDOUT, "").into());
        }
        self.dumps += 1;
        for key in self.of_scope(scope) {
            self.show(key);
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<Drained, KernelError> {
        self.absorb();
        Ok(std::mem::take(&mut self.news))
    }

    fn objects(&self) -> &Objects {
        &self.mirror
    }

    fn apply(&mut self, ops: &[Op], _: ApplyOptions) -> Vec<Outcome> {
        self.absorb();
        ops.iter().map(|op| self.apply_one(op)).collect()
    }

    fn has_carrier(&self, link: LinkName) -> Option<bool> {
        let there = self.state.objects().contains_key(&Key::Link(link));
        there.then(|| !self.unplugged.contains(&link))
    }

    fn direct(&mut self, peers: &[IpAddr]) -> Result<Vec<Option<LinkName>>, KernelError> {
        Ok(peers.iter().map(|peer| self.routed.get(peer).copied()).collect())
    }

    fn compact(&mut self) {}
}

#[cfg(test)]
mod tests;
