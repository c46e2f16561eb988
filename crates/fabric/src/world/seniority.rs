//! Where leases overlap, and which of them goes before: the older.
//!
//! Each half of a lease is looked at by itself. It loses to an older one that it is equal to, lies in or contains, unless that
//! one has lost itself: a half that has no place takes none from others.
//!
//! A change costs the halves that overlap with it, however many others there are.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::once;

use ipnet::IpNet;

use crate::lease::{Lease, Subnet};
use crate::object::Family;

/// One half of a lease. Prefixes come in the order of their addresses, and one that contains another comes before it.
pub(super) type Half = (IpNet, Subnet);

/// By age: the registry's revision at which a lease was created, then its subnets.
pub(super) type Rank = (i64, Subnet);

/// The leases that halves lost to before a change, `None` where they had not lost or were not there; of those for which the
/// change made a difference.
pub(super) type Before = BTreeMap<Half, Option<Subnet>>;

/// The halves of all leases: those that have a place, and those that have lost it.
#[derive(Debug, Default)]
pub(super) struct Seniority {
    /// INVARIANT: no two of these overlap.
    held: BTreeMap<IpNet, Subnet>,
    /// And the lease that each of these lost to.
    lost: BTreeMap<Half, Subnet>,
    /// How many halves there are of each prefix length: no others are looked for around a prefix.
    lengths: BTreeMap<(Family, u8), usize>,
}

/// The age of a lease.
pub(super) fn rank(leases: &BTreeMap<Subnet, Lease>, subnet: &Subnet) -> Rank {
    (
        leases.get(subnet).map_or(i64::MAX, |lease| lease.created),
        *subnet,
    )
}

impl Seniority {
    /// Of these halves, which come in the order of the age of their leases.
    pub(super) fn of(halves: impl Iterator<Item = Half>, leases: &BTreeMap<Subnet, Lease>) -> Seniority {
        let mut all = Seniority::default();
        let mut before = Before::new();
        for half in halves {
            all.count(&half.0);
            all.judge(
                BTreeSet::from([(rank(leases, &half.1), half)]),
                leases,
                &mut before,
            );
        }
        // Built in one go its nodes are full.
        all.held = std::mem::take(&mut all.held).into_iter().collect();
        all
    }

    /// The lease that a half loses to.
    pub(super) fn holder(&self, half: &Half) -> Option<Subnet> {
        self.lost.get(half).copied()
    }

    /// Takes halves out and puts halves in, of leases as they are from now on; what that changed.
    pub(super) fn change(&mut self, out: &[Half], put: &[Half], leases: &BTreeMap<Subnet, Lease>) -> Before {
        let (mut before, mut queue) = (Before::new(), BTreeSet::new());
        for half in out {
            self.discount(&half.0);
            match self.lost.remove(half) {
                Some(holder) => {
                    before.insert(*half, Some(holder));
                }
                None => {
                    self.held.remove(&half.0);
                    before.insert(*half, None);
                    queue.extend(self.lost_around(half.0).map(|half| (rank(leases, &half.1), half)));
                }
            }
        }
        for half in put {
            self.count(&half.0);
            queue.insert((rank(leases, &half.1), *half));
        }
        self.judge(queue, leases, &mut before);
        before
    }

    /// Judges halves, the oldest first, and whoever that makes a difference to.
    ///
    /// INVARIANT: only younger ones are put in, so each is judged once, when all that are older have been.
    fn judge(
        &mut self,
        mut queue: BTreeSet<(Rank, Half)>,
        leases: &BTreeMap<Subnet, Lease>,
        before: &mut Before,
    ) {
        while let Some((age, half)) = queue.pop_first() {
            let older = |other: &Half| *other != half && rank(leases, &other.1) < age;
            let holder = self.held_around(half.0).find(older);
            if let Some((_, holder)) = holder {
                let was = self.lost.insert(half, holder);
                if was != Some(holder) {
                    before.entry(half).or_insert(was);
                }
                if self.held.get(&half.0) == Some(&half.1) {
                    self.held.remove(&half.0);
                    let others = self.lost_around(half.0).map(|half| (rank(leases, &half.1), half));
                    queue.extend(others.filter(|other| other.0 > age));
                }
                continue;
            }
            if self.held.get(&half.0) == Some(&half.1) {
                continue;
            }
            let was = self.lost.remove(&half);
            before.entry(half).or_insert(was);
            // Whoever has its place is younger.
            let rivals: Vec<Half> = self.held_around(half.0).collect();
            for rival in rivals {
                self.held.remove(&rival.0);
                self.lost.insert(rival, half.1);
                before.entry(rival).or_insert(None);
                let others = self
                    .lost_around(rival.0)
                    .map(|half| (rank(leases, &half.1), half));
                queue.extend(others.filter(|other| other.0 > age));
            }
            self.held.insert(half.0, half.1);
            let others = self.lost_around(half.0).map(|half| (rank(leases, &half.1), half));
            queue.extend(others.filter(|other| other.0 > age));
        }
    }

    fn count(&mut self, net: &IpNet) {
        *self.lengths.entry(length(net)).or_default() += 1;
    }

    fn discount(&mut self, net: &IpNet) {
        if let Some(count) = self.lengths.get_mut(&length(net)) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.lengths.remove(&length(net));
            }
        }
    }

    /// A prefix and those that contain it, as far as there are halves of that length.
    fn outwards(&self, net: IpNet) -> impl Iterator<Item = IpNet> {
        let (family, own) = length(&net);
        self.lengths
            .range((family, 0)..(family, own))
            .filter_map(move |((_, length), _)| IpNet::new(net.addr(), *length).ok())
            .map(|outer| outer.trunc())
            .chain(once(net))
    }

    /// Halves with a place that are equal to a prefix, contain it or lie in it, from the outside in.
    fn held_around(&self, net: IpNet) -> impl Iterator<Item = Half> {
        let outer = self
            .outwards(net)
            .filter_map(|outer| Some((outer, *self.held.get(&outer)?)));
        let inner = self.held.range(net..).map(|(net, subnet)| (*net, *subnet));
        let inner = inner.skip_while(move |half| half.0 == net);
        outer.chain(inner.take_while(move |half| net.contains(&half.0)))
    }

    /// Halves without a place, likewise.
    fn lost_around(&self, net: IpNet) -> impl Iterator<Item = Half> {
        const FIRST: Subnet = Subnet { v4: None, v6: None };
        let from = |net: IpNet| self.lost.range((net, FIRST)..).map(|(half, _)| *half);
        let outer = self
            .outwards(net)
            .flat_map(move |outer| from(outer).take_while(move |half| half.0 == outer));
        let inner = from(net).skip_while(move |half| half.0 == net);
        outer.chain(inner.take_while(move |half| net.contains(&half.0)))
    }
}

fn length(net: &IpNet) -> (Family, u8) {
    (Family::of_net(*net), net.prefix_len())
}

#[cfg(test)]
mod tests;
