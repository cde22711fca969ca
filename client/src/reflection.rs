//! Server reflection, which fetches the methods that the nodes serve, and calls with JSON.
//!
//! Descriptors are fetched once and kept. They are fetched again if a method is unknown, since
//! another component may have been activated.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, SerializeOptions, prost_types::FileDescriptorProto,
};
use serde_json::Value;
use tonic::Code;

use crate::{
    catalog::{Known, Method, MethodKind, all, find, unknown},
    client::{Answer, Client},
    error::Error,
    method::MethodName,
    options::CallOptions,
    reflection_stream::{Ask, Reply},
};

/// Bounds the memory that a hostile server can occupy.
const FILES_MAX: usize = 1024;
const FILES_BYTES_MAX: usize = 16 << 20;

impl Client {
    /// Calls a method with its request as protobuf's JSON. A query is retried like a read; a
    /// command is retried only if it is known not to have been applied.
    pub async fn call_json(&self, method: &str, request: Value) -> Result<Value, Error> {
        let method = self.method(method).await?;
        let options = match method.kind() {
            MethodKind::Query => CallOptions::read(),
            _ => CallOptions::write(),
        };
        Ok(self.call_json_with(&method, request, &options).await?.message)
    }

    /// Calls a method returned by [`Client::method`], with its request as protobuf's JSON.
    pub async fn call_json_with(
        &self,
        method: &Method,
        request: Value,
        options: &CallOptions,
    ) -> Result<Answer<Value>, Error> {
        let name = MethodName::parse(&method.name())?;
        if method.kind() == MethodKind::Subscription || method.descriptor.is_client_streaming() {
            return Err(Error::new(
                Code::Unimplemented,
                format!("{name} streams its messages: subscribe to it"),
            ));
        }
        let request = encode(method, request)?;
        let answer = self.unary(&name, request, options).await?;
        let json = decode(method, &answer.message)?;
        Ok(answer.map(|_| json))
    }

    /// Finds a method by name. If it does not exist, the error lists the methods.
    pub async fn method(&self, name: &str) -> Result<Method, Error> {
        let name = MethodName::parse(name)?;
        let mut known = self.known(false).await?;
        if find(&known, &name).is_none() {
            known = self.known(true).await?;
        }
        find(&known, &name).ok_or_else(|| unknown(&known, &name))
    }

    /// Returns all methods that the nodes serve, sorted by name.
    pub async fn methods(&self) -> Result<Vec<Method>, Error> {
        let known = self.known(true).await?;
        Ok(all(&known))
    }

    async fn known(&self, refresh: bool) -> Result<Arc<Known>, Error> {
        let mut kept = self.shared.catalog.known.lock().await;
        if let Some(known) = kept.as_ref().filter(|_| !refresh) {
            return Ok(Arc::clone(known));
        }
        let known = Arc::new(self.fetch().await?);
        *kept = Some(Arc::clone(&known));
        Ok(known)
    }

    /// Requests the services, then the file of each service, then their imports.
    async fn fetch(&self) -> Result<Known, Error> {
        let Some(Reply::Services(mut services)) = self.reflect(&[Ask::Services]).await?.pop()
        else {
            return Err(unfit("it did not list its services"));
        };
        services.sort();
        let mut files = Files::default();
        let mut asks: Vec<_> = services.iter().map(|name| Ask::Symbol(name.clone())).collect();
        while !asks.is_empty() {
            for reply in self.reflect(&asks).await? {
                if let Reply::Files(encoded) = reply {
                    files.add(encoded)?;
                }
            }
            asks = files.missing()?.into_iter().map(Ask::File).collect();
        }
        let mut pool = DescriptorPool::new();
        pool.add_file_descriptor_protos(files.files.into_values())
            .map_err(|cause| unfit("its descriptors do not fit together").with_source(cause))?;
        services.retain(|service| pool.get_service_by_name(service).is_some());
        Ok(Known { pool, services })
    }
}

/// The files received so far, by name.
#[derive(Default)]
struct Files {
    files: BTreeMap<String, FileDescriptorProto>,
    asked: BTreeSet<String>,
    bytes: usize,
}

impl Files {
    fn add(&mut self, encoded: Vec<Vec<u8>>) -> Result<(), Error> {
        for file in encoded {
            self.bytes += file.len();
            let file = FileDescriptorProto::decode(file.as_slice())
                .map_err(|cause| unfit("a descriptor does not decode").with_source(cause))?;
            // prost-reflect panics on any other syntax.
            if !matches!(file.syntax.as_deref(), None | Some("proto2" | "proto3")) {
                let (name, syntax) = (file.name(), file.syntax());
                return Err(unfit(&format!(
                    "{name} has the syntax {syntax:?}; this program supports proto2 and proto3"
                )));
            }
            self.files.insert(file.name().to_owned(), file);
            if self.bytes > FILES_BYTES_MAX || self.files.len() > FILES_MAX {
                return Err(unfit("its descriptors are too large"));
            }
        }
        Ok(())
    }

    /// Returns the imports that are still missing. Protobuf's own files come from this library.
    fn missing(&mut self) -> Result<Vec<String>, Error> {
        let mut missing = Vec::new();
        loop {
            let imports: BTreeSet<String> = self
                .files
                .values()
                .flat_map(|file| file.dependency.iter().cloned())
                .filter(|import| !self.files.contains_key(import))
                .collect();
            let own: Vec<_> = imports
                .iter()
                .filter_map(|import| DescriptorPool::global().get_file_by_name(import))
                .map(|file| file.file_descriptor_proto().clone())
                .collect();
            if own.is_empty() {
                missing.extend(imports);
                break;
            }
            self.files.extend(own.into_iter().map(|file| (file.name().to_owned(), file)));
        }
        if let Some(import) = missing.iter().find(|&import| !self.asked.insert(import.clone())) {
            return Err(unfit(&format!("it does not serve the imported file {import}")));
        }
        Ok(missing)
    }
}

fn unfit(why: &str) -> Error {
    Error::new(Code::FailedPrecondition, format!("the node's reflection is not usable: {why}"))
}

pub(crate) fn encode(method: &Method, request: Value) -> Result<Bytes, Error> {
    let message = DynamicMessage::deserialize(method.request(), request).map_err(|cause| {
        let request = method.request();
        let fields: Vec<_> = request.fields().map(|field| field.json_name().to_owned()).collect();
        let has = match fields.is_empty() {
            true => "no fields".to_owned(),
            false => format!("the fields {}", fields.join(", ")),
        };
        let message = format!(
            "the JSON does not fit the request of {}; {} has {has}",
            method.name(),
            request.full_name(),
        );
        Error::invalid(message).with_source(cause)
    })?;
    Ok(message.encode_to_vec().into())
}

pub(crate) fn decode(method: &Method, response: &Bytes) -> Result<Value, Error> {
    let wrong = || {
        let message = format!("the response of {} does not decode", method.name());
        Error::new(Code::Internal, message)
    };
    let message = DynamicMessage::decode(method.response(), response.as_ref())
        .map_err(|cause| wrong().with_source(cause))?;
    message
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .map_err(|cause| wrong().with_source(cause))
}
