//! Goal: the program runs a cluster in its own process, and its counter persists across runs.
//! Method: run the program twice with the same directory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use std::{net::TcpListener, path::Path, process::Command};

/// Returns free ports, below the range that the kernel uses for outgoing connections.
fn port_base() -> u16 {
    let ports = |base| (0..3).flat_map(move |kind| (1..=3).map(move |id| base + kind * 100 + id));
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = 20_000 + (std::process::id() % 20) as u16 * 400;
    (first..31_000).step_by(400).find(|&base| ports(base).all(free)).expect("nine free ports")
}

fn run(dir: &Path, port_base: u16) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_embedded"));
    let output = program.arg(dir).arg(port_base.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_counts_and_goes_on_counting_when_it_runs_again() {
    let (dir, port_base) = (tempfile::tempdir().unwrap(), port_base());
    let first = run(dir.path(), port_base);
    assert!(first.contains("the count was 0\n"), "{first}");
    assert!(first.contains("with one node stopped the count is 1\n"), "{first}");
    let second = run(dir.path(), port_base);
    assert!(second.contains("the count was 1\n"), "{second}");
    assert!(second.contains("with one node stopped the count is 2\n"), "{second}");
    assert!(second.ends_with("all nodes have stopped\n"), "{second}");
}
