//! Goal: flags have the values that were set for each subject; a write with an outdated version
//! fails; only Evaluate returns secrets; the state machine satisfies the contract.
//! Method: logs of calls, applied natively by the SDK's conformance tests, and their replies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use std::collections::BTreeMap;

use conclave_sdk::{
    Call, Code, Context, Failure, Machine as _,
    prost::Message,
    testing::{Log, check, check_same_state},
};
use flags::{
    Flags, bucket, limits,
    pb::{
        ArchiveRequest, ArchiveResponse, Definition, DeleteRequest, DeleteResponse,
        DeleteSegmentRequest, DeleteSegmentResponse, EvaluateAllRequest, EvaluateAllResponse,
        EvaluateRequest, Evaluation, Flag, GetRequest, HistoryRequest, HistoryResponse,
        ListRequest, ListResponse, Rule, SetRequest, SetResponse, SetSegmentRequest,
        SetSegmentResponse, Value, change, evaluation::Reason, value::Kind,
    },
};

fn method(name: &str, request: &impl Message) -> Call {
    Call::of(format!("flags.v1.Flags/{name}"), request)
}

fn text(text: &str) -> Option<Value> {
    Some(Value { kind: Some(Kind::Text(text.into())) })
}

fn boolean(on: bool) -> Option<Value> {
    Some(Value { kind: Some(Kind::Bool(on)) })
}

/// A flag that is off, except on by these rules.
fn switch(rules: impl Into<Vec<Rule>>) -> Definition {
    let mut rules = rules.into();
    for rule in &mut rules {
        rule.value = boolean(true);
    }
    Definition { enabled: true, off: boolean(false), rules, ..Definition::default() }
}

fn set(name: &str, definition: Definition, expected_version: u64) -> Call {
    let (name, note) = (name.into(), "because".into());
    let definition = Some(definition);
    method("Set", &SetRequest { name, definition, expected_version, note })
}

fn set_segment(name: &str, subjects: &[&str], expected_version: u64) -> Call {
    let (name, note) = (name.into(), String::new());
    let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
    method("SetSegment", &SetSegmentRequest { name, subjects, expected_version, note })
}

fn archive(name: &str, expected_version: u64) -> Call {
    let request = ArchiveRequest { name: name.into(), expected_version, note: String::new() };
    method("Archive", &request)
}

fn evaluate(name: &str, subject: &str, attributes: &[(&str, &str)]) -> Call {
    let attributes = attributes.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    let request = EvaluateRequest { name: name.into(), subject: subject.into(), attributes };
    method("Evaluate", &request)
}

#[derive(Default)]
struct Story {
    flags: Flags,
    index: u64,
}

impl Story {
    fn context(&self) -> Context {
        let time_ms = 1_750_000_000_000 + self.index;
        Context { index: self.index, time_ms, seed: 0, principal: "ada".into() }
    }

    fn try_call<R: Message + Default>(&mut self, call: &Call) -> Result<R, Failure> {
        self.index += 1;
        let context = self.context();
        Ok(R::decode(&*self.flags.apply(&context, call)?.response).unwrap())
    }

    fn set(&mut self, name: &str, definition: Definition, expected_version: u64) -> u64 {
        let call = set(name, definition, expected_version);
        self.try_call::<SetResponse>(&call).unwrap().version
    }

    fn refused(&mut self, call: &Call) -> Failure {
        let before = self.flags.save();
        let failure = self.try_call::<SetResponse>(call).unwrap_err();
        assert_eq!(before, self.flags.save(), "a refusal changes nothing");
        failure
    }

    fn query<R: Message + Default>(&self, call: &Call) -> R {
        R::decode(&*self.flags.query(&self.context(), call).unwrap()).unwrap()
    }

    fn evaluation(&self, name: &str, subject: &str, attributes: &[(&str, &str)]) -> Evaluation {
        self.query(&evaluate(name, subject, attributes))
    }

    fn is_on(&self, name: &str, subject: &str) -> bool {
        self.evaluation(name, subject, &[]).value == boolean(true)
    }

    fn names(&self, archived: bool) -> Vec<String> {
        let request = ListRequest { archived, ..ListRequest::default() };
        let list: ListResponse = self.query(&method("List", &request));
        list.flags.into_iter().map(|flag| flag.name).collect()
    }
}

/// The numbers come from Python:
/// int.from_bytes(hashlib.sha256(b"checkout/new\0ada").digest()[:8], "big") % 10_000.
/// If this test fails, every rollout in use would change its subjects.
#[test]
fn the_bucket_is_what_the_proto_file_spells_out() {
    assert_eq!(bucket("checkout/new", "ada"), 2711);
    assert_eq!(bucket("checkout/new", "grace"), 2614);
    assert_eq!(bucket("search", "ada"), 9525);
    assert_eq!(bucket("search", ""), 2174);
    let in_quarter = (0..10_000).filter(|n| bucket("checkout/new", &format!("user-{n}")) < 2500);
    assert_eq!(in_quarter.count(), 2459);
}

#[test]
fn a_larger_share_keeps_everybody_of_the_smaller_one() {
    let mut story = Story::default();
    let share = |rollout| switch([Rule { rollout: Some(rollout), ..Rule::default() }]);
    let subjects: Vec<_> = (0..1000).map(|number| format!("user-{number}")).collect();
    let (mut version, mut before) = (0, Vec::new());
    for rollout in [0, 100, 2500, 5000, 10_000] {
        version = story.set("new", share(rollout), version);
        let on: Vec<_> = subjects.iter().filter(|subject| story.is_on("new", subject)).collect();
        assert!(before.iter().all(|subject| on.contains(subject)), "{rollout}: some were lost");
        let expected = rollout as f64 / 10.0;
        assert!((on.len() as f64 - expected).abs() < 60.0, "{rollout}: {} of 1000", on.len());
        before = on;
    }
    assert_eq!(before.len(), 1000, "the full share contains all subjects");

    let same = Definition { salt: "new".into(), ..share(2500) };
    story.set("new", share(2500), version);
    story.set("beside", same, 0);
    story.set("other", share(2500), 0);
    assert!(subjects.iter().all(|s| story.is_on("new", s) == story.is_on("beside", s)));
    assert!(subjects.iter().any(|s| story.is_on("new", s) != story.is_on("other", s)));
}

#[test]
fn the_first_rule_that_holds_counts() {
    let mut story = Story::default();
    story.try_call::<SetSegmentResponse>(&set_segment("staff", &["ada", "grace"], 0)).unwrap();
    let rules = [
        Rule { subjects: vec!["ada".into()], value: text("own"), ..Rule::default() },
        Rule { segment: "staff".into(), value: text("staff"), ..Rule::default() },
        Rule {
            attributes: BTreeMap::from([("plan".into(), "pro".into())]),
            rollout: Some(10_000),
            value: text("pro"),
            ..Rule::default()
        },
    ];
    let definition = Definition {
        enabled: true,
        off: text("none"),
        rules: rules.into(),
        ..Definition::default()
    };
    story.set("theme", definition.clone(), 0);
    let expect = |subject: &str, attributes: &[(&str, &str)], value: &str, rule| {
        let evaluation = story.evaluation("theme", subject, attributes);
        assert_eq!((evaluation.value.clone(), evaluation.rule), (text(value), rule), "{subject}");
        evaluation.reason()
    };
    assert_eq!(expect("ada", &[("plan", "pro")], "own", Some(0)), Reason::Rule);
    assert_eq!(expect("grace", &[], "staff", Some(1)), Reason::Rule);
    assert_eq!(expect("alan", &[("plan", "pro")], "pro", Some(2)), Reason::Rule);
    assert_eq!(expect("alan", &[("plan", "free")], "none", None), Reason::NoRule);

    story.set("theme", Definition { enabled: false, ..definition }, 2);
    let off = story.evaluation("theme", "ada", &[]);
    assert_eq!((off.value.clone(), off.reason()), (text("none"), Reason::Disabled));
}

#[test]
fn nobody_overwrites_what_they_have_not_seen() {
    let mut story = Story::default();
    let first = story.set("new", switch([]), 0);
    for expected in [0, first + 1] {
        let failure = story.refused(&set("new", switch([]), expected));
        assert_eq!(failure.code, Code::Aborted, "{}", failure.message);
    }
    let second = story.set("new", switch([]), first);
    assert!(second > first);

    // A flag that was deleted and created again has another version than the one read before.
    let archived: ArchiveResponse = story.try_call(&archive("new", second)).unwrap();
    let expected_version = archived.version;
    let delete = DeleteRequest { name: "new".into(), expected_version, note: String::new() };
    story.try_call::<DeleteResponse>(&method("Delete", &delete)).unwrap();
    assert_eq!(story.refused(&set("new", switch([]), second)).code, Code::Aborted);
    assert!(story.set("new", switch([]), 0) > expected_version);
}

#[test]
fn an_archived_flag_is_off_and_out_of_sight_until_it_is_deleted_or_set_again() {
    let mut story = Story::default();
    let version = story.set("old", switch([Rule::default()]), 0);
    assert!(story.is_on("old", "ada"));
    let delete = |expected_version| {
        method("Delete", &DeleteRequest { name: "old".into(), expected_version, note: "".into() })
    };
    assert_eq!(story.refused(&delete(version)).code, Code::FailedPrecondition);
    let version = story.try_call::<ArchiveResponse>(&archive("old", version)).unwrap().version;
    let evaluation = story.evaluation("old", "ada", &[]);
    assert_eq!(evaluation.reason(), Reason::Archived);
    assert_eq!(evaluation.value, boolean(false));
    assert_eq!((story.names(false).len(), story.names(true).len()), (0, 1));
    let version = story.set("old", switch([Rule::default()]), version);
    assert!(story.is_on("old", "ada"));
    let version = story.try_call::<ArchiveResponse>(&archive("old", version)).unwrap().version;
    story.try_call::<DeleteResponse>(&delete(version)).unwrap();
    assert_eq!(story.names(true), [""; 0]);
}

#[test]
fn a_secret_is_given_to_those_who_ask_for_it_by_name_and_shown_nowhere_else() {
    const SECRET: &str = "correct horse battery staple";
    let mut story = Story::default();
    let rules = vec![Rule { value: text(SECRET), ..Rule::default() }];
    let credential = Definition {
        enabled: true,
        secret: true,
        off: text(SECRET),
        rules,
        ..Definition::default()
    };
    story.set("db/password", credential.clone(), 0);
    story.set("new", switch([]), 0);
    assert_eq!(story.evaluation("db/password", "app", &[]).value, text(SECRET));

    let get: Flag = story.query(&method("Get", &GetRequest { name: "db/password".into() }));
    let list: ListResponse = story.query(&method("List", &ListRequest::default()));
    let all: EvaluateAllResponse =
        story.query(&method("EvaluateAll", &EvaluateAllRequest::default()));
    let history: HistoryResponse = story.query(&method("History", &HistoryRequest::default()));
    assert_eq!((list.flags.len(), all.evaluations.len(), history.changes.len()), (2, 1, 2));
    for shown in
        [get.encode_to_vec(), list.encode_to_vec(), all.encode_to_vec(), history.encode_to_vec()]
    {
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(!shown.contains(SECRET), "{shown}");
    }
    let opened = Definition { secret: false, ..credential };
    let failure = story.refused(&set("db/password", opened, 1));
    assert!(failure.message.contains("stays so"), "{}", failure.message);
}

#[test]
fn the_history_says_who_changed_what_and_forgets_the_oldest() {
    let mut story = Story::default();
    let mut version = story.set("new", switch([]), 0);
    version = story.set("new", Definition { enabled: false, ..switch([Rule::default()]) }, version);
    let ask =
        |before, limit| method("History", &HistoryRequest { name: "new".into(), before, limit });
    let history: HistoryResponse = story.query(&ask(0, 0));
    let last = &history.changes[0];
    assert_eq!(last.kind(), change::Kind::Changed);
    assert_eq!((last.what.as_str(), last.note.as_str()), ("enabled, rules", "because"));
    assert_eq!((last.principal.as_str(), last.number), ("ada", version));

    for _ in 0..limits::CHANGES_MAX {
        version = story.set("new", switch([]), version);
    }
    let (mut before, mut seen) = (0, 0);
    loop {
        let page: HistoryResponse = story.query(&ask(before, 30));
        let Some(last) = page.changes.last() else { break };
        before = last.number;
        seen += page.changes.len();
    }
    assert_eq!((seen, before), (limits::CHANGES_MAX, 3), "the first two are forgotten");
}

#[test]
fn a_segment_in_use_stays() {
    let mut story = Story::default();
    let unknown = switch([Rule { segment: "staff".into(), ..Rule::default() }]);
    assert_eq!(story.refused(&set("new", unknown.clone(), 0)).code, Code::NotFound);
    let segment: SetSegmentResponse = story.try_call(&set_segment("staff", &["ada"], 0)).unwrap();
    let version = story.set("new", unknown, 0);
    let request = DeleteSegmentRequest {
        name: "staff".into(),
        expected_version: segment.version,
        note: String::new(),
    };
    let delete = method("DeleteSegment", &request);
    let failure = story.refused(&delete);
    assert!(failure.message.contains("a rule of new"), "{}", failure.message);
    story.set("new", switch([]), version);
    story.try_call::<DeleteSegmentResponse>(&delete).unwrap();
}

#[test]
fn what_is_no_flag_is_refused() {
    let mut story = Story::default();
    let of =
        |off: Kind| Definition { off: Some(Value { kind: Some(off) }), ..Definition::default() };
    let rule = |rule: Rule| Definition { rules: vec![rule], ..of(Kind::Bool(false)) };
    let many = vec![Rule { value: boolean(true), ..Rule::default() }; limits::RULES_MAX + 1];
    for (definition, why) in [
        (Definition::default(), "`off` is not set"),
        (of(Kind::Number(f64::NAN)), "finite"),
        (of(Kind::Json("{".into())), "not JSON"),
        (of(Kind::Text("x".repeat(limits::VALUE_BYTES_MAX + 1))), "16385 bytes"),
        (rule(Rule::default()), "rule 0: its value is not set"),
        (
            rule(Rule { value: text("x"), ..Rule::default() }),
            "is a text, the flag's `off` is a bool",
        ),
        (
            rule(Rule { value: boolean(true), rollout: Some(10_001), ..Rule::default() }),
            "10000 means all subjects",
        ),
        (switch(many), "33 rules"),
        (Definition { salt: "no salt".into(), ..of(Kind::Bool(false)) }, "the salt"),
    ] {
        let failure = story.refused(&set("new", definition, 0));
        assert_eq!(failure.code, Code::InvalidArgument);
        assert!(failure.message.contains(why), "{why}: {}", failure.message);
    }
    for name in ["", "New", "a b", &"x".repeat(limits::NAME_BYTES_MAX + 1)] {
        assert_eq!(story.refused(&set(name, switch([]), 0)).code, Code::InvalidArgument);
    }
    for good in [of(Kind::Json("{\"a\": [1, null]}".into())), of(Kind::Number(-1.5))] {
        story.set(&format!("good-{}", story.index), good, 0);
    }
    let version = story.set("typed", switch([]), 0);
    let failure = story.refused(&set("typed", of(Kind::Number(1.0)), version));
    assert!(failure.message.contains("is a bool"), "{}", failure.message);
}

#[test]
fn lists_come_in_pages_by_prefix() {
    let mut story = Story::default();
    for name in ["a", "job/1", "job/2", "job/3", "k"] {
        story.set(name, switch([]), 0);
    }
    let page = |after: &str| {
        let (prefix, after) = ("job/".into(), after.into());
        let request = ListRequest { prefix, after, limit: 2, archived: false };
        let page: ListResponse = story.query(&method("List", &request));
        (page.flags.into_iter().map(|flag| flag.name).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(""), (vec!["job/1".into(), "job/2".into()], "job/2".into()));
    assert_eq!(page("job/2"), (vec!["job/3".into()], String::new()));
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let mut story = Story::default();
    story.set("new", switch([]), 0);
    let good = story.flags.save();
    assert!(Flags::load(1, &good).is_ok());
    assert!(Flags::load(1, &good[..good.len() - 1]).is_err());
    // The number of the last change, which is the first field, is set to 0: no change was made.
    let forged: Vec<u8> = [&[0x08, 0x00], &good[2..]].concat();
    let forged = Flags::load(1, &forged).err().unwrap();
    assert!(forged.message.contains("of no change"), "{}", forged.message);
}

#[test]
fn it_keeps_the_contract() {
    let mut log = Log::new();
    log.ask(method("List", &ListRequest { archived: true, ..ListRequest::default() }));
    log.ask(method(
        "EvaluateAll",
        &EvaluateAllRequest { subject: "ada".into(), ..Default::default() },
    ));
    log.ask(method("History", &HistoryRequest::default()));
    log.ask(evaluate("new", "ada", &[]));
    log.principal("ada").apply(set_segment("staff", &["grace", "ada"], 0));
    log.apply(set("new", switch([Rule { segment: "staff".into(), ..Rule::default() }]), 0));
    log.wait_ms(5).apply(set("new", switch([Rule { rollout: Some(50), ..Rule::default() }]), 2));
    log.apply(set("new", switch([]), 2)).principal("").apply(archive("new", 3));
    log.apply(set("secret", Definition { secret: true, ..switch([]) }, 0));
    log.apply(set_segment("staff", &[], 1));
    check::<Flags>(&log);
}

/// Fails if the snapshot depends on the order in which a segment's subjects were given.
#[test]
fn the_order_of_subjects_does_not_show() {
    let log = |subjects: &[&str]| {
        let mut log = Log::new();
        log.apply(set_segment("staff", subjects, 0));
        log
    };
    check_same_state::<Flags>(&log(&["ada", "grace"]), &log(&["grace", "ada"]));
}
