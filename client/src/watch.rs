//! A watch of keys in the default state machine, which survives the loss of nodes.
//!
//! Each message carries the index of its entry, so a watch that lost its node resumes at another
//! one. It resumes from the last index if all messages of that entry have certainly been received.
//! Otherwise it resumes from the index before, and skips the messages that it has already returned.
//! Every node sends the same messages in the same order. A watch without changes resumes from the
//! index that its node reports every ten seconds.

use std::collections::VecDeque;

use prost::Message as _;
use tonic::Code;

use crate::{
    client::Client,
    error::Error,
    kv::Kv,
    options::CallOptions,
    proto::kv::{
        KeyValue, RangeRequest, RangeResponse, WatchRequest, WatchResponse, watch_response::Kind,
    },
    subscription::{Ended, Subscription},
};

const METHOD: &str = "kv.v1.KV/Watch";
const RANGE: &str = "kv.v1.KV/Range";

/// A stream of changes of keys: each once, in order, even if nodes are lost.
///
/// With `initial`, messages of the kind INITIAL describe the existing keys, followed by one READY.
/// A watch that loses its node before READY begins again, so its INITIAL messages are repeated. If
/// there are more keys than a node sends at once, they are read in pages. A change may then follow
/// a key that already contains it.
///
/// If the nodes no longer keep the events since the last message, a RELIST message follows, and then
/// INITIAL and READY as at the beginning. A key that is not listed again was deleted meanwhile.
pub struct Watch {
    client: Client,
    request: WatchRequest,
    relists: bool,
    stream: Option<Subscription>,
    listing: Option<Listing>,
    /// The last position. `None` until the initial messages are complete.
    place: Option<Place>,
    /// The number of next messages that were already returned.
    again: usize,
}

/// The last index that was received, and the number of messages received from its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u64,
    count: usize,
}

/// Existing keys, read page by page.
struct Listing {
    page: VecDeque<KeyValue>,
    /// `None` for the last page.
    next_page: Option<String>,
    /// The lowest index of the pages. All changes after it are watched.
    index: u64,
    revision: u64,
}

impl Kv {
    /// Watches keys. With `from_index`, resumes after that index.
    pub async fn watch(
        &self,
        request: WatchRequest,
        from_index: Option<u64>,
    ) -> Result<Watch, Error> {
        let place = from_index.map(|index| Place { index, count: 0 });
        let mut watch = Watch::new(self.client().clone(), request, place);
        watch.open().await?;
        Ok(watch)
    }
}

impl Watch {
    fn new(client: Client, request: WatchRequest, place: Option<Place>) -> Self {
        let (stream, listing) = (None, None);
        Self { client, request, relists: true, stream, listing, place, again: 0 }
    }

    /// Sets whether the keys are listed again if the nodes no longer keep the events. If not,
    /// [`Watch::next`] fails with OUT_OF_RANGE.
    pub fn relists(mut self, yes: bool) -> Self {
        self.relists = yes;
        self
    }

    /// Waits for the next change without a time limit. May be dropped at any await.
    ///
    /// # Errors
    /// OUT_OF_RANGE: no node keeps the events after the last message, and [`Watch::relists`] is
    /// off. UNAVAILABLE or DEADLINE_EXCEEDED: no node could be reached until the client's deadline;
    /// call again to continue.
    pub async fn next(&mut self) -> Result<WatchResponse, Error> {
        loop {
            if let Some(message) = self.next_listed().await? {
                return Ok(message);
            }
            let Some(stream) = &mut self.stream else {
                match self.open().await {
                    Ok(()) => continue,
                    Err(error) => return self.relist(error),
                }
            };
            match stream.advance().await {
                Ok(Some(message)) => {
                    let message = WatchResponse::decode(message).map_err(|cause| {
                        let message = format!("a message of {METHOD} does not decode");
                        Error::new(Code::Internal, message).with_source(cause)
                    })?;
                    if self.is_new(&message) {
                        return Ok(message);
                    }
                }
                Ok(None) => self.lose_stream(),
                Err(Ended { error, passing }) => {
                    self.lose_stream();
                    if !passing {
                        return self.relist(error);
                    }
                }
            }
        }
    }

    /// Begins a new listing after an error, if the error and the settings allow it.
    fn relist(&mut self, error: Error) -> Result<WatchResponse, Error> {
        if error.code() != Code::OutOfRange || !self.relists {
            return Err(error);
        }
        self.place = None;
        self.request.initial = true;
        Ok(WatchResponse { kind: Kind::Relist.into(), ..WatchResponse::default() })
    }

    fn lose_stream(&mut self) {
        let reached = self.stream.take().and_then(|stream| stream.reached());
        if let (Some(place), Some(reached)) = (&mut self.place, reached)
            && reached >= place.index
        {
            *place = Place { index: reached, count: 0 };
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let (from, again) = self.place.map_or((None, 0), Place::resume);
        self.again = again;
        let first = self.place.is_none() && self.request.initial;
        let request = WatchRequest { initial: first, ..self.request.clone() }.encode_to_vec();
        let options = CallOptions::read();
        match self.client.subscribe_raw(METHOD, request, from, &options).await {
            Ok(stream) => {
                if self.place.is_none() && !first {
                    self.place = stream.index().map(|index| Place { index, count: 0 });
                }
                self.stream = Some(stream);
            }
            Err(error) if first && error.code() == Code::ResourceExhausted => {
                self.listing = Some(self.read_page(String::new()).await?);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Returns the next message while keys are listed page by page.
    async fn next_listed(&mut self) -> Result<Option<WatchResponse>, Error> {
        loop {
            let Some(listing) = &mut self.listing else { return Ok(None) };
            let (revision, index) = (listing.revision, listing.index);
            let message = |kind: Kind, kv| WatchResponse { kind: kind.into(), kv, revision, index };
            if let Some(kv) = listing.page.pop_front() {
                return Ok(Some(message(Kind::Initial, Some(kv))));
            }
            if listing.next_page.is_none() {
                self.listing = None;
                self.place = Some(Place { index, count: 0 });
                return Ok(Some(message(Kind::Ready, None)));
            }
            let token = listing.next_page.clone().unwrap_or_default();
            let page = self.read_page(token).await?;
            self.listing = Some(Listing { index: page.index.min(index), ..page });
        }
    }

    async fn read_page(&self, page_token: String) -> Result<Listing, Error> {
        let prefix = self.request.prefix.clone();
        let request = RangeRequest { prefix, page_token, limit: 10_000, ..RangeRequest::default() };
        let options = CallOptions::read();
        let answer = self.client.call_raw_with(RANGE, request.encode_to_vec(), &options).await?;
        let page = RangeResponse::decode(answer.message).map_err(|cause| {
            let message = format!("the response of {RANGE} does not decode");
            Error::new(Code::Internal, message).with_source(cause)
        })?;
        Ok(Listing {
            page: page.kvs.into(),
            next_page: Some(page.next_page_token).filter(|token| !token.is_empty()),
            index: answer.index.unwrap_or_default(),
            revision: page.revision,
        })
    }

    /// Records a message. Returns whether it has not been returned before.
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
    /// Returns the index to resume from, and the number of messages after it that were already received.
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
        Watch::new(client, WatchRequest::default(), None)
    }

    fn message(kind: Kind, index: u64) -> WatchResponse {
        WatchResponse { kind: kind.into(), index, ..WatchResponse::default() }
    }

    /// Resumes as `open` does after a lost stream.
    fn lost(watch: &mut Watch) -> Option<u64> {
        let (from, again) = watch.place.map_or((None, 0), Place::resume);
        watch.again = again;
        from
    }

    #[tokio::test]
    async fn what_was_handed_on_of_an_index_is_left_out_when_it_comes_again() {
        let mut watch = watch();
        assert!(watch.is_new(&message(Kind::Initial, 7)));
        assert_eq!(lost(&mut watch), None, "incomplete: from the beginning");
        assert!(watch.is_new(&message(Kind::Initial, 8)));
        assert!(watch.is_new(&message(Kind::Ready, 8)));
        assert_eq!(lost(&mut watch), Some(8));
        assert!(watch.is_new(&message(Kind::Put, 9)));
        assert!(watch.is_new(&message(Kind::Put, 12)));
        assert!(watch.is_new(&message(Kind::Delete, 12)));
        assert_eq!(lost(&mut watch), Some(11));
        assert!(!watch.is_new(&message(Kind::Put, 12)));
        // The stream is lost again in the middle of an entry.
        assert_eq!(lost(&mut watch), Some(11));
        assert!(!watch.is_new(&message(Kind::Put, 12)));
        assert!(!watch.is_new(&message(Kind::Delete, 12)));
        assert!(watch.is_new(&message(Kind::Put, 12)), "a third of the same entry");
        assert!(watch.is_new(&message(Kind::Put, 13)));
        assert_eq!(watch.place, Some(Place { index: 13, count: 1 }));
    }
}
