//! Queries on the primary, which answers them between two batches of entries while there is no standby.

use super::Primary;
use crate::{
    error::{Broken, Ended, QueryError},
    worker::{
        Answered,
        queue::PrimaryTurn,
        requests::{Ask, Question},
    },
};
use conclave_types::Call;

/// The maximum number of queries in one turn, during which all entries wait.
const TURN_COUNT: usize = 64;
/// The fuel after which the turn of queries ends: some ten milliseconds, plus one query.
const TURN_FUEL: u64 = 15_000_000;

/// The state of the waiting queries after a turn of the primary. If some are left, its thread must not
/// block on the next job.
pub(super) enum Queries {
    Done,
    Left,
}

impl Primary {
    /// Answers some queries, if there is no standby.
    pub(super) fn answer_queries(&mut self) -> Result<Queries, Ended> {
        let absence = &self.shared.absence;
        if absence.is_over() {
            return Ok(Queries::Done);
        }
        let allowed = |call: &Call| !absence.has_trapped(&call.method);
        let applied = self.clock.index();
        let turn = self.shared.inbox.with(|queue| queue.primary_turn(applied, TURN_COUNT, allowed));
        let PrimaryTurn::Answer { mut questions, more } = turn else { return Ok(Queries::Done) };
        let mut fuel = 0;
        while fuel < TURN_FUEL
            && let Some(question) = questions.pop_front()
        {
            fuel += self.answer_query(question)?;
        }
        if !questions.is_empty() {
            // If the standby has ended, nothing takes them from the queue. Dropping them fails them.
            let put_back = self.shared.inbox.with(|queue| queue.put_back(questions));
            return put_back.map(|()| Queries::Left).map_err(|_| self.ended());
        }
        Ok(if more { Queries::Left } else { Queries::Done })
    }

    /// Answers one query and returns the fuel that it used.
    fn answer_query(&mut self, question: Question) -> Result<u64, Ended> {
        let Question { call, ask: Ask::Query(reply), .. } = question else { return Ok(0) };
        let Some(instance) = &mut self.instance else { return Ok(0) };
        if reply.is_closed() {
            return Ok(0);
        }
        let now = self.clock.now();
        self.shared.metrics.queries.inc();
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
                self.shared.metrics.query_traps.inc();
                self.shared.absence.note_trapped(&call.method);
                let _ = reply.send(Err(QueryError::Trap(trap)));
                self.promote(now.index)?;
            }
            Err(broken) => return Err(broken.ended("answering a query on the primary")),
        }
        Ok(fuel)
    }
}
