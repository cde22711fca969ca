//! Which path is served how.
//!
//! A table is built whole from what the active machine says of itself and never changes; a change of the
//! machine swaps the table. The host's own services come first: a machine cannot take their names.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use prost_reflect::DescriptorPool;

use super::{
    MachineInfo, MethodKind,
    metrics::{MethodMetrics, Metrics},
    shape::{ShapeId, Shapes},
};
use conclave_types::error::Error;

/// Services that the host serves itself.
pub(super) const HOST_SERVICES: [&str; 5] = [
    "conclave.cluster.v1.Cluster",
    "conclave.machine.v1.Machine",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

const HOST_METHODS: [(&str, Target); 14] = [
    ("conclave.machine.v1.Machine/Apply", Target::Apply),
    ("conclave.machine.v1.Machine/Query", Target::Query),
    ("conclave.machine.v1.Machine/Describe", Target::Describe),
    ("conclave.cluster.v1.Cluster/Status", Target::Status),
    ("conclave.cluster.v1.Cluster/Snapshot", Target::Snapshot),
    ("conclave.cluster.v1.Cluster/Verify", Target::Verify),
    ("conclave.cluster.v1.Cluster/SetTime", Target::SetTime),
    ("conclave.cluster.v1.Cluster/SetLimits", Target::SetLimits),
    ("conclave.cluster.v1.Cluster/PushComponent", Target::Upgrade(Verb::Push)),
    ("conclave.cluster.v1.Cluster/ListComponents", Target::Upgrade(Verb::List)),
    ("conclave.cluster.v1.Cluster/RehearseComponent", Target::Upgrade(Verb::Rehearse)),
    ("conclave.cluster.v1.Cluster/DiffComponent", Target::Upgrade(Verb::Diff)),
    ("conclave.cluster.v1.Cluster/ActivateComponent", Target::Upgrade(Verb::Activate)),
    ("conclave.cluster.v1.Cluster/RollbackComponent", Target::Upgrade(Verb::Rollback)),
];

/// What a method does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// One of the machine's own.
    Machine(MethodKind),
    Apply,
    Query,
    Describe,
    Status,
    Snapshot,
    Verify,
    SetTime,
    SetLimits,
    /// One of the steps of an upgrade.
    Upgrade(Verb),
}

/// The steps of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Push,
    List,
    Rehearse,
    Diff,
    Activate,
    Rollback,
}

/// One method that is served.
pub(super) struct Method {
    /// `package.Service/Method`.
    pub(super) name: Arc<str>,
    pub(super) target: Target,
    pub(super) metrics: MethodMetrics,
    request: Option<(Arc<Shapes>, ShapeId)>,
}

/// All methods of the host and of the active machine.
pub(super) struct Table {
    pub(super) machine: Arc<MachineInfo>,
    /// The full names of all services, in order.
    pub(super) services: BTreeSet<String>,
    /// By path, with the leading slash.
    methods: HashMap<Box<str>, Arc<Method>>,
}

impl Table {
    /// Fails if the machine's descriptor set is damaged, or lacks a method that the machine lists.
    pub(super) fn build(machine: Arc<MachineInfo>, metrics: &Metrics) -> Result<Self, Error> {
        let mut methods = HashMap::new();
        for (name, target) in HOST_METHODS {
            methods.insert(
                path_of(name),
                Arc::new(Method {
                    name: name.into(),
                    target,
                    metrics: metrics.method(name),
                    request: None,
                }),
            );
        }
        let mut services: BTreeSet<_> = HOST_SERVICES.map(str::to_owned).into();
        for (name, kind, request) in machine_methods(&machine)? {
            let service = name.split('/').next().unwrap_or_default();
            if HOST_SERVICES.contains(&service) {
                tracing::warn!(method = %name, "the machine's method is hidden by the host's own service");
                continue;
            }
            services.insert(service.to_owned());
            methods.insert(
                path_of(&name),
                Arc::new(Method {
                    target: Target::Machine(kind),
                    metrics: metrics.method(&name),
                    request,
                    name,
                }),
            );
        }
        Ok(Self { machine, services, methods })
    }

    /// The method that is served under the path.
    pub(super) fn get(&self, path: &str) -> Option<&Arc<Method>> {
        self.methods.get(path)
    }

    /// The method with this name.
    pub(super) fn named(&self, name: &str) -> Option<&Arc<Method>> {
        self.methods.get(&*path_of(name))
    }

    /// Nobody serves the path.
    pub(super) fn unknown(&self, path: &str) -> Error {
        let services: Vec<_> = self.services.iter().map(String::as_str).collect();
        let path: String = path.trim_start_matches('/').chars().take(200).collect();
        Error::unknown_method(format!(
            "no method {path}: this node serves {}; reflection lists their methods",
            services.join(", ")
        ))
    }
}

impl Method {
    /// Whether the bytes can be the request that the method takes.
    pub(super) fn check_request(&self, request: &[u8]) -> Result<(), Error> {
        let Some((shapes, id)) = &self.request else { return Ok(()) };
        shapes
            .check(*id, request)
            .map_err(|malformed| Error::invalid(format!("the request is {malformed}")))
    }
}

fn path_of(name: &str) -> Box<str> {
    format!("/{name}").into()
}

type MachineMethod = (Arc<str>, MethodKind, Option<(Arc<Shapes>, ShapeId)>);

fn machine_methods(machine: &MachineInfo) -> Result<Vec<MachineMethod>, Error> {
    let listed = || machine.methods.iter().map(|method| (method.name.clone(), method.kind));
    if machine.descriptor_set.is_empty() {
        return Ok(listed().map(|(name, kind)| (name, kind, None)).collect());
    }
    let pool = DescriptorPool::decode(machine.descriptor_set.clone()).map_err(|error| {
        Error::fatal(format!(
            "the descriptor set of machine {} is damaged: {error}; build the component again",
            machine.component_id
        ))
    })?;
    let mut shapes = Shapes::default();
    let mut found = Vec::new();
    for (name, kind) in listed() {
        let input = name.split_once('/').and_then(|(service, method)| {
            let service = pool.get_service_by_name(service)?;
            service.methods().find(|known| known.name() == method).map(|known| known.input())
        });
        let shape = input.and_then(|input| shapes.add(&pool, input.full_name()));
        let Some(shape) = shape else {
            return Err(Error::fatal(format!(
                "machine {} lists the method {name}, and its descriptor set does not: build the component \
                 again",
                machine.component_id
            )));
        };
        found.push((name, kind, shape));
    }
    let shapes = Arc::new(shapes);
    Ok(found
        .into_iter()
        .map(|(name, kind, shape)| (name, kind, Some((shapes.clone(), shape))))
        .collect())
}
