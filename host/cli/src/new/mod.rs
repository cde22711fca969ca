//! `conclave new`: a project for a state machine, which builds and passes its own tests.
//!
//! The templates in `sdk/templates` are real projects of a state machine called `my-machine`. The
//! name is replaced in each of its spellings, in contents and in paths.
//!
//! A project contains its SDK (`vendor/` for Rust, the package `conclave_sdk` for Python). The SDK
//! is on no registry yet; a path would tie the project to this computer, and a git address to a
//! repository and a network. The copy is of the sources from which this binary was compiled, so it
//! fits the contract that this binary serves.

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

/// Create a project for a new state machine
///
/// The project holds a protobuf file, a state machine that serves it, tests of the contract, a
/// README and the SDK. It builds and passes its tests without changes, so you can start from
/// there. The directory's name becomes the name of the state machine: lower-case letters, digits
/// and dashes.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave new my-counter
  conclave new machines/lock --lang python

Next steps:
  cd my-counter
  cargo test                                     in Python: python3 -m unittest
  conclave build
  conclave dev --component target/my-counter.wasm --watch")]
pub struct Arguments {
    /// Directory to create for the project; its last part names the state machine
    #[arg(value_name = "NAME")]
    path: PathBuf,

    /// Programming language of the state machine
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
}

/// A programming language with a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Language {
    Rust,
    Python,
}

/// A file of a project: its path in the project and its contents.
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
    output.remark(format!("{}: created the project; see its README.md", path.display()));
    output.line(format!("cd {}", path.display()));
    for command in commands {
        output.line(command);
    }
    Ok(())
}

/// Creates a directory and writes a project into it.
fn write(path: &Path, files: &[File]) -> Result {
    let failed = |path: &Path, cause: io::Error| match cause.kind() {
        io::ErrorKind::AlreadyExists => Failed::local(format!(
            "{} exists and was not changed; choose another name",
            path.display()
        )),
        _ => Failed::because(path.display(), &cause),
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|cause| failed(parent, cause))?;
    }
    fs::create_dir(path).map_err(|cause| failed(path, cause))?;
    for (relative, contents) in files {
        let file = path.join(relative);
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
