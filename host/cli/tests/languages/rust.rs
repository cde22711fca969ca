//! Rust for wasm32-wasip2: `host/testing/machines/wasip2`.
//!
//! With the target from rustup, the compiler makes a component itself. Debian has the standard
//! library's source and a C library to link it with, but not the linker that makes components.
//! There `conclave build` adapts the core module.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Missing, assert_is_a_function_of_the_log, conclave, copy, root, run, scratch, skip, toolchains,
};

const TARGET: &str = "wasm32-wasip2";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_in_rust_with_wasi_is_a_function_of_the_log() {
    match build() {
        Ok(component) => assert_is_a_function_of_the_log(&component).await,
        Err(why) => skip("a machine in Rust for wasm32-wasip2", &why),
    }
}

fn build() -> Result<PathBuf, Missing> {
    let project = scratch().join("wasip2");
    copy(&root().join("host/testing/machines/wasip2"), &project);
    let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    let sdk = root().join("sdk").display().to_string();
    fs::write(project.join("Cargo.toml"), manifest.replace("../../../../sdk", &sdk)).unwrap();
    // The tested dependency versions, which are already downloaded.
    fs::copy(root().join("Cargo.lock"), project.join("Cargo.lock")).unwrap();

    let mut rustc = Command::new("rustc");
    let sysroot = run(rustc.args(["--print", "sysroot"]));
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    match sysroot.join("lib/rustlib").join(TARGET).is_dir() {
        true => Ok(compile(cargo(), &project)),
        false => by_debian(&project),
    }
}

/// Compiles the project and returns the path of the result.
fn compile(mut cargo: Command, project: &Path) -> PathBuf {
    let target = scratch().join("wasip2-target");
    cargo.args(["build", "--target", TARGET, "--target-dir"]).arg(&target).current_dir(project);
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_INCREMENTAL"] {
        cargo.env_remove(name);
    }
    run(&mut cargo);
    target.join(TARGET).join("debug/raffle.wasm")
}

fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    // `cargo xtask test` sets it for this program alone.
    cargo.env_remove("RUSTC_BOOTSTRAP");
    cargo
}

fn by_debian(project: &Path) -> Result<PathBuf, Missing> {
    let packages = [
        "rustc-web",
        "cargo-web",
        "libstd-rust-web-1.96",
        "libstd-rust-web-dev",
        "rust-web-src",
        "libllvm22",
        "libgit2-1.5",
        "libhttp-parser2.9",
        "libmbedcrypto7",
        "libmbedx509-1",
        "libmbedtls14",
        "lld-22",
        "wasi-libc",
    ];
    let wanted = ["./usr/bin", "./usr/lib", "./usr/src/rustc-*/library"];
    let debian = toolchains::debian("debian", &packages, &wanted)?.join("usr");
    let library = debian.join("lib/wasm32-wasi");
    let mut cargo = Command::new(debian.join("bin/cargo"));
    cargo
        .env("RUSTC", debian.join("bin/rustc"))
        .env("RUSTC_BOOTSTRAP", "1")
        .arg("-Zbuild-std=std,panic_abort");
    cargo.env("LD_LIBRARY_PATH", debian.join("lib/x86_64-linux-gnu"));
    cargo.env("CARGO_TARGET_WASM32_WASIP2_LINKER", debian.join("bin/wasm-ld-22"));
    let flags = format!(
        "-Lnative={0} -Clink-self-contained=no -Clink-arg={0}/crt1-reactor.o",
        library.display()
    );
    cargo.env("CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS", flags);
    let module = compile(cargo, project);
    let component = project.join("raffle.wasm");
    run(conclave().arg("build").arg(&module).arg("--output").arg(&component));
    Ok(component)
}
