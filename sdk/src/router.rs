//! From method names to handlers of protobuf messages.

use prost::Message;

use crate::{Call, Context, Failure, Reply};

type Command<M> = dyn Fn(&mut M, &Context, &[u8]) -> Result<Reply, Failure> + Send + Sync;
type Query<M> = dyn Fn(&M, &Context, &[u8]) -> Result<Vec<u8>, Failure> + Send + Sync;

/// What a command's handler may return: a response message, or a whole [`Reply`] if it has events or
/// wants to be woken.
pub trait Respond {
    /// The reply.
    fn respond(self) -> Reply;
}

impl<T: Message> Respond for T {
    fn respond(self) -> Reply {
        Reply::of(&self)
    }
}

impl Respond for Reply {
    fn respond(self) -> Reply {
        self
    }
}

/// The methods of a machine `M`.
///
/// Keep it in a `static` [`LazyLock`](std::sync::LazyLock): it is built once and is no part of the
/// state. A request that does not decode is answered `INVALID_ARGUMENT`, a method that is not here
/// `UNIMPLEMENTED`.
pub struct Router<M> {
    // Sorted by length, then bytes: most comparisons end at the length. A lookup allocates nothing.
    commands: Vec<(&'static str, Box<Command<M>>)>,
    queries: Vec<(&'static str, Box<Query<M>>)>,
}

impl<M: 'static> Router<M> {
    /// A router without methods.
    pub const fn new() -> Self {
        Self { commands: Vec::new(), queries: Vec::new() }
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
        Request: Message + Default,
        Response: Respond,
    {
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
        Request: Message + Default,
        Response: Message,
    {
        let query = move |machine: &M, context: &Context, bytes: &[u8]| {
            Ok(handler(machine, context, decode(method, bytes)?)?.encode_to_vec())
        };
        insert(&mut self.queries, method, Box::new(query));
        self
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

    fn unknown(&self, method: &str, other_kind: bool) -> Failure {
        // A host goes by the descriptor set, so only a raw caller or a proto that lacks
        // `idempotency_level` meets the first.
        Failure::unimplemented(if other_kind && find(&self.queries, method).is_some() {
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

fn decode<T: Message + Default>(method: &str, bytes: &[u8]) -> Result<T, Failure> {
    T::decode(bytes).map_err(|error| {
        Failure::invalid_argument(format!("the request of {method} does not decode: {error}"))
    })
}

fn position<H: ?Sized>(methods: &[(&'static str, Box<H>)], method: &str) -> Result<usize, usize> {
    methods.binary_search_by(|(name, _)| (name.len(), *name).cmp(&(method.len(), method)))
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
