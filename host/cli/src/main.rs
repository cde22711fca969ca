//! The binary.
use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Every call of a client allocates some dozens of small things on one thread and frees them on another.
/// With the system's allocator linearizable gets cost a fifth more, and a fresh idle node holds no less.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    conclave_cli::main()
}
