//! The image, built from a base of Debian packages and an existing binary.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{docker, inspect};
use crate::{
    output::say,
    process::{self, find_program},
    setup,
    workspace::Workspace,
};

/// The images created by [`build`]. Dropping them removes the images.
pub(crate) struct Images {
    tags: Vec<String>,
}

impl Images {
    pub(crate) fn tag(&self) -> &str {
        self.tags.first().map_or("", String::as_str)
    }

    pub(crate) fn size_bytes(&self) -> Result<u64> {
        inspect(self.tag(), "{{.Size}}")?.parse().context("docker reported no size")
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        for tag in &self.tags {
            if let Err(error) = docker(&["image", "rm", tag]) {
                say(&format!("cannot remove the image {tag}: {error:#}"));
            }
        }
    }
}

/// Builds the image `name`.
pub(crate) fn build(
    workspace: &Workspace,
    name: &str,
    binary: &Path,
    base: Option<&str>,
) -> Result<Images> {
    let mut images = Images { tags: Vec::new() };
    let base = match base {
        Some(base) => base.to_owned(),
        None => {
            let archive = base_archive(workspace)?;
            let tag = format!("{name}-base");
            docker(&["import", &archive.to_string_lossy(), &tag])?;
            images.tags.push(tag.clone());
            tag
        }
    };

    // The context contains only the binary. The workspace contains gigabytes of compiled code.
    let context = workspace.scratch("docker").join("context");
    fs::create_dir_all(&context).with_context(|| format!("cannot create {}", context.display()))?;
    let copy = context.join("conclave");
    fs::copy(binary, &copy).with_context(|| format!("cannot copy {}", binary.display()))?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).context("cannot set the mode")?;

    let mut build = Command::new("docker");
    build.args(["build", "--target", "runtime-prebuilt", "--tag", name]);
    build.args(["--build-arg", &format!("BASE={base}"), "--build-arg", "BINARY=conclave"]);
    build.arg("--file").arg(workspace.root.join("Dockerfile")).arg(&context);
    process::run(&mut build)?;
    images.tags.insert(0, name.to_owned());
    Ok(images)
}

/// Creates a small base image of this host's Debian release, unless it exists. The release must
/// match so that its C library fits the binary.
fn base_archive(workspace: &Workspace) -> Result<PathBuf> {
    let suite = release()?;
    let directory = workspace.scratch("docker");
    let archive = directory.join(format!("base-{suite}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    say(&format!("making a base image of Debian's {suite}, once; this takes a minute or two"));
    setup::program("debootstrap", "debootstrap")?;
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let root = directory.join(format!("base-{suite}"));
    remove_as_root(&root)?;

    let mut debootstrap = setup::as_root("debootstrap")?;
    debootstrap.arg("--variant=minbase").arg(&suite).arg(&root);
    if let Some(mirror) = mirror(&suite) {
        debootstrap.arg(mirror);
    }
    process::run(&mut debootstrap)?;

    let partial = archive.with_extension("partial");
    let mut tar = setup::as_root("tar")?;
    tar.arg("--create").arg("--file").arg(&partial).arg("--directory").arg(&root);
    for left_out in
        ["var/cache", "var/lib/apt", "usr/share/doc", "usr/share/man", "usr/share/locale"]
    {
        tar.arg(format!("--exclude=./{left_out}/*"));
    }
    process::run(tar.arg("."))?;
    fs::rename(&partial, &archive).context("cannot rename the base image")?;
    remove_as_root(&root)?;
    Ok(archive)
}

/// Returns the release name, such as `bookworm`.
fn release() -> Result<String> {
    if find_program("apt-get").is_none() {
        bail!(
            "a base image is made on Debian only; give one with `cargo xtask docker --base IMAGE`"
        );
    }
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release has no VERSION_CODENAME")?;
    Ok(codename.trim_matches('"').to_owned())
}

/// Returns the mirror of this host's own packages.
fn mirror(suite: &str) -> Option<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]);
    let text = process::capture(&mut targets).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(release, _)| *release == suite).map(|(_, uri)| uri.to_owned())
}

fn remove_as_root(path: &Path) -> Result<()> {
    if path.exists() {
        process::run(setup::as_root("rm")?.args(["--recursive", "--one-file-system"]).arg(path))?;
    }
    Ok(())
}
