//! What can be called, and the shapes of its messages.

use std::sync::Arc;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde::de::DeserializeSeed;
use serde_json::Value;

use conclave_machine::{Component, MethodKind};

/// A unary method of the machine's services.
#[derive(Clone, Debug)]
pub(super) struct Method {
    /// `package.Service/Method`.
    pub(super) name: Arc<str>,
    /// A command or a query.
    pub(super) kind: MethodKind,
    request: MessageDescriptor,
    response: MessageDescriptor,
}

/// The methods that a machine describes, but for its subscriptions. Empty: raw bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Vocabulary {
    methods: Vec<Method>,
    /// How many methods stream, and are not called.
    pub(super) subscriptions: usize,
}

impl Vocabulary {
    /// Reads the descriptor set, which loading the component has checked.
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

    /// All of them.
    pub(super) fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// The one of this name.
    pub(super) fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| &*method.name == name)
    }
}

impl Method {
    /// The request's shape.
    pub(super) fn request(&self) -> &MessageDescriptor {
        &self.request
    }

    /// A request as JSON, if that says all of it: the same bytes come of its text again. They do not for
    /// unknown fields, maps of many entries, and some floats, which are not read back to the last bit.
    pub(super) fn request_json(&self, bytes: &[u8]) -> Option<Value> {
        let message = DynamicMessage::decode(self.request.clone(), bytes).ok()?;
        let json = serde_json::to_value(&message).ok()?;
        let read_back = serde_json::from_str(&json.to_string()).ok()?;
        let again = self.request_bytes(read_back).ok()?;
        (again == bytes).then_some(json)
    }

    /// The bytes of a request that was given as JSON.
    pub(super) fn request_bytes(&self, json: Value) -> Result<Vec<u8>, String> {
        let message = self.request.clone().deserialize(json).map_err(|error| error.to_string())?;
        Ok(message.encode_to_vec())
    }

    /// The response, if it is one.
    pub(super) fn response(&self, bytes: &[u8]) -> Option<DynamicMessage> {
        DynamicMessage::decode(self.response.clone(), bytes).ok()
    }

    /// The request, if it is one.
    pub(super) fn request_message(&self, bytes: &[u8]) -> Option<DynamicMessage> {
        DynamicMessage::decode(self.request.clone(), bytes).ok()
    }
}
