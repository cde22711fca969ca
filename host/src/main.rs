//! The binary: parse, run, exit.
use std::{env, process::ExitCode, thread};

use clap::Parser;
use conclave::cli::{Cli, Failed};
use tikv_jemallocator::Jemalloc;
use tokio::runtime;

/// Every call of a client allocates some dozens of small things on one thread and frees them on another.
/// With the system's allocator linearizable gets cost a fifth more, and a fresh idle node holds no less.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut runtime = runtime::Builder::new_multi_thread();
    // Half of the processors: a node's storage, head and reader have threads of their own, and on
    // few processors more workers cost each write and read a fifth of its time in waking each other.
    if env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let processors = thread::available_parallelism().map_or(2, usize::from);
        runtime.worker_threads((processors / 2).max(1));
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failed::local(format!("cannot start threads: {error}")).report(),
    };
    let code = runtime.block_on(cli.run());
    // What is still at work, such as a query without end, must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}
