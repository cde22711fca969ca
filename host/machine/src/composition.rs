//! Checks the parts of a component before it is compiled.

use wasmparser::{Encoding, Parser, Payload};

use super::error::LoadError;

/// Rejects a component that contains other components with code of their own.
///
/// The engine transcodes the strings that pass between two such components and charges no fuel for
/// that. One call could keep every node busy for hours, and again after each restart. Nested
/// components without code are the adapters of toolchains and carry only types.
pub(super) fn check(component: &[u8]) -> Result<(), LoadError> {
    let mut open = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        // Leaves the error to the compiler, which reports the reason.
        let Ok(payload) = payload else { return Ok(()) };
        match payload {
            Payload::Version { encoding, .. } => open.push(encoding),
            Payload::End(_) => _ = open.pop(),
            Payload::ModuleSection { .. } => {
                let components =
                    open.iter().filter(|encoding| matches!(encoding, Encoding::Component));
                if components.count() > 1 {
                    return Err(LoadError::Composed);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn only_the_outermost_component_has_code() {
        let check = |text: &str| check(&wat::parse_str(text).unwrap());
        let module = "(core module (func (export \"f\")))";
        assert!(check(&format!("(component {module} {module})")).is_ok());
        assert!(check(&format!("(component (component (type u32)) {module})")).is_ok());
        for composed in [
            format!("(component (component {module}))"),
            format!("(component {module} (component (component {module})))"),
        ] {
            assert!(matches!(check(&composed), Err(LoadError::Composed)), "{composed}");
        }
        assert!(super::check(b"\0asm\x0d\0\x01\0 and then nonsense").is_ok());
    }
}
