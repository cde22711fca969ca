//! A separate disk for a node that can be made to hang.
//!
//! The disk is an ext4 file system in a file, mounted through a loop device. `fsfreeze` makes all
//! writes to it wait. Both need root. Without permission, [`Disk::mount`] returns the reason.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Enough for sled, which allocates 16 MiB at a time, and for some snapshots.
const BYTES: u64 = 512 << 20;

/// A mounted file system. It is unmounted on drop.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Creates a file system in `image` and mounts it at `at`, which is created.
    pub fn mount(image: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        File::create(image)?.set_len(BYTES)?;
        let mut mkfs = Command::new("mkfs.ext4");
        run(mkfs.args(["-q", "-F", "-E", "lazy_itable_init=1,nodiscard"]).arg(image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Makes all writes wait. Reads still succeed.
    pub fn hang(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.at))
    }

    /// Lets writes continue.
    pub fn work(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.work();
        // A lazy unmount succeeds even if a process that is being killed still has open files.
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.at));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output();
    let output = output.with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?} failed: {}", command.get_program(), why.trim());
    Ok(())
}
