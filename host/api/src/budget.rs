//! Budgets of calls and memory, shared by the connections of a node.
//!
//! Contract:
//! * All reservations together never exceed the budget.
//! * Any connection may hold the first half. The second half is divided into equal shares, so a
//!   connection that has taken the first half leaves room for the others. If a connection has only
//!   one reservation, it may exceed the share, since a single message may be that large.
//! * A reservation ends when it is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// A limit of calls or of bytes for all connections together.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    used: Arc<AtomicUsize>,
}

/// The part of a [`Budget`] that one connection holds.
pub(super) type Share = Arc<AtomicUsize>;

/// A reserved part of a budget.
#[derive(Debug)]
pub(super) struct Reserved {
    amount: usize,
    node: Arc<AtomicUsize>,
    connection: Share,
}

impl Budget {
    /// Creates a budget. Its current use can be read from `used`.
    pub(super) fn new(most: usize, used: Arc<AtomicUsize>) -> Self {
        Self { most, used }
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Reserves `amount` for one of `connections` connections. Returns `None` if there is no room now.
    pub(super) fn reserve(
        &self,
        share: &Share,
        amount: usize,
        connections: usize,
    ) -> Option<Reserved> {
        let mut reserved =
            Reserved { amount: 0, node: Arc::clone(&self.used), connection: Arc::clone(share) };
        self.grow(&mut reserved, amount, connections).then_some(reserved)
    }

    /// Adds to a reservation. Returns `false` if there is no room now.
    pub(super) fn grow(&self, reserved: &mut Reserved, more: usize, connections: usize) -> bool {
        let used = self.used.fetch_add(more, Relaxed) + more;
        let mine = reserved.connection.fetch_add(more, Relaxed) + more;
        let half = self.most / 2;
        let fair = half / connections.max(1);
        let alone = mine == reserved.amount + more;
        let fits = used <= half || (used <= self.most && (mine <= fair || alone));
        if fits {
            reserved.amount += more;
        } else {
            self.used.fetch_sub(more, Relaxed);
            reserved.connection.fetch_sub(more, Relaxed);
        }
        fits
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.node.fetch_sub(self.amount, Relaxed);
        self.connection.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn one_connection_leaves_half_of_the_budget_to_the_others() {
        let budget = Budget::new(100, Arc::default());
        let (greedy, modest) = (Share::default(), Share::default());
        let mut held = Vec::new();
        while let Some(reserved) = budget.reserve(&greedy, 1, 2) {
            held.push(reserved);
        }
        assert_eq!(held.len(), 50);
        // The other connection gets its share of the second half, one by one or in one reservation.
        let mut others: Vec<_> = (0..25).map(|_| budget.reserve(&modest, 1, 2).unwrap()).collect();
        assert!(budget.reserve(&modest, 1, 2).is_none());
        others.clear();
        drop(budget.reserve(&modest, 50, 2).unwrap());
        assert!(budget.reserve(&modest, 51, 2).is_none());
        drop(held);
        assert_eq!(budget.used.load(Relaxed), 0);
        assert_eq!((greedy.load(Relaxed), modest.load(Relaxed)), (0, 0));
    }

    #[test]
    fn a_reservation_may_grow_beyond_its_share_while_it_is_the_only_one() {
        let budget = Budget::new(100, Arc::default());
        let share = Share::default();
        let mut large = budget.reserve(&share, 10, 10).unwrap();
        assert!((0..90).all(|_| budget.grow(&mut large, 1, 10)));
        assert!(!budget.grow(&mut large, 1, 10));
        drop(large);
        let small = budget.reserve(&share, 50, 10).unwrap();
        let mut second = budget.reserve(&share, 0, 10).unwrap();
        assert!(!budget.grow(&mut second, 1, 10));
        drop((small, second));
        assert_eq!(budget.used.load(Relaxed), 0);
    }
}
