//! Upgrades: one component replaces another.
//!
//! Goal: an upgrade fails the right check, with a small log, if an activation would be rejected or
//! would trap, or if replicas could disagree. A correct upgrade passes. Method: the old component is
//! the variant of `machines/wrong` without a breach. The new one reads its snapshots incorrectly.

use bytes::Bytes;
use conclave_check::{CheckError, Options, Report, Subject, Verdict, check_upgrade};

use super::{checked, failed, generated, given, said, verdict, wrong};

fn upgrade_with(old: Bytes, new: Bytes, options: &Options) -> Result<Report, CheckError> {
    check_upgrade(old, &Subject::load(new).unwrap(), options, &mut |_| {})
}

fn upgrade(old: u8, new: u8) -> Report {
    upgrade_with(wrong(old), wrong(new), &generated(200, 1)).unwrap()
}

/// Checks that the upgrade to this component gets the verdict from the check `name`, with at most
/// `calls_max` calls. Then checks that it gets the verdict again with only those calls. All earlier
/// checks must pass.
fn caught(new: u8, name: &str, expected: Verdict, calls_max: usize) -> String {
    let report = upgrade(0, new);
    let first = report.checks.iter().find(|checked| checked.verdict != Verdict::Ok).unwrap();
    assert_eq!((first.name, first.verdict), (name, expected), "{}", said(&report));
    assert!(first.log.len() <= calls_max, "{}", said(&report));
    assert!(!first.advice.is_empty() && !first.meaning.is_empty());
    if first.log.is_empty() {
        // The initial state shows the finding.
        return first.said.clone();
    }
    let lines = given(&report.lines(&first.log));
    let again = upgrade_with(wrong(0), wrong(new), &lines).unwrap();
    assert_eq!(verdict(&again, name), expected, "{}", said(&again));
    first.said.clone()
}

#[test]
fn the_same_component_can_take_its_own_place() {
    for report in [upgrade(0, 0), upgrade_with(kv(), kv(), &generated(300, 1)).unwrap()] {
        let verdicts: Vec<_> = report.checks.iter().map(|checked| checked.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok; 6], "{}", said(&report));
        let names: Vec<_> = report.checks.iter().map(|checked| checked.name).collect();
        assert_eq!(names, conclave_check::upgrade_names().collect::<Vec<_>>());
        assert!(
            checked(&report, "migration").said.starts_with("at 13 places"),
            "{}",
            said(&report)
        );
        assert!(report.changes.is_empty());
    }
}

fn kv() -> Bytes {
    crate::build("guest-kv")
}

/// The old component cannot read the new format. That is no failure of the upgrade.
#[test]
fn a_new_format_that_reads_the_old_one_is_fine_but_cannot_be_rolled_back() {
    let said = caught(21, "rollback", Verdict::Warned, 0);
    assert!(said.contains("the new component's snapshot before step 1"), "{said}");
    assert!(said.contains("is refused: the snapshot is cut off"), "{said}");
}

#[test]
fn a_snapshot_that_is_refused_is_shown_with_the_reason() {
    let said = caught(22, "migration", Verdict::Failed, 1);
    assert!(
        said.contains("after step 1 (format 1) is refused: the words have no language"),
        "{said}"
    );
    let report = upgrade(0, 22);
    for name in ["repeated", "restore", "continue", "rollback"] {
        assert_eq!(verdict(&report, name), Verdict::Skipped, "{}", self::said(&report));
    }
}

#[test]
fn a_trap_in_the_migration_is_shown_with_the_panic() {
    let said = caught(23, "migration", Verdict::Failed, 1);
    assert!(said.contains("causes a trap"), "{said}");
    assert!(said.contains("a word without a language"), "{said}");
}

#[test]
fn a_migration_that_depends_on_how_the_snapshot_is_cut_is_found() {
    caught(8, "repeated", Verdict::Failed, 4);
}

#[test]
fn a_migrated_state_that_differs_once_restored_is_found() {
    let said = caught(25, "restore", Verdict::Failed, 1);
    assert!(
        said.contains("upgraded after step 1, the snapshots at the end of the log differ"),
        "{said}"
    );
}

#[test]
fn what_is_lost_in_the_migration_is_a_warning() {
    let said = caught(24, "continue", Verdict::Warned, 2);
    assert!(said.contains("is answered differently"), "{said}");
}

#[test]
fn a_trap_where_the_old_component_answered_is_found() {
    let said = caught(11, "continue", Verdict::Failed, 1);
    assert!(said.contains("(wrong.v1.Wrong/Add) traps"), "{said}");
}

#[test]
fn clients_of_methods_that_are_gone_are_thought_of() {
    let report = upgrade_with(kv(), wrong(0), &generated(50, 1)).unwrap();
    assert_eq!(failed(&report), ["clients", "migration"], "{}", said(&report));
    let breaking = report.changes.iter().filter(|change| change.breaking);
    assert!(breaking.clone().any(|change| change.subject == "kv.v1.KV/Put"));
    let shown = &checked(&report, "clients").finding.as_ref().unwrap().sides;
    assert_eq!(shown.len(), breaking.count());
    let refused = &checked(&report, "migration").said;
    assert!(refused.contains("cannot restore state version 2, only [1]"), "{refused}");
}

#[test]
fn the_calls_are_read_by_the_old_component_and_checks_are_named() {
    let line = r#"{"method": "wrong.v1.Wrong/Add", "request": {"wort": "x"}}"#.to_owned();
    let refused = upgrade_with(wrong(0), wrong(0), &given(&[line]));
    assert!(matches!(refused, Err(CheckError::Calls { line: 1, .. })), "{refused:?}");
    let mut options = generated(10, 1);
    options.skip = vec!["replay".to_owned()];
    let refused = upgrade_with(wrong(0), wrong(0), &options).unwrap_err().to_string();
    assert_eq!(refused.lines().count(), 1);
    assert!(refused.contains("clients, migration, repeated"), "{refused}");
    let refused = upgrade_with(Bytes::from_static(b"no"), wrong(0), &generated(10, 1)).unwrap_err();
    assert!(
        refused.to_string().starts_with("the component to upgrade from cannot be loaded"),
        "{refused}"
    );
}
