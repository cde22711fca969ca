//! What a component consists of, read without running it.

use std::collections::BTreeMap;

use wasmparser::{DataKind, Operator, Parser, Payload};

use super::{
    report::{Checked, Verdict},
    usage::size,
};

const NAME: &str = "features";
const MEANING: &str = "nothing in the component is known to make replicas differ";

/// What was counted.
#[derive(Default)]
struct Found {
    functions: usize,
    instructions: usize,
    /// Instructions that compute with floats. Moving one about is harmless.
    floats: usize,
    /// By proposal.
    risky: BTreeMap<&'static str, usize>,
    data_bytes: usize,
    memories: Vec<(u64, Option<u64>, bool)>,
    /// Interfaces of WASI.
    wasi: Vec<String>,
}

/// Proposals whose use is worth knowing, with what is to be known.
const RISKY: [(&str, &str); 5] = [
    ("relaxed_simd", "relaxed SIMD gives other answers on other processors; nodes refuse it"),
    ("threads", "threads race; nodes refuse them"),
    ("shared_everything_threads", "threads race; nodes refuse them"),
    ("simd", "SIMD is deterministic; floats in it count as floats do"),
    ("exceptions", "exceptions are not served by nodes"),
];

/// Reads the component. One that cannot be read is the loader's to refuse.
pub(super) fn features(component: &[u8]) -> Checked {
    let mut found = Found::default();
    // What was counted up to where it breaks is still true.
    let broken = scan(component, &mut found).is_err();
    let mut warnings = Vec::new();
    if found.floats > 0 {
        warnings.push(format!("{} instructions compute with floats", found.floats));
    }
    for (proposal, meaning) in RISKY {
        if let Some(count) = found.risky.get(proposal) {
            warnings.push(format!("{count} instructions of {proposal} ({meaning})"));
        }
    }
    if found.memories.iter().any(|(_, _, shared)| *shared) {
        warnings.push("a shared memory, which nodes refuse".to_owned());
    }
    for name in &found.wasi {
        warnings.push(wasi(name));
    }
    if broken {
        warnings.push("a part that could not be read".to_owned());
    }
    let pages: u64 = found.memories.iter().map(|(initial, _, _)| *initial).sum();
    let summary = format!(
        "{} functions, {} of data, {} of memory declared at the start",
        found.functions,
        size(found.data_bytes),
        size((pages << 16) as usize)
    );
    if warnings.is_empty() {
        let said = format!("no floats, no SIMD, no threads, no WASI; {summary}");
        return Checked::new(NAME, MEANING, Verdict::Ok, said);
    }
    let said = format!("{}; {summary}", warnings.join("; "));
    let mut checked = Checked::new(NAME, MEANING, Verdict::Warned, said);
    if found.floats > 0 {
        checked.advice = "The engine makes floats the same on every node, NaN included. But a sum of floats \
                          depends on the order of its parts: one that is kept up along the log and added up \
                          anew after a restore comes out differently. Count in integers, or save the sum."
            .to_owned();
    }
    checked
}

fn wasi(name: &str) -> String {
    let what = match name {
        name if name.contains("clocks") => {
            "its time is that of the log's entry, and stands still in a call"
        }
        name if name.contains("random") => "it follows from the log's entry, and is no secret",
        name if name.contains("sockets")
            || name.contains("filesystem")
            || name.contains("http") =>
        {
            "a machine has none"
        }
        _ => "a machine has only its arguments",
    };
    format!("{name} is imported: {what}")
}

fn scan(component: &[u8], found: &mut Found) -> wasmparser::Result<()> {
    // Components in components are parsed along; only the outermost imports are the machine's.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let name = import?.name.name;
                    if name.starts_with("wasi:") {
                        found.wasi.push(name.to_owned());
                    }
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory?;
                    found.memories.push((memory.initial, memory.maximum, memory.shared));
                }
            }
            Payload::DataSection(section) => {
                for data in section {
                    let data = data?;
                    if matches!(data.kind, DataKind::Active { .. } | DataKind::Passive) {
                        found.data_bytes += data.data.len();
                    }
                }
            }
            Payload::CodeSectionEntry(body) => {
                found.functions += 1;
                let mut operators = body.get_operators_reader()?;
                while !operators.eof() {
                    count(&operators.read()?, found);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The proposal and the name of each instruction that there is.
macro_rules! describe {
    ($( @$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*) )*) => {
        fn describe(operator: &Operator<'_>) -> (&'static str, &'static str) {
            match operator {
                $( Operator::$op { .. } => (stringify!($proposal), stringify!($op)), )*
                _ => ("", ""),
            }
        }
    };
}
wasmparser::for_each_operator!(describe);

fn count(operator: &Operator<'_>, found: &mut Found) {
    found.instructions += 1;
    let (proposal, name) = describe(operator);
    if RISKY.iter().any(|(risky, _)| *risky == proposal) {
        let risky = RISKY.iter().find(|(risky, _)| *risky == proposal).map_or("", |(name, _)| name);
        *found.risky.entry(risky).or_default() += 1;
    }
    found.floats += usize::from(computes_with_floats(name));
}

/// By the names of the specification: `F64Add`, `I32TruncF64S`, `F32x4Mul`.
fn computes_with_floats(name: &str) -> bool {
    const HARMLESS: [&str; 6] = ["Load", "Store", "Const", "Reinterpret", "Splat", "Lane"];
    let floats = name.contains("F32") || name.contains("F64");
    floats && !HARMLESS.iter().any(|harmless| name.contains(harmless))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_that_are_only_moved_do_not_count() {
        for name in ["F64Add", "I32TruncF64S", "F32x4Mul", "F64PromoteF32"] {
            assert!(computes_with_floats(name), "{name}");
        }
        for name in ["F64Load", "F32Const", "I64ReinterpretF64", "I64Add", "F64x2Splat"] {
            assert!(!computes_with_floats(name), "{name}");
        }
    }
}
