//! The wire form of the result of a component's piece.

use bytes::Bytes;
use prost::Message;

use crate::registry::PartApplied;
use conclave_proto::raft::ComponentPartApplied;
use conclave_types::error::Error;

/// Encodes the result of a piece as the bytes of a response.
pub(crate) fn part_to_wire(applied: PartApplied) -> Bytes {
    let PartApplied { next_at, whole } = applied;
    ComponentPartApplied { next_at, whole }.encode_to_vec().into()
}

/// Decodes the result of a piece from the bytes of a response.
pub(super) fn part_from_wire(bytes: &Bytes) -> Result<PartApplied, Error> {
    let applied = ComponentPartApplied::decode(bytes.clone());
    let applied = applied
        .map_err(|error| Error::fatal("the response to a piece is malformed").with_source(error))?;
    Ok(PartApplied { next_at: applied.next_at, whole: applied.whole })
}
