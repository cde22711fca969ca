//! `wasi:random`: bytes that look random and are a function of the entry's seed.
//!
//! They are not secret: they can be computed from the cluster's id and the entry's index. So a
//! state machine must not make keys or tokens from them. Its callers have to send those.

use super::provide::{Context, Definitions, provide};
use crate::{entry_context::EntryContext, state::charge, trap::Refusal};
use conclave_types::TrapKind;

/// The maximum number of bytes per call. Runtimes request a few, to seed their own generator.
const BYTES_MAX: u64 = 1 << 20;
/// The fuel of a byte: a gigabyte takes one and a half seconds.
const FUEL_PER_BYTE: u64 = 2;

/// The seed of hash tables. The digits of pi are an arbitrary choice.
const HASH_SEED: (u64, u64) = (0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);

pub(super) fn define(
    to: &mut Definitions<'_>,
    interface: &str,
    name: &str,
) -> wasmtime::Result<bool> {
    match (interface, name) {
        ("random", "get-random-bytes") | ("insecure", "get-insecure-random-bytes") => {
            provide(to, name, |context, (count,): (u64,)| Ok((bytes(context, count)?,)))?;
        }
        ("random", "get-random-u64") | ("insecure", "get-insecure-random-u64") => {
            provide(to, name, |context, ()| {
                let mut bytes = [0; 8];
                fill(context, &mut bytes);
                Ok((u64::from_le_bytes(bytes),))
            })?;
        }
        // A runtime requests this once, in whichever call comes first. A function of the entry
        // would differ between instances that began at different entries.
        ("insecure-seed", "insecure-seed") => provide(to, name, |_, ()| Ok((HASH_SEED,)))?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn bytes(context: &mut Context<'_>, count: u64) -> wasmtime::Result<Vec<u8>> {
    if count > BYTES_MAX {
        let message =
            format!("it requested {count} random bytes at once; the limit is {BYTES_MAX}");
        return Err(Refusal { kind: TrapKind::Invalid, message }.into());
    }
    charge(context, FUEL_PER_BYTE * count)?;
    let mut bytes = vec![0; count as usize];
    fill(context, &mut bytes);
    Ok(bytes)
}

fn fill(context: &mut Context<'_>, bytes: &mut [u8]) {
    let wasi = &mut context.data_mut().wasi;
    let context = wasi.context;
    wasi.random.get_or_insert_with(|| stream(context)).fill(bytes);
}

/// Returns BLAKE3's output over the little-endian seed, keyed by a name. Never change this:
/// replays depend on it.
fn stream(context: EntryContext) -> blake3::OutputReader {
    let mut hasher = blake3::Hasher::new_derive_key("conclave 2026-11-21 wasi:random");
    hasher.update(&context.seed.to_le_bytes());
    hasher.finalize_xof()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_a_function_of_the_seed_and_does_not_change_between_versions() {
        let first = |seed| {
            let mut bytes = [0; 8];
            stream(EntryContext { seed, ..EntryContext::STILL }).fill(&mut bytes);
            u64::from_le_bytes(bytes)
        };
        assert_eq!(first(5), GOLDEN);
        assert_ne!(first(6), GOLDEN);
        let later = EntryContext { index: 9, time_ms: 9, seed: 5 };
        let mut bytes = [0; 8];
        stream(later).fill(&mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), GOLDEN, "of nothing else");
    }

    /// The expected bytes, recorded once.
    const GOLDEN: u64 = 6_205_759_581_853_824_383;
}
