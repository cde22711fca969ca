//! A machine that takes the calls of the key-value store and does nothing.
//!
//! `cargo xtask bench` runs it beside the store: no machine that really keeps what it is given, in
//! WebAssembly or natively, can make a whole node faster than this one.

use conclave_sdk::{Call, Context, Failure, Machine, Reply};

#[allow(dead_code, unreachable_pub, reason = "only the descriptor set is used")]
mod pb {
    conclave_sdk::include_protobuf!("kv.v1");
}

/// There is no state.
#[derive(Default)]
pub struct Still;

impl Machine for Still {
    const NAME: &'static str = "still";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = 1;

    fn descriptor_set() -> &'static [u8] {
        pb::DESCRIPTOR_SET
    }

    fn apply(&mut self, _: &Context, _: &Call) -> Result<Reply, Failure> {
        Ok(Reply::default())
    }

    fn query(&self, _: &Context, _: &Call) -> Result<Vec<u8>, Failure> {
        Ok(Vec::new())
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn load(_: u32, _: &[u8]) -> Result<Self, Failure> {
        Ok(Self)
    }
}

conclave_sdk::export!(Still);
