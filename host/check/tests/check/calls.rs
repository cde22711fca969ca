//! Calls from files, and generated calls.

use conclave_check::{CallError, CheckError, Verdict};
use conclave_types::error::chain;

use super::{checked, generated, given, run, said, verdict, wrong};

fn refused(lines: &[&str]) -> (usize, String) {
    let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
    match run(wrong(0), &given(&lines)) {
        Err(CheckError::Calls { line, why }) => (line, chain(&why)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_line_that_is_no_call_is_named_with_its_number() {
    let good = r#"{"method": "wrong.v1.Wrong/Count"}"#;
    for (line, why) in [
        ("{", "EOF"),
        ("[]", "invalid"),
        (r#"{"request": {}}"#, "`method` is missing"),
        (r#"{"method": "wrong.v1.Wrong/Add", "request": {"wort": "x"}}"#, "`request`: "),
        (r#"{"method": "wrong.v1.Wrong/Ad", "request": {}}"#, "describes no method"),
        (r#"{"method": "wrong.v1.Wrong/Add", "request_base64": "*"}"#, "`request_base64`"),
        (r#"{"method": "x", "request": {}, "request_base64": ""}"#, "not both"),
        (r#"{"method": "x", "kind": "wish"}"#, "unknown variant"),
        (r#"{"method": "x", "kind": "tick"}"#, "a tick has neither"),
        (r#"{"method": "x", "time": 1}"#, "unknown field"),
    ] {
        let (number, said) = refused(&["# a remark", "", good, line, good]);
        assert_eq!(number, 4, "{line}");
        assert!(said.contains(why), "{line}: {said}");
        assert!(!said.contains(" at line 1"), "{said}");
    }
}

#[test]
fn cause_of_a_refused_line_is_kept_as_a_value() {
    let line = r#"{"method": "wrong.v1.Wrong/Add", "request_base64": "*"}"#;
    match run(wrong(0), &given(&[line.to_owned()])) {
        Err(CheckError::Calls { why: CallError::Base64(_), line: 1 }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn calls_are_taken_as_they_are_given() {
    let lines = [
        r#"{"method": "wrong.v1.Wrong/Add", "request": {"word": "a"}, "principal": "alice"}"#,
        r#"{"kind": "tick", "time_ms": 1750000060000}"#,
        r#"{"method": "wrong.v1.Wrong/Count"}"#,
        r#"{"method": "no.such/Method", "request_base64": "AAEC", "kind": "query"}"#,
        r#"{"method": "wrong.v1.Wrong/First", "kind": "command"}"#,
    ];
    let report = run(wrong(0), &given(&lines.map(str::to_owned))).unwrap();
    assert_eq!((report.calls, report.seed), ((2, 2, 1), None));
    assert!(report.failed().next().is_none(), "{}", said(&report));
}

#[test]
fn the_same_seed_makes_the_same_calls() {
    let restore = |seed| {
        let report = run(wrong(1), &generated(100, seed)).unwrap();
        (report.calls, report.lines(&checked(&report, "restore").log))
    };
    assert_eq!(restore(5), restore(5));
    assert_ne!(restore(5).0, restore(6).0);
}

#[test]
fn a_check_that_is_skipped_finds_nothing() {
    let mut options = generated(100, 1);
    options.skip = vec!["canonical".to_owned()];
    let report = run(wrong(6), &options).unwrap();
    assert_eq!(verdict(&report, "canonical"), Verdict::Skipped);
    assert!(report.failed().next().is_none(), "{}", said(&report));
    options.skip = vec!["canonicle".to_owned()];
    let error = run(wrong(6), &options).unwrap_err();
    assert!(error.to_string().contains("canonical, "), "{error}");
}

#[test]
fn no_calls_are_no_check() {
    assert!(matches!(run(wrong(0), &given(&[])), Err(CheckError::NoCalls)));
}
