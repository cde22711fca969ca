//! A machine's messages as JSON, by its own descriptor set.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::Value;

use conclave_machine::Component;
use conclave_types::services;

/// The messages of one component.
pub struct Messages(DescriptorPool);

impl Messages {
    /// Those of a component; none if it does not describe any.
    pub fn of(component: &Component) -> Self {
        // It was read when the component was loaded, so that it cannot fail here.
        Self(DescriptorPool::decode(component.descriptor_set().as_ref()).unwrap_or_default())
    }

    /// A method's request. Nothing if the method is not described, or the bytes are not its message's.
    pub fn request(&self, method: &str, bytes: &Bytes) -> Option<Value> {
        decode(self.method(method)?.input(), bytes)
    }

    /// A method's response, likewise.
    pub fn response(&self, method: &str, bytes: &Bytes) -> Option<Value> {
        decode(self.method(method)?.output(), bytes)
    }

    /// The bytes of a request. Of a machine that describes no methods: a text with the bytes in base64.
    ///
    /// # Errors
    /// What is wrong with it, or which methods there are.
    pub fn encode_request(&self, method: &str, request: &Value) -> Result<Bytes, String> {
        let services = services::own(&self.0);
        if services.is_empty() {
            let bytes = match request {
                Value::String(text) => BASE64.decode(text).ok(),
                Value::Object(fields) if fields.is_empty() => Some(Vec::new()),
                _ => None,
            };
            return bytes.map(Bytes::from).ok_or_else(|| {
                "the machine describes no methods: give the request's bytes as a text in base64"
                    .to_owned()
            });
        }
        let found = self.method(method).ok_or_else(|| {
            let methods = services.iter().flat_map(|service| {
                let of = service.full_name().to_owned();
                service
                    .methods()
                    .map(move |method| format!("{of}/{}", method.name()))
                    .collect::<Vec<_>>()
            });
            format!(
                "there is no method {method}; there are {}",
                methods.collect::<Vec<_>>().join(", ")
            )
        })?;
        let message = DynamicMessage::deserialize(found.input(), request)
            .map_err(|error| format!("the request of {method}: {error}"))?;
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
