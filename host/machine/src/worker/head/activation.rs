//! Another component goes on with the state, from one entry on.
//!
//! Writes wait meanwhile, so the head does nothing here but carry its own state over. The reader does
//! the same with its own when it comes to the entry.

use std::{sync::atomic::Ordering, time::Instant};

use super::Head;
use crate::{
    carry_over::NotCarried,
    clock::Clock,
    component::Component,
    error::Fault,
    instance::{FAILURE_BYTES_MAX, Instance, Moment},
    worker::{
        inbox::Step,
        shared::{End, NotActivated},
    },
};
use conclave_types::{Code, Failure, Outcome, Reply};

impl Head {
    /// The entry of this moment is an activation.
    pub(super) fn activate(
        &mut self,
        before: &Clock,
        moment: Moment,
        component: Component,
    ) -> Result<(Step, Outcome), End> {
        // The reader catches up while the state is carried over.
        self.hand_over()?;
        let started = Instant::now();
        let (index, old) = (moment.index, self.component.name());
        match self.carried(before, index, &component)? {
            Ok(instance) => {
                self.instance = Some(instance);
                self.become_of(component.clone());
                let took_ms = started.elapsed().as_millis() as u64;
                tracing::info!(index, ?component, old, took_ms, "a component was activated");
                self.shared.counters.activations.fetch_add(1, Ordering::Relaxed);
                // What the old component wished says nothing of the new one's wish, so it is asked at once.
                let outcome = Outcome::Reply(Reply { wake_at_ms: Some(0), ..Reply::default() });
                self.shared.counters.outcome(&outcome);
                self.shared.note_wish(&outcome);
                Ok((Step::Activate { moment, component }, outcome))
            }
            Err(why) => {
                tracing::warn!(index, ?component, why, "a component was not activated");
                self.shared.counters.activations_failed.fetch_add(1, Ordering::Relaxed);
                let mut message =
                    format!("{} was not activated, and {old} goes on: {why}", component.name());
                message.truncate(crate::cut(&message, FAILURE_BYTES_MAX).len());
                let outcome = Outcome::Failure(Failure { code: Code::FailedPrecondition, message });
                self.shared.counters.outcome(&outcome);
                Ok((Step::Skip { time_ms: moment.time_ms }, outcome))
            }
        }
    }

    /// An instance of the component with the head's state, or why there is none.
    fn carried(
        &mut self,
        before: &Clock,
        index: u64,
        component: &Component,
    ) -> Result<Result<Instance, String>, End> {
        match self.shared.not_activated(index, &self.component, component) {
            None => {}
            Some(NotActivated::Refused(why)) => return Ok(Err(why)),
            Some(NotActivated::Recorded(trap)) => {
                self.shared.counters.traps_replayed.fetch_add(1, Ordering::Relaxed);
                return Ok(Err(trap.message));
            }
        }
        let Some(instance) = &mut self.instance else {
            return Err(Fault::new("the head has no instance").into());
        };
        match self.shared.carry_over(instance, &self.component, component, "head") {
            Ok(instance) => Ok(Ok(instance)),
            Err(NotCarried::Refused { trap, old_broke }) => {
                if old_broke {
                    self.roll_back(before, index, &trap)?;
                } else {
                    self.shared.history.record_trap(index, &trap);
                }
                Ok(Err(trap.message))
            }
            Err(NotCarried::Interrupted) => Err(End::Stopped),
            Err(NotCarried::Fault(fault)) => {
                Err(Fault::new(format!("activating {component:?} at entry {index}: {fault}"))
                    .into())
            }
        }
    }
}
