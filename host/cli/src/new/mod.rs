//! `conclave new`: a machine's project that builds and passes its own tests.
//!
//! The templates are real projects, of a machine called `my-machine`, under `sdk/templates`; the name
//! is replaced in each of its spellings, in contents and in paths.
//!
//! A project brings its SDK along (`vendor/` for Rust, the package `conclave_sdk` for Python): the SDK is
//! on no registry yet, a path would tie the project to this computer, and a git address to a repository
//! and a network. The copy is of the sources that this binary was compiled from, so it fits the
//! contract that this binary serves.

mod name;
mod python;
mod rust;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};

pub(super) use self::python::sdk as python_sdk;

use self::name::Name;
use super::{Failed, Result, build, output::Output};

/// Make a new machine's project
///
/// The project holds a protobuf file, a machine that serves it, tests that hold the machine to the
/// contract, a README and the SDK. It builds and passes its tests as it is: change it from there. The
/// machine is called as the directory: lower-case letters, digits and dashes.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave new my-counter
  conclave new machines/lock --lang python

What to do with it:
  cd my-counter
  cargo test                                     or, in Python: python3 -m unittest
  conclave build
  conclave dev --component target/my-counter.wasm --watch")]
pub struct Arguments {
    /// The project's directory, which must not exist; its last part names the machine
    #[arg(value_name = "NAME")]
    path: PathBuf,

    /// The language that the machine is written in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
}

/// What a machine may be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Language {
    Rust,
    Python,
}

/// A file of a project: its place and its contents.
type File = (String, String);

/// Runs the verb.
pub fn run(arguments: Arguments, output: &mut Output) -> Result {
    let path = &arguments.path;
    let name = Name::of(path).map_err(Failed::Usage)?;
    let (files, commands) = match arguments.lang {
        Language::Rust => (rust::project(&name), rust::commands(&name)),
        Language::Python => (python::project(&name), python::commands(&name)),
    };
    write(path, &files)?;
    if arguments.lang == Language::Python {
        build::write_descriptor_set(path)?;
    }
    output.remark(format!("{}: a new machine; its README.md says more", path.display()));
    output.line(format!("cd {}", path.display()));
    for command in commands {
        output.line(command);
    }
    Ok(())
}

/// Writes a project into a directory that is made for it.
fn write(path: &Path, files: &[File]) -> Result {
    let failed = |path: &Path, cause: io::Error| match cause.kind() {
        io::ErrorKind::AlreadyExists => Failed::local(format!(
            "{} exists and is left as it is; choose another name",
            path.display()
        )),
        _ => Failed::local(format!("{}: {cause}", path.display())),
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|cause| failed(parent, cause))?;
    }
    fs::create_dir(path).map_err(|cause| failed(path, cause))?;
    for (place, contents) in files {
        let file = path.join(place);
        let directory = file.parent().unwrap_or(path);
        fs::create_dir_all(directory).map_err(|cause| failed(directory, cause))?;
        fs::write(&file, contents).map_err(|cause| failed(&file, cause))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_never_written_over_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/lock");
        write(&path, &[("src/lib.rs".to_owned(), "one".to_owned())]).unwrap();
        let Err(Failed::Failure { message, .. }) = write(&path, &[]) else { panic!("overwritten") };
        assert!(message.contains("exists"), "{message}");
        assert_eq!(fs::read_to_string(path.join("src/lib.rs")).unwrap(), "one");
    }
}
