//! Server-streaming methods: one stream from one node.

use bytes::Bytes;
use prost::encoding::decode_varint;
use serde_json::Value;
use tonic::{Request, Streaming, metadata::MetadataValue};

use crate::{
    catalog::Method,
    client::{Answer, Client, ready},
    codec::BytesCodec,
    error::Error,
    method::MethodName,
    options::CallOptions,
    reflection,
    retry::Failure,
};

/// The interval, in milliseconds, of the progress that a subscription requests.
const PROGRESS_MS: u64 = 10_000;
/// The key of protobuf's largest field number, 536870911, with a varint.
const PROGRESS_KEY: [u8; 5] = [0xf8, 0xff, 0xff, 0xff, 0x0f];

/// A stream of messages from one node: first the state, then the events.
///
/// It ends when the node stops, or when its reader is slower than the events. It can be resumed at
/// another node from the log index of the last message.
pub struct Subscription {
    stream: Streaming<Bytes>,
    index: Option<u64>,
    reached: Option<u64>,
}

/// A subscription with messages as protobuf's JSON.
pub struct JsonSubscription {
    method: Method,
    inner: Subscription,
}

/// The end of a stream.
pub(crate) struct Ended {
    pub(crate) error: Error,
    /// True if another node, or the same one later, could continue.
    pub(crate) passing: bool,
}

impl Client {
    /// Subscribes with an encoded message at the first node that can serve it. With `from_index` it
    /// resumes after that index. The options' deadline applies to the beginning of the subscription.
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
        // A subscription changes nothing, so it is retried after any temporary failure.
        let resumes = from_index.is_some();
        let options = CallOptions { read: true, spread: true, resumes, ..options.clone() };
        let response = self
            .run(&options, |channel, mut metadata| {
                // The node would apply it to the whole stream.
                metadata.remove("grpc-timeout");
                metadata.insert("conclave-progress-ms", MetadataValue::from(PROGRESS_MS));
                if let Some(index) = from_index {
                    metadata.insert("conclave-from-index", MetadataValue::from(index));
                }
                let mut message = Request::new(request.clone());
                *message.metadata_mut() = metadata;
                let path = path.clone();
                async move {
                    let mut grpc = ready(channel, bytes_max).await?;
                    grpc.server_streaming(message, path, BytesCodec).await
                }
            })
            .await?;
        let Answer { message: stream, index, .. } = Answer::read(response);
        Ok(Subscription { stream, index, reached: from_index })
    }

    /// Subscribes to a method returned by [`Client::method`], with its request as protobuf's JSON.
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
    /// Returns the log index of the state that the first messages describe. For a resumed
    /// subscription it is `from_index`.
    pub fn index(&self) -> Option<u64> {
        self.index
    }

    /// Returns the log index up to which every event has been received, as reported by the node
    /// every ten seconds and at the end. Resume from it if it is greater than the index of the last
    /// event. Without it, a subscription without events would resume from its start, and nodes do
    /// not keep those events forever.
    pub fn reached(&self) -> Option<u64> {
        self.reached
    }

    /// Waits for the next message without a time limit. `None`: the node has ended the stream
    /// without an error, which Conclave nodes do not.
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

/// Returns the index in a progress message, or `None` for other messages.
fn progress(message: &[u8]) -> Option<u64> {
    let mut rest = message.strip_prefix(&PROGRESS_KEY)?;
    let index = decode_varint(&mut rest).ok()?;
    rest.is_empty().then_some(index)
}

impl JsonSubscription {
    /// Returns the index as [`Subscription::index`] does.
    pub fn index(&self) -> Option<u64> {
        self.inner.index()
    }

    /// Returns the index as [`Subscription::reached`] does.
    pub fn reached(&self) -> Option<u64> {
        self.inner.reached()
    }

    /// Waits for the next message as [`Subscription::next`] does.
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
