//! The reader goes on with another component, as the head did.

use std::sync::atomic::Ordering;

use super::Reader;
use crate::{carry_over::NotCarried, component::Component, error::Fault, worker::shared::End};
use conclave_types::TrapKind;

impl Reader {
    /// Entry `index` activated this component. Queries and snapshots wait while the state is carried over.
    /// Snapshots under way are lost: the instance that they are in goes.
    pub(super) fn activate(&mut self, index: u64, component: Component) -> Result<(), End> {
        let beside_snapshots = !self.streams.is_empty();
        self.close_all()?;
        let Some(instance) = &mut self.instance else {
            // Lost in the middle of a turn: the entry comes again from the history.
            return Ok(());
        };
        match self.shared.carry_over(instance, &self.component, &component, "reader") {
            Ok(instance) => {
                let memory_bytes = instance.memory_bytes() as u64;
                self.shared.counters.reader_memory_bytes.store(memory_bytes, Ordering::Relaxed);
                self.instance = Some(instance);
                self.component = component;
                Ok(())
            }
            // Its memory is what the snapshots made of it, which the head's is not. The next reader has
            // none of them.
            Err(NotCarried::Refused { trap, old_broke: true })
                if beside_snapshots
                    && matches!(trap.kind, TrapKind::MemoryExhausted | TrapKind::FuelExhausted) =>
            {
                tracing::warn!(
                    index,
                    message = trap.message,
                    "the reader was exhausted as another component was activated; a new one is built"
                );
                self.instance = None;
                Ok(())
            }
            Err(NotCarried::Refused { trap, .. }) => {
                let how = format!("did not activate {component:?} ({})", trap.message);
                Err(self.diverged(index, &how).into())
            }
            Err(NotCarried::Interrupted) => Err(End::Stopped),
            Err(NotCarried::Fault(fault)) => Err(Fault::new(format!(
                "activating {component:?} at entry {index} on the reader: {fault}"
            ))
            .into()),
        }
    }
}
