//! Goal: a crate that is not a state machine is rejected, and the error tells its author what to
//! change.
//! Method: real crates of a few lines, compiled by any available compiler for state machines
//! (`cargo xtask setup` installs one).

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::{fs, path::PathBuf};

use conclave_build::{MachineSpec, build_machine, wrap};

/// Builds a crate with this manifest and source, and returns the error.
fn refusal(name: &str, manifest: &str, source: &str) -> String {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(directory.join("src")).unwrap();
    let package =
        format!("[package]\nname = \"{name}\"\nedition = \"2024\"\n{manifest}\n[workspace]\n");
    fs::write(directory.join("Cargo.toml"), package).unwrap();
    fs::write(directory.join("src/lib.rs"), source).unwrap();
    let output = directory.join("machine.wasm");
    let spec = MachineSpec {
        manifest_dir: directory.clone(),
        target_dir: directory.join("target"),
        output,
    };
    let error = build_machine(&spec).unwrap_err();
    assert!(!spec.output.exists(), "a rejected component was written");
    format!("{error:#}")
}

const CDYLIB: &str = "[lib]\ncrate-type = [\"cdylib\"]";

#[test]
fn a_library_that_is_no_cdylib_says_so() {
    let said = refusal("plain", "", "");
    assert!(said.contains("crate-type = [\"cdylib\", \"rlib\"]"), "{said}");
}

#[test]
fn imports_that_no_host_grants_are_listed() {
    let source = r#"
        unsafe extern "C" { fn clock() -> u64; fn random() -> u64; }
        #[unsafe(no_mangle)] pub extern "C" fn sum() -> u64 { unsafe { clock() + random() } }
    "#;
    let said = refusal("importing", CDYLIB, source);
    for name in ["env.clock", "env.random"] {
        assert!(said.contains(name), "{name} is not in: {said}");
    }
}

#[test]
fn a_module_without_the_exports_of_a_machine_says_so() {
    let said = refusal("silent", CDYLIB, "");
    assert!(said.contains("conclave_sdk::export!"), "{said}");
}

#[test]
fn source_that_does_not_compile_and_a_crate_that_is_not_there_name_the_crate() {
    let said = refusal("broken", CDYLIB, "fn broken( {}");
    assert!(said.contains("cannot compile") && said.contains("broken"), "{said}");

    let nowhere = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("nowhere");
    let spec = MachineSpec {
        manifest_dir: nowhere.clone(),
        target_dir: nowhere.join("target"),
        output: nowhere.join("machine.wasm"),
    };
    let said = format!("{:#}", build_machine(&spec).unwrap_err());
    assert!(said.contains("nowhere/Cargo.toml"), "{said}");
}

#[test]
fn bytes_that_are_no_module_are_refused() {
    assert!(format!("{:#}", wrap(b"no module").unwrap_err()).contains("not a WebAssembly module"));
}
