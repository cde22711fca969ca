//! A state machine that misbehaves on request, for the host's tests of traps, limits and rollback.
//!
//! `proto/hostile/v1/hostile.proto` describes each method.

use std::{hint::black_box, num::NonZeroU32, sync::LazyLock};

use conclave_sdk::{Call, Context, Failure, Machine, Reply, Router};

mod pb {
    conclave_sdk::include_protobuf!("hostile.v1");
}
pub use pb::{AddRequest, Nothing, Total};

/// The number that every hostile command adds before it misbehaves.
pub const MARK: i64 = 1000;

/// The length of the answer to `Huge`.
pub const HUGE_BYTES: usize = 200 << 20;

type Misbehave = fn() -> Result<Total, Failure>;

static ROUTER: LazyLock<Router<Hostile>> = LazyLock::new(|| {
    let router = Router::new()
        .command("hostile.v1.Hostile/Add", Hostile::add)
        .query("hostile.v1.Hostile/Get", |hostile: &Hostile, _, _: Nothing| Ok(hostile.total()))
        .query("hostile.v1.Hostile/QueryPanic", |_: &Hostile, _, _: Nothing| panics())
        .query("hostile.v1.Hostile/QueryLoop", |_: &Hostile, _, _: Nothing| loops());
    let hostile: [(&'static str, Misbehave); 8] = [
        ("hostile.v1.Hostile/Fail", || Err(Failure::failed_precondition("failed as asked"))),
        ("hostile.v1.Hostile/Panic", panics),
        ("hostile.v1.Hostile/DivideByZero", divides_by_zero),
        ("hostile.v1.Hostile/Loop", loops),
        ("hostile.v1.Hostile/Allocate", allocates),
        ("hostile.v1.Hostile/Recurse", || Ok(Total { total: recurses(black_box(1)) })),
        ("hostile.v1.Hostile/RecurseWide", || Ok(Total { total: recurses_wide(black_box(1)) })),
        ("hostile.v1.Hostile/Chatter", chatters),
    ];
    let router = hostile.into_iter().fold(router, |router, (method, misbehave)| {
        router.command(method, move |hostile: &mut Hostile, _, _: Nothing| {
            hostile.total += MARK;
            misbehave()
        })
    });
    let router =
        router.command("hostile.v1.Hostile/Wake", |hostile: &mut Hostile, context, _: Nothing| {
            hostile.wake_at_ms = Some(context.time_ms);
            Ok(Total::default())
        });
    router.command("hostile.v1.Hostile/Huge", |hostile: &mut Hostile, _, _: Nothing| {
        hostile.total += MARK;
        Ok(Reply::new(vec![0; HUGE_BYTES]))
    })
});

/// The state: a number, and the wake-up time. `Wake` sets that time permanently, because each tick panics.
#[derive(Default)]
pub struct Hostile {
    total: i64,
    wake_at_ms: Option<u64>,
}

impl Hostile {
    fn total(&self) -> Total {
        Total { total: self.total }
    }

    fn add(&mut self, _: &Context, request: AddRequest) -> Result<Total, Failure> {
        self.total = self.total.wrapping_add(request.n);
        Ok(self.total())
    }
}

#[allow(clippy::panic, reason = "the point of the method")]
fn panics() -> Result<Total, Failure> {
    panic!("panicked as asked");
}

fn loops() -> Result<Total, Failure> {
    loop {
        black_box(());
    }
}

/// Divides by zero in wasm. Rust checks a divisor and panics before the instruction can trap,
/// unless the type guarantees that the divisor is not zero.
#[allow(unsafe_code, reason = "only a false guarantee lets the instruction itself trap")]
fn divides_by_zero() -> Result<Total, Failure> {
    // SAFETY: the guarantee is false on purpose. The zero is hidden from the optimizer, and wasm
    // defines that the instruction traps on a zero divisor.
    let divisor = unsafe { NonZeroU32::new_unchecked(black_box(0)) };
    Ok(Total { total: i64::from(black_box(1) / divisor) })
}

fn allocates() -> Result<Total, Failure> {
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    loop {
        hoard.push(black_box(vec![1; 1 << 20]));
    }
}

/// Uses small frames, so that the host's limit of the call stack is reached first. The work after
/// the call prevents a conversion to a loop.
#[allow(unconditional_recursion, reason = "the point of the method")]
fn recurses(depth: i64) -> i64 {
    recurses(black_box(depth + 1)) ^ depth
}

/// Uses one KiB of the guest's own stack per call, so that the end of that stack, in linear memory,
/// is reached first.
#[allow(unconditional_recursion, reason = "the point of the method")]
fn recurses_wide(depth: i64) -> i64 {
    let frame = black_box([depth; 128]);
    recurses_wide(black_box(depth + 1)) ^ frame[(depth & 127) as usize]
}

fn chatters() -> Result<Total, Failure> {
    for line in 0..100_000 {
        conclave_sdk::log::info(&format!("line {line}"));
    }
    conclave_sdk::log::info(&"x".repeat(1 << 20));
    Ok(Total::default())
}

impl Machine for Hostile {
    const NAME: &'static str = "hostile";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = 1;

    fn descriptor_set() -> &'static [u8] {
        pb::DESCRIPTOR_SET
    }

    fn apply(&mut self, context: &Context, call: &Call) -> Result<Reply, Failure> {
        ROUTER.apply(self, context, call)
    }

    fn wake_at(&self) -> Option<u64> {
        self.wake_at_ms
    }

    fn tick(&mut self, _: &Context) -> Reply {
        self.total += MARK;
        panics().map_or_else(|_| Reply::default(), |total| Reply::of(&total))
    }

    fn query(&self, context: &Context, call: &Call) -> Result<Vec<u8>, Failure> {
        ROUTER.answer(self, context, call)
    }

    fn save(&self) -> Vec<u8> {
        let mut bytes = self.total.to_be_bytes().to_vec();
        bytes.extend(self.wake_at_ms.map(u64::to_be_bytes).into_iter().flatten());
        bytes
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        let broken = || Failure::invalid_argument("a snapshot is eight bytes, or sixteen");
        let (total, rest) = bytes.split_first_chunk().ok_or_else(broken)?;
        let wake_at_ms = match rest {
            [] => None,
            _ => Some(u64::from_be_bytes(rest.try_into().map_err(|_| broken())?)),
        };
        Ok(Self { total: i64::from_be_bytes(*total), wake_at_ms })
    }
}

conclave_sdk::export!(Hostile);
