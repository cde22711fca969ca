//! What the standby is asked: queries, and where subscriptions begin.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::{Standby, end_of};
use crate::{
    error::QueryError,
    instance::{EntryContext, Subscription},
    trap::Broken,
    worker::{
        Answered,
        events::Watcher,
        inbox::{Ask, Question},
        shared::End,
        subscribe::Begun,
    },
};
use conclave_types::Failure;

/// Fuel after which the queries of a turn make way for the rest of it: some 40 milliseconds, at most one
/// query more. A promotion, for which every write waits, may come in any turn.
const TURN_FUEL: u64 = 50_000_000;

impl Standby {
    /// Answers queries in their order, until they have taken their share of the turn or cost the
    /// instance. The rest goes back to where it came from.
    pub(super) fn answer_some(&mut self, mut questions: VecDeque<Question>) -> Result<(), End> {
        let mut fuel = 0;
        while fuel < TURN_FUEL
            && self.instance.is_some()
            && let Some(question) = questions.pop_front()
        {
            fuel += self.answer(question)?;
        }
        if !questions.is_empty() {
            let mut queue = self.shared.inbox.lock();
            while let Some(question) = questions.pop_back() {
                queue.ready.push_front(question);
            }
        }
        Ok(())
    }

    /// Answers one query and says how much fuel that took.
    fn answer(&mut self, question: Question) -> Result<u64, End> {
        let Some(instance) = &mut self.instance else { return Ok(0) };
        if question.ask.is_closed() {
            return Ok(0);
        }
        let now = self.clock.now();
        self.shared.counters.queries.fetch_add(1, Ordering::Relaxed);
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
                self.shared.counters.query_traps.fetch_add(1, Ordering::Relaxed);
                self.shared.absence.note_trapped(&call.method);
                self.instance = None;
                ask.fail(QueryError::Trap(trap));
            }
            (Err(broken), _) => return Err(end_of(broken, "answering a query")),
        }
        Ok(fuel)
    }

    /// Watches from here on, or from where an earlier subscription has ended. On this thread: what comes
    /// next has not been noted yet.
    fn begin(
        &self,
        now: EntryContext,
        resume: Option<u64>,
        result: Result<Subscription, Failure>,
    ) -> Result<Begun, QueryError> {
        let result = match result {
            Ok(subscription) => {
                let (from, to) = (subscription.from_topic.clone(), subscription.to_topic.clone());
                let place = resume.unwrap_or(now.index);
                let events = Watcher::new(Arc::clone(&self.shared), place, from, to)?;
                Ok((subscription, events))
            }
            Err(failure) => Err(failure),
        };
        Ok(Begun { index: now.index, result })
    }
}

/// What an instance gave when it was asked.
enum Given {
    Answer(Result<Bytes, Failure>),
    Subscription(Result<Subscription, Failure>),
}
