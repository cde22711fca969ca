//! A typed client of `kv.v1.KV`, the default state machine.

use crate::{
    client::Client,
    error::Error,
    options::CallOptions,
    proto::kv::{
        BatchRequest, BatchResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse,
        PutRequest, PutResponse, RangeRequest, RangeResponse,
    },
};

/// The methods of `kv.v1.KV`. Writes with an unknown outcome are not retried, unless
/// [`Kv::retry_unknown`] allows it.
#[derive(Clone)]
pub struct Kv {
    client: Client,
    retry_unknown: bool,
}

impl Client {
    /// Returns a client of the default state machine's service.
    pub fn kv(&self) -> Kv {
        Kv { client: self.clone(), retry_unknown: false }
    }
}

impl Kv {
    /// Sets whether puts, deletes and batches are also retried if the outcome of an attempt is
    /// unknown. Applying one twice results in the same keys and values. But the second application
    /// may undo an acknowledged write of another client. So use it only if no other client writes
    /// the same keys.
    pub fn retry_unknown(mut self, yes: bool) -> Self {
        self.retry_unknown = yes;
        self
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    fn write(&self) -> CallOptions {
        CallOptions::write().retry_unknown(self.retry_unknown)
    }

    /// Sets one key.
    pub async fn put(&self, request: &PutRequest) -> Result<PutResponse, Error> {
        self.client.call("kv.v1.KV/Put", request, &self.write()).await
    }

    /// Reads one key. Fails with NOT_FOUND if it does not exist.
    pub async fn get(&self, key: &str) -> Result<GetResponse, Error> {
        let request = GetRequest { key: key.to_owned() };
        self.client.call("kv.v1.KV/Get", &request, &CallOptions::read()).await
    }

    /// Removes one key.
    pub async fn delete(&self, key: &str) -> Result<DeleteResponse, Error> {
        let request = DeleteRequest { key: key.to_owned() };
        self.client.call("kv.v1.KV/Delete", &request, &self.write()).await
    }

    /// Reads one page of a range.
    pub async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        self.client.call("kv.v1.KV/Range", request, &CallOptions::read()).await
    }

    /// Applies several operations atomically.
    pub async fn batch(&self, request: &BatchRequest) -> Result<BatchResponse, Error> {
        self.client.call("kv.v1.KV/Batch", request, &self.write()).await
    }
}
