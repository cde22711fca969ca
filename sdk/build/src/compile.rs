//! The inner cargo build, which compiles a crate to a core module.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{Compiler, MachineSpec, PROFILE, TARGET, environment::clean_environment, toolchain};

/// The profile for a workspace that defines none. The reasons for these settings are in Conclave's
/// own workspace manifest.
const PROFILE_DEFAULTS: [&str; 6] = [
    "inherits=\"release\"",
    "opt-level=3",
    "lto=\"fat\"",
    "codegen-units=1",
    "panic=\"abort\"",
    "strip=\"debuginfo\"",
];

/// Compiles the crate's `cdylib` and returns the path of the core module.
pub(crate) fn core_module(spec: &MachineSpec, compiler: &Compiler) -> Result<PathBuf> {
    let manifest = spec.manifest_dir.join("Cargo.toml");
    let manifest = manifest
        .canonicalize()
        .with_context(|| format!("cannot find the crate to build: {}", manifest.display()))?;
    let workspace = workspace_manifest(&manifest, compiler)?;

    let mut cargo = cargo(compiler);
    cargo.args(["build", "--lib", "--target", TARGET, "--profile", PROFILE]);
    cargo.arg("--manifest-path").arg(&manifest).arg("--target-dir").arg(&spec.target_dir);
    cargo.arg("--message-format=json-render-diagnostics");
    if !defines_profile(&workspace)? {
        for setting in PROFILE_DEFAULTS {
            cargo.arg("--config").arg(format!("profile.{PROFILE}.{setting}"));
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&workspace));
    toolchain::prepare(compiler, &mut cargo);
    run(cargo, &manifest)
}

/// Runs the build and takes the module's path from cargo's messages. Its name and directory depend
/// on the manifest in too many ways to compute them here.
fn run(mut cargo: Command, manifest: &Path) -> Result<PathBuf> {
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", cargo.get_program().display()))?;
    let mut module = None;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read cargo's messages")?;
            module = module_in_message(&line, manifest).or(module);
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("cannot compile {} (cargo: {status}); its messages are above", manifest.display());
    }
    module.with_context(|| {
        format!(
            "{} does not produce a WebAssembly module. Its library must be a cdylib:\n\n    [lib]\n    \
             crate-type = [\"cdylib\", \"rlib\"]\n",
            manifest.display()
        )
    })
}

/// Returns the path of the module that a line of cargo's output reports, if it belongs to the crate
/// at `manifest`.
fn module_in_message(line: &str, manifest: &Path) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact"
        || Path::new(message["manifest_path"].as_str()?) != manifest
    {
        return None;
    }
    let mut files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
    files.find(|file| file.ends_with(".wasm")).map(PathBuf::from)
}

fn workspace_manifest(manifest: &Path, compiler: &Compiler) -> Result<PathBuf> {
    let output = cargo(compiler)
        .args(["locate-project", "--workspace", "--message-format", "plain", "--manifest-path"])
        .arg(manifest)
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{}: {}", manifest.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Returns the `cargo metadata` of the crate's workspace. Does not access registries.
pub(crate) fn metadata(manifest_dir: &Path) -> Result<Value> {
    let output = cargo(&toolchain().compiler().unwrap_or(Compiler::Rustup))
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(manifest_dir.join("Cargo.toml"))
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cannot read cargo's metadata")
}

fn defines_profile(workspace_manifest: &Path) -> Result<bool> {
    let text = std::fs::read_to_string(workspace_manifest)
        .with_context(|| format!("cannot read {}", workspace_manifest.display()))?;
    let header = format!("[profile.{PROFILE}]");
    Ok(text.lines().any(|line| line.trim() == header))
}

/// Returns the compiler flags that remove this host's paths from the module, because panic messages
/// contain file names. A component is identified by its hash, so the same source must give the same
/// bytes in any directory. The variable is set even if it is empty, because it overrides the flags
/// for native code in a cargo configuration.
fn rust_flags(workspace_manifest: &Path) -> String {
    let mut flags = Vec::new();
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    if let Some(registry) = env::var_os("CARGO_HOME").map(PathBuf::from).or(home) {
        flags.push(format!("--remap-path-prefix={}=cargo", registry.display()));
    }
    if let Some(workspace) = workspace_manifest.parent() {
        flags.push(format!("--remap-path-prefix={}=.", workspace.display()));
    }
    flags.join("\u{1f}")
}

fn cargo(compiler: &Compiler) -> Command {
    let mut cargo = toolchain::cargo(compiler);
    clean_environment(&mut cargo);
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_found_among_cargos_messages() {
        let manifest = Path::new("/m/Cargo.toml");
        let artifact = |manifest: &str, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{manifest}","filenames":["{file}"]}}"#
            )
        };
        let found = |line: &str| module_in_message(line, manifest);
        assert_eq!(found(&artifact("/m/Cargo.toml", "/t/m.wasm")), Some("/t/m.wasm".into()));
        assert_eq!(found(&artifact("/m/Cargo.toml", "/t/libm.rlib")), None);
        assert_eq!(found(&artifact("/other/Cargo.toml", "/t/o.wasm")), None);
        assert_eq!(found("warning: not json"), None);
    }
}
