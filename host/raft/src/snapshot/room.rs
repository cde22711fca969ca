//! The limits of a snapshot that is being received: its size, and the free space of the disk.

use conclave_proto::raft::SnapshotHeader;
use conclave_storage::SnapshotStore;
use conclave_types::{components::COMPONENT_BYTES_MAX, limits::ClusterLimits};
use tonic::Status;

use crate::{limits::LimitsInForce, registry};

/// The free space that a received snapshot leaves for the log.
const RESERVE_BYTES: u64 = 32 << 20;

/// Rejects a snapshot that is larger than any state of this cluster with its components. Its own
/// limits count too: this node may not have applied them yet.
pub(super) fn check_size(
    header: &SnapshotHeader,
    bytes: u64,
    in_force: &ClusterLimits,
) -> Result<(), Status> {
    let own = LimitsInForce::read(header);
    let own = own.map_err(|error| Status::invalid_argument(error.to_string()))?.limits;
    let state = own.memory_bytes_max.max(in_force.memory_bytes_max) as u64;
    // The components, and one that is being pushed.
    let most = state + registry::BYTES_MAX + COMPONENT_BYTES_MAX as u64;
    if bytes > most {
        return Err(Status::resource_exhausted(format!(
            "the snapshot has {bytes} bytes, but with memory_bytes_max = {state} a snapshot has at most {most}"
        )));
    }
    Ok(())
}

/// Returns the error for a snapshot that is larger than its sender announced.
pub(super) fn exceeds(announced: u64) -> Status {
    Status::invalid_argument(format!(
        "the snapshot has more than the {announced} bytes that its sender announced"
    ))
}

/// Rejects the next bytes of a snapshot if the disk has no space for them. Blocking.
pub(super) fn check_space(snapshots: &SnapshotStore, bytes: u64) -> Result<(), Status> {
    let free = snapshots.free_bytes().map_err(|error| Status::internal(error.to_string()))?;
    check_free(free, bytes)
}

fn check_free(free: u64, bytes: u64) -> Result<(), Status> {
    if free >= bytes.saturating_add(RESERVE_BYTES) {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Status::resource_exhausted(format!(
        "the disk has too little free space for a snapshot: {} MiB are missing, of which {} MiB stay free. \
         Make room in the data directory's file system",
        mib(bytes.saturating_add(RESERVE_BYTES) - free),
        mib(RESERVE_BYTES)
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use conclave_storage::{Options, Storage};
    use conclave_types::limits::LimitsChange;

    const GIB: u64 = 1 << 30;

    fn refusal(result: Result<(), Status>) -> Option<tonic::Code> {
        result.err().map(|status| status.code())
    }

    #[test]
    fn snapshots_larger_than_any_state_are_refused() {
        let exhausted = Some(tonic::Code::ResourceExhausted);
        let change = LimitsChange { memory_bytes_max: Some(2 << 30), ..LimitsChange::default() };
        let raised = ClusterLimits::DEFAULT.changed(&change, 1024).unwrap();
        let mut header = SnapshotHeader::default();
        let check = |header: &_, bytes, limits: &_| refusal(check_size(header, bytes, limits));
        assert_eq!(check(&header, GIB, &ClusterLimits::DEFAULT), None);
        assert_eq!(check(&header, 2 * GIB, &ClusterLimits::DEFAULT), exhausted);
        assert_eq!(check(&header, 2 * GIB, &raised), None, "the limit was lowered since");
        LimitsInForce { limits: raised, index: 3 }.write(&mut header);
        assert_eq!(check(&header, 2 * GIB, &ClusterLimits::DEFAULT), None, "raised since");
        assert_eq!(check(&header, u64::MAX, &ClusterLimits::DEFAULT), exhausted);
        // No cluster has such a limit, so the header does not get by with it.
        header.limits.as_mut().unwrap().memory_bytes_max = u64::MAX;
        let invalid = Some(tonic::Code::InvalidArgument);
        assert_eq!(check(&header, GIB, &ClusterLimits::DEFAULT), invalid);
    }

    #[test]
    fn a_reserve_stays_free() {
        assert!(check_free(GIB, GIB - RESERVE_BYTES).is_ok());
        assert!(check_free(GIB, GIB - RESERVE_BYTES + 1).is_err());
        assert!(check_free(RESERVE_BYTES - 1, 0).is_err());
        assert!(check_free(GIB, u64::MAX).is_err(), "the sum does not overflow");
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Storage::open(Options::for_test(dir.path())).unwrap().snapshots;
        assert!(check_space(&snapshots, 1).is_ok());
        let refused = check_space(&snapshots, 1 << 60).unwrap_err();
        assert!(refused.message().contains("too little free space"), "{refused}");
    }
}
