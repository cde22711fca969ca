//! Assembles one node. This is the only module that connects the layers.

mod file_limit;
mod open_replay;
mod recover;
#[cfg(test)]
mod tests;

use std::{
    fs,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
pub use file_limit::raise_file_limit;
pub use open_replay::open_replay;
pub use recover::{replace_component, trap_entry};
use tokio::{net::TcpListener, sync::watch, time::timeout};

use crate::backend::ReplicaBackend;
use crate::config::{ComponentSource, Config, MasterKeySource};
use conclave_api as api;
use conclave_api::{Admin, Api, Backend, Startup};
use conclave_crypto::MasterKey;
use conclave_machine as machine;
use conclave_machine::{Component, Engine, Worker};
use conclave_metrics::Registry;
use conclave_raft as raft;
use conclave_raft::{Components, KeptCode, LocalEntrySource, Replica, supervise::Supervisor};
use conclave_storage as storage;
use conclave_storage::{CompiledStore, Storage};
use conclave_types::{
    ComponentId,
    error::{Error, chain},
};

/// The name of a startup step.
const COMPILING: &str = "loading the component, which compiles it if no compiled code is kept";

/// Time for Raft, the state machine and the log to stop.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// Time for calls of peers to end.
const PEERS_TIME_MAX: Duration = Duration::from_millis(500);

/// Runs a node until `shutdown`. If it cannot start, it returns the reason and leaves the data
/// directory unchanged. `shutdown` also ends a start; a blocking step then completes in the background.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    run_with(config, || (), shutdown).await
}

/// Like [`run`], but calls `started` after the last step that the configuration can cause to fail.
pub async fn run_with(
    config: Config,
    started: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    run_replica(config, &Registry::default(), |_| started(), shutdown).await
}

async fn run_replica(
    config: Config,
    registry: &Registry,
    started: impl FnOnce(&Replica),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let clients = api::bind(config.listen_client, "client").await?;
    let peers = api::bind(config.listen_peer, "peer").await?;
    let admin_listener = api::bind(config.listen_admin, "admin").await?;
    let startup = Startup::new("opening the data directory");
    let admin = Admin::new(startup.clone(), registry.clone());
    // The admin port responds before the replica runs, and after it has stopped.
    let tasks = Supervisor::default();
    let (stop_admin, admin_stopped) = watch::channel(false);
    let admin_port = tasks.spawn("admin port", {
        let admin = admin.clone();
        async move { admin.serve(admin_listener, until(admin_stopped)).await }
    });
    let mut shutdown = pin!(shutdown);
    let ports = Ports { clients, peers, admin, registry };
    let result = tokio::select! {
        result = run_ports(&config, ports, &startup, started, shutdown.as_mut()) => result,
        fatal = tasks.failed() => Err(Error::fatal(fatal)),
    };
    stop_admin.send_replace(true);
    let _ = admin_port.await;
    result
}

/// The listeners of a node, its admin port, which is served already, and the metrics that this port shows.
struct Ports<'a> {
    clients: TcpListener,
    peers: TcpListener,
    admin: Admin<ReplicaBackend>,
    registry: &'a Registry,
}

async fn run_ports(
    config: &Config,
    ports: Ports<'_>,
    startup: &Startup,
    started: impl FnOnce(&Replica),
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), Error> {
    let options = port_options(config);
    let starting = start_behind(config, &options, &ports, startup, shutdown.as_mut());
    let Some(replica) = starting.await? else {
        tracing::info!("stopping before the node has started");
        return Ok(());
    };
    machine::export_state(replica.worker().clone(), ports.registry);
    raft::export_state(replica.clone(), ports.registry);
    started(&replica);
    let result = tokio::select! {
        result = serve(options, ports, &replica, shutdown) => result,
        // A bug in this node. Its state cannot be trusted, so calls in progress are not completed.
        fatal = replica.failed() => Err(fatal),
    };
    let stopped = timeout(STOP_TIME_MAX, replica.shutdown());
    if stopped.await.is_err() {
        tracing::warn!(within = ?STOP_TIME_MAX, "the replica did not stop in time");
    }
    result
}

/// Starts the replica while the client port rejects calls. Returns `None` if `shutdown` came first.
async fn start_behind(
    config: &Config,
    options: &api::Options,
    ports: &Ports<'_>,
    startup: &Startup,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Replica>, Error> {
    let (begin, begun) = watch::channel(false);
    let mut refusing = pin!(api::refuse_calls(&ports.clients, startup, options, until(begun)));
    let replica = tokio::select! {
        biased;
        () = shutdown => return Ok(None),
        replica = start(config, startup, ports.registry) => replica?,
        // The port ends only after `begin`.
        () = &mut refusing => return Err(Error::fatal("the client port ended: report this bug")),
    };
    begin.send_replace(true);
    refusing.await;
    Ok(Some(replica))
}

/// Waits until the channel becomes true, or its sender is dropped.
async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn start(config: &Config, startup: &Startup, registry: &Registry) -> Result<Replica, Error> {
    // Compiling the component and reading the log block a thread for a while.
    let opening = tokio::task::spawn_blocking({
        let (config, startup, registry) = (config.clone(), startup.clone(), registry.clone());
        move || open(&config, &startup, &registry)
    });
    let options = opening.await.map_err(|error| Error::caused_by(Error::fatal, error))??;
    startup.step("restoring the snapshot and replaying the log");
    Replica::start(options).await
}

fn port_options(config: &Config) -> api::Options {
    let members = config.members.len();
    api::Options {
        deadlines: api::Deadlines {
            default: config.timing.request_timeout,
            ..api::Options::default().deadlines
        },
        request_bytes_max: config.limits.request_bytes_max,
        connections_max: file_limit::connections_max(config.connections.max, members),
        connection_idle: config.connections.idle,
        connection_age: config.connections.age,
        subscriptions_per_connection_max: config.connections.subscriptions_each,
        ..api::Options::default()
    }
}

fn engine(config: &Config, metrics: Arc<machine::Metrics>) -> Result<Engine, Error> {
    let subscriptions_max = config.connections.subscriptions;
    let limits = machine::Limits { subscriptions_max, ..machine::Limits::default() };
    Engine::with_metrics(&limits, metrics).map_err(startup)
}

/// Opens the parts below Raft: keys, storage and the state machine.
fn open(config: &Config, progress: &Startup, registry: &Registry) -> Result<raft::Options, Error> {
    let master_key = master_key(&config.master_key)?;
    let metrics = Arc::new(machine::Metrics::new(registry));
    let engine = engine(config, metrics.clone())?;
    let given = component(config)?;
    let shared = config
        .compile_cache
        .clone()
        .map(|dir| CompiledStore::shared(dir, &master_key, &config.cluster_id).map(KeptCode::new));
    let shared = shared.transpose().map_err(startup)?;
    // A new directory is created only if its component can be loaded.
    let loaded = match Storage::made_for(&config.data_dir).map_err(startup)? {
        Some(_) => None,
        None => {
            progress.step(COMPILING);
            Some(load(config, &engine, given.clone(), shared.as_ref())?)
        }
    };
    progress.step("reading the log");
    let storage = Storage::open(storage::Options {
        dir: config.data_dir.clone(),
        cluster_id: config.cluster_id.clone(),
        node_id: config.node_id,
        component_id: ComponentId::of(&given),
        component: given.clone(),
        master_key,
    })
    .map_err(startup)?;
    let Storage { identity, initial_component, log, snapshots, compiled, .. } = storage;
    let is_shared = shared.is_some();
    let kept = shared.unwrap_or_else(|| KeptCode::new(compiled));
    let initial_component = match loaded {
        Some(component) => {
            // The component was compiled before its directory existed.
            if !is_shared {
                component.keep_code(&kept);
            }
            component
        }
        None => {
            progress.step(COMPILING);
            begun_with(config, &engine, (given, initial_component), &kept)?
        }
    };
    progress.step("starting the state machine");
    let seed = identity.seed();
    let components = Components::new(initial_component.clone(), seed, kept);
    let entry_source = LocalEntrySource::open(log.clone(), snapshots.clone(), components.clone())
        .map_err(startup)?;
    tracing::info!(
        node = identity.node_id,
        cluster = identity.cluster_id,
        machine = initial_component.description().name,
        begun_with = %initial_component.id(),
        "starting"
    );
    let worker = Worker::start(initial_component, seed, entry_source.clone(), None, metrics)
        .map_err(startup)?;
    Ok(raft::Options {
        identity,
        engine: engine.fingerprint().to_owned(),
        components,
        worker,
        log,
        snapshots,
        entry_source,
        members: config.members.clone(),
        timing: config.timing,
        limits: config.limits,
        snapshot: config.snapshot,
        consistency_check_interval: config.consistency_check_interval,
        metrics: Arc::new(raft::Metrics::new(registry)),
    })
}

/// Loads the component that the directory was created with, whichever component is configured now.
fn begun_with(
    config: &Config,
    engine: &Engine,
    (given, initial_component): (Bytes, Bytes),
    kept: &KeptCode,
) -> Result<Component, Error> {
    if given == initial_component {
        return load(config, engine, initial_component, Some(kept));
    }
    // A configured component is loaded all the same, since a wrong file is a mistake.
    if !matches!(config.component, Some(ComponentSource::Default(_))) {
        load(config, engine, given.clone(), Some(kept))?;
    }
    tracing::info!(
        given = %ComponentId::of(&given),
        "this node has data, so it continues with the cluster's component instead of the configured one: \
         use `conclave component push` to add a component to the cluster"
    );
    Component::load_with(engine, initial_component, kept.compiling(false)).map_err(startup)
}

/// Loads the configured component.
fn load(
    config: &Config,
    engine: &Engine,
    component: Bytes,
    kept: Option<&KeptCode>,
) -> Result<Component, Error> {
    let how = kept.map(|kept| kept.compiling(false)).unwrap_or_default();
    Component::load_with(engine, component, how).map_err(|error| {
        let name = config.component.as_ref().map(ToString::to_string).unwrap_or_default();
        Error::invalid(format!("cannot load {name}")).with_source(error)
    })
}

/// Returns the error for a failed step of a start.
pub(crate) fn startup(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::caused_by(Error::fatal, error)
}

fn component(config: &Config) -> Result<Bytes, Error> {
    let path = match &config.component {
        None => return Err(Error::invalid("no component is configured: set Config::component")),
        Some(ComponentSource::Bytes(bytes) | ComponentSource::Default(bytes)) => {
            return Ok(bytes.clone());
        }
        Some(ComponentSource::File(path)) => path,
    };
    let bytes = fs::read(path).map_err(|error| {
        Error::invalid(format!("cannot read the component {}", path.display())).with_source(error)
    })?;
    Ok(Bytes::from(bytes))
}

pub(crate) fn master_key(source: &MasterKeySource) -> Result<MasterKey, Error> {
    match source {
        MasterKeySource::File(path) => MasterKey::from_file(path).map_err(startup),
        MasterKeySource::Value(value) => {
            MasterKey::from_text(value, "the environment variable CONCLAVE_MASTER_KEY")
                .map_err(startup)
        }
    }
}

/// Serves the methods of the active state machine, and follows its changes.
async fn follow_machine(api: Api<ReplicaBackend>, replica: Replica) {
    let mut machine = replica.machine();
    // The state machine may have changed before this task began to watch.
    machine.mark_changed();
    while machine.changed().await.is_ok() {
        let component = machine.borrow_and_update().id();
        match api.set_machine(ReplicaBackend(replica.clone()).machine()) {
            Ok(()) => tracing::info!(%component, "serving the methods of the state machine"),
            // Loading the component has already checked its descriptor, so this is not expected.
            Err(error) => {
                let error = chain(&error);
                tracing::error!(%component, error, "the previous methods are still served")
            }
        }
    }
}

/// Serves the client port and the peer port until `shutdown`.
async fn serve(
    options: api::Options,
    ports: Ports<'_>,
    replica: &Replica,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), Error> {
    let Ports { clients, peers, admin, registry } = ports;
    let api = Api::new(Arc::new(ReplicaBackend(replica.clone())), options, registry)?;
    admin.started(&api);
    let tasks = replica.supervisor();
    let following = tasks.spawn("methods", follow_machine(api.clone(), replica.clone()));
    let (stop, stopped) = watch::channel(false);
    let (stop_peers, peers_stopped) = watch::channel(false);
    let port = replica.peer_port();
    let connect = move |member| port.connection(member);
    let mut peers =
        tasks.spawn("peer port", api::serve_peers(peers, connect, until(peers_stopped)));
    let clients = tasks.spawn("client port", async move {
        api.serve_client(clients, until(stopped)).await;
    });
    shutdown.await;
    tracing::info!("stopping");
    // A leader transfers its leadership while it can still respond.
    replica.retire().await;
    following.abort();
    // The client port stops first, since its remaining calls need the peers.
    stop.send_replace(true);
    let _ = clients.await;
    replica.close_peers();
    stop_peers.send_replace(true);
    if timeout(PEERS_TIME_MAX, &mut peers).await.is_err() {
        peers.abort();
    }
    Ok(())
}
