//! The time without a standby: from a promotion or a trap until another instance has been built and
//! has caught up.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use super::Standby;
use crate::{
    error::{Ended, FatalError, QueryError, SnapshotError},
    worker::{
        inbox::Wait,
        queue::{Queue, Unanswered},
        requests::Prepared,
    },
};

impl Standby {
    /// Continues with an instance that was restored from a snapshot. The next turns apply the entries
    /// after the snapshot; meanwhile the primary answers queries.
    pub(super) fn succeed(&mut self, successor: Prepared) {
        self.streams.clear();
        self.instance = Some(successor.instance);
        self.component = successor.component;
        self.clock = successor.clock;
        self.shared.metrics.rotations.inc();
        self.shared.events.skip_to(self.clock.index());
    }

    /// Pauses without a standby before the next attempt to build one.
    ///
    /// # Errors
    /// Fails if the primary has trapped, because then there is no instance at all.
    pub(super) fn rest(&mut self, fatal_error: FatalError) -> Result<(), Ended> {
        self.lose_instance();
        self.gaps = 0;
        let shared = Arc::clone(&self.shared);
        // The primary must not wait for room.
        shared.inbox.with(Queue::standby_lost);
        let reason = fatal_error.to_string();
        let pause = shared.absence.failed(reason.clone());
        if shared.inbox.with(|queue| queue.awaits_promotion()) {
            return Err(fatal_error.into());
        }
        tracing::error!(
            reason,
            next_attempt_s = pause.as_secs(),
            "this node has no standby instance; it keeps working, but a trap would stop it"
        );
        let until = Instant::now() + pause;
        shared.inbox.until(|queue| {
            if let Err(end) = shared.status.check() {
                return ControlFlow::Break(Err(end));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || queue.ends_pause() {
                return ControlFlow::Break(Ok(()));
            }
            let Unanswered { questions, snapshots, reads } = queue.take_unanswerable();
            for question in questions {
                question.ask.fail(QueryError::NoStandby(reason.clone()));
            }
            for request in snapshots {
                // The caller may have given up, here and below.
                let _ = request.reply.send(Err(SnapshotError::NoStandby(reason.clone())));
            }
            for request in reads {
                let _ = request.reply.send(Err(SnapshotError::Lost));
            }
            ControlFlow::Continue(Wait::AtMost(left))
        })
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
