//! The activation of another component on the primary.
//!
//! Writes wait meanwhile, so the primary only migrates its own state here. The standby migrates its
//! state when it reaches the entry.

use std::time::Instant;

use super::Primary;
use crate::{
    clock::Clock,
    component::Component,
    entry_context::EntryContext,
    error::{Broken, Ended, FatalError},
    instance::{FAILURE_BYTES_MAX, Instance},
    migration::NotMigrated,
    worker::requests::Step,
};
use conclave_types::{Code, Failure, Outcome, Reply};

impl Primary {
    /// Applies the activation at the entry of this context.
    pub(super) fn activate(
        &mut self,
        before: &Clock,
        context: EntryContext,
        component: Component,
    ) -> Result<(Step, Outcome), Ended> {
        // Lets the standby catch up during the migration.
        self.hand_over()?;
        let started = Instant::now();
        let (index, old) = (context.index, self.component.name());
        match self.carried(before, index, &component)? {
            Ok(instance) => {
                self.instance = Some(instance);
                self.become_of(component.clone());
                let took_ms = started.elapsed().as_millis() as u64;
                tracing::info!(index, ?component, old, took_ms, "a component was activated");
                self.shared.metrics.activations.inc();
                // The wake-up time of the old component does not apply to the new one. The new one
                // is ticked at once, so that it can request its own.
                let outcome = Outcome::Reply(Reply { wake_at_ms: Some(0), ..Reply::default() });
                self.shared.metrics.outcome(&outcome);
                self.shared.note_wake_up(&outcome);
                Ok((Step::Activate { context, component }, outcome))
            }
            Err(why) => {
                tracing::warn!(index, ?component, why, "a component was not activated");
                self.shared.metrics.activations_failed.inc();
                let mut message =
                    format!("{} was not activated, and {old} continues: {why}", component.name());
                message.truncate(crate::cut(&message, FAILURE_BYTES_MAX).len());
                let outcome = Outcome::Failure(Failure { code: Code::FailedPrecondition, message });
                self.shared.metrics.outcome(&outcome);
                Ok((Step::Skip { time_ms: context.time_ms }, outcome))
            }
        }
    }

    /// Creates an instance of the component with the primary's state, or returns the reason
    /// why that failed.
    fn carried(
        &mut self,
        before: &Clock,
        index: u64,
        component: &Component,
    ) -> Result<Result<Instance, String>, Ended> {
        if let Some(why) = component.refuses(self.component.state_version()) {
            return Ok(Err(why));
        }
        if let Some(trap) = self.shared.entry_source.trapped(index) {
            self.shared.metrics.traps_replayed.inc();
            return Ok(Err(trap.message));
        }
        let Some(instance) = &mut self.instance else {
            return Err(FatalError::new("the primary has no instance").into());
        };
        match self.shared.migration(instance, &self.component, component, "primary") {
            Ok(instance) => Ok(Ok(instance)),
            Err(NotMigrated::Refused { trap, old_broke }) => {
                if old_broke {
                    self.roll_back(before, index, &trap)?;
                } else {
                    self.shared.entry_source.record_trap(index, &trap);
                }
                Ok(Err(trap.message))
            }
            Err(NotMigrated::Ended(ended)) => {
                Err(Broken::Ended(ended)
                    .ended(&format!("activating {component:?} at entry {index}")))
            }
        }
    }
}
