//! Between the generated bindings and a [`Machine`].
//!
//! A component holds one machine. The state lives in a thread-local of the crate that calls
//! [`export!`](crate::export), as a generic cannot have a static of its own; [`Slot`] is how this
//! module reaches it. A guest has one thread and the host never calls into it twice at a time.

use std::{cell::RefCell, marker::PhantomData};

use crate::{
    Call, Context, Description, Failure, Machine, Reply, Subscription,
    bindings::exports::conclave::fsm::fsm,
    log,
    snapshot::{CHUNK_BYTES_MAX, RestoreWriter, SnapshotReader},
};

/// Where a component keeps its machine. Implemented by [`export!`](crate::export) alone.
pub trait Slot: 'static {
    /// The machine that is kept.
    type Machine: Machine;

    /// Runs `body` with it.
    fn with<R>(body: impl FnOnce(&RefCell<Self::Machine>) -> R) -> R;
}

/// The first state of a component. A panic is reported to the host's log from here on.
pub fn start<M: Machine>() -> RefCell<M> {
    std::panic::set_hook(Box::new(|info| log::error(&info.to_string())));
    RefCell::new(M::default())
}

/// The exports of a component whose machine is in `S`.
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

    fn apply(context: Context, call: Call) -> Result<Reply, Failure> {
        S::with(|machine| machine.borrow_mut().apply(&context, &call))
    }

    fn tick(context: Context) -> Reply {
        S::with(|machine| machine.borrow_mut().tick(&context))
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
        let writer = S::Machine::restore(state_version)?;
        Ok(fsm::RestoreWriter::new(Writer::<S>(RefCell::new(Some(writer)))))
    }
}

/// The resource `snapshot-reader`.
pub struct Reader(RefCell<Box<dyn SnapshotReader>>);

impl fsm::GuestSnapshotReader for Reader {
    fn read(&self, max_bytes: u32) -> Vec<u8> {
        // The host never asks for more than the contract's bound, nor for nothing, which would look
        // like the end.
        let max_bytes = (max_bytes as usize).clamp(1, CHUNK_BYTES_MAX);
        let chunk = self.0.borrow_mut().read(max_bytes);
        assert!(chunk.len() <= max_bytes, "{} bytes read for {max_bytes}", chunk.len());
        chunk
    }
}

/// The resource `restore-writer`. Empty once finished.
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
    Failure::failed_precondition("this restore is finished; begin another one")
}

/// Makes a crate the component of one [`Machine`](crate::Machine).
///
/// It does nothing in a native build, where the machine is an ordinary type to test.
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
