//! The standby goes on with another component, as the primary did.

use std::sync::atomic::Ordering;

use super::Standby;
use crate::{component::Component, error::FatalError, migration::NotCarried, worker::shared::End};
use conclave_types::TrapKind;

impl Standby {
    /// Entry `index` activated this component. Queries and snapshots wait while the state is carried over.
    /// Snapshots under way are lost: the instance that they are in goes.
    pub(super) fn activate(&mut self, index: u64, component: Component) -> Result<(), End> {
        let beside_snapshots = !self.streams.is_empty();
        self.close_all()?;
        let Some(instance) = &mut self.instance else {
            // Lost in the middle of a turn: the entry comes again from the history.
            return Ok(());
        };
        match self.shared.migration(instance, &self.component, &component, "standby") {
            Ok(instance) => {
                let memory_bytes = instance.memory_bytes() as u64;
                self.shared.counters.standby_memory_bytes.store(memory_bytes, Ordering::Relaxed);
                self.instance = Some(instance);
                self.component = component;
                Ok(())
            }
            // Its memory is what the snapshots made of it, which the primary's is not. The next reader has
            // none of them.
            Err(NotCarried::Refused { trap, old_broke: true })
                if beside_snapshots
                    && matches!(trap.kind, TrapKind::MemoryExhausted | TrapKind::FuelExhausted) =>
            {
                tracing::warn!(
                    index,
                    message = trap.message,
                    "the standby was exhausted as another component was activated; a new one is built"
                );
                self.instance = None;
                Ok(())
            }
            Err(NotCarried::Refused { trap, .. }) => {
                let how = format!("did not activate {component:?} ({})", trap.message);
                Err(self.diverged(index, &how).into())
            }
            Err(NotCarried::Interrupted) => Err(End::Stopped),
            Err(NotCarried::Fatal(fatal_error)) => Err(FatalError::new(format!(
                "activating {component:?} at entry {index} on the standby: {fatal_error}"
            ))
            .into()),
        }
    }
}
