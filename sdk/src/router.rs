//! Dispatch of calls to handlers by method name, with protobuf messages.

use std::{
    any::{Any, TypeId},
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use prost::{Message, Name};

use crate::{Call, Context, Failure, Machine, Reply, Subscription};

type Command<M> = dyn Fn(&mut M, &Context, &[u8]) -> Result<Reply, Failure> + Send + Sync;
type Query<M> = dyn Fn(&M, &Context, &[u8]) -> Result<Vec<u8>, Failure> + Send + Sync;
type Subscribe<M> = dyn Fn(&M, &Context, &[u8]) -> Result<Subscription, Failure> + Send + Sync;

/// A type that a command's handler may return: a response message, or a whole [`Reply`] if the
/// command emits events.
pub trait Respond {
    /// Converts the value to a reply.
    fn respond(self) -> Reply;

    /// The full name of the response message, or `None` if it is unknown, as for a [`Reply`], which
    /// holds bytes.
    fn message_name() -> Option<String> {
        None
    }
}

impl<T: Message + Name> Respond for T {
    fn respond(self) -> Reply {
        Reply::of(&self)
    }

    fn message_name() -> Option<String> {
        Some(T::full_name())
    }
}

impl Respond for Reply {
    fn respond(self) -> Reply {
        self
    }
}

/// The methods of a state machine `M`, returned by [`Machine::router`].
///
/// A request that does not decode fails with `INVALID_ARGUMENT`, a call of an unknown method with
/// `UNIMPLEMENTED`.
///
/// In native builds, the first use of a router compares the messages of its handlers with those of the
/// descriptor set, and panics if they differ. Protobuf can decode the bytes of one message as another
/// without an error. With this comparison, any native test detects a handler that is registered for
/// the wrong method. Messages get their names ([`Name`]) from `conclave_protobuf::compile`.
pub struct Router<M> {
    descriptor_set: &'static [u8],
    // Sorted by length, then by the reversed name: the methods of one service share a prefix. A
    // lookup allocates nothing.
    commands: Vec<(&'static str, Box<Command<M>>)>,
    queries: Vec<(&'static str, Box<Query<M>>)>,
    subscriptions: Vec<(&'static str, Box<Subscribe<M>>)>,
    /// The messages of the handlers, in the order of registration.
    #[cfg(not(target_family = "wasm"))]
    messages: Vec<Messages>,
}

/// The full names of a handler's request and response messages.
#[cfg(not(target_family = "wasm"))]
pub(crate) struct Messages {
    pub(crate) method: &'static str,
    pub(crate) request: String,
    /// `None` if unknown.
    pub(crate) response: Option<String>,
}

impl<M: 'static> Router<M> {
    /// A router without methods.
    pub const fn new() -> Self {
        Self {
            descriptor_set: &[],
            commands: Vec::new(),
            queries: Vec::new(),
            subscriptions: Vec::new(),
            #[cfg(not(target_family = "wasm"))]
            messages: Vec::new(),
        }
    }

    /// Sets the serialized `FileDescriptorSet` that contains these methods: the `DESCRIPTOR_SET` of
    /// [`include_protobuf!`](crate::include_protobuf). The host serves the methods as gRPC from it.
    #[must_use]
    pub const fn descriptor_set(mut self, descriptor_set: &'static [u8]) -> Self {
        self.descriptor_set = descriptor_set;
        self
    }

    /// Adds a method that changes the state. `method` is `package.Service/Method`.
    ///
    /// # Panics
    ///
    /// If the router already has the method.
    #[must_use]
    pub fn command<Request, Response>(
        mut self,
        method: &'static str,
        handler: impl Fn(&mut M, &Context, Request) -> Result<Response, Failure> + Send + Sync + 'static,
    ) -> Self
    where
        Request: Message + Default + Name,
        Response: Respond,
    {
        self.note::<Request>(method, Response::message_name);
        let command = move |machine: &mut M, context: &Context, bytes: &[u8]| {
            handler(machine, context, decode(method, bytes)?).map(Respond::respond)
        };
        insert(&mut self.commands, method, Box::new(command));
        self
    }

    /// Adds a method that only reads. The handler cannot change the state.
    ///
    /// # Panics
    ///
    /// If the router already has the method.
    #[must_use]
    pub fn query<Request, Response>(
        mut self,
        method: &'static str,
        handler: impl Fn(&M, &Context, Request) -> Result<Response, Failure> + Send + Sync + 'static,
    ) -> Self
    where
        Request: Message + Default + Name,
        Response: Message + Name,
    {
        self.note::<Request>(method, || Some(Response::full_name()));
        let query = move |machine: &M, context: &Context, bytes: &[u8]| {
            Ok(handler(machine, context, decode(method, bytes)?)?.encode_to_vec())
        };
        insert(&mut self.queries, method, Box::new(query));
        self
    }

    /// Adds a server-streaming method. The handler returns the range of topics and the initial messages.
    ///
    /// # Panics
    ///
    /// If the router already has the method.
    #[must_use]
    pub fn subscription<Request>(
        mut self,
        method: &'static str,
        handler: impl Fn(&M, &Context, Request) -> Result<Subscription, Failure> + Send + Sync + 'static,
    ) -> Self
    where
        Request: Message + Default + Name,
    {
        self.note::<Request>(method, || None);
        let subscribe = move |machine: &M, context: &Context, bytes: &[u8]| {
            handler(machine, context, decode(method, bytes)?)
        };
        insert(&mut self.subscriptions, method, Box::new(subscribe));
        self
    }

    /// Records the messages of a handler. Does nothing in a component.
    fn note<Request: Name>(
        &mut self,
        method: &'static str,
        response: impl FnOnce() -> Option<String>,
    ) {
        #[cfg(not(target_family = "wasm"))]
        self.messages.push(Messages {
            method,
            request: Request::full_name(),
            response: response(),
        });
        #[cfg(target_family = "wasm")]
        let _ = (method, response);
    }

    /// The messages of the handlers.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn messages(&self) -> &[Messages] {
        &self.messages
    }

    /// Starts the subscription with the method name of `call`.
    pub fn subscribe(
        &self,
        machine: &M,
        context: &Context,
        call: &Call,
    ) -> Result<Subscription, Failure> {
        match find(&self.subscriptions, &call.method) {
            Some(subscribe) => subscribe(machine, context, &call.request),
            None => {
                Err(Failure::unimplemented(format!("there is no subscription {}", call.method)))
            }
        }
    }

    /// Runs the command with the method name of `call`.
    pub fn apply(&self, machine: &mut M, context: &Context, call: &Call) -> Result<Reply, Failure> {
        match find(&self.commands, &call.method) {
            Some(command) => command(machine, context, &call.request),
            None => Err(self.unknown(&call.method, find(&self.queries, &call.method).is_some())),
        }
    }

    /// Answers the query with the method name of `call`.
    pub fn answer(&self, machine: &M, context: &Context, call: &Call) -> Result<Vec<u8>, Failure> {
        match find(&self.queries, &call.method) {
            Some(query) => query(machine, context, &call.request),
            None => Err(self.unknown(&call.method, find(&self.commands, &call.method).is_some())),
        }
    }

    /// The value set with [`Self::descriptor_set`].
    pub(crate) fn described(&self) -> &'static [u8] {
        self.descriptor_set
    }

    /// The names of the commands.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn commands(&self) -> impl Iterator<Item = &'static str> {
        self.commands.iter().map(|(name, _)| *name)
    }

    /// The names of the queries.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn queries(&self) -> impl Iterator<Item = &'static str> {
        self.queries.iter().map(|(name, _)| *name)
    }

    /// The names of the subscriptions.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = &'static str> {
        self.subscriptions.iter().map(|(name, _)| *name)
    }

    fn unknown(&self, method: &str, other_kind: bool) -> Failure {
        // The host takes the kind of a method from the descriptor set. Only a raw caller, or a
        // proto file that lacks `idempotency_level`, reaches these kind errors.
        Failure::unimplemented(if find(&self.subscriptions, method).is_some() {
            format!("{method} is a subscription; it answers with a stream")
        } else if other_kind && find(&self.queries, method).is_some() {
            format!("{method} is a query; it cannot be applied")
        } else if other_kind {
            format!("{method} is a command; it cannot be queried")
        } else {
            format!("there is no method {method}")
        })
    }
}

impl<M: 'static> Default for Router<M> {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the router of `M`, created at its first use and kept. A generic function has no `static`
/// of its own, so one map holds the routers of all state machines; a component has only one. The
/// router is not part of the state.
pub(crate) fn of<M: Machine>() -> &'static Router<M> {
    type Kept = &'static (dyn Any + Send + Sync);
    static ROUTERS: RwLock<BTreeMap<TypeId, Kept>> = RwLock::new(BTreeMap::new());

    let machine = TypeId::of::<M>();
    let kept: Option<Kept> =
        ROUTERS.read().unwrap_or_else(PoisonError::into_inner).get(&machine).copied();
    if let Some(router) = kept.and_then(|kept| kept.downcast_ref()) {
        return router;
    }
    // Created outside the lock, because this runs the state machine's code. If another test's
    // thread was faster, both routers are equal.
    let router: &'static Router<M> = Box::leak(Box::new(M::router()));
    #[cfg(not(target_family = "wasm"))]
    crate::testing::check_messages(router.described(), router.messages());
    ROUTERS.write().unwrap_or_else(PoisonError::into_inner).insert(machine, router);
    router
}

fn decode<T: Message + Default>(method: &str, bytes: &[u8]) -> Result<T, Failure> {
    T::decode(bytes).map_err(|error| {
        Failure::invalid_argument(format!("the request of {method} does not decode: {error}"))
    })
}

fn position<H: ?Sized>(methods: &[(&'static str, Box<H>)], method: &str) -> Result<usize, usize> {
    methods.binary_search_by(|(name, _)| {
        name.len().cmp(&method.len()).then_with(|| name.bytes().rev().cmp(method.bytes().rev()))
    })
}

fn find<'a, H: ?Sized>(methods: &'a [(&'static str, Box<H>)], method: &str) -> Option<&'a H> {
    let (_, handler) = methods.get(position(methods, method).ok()?)?;
    Some(handler)
}

fn insert<H: ?Sized>(
    methods: &mut Vec<(&'static str, Box<H>)>,
    method: &'static str,
    handler: Box<H>,
) {
    let place = position(methods, method);
    assert!(place.is_err(), "the method {method} is registered twice");
    methods.insert(place.unwrap_or_else(|place| place), (method, handler));
}
