//! The methods that the nodes serve, by their descriptors.

use std::sync::Arc;

use prost_reflect::{
    DescriptorPool, MessageDescriptor, MethodDescriptor,
    prost_types::method_options::IdempotencyLevel,
};
use tokio::sync::Mutex;
use tonic::Code;

use crate::{error::Error, method::MethodName};

/// The descriptors fetched so far.
#[derive(Default)]
pub(crate) struct Catalog {
    pub(crate) known: Mutex<Option<Arc<Known>>>,
}

/// The services of a cluster and their descriptors.
pub(crate) struct Known {
    pub(crate) pool: DescriptorPool,
    pub(crate) services: Vec<String>,
}

/// The kinds of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// May change the state.
    Command,
    /// Declares `idempotency_level = NO_SIDE_EFFECTS`.
    Query,
    /// Returns a stream of messages.
    Subscription,
}

/// A method that the nodes serve.
#[derive(Clone, Debug)]
pub struct Method {
    pub(crate) descriptor: MethodDescriptor,
}

impl Method {
    /// Returns the name as `package.Service/Method`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.descriptor.parent_service().full_name(), self.descriptor.name())
    }

    /// Returns the kind of the method.
    pub fn kind(&self) -> MethodKind {
        let options = self.descriptor.method_descriptor_proto().options.as_ref();
        let query =
            options.is_some_and(|o| o.idempotency_level() == IdempotencyLevel::NoSideEffects);
        match (self.descriptor.is_server_streaming(), query) {
            (true, _) => MethodKind::Subscription,
            (false, true) => MethodKind::Query,
            (false, false) => MethodKind::Command,
        }
    }

    /// Returns the type of the request.
    pub fn request(&self) -> MessageDescriptor {
        self.descriptor.input()
    }

    /// Returns the type of the response.
    pub fn response(&self) -> MessageDescriptor {
        self.descriptor.output()
    }
}

/// Returns a method, or `None` if no service has it.
pub(crate) fn find(known: &Known, name: &MethodName) -> Option<Method> {
    let service = known.pool.get_service_by_name(name.service())?;
    let descriptor = service.methods().find(|method| method.name() == name.method())?;
    known.services.iter().any(|s| s == name.service()).then_some(Method { descriptor })
}

/// Returns all methods except those of reflection itself.
pub(crate) fn all(known: &Known) -> Vec<Method> {
    known
        .services
        .iter()
        .filter(|service| !service.starts_with("grpc.reflection."))
        .filter_map(|service| known.pool.get_service_by_name(service))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|descriptor| Method { descriptor })
        .collect()
}

/// Returns the error for an unknown method. It lists the methods.
pub(crate) fn unknown(known: &Known, name: &MethodName) -> Error {
    let names: Vec<_> = all(known).iter().map(Method::name).collect();
    Error::new(
        Code::Unimplemented,
        format!("unknown method {name}; the methods are {}", names.join(", ")),
    )
}
