//! Component from a core module, as compiled by Go or by any compiler whose output needs at most
//! WASI 0.1.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::{Built, failed, project::Project};
use crate::Result;

/// Compiles a Go project and adapts the core module to a component.
pub(super) fn build_go(project: &Project, target_dir: &Path, file: &Path) -> Result<Built> {
    let module = target_dir.join("go").join(&project.name).with_extension("wasm");
    compile_go(&project.dir, &module).map_err(|error| failed(&error))?;
    adapt(&module, file)
}

/// Adapts the core module in a file to a component in another file.
pub(super) fn adapt(module: &Path, file: &Path) -> Result<Built> {
    let adapt = || -> anyhow::Result<Built> {
        let bytes =
            fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
        let component =
            conclave_build::adapt(&bytes).with_context(|| module.display().to_string())?;
        let changed = conclave_build::write_if_changed(file, &component.bytes)?;
        let size_bytes = component.bytes.len() as u64;
        Ok(Built { size_bytes, imports: component.imports, changed })
    };
    adapt().map_err(|error| failed(&error))
}

fn compile_go(dir: &Path, module: &Path) -> anyhow::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let mut go = Command::new("go");
    // A c-shared library, because the host calls its functions. Paths and the repository's state
    // are left out, as they would make the bytes differ.
    go.args(["build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-o"]);
    go.arg(std::path::absolute(module)?).arg(".").current_dir(dir);
    go.envs([("GOOS", "wasip1"), ("GOARCH", "wasm"), ("CGO_ENABLED", "0")]);
    let status = go.stdin(Stdio::null()).stdout(Stdio::from(io::stderr())).status();
    let status = status.context(
        "building a Go project needs `go` 1.24 or newer in the PATH: https://go.dev/doc/install",
    )?;
    if !status.success() {
        bail!("cannot compile {} (go: {status}); go's messages are above", dir.display());
    }
    Ok(())
}
