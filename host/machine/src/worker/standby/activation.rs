//! The activation of another component on the standby, after the primary.

use super::Standby;
use crate::{
    component::Component,
    error::{Broken, Ended},
    migration::NotMigrated,
};
use conclave_types::TrapKind;

impl Standby {
    /// Changes to the component that entry `index` activated. Queries and snapshots wait during the
    /// state migration. Snapshots in progress are lost with the old instance.
    pub(super) fn activate(&mut self, index: u64, component: Component) -> Result<(), Ended> {
        let beside_snapshots = !self.streams.is_empty();
        self.close_all()?;
        let Some(instance) = &mut self.instance else {
            // The instance was lost in this turn. The entry source returns the entry again.
            return Ok(());
        };
        match self.shared.migration(instance, &self.component, &component, "standby") {
            Ok(instance) => {
                let memory_bytes = instance.memory_bytes() as i64;
                self.shared.metrics.standby_memory_bytes.set(memory_bytes);
                self.instance = Some(instance);
                self.component = component;
                Ok(())
            }
            // Snapshots have used memory of this instance, but not of the primary's. The next
            // standby starts without snapshots.
            Err(NotMigrated::Refused { trap, old_broke: true })
                if beside_snapshots
                    && matches!(trap.kind, TrapKind::MemoryExhausted | TrapKind::FuelExhausted) =>
            {
                tracing::warn!(
                    index,
                    message = trap.message,
                    "the activation of another component exhausted the standby; a new standby is built"
                );
                self.lose_instance();
                Ok(())
            }
            Err(NotMigrated::Refused { trap, .. }) => {
                let how = format!("did not activate {component:?} ({})", trap.message);
                Err(self.diverged(index, &how).into())
            }
            Err(NotMigrated::Ended(ended)) => Err(Broken::Ended(ended)
                .ended(&format!("activating {component:?} at entry {index} on the standby"))),
        }
    }
}
