//! The `conclave` binary.
use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Each client call allocates dozens of small objects on one thread and frees them on another. With
/// the system's allocator, linearizable gets take a fifth longer, and a fresh idle node needs no
/// less memory.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    conclave_cli::main()
}
