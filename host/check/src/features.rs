//! Static analysis of a component, without running it.

use std::collections::BTreeMap;

use wasmparser::{DataKind, Operator, Parser, Payload};

use super::report::{Checked, Verdict, size};

const NAME: &str = "features";
const MEANING: &str = "nothing in the component is known to make replicas differ";

/// Results of the scan.
#[derive(Default)]
struct Found {
    functions: usize,
    instructions: usize,
    /// Number of instructions that compute with floats. Moving floats is harmless.
    floats: usize,
    /// Number of instructions by proposal.
    risky: BTreeMap<&'static str, usize>,
    data_bytes: usize,
    memories: Vec<(u64, Option<u64>, bool)>,
    /// Names of imported WASI interfaces.
    wasi: Vec<String>,
}

/// Proposals to report, each with an explanation.
const RISKY: [(&str, &str); 5] = [
    (
        "relaxed_simd",
        "relaxed SIMD gives different results on different processors; nodes reject it",
    ),
    ("threads", "threads race; nodes reject them"),
    ("shared_everything_threads", "threads race; nodes reject them"),
    ("simd", "SIMD is deterministic; its float instructions count as floats"),
    ("exceptions", "nodes reject exceptions"),
];

/// Scans the component. The loader reports a component that cannot be parsed.
pub(super) fn features(component: &[u8]) -> Checked {
    let mut found = Found::default();
    // The counts up to a parse error are still valid.
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
        warnings.push("a shared memory, which nodes reject".to_owned());
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
        checked.advice = "Float arithmetic is the same on every node, NaN included. But a sum of floats \
                          depends on the order of its parts: a sum that is maintained along the log and \
                          computed again after a restore has another value. Count in integers, or save the \
                          sum."
            .to_owned();
    }
    checked
}

fn wasi(name: &str) -> String {
    let what = match name {
        name if name.contains("clocks") => {
            "its time is that of the log entry, and does not change during a call"
        }
        name if name.contains("random") => "it is derived from the log entry, and is no secret",
        name if name.contains("sockets")
            || name.contains("filesystem")
            || name.contains("http") =>
        {
            "a state machine has no access"
        }
        _ => "a state machine has only its arguments",
    };
    format!("{name} is imported: {what}")
}

fn scan(component: &[u8], found: &mut Found) -> wasmparser::Result<()> {
    // Nested components are parsed too. Only the outermost imports are those of the state machine.
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

/// Defines a function that returns the proposal and the name of each instruction.
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

/// Decides by the name in the specification: `F64Add`, `I32TruncF64S`, `F32x4Mul`.
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
