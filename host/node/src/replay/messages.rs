//! Conversion of a state machine's messages to and from JSON, by its own descriptor set.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::Value;

use conclave_machine::Component;
use conclave_types::services;

/// The reason why a request cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The state machine describes no methods, and the request is not base64.
    #[error("the state machine describes no methods: give the request's bytes as a base64 string")]
    NotBase64(#[source] Option<base64::DecodeError>),
    /// The state machine has no such method.
    #[error("unknown method {method}; the methods are {known}")]
    UnknownMethod {
        /// The requested name.
        method: String,
        /// The names of all methods.
        known: String,
    },
    /// The JSON does not fit the method's request.
    #[error("the request of {method} cannot be encoded")]
    Request {
        /// The method.
        method: String,
        /// The cause.
        source: serde_json::Error,
    },
}

/// The message types of one component.
pub struct Messages(DescriptorPool);

impl Messages {
    /// Returns the message types of a component. They are empty if it describes none.
    pub fn of(component: &Component) -> Self {
        // The descriptor set was decoded when the component was loaded, so this cannot fail.
        Self(DescriptorPool::decode(component.descriptor_set().as_ref()).unwrap_or_default())
    }

    /// Returns a request as JSON, or `None` if the method is not described or the bytes do not match.
    pub fn request(&self, method: &str, bytes: &Bytes) -> Option<Value> {
        decode(self.method(method)?.input(), bytes)
    }

    /// Returns a response as JSON, under the same conditions.
    pub fn response(&self, method: &str, bytes: &Bytes) -> Option<Value> {
        decode(self.method(method)?.output(), bytes)
    }

    /// Encodes a request. If the state machine describes no methods, the request is a string with
    /// the bytes in base64.
    ///
    /// # Errors
    /// The request is invalid, or the method is unknown; the text lists the methods.
    pub fn encode_request(&self, method: &str, request: &Value) -> Result<Bytes, EncodeError> {
        let services = services::own(&self.0);
        if services.is_empty() {
            let bytes = match request {
                Value::String(text) => BASE64.decode(text).map_err(Some),
                Value::Object(fields) if fields.is_empty() => Ok(Vec::new()),
                _ => Err(None),
            };
            return bytes.map(Bytes::from).map_err(EncodeError::NotBase64);
        }
        let found = self.method(method).ok_or_else(|| {
            let methods = services.iter().flat_map(|service| {
                let of = service.full_name().to_owned();
                service
                    .methods()
                    .map(move |method| format!("{of}/{}", method.name()))
                    .collect::<Vec<_>>()
            });
            let known = methods.collect::<Vec<_>>().join(", ");
            EncodeError::UnknownMethod { method: method.to_owned(), known }
        })?;
        let message = DynamicMessage::deserialize(found.input(), request)
            .map_err(|source| EncodeError::Request { method: method.to_owned(), source })?;
        Ok(message.encode_to_vec().into())
    }

    fn method(&self, name: &str) -> Option<MethodDescriptor> {
        let (service, method) = name.split_once('/')?;
        let service = self.0.get_service_by_name(service)?;
        service.methods().find(|found| found.name() == method)
    }
}

fn decode(message: MessageDescriptor, bytes: &Bytes) -> Option<Value> {
    let message = DynamicMessage::decode(message, bytes.clone()).ok()?;
    serde_json::to_value(&message).ok()
}
