//! Protobuf coding of the messages of the host's own methods.

use bytes::Bytes;
use prost::Message;

use super::response::Served;
use conclave_types::error::Error;

/// Decodes a request.
pub(super) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Error> {
    M::decode(message)
        .map_err(|error| Error::invalid("the request is malformed").with_source(error))
}

/// Encodes a response, which belongs to `index` if there is one.
pub(super) fn encode(message: &impl Message, index: Option<u64>) -> Served {
    Served { response: message.encode_to_vec().into(), index }
}
