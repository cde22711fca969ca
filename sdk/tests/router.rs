//! Goal: a method name selects its handler, and every other call fails with the reason.

use conclave_sdk::{
    Call, Code, Context, Failure, Reply, Router, Subscription,
    prost::{Message, Name},
};

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(int64, tag = "1")]
    number: i64,
}

impl Name for Number {
    const NAME: &'static str = "Number";
    const PACKAGE: &'static str = "n.v1";
}

fn router() -> Router<i64> {
    Router::new()
        .command("n.v1.N/Add", |sum: &mut i64, _: &Context, request: Number| {
            *sum += request.number;
            Ok(Number { number: *sum })
        })
        .command("n.v1.N/Notify", |sum: &mut i64, _: &Context, _: Number| {
            Ok(Reply::of(&Number { number: *sum }).event("n", "happened"))
        })
        .query("n.v1.N/Get", |sum: &i64, _: &Context, _: Number| Ok(Number { number: *sum }))
        .query("n.v1.N/Fail", |_: &i64, _: &Context, _: Number| {
            Err::<Number, _>(Failure::not_found("nothing there"))
        })
        .subscription("n.v1.N/Watch", |sum: &i64, _: &Context, request: Number| {
            let now = Number { number: *sum };
            Ok(Subscription::topic(request.number.to_be_bytes()).initial(&now))
        })
}

fn context() -> Context {
    Context { index: 1, time_ms: 2, seed: 3, principal: "ann".into() }
}

#[test]
fn commands_and_queries_find_their_handlers() {
    let (router, mut sum) = (router(), 40);
    let reply = router.apply(&mut sum, &context(), &Call::of("n.v1.N/Add", &Number { number: 2 }));
    assert_eq!(Number::decode(&*reply.unwrap().response).unwrap().number, 42);

    let reply = router.apply(&mut sum, &context(), &Call::new("n.v1.N/Notify", [])).unwrap();
    assert_eq!(reply.events.len(), 1);

    let answer = router.answer(&sum, &context(), &Call::new("n.v1.N/Get", [])).unwrap();
    assert_eq!(Number::decode(&*answer).unwrap().number, 42);

    let call = Call::of("n.v1.N/Watch", &Number { number: 7 });
    let subscription = router.subscribe(&sum, &context(), &call).unwrap();
    assert_eq!(subscription.from_topic, 7_i64.to_be_bytes());
    assert_eq!(Number::decode(&*subscription.initial[0]).unwrap().number, 42);
    let failure = router.subscribe(&sum, &context(), &Call::new("n.v1.N/Get", [])).unwrap_err();
    assert_eq!(failure.code, Code::Unimplemented);
}

#[test]
fn what_does_not_lead_to_a_handler_says_why() {
    let (router, mut sum) = (router(), 0);
    for (call, query, code, says) in [
        (Call::new("n.v1.N/Gone", []), false, Code::Unimplemented, "no method n.v1.N/Gone"),
        (Call::new("n.v1.N/Gone", []), true, Code::Unimplemented, "no method n.v1.N/Gone"),
        (Call::new("n.v1.N/Get", []), false, Code::Unimplemented, "n.v1.N/Get is a query"),
        (Call::new("n.v1.N/Add", []), true, Code::Unimplemented, "n.v1.N/Add is a command"),
        (
            Call::new("n.v1.N/Watch", []),
            true,
            Code::Unimplemented,
            "n.v1.N/Watch is a subscription",
        ),
        (
            Call::new("n.v1.N/Add", [0xff]),
            false,
            Code::InvalidArgument,
            "n.v1.N/Add does not decode",
        ),
        (Call::new("n.v1.N/Fail", []), true, Code::NotFound, "nothing there"),
    ] {
        let failure = if query {
            router.answer(&sum, &context(), &call).unwrap_err()
        } else {
            router.apply(&mut sum, &context(), &call).unwrap_err()
        };
        assert_eq!(failure.code, code, "{call:?}");
        assert!(failure.message.contains(says), "{says:?} is not in {:?}", failure.message);
    }
    assert_eq!(sum, 0);
}

#[test]
#[should_panic(expected = "n.v1.N/Get is registered twice")]
fn a_method_cannot_be_there_twice() {
    let _ = router()
        .query("n.v1.N/Get", |sum: &i64, _: &Context, _: Number| Ok(Number { number: *sum }));
}
