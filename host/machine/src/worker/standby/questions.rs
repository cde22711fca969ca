//! Queries and the beginnings of subscriptions on the standby.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::Standby;
use crate::{
    entry_context::EntryContext,
    error::{Broken, Ended, QueryError},
    instance::Subscription,
    worker::{
        Answered,
        events::Watcher,
        requests::{Ask, Begun, Question},
    },
};
use conclave_types::Failure;

/// The fuel after which the queries of a turn end: some 40 milliseconds, plus at most one query. A
/// promotion, for which every write waits, may come in any turn.
const TURN_FUEL: u64 = 50_000_000;

impl Standby {
    /// Answers queries in order, until they have used their share of the turn or the instance is
    /// lost. Puts the rest back into the queue.
    pub(super) fn answer_some(&mut self, mut questions: VecDeque<Question>) -> Result<(), Ended> {
        let mut fuel = 0;
        while fuel < TURN_FUEL
            && self.instance.is_some()
            && let Some(question) = questions.pop_front()
        {
            fuel += self.answer(question)?;
        }
        if !questions.is_empty() {
            // The queue ends only with this thread.
            let _ = self.shared.inbox.with(|queue| queue.put_back(questions));
        }
        Ok(())
    }

    /// Answers one query and returns the fuel that it used.
    fn answer(&mut self, question: Question) -> Result<u64, Ended> {
        let Some(instance) = &mut self.instance else { return Ok(0) };
        if question.ask.is_closed() {
            return Ok(0);
        }
        let now = self.clock.now();
        self.shared.metrics.queries.inc();
        let Question { call, ask, .. } = question;
        let result = match &ask {
            Ask::Query(_) => instance.query(now, &call).map(Given::Answer),
            Ask::Subscribe { .. } => instance.subscribe(now, &call).map(Given::Subscription),
        };
        let fuel = instance.fuel_used();
        match (result, ask) {
            (Ok(Given::Answer(result)), Ask::Query(reply)) => {
                // The caller may have given up, here and below.
                let _ = reply.send(Ok(Answered { index: now.index, result }));
            }
            (Ok(Given::Subscription(result)), Ask::Subscribe { resume, reply }) => {
                let _ = reply.send(self.begin(now, resume, result));
            }
            (Ok(_), ask) => ask.fail(QueryError::Stopped),
            (Err(Broken::Trap(trap)), ask) => {
                tracing::warn!(
                    kind = trap.kind.name(),
                    message = trap.message,
                    "a query trapped; a new standby is built"
                );
                self.shared.metrics.query_traps.inc();
                self.shared.absence.note_trapped(&call.method);
                self.lose_instance();
                ask.fail(QueryError::Trap(trap));
            }
            (Err(broken), _) => return Err(broken.ended("answering a query")),
        }
        Ok(fuel)
    }

    /// Creates the watcher of a subscription, from here on or from the position of an earlier one.
    /// Runs on this thread, so no later event has been recorded yet.
    fn begin(
        &self,
        now: EntryContext,
        resume: Option<u64>,
        result: Result<Subscription, Failure>,
    ) -> Result<Begun, QueryError> {
        let result = match result {
            Ok(subscription) => {
                let (from, to) = (subscription.from_topic.clone(), subscription.to_topic.clone());
                let position = resume.unwrap_or(now.index);
                let events = Watcher::new(
                    Arc::clone(&self.shared.events),
                    Arc::clone(&self.shared.status),
                    position,
                    from,
                    to,
                )?;
                Ok((subscription, events))
            }
            Err(failure) => Err(failure),
        };
        Ok(Begun { index: now.index, result })
    }
}

/// The answer of an instance.
enum Given {
    Answer(Result<Bytes, Failure>),
    Subscription(Result<Subscription, Failure>),
}
