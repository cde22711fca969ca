//! Component from a Python project, made by componentize-py.
//!
//! Everything is installed below the target directory: a virtual environment with componentize-py,
//! and the project's own dependencies in pure Python, which become part of the component. The
//! interpreter imports WASI, of which a node serves the part that depends on the log alone
//! (`machine/wasi`). So `print` writes to the node's log, and the time is that of the entry.

use std::{
    ffi::OsStr,
    fmt::{self, Write as _},
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message as _;

use super::{Built, failed, project::Project};
use crate::{Result, new, output::Output};

/// The tested release of componentize-py. Its interpreter is [`PYTHON_VERSION`].
const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";
/// The Python version for which dependencies are installed.
const PYTHON_VERSION: &str = "3.14";
/// The module from which the component is made. It imports the project's `machine.py`.
const APP: &str = "conclave_sdk.component";
/// The file with the descriptor set.
pub(super) const DESCRIPTOR_SET_FILE: &str = "descriptor_set.py";
/// The directory beside the sources where interpreters, including the component's, store
/// compiled bytecode.
pub(crate) const BYTECODE_DIR: &str = "__pycache__";
/// Length of a base64 line: a multiple of 4, so that each line can be decoded by itself.
const LINE_BYTES: usize = 96;

pub(super) fn build(
    project: &Project,
    target_dir: &Path,
    file: &Path,
    output: &mut Output,
) -> Result<Built> {
    write_descriptor_set(&project.dir)?;
    let tools = Tools { dir: target_dir.join("python") };
    let mut build = || {
        if tools.install(&dependencies(project), output)? {
            // The first run compiles all packages, and the compiler's memory becomes part of the
            // component: 28 MB. The second run finds them compiled and gives 19 MB.
            componentize(project, &tools, file)?;
        }
        componentize(project, &tools, file)
    };
    build().map_err(|error| failed(&error))
}

/// An error in the protobuf files. Only protox's `Debug` format contains the position.
#[derive(Debug)]
struct NotCompiled(protox::Error);

impl fmt::Display for NotCompiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot compile the protobuf: {:?}", self.0)
    }
}

impl std::error::Error for NotCompiled {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Compiles the files in `proto/` to a descriptor set for `machine.py`.
pub(crate) fn write_descriptor_set(project: &Path) -> Result {
    let write = || -> anyhow::Result<()> {
        let proto = project.join("proto");
        let mut files = Vec::new();
        proto_files(&proto, &mut files)
            .with_context(|| format!("cannot read {}", proto.display()))?;
        files.sort();
        let mut set = protox::compile(&files, [&proto]).map_err(NotCompiled)?;
        // The component does not need the comments.
        for file in &mut set.file {
            file.source_code_info = None;
        }
        let path = project.join(DESCRIPTOR_SET_FILE);
        let source = descriptor_source(&set.encode_to_vec());
        if fs::read_to_string(&path).is_ok_and(|old| old == source) {
            return Ok(());
        }
        fs::write(&path, source).with_context(|| format!("cannot write {}", path.display()))
    };
    write().map_err(|error| failed(&error))
}

fn proto_files(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, files)?;
        } else if path.extension() == Some(OsStr::new("proto")) {
            files.push(path);
        }
    }
    Ok(())
}

fn descriptor_source(set: &[u8]) -> String {
    let mut source = "\"\"\"Made of proto/ by `conclave build`; not to be edited.\"\"\"\n\n\
                      import base64\n\nDESCRIPTOR_SET = base64.b64decode(\n"
        .to_owned();
    let text = STANDARD.encode(set);
    for line in text.as_bytes().chunks(LINE_BYTES) {
        // Writing to a string cannot fail, and base64 is ASCII.
        let _ = writeln!(source, "    \"{}\"", String::from_utf8_lossy(line));
    }
    source + ")\n"
}

/// Returns the dependencies in the project's manifest, for pip.
fn dependencies(project: &Project) -> Vec<String> {
    let dependencies =
        project.manifest.get("project").and_then(|table| table.get("dependencies")?.as_array());
    let dependencies = dependencies.into_iter().flatten();
    dependencies.filter_map(|dependency| dependency.as_str().map(str::to_owned)).collect()
}

/// The tools that are installed for a build, in a directory of their own.
struct Tools {
    dir: PathBuf,
}

impl Tools {
    fn program(&self, name: &str) -> PathBuf {
        self.dir.join("venv/bin").join(name)
    }

    fn packages(&self) -> PathBuf {
        self.dir.join("packages")
    }

    /// Installs the tools and dependencies unless they are already there. Returns whether it
    /// installed anything. The list of installed packages is written only after all of them are.
    fn install(&self, dependencies: &[String], output: &mut Output) -> anyhow::Result<bool> {
        let wanted = format!("{COMPONENTIZE_PY}\n{PYTHON_VERSION}\n{}\n", dependencies.join("\n"));
        let installed = self.dir.join("installed");
        if fs::read_to_string(&installed).is_ok_and(|there| there == wanted) {
            return Ok(false);
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)
                .with_context(|| format!("cannot remove {}", self.dir.display()))?;
        }
        output.remark(format!("installing {COMPONENTIZE_PY} into {}", self.dir.display()));
        let mut venv = Command::new("python3");
        run(venv.args(["-m", "venv"]).arg(self.dir.join("venv"))).context(
            "building a Python project needs python3 3.10 or newer with venv; on Debian: \
             `apt-get install python3 python3-venv`",
        )?;
        let mut install = self.pip();
        run(install.arg(COMPONENTIZE_PY))
            .with_context(|| format!("pip cannot install {COMPONENTIZE_PY} from PyPI"))?;
        if !dependencies.is_empty() {
            output.remark(format!("installing {}", dependencies.join(", ")));
            let mut install = self.pip();
            install.arg("--target").arg(self.packages());
            install.args(["--python-version", PYTHON_VERSION, "--only-binary=:all:"]);
            install.args(["--platform", "any", "--implementation", "py", "--abi", "none"]);
            run(install.args(dependencies)).context(
                "pip cannot install the project's dependencies from PyPI; a component can contain \
                 packages in pure Python only",
            )?;
        }
        fs::create_dir_all(self.packages())
            .and_then(|()| fs::write(&installed, wanted))
            .with_context(|| format!("cannot write {}", installed.display()))?;
        Ok(true)
    }

    fn pip(&self) -> Command {
        let mut pip = Command::new(self.program("python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        pip
    }
}

/// Returns the directory of the contract: in the project's own `conclave_sdk` or, without one, in
/// the copy that this binary contains, which is written beside the other packages.
fn contract(project: &Path, tools: &Tools) -> anyhow::Result<PathBuf> {
    const CONTRACT: &str = "conclave_sdk/wit";
    if project.join("conclave_sdk").is_dir() {
        return Ok(project.join(CONTRACT));
    }
    let packages = tools.packages();
    for (relative, text) in new::python_sdk() {
        let path = packages.join(relative);
        let directory = path.parent().unwrap_or(&packages);
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(packages.join(CONTRACT))
}

fn componentize(project: &Project, tools: &Tools, file: &Path) -> anyhow::Result<Built> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let dir = if project.dir.as_os_str().is_empty() { Path::new(".") } else { &project.dir };
    let partial = file.with_extension("partial");
    let wit = contract(dir, tools)?;
    let mut command = Command::new(tools.program("componentize-py"));
    command.arg("--wit-path").arg(wit).args(["--world", "machine"]);
    command.args(["componentize", "--output"]).arg(&partial);
    command.arg("--python-path").arg(dir).arg("--python-path").arg(tools.packages()).arg(APP);
    // Otherwise componentize-py would look for packages in the environment from which it
    // is started.
    command.env("VIRTUAL_ENV", tools.dir.join("venv"));
    // componentize-py is written in Rust, and its own backtrace would hide the one of the project.
    command.env("RUST_LIB_BACKTRACE", "0");
    run(&mut command).context("cannot build the component; the reason is above")?;
    let built = check(&partial);
    match &built {
        Ok(_) => fs::rename(&partial, file),
        Err(_) => fs::remove_file(&partial),
    }
    .with_context(|| format!("cannot write {}", file.display()))?;
    built
}

fn check(component: &Path) -> anyhow::Result<Built> {
    let bytes = fs::read(component)
        .with_context(|| format!("cannot read the component {}", component.display()))?;
    let imports = conclave_build::imports(&bytes)?;
    Ok(Built { size_bytes: bytes.len() as u64, imports, changed: true })
}

/// Runs a command whose messages go to the user.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_set_is_python_that_says_where_it_comes_from() {
        let source = descriptor_source(&[0xff; 100]);
        assert!(source.starts_with("\"\"\"Made of proto/"), "{source}");
        assert!(source.ends_with("\"\n)\n"), "{source}");
        assert!(source.lines().all(|line| line.len() <= LINE_BYTES + 6), "{source}");
    }

    #[test]
    fn protobuf_that_does_not_compile_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let proto = dir.path().join("proto/deep");
        fs::create_dir_all(&proto).unwrap();
        fs::write(proto.join("a.proto"), "syntax = \"proto3\";\nmessage {}\n").unwrap();
        let error = format!("{:?}", write_descriptor_set(dir.path()).unwrap_err());
        assert!(error.contains("a.proto:2"), "{error}");
        assert!(!dir.path().join(DESCRIPTOR_SET_FILE).exists());
    }
}
