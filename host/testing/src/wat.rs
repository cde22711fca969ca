//! Handwritten state machines with behaviour that no compiler would generate.
#![allow(clippy::unwrap_used, missing_docs, reason = "for tests, which fail by panicking")]

use std::fmt::Write;

use bytes::Bytes;

/// A component of the contract's world, composed of fragments of WebAssembly text.
#[derive(Clone)]
pub struct Wat {
    /// The body of `apply`, which returns the address of its answer. Locals 0–8 are the index,
    /// time, seed, principal, method and request. Local 9 is free.
    pub apply: &'static str,
    /// The body of `query`, with the same signature.
    pub query: &'static str,
    /// The body of `subscribe`, with the same signature.
    pub subscribe: &'static str,
    /// The body of `describe`, which returns the address of the description.
    pub describe: &'static str,
    /// The body of `snapshot`, which returns the handle of a reader.
    pub snapshot: &'static str,
    /// The body of `snapshot-reader.read`, which returns the address of a list.
    pub read: &'static str,
    /// The body of `restore`, which returns the address of its result. Local 0 is the state version.
    pub restore: &'static str,
    /// The body of `restore-writer.write`, which returns the address of its result. Locals 0–2 are
    /// the writer and the bytes.
    pub write: &'static str,
    /// The body of `restore-writer.finish`, which returns the address of its result.
    pub finish: &'static str,
    pub state_version: u32,
    pub name: &'static str,
    pub restores: &'static [u32],
    pub descriptor_set: Vec<u8>,
    pub memory: &'static str,
    /// The functions that the module imports from WASI. With imports, the world is that of `src/wasi.wit`.
    pub imports: &'static str,
    /// Additional definitions of the module.
    pub more: String,
}

impl Default for Wat {
    /// Counts: `apply` adds one and returns an empty reply. `query` returns eight bytes.
    fn default() -> Self {
        Self {
            apply: "(i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 1))) (i32.const 256)",
            query: "(i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 8))
                    (i32.store (i32.const 520) (i32.const 8)) (i32.const 512)",
            subscribe: "unreachable",
            describe: "(i32.const 64)",
            snapshot: "(call $new_reader (i32.const 1))",
            read: "(i32.const 48)",
            restore: NEW_WRITER,
            write: "(i32.const 256)",
            finish: "(i32.const 256)",
            state_version: 1,
            name: "hand-made",
            restores: &[1],
            descriptor_set: Vec::new(),
            memory: "2",
            imports: "",
            more: String::new(),
        }
    }
}

/// The successful result of `restore`.
pub const NEW_WRITER: &str = "(i32.store8 (i32.const 512) (i32.const 0))
    (i32.store (i32.const 516) (call $new_writer (i32.const 1))) (i32.const 512)";

/// The address of the name, the versions and the descriptor set. The heap follows.
const TEXTS: u32 = 1024;
const HEAP: u32 = 1 << 16;

impl Wat {
    /// Encodes the component.
    pub fn component(&self) -> Bytes {
        let mut module = wat::parse_str(self.text()).unwrap();
        let mut resolve = wit_parser::Resolve::default();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        let (mut package, _) = resolve.push_dir(root).unwrap();
        let mut world = "machine";
        if !self.imports.is_empty() {
            package = resolve.push_str("wasi.wit", include_str!("wasi.wit")).unwrap();
            world = "machine-with-wasi";
        }
        let world = resolve.select_world(&[package], Some(world)).unwrap();
        let encoding = wit_component::StringEncoding::UTF8;
        wit_component::embed_component_metadata(&mut module, &resolve, world, encoding, false)
            .unwrap();
        let mut encoder = wit_component::ComponentEncoder::default();
        encoder.validate(true).module(&module).unwrap().encode().unwrap().into()
    }

    fn text(&self) -> String {
        let name_at = TEXTS;
        let restores_at = (name_at + self.name.len() as u32).next_multiple_of(4);
        let descriptor_at = restores_at + 4 * self.restores.len() as u32;
        let word = |value: u32| value.to_le_bytes();
        // name, version, state-version, restores, descriptor-set.
        let description: Vec<u8> = [
            word(name_at),
            word(self.name.len() as u32),
            word(name_at),
            word(0),
            word(self.state_version),
            word(restores_at),
            word(self.restores.len() as u32),
            word(descriptor_at),
            word(self.descriptor_set.len() as u32),
        ]
        .concat();
        let restores: Vec<u8> = self.restores.iter().flat_map(|version| word(*version)).collect();
        let Self {
            apply, query, subscribe, describe, snapshot, read, memory, imports, more, ..
        } = self;
        let Self { restore, write, finish, .. } = self;
        let fsm = "conclave:fsm/fsm@0.1.0";
        let context_and_call =
            "(param i64 i64 i64 i32 i32 i32 i32 i32 i32) (result i32) (local i32)";
        format!(
            r#"(module
  (import "[export]{fsm}" "[resource-new]snapshot-reader" (func $new_reader (param i32) (result i32)))
  (import "[export]{fsm}" "[resource-new]restore-writer" (func $new_writer (param i32) (result i32)))
  {imports}
  (memory (export "memory") {memory}) {more}
  (global $heap (mut i32) (i32.const {HEAP}))
  (data (i32.const 64) "{}")
  (data (i32.const {name_at}) "{}")
  (data (i32.const {restores_at}) "{}")
  (data (i32.const {descriptor_at}) "{}")
  ;; Never frees; starts over at the end of the second page.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local i32)
    (local.set 4 (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get 4) (local.get 3)))
    (if (i32.gt_u (global.get $heap) (i32.const {}))
      (then (local.set 4 (i32.const {HEAP})) (global.set $heap (i32.add (i32.const {HEAP}) (local.get 3)))))
    (local.get 4))
  (func $recurse (export "recurse") (param i32) (result i32)
    (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
  (func (export "{fsm}#describe") (result i32) {describe})
  (func (export "{fsm}#apply") {context_and_call} {apply})
  (func (export "{fsm}#query") {context_and_call} {query})
  (func (export "{fsm}#subscribe") {context_and_call} {subscribe})
  (func (export "{fsm}#tick") (param i64 i64 i64 i32 i32) (result i32) unreachable)
  (func (export "{fsm}#snapshot") (result i32) {snapshot})
  (func (export "{fsm}#[method]snapshot-reader.read") (param i32 i32) (result i32) {read})
  (func (export "{fsm}#restore") (param i32) (result i32) {restore})
  (func (export "{fsm}#[method]restore-writer.write") (param i32 i32 i32) (result i32) {write})
  (func (export "{fsm}#[method]restore-writer.finish") (param i32) (result i32) {finish})
)"#,
            escape(&description),
            escape(self.name.as_bytes()),
            escape(&restores),
            escape(&self.descriptor_set),
            2 * HEAP - 16,
        )
    }
}

fn escape(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "\\{byte:02x}").unwrap();
        text
    })
}
