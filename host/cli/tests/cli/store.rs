//! The part of `kv.v1.KV` that the command line uses: a map behind a gRPC server.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use conclave_client::proto::kv::{
    BatchRequest, BatchResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse, KeyValue,
    PutRequest, PutResponse, RangeRequest, RangeResponse, key_value::Content as Stored,
    operation::Operation, put_request::Content as Put,
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, body::Body, transport::Server};
use tonic_prost::ProstCodec;

type Map = BTreeMap<String, Stored>;

/// A running store.
pub(crate) struct Store {
    pub(crate) address: String,
    map: Arc<Mutex<Map>>,
    ranges: Arc<AtomicUsize>,
    runtime: Mutex<Option<Runtime>>,
}

impl Store {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let map = Arc::default();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ranges = Arc::default();
        let service = Service(Arc::clone(&map), Arc::clone(&ranges));
        let server = Server::builder().add_service(service);
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, map, ranges, runtime: Mutex::new(Some(runtime)) }
    }

    /// Returns the number of pages read so far.
    pub(crate) fn ranges(&self) -> usize {
        self.ranges.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn insert(&self, key: &str, text: &str) {
        self.map.lock().unwrap().insert(key.to_owned(), Stored::Text(text.to_owned()));
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        match self.map.lock().unwrap().get(key)? {
            Stored::Text(text) => Some(text.clone()),
            Stored::Value(bytes) => Some(format!("{bytes:?}")),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

fn put(map: &mut Map, request: PutRequest) -> Result<PutResponse, Status> {
    let content = match request.content {
        Some(Put::Text(text)) => Stored::Text(text),
        Some(Put::Value(bytes)) => Stored::Value(bytes),
        None => Stored::Value(Vec::new()),
    };
    let bytes = match &content {
        Stored::Text(text) => text.len(),
        Stored::Value(bytes) => bytes.len(),
    };
    let allowed = (1..=4096).contains(&request.key.len()) && bytes <= 1 << 20;
    if !allowed || request.key == "refuse-me" {
        return Err(Status::invalid_argument("over the limit"));
    }
    map.insert(request.key, content);
    Ok(PutResponse { revision: 1, ..Default::default() })
}

fn get(map: &mut Map, request: GetRequest) -> Result<GetResponse, Status> {
    let content = map.get(&request.key).cloned().ok_or_else(|| Status::not_found("no key"))?;
    let kv = KeyValue { key: request.key, content: Some(content), ..Default::default() };
    Ok(GetResponse { kv: Some(kv), ..Default::default() })
}

fn delete(map: &mut Map, request: DeleteRequest) -> Result<DeleteResponse, Status> {
    let deleted = map.remove(&request.key).is_some();
    Ok(DeleteResponse { deleted, ..Default::default() })
}

fn range(map: &mut Map, request: RangeRequest) -> Result<RangeResponse, Status> {
    let mut keys = map
        .iter()
        .filter(|(key, _)| key.starts_with(&request.prefix) && **key > request.page_token);
    let kvs: Vec<_> = keys
        .by_ref()
        .take(request.limit as usize)
        .map(|(key, content)| KeyValue {
            key: key.clone(),
            content: (!request.keys_only).then(|| content.clone()),
            ..Default::default()
        })
        .collect();
    let more = keys.next().is_some();
    let last = kvs.last().filter(|_| more).map(|kv| kv.key.clone());
    Ok(RangeResponse { kvs, more, next_page_token: last.unwrap_or_default(), ..Default::default() })
}

/// Applies all operations or none.
fn batch(map: &mut Map, request: BatchRequest) -> Result<BatchResponse, Status> {
    assert!(request.operations.len() <= 128, "a batch of {}", request.operations.len());
    let mut changed = map.clone();
    for operation in request.operations {
        match operation.operation {
            Some(Operation::Put(request)) => drop(put(&mut changed, request)?),
            other => return Err(Status::unimplemented(format!("{other:?}"))),
        }
    }
    *map = changed;
    Ok(BatchResponse::default())
}

#[derive(Clone)]
struct Service(Arc<Mutex<Map>>, Arc<AtomicUsize>);

impl tonic::server::NamedService for Service {
    const NAME: &'static str = "kv.v1.KV";
}

impl Service {
    async fn answer<Q, R>(
        self,
        request: http::Request<Body>,
        method: fn(&mut Map, Q) -> Result<R, Status>,
    ) -> http::Response<Body>
    where
        Q: prost::Message + Default + 'static,
        R: prost::Message + Default + 'static,
    {
        let handler = tower::service_fn(move |request: Request<Q>| {
            let answer = method(&mut self.0.lock().unwrap(), request.into_inner());
            std::future::ready(answer.map(Response::new))
        });
        tonic::server::Grpc::new(ProstCodec::<R, Q>::default()).unary(handler, request).await
    }
}

impl tower::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        let path = request.uri().path().to_owned();
        if path.ends_with("/Range") {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        Box::pin(async move {
            Ok(match path.as_str() {
                "/kv.v1.KV/Put" => service.answer(request, put).await,
                "/kv.v1.KV/Get" => service.answer(request, get).await,
                "/kv.v1.KV/Delete" => service.answer(request, delete).await,
                "/kv.v1.KV/Range" => service.answer(request, range).await,
                "/kv.v1.KV/Batch" => service.answer(request, batch).await,
                _ => Status::unimplemented(path).into_http(),
            })
        })
    }
}
