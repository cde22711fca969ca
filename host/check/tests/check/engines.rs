//! Checks that a difference between the two engines is detected.
//!
//! Method: no component is known that wasmtime's compiler and interpreter run differently, so a
//! different state machine takes the place of a faulty engine.

use conclave_check::{Subject, check};
use conclave_machine::{Component, Engine, Limits};

use super::{checked, failed, generated, said, wrong};

#[test]
fn an_engine_that_answers_otherwise_is_seen() {
    let limits = Limits::default();
    let engine = Engine::interpreter(&limits).unwrap();
    let subject = Subject {
        component: Component::load(&Engine::new(&limits).unwrap(), wrong(0)).unwrap(),
        // Keeps words in the order of insertion.
        second: Component::load(&engine, wrong(6)).unwrap(),
    };
    let report = check(&subject, &generated(300, 1), &mut |_| {}).unwrap();
    assert_eq!(failed(&report), ["interpreter"], "{}", said(&report));
    let interpreter = checked(&report, "interpreter");
    assert!((1..=4).contains(&interpreter.log.len()), "{}", said(&report));
    let finding = interpreter.finding.as_ref().unwrap();
    assert_eq!(finding.sides[1].0, "interpreter");
}

#[test]
fn the_interpreter_is_another_engine() {
    let limits = Limits::default();
    let (compiled, interpreted) =
        (Engine::new(&limits).unwrap(), Engine::interpreter(&limits).unwrap());
    assert_ne!(compiled.fingerprint(), interpreted.fingerprint());
}
