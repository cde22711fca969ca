//! `kv.v1.KV` with types: the default machine.

use crate::{
    client::Client,
    error::Error,
    options::CallOptions,
    proto::kv::{
        BatchRequest, BatchResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse,
        PutRequest, PutResponse, RangeRequest, RangeResponse,
    },
};

/// The methods of `kv.v1.KV`. Writes whose outcome is unknown are not retried, unless
/// [`Kv::retry_unknown`] says so.
#[derive(Clone)]
pub struct Kv {
    client: Client,
    retry_unknown: bool,
}

impl Client {
    /// The default machine's service.
    pub fn kv(&self) -> Kv {
        Kv { client: self.clone(), retry_unknown: false }
    }
}

impl Kv {
    /// Whether puts, deletes and batches are retried also when the outcome of an attempt is unknown.
    /// Applied twice they leave the same keys and values as applied once, but the second time may undo
    /// what another writer was told is done: it is for those who write their keys alone.
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

    /// Reads one key. NOT_FOUND if there is none.
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

    /// Applies several operations as one.
    pub async fn batch(&self, request: &BatchRequest) -> Result<BatchResponse, Error> {
        self.client.call("kv.v1.KV/Batch", request, &self.write()).await
    }
}
