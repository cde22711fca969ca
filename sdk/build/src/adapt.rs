//! Conversion of a core module from another toolchain, for WASI 0.1 or no WASI, to a component.
//!
//! Go and C compilers produce core modules that import `wasi_snapshot_preview1`. The Bytecode
//! Alliance's adapter replaces these imports with imports of WASI 0.2. A host serves the functions
//! of WASI 0.2 whose results depend on the log alone.

use anyhow::{Context as _, Result, bail};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, SourceMap};

use crate::component::{Component, imports};

/// The WIT of the contract, for modules with hand-written bindings, which do not embed it.
const CONTRACT: [(&str, &str); 4] = [
    ("fsm.wit", include_str!("../../../wit/fsm.wit")),
    ("log.wit", include_str!("../../../wit/log.wit")),
    ("types.wit", include_str!("../../../wit/types.wit")),
    ("world.wit", include_str!("../../../wit/world.wit")),
];
const WORLD: &str = "machine";
/// The prefix of the custom section that holds the world of a module. Bindings generators append a name.
const WORLD_SECTION: &str = "component-type";

/// Converts a core module to a component of its embedded world, or of the contract's world if it
/// embeds none.
pub fn adapt(module: &[u8]) -> Result<Component> {
    if Parser::is_component(module) {
        bail!("the file is a component already: `conclave check` accepts it without conversion");
    }
    let mut module = module.to_vec();
    if !carries_world(&module)? {
        embed_contract(&mut module).context("cannot add the contract to the module")?;
    }
    let mut encoder = ComponentEncoder::default();
    let failed = "cannot convert the module to a component of conclave:fsm";
    encoder.validate(true).module(&module).context(failed)?;
    encoder
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)
        .context("cannot read the adapter")?;
    let bytes = encoder.encode().context(failed)?;
    let imports = imports(&bytes)?;
    Ok(Component { bytes, imports })
}

fn carries_world(module: &[u8]) -> Result<bool> {
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::CustomSection(section) = payload.context("not a WebAssembly module")?
            && section.name().starts_with(WORLD_SECTION)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn embed_contract(module: &mut Vec<u8>) -> Result<()> {
    let mut sources = SourceMap::default();
    for (file, text) in CONTRACT {
        sources.push_str(file, text);
    }
    let contract = sources.parse().map_err(|(_, error)| error)?;
    let mut resolve = Resolve::default();
    let package = resolve.push_group(contract)?;
    let world = resolve.select_world(&[package], Some(WORLD))?;
    embed_component_metadata(module, &resolve, world, StringEncoding::UTF8, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_machine_is_refused_with_what_it_lacks() {
        let module = b"\0asm\x01\0\0\0";
        let error = format!("{:#}", adapt(module).unwrap_err());
        assert!(error.contains("conclave:fsm"), "{error}");
        let component = b"\0asm\x0d\0\x01\0";
        let error = format!("{:#}", adapt(component).unwrap_err());
        assert!(error.contains("component already"), "{error}");
        assert!(adapt(b"fn main() {}").is_err());
    }
}
