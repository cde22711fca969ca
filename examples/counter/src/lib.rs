//! The smallest state machine: one number that any caller can add to.

use conclave_sdk::{Context, Failure, Machine, Router};

mod pb {
    conclave_sdk::include_protobuf!("counter.v1");
}
pub use pb::{AddRequest, Count, GetRequest};

/// The state: one number.
#[derive(Default)]
pub struct Counter {
    count: i64,
}

impl Counter {
    fn add(&mut self, _: &Context, request: AddRequest) -> Result<Count, Failure> {
        let sum = self.count.checked_add(request.amount);
        self.count = sum.ok_or_else(|| Failure::out_of_range("the sum does not fit 64 bits"))?;
        Ok(Count { count: self.count })
    }

    fn get(&self, _: &Context, _: GetRequest) -> Result<Count, Failure> {
        Ok(Count { count: self.count })
    }
}

impl Machine for Counter {
    const NAME: &'static str = "counter";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = 1;

    fn router() -> Router<Self> {
        Router::new()
            .descriptor_set(pb::DESCRIPTOR_SET)
            .command("counter.v1.Counter/Add", Self::add)
            .query("counter.v1.Counter/Get", Self::get)
    }

    fn save(&self) -> Vec<u8> {
        self.count.to_be_bytes().to_vec()
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        let bytes = bytes.try_into();
        let bytes = bytes.map_err(|_| Failure::invalid_argument("a snapshot is eight bytes"))?;
        Ok(Self { count: i64::from_be_bytes(bytes) })
    }
}

conclave_sdk::export!(Counter);
