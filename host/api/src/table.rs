//! The table of served methods: from a path to its handler.
//!
//! A table is built from the description of the active state machine and never changes. A change of
//! the state machine replaces the whole table. The host's own services take precedence: a state
//! machine cannot use their names.

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

/// Services of the host itself.
pub(super) const HOST_SERVICES: [&str; 5] = [
    "conclave.cluster.v1.Cluster",
    "conclave.machine.v1.Machine",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

const HOST_METHODS: [(&str, Target); 16] = [
    ("conclave.machine.v1.Machine/Apply", Target::Apply),
    ("conclave.machine.v1.Machine/Query", Target::Query),
    ("conclave.machine.v1.Machine/Describe", Target::Describe),
    ("conclave.cluster.v1.Cluster/Status", Target::Status),
    ("conclave.cluster.v1.Cluster/Snapshot", Target::Snapshot),
    ("conclave.cluster.v1.Cluster/Verify", Target::Verify),
    ("conclave.cluster.v1.Cluster/SetTime", Target::SetTime),
    ("conclave.cluster.v1.Cluster/SetLimits", Target::SetLimits),
    ("conclave.cluster.v1.Cluster/CreateBackup", Target::Backup),
    ("conclave.cluster.v1.Cluster/PullComponent", Target::Upgrade(Verb::Pull)),
    ("conclave.cluster.v1.Cluster/PushComponent", Target::Upgrade(Verb::Push)),
    ("conclave.cluster.v1.Cluster/ListComponents", Target::Upgrade(Verb::List)),
    ("conclave.cluster.v1.Cluster/RehearseComponent", Target::Upgrade(Verb::Rehearse)),
    ("conclave.cluster.v1.Cluster/DiffComponent", Target::Upgrade(Verb::Diff)),
    ("conclave.cluster.v1.Cluster/ActivateComponent", Target::Upgrade(Verb::Activate)),
    ("conclave.cluster.v1.Cluster/RollbackComponent", Target::Upgrade(Verb::Rollback)),
];

/// The handler of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A method of the state machine.
    Machine(MethodKind),
    Apply,
    Query,
    Describe,
    Status,
    Snapshot,
    Verify,
    SetTime,
    SetLimits,
    /// A stream of its own.
    Backup,
    /// A step of an upgrade.
    Upgrade(Verb),
}

/// The steps of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Push,
    Pull,
    List,
    Rehearse,
    Diff,
    Activate,
    Rollback,
}

/// One served method.
pub(super) struct Method {
    /// `package.Service/Method`.
    pub(super) name: Arc<str>,
    pub(super) target: Target,
    pub(super) metrics: MethodMetrics,
    request: Option<(Arc<Shapes>, ShapeId)>,
}

/// All methods of the host and of the active state machine.
pub(super) struct Table {
    pub(super) machine: Arc<MachineInfo>,
    /// The full names of all services, in order.
    pub(super) services: BTreeSet<String>,
    /// The methods by path, with the leading slash.
    methods: HashMap<Box<str>, Arc<Method>>,
}

impl Table {
    /// Builds the table. Fails if the state machine's descriptor set is damaged, or lacks a listed method.
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
                tracing::warn!(method = %name, "a service of the host hides this method of the state machine");
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

    /// Returns the method that is served under the path.
    pub(super) fn get(&self, path: &str) -> Option<&Arc<Method>> {
        self.methods.get(path)
    }

    /// Returns the method with this name.
    pub(super) fn named(&self, name: &str) -> Option<&Arc<Method>> {
        self.methods.get(&*path_of(name))
    }

    /// The error for an unknown path.
    pub(super) fn unknown(&self, path: &str) -> Error {
        let services: Vec<_> = self.services.iter().map(String::as_str).collect();
        let path: String = path.trim_start_matches('/').chars().take(200).collect();
        Error::unknown_method(format!(
            "unknown method {path}: this node serves {}; reflection lists their methods",
            services.join(", ")
        ))
    }
}

impl Method {
    /// Checks whether the bytes can be a request of this method.
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
            "the descriptor set of component {} is damaged; build the component again",
            machine.component_id
        ))
        .with_source(error)
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
                "component {} lists the method {name}, but its descriptor set does not: build the component \
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
