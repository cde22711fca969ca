//! From method names to handlers of protobuf messages.

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

/// The types that a command's handler may return: a response message, or a whole [`Reply`] if it has events.
pub trait Respond {
    /// The reply.
    fn respond(self) -> Reply;

    /// The full name of the response message. `None`: it is not known, as a [`Reply`] holds bytes.
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

/// The methods of a machine `M`, which gives it as [`Machine::router`].
///
/// A request that does not decode is answered `INVALID_ARGUMENT`, a method that is not here
/// `UNIMPLEMENTED`.
///
/// Natively, the first use of a machine's router compares the messages of its handlers with those of the descriptor set, and
/// panics if they differ: protobuf decodes the bytes of one message as another without an error. So any native test
/// finds the handler of another method. Messages have their names ([`Name`]) from `conclave_protobuf::compile`.
pub struct Router<M> {
    descriptor_set: &'static [u8],
    // Sorted by length, then by their ends: methods of one service begin alike. A lookup allocates nothing.
    commands: Vec<(&'static str, Box<Command<M>>)>,
    queries: Vec<(&'static str, Box<Query<M>>)>,
    subscriptions: Vec<(&'static str, Box<Subscribe<M>>)>,
    /// The messages of the handlers, in the order in which they were added.
    #[cfg(not(target_family = "wasm"))]
    messages: Vec<Messages>,
}

/// The full names of the messages that a handler takes and gives.
#[cfg(not(target_family = "wasm"))]
pub(crate) struct Messages {
    pub(crate) method: &'static str,
    pub(crate) request: String,
    /// `None`: not known.
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

    /// Sets the serialized `FileDescriptorSet` that has these methods: the `DESCRIPTOR_SET` of
    /// [`include_protobuf!`](crate::include_protobuf). A host serves them as gRPC from it.
    #[must_use]
    pub const fn descriptor_set(mut self, descriptor_set: &'static [u8]) -> Self {
        self.descriptor_set = descriptor_set;
        self
    }

    /// Adds a method that changes the state. `method` is `package.Service/Method`.
    ///
    /// # Panics
    ///
    /// If the method is there already.
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

    /// Adds a method that only reads: the handler cannot change the state.
    ///
    /// # Panics
    ///
    /// If the method is there already.
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

    /// Adds a server-streaming method. The handler says which topics it is about, and what comes first.
    ///
    /// # Panics
    ///
    /// If the method is there already.
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

    /// Notes the messages of a handler. Components do without.
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

    /// Begins the subscription that `call` names.
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

    /// Runs the command that `call` names.
    pub fn apply(&self, machine: &mut M, context: &Context, call: &Call) -> Result<Reply, Failure> {
        match find(&self.commands, &call.method) {
            Some(command) => command(machine, context, &call.request),
            None => Err(self.unknown(&call.method, find(&self.queries, &call.method).is_some())),
        }
    }

    /// Answers the query that `call` names.
    pub fn answer(&self, machine: &M, context: &Context, call: &Call) -> Result<Vec<u8>, Failure> {
        match find(&self.queries, &call.method) {
            Some(query) => query(machine, context, &call.request),
            None => Err(self.unknown(&call.method, find(&self.commands, &call.method).is_some())),
        }
    }

    /// What [`Self::descriptor_set`] set.
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
        // A host goes by the descriptor set, so only a raw caller or a proto that lacks
        // `idempotency_level` meets the first.
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

/// The router of `M`, made at its first use and kept. A generic function has no `static` of its own, so
/// the routers of all machines lie in one map; a component holds one machine. It is no part of the state.
pub(crate) fn of<M: Machine>() -> &'static Router<M> {
    type Kept = &'static (dyn Any + Send + Sync);
    static ROUTERS: RwLock<BTreeMap<TypeId, Kept>> = RwLock::new(BTreeMap::new());

    let machine = TypeId::of::<M>();
    let kept: Option<Kept> =
        ROUTERS.read().unwrap_or_else(PoisonError::into_inner).get(&machine).copied();
    if let Some(router) = kept.and_then(|kept| kept.downcast_ref()) {
        return router;
    }
    // Made outside the lock, as making it runs the machine's code. If another test's thread was
    // faster, two are alike.
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
    assert!(place.is_err(), "the method {method} is there twice");
    methods.insert(place.unwrap_or_else(|place| place), (method, handler));
}
