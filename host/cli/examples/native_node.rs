//! `conclave` with a key-value store that is compiled into the node instead of a component. `cargo
//! xtask bench` compares WebAssembly nodes with it, end to end.
//!
//! It is of no use otherwise: writes are in the log, but in no snapshot.
//!
//! `cargo run --release --workspace --example native_node --features conclave-cli/bench -- dev
//! --data-dir DIR`

use std::process::ExitCode;

use bytes::Bytes;
use conclave_cli as cli;
use conclave_machine::{
    EntryContext,
    bench::{Native, run_natively},
};
use conclave_sdk::{Context, Machine};
use conclave_types::{Call, Code, Event, Failure, Outcome, Reply};
use guest_kv::Kv;
use tikv_jemallocator::Jemalloc;

/// The same allocator as in the binary.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

struct Store(Kv);

/// Converts the host's types to those of the SDK.
fn guest(context: EntryContext, call: &Call) -> (Context, conclave_sdk::Call) {
    let EntryContext { index, time_ms, seed } = context;
    let context = Context { index, time_ms, seed, principal: call.principal.to_string() };
    (context, conclave_sdk::Call::new(&*call.method, &*call.request))
}

/// Converts a failure. The measured load causes none, so its code may be lost.
fn failure(failure: &conclave_sdk::Failure) -> Failure {
    Failure { code: Code::Internal, message: format!("{failure:?}") }
}

impl Native for Store {
    fn apply(&mut self, context: EntryContext, call: &Call) -> Outcome {
        let (context, call) = guest(context, call);
        match self.0.apply(&context, &call) {
            Ok(reply) => {
                let event = |event: conclave_sdk::Event| Event {
                    topic: Bytes::from(event.topic),
                    payload: Bytes::from(event.payload),
                };
                Outcome::Reply(Reply {
                    response: Bytes::from(reply.response),
                    events: reply.events.into_iter().map(event).collect(),
                    wake_at_ms: self.0.wake_at(),
                })
            }
            Err(error) => Outcome::Failure(failure(&error)),
        }
    }

    fn query(&mut self, context: EntryContext, call: &Call) -> Result<Bytes, Failure> {
        let (context, call) = guest(context, call);
        self.0.query(&context, &call).map(Bytes::from).map_err(|error| failure(&error))
    }
}

fn main() -> ExitCode {
    run_natively(|| Box::new(Store(Kv::default())));
    cli::main()
}
