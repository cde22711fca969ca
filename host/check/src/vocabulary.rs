//! The methods of a state machine and the types of their messages.

use std::sync::Arc;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde::de::DeserializeSeed;
use serde_json::Value;

use conclave_machine::{Component, MethodKind};

/// A unary method of a state machine's services.
#[derive(Clone, Debug)]
pub(super) struct Method {
    /// The full name, `package.Service/Method`.
    pub(super) name: Arc<str>,
    /// The kind: command or query.
    pub(super) kind: MethodKind,
    request: MessageDescriptor,
    response: MessageDescriptor,
}

/// The methods that a state machine describes, except for subscriptions. Without methods, calls
/// are raw bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Vocabulary {
    methods: Vec<Method>,
    /// The number of streaming methods, which are not called.
    pub(super) subscriptions: usize,
}

impl Vocabulary {
    /// Reads the descriptor set. It was validated when the component was loaded.
    pub(super) fn of(component: &Component) -> Self {
        let Ok(pool) = DescriptorPool::decode(&component.descriptor_set()[..]) else {
            return Self::default();
        };
        let mut vocabulary = Self::default();
        for spec in component.methods() {
            let Some((service, name)) = spec.name.split_once('/') else { continue };
            let method = pool
                .get_service_by_name(service)
                .and_then(|service| service.methods().find(|method| method.name() == name));
            match (spec.kind, method) {
                (MethodKind::Subscription, _) => vocabulary.subscriptions += 1,
                (kind, Some(method)) => vocabulary.methods.push(Method {
                    name: Arc::clone(&spec.name),
                    kind,
                    request: method.input(),
                    response: method.output(),
                }),
                (_, None) => {}
            }
        }
        vocabulary
    }

    /// All methods.
    pub(super) fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// The method of this name.
    pub(super) fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| &*method.name == name)
    }
}

impl Method {
    /// The type of the request.
    pub(super) fn request(&self) -> &MessageDescriptor {
        &self.request
    }

    /// A request as JSON, if the JSON can be converted back to the same bytes. That is not so for
    /// unknown fields, maps of several entries, and some floats that are not parsed exactly.
    pub(super) fn request_json(&self, bytes: &[u8]) -> Option<Value> {
        let message = DynamicMessage::decode(self.request.clone(), bytes).ok()?;
        let json = serde_json::to_value(&message).ok()?;
        let read_back = serde_json::from_str(&json.to_string()).ok()?;
        let again = self.request_bytes(read_back).ok()?;
        (again == bytes).then_some(json)
    }

    /// Encodes a request from JSON.
    pub(super) fn request_bytes(&self, json: Value) -> Result<Vec<u8>, serde_json::Error> {
        let message = self.request.clone().deserialize(json)?;
        Ok(message.encode_to_vec())
    }

    /// Decodes a response. Returns `None` if the bytes are invalid.
    pub(super) fn response(&self, bytes: &[u8]) -> Option<DynamicMessage> {
        DynamicMessage::decode(self.response.clone(), bytes).ok()
    }

    /// Decodes a request. Returns `None` if the bytes are invalid.
    pub(super) fn request_message(&self, bytes: &[u8]) -> Option<DynamicMessage> {
        DynamicMessage::decode(self.request.clone(), bytes).ok()
    }
}
