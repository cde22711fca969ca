//! gRPC reflection, versions v1 and v1alpha, over the services of the host and of the component.
//!
//! Contract:
//! * A request that cannot be answered gets an `error_response`, and the stream continues.
//! * A symbol is the full name of a service, method, message, field, oneof, enum, enum value or
//!   extension. As in protobuf, the name of an enum value lies in the scope of its enum. It is also
//!   found inside the enum.
//! * A file is sent with its imports, each once per stream. The bytes are those of the component's
//!   descriptor set, so options that this host does not know are kept.
//! * The host's files have their canonical names and come first. A component's file of the same
//!   name is not served, and no symbol of a component hides one of the host.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, EnumDescriptor, ExtensionDescriptor, FileDescriptor,
    prost_types::FileDescriptorSet,
};
use tonic::Code;
use tonic_reflection::pb::{
    self,
    v1::{
        ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
        ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
};

use super::table::Table;
use conclave_proto::CLIENT_DESCRIPTOR_SET;
use conclave_types::error::Error;

/// Files of other projects that the host serves. Their Rust packages have them under other names.
const FOREIGN: [(&str, &[u8]); 3] = [
    ("grpc/health/v1/health.proto", tonic_health::pb::FILE_DESCRIPTOR_SET),
    ("grpc/reflection/v1/reflection.proto", pb::v1::FILE_DESCRIPTOR_SET),
    ("grpc/reflection/v1alpha/reflection.proto", pb::v1alpha::FILE_DESCRIPTOR_SET),
];

/// The index for all reflection requests about one table.
#[derive(Default)]
pub(super) struct Reflection {
    services: Vec<String>,
    files: Vec<File>,
    /// Positions in `files`.
    by_name: HashMap<String, usize>,
    by_symbol: HashMap<String, usize>,
    /// By the extended message and the field number.
    by_extension: HashMap<String, BTreeMap<i32, usize>>,
}

struct File {
    encoded: Bytes,
    imports: Vec<usize>,
}

/// The positions of the files that were sent on one stream.
pub(super) type Sent = HashSet<usize>;

impl Reflection {
    /// Builds the index. Fails if a descriptor set is damaged.
    pub(super) fn build(table: &Table) -> Result<Self, Error> {
        let damaged = |error| {
            Error::fatal(
                "the descriptor set of the state machine is damaged: build the component again",
            )
            .with_source(error)
        };
        let mut reflection =
            Self { services: table.services.iter().cloned().collect(), ..Self::default() };
        reflection.add(&host_pool().map_err(damaged)?);
        let machine = DescriptorPool::decode(table.machine.descriptor_set.clone());
        reflection.add(&machine.map_err(|error| damaged(error.into()))?);
        Ok(reflection)
    }

    /// Adds the files whose names are new.
    fn add(&mut self, pool: &DescriptorPool) {
        let mut added = Vec::new();
        for file in pool.files() {
            if self.by_name.contains_key(file.name()) {
                continue;
            }
            let at = self.files.len();
            self.by_name.insert(file.name().to_owned(), at);
            self.files.push(File { encoded: file.encode_to_vec().into(), imports: Vec::new() });
            self.add_symbols(&file, at);
            added.push((at, file));
        }
        for (at, file) in added {
            let imports = file.dependencies().filter_map(|import| self.by_name.get(import.name()));
            self.files[at].imports = imports.copied().collect();
        }
    }

    fn add_symbols(&mut self, file: &FileDescriptor, at: usize) {
        let mut messages: Vec<_> = file.messages().collect();
        while let Some(message) = messages.pop() {
            self.symbol(message.full_name(), at);
            message.fields().for_each(|field| self.symbol(field.full_name(), at));
            message.oneofs().for_each(|oneof| self.symbol(oneof.full_name(), at));
            message.child_enums().for_each(|found| self.add_enum(&found, at));
            message.child_extensions().for_each(|found| self.add_extension(&found, at));
            messages.extend(message.child_messages());
        }
        file.enums().for_each(|found| self.add_enum(&found, at));
        file.extensions().for_each(|found| self.add_extension(&found, at));
        for service in file.services() {
            self.symbol(service.full_name(), at);
            service.methods().for_each(|method| self.symbol(method.full_name(), at));
        }
    }

    fn add_enum(&mut self, found: &EnumDescriptor, at: usize) {
        let name = found.full_name();
        self.symbol(name, at);
        for value in found.values() {
            // grpcurl up to version 1.8 names the value in this way.
            self.symbol(&format!("{name}.{}", value.name()), at);
            match name.rsplit_once('.') {
                Some((scope, _)) => self.symbol(&format!("{scope}.{}", value.name()), at),
                None => self.symbol(value.name(), at),
            }
        }
    }

    fn add_extension(&mut self, found: &ExtensionDescriptor, at: usize) {
        self.symbol(found.full_name(), at);
        let extended = found.containing_message().full_name().to_owned();
        // Field numbers have 29 bits.
        let number = found.number() as i32;
        self.by_extension.entry(extended).or_default().entry(number).or_insert(at);
    }

    fn symbol(&mut self, name: &str, at: usize) {
        if !self.by_symbol.contains_key(name) {
            self.by_symbol.insert(name.to_owned(), at);
        }
    }

    /// Answers one request.
    pub(super) fn answer(
        &self,
        question: ServerReflectionRequest,
        sent: &mut Sent,
    ) -> ServerReflectionResponse {
        let answer = match &question.message_request {
            Some(MessageRequest::ListServices(_)) => {
                let service =
                    self.services.iter().map(|name| ServiceResponse { name: name.clone() });
                Ok(MessageResponse::ListServicesResponse(ListServiceResponse {
                    service: service.collect(),
                }))
            }
            Some(MessageRequest::FileByFilename(name)) => match self.by_name.get(name) {
                Some(at) => Ok(self.file(*at, sent)),
                None => Err((Code::NotFound, format!("there is no file {name}"))),
            },
            Some(MessageRequest::FileContainingSymbol(symbol)) => {
                match self.by_symbol.get(symbol.strip_prefix('.').unwrap_or(symbol)) {
                    Some(at) => Ok(self.file(*at, sent)),
                    None => Err((Code::NotFound, format!("there is no symbol {symbol}"))),
                }
            }
            Some(MessageRequest::FileContainingExtension(extension)) => {
                let (message, number) = (&extension.containing_type, extension.extension_number);
                match self.by_extension.get(message).and_then(|numbers| numbers.get(&number)) {
                    Some(at) => Ok(self.file(*at, sent)),
                    None => Err((Code::NotFound, format!("{message} has no extension {number}"))),
                }
            }
            Some(MessageRequest::AllExtensionNumbersOfType(message)) => {
                let numbers = self.by_extension.get(message);
                match numbers {
                    None if !self.by_symbol.contains_key(message) => {
                        Err((Code::NotFound, format!("there is no message {message}")))
                    }
                    _ => {
                        Ok(MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                            base_type_name: message.clone(),
                            extension_number: numbers
                                .iter()
                                .flat_map(|numbers| numbers.keys())
                                .copied()
                                .collect(),
                        }))
                    }
                }
            }
            None => Err((Code::InvalidArgument, "the reflection request is empty".to_owned())),
        };
        let answer = answer.unwrap_or_else(|(code, error_message)| {
            MessageResponse::ErrorResponse(ErrorResponse { error_code: code as i32, error_message })
        });
        ServerReflectionResponse {
            valid_host: question.host.clone(),
            original_request: Some(question),
            message_response: Some(answer),
        }
    }

    /// Returns the file and its imports, without imports that were already sent.
    fn file(&self, at: usize, sent: &mut Sent) -> MessageResponse {
        let mut files = Vec::new();
        let mut queue = vec![at];
        while let Some(next) = queue.pop() {
            if sent.insert(next) || files.is_empty() {
                files.push(self.files[next].encoded.to_vec());
                queue.extend(&self.files[next].imports);
            }
        }
        MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
            file_descriptor_proto: files,
        })
    }
}

fn host_pool() -> Result<DescriptorPool, Box<dyn std::error::Error + Send + Sync>> {
    let mut pool = DescriptorPool::decode(CLIENT_DESCRIPTOR_SET)?;
    for (name, set) in FOREIGN {
        let mut set = FileDescriptorSet::decode(set)?;
        for file in &mut set.file {
            file.name = Some(name.to_owned());
        }
        pool.add_file_descriptor_set(set)?;
    }
    Ok(pool)
}
