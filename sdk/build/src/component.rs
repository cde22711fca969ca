//! From a core module to a component, refusing what no host would load.

use anyhow::{Context as _, Result, bail};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, DecodedWasm};

const PACKAGE: &str = "conclave:fsm/";
const EXPORT: &str = "conclave:fsm/fsm";
/// What a host serves of WASI to components of other toolchains. It looks at each function, too.
const WASI: [&str; 6] =
    ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];

/// A machine's component.
#[derive(Clone, Debug)]
pub struct Component {
    /// The component itself.
    pub bytes: Vec<u8>,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
}

/// Makes a core module, which carries its world in a custom section, a component.
pub fn wrap(module: &[u8]) -> Result<Component> {
    let foreign = foreign_imports(module)?;
    if !foreign.is_empty() {
        bail!(
            "the module imports what a machine may not: {}. Something in it, perhaps a dependency, \
             expects a browser, WASI or a C library; a machine has only its arguments.",
            foreign.join(", ")
        );
    }
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(module).context("cannot read the module's world")?;
    let bytes = encoder.encode().context("cannot make the module a component")?;
    let imports = imports(&bytes)?;
    Ok(Component { bytes, imports })
}

/// The interfaces that a component imports, if it exports a machine and imports nothing that a host
/// would refuse. For components that another toolchain made.
pub fn imports(component: &[u8]) -> Result<Vec<String>> {
    let (imports, exports) = interfaces(component)?;
    if !exports.iter().any(|name| name.starts_with(EXPORT)) {
        bail!("the module does not export {EXPORT}; is `conclave_sdk::export!(…)` missing?");
    }
    let served = |name: &str| {
        name.starts_with(PACKAGE) || WASI.iter().any(|package| name.starts_with(package))
    };
    if let Some(foreign) = imports.iter().find(|name| !served(name)) {
        bail!("the component imports {foreign}, which no machine gets");
    }
    Ok(imports)
}

/// The imports of a core module that are not the contract's, as `module.name`.
fn foreign_imports(module: &[u8]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        let Payload::ImportSection(section) = payload.context("not a WebAssembly module")? else {
            continue;
        };
        for import in section.into_imports() {
            let import = import.context("not a WebAssembly module")?;
            // The second are the canonical ABI's own, for the resources that a machine exports.
            let ours = import.module.starts_with(PACKAGE)
                || import.module.starts_with("[export]conclave:fsm/");
            if !ours {
                names.push(format!("{}.{}", import.module, import.name));
            }
        }
    }
    Ok(names)
}

/// The names of what a component imports and exports.
fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>)> {
    let decoded = wit_component::decode(component).context("cannot read the component back")?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        bail!("the encoder gave a WIT package");
    };
    let world = resolve.worlds.get(world).context("the component has no world")?;
    let imports = world.imports.keys().map(|key| resolve.name_world_key(key));
    let exports = world.exports.keys().map(|key| resolve.name_world_key(key));
    Ok((imports.collect(), exports.collect()))
}
