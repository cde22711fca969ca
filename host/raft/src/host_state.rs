//! The replicated state of the host.

use super::limits::LimitsInForce;
use crate::registry::Registry;
use conclave_storage::raft_types::SnapshotMeta;

/// The replicated state of the host, and how much of the log has been fed to the worker.
#[derive(Clone, Debug)]
pub(super) struct HostState {
    /// The position in the log, and the members there.
    pub(super) meta: SnapshotMeta,
    /// The components of the cluster at this position.
    pub(super) registry: Registry,
    /// The limits in force at this position.
    pub(super) limits: LimitsInForce,
}
