//! The time without a standby: from a promotion or a trap until another instance has been built and
//! has caught up.

use std::{sync::atomic::Ordering, time::Instant};

use super::{Standby, TURN_COUNT};
use crate::{
    error::{FatalError, QueryError, SnapshotError},
    worker::{inbox::Queue, status::End},
};

impl Standby {
    /// Makes the primary answer queries from now on.
    pub(super) fn begin_absence(&self) {
        let mut queue = self.shared.inbox.lock();
        if !queue.primary_answers {
            queue.primary_answers = true;
            self.shared.absence.begin();
        }
        self.shared.ask_primary(&mut queue);
    }

    /// Makes the standby answer queries again, once it has almost caught up with the primary. It
    /// has to catch up first, so that no caller observes an older state than was served before.
    pub(super) fn end_absence(&self, queue: &mut Queue) {
        if queue.primary_answers
            && self.instance.is_some()
            && queue.promotion.is_none()
            && !queue.catching_up
            && queue.finished.len() < TURN_COUNT
        {
            queue.primary_answers = false;
            // A request that the primary has not handled yet must not count in the next absence.
            queue.primary_asked = false;
            self.shared.absence.end();
            queue.assert_invariants();
        }
    }

    /// Continues with an instance that was restored from a snapshot, unless the current one is needed.
    /// The next turns apply the entries after the snapshot; meanwhile the primary answers queries.
    pub(super) fn succeed(&mut self, queue: &mut Queue) -> bool {
        let is_needed = self.instance.is_some()
            && !(self.streams.is_empty()
                && queue.promotion.is_none()
                && queue.snapshots.is_empty()
                && queue.reads.is_empty());
        if is_needed {
            return false;
        }
        let Some(successor) = queue.successor.take() else { return false };
        if successor.clock.index() <= self.adopted_at {
            return false;
        }
        if !queue.primary_answers {
            queue.primary_answers = true;
            self.shared.absence.begin();
        }
        self.shared.ask_primary(queue);
        self.retired = self.instance.replace(successor.instance);
        self.streams.clear();
        self.component = successor.component;
        self.clock = successor.clock;
        self.shared.counters.rotations.fetch_add(1, Ordering::Relaxed);
        self.shared.events.skip_to(self.clock.index());
        queue.catching_up = true;
        queue.assert_invariants();
        true
    }

    /// Pauses without a standby before the next attempt to build one.
    ///
    /// # Errors
    /// Fails if the primary has trapped, because then there is no instance at all.
    pub(super) fn rest(&mut self, fatal_error: FatalError) -> Result<(), End> {
        self.instance = None;
        self.streams.clear();
        self.gaps = 0;
        self.begin_absence();
        let reason = fatal_error.to_string();
        let pause = self.shared.absence.failed(reason.clone());
        let shared = std::sync::Arc::clone(&self.shared);
        let mut queue = shared.inbox.lock();
        if queue.promotion.is_some() {
            return Err(fatal_error.into());
        }
        tracing::error!(
            reason,
            next_attempt_s = pause.as_secs(),
            "this node has no standby instance; it keeps working, but a trap would stop it"
        );
        // The primary must not wait for room.
        queue.catching_up = true;
        shared.inbox.made_room();
        let until = Instant::now() + pause;
        loop {
            shared.status.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || queue.promotion.is_some() || queue.replacement.is_some() {
                return Ok(());
            }
            for question in queue.take_subscriptions() {
                question.ask.fail(QueryError::NoStandby(reason.clone()));
            }
            for request in queue.snapshots.drain(..) {
                // The caller may have given up, here and below.
                let _ = request.reply.send(Err(SnapshotError::NoStandby(reason.clone())));
            }
            for request in queue.reads.drain(..) {
                let _ = request.reply.send(Err(SnapshotError::Lost));
            }
            queue.closed.clear();
            queue.assert_invariants();
            queue = shared.inbox.wait_at_most(queue, left);
        }
    }

    /// Records that the standby disagrees with the primary at an entry, and returns the error.
    pub(super) fn diverged(&self, index: u64, how: &str) -> FatalError {
        let reason = format!(
            "the component {} is not deterministic, or one of its queries changes the state: at entry {index} the \
             primary gave an answer and the standby {how}",
            self.component.name()
        );
        self.shared.absence.disagreed(&reason);
        FatalError::new(reason)
    }
}
