//! Watching keys of the default machine, through the loss of nodes.
//!
//! Each message carries the index of its entry, so a watch that lost its node goes on with another: from the
//! last index if nothing of it is missing for certain, else from the one before, leaving out as many
//! messages as it has handed on already. Every node gives the same ones in the same order.

use prost::Message as _;
use tonic::Code;

use crate::{
    client::Client,
    error::Error,
    kv::Kv,
    options::CallOptions,
    proto::kv::{WatchRequest, WatchResponse, watch_response::Kind},
    subscription::{Ended, Subscription},
};

const METHOD: &str = "kv.v1.KV/Watch";

/// Changes of keys: each once, in order, whichever nodes are lost meanwhile.
///
/// A watch with `initial` that loses its node before READY begins anew: its messages of the kind INITIAL
/// come again.
pub struct Watch {
    client: Client,
    request: WatchRequest,
    stream: Option<Subscription>,
    /// `None`: what is there at first has not come whole.
    place: Option<Place>,
    /// So many of the next messages have been handed on.
    again: usize,
}

/// The last index that something was seen of, and how many messages of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u64,
    count: usize,
}

impl Kv {
    /// Watches keys. With `from_index`, goes on after that index.
    pub async fn watch(
        &self,
        request: WatchRequest,
        from_index: Option<u64>,
    ) -> Result<Watch, Error> {
        let place = from_index.map(|index| Place { index, count: 0 });
        let client = self.client().clone();
        let mut watch = Watch { client, request, stream: None, place, again: 0 };
        watch.stream = Some(watch.open().await?);
        Ok(watch)
    }
}

impl Watch {
    /// The next change, however long that takes.
    ///
    /// # Errors
    /// OUT_OF_RANGE: no node keeps what came after the last message. Anything else: no node could be asked
    /// until the client's deadline; call again to go on.
    pub async fn next(&mut self) -> Result<WatchResponse, Error> {
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => self.open().await?,
            };
            let next = stream.advance().await;
            self.stream = Some(stream);
            let message = match next {
                Ok(Some(message)) => message,
                Ok(None) => {
                    self.stream = None;
                    continue;
                }
                Err(Ended { error, passing }) => {
                    self.stream = None;
                    if passing {
                        continue;
                    }
                    return Err(error);
                }
            };
            let message = WatchResponse::decode(message)
                .map_err(|cause| Error::new(Code::Internal, format!("{METHOD}: {cause}")))?;
            if self.is_new(&message) {
                return Ok(message);
            }
        }
    }

    async fn open(&mut self) -> Result<Subscription, Error> {
        let (from, again) = self.place.map_or((None, 0), Place::resume);
        self.again = again;
        let request = self.request.encode_to_vec();
        let options = CallOptions::read();
        let stream = self.client.subscribe_raw(METHOD, request, from, &options).await?;
        if self.place.is_none() && !self.request.initial {
            self.place = stream.index().map(|index| Place { index, count: 0 });
        }
        Ok(stream)
    }

    /// Notes a message, and whether it has not been handed on before.
    fn is_new(&mut self, message: &WatchResponse) -> bool {
        match (message.kind(), self.place) {
            (Kind::Initial, _) => true,
            (Kind::Ready, _) => {
                self.place = Some(Place { index: message.index, count: 0 });
                true
            }
            (_, Some(place)) if self.again > 0 && message.index == place.index => {
                self.again -= 1;
                false
            }
            (_, Some(place)) if message.index == place.index => {
                self.place = Some(Place { count: place.count + 1, ..place });
                true
            }
            _ => {
                self.again = 0;
                self.place = Some(Place { index: message.index, count: 1 });
                true
            }
        }
    }
}

impl Place {
    /// The index to go on from, and how many messages after it have been seen.
    fn resume(self) -> (Option<u64>, usize) {
        match self.count {
            0 => (Some(self.index), 0),
            count => (Some(self.index.saturating_sub(1)), count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        let client = Client::builder().endpoints(["127.0.0.1:7101"]).build().unwrap();
        Watch { client, request: WatchRequest::default(), stream: None, place: None, again: 0 }
    }

    fn message(kind: Kind, index: u64) -> WatchResponse {
        WatchResponse { kind: kind.into(), index, ..WatchResponse::default() }
    }

    /// As `open` does when the stream was lost.
    fn lost(watch: &mut Watch) -> Option<u64> {
        let (from, again) = watch.place.map_or((None, 0), Place::resume);
        watch.again = again;
        from
    }

    #[tokio::test]
    async fn what_was_handed_on_of_an_index_is_left_out_when_it_comes_again() {
        let mut watch = watch();
        assert!(watch.is_new(&message(Kind::Initial, 7)));
        assert_eq!(lost(&mut watch), None, "not whole: anew");
        assert!(watch.is_new(&message(Kind::Initial, 8)));
        assert!(watch.is_new(&message(Kind::Ready, 8)));
        assert_eq!(lost(&mut watch), Some(8));
        assert!(watch.is_new(&message(Kind::Put, 9)));
        assert!(watch.is_new(&message(Kind::Put, 12)));
        assert!(watch.is_new(&message(Kind::Delete, 12)));
        assert_eq!(lost(&mut watch), Some(11));
        assert!(!watch.is_new(&message(Kind::Put, 12)));
        // And again, halfway.
        assert_eq!(lost(&mut watch), Some(11));
        assert!(!watch.is_new(&message(Kind::Put, 12)));
        assert!(!watch.is_new(&message(Kind::Delete, 12)));
        assert!(watch.is_new(&message(Kind::Put, 12)), "a third of the same entry");
        assert!(watch.is_new(&message(Kind::Put, 13)));
        assert_eq!(watch.place, Some(Place { index: 13, count: 1 }));
    }
}
