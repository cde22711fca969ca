//! Reads the methods that a state machine's descriptor set declares.

use std::{collections::BTreeSet, panic::catch_unwind, sync::Arc};

use prost_reflect::{
    DescriptorPool, MethodDescriptor, prost_types::method_options::IdempotencyLevel,
};

use super::{descriptor_scan, error::LoadError};
use conclave_types::services;

/// One method of a state machine's services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodSpec {
    /// The full name, `package.Service/Method`.
    pub name: Arc<str>,
    /// The kind, which decides how the host serves a call.
    pub kind: MethodKind,
}

/// The way in which the host serves a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MethodKind {
    /// The call is replicated through the log.
    Command,
    /// The call is answered by one standby instance.
    Query,
    /// The call is a stream from one standby instance.
    Subscription,
}

/// The maximum size of a descriptor set in bytes. It holds the protobuf definitions of some
/// services and their imports.
const DESCRIPTOR_BYTES_MAX: usize = 4 << 20;
/// The maximum length of a method's full name in bytes. Set by the contract in `wit/`.
const METHOD_BYTES_MAX: usize = 256;
/// The maximum number of methods of one state machine. Each becomes a route of the node's server.
const METHODS_MAX: usize = 4096;
/// Packages of the host's own services on the same port.
const RESERVED: [&str; 2] = ["conclave.", "grpc."];

/// Reads the methods from a serialized `FileDescriptorSet`.
pub(super) fn methods(descriptor_set: &[u8]) -> Result<Vec<MethodSpec>, LoadError> {
    let refuse = |why: String| Err(LoadError::Descriptor(why));
    if descriptor_set.is_empty() {
        return Ok(Vec::new());
    }
    if descriptor_set.len() > DESCRIPTOR_BYTES_MAX {
        return refuse(format!(
            "it has {} bytes; the limit is {DESCRIPTOR_BYTES_MAX}",
            descriptor_set.len()
        ));
    }
    descriptor_scan::check(descriptor_set)?;
    // A panic of the library must not end the node to which a component is pushed.
    let decoded = catch_unwind(|| DescriptorPool::decode(descriptor_set));
    let pool = match decoded {
        Ok(Ok(pool)) => pool,
        Ok(Err(error)) => {
            return refuse(format!(
                "{error}. It must be a google.protobuf.FileDescriptorSet with all imports (protoc --include_imports)"
            ));
        }
        Err(_) => {
            return refuse(
                "the decoder (prost-reflect) panicked over it; its message is on standard error. Compile it with another version of protoc"
                    .to_owned(),
            );
        }
    };
    let mut names = BTreeSet::new();
    let mut methods = Vec::new();
    for service in services::own(&pool) {
        let service_name = service.full_name();
        if let Some(reserved) =
            RESERVED.iter().find(|reserved| service_name.starts_with(**reserved))
        {
            return refuse(format!(
                "service {service_name} is in package {reserved}*, which is reserved for the host's own services; rename its package"
            ));
        }
        for method in service.methods() {
            let spec = method_spec(service_name, &method)?;
            if !names.insert(Arc::clone(&spec.name)) {
                return refuse(format!("method {} is declared twice", spec.name));
            }
            methods.push(spec);
        }
    }
    if methods.len() > METHODS_MAX {
        return refuse(format!(
            "it declares {} methods; the limit is {METHODS_MAX}",
            methods.len()
        ));
    }
    Ok(methods)
}

fn is_identifier(name: &str) -> bool {
    let is_first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.bytes().next().is_some_and(is_first)
        && name.bytes().all(|byte| is_first(byte) || byte.is_ascii_digit())
}

fn method_spec(service: &str, method: &MethodDescriptor) -> Result<MethodSpec, LoadError> {
    let name = format!("{service}/{}", method.name());
    if name.len() > METHOD_BYTES_MAX {
        let cut = super::cut(&name, 64);
        return Err(LoadError::Descriptor(format!(
            "the method name {cut}... has {} bytes; the limit is {METHOD_BYTES_MAX}",
            name.len()
        )));
    }
    if !service.split('.').chain([method.name()]).all(is_identifier) {
        return Err(LoadError::Descriptor(format!(
            "{name:?} is not a valid method name in protobuf"
        )));
    }
    if method.is_client_streaming() {
        return Err(LoadError::Descriptor(format!(
            "method {name} streams from the client, but an entry of the log is one message: take a single message, for example with a repeated field"
        )));
    }
    let idempotency = method
        .method_descriptor_proto()
        .options
        .as_ref()
        .map(|options| options.idempotency_level());
    let kind = match (method.is_server_streaming(), idempotency) {
        (true, _) => MethodKind::Subscription,
        (false, Some(IdempotencyLevel::NoSideEffects)) => MethodKind::Query,
        (false, _) => MethodKind::Command,
    };
    Ok(MethodSpec { name: name.into(), kind })
}
