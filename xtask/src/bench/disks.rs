//! One file system per node that can be frozen: loop mounts, which need root.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

const NODES: u64 = 3;
const DISK_BYTES: u64 = 1 << 30;

/// The mounted file systems. Dropping them unmounts them.
pub(crate) struct Disks(Vec<(u64, PathBuf)>);

impl Disks {
    /// Mounts one file system per node at `path(id)`.
    pub(crate) fn mount(images: &Path, path: impl Fn(u64) -> PathBuf) -> Result<Self> {
        let mut disks = Self(Vec::new());
        fs::create_dir_all(images)?;
        for id in 1..=NODES {
            let (image, at) = (images.join(format!("{id}.img")), path(id));
            fs::create_dir_all(&at)?;
            File::create(&image)?.set_len(DISK_BYTES)?;
            process::capture(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
            process::capture(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))?;
            // A data directory must not contain other files.
            let _ = fs::remove_dir(at.join("lost+found"));
            disks.0.push((id, at));
        }
        Ok(disks)
    }

    /// Returns the mount point of a node's file system.
    pub(crate) fn of(&self, id: u64) -> Result<&Path> {
        let disk = self.0.iter().find(|(node, _)| *node == id);
        disk.map(|(_, at)| at.as_path()).context("the node has no disk of its own")
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for (_, at) in &self.0 {
            // Fails if the file system is not frozen, which is fine.
            let _ = process::capture(Command::new("fsfreeze").arg("-u").arg(at));
            let _ = process::capture(Command::new("umount").arg("-l").arg(at));
        }
    }
}
