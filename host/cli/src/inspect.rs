//! `conclave inspect`: description of a component, as a node would load it.

use std::{collections::BTreeMap, fs, path::PathBuf};

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::{
    Failed, Result,
    output::{Output, table},
};
use conclave_machine::{Component, Engine, Limits, Memory, MethodKind};

/// Show a component: its id, version, methods, imports and memory
///
/// Loads the component as a node does, with a node's default limits: compiles it, starts it once
/// and reads its description. A file that a node would refuse is refused here with the same reason.
/// The component id is the SHA-256 of the file. The methods come from the state machine's
/// descriptor set; a state machine without one is called with raw bytes.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave inspect target/my-counter.wasm
  conclave inspect                            the built-in key-value store
  conclave inspect target/my-counter.wasm --json | jq -r .component")]
pub struct Arguments {
    /// Component to show [default: the built-in key-value store]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &mut Output) -> Result {
    output.set_json(arguments.json);
    let (name, component) = match &arguments.file {
        Some(path) => {
            let bytes = fs::read(path).map_err(Failed::at(path))?;
            (path.display().to_string(), Bytes::from(bytes))
        }
        None => ("the key-value store".to_owned(), Bytes::from_static(crate::DEFAULT_MACHINE)),
    };
    let engine = Engine::new(&Limits::default()).map_err(|error| Failed::of(&error))?;
    let component =
        Component::load(&engine, component).map_err(|error| Failed::because(name, &error))?;
    if arguments.json {
        output.value(&value(&component));
    } else {
        for line in lines(&component) {
            output.line(line);
        }
    }
    Ok(())
}

fn value(component: &Component) -> Value {
    let (description, memory) = (component.description(), component.memory());
    let methods: Vec<_> = component
        .methods()
        .iter()
        .map(|method| json!({"name": &*method.name, "kind": kind(method.kind)}))
        .collect();
    json!({
        "component": component.id().to_string(),
        "name": description.name,
        "version": description.version,
        "state_version": description.state_version,
        "restores": description.restores,
        "size_bytes": component.bytes().len(),
        "imports": component.imports(),
        "memory": {
            "started_bytes": memory.started_bytes,
            "declared_bytes_max": memory.declared_bytes_max,
            "bytes_max": bytes_max(component),
        },
        "methods": methods,
    })
}

fn lines(component: &Component) -> Vec<String> {
    let description = component.description();
    let restores: Vec<_> = description.restores.iter().map(u32::to_string).collect();
    let mut rows = vec![
        row("name", description.name.clone()),
        row("version", description.version.clone()),
        row("component", component.id().to_string()),
        row("size", size(component.bytes().len())),
        row("state version", description.state_version.to_string()),
        row("restores", restores.join(", ")),
    ];
    let packages = packages(component.imports());
    rows.extend(
        packages
            .into_iter()
            .enumerate()
            .map(|(number, package)| row(if number == 0 { "imports" } else { "" }, package)),
    );
    rows.push(row("memory", memory(component)));
    let mut lines = table(&rows);
    lines.push(String::new());
    if component.methods().is_empty() {
        lines.push("The component describes no methods: it is called with raw bytes.".to_owned());
        return lines;
    }
    let mut methods = vec![row("METHOD", "KIND".to_owned())];
    methods.extend(
        component.methods().iter().map(|method| row(&method.name, kind(method.kind).to_owned())),
    );
    lines.extend(table(&methods));
    lines
}

/// Formats the imports, one line per package: `wasi:clocks@0.2.9 monotonic-clock, wall-clock`.
fn packages(imports: &[String]) -> Vec<String> {
    let mut packages = BTreeMap::<String, Vec<&str>>::new();
    for import in imports {
        let (path, version) = import.split_once('@').unwrap_or((import, ""));
        let (package, interface) = path.split_once('/').unwrap_or((path, ""));
        let package = [package, version].join(if version.is_empty() { "" } else { "@" });
        packages.entry(package).or_default().push(interface);
    }
    if packages.is_empty() {
        return vec!["nothing".to_owned()];
    }
    packages
        .into_iter()
        .map(|(package, interfaces)| format!("{package} {}", interfaces.join(", ")))
        .collect()
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

/// Returns the maximum memory of an instance on a node with the default limits.
fn bytes_max(component: &Component) -> usize {
    component.memory().declared_bytes_max.min(component.engine().limits().cluster.memory_bytes_max)
}

fn memory(component: &Component) -> String {
    let Memory { started_bytes, declared_bytes_max } = component.memory();
    let bytes_max = bytes_max(component);
    let whose = match declared_bytes_max == bytes_max {
        true => "declared by the component",
        false => "a node's limit: memory-bytes-max",
    };
    format!("{} after the start, at most {} ({whose})", size(started_bytes), size(bytes_max))
}

fn size(bytes: usize) -> String {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    match bytes {
        0..KIB => format!("{bytes} bytes"),
        KIB..MIB => format!("{:.1} KiB", bytes as f64 / KIB as f64),
        _ => format!("{:.1} MiB", bytes as f64 / MIB as f64),
    }
}

fn kind(kind: MethodKind) -> &'static str {
    match kind {
        MethodKind::Command => "command",
        MethodKind::Query => "query",
        MethodKind::Subscription => "subscription",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_a_line_a_package() {
        assert_eq!(packages(&[]), ["nothing"]);
        let imports = ["wasi:io/poll@0.2.9", "wasi:io/error@0.2.9", "conclave:fsm/log@0.1.0"];
        let lines = packages(&imports.map(str::to_owned));
        assert_eq!(lines, ["conclave:fsm@0.1.0 log", "wasi:io@0.2.9 poll, error"]);
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(1 << 30), "1024.0 MiB");
    }
}
