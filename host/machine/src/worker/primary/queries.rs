//! Queries on the primary, which answers them between two batches of entries while there is no standby.

use std::sync::atomic::Ordering;

use super::Primary;
use crate::{
    error::QueryError,
    trap::Broken,
    worker::{
        Answered,
        inbox::{Ask, Question},
        status::End,
    },
};

/// The maximum number of queries in one turn, during which all entries wait.
const TURN_COUNT: usize = 64;
/// The fuel after which the turn of queries ends: some ten milliseconds, plus one query.
const TURN_FUEL: u64 = 15_000_000;

impl Primary {
    /// Answers some queries, if there is no standby. Returns whether more are waiting.
    pub(super) fn answer_queries(&mut self) -> Result<bool, End> {
        if self.shared.absence.is_over() {
            return Ok(false);
        }
        let absence = &self.shared.absence;
        let (mut questions, mut more) = {
            let mut queue = self.shared.inbox.lock();
            queue.primary_asked = false;
            if !queue.primary_answers || queue.promotion.is_some() {
                return Ok(false);
            }
            queue.serve(self.clock.index());
            queue.take_queries(TURN_COUNT, |call| !absence.has_trapped(&call.method))
        };
        let mut fuel = 0;
        while fuel < TURN_FUEL
            && let Some(question) = questions.pop_front()
        {
            fuel += self.answer_query(question)?;
        }
        if !questions.is_empty() {
            more = true;
            let mut queue = self.shared.inbox.lock();
            if queue.ended {
                // Nothing would take them from the queue any more. Dropping them fails them.
                return Err(self.ended());
            }
            while let Some(question) = questions.pop_back() {
                queue.ready.push_front(question);
            }
            queue.assert_invariants();
            // Wakes the standby, if one exists by now, to answer them.
            self.shared.inbox.wake_standby(&mut queue);
        }
        Ok(more)
    }

    /// Answers one query and returns the fuel that it used.
    fn answer_query(&mut self, question: Question) -> Result<u64, End> {
        let Question { call, ask: Ask::Query(reply), .. } = question else { return Ok(0) };
        let Some(instance) = &mut self.instance else { return Ok(0) };
        if reply.is_closed() {
            return Ok(0);
        }
        let now = self.clock.now();
        self.shared.counters.queries.fetch_add(1, Ordering::Relaxed);
        let result = instance.query(now, &call);
        let fuel = instance.fuel_used();
        match result {
            // The caller may have given up, here and below.
            Ok(result) => _ = reply.send(Ok(Answered { index: now.index, result })),
            Err(Broken::Trap(trap)) => {
                tracing::warn!(
                    kind = trap.kind.name(),
                    message = trap.message,
                    method = &*call.method,
                    "a query trapped on the primary; it is replaced, and writes wait for a new standby"
                );
                self.shared.counters.query_traps.fetch_add(1, Ordering::Relaxed);
                self.shared.absence.note_trapped(&call.method);
                let _ = reply.send(Err(QueryError::Trap(trap)));
                self.promote(now.index)?;
            }
            Err(Broken::Interrupted) => return Err(End::Stopped),
            Err(broken @ Broken::Fatal(_)) => {
                return Err(broken.into_fatal("answering a query on the primary").into());
            }
        }
        Ok(fuel)
    }
}
