//! Server-streaming methods: one stream from one node.

use bytes::Bytes;
use prost::encoding::decode_varint;
use serde_json::Value;
use tonic::{Request, Status, Streaming, metadata::MetadataValue};

use crate::{
    client::{Answer, Client},
    codec::BytesCodec,
    error::Error,
    method::MethodName,
    options::CallOptions,
    reflection::{self, Method},
    retry::Failure,
};

/// How often a subscription without events asks to be told how far it has come.
const PROGRESS_MS: u64 = 10_000;
/// The key of protobuf's largest field number, 536870911, with a varint.
const PROGRESS_KEY: [u8; 5] = [0xf8, 0xff, 0xff, 0xff, 0x0f];

/// Messages as a node sends them: first those that describe the state, then what happens.
///
/// It ends when the node stops, or when its reader is slower than what happens. Who knows the log's index of
/// what was seen last goes on from there with another.
pub struct Subscription {
    stream: Streaming<Bytes>,
    index: Option<u64>,
    reached: Option<u64>,
}

/// The same, with messages as protobuf's JSON.
pub struct JsonSubscription {
    method: Method,
    inner: Subscription,
}

/// How a stream ended.
pub(crate) struct Ended {
    pub(crate) error: Error,
    /// Another node, or the same in a while, would go on.
    pub(crate) passing: bool,
}

impl Client {
    /// Subscribes with an encoded message, at the first node that can serve it; or goes on with a
    /// subscription that has seen everything up to `from_index`. The options' deadline is that of the
    /// beginning.
    pub async fn subscribe_raw(
        &self,
        method: &str,
        request: impl Into<Bytes>,
        from_index: Option<u64>,
        options: &CallOptions,
    ) -> Result<Subscription, Error> {
        let path = MethodName::parse(method)?.path()?;
        let request = request.into();
        let bytes_max = self.shared.response_bytes_max;
        // It changes nothing, so any failure that passes may be tried again.
        let options = CallOptions { read: true, spread: true, ..options.clone() };
        let response = self
            .run(&options, |channel, mut metadata| {
                // The node would take it for the life of the stream.
                metadata.remove("grpc-timeout");
                metadata.insert("conclave-progress-ms", MetadataValue::from(PROGRESS_MS));
                if let Some(index) = from_index {
                    metadata.insert("conclave-from-index", MetadataValue::from(index));
                }
                let mut message = Request::new(request.clone());
                *message.metadata_mut() = metadata;
                let path = path.clone();
                async move {
                    let mut grpc =
                        tonic::client::Grpc::new(channel).max_decoding_message_size(bytes_max);
                    grpc.ready().await.map_err(|cause| Status::from_error(cause.into()))?;
                    grpc.server_streaming(message, path, BytesCodec).await
                }
            })
            .await?;
        let Answer { message: stream, index, .. } = Answer::read(response);
        Ok(Subscription { stream, index, reached: from_index })
    }

    /// Subscribes to a method that [`Client::method`] found, with its request as protobuf's JSON.
    pub async fn subscribe_json(
        &self,
        method: &Method,
        request: Value,
        from_index: Option<u64>,
        options: &CallOptions,
    ) -> Result<JsonSubscription, Error> {
        let request = reflection::encode(method, request)?;
        let inner = self.subscribe_raw(&method.name(), request, from_index, options).await?;
        Ok(JsonSubscription { method: method.clone(), inner })
    }
}

impl Subscription {
    /// The log's index of the state that the first messages describe; for a subscription that goes on, the
    /// index that it was given.
    pub fn index(&self) -> Option<u64> {
        self.index
    }

    /// The log's index up to which every event has been received, as far as the node has said: every ten seconds, and at
    /// the end. What a subscription resumes from, if it is greater than the index of the last event; a subscription
    /// without events would otherwise resume from where it began, which nodes do not keep without end.
    pub fn reached(&self) -> Option<u64> {
        self.reached
    }

    /// The next message, however long that takes. `None`: the node has ended the stream without an error,
    /// which Conclave's do not.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.advance().await.map_err(|ended| ended.error)
    }

    pub(crate) async fn advance(&mut self) -> Result<Option<Bytes>, Ended> {
        loop {
            match self.stream.message().await {
                Ok(Some(message)) => match progress(&message) {
                    Some(index) => self.reached = Some(index),
                    None => return Ok(Some(message)),
                },
                Ok(None) => return Ok(None),
                Err(status) => {
                    let index = status.metadata().get("conclave-index");
                    let index = index.and_then(|index| index.to_str().ok()?.parse().ok());
                    self.reached = index.or(self.reached);
                    let Failure { code, message, passing, .. } = Failure::read(&status);
                    return Err(Ended { error: Error::new(code, message), passing });
                }
            }
        }
    }
}

/// The index in a message that says nothing but how far the subscription has come.
fn progress(message: &[u8]) -> Option<u64> {
    let mut rest = message.strip_prefix(&PROGRESS_KEY)?;
    let index = decode_varint(&mut rest).ok()?;
    rest.is_empty().then_some(index)
}

impl JsonSubscription {
    /// As [`Subscription::index`].
    pub fn index(&self) -> Option<u64> {
        self.inner.index()
    }

    /// As [`Subscription::reached`].
    pub fn reached(&self) -> Option<u64> {
        self.inner.reached()
    }

    /// As [`Subscription::next`].
    pub async fn next(&mut self) -> Result<Option<Value>, Error> {
        let message = self.inner.next().await?;
        message.map(|message| reflection::decode(&self.method, &message)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_from_other_messages() {
        let of = |index: u64| {
            let mut message = Vec::new();
            prost::encoding::uint64::encode((1 << 29) - 1, &index, &mut message);
            message
        };
        for index in [0, 1, 300, u64::MAX] {
            assert_eq!(progress(&of(index)), Some(index));
        }
        let with_more = [of(7), vec![8, 1]].concat();
        for other in [&[][..], &[8, 1], &PROGRESS_KEY, &with_more] {
            assert_eq!(progress(other), None);
        }
    }
}
