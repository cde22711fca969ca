//! Conversion of a core module to a component. Rejects components that no host would load.

use anyhow::{Context as _, Result, bail};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, DecodedWasm};

const PACKAGE: &str = "conclave:fsm/";
const EXPORT: &str = "conclave:fsm/fsm";
/// The WASI packages of which hosts serve some functions to components of other toolchains. The
/// host also checks each function.
const WASI: [&str; 6] =
    ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];

/// The component of a state machine.
#[derive(Clone, Debug)]
pub struct Component {
    /// The bytes of the component.
    pub bytes: Vec<u8>,
    /// The names of the imported interfaces.
    pub imports: Vec<String>,
}

/// Converts a core module, which embeds its world in a custom section, to a component.
pub fn wrap(module: &[u8]) -> Result<Component> {
    let foreign = foreign_imports(module)?;
    if !foreign.is_empty() {
        bail!(
            "the module has imports that a state machine may not use: {}. Some code in it, perhaps a dependency, \
             expects a browser, WASI or a C library; a state machine has only its arguments.",
            foreign.join(", ")
        );
    }
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(module).context("cannot read the module's world")?;
    let bytes = encoder.encode().context("cannot convert the module to a component")?;
    let imports = imports(&bytes)?;
    Ok(Component { bytes, imports })
}

/// Returns the interfaces that a component imports. Fails if it does not export a state machine or
/// imports an interface that a host would reject. For components of other toolchains.
pub fn imports(component: &[u8]) -> Result<Vec<String>> {
    let (imports, exports) = interfaces(component)?;
    if !exports.iter().any(|name| name.starts_with(EXPORT)) {
        bail!("the module does not export {EXPORT}; is `conclave_sdk::export!(…)` missing?");
    }
    let served = |name: &str| {
        name.starts_with(PACKAGE) || WASI.iter().any(|package| name.starts_with(package))
    };
    if let Some(foreign) = imports.iter().find(|name| !served(name)) {
        bail!("the component imports {foreign}, which no host provides to a state machine");
    }
    Ok(imports)
}

/// Returns the imports of a core module that do not belong to the contract, as `module.name`.
fn foreign_imports(module: &[u8]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        let Payload::ImportSection(section) = payload.context("not a WebAssembly module")? else {
            continue;
        };
        for import in section.into_imports() {
            let import = import.context("not a WebAssembly module")?;
            // The second prefix is that of the canonical ABI's own imports, for exported resources.
            let ours = import.module.starts_with(PACKAGE)
                || import.module.starts_with("[export]conclave:fsm/");
            if !ours {
                names.push(format!("{}.{}", import.module, import.name));
            }
        }
    }
    Ok(names)
}

/// Returns the names of a component's imports and exports.
fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>)> {
    let decoded = wit_component::decode(component).context("cannot read the component back")?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        bail!("the encoder returned a WIT package, not a component");
    };
    let world = resolve.worlds.get(world).context("the component has no world")?;
    let imports = world.imports.keys().map(|key| resolve.name_world_key(key));
    let exports = world.exports.keys().map(|key| resolve.name_world_key(key));
    Ok((imports.collect(), exports.collect()))
}
