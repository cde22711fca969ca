//! Fuzz targets: all decoders of bytes from outside, as functions of these bytes.
//!
//! A target must return for any input, and asserts its own promises. The unit test here runs each
//! target on its seeds, on the inputs in `host/fuzz/corpus`, and on thousands of mutations of both.
//! `cargo fuzz` in `host/fuzz` runs the targets without a time limit, guided by coverage. Add its
//! findings to the corpus.

use crate as cli;
use conclave::config;
use conclave_api as api;
use conclave_machine as machine;
use conclave_raft as raft;
use conclave_storage as storage;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The target's name, and the name of its directory in the corpus.
    pub name: &'static str,
    /// Runs the target on any bytes.
    pub run: fn(&[u8]),
    /// Returns valid inputs from which to start.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target {
        name: "request_shape",
        run: api::fuzz::request_shape,
        seeds: api::fuzz::request_shape_seeds,
    },
    Target {
        name: "peer_message",
        run: raft::network::fuzz::peer_message,
        seeds: raft::network::fuzz::peer_message_seeds,
    },
    Target {
        name: "snapshot_header",
        run: raft::fuzz::snapshot_header,
        seeds: raft::fuzz::snapshot_header_seeds,
    },
    Target {
        name: "log_block",
        run: storage::fuzz::log_block,
        seeds: storage::fuzz::log_block_seeds,
    },
    Target {
        name: "descriptor_set",
        run: machine::fuzz::descriptor_set,
        seeds: machine::fuzz::descriptor_set_seeds,
    },
    Target {
        name: "configuration",
        run: config::fuzz::configuration,
        seeds: config::fuzz::configuration_seeds,
    },
    Target {
        name: "json_import",
        run: cli::fuzz::json_import,
        seeds: cli::fuzz::json_import_seeds,
    },
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::{fs, panic::catch_unwind, path::Path};

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// Number of mutations per target. They are the same in each run, so that findings can
    /// be reproduced.
    const COUNT: u32 = 20_000;
    const BYTES_MAX: usize = 64 << 10;
    /// Values at the limits of integer encodings, where decoders often have off-by-one errors.
    const INTERESTING: [&[u8]; 8] = [
        &[0],
        &[0x7f],
        &[0xff],
        &[0xff; 4],
        &[0xff; 9],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
        b"\"{}[],:=\n",
    ];

    fn inputs(target: &Target) -> Vec<Vec<u8>> {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target.name);
        let mut inputs = (target.seeds)();
        assert!(!inputs.is_empty(), "{}", target.name);
        if let Ok(files) = fs::read_dir(corpus) {
            let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
            files.sort();
            inputs.extend(files.iter().map(|file| fs::read(file).unwrap()));
        }
        inputs
    }

    fn mutate(random: &mut StdRng, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = inputs[random.random_range(0..inputs.len())].clone();
        for _ in 0..random.random_range(1..8) {
            let at = random.random_range(0..=input.len());
            let to = random.random_range(at..=input.len().min(at + 32));
            match random.random_range(0..7) {
                0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
                1 if at < input.len() => input[at] = random.random(),
                2 => drop(input.drain(at..to)),
                3 => drop(input.splice(at..at, input[at..to].to_vec())),
                4 => {
                    let value = INTERESTING[random.random_range(0..INTERESTING.len())];
                    drop(input.splice(at..to, value.iter().copied()));
                }
                5 => {
                    let other = &inputs[random.random_range(0..inputs.len())];
                    let from = random.random_range(0..=other.len());
                    drop(input.splice(at..to, other[from..].iter().copied()));
                }
                _ => input.truncate(at),
            }
        }
        input.truncate(BYTES_MAX);
        input
    }

    #[test]
    fn targets_take_any_bytes() {
        for target in TARGETS {
            let inputs = inputs(&target);
            let run = |input: &[u8]| {
                if catch_unwind(|| (target.run)(input)).is_err() {
                    panic!("{} panics over {}", target.name, hex::encode(input));
                }
            };
            inputs.iter().for_each(|input| run(input));
            let mut random = StdRng::seed_from_u64(1);
            for _ in 0..COUNT {
                run(&mutate(&mut random, &inputs));
            }
        }
    }

    /// The corpus from which `cargo fuzz` starts contains the seeds.
    #[test]
    fn seeds_are_in_the_corpus() {
        for target in TARGETS {
            let corpus =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target.name);
            for (number, seed) in (target.seeds)().into_iter().enumerate() {
                let file = corpus.join(format!("seed-{number}"));
                if std::env::var_os("UPDATE_GOLDEN").is_some() {
                    fs::create_dir_all(&corpus).unwrap();
                    fs::write(&file, &seed).unwrap();
                }
                let kept = fs::read(&file).unwrap_or_default();
                assert_eq!(
                    kept,
                    seed,
                    "{} is stale: run this with UPDATE_GOLDEN=1",
                    file.display()
                );
            }
        }
    }
}
