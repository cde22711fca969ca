//! Watching keys of the default machine, through the loss of nodes.
//!
//! Each message carries the index of its entry, so a watch that lost its node continues with another: from the
//! last index if nothing of it is missing for certain, else from the one before, leaving out as many
//! messages as it has handed on already. Every node gives the same ones in the same order. A watch without changes
//! continues from the index that its node has told it every ten seconds.

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

/// Changes of keys: each once, in order, whichever nodes are lost meanwhile.
///
/// With `initial` the keys come first as they are, as messages of the kind INITIAL and one READY. A watch that loses its
/// node before READY begins again: its messages of the kind INITIAL come again. If there are more than a node
/// sends at once, they are read in pages; then a change may come after a key that has it already.
///
/// If the nodes do not keep any more what happened since the last message, a message of the kind RELIST comes, and after
/// it INITIAL and READY as at the beginning. A key that does not come again was deleted meanwhile.
pub struct Watch {
    client: Client,
    request: WatchRequest,
    relists: bool,
    stream: Option<Subscription>,
    listing: Option<Listing>,
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

/// Keys as they are, page by page.
struct Listing {
    page: VecDeque<KeyValue>,
    /// `None`: the page is the last one.
    next_page: Option<String>,
    /// The least of the pages: everything after it is watched.
    index: u64,
    revision: u64,
}

impl Kv {
    /// Watches keys. With `from_index`, continues after that index.
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

    /// Whether the keys are listed again if the nodes do not keep any more what happened. If not, [`Watch::next`] fails
    /// with OUT_OF_RANGE.
    pub fn relists(mut self, yes: bool) -> Self {
        self.relists = yes;
        self
    }

    /// The next change, however long that takes. May be dropped at any await.
    ///
    /// # Errors
    /// OUT_OF_RANGE: no node keeps what came after the last message, and [`Watch::relists`] says no. UNAVAILABLE or
    /// DEADLINE_EXCEEDED: no node could be asked until the client's deadline; call again to continue.
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
                        Error::new(Code::Internal, format!("{METHOD}: {cause}"))
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

    /// After an error: whether the keys are listed again.
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

    /// The next message while keys are listed page by page.
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
        let page = RangeResponse::decode(answer.message)
            .map_err(|cause| Error::new(Code::Internal, format!("{RANGE}: {cause}")))?;
        Ok(Listing {
            page: page.kvs.into(),
            next_page: Some(page.next_page_token).filter(|token| !token.is_empty()),
            index: answer.index.unwrap_or_default(),
            revision: page.revision,
        })
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
        Watch::new(client, WatchRequest::default(), None)
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
