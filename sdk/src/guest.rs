//! The adapter between the generated bindings and a [`Machine`].
//!
//! A component holds one state machine. A generic function cannot have a static of its own. The
//! state therefore lives in a thread-local of the crate that calls [`export!`](crate::export), and
//! [`Slot`] gives this module access to it. A guest has one thread, and the host never makes two
//! calls into it at the same time.

use std::{cell::RefCell, marker::PhantomData};

use crate::{
    Call, Context, Description, Failure, Machine, Subscription,
    bindings::{conclave::fsm::types as wit, exports::conclave::fsm::fsm},
    log,
    snapshot::{CHUNK_BYTES_MAX, RestoreWriter, SnapshotReader},
};

/// Access to the thread-local that holds a component's state machine. Implemented only by
/// [`export!`](crate::export).
pub trait Slot: 'static {
    /// The type of the state machine.
    type Machine: Machine;

    /// Calls `body` with the state machine.
    fn with<R>(body: impl FnOnce(&RefCell<Self::Machine>) -> R) -> R;
}

/// Creates the initial state of a component. From this call on, panics are reported to the host's log.
pub fn start<M: Machine>() -> RefCell<M> {
    std::panic::set_hook(Box::new(|info| log::error(&info.to_string())));
    RefCell::new(M::default())
}

/// The exports of a component whose state machine is stored in `S`.
pub struct Component<S>(PhantomData<S>);

impl<S: Slot> fsm::Guest for Component<S> {
    type SnapshotReader = Reader;
    type RestoreWriter = Writer<S>;

    fn describe() -> Description {
        Description {
            name: S::Machine::NAME.to_owned(),
            version: S::Machine::VERSION.to_owned(),
            state_version: S::Machine::STATE_VERSION,
            restores: S::Machine::RESTORES.to_vec(),
            descriptor_set: S::Machine::descriptor_set().to_vec(),
        }
    }

    fn apply(context: Context, call: Call) -> Result<wit::Reply, Failure> {
        S::with(|machine| {
            let mut machine = machine.borrow_mut();
            let reply = machine.apply(&context, &call)?;
            Ok(reply.waking_at(machine.wake_at()))
        })
    }

    fn tick(context: Context) -> wit::Reply {
        S::with(|machine| {
            let mut machine = machine.borrow_mut();
            let reply = machine.tick(&context);
            reply.waking_at(machine.wake_at())
        })
    }

    fn query(context: Context, call: Call) -> Result<Vec<u8>, Failure> {
        S::with(|machine| machine.borrow().query(&context, &call))
    }

    fn subscribe(context: Context, call: Call) -> Result<Subscription, Failure> {
        S::with(|machine| machine.borrow().subscribe(&context, &call))
    }

    fn snapshot() -> fsm::SnapshotReader {
        let reader = S::with(|machine| machine.borrow().snapshot());
        fsm::SnapshotReader::new(Reader(RefCell::new(reader)))
    }

    fn restore(state_version: u32) -> Result<fsm::RestoreWriter, Failure> {
        if !S::Machine::RESTORES.contains(&state_version) {
            return Err(Failure::invalid_argument(format!(
                "{} {} cannot restore state version {state_version}, only {:?}",
                S::Machine::NAME,
                S::Machine::VERSION,
                S::Machine::RESTORES
            )));
        }
        // A fresh instance is restored before any other call. Initialize the slot, so that a panic
        // during the restore is reported as well.
        S::with(|_| ());
        let writer = S::Machine::restore(state_version)?;
        Ok(fsm::RestoreWriter::new(Writer::<S>(RefCell::new(Some(writer)))))
    }
}

/// The resource `snapshot-reader`.
pub struct Reader(RefCell<Box<dyn SnapshotReader>>);

impl fsm::GuestSnapshotReader for Reader {
    fn read(&self, max_bytes: u32) -> Vec<u8> {
        // The host never requests more than the contract's bound. It never requests zero bytes
        // either, because an empty chunk means the end.
        let max_bytes = (max_bytes as usize).clamp(1, CHUNK_BYTES_MAX);
        let chunk = self.0.borrow_mut().read(max_bytes);
        assert!(
            chunk.len() <= max_bytes,
            "the snapshot reader returned {} bytes, more than the requested {max_bytes}",
            chunk.len()
        );
        chunk
    }
}

/// The resource `restore-writer`. Empty after `finish`.
pub struct Writer<S: Slot>(RefCell<Option<Box<dyn RestoreWriter<S::Machine>>>>);

impl<S: Slot> fsm::GuestRestoreWriter for Writer<S> {
    fn write(&self, chunk: Vec<u8>) -> Result<(), Failure> {
        match self.0.borrow_mut().as_mut() {
            Some(writer) => writer.write(&chunk),
            None => Err(finished()),
        }
    }

    fn finish(&self) -> Result<(), Failure> {
        let writer = self.0.borrow_mut().take().ok_or_else(finished)?;
        let restored = writer.finish()?;
        S::with(|machine| machine.replace(restored));
        Ok(())
    }
}

fn finished() -> Failure {
    Failure::failed_precondition("this restore is finished; start a new restore")
}

/// Exports a [`Machine`](crate::Machine) as this crate's component.
///
/// Expands to nothing in a native build, where tests use the state machine as an ordinary type.
#[macro_export]
macro_rules! export {
    ($machine:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            ::std::thread_local! {
                static STATE: ::std::cell::RefCell<$machine> = $crate::__private::start();
            }

            struct Slot;

            impl $crate::__private::Slot for Slot {
                type Machine = $machine;

                fn with<R>(body: impl FnOnce(&::std::cell::RefCell<$machine>) -> R) -> R {
                    STATE.with(body)
                }
            }

            type Component = $crate::__private::Component<Slot>;

            $crate::__private::bindings::export_bindings!(
                Component with_types_in $crate::__private::bindings
            );
        };
    };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

    use super::{fsm::Guest as _, *};
    use crate::Reply;

    /// An alarm clock: `Set` sets it, `Look` changes nothing, any other method fails, and a tick
    /// clears it.
    #[derive(Default)]
    struct Alarm(Option<u64>);

    impl Machine for Alarm {
        const NAME: &'static str = "alarm";
        const VERSION: &'static str = "1.0.0";
        const STATE_VERSION: u32 = 1;

        fn apply(&mut self, context: &Context, call: &Call) -> Result<Reply, Failure> {
            match call.method.as_str() {
                "Set" => self.0 = Some(context.time_ms + 10),
                "Look" => {}
                _ => return Err(Failure::failed_precondition("as asked")),
            }
            Ok(Reply::new(*b"done"))
        }

        fn tick(&mut self, _: &Context) -> Reply {
            self.0 = None;
            Reply::default()
        }

        fn wake_at(&self) -> Option<u64> {
            self.0
        }

        fn save(&self) -> Vec<u8> {
            Vec::new()
        }

        fn load(_: u32, _: &[u8]) -> Result<Self, Failure> {
            Ok(Self::default())
        }
    }

    thread_local! {
        static STATE: RefCell<Alarm> = const { RefCell::new(Alarm(None)) };
    }

    struct Kept;

    impl Slot for Kept {
        type Machine = Alarm;

        fn with<R>(body: impl FnOnce(&RefCell<Alarm>) -> R) -> R {
            STATE.with(body)
        }
    }

    #[test]
    fn every_reply_has_the_wake_up_time_of_the_state() {
        let context = Context { index: 1, time_ms: 5, seed: 0, principal: String::new() };
        let apply = |method: &str| Component::<Kept>::apply(context.clone(), Call::new(method, []));
        assert_eq!(apply("Look").unwrap().wake_at_ms, None);
        let reply = apply("Set").unwrap();
        assert_eq!((&*reply.response, reply.wake_at_ms), (&b"done"[..], Some(15)));
        assert_eq!(apply("Look").unwrap().wake_at_ms, Some(15), "no handler repeats it");
        assert!(apply("Fail").is_err(), "a failure has no place for it: the time before stays");
        assert_eq!(Component::<Kept>::tick(context.clone()).wake_at_ms, None);
        assert_eq!(apply("Look").unwrap().wake_at_ms, None);
    }
}
