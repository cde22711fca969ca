//! Component from a Rust crate, made by `conclave-build`.

use std::path::Path;

use conclave_build::MachineSpec;

use super::{Built, failed, project::Project};
use crate::Result;

pub(super) fn build(project: &Project, target_dir: &Path, file: &Path) -> Result<Built> {
    let built = conclave_build::build_machine(&MachineSpec {
        manifest_dir: project.dir.clone(),
        target_dir: target_dir.to_owned(),
        output: file.to_owned(),
    });
    let built = built.map_err(|error| failed(&error))?;
    Ok(Built { size_bytes: built.size_bytes, imports: built.imports, changed: built.changed })
}
