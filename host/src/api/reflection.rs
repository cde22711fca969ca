//! gRPC reflection, versions v1 and v1alpha, over the host's services and the machine's.
//!
//! A machine's descriptor set is served as its own bytes, with its comments' options and annotations. If a
//! machine brings a file of the host's name, the host's is served.

use std::convert::Infallible;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic_reflection::server::Builder;
use tower::util::BoxCloneSyncService;

use super::table::Table;
use crate::{error::Error, proto::CLIENT_DESCRIPTOR_SET};

/// A request names one symbol or file.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

type Service = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// Both versions, for one table.
pub(super) struct Reflection {
    pub(super) v1: Service,
    pub(super) v1alpha: Service,
}

impl Reflection {
    pub(super) fn build(table: &Table) -> Result<Self, Error> {
        let damaged = |error| {
            Error::fault("the descriptor set of the machine is damaged: build the module again")
                .with_source(error)
        };
        let v1 = builder(table).build_v1().map_err(damaged)?;
        let v1alpha = builder(table).build_v1alpha().map_err(damaged)?;
        Ok(Self {
            v1: Service::new(v1.max_decoding_message_size(REQUEST_BYTES_MAX)),
            v1alpha: Service::new(v1alpha.max_decoding_message_size(REQUEST_BYTES_MAX)),
        })
    }
}

fn builder(table: &Table) -> Builder<'_> {
    let mut builder = Builder::configure()
        .include_reflection_service(false)
        .register_encoded_file_descriptor_set(CLIENT_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(&table.machine.descriptor_set);
    for service in &table.services {
        builder = builder.with_service_name(service);
    }
    builder
}
