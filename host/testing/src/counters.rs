//! Handwritten counting state machines in several versions.
#![allow(clippy::unwrap_used, missing_docs, reason = "for tests, which fail by panicking")]

use crate::wat::{NEW_WRITER, Wat};

/// The failing result of a function of the contract, with the message [`FAILS_WITH`].
pub const FAILS: &str =
    "(i32.store8 (i32.const 656) (i32.const 1)) (i32.store (i32.const 664) (i32.const 4900))
     (i32.store (i32.const 668) (i32.const 12)) (i32.const 656)";
pub const FAILS_WITH: &str = "not this one";

/// Counts by `step`, and saves its state as eight bytes. Version 1 saves the number, version 2 the number
/// plus a thousand, so that confusing the two is detected. An entry or a query with a request traps.
pub fn version(name: &'static str, step: i64, state_version: u32, restores: &'static [u32]) -> Wat {
    let apply = format!(
        "(if (local.get 8) (then unreachable))
         (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const {step})))
         (i32.store (i32.const 264) (i32.const 8)) (i32.store (i32.const 268) (i32.const 8)) (i32.const 256)"
    );
    let query = format!(
        "(if (local.get 8) (then unreachable))
         (i64.store (i32.const 704) (i64.load (i32.const 8))) (i64.store (i32.const 712) (i64.const {step}))
         (i32.store8 (i32.const 512) (i32.const 0)) (i32.store (i32.const 516) (i32.const 704))
         (i32.store (i32.const 520) (i32.const 16)) (i32.const 512)"
    );
    let more_than_it_is = if state_version == 2 { 1000 } else { 0 };
    // Each snapshot uses sixteen bytes from address 4096 on: the captured number, and the number of
    // bytes left to read.
    let snapshot = format!(
        "(global.set $taken (i32.and (i32.add (global.get $taken) (i32.const 1)) (i32.const 15)))
         (i64.store offset=4096 (i32.mul (global.get $taken) (i32.const 16))
           (i64.add (i64.load (i32.const 8)) (i64.const {more_than_it_is})))
         (i32.store offset=4104 (i32.mul (global.get $taken) (i32.const 16)) (i32.const 8))
         (call $new_reader (global.get $taken))"
    );
    Wat {
        name,
        state_version,
        restores,
        apply: apply.leak(),
        query: query.leak(),
        snapshot: snapshot.leak(),
        // Returns at most three bytes at a time.
        read: "(local.set 0 (i32.mul (local.get 0) (i32.const 16)))
               (local.set 1 (i32.load offset=4104 (local.get 0)))
               (i32.store (i32.const 48) (i32.sub (i32.add (local.get 0) (i32.const 4104)) (local.get 1)))
               (if (i32.gt_u (local.get 1) (i32.const 3)) (then (local.set 1 (i32.const 3))))
               (i32.store (i32.const 52) (local.get 1))
               (i32.store offset=4104 (local.get 0)
                 (i32.sub (i32.load offset=4104 (local.get 0)) (local.get 1)))
               (i32.const 48)",
        restore: format!(
            "(global.set $version (local.get 0)) (global.set $got (i32.const 0)) {NEW_WRITER}"
        )
        .leak(),
        write: "(memory.copy (i32.add (i32.const 4000) (global.get $got)) (local.get 1) (local.get 2))
                (global.set $got (i32.add (global.get $got) (local.get 2))) (i32.const 640)",
        finish: format!(
            "(if (i32.ne (global.get $got) (i32.const 8)) (then {FAILS} return))
             (i64.store (i32.const 8) (i64.sub (i64.load (i32.const 4000))
               (select (i64.const 1000) (i64.const 0) (i32.eq (global.get $version) (i32.const 2)))))
             (i32.const 640)"
        )
        .leak(),
        more: format!(
            "(global $taken (mut i32) (i32.const 0)) (global $version (mut i32) (i32.const 0))
             (global $got (mut i32) (i32.const 0)) (data (i32.const 4900) \"{FAILS_WITH}\")"
        ),
        ..Wat::default()
    }
}
