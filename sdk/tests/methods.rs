//! Goal: a state machine with a router dispatches by it, and the conformance tests find a router
//! that does not match the descriptor set.
//! Method: state machines that differ only in their routers, and the expected report for each.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use std::{marker::PhantomData, panic::catch_unwind, sync::LazyLock};

use conclave_sdk::{
    Call, Code, Context, Failure, Machine, Reply, Router,
    prost::{Message, Name},
    testing::check_methods,
};

/// A `FileDescriptorSet` by hand: package `t`, service `S`, with the command `Do` and the query `Ask`
/// (`idempotency_level`, field 34, is 1).
const DESCRIPTOR_SET: &[u8] = b"\x0a\x1a\x12\x01t\x32\x15\x0a\x01S\x12\x04\x0a\x02Do\
    \x12\x0a\x0a\x03Ask\x22\x03\x90\x02\x01";

trait Methods: 'static {
    fn methods(router: Router<Routed<Self>>) -> Router<Routed<Self>>
    where
        Self: Sized;
}

struct Routed<M>(PhantomData<M>);

impl<M> Default for Routed<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Methods> Machine for Routed<M> {
    const NAME: &'static str = "routed";
    const VERSION: &'static str = "1.0.0";
    const STATE_VERSION: u32 = 1;

    fn router() -> Router<Self> {
        M::methods(Router::new().descriptor_set(DESCRIPTOR_SET))
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn load(_: u32, _: &[u8]) -> Result<Self, Failure> {
        Ok(Self::default())
    }
}

fn command<M>(_: &mut Routed<M>, _: &Context, (): ()) -> Result<(), Failure> {
    Ok(())
}

fn query<M>(_: &Routed<M>, _: &Context, (): ()) -> Result<(), Failure> {
    Ok(())
}

macro_rules! methods {
    ($name:ident, |$router:ident| $with:expr) => {
        struct $name;
        impl Methods for $name {
            fn methods($router: Router<Routed<Self>>) -> Router<Routed<Self>> {
                $with
            }
        }
    };
}

methods!(Right, |router| router.command("t.S/Do", command).query("t.S/Ask", query));
methods!(Forgotten, |router| router.command("t.S/Do", command));
methods!(Swapped, |router| router.command("t.S/Do", command).command("t.S/Ask", command));
methods!(Misspelt, |router| {
    router.command("t.S/Do", command).query("t.S/Ask", query).query("t.S/Aks", query)
});

/// The same with messages: `Do` takes a `Number` and returns a `Word`; `Ask` does the reverse.
static WITH_MESSAGES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    // The whole set is shorter than 128 bytes, so each length is one byte.
    let field = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2, bytes.len() as u8], bytes].concat();
    let method = |name: &[u8], takes: &[u8], gives: &[u8], more: &[u8]| {
        let method = [field(1, name), field(2, takes), field(3, gives), more.to_vec()].concat();
        field(2, &method)
    };
    let query = field(4, b"\x90\x02\x01");
    let methods = [
        method(b"Do", b".t.Number", b".t.Word", b""),
        method(b"Ask", b".t.Word", b".t.Number", &query),
    ];
    let service = [field(1, b"S"), methods.concat()].concat();
    field(1, &[field(2, b"t"), field(6, &service)].concat())
});

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(int64, tag = "1")]
    number: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Word {
    #[prost(string, tag = "2")]
    word: String,
}

impl Name for Number {
    const NAME: &'static str = "Number";
    const PACKAGE: &'static str = "t";
}

impl Name for Word {
    const NAME: &'static str = "Word";
    const PACKAGE: &'static str = "t";
}

fn takes<M, T, R: Default>(_: &mut Routed<M>, _: &Context, _: T) -> Result<R, Failure> {
    Ok(R::default())
}

fn asks<M, T, R: Default>(_: &Routed<M>, _: &Context, _: T) -> Result<R, Failure> {
    Ok(R::default())
}

methods!(RightMessages, |router| {
    let router = router.descriptor_set(&WITH_MESSAGES).command("t.S/Do", takes::<_, Number, Word>);
    router.query("t.S/Ask", asks::<_, Word, Number>)
});
methods!(BytesGiven, |router| {
    let router = router.descriptor_set(&WITH_MESSAGES).command("t.S/Do", takes::<_, Number, Reply>);
    router.query("t.S/Ask", asks::<_, Word, Number>)
});
methods!(OthersRequest, |router| {
    let router = router.descriptor_set(&WITH_MESSAGES).command("t.S/Do", takes::<_, Word, Reply>);
    router.query("t.S/Ask", asks::<_, Word, Number>)
});
methods!(OthersResponse, |router| {
    let router = router.descriptor_set(&WITH_MESSAGES).command("t.S/Do", takes::<_, Number, Word>);
    router.query("t.S/Ask", asks::<_, Word, Word>)
});

fn complaint<M: Methods>() -> Option<String> {
    let panic = catch_unwind(check_methods::<Routed<M>>).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
}

#[test]
fn a_router_that_fits_passes_and_answers() {
    assert_eq!(complaint::<Right>(), None);
    let mut machine = Routed::<Right>::default();
    let context = Context { index: 1, time_ms: 2, seed: 3, principal: String::new() };
    assert_eq!(Routed::<Right>::descriptor_set(), DESCRIPTOR_SET);
    assert!(machine.apply(&context, &Call::new("t.S/Do", [])).is_ok());
    assert!(machine.query(&context, &Call::new("t.S/Ask", [])).is_ok());
    let failure = machine.apply(&context, &Call::new("t.S/Ask", [])).unwrap_err();
    assert_eq!(failure.code, Code::Unimplemented);
}

#[test]
fn a_router_that_does_not_fit_is_caught_with_the_method_and_why() {
    assert_eq!(complaint::<Forgotten>().as_deref(), Some("t.S/Ask has no handler in the router"));
    let swapped = complaint::<Swapped>().unwrap();
    assert!(swapped.contains("t.S/Ask is a query"), "{swapped}");
    let misspelt = complaint::<Misspelt>().unwrap();
    assert!(misspelt.contains("no method t.S/Aks"), "{misspelt}");
}

#[test]
fn handlers_with_the_messages_of_their_methods_pass() {
    assert_eq!(complaint::<RightMessages>(), None);
    assert_eq!(complaint::<BytesGiven>(), None, "the response message of a `Reply` is unknown");
}

/// Protobuf decodes a word as a number without an error: each message skips the other's fields as unknown.
#[test]
fn the_handler_of_another_method_is_caught_with_both_messages() {
    let request = complaint::<OthersRequest>().unwrap();
    assert!(request.contains("t.S/Do takes t.Number"), "{request}");
    assert!(request.contains("its handler takes t.Word"), "{request}");
    let response = complaint::<OthersResponse>().unwrap();
    assert!(response.contains("t.S/Ask gives t.Number"), "{response}");
    assert!(response.contains("its handler gives t.Word"), "{response}");
}

/// Any native test finds the mistake, even without the conformance tests.
#[test]
#[should_panic(expected = "t.S/Do takes t.Number")]
fn the_first_call_compares_the_messages() {
    let context = Context { index: 1, time_ms: 2, seed: 3, principal: String::new() };
    let _ = Routed::<OthersRequest>::default().apply(&context, &Call::new("t.S/Do", []));
}
