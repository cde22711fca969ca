//! Fuzz targets for snapshots.

use bytes::Bytes;
use prost::Message as _;

use super::{
    network::fuzz::{membership, vote},
    snapshot::{check_coverage, digest, origin},
};
use crate::registry::Registry;
use conclave_proto::{convert::cluster_limits_to_wire, raft as wire};
use conclave_storage::{
    convert::{log_id_to_wire, membership_to_wire, snapshot_meta_from_wire},
    raft_types::LogId,
};
use conclave_types::{ComponentId, limits::ClusterLimits};

/// Decodes the header of a snapshot and the chunks after it. The first byte is the header's length.
pub fn snapshot_header(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else { return };
    let (header, chunks) = rest.split_at(rest.len().min(usize::from(*length)));
    let Ok(header) = wire::SnapshotHeader::decode(header) else { return };
    if check_coverage(&header, &vote(true)).is_ok() {
        let meta = snapshot_meta_from_wire(&header).ok();
        assert!(meta.is_some_and(|meta| meta.last_log_id.is_some()));
    }
    let _ = (digest(&header), origin(&header));
    let chunks = chunks.chunks(7).map(|chunk| Ok::<_, String>(Bytes::copy_from_slice(chunk)));
    if let Ok(Some(registry)) = Registry::read(&header, chunks) {
        for chunk in registry.chunks() {
            assert!(!chunk.is_empty(), "a chunk without bytes is none");
        }
    }
}

/// Returns a header with one component, followed by the component's bytes.
pub fn snapshot_header_seeds() -> Vec<Vec<u8>> {
    let component = b"component";
    let id = Bytes::from(ComponentId::of(component).0.to_vec());
    let header = wire::SnapshotHeader {
        last_log_id: Some(log_id_to_wire(&LogId::new_term_index(3, 9))),
        membership: Some(wire::StoredMembership {
            log_id: Some(log_id_to_wire(&LogId::new_term_index(3, 1))),
            membership: Some(membership_to_wire(&membership())),
        }),
        component_id: id.clone(),
        components: vec![wire::StoredComponent {
            component_id: id,
            bytes: component.len() as u64,
            ..wire::StoredComponent::default()
        }],
        limits: Some(cluster_limits_to_wire(&ClusterLimits::DEFAULT)),
        ..wire::SnapshotHeader::default()
    };
    let header = header.encode_to_vec();
    let length = u8::try_from(header.len()).unwrap_or(u8::MAX);
    vec![[&[length][..], &header, component].concat()]
}
