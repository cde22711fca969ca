//! The pause of writes during the activation of another component.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use conclave_build::MachineSpec;
use serde_json::Value;

use super::{
    cluster, conclave,
    load::{Figures, Load, Work},
};
use crate::{
    output::{Steps, say},
    process,
    workspace::Workspace,
};

/// The number of keys for which the goal is defined.
const KEYS: u64 = 100_000;
const CLIENTS: u32 = 64;
/// The duration of each measurement. The component is activated in the middle.
const SECONDS: u32 = 8;
const REHEARSAL_TIME_MAX: Duration = Duration::from_secs(120);

/// Fills a separate cluster and upgrades it under load. The new component is the key-value store
/// with an additional custom section, so that its hash differs.
pub(crate) fn pause(
    workspace: &Workspace,
    load: &Load,
    binary: &Path,
    steps: &mut Steps,
) -> Result<String> {
    let directory = workspace.scratch("bench").join("upgrade");
    let component = steps.run("build another component", || other_component(workspace))?;
    steps.run("measure the pause of an upgrade", || {
        let data = cluster::empty_directory(&directory)?;
        let running = conclave::start(binary, None, &data)?;
        load.fill(&running, KEYS)?;
        let endpoints: Vec<_> = running.nodes.iter().map(|node| node.endpoint.as_str()).collect();
        let endpoints = endpoints.join(",");
        let verb = |arguments: &[&str]| verb(binary, &endpoints, arguments);
        let pushed = verb(&["push", &component.display().to_string()])?;
        let id = pushed["component"].as_str().context("no component in the output of the push")?.to_owned();
        let rehearsed = verb(&["rehearse", &id])?;
        let carried = rehearsed["component"]["nodes"].as_array().into_iter().flatten();
        let carried = carried.filter_map(|node| node["migration_ms"].as_u64()).max();
        let without = load.run(&running, Work::Put, CLIENTS, SECONDS)?;
        let with = thread::scope(|scope| -> Result<Figures> {
            let activating = scope.spawn(|| {
                thread::sleep(Duration::from_secs(u64::from(SECONDS) / 2));
                verb(&["activate", &id])
            });
            let figures = load.run(&running, Work::Put, CLIENTS, SECONDS)?;
            match activating.join() {
                Ok(activated) => activated.map(|_| figures),
                Err(_) => bail!("the activation panicked"),
            }
        })?;
        let millis = |figures: &Figures| figures.max_us / 1_000.0;
        say(&format!("{:.0} ms", millis(&with)));
        Ok(format!(
            "activating a component over {KEYS} keys: the longest put of {CLIENTS} clients took {:.0} ms, and no call failed \
             (without an activation {:.0} ms); the state migration of the rehearsal took {} ms",
            millis(&with),
            millis(&without),
            carried.unwrap_or_default(),
        ))
    })
}

/// Runs `conclave component ... --json`.
fn verb(binary: &Path, endpoints: &str, arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new(binary);
    command.arg("component").args(arguments).args(["--json", "--endpoints", endpoints]);
    let answer = process::capture_within(&mut command, REHEARSAL_TIME_MAX)?;
    serde_json::from_str(&answer).context("cannot read the output of `conclave component`")
}

fn other_component(workspace: &Workspace) -> Result<PathBuf> {
    let built = conclave_build::build_machine(&MachineSpec {
        manifest_dir: workspace.root.join("guest-kv"),
        target_dir: workspace.scratch("machines"),
        output: workspace.target.join("kv.wasm"),
    })?;
    let mut component = fs::read(&built.path).context("cannot read the key-value store")?;
    // A custom section: kind, size and name.
    component.extend_from_slice(b"\0\x06\x05other");
    let path = workspace.target.join("kv-other.wasm");
    fs::write(&path, component).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
