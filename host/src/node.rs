//! One node: the only place that wires the layers together.

use std::{fs, future::Future, sync::Arc};

use bytes::Bytes;
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    api::{self, Api},
    config::{Config, MasterKeySource},
    crypto::MasterKey,
    error::Error,
    machine::{self, Engine, Module, Worker},
    raft::{self, LocalHistory, Replica},
    storage::{self, Storage},
};

/// The machine that the binary carries: the key-value store.
pub const DEFAULT_MACHINE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kv.wasm"));

/// Peers keep one connection a lane; a few more are on their way out.
const PEER_STREAMS_MAX: u32 = 4096;

/// The node's three ports, bound.
struct Listeners {
    client: TcpListener,
    peer: TcpListener,
    admin: TcpListener,
}

/// Runs a node until `shutdown`. Fails with what is wrong if it cannot start, and leaves the data
/// directory as it was.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let listeners = Listeners {
        client: api::bind(config.listen_client, "client").await?,
        peer: api::bind(config.listen_peer, "peer").await?,
        admin: api::bind(config.listen_admin, "admin").await?,
    };
    // Compiling the machine and reading the log keep a thread busy for a while.
    let opening = tokio::task::spawn_blocking({
        let config = config.clone();
        move || open(&config)
    });
    let options = opening.await.map_err(|error| Error::fault(error.to_string()))??;
    let replica = Replica::start(options).await?;
    let result = serve(&config, listeners, &replica, shutdown).await;
    replica.shutdown().await;
    result
}

/// Everything below Raft: keys, storage, the machine.
fn open(config: &Config) -> Result<raft::Options, Error> {
    let engine = Engine::new(&machine_limits(config)).map_err(startup)?;
    let module = Module::load(&engine, component(config)?).map_err(|error| {
        let name = config.module.as_ref().map(|path| path.display().to_string());
        let name = name.unwrap_or_else(|| "the default machine".to_owned());
        Error::invalid(format!("{name}: {error}")).with_source(error)
    })?;
    let storage = Storage::open(storage::Options {
        dir: config.data_dir.clone(),
        cluster_id: config.cluster_id.clone(),
        node_id: config.node_id,
        module_id: module.id(),
        master_key: master_key(&config.master_key)?,
    })
    .map_err(startup)?;
    let Storage { identity, log, snapshots, .. } = storage;
    let history = LocalHistory::open(log.clone(), snapshots.clone()).map_err(startup)?;
    let seed = *blake3::hash(identity.cluster_id.as_bytes()).as_bytes();
    let worker = Worker::start(module.clone(), seed, history.clone(), None).map_err(startup)?;
    tracing::info!(
        node = identity.node_id,
        cluster = identity.cluster_id,
        machine = module.description().name,
        module = %module.id(),
        "starting"
    );
    Ok(raft::Options {
        identity,
        engine: engine.fingerprint().to_owned(),
        module,
        worker,
        log,
        snapshots,
        history,
        members: config.members.clone(),
        timing: config.timing,
        limits: config.limits,
        snapshot: config.snapshot,
    })
}

fn machine_limits(config: &Config) -> machine::Limits {
    machine::Limits {
        memory_bytes_max: config.limits.memory_bytes_max,
        fuel_per_call: config.limits.fuel_per_call,
        response_bytes_max: config.limits.response_bytes_max,
        ..machine::Limits::default()
    }
}

/// Why a node does not start, with what was found wrong.
fn startup(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    Error::fault(text)
}

fn component(config: &Config) -> Result<Bytes, Error> {
    let Some(path) = &config.module else { return Ok(Bytes::from_static(DEFAULT_MACHINE)) };
    let bytes = fs::read(path).map_err(|error| {
        Error::invalid(format!("cannot read the module {}: {error}", path.display()))
    })?;
    Ok(Bytes::from(bytes))
}

fn master_key(source: &MasterKeySource) -> Result<MasterKey, Error> {
    match source {
        MasterKeySource::File(path) => MasterKey::from_file(path).map_err(startup),
        MasterKeySource::Value(value) => {
            MasterKey::from_text(value, "the environment variable CONCLAVE_MASTER_KEY")
                .map_err(startup)
        }
    }
}

/// Serves all ports until `shutdown`, or until one of them fails.
async fn serve(
    config: &Config,
    listeners: Listeners,
    replica: &Replica,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let options = api::Options {
        deadlines: api::Deadlines {
            default: config.timing.request_timeout,
            ..api::Options::default().deadlines
        },
        request_bytes_max: config.limits.request_bytes_max,
        ..api::Options::default()
    };
    let api = Api::new(Arc::new(replica.clone()), options)?;
    let (stop, stopped) = watch::channel(false);
    let until = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let peers = Server::builder()
        .max_concurrent_streams(PEER_STREAMS_MAX)
        .initial_stream_window_size(8 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .add_service(replica.peer_service())
        .serve_with_incoming_shutdown(
            // Small messages go at once; the server's own option does not reach these connections.
            TcpIncoming::from(listeners.peer).with_nodelay(Some(true)),
            until(stopped.clone()),
        );
    let peers = tokio::spawn(peers);
    let clients = tokio::spawn({
        let (api, stopped) = (api.clone(), stopped.clone());
        async move { api.serve_client(listeners.client, until(stopped)).await }
    });
    let admin = tokio::spawn(async move {
        api.serve_admin(listeners.admin, until(stopped)).await;
    });
    shutdown.await;
    tracing::info!("stopping");
    // Clients first: what they still wait for needs the peers.
    stop.send_replace(true);
    let _ = clients.await;
    peers.abort();
    let _ = admin.await;
    Ok(())
}
