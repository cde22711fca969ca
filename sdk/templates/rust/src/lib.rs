//! The state machine `my-machine`: named counters that any caller can add to.
//!
//! A complete example: state, methods, limits, snapshots. A state machine is a pure function of the log:
//! no clock, no randomness, no files. [`Context`] contains the time and the random seed of an entry.

use std::collections::BTreeMap;

use conclave_sdk::{Context, Failure, Machine, Router};
use prost::Message as _;

mod pb {
    conclave_sdk::include_protobuf!("my_machine.v1");
}
pub use pb::{AddRequest, AddResponse, GetRequest, GetResponse};

/// The longest name, in bytes. Everything that callers send needs a limit, because the state is in memory.
pub const NAME_BYTES_MAX: usize = 256;
/// The maximum number of names.
pub const NAMES_MAX: usize = 100_000;

/// The state. `Default` is the state before the first entry.
#[derive(Default)]
pub struct MyMachine {
    // Sorted by name, because the same counts must give the same snapshot bytes, regardless of
    // which came first. The order of a HashMap differs between processes.
    counts: BTreeMap<String, i64>,
}

impl MyMachine {
    /// Checks everything before it changes anything: changes made before a failure are kept.
    fn add(&mut self, _: &Context, request: AddRequest) -> Result<AddResponse, Failure> {
        let AddRequest { name, amount } = request;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Failure::invalid_argument(format!(
                "a name has 1 to {NAME_BYTES_MAX} bytes, not {}",
                name.len()
            )));
        }
        let before = self.counts.get(&name).copied();
        if before.is_none() && self.counts.len() >= NAMES_MAX {
            return Err(Failure::resource_exhausted(format!("there are {NAMES_MAX} names")));
        }
        let Some(count) = before.unwrap_or(0).checked_add(amount) else {
            return Err(Failure::out_of_range("the count would not fit 64 bits"));
        };
        self.counts.insert(name, count);
        Ok(AddResponse { count })
    }

    fn get(&self, _: &Context, request: GetRequest) -> Result<GetResponse, Failure> {
        let count = self.counts.get(&request.name).copied();
        let count = count.ok_or_else(|| Failure::not_found("nothing was added to this name"))?;
        Ok(GetResponse { count })
    }
}

impl Machine for MyMachine {
    const NAME: &'static str = "my-machine";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    // Raise this when the snapshot format changes, and keep the old versions in RESTORES.
    const STATE_VERSION: u32 = 1;

    fn router() -> Router<Self> {
        Router::new()
            .descriptor_set(pb::DESCRIPTOR_SET)
            .command("my_machine.v1.MyMachine/Add", Self::add)
            .query("my_machine.v1.MyMachine/Get", Self::get)
    }

    fn save(&self) -> Vec<u8> {
        pb::Snapshot { counts: self.counts.clone() }.encode_to_vec()
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        let snapshot = pb::Snapshot::decode(bytes)
            .map_err(|error| Failure::invalid_argument(format!("not a snapshot: {error}")))?;
        Ok(Self { counts: snapshot.counts })
    }
}

conclave_sdk::export!(MyMachine);
