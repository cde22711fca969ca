//! Goal: the table from errors to gRPC, row by row, as a client sees it.

use conclave_types::{
    Code as MachineCode, Failure, Outcome, Trap, TrapKind, error::Error, status::Leader,
};
use tonic::Code;

use crate::fake::{GET, Node, PUT, Script, metadata};

fn leader(address: &str) -> Option<Leader> {
    Some(Leader { node_id: 2, client_address: address.into() })
}

/// An error and its expected code, part of the text, leader and outcome.
type Row = (fn() -> Error, Code, &'static str, Option<&'static str>, Option<&'static str>);

const TABLE: [Row; 18] = [
    (
        || Error::not_leader(leader("client:2")),
        Code::Unavailable,
        "node 2 at client:2",
        Some("client:2"),
        Some("not-applied"),
    ),
    (|| Error::not_leader(leader("")), Code::Unavailable, "to node 2", None, Some("not-applied")),
    (|| Error::not_leader(None), Code::Unavailable, "knows no leader", None, Some("not-applied")),
    (Error::no_quorum, Code::Unavailable, "majority", None, Some("not-applied")),
    (Error::shutting_down, Code::Unavailable, "another node", None, Some("not-applied")),
    (
        || Error::stopped("the disk is broken: replace it"),
        Code::Unavailable,
        "send the call to another node: the disk is broken",
        None,
        Some("not-applied"),
    ),
    (
        Error::deadline,
        Code::DeadlineExceeded,
        "before the call had any effect",
        None,
        Some("not-applied"),
    ),
    (
        Error::deadline_outcome_unknown,
        Code::DeadlineExceeded,
        "may or may not have been applied",
        None,
        Some("unknown"),
    ),
    (
        || Error::lost("the leader changed"),
        Code::Unknown,
        "the leader changed, and the command may or may not",
        None,
        Some("unknown"),
    ),
    (|| Error::limit("memory is full"), Code::ResourceExhausted, "memory is full", None, None),
    (
        || Error::busy("queue is full"),
        Code::Unavailable,
        "queue is full",
        None,
        Some("not-applied"),
    ),
    (|| Error::unknown_method("no x"), Code::Unimplemented, "no x", None, None),
    (|| Error::unsupported("not yet"), Code::Unimplemented, "not yet", None, None),
    (|| Error::compressed("with gzip"), Code::Unimplemented, "with gzip", None, None),
    (|| Error::malformed("no frame"), Code::Internal, "no frame", None, Some("not-applied")),
    (|| Error::refused("not ready"), Code::FailedPrecondition, "not ready", None, None),
    (|| Error::invalid("bad field"), Code::InvalidArgument, "bad field", None, None),
    (|| Error::fatal("disk is broken"), Code::Internal, "disk is broken", None, None),
];

#[tokio::test]
async fn every_error_has_its_code() {
    let node = Node::start().await;
    // Otherwise the node adds the leader that it knows to the metadata.
    *node.fake.leader.lock().unwrap() = None;
    for (error, code, text, leader, outcome) in TABLE {
        node.script(Script::Refuse(error));
        for (path, request) in [("/kv.v1.KV/Put", PUT), ("/kv.v1.KV/Get", GET)] {
            let status = node.call(path, request).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(text), "{status}");
            assert_eq!(metadata(status.metadata(), "conclave-leader"), leader, "{status}");
            assert_eq!(metadata(status.metadata(), "conclave-outcome"), outcome, "{status}");
        }
        // A call that clients retry automatically must not have had an effect.
        if code == Code::Unavailable {
            assert!(error().is_retryable() && !error().is_unknown_outcome());
        }
    }
}

#[tokio::test]
async fn a_trap_is_internal_with_its_kind_and_index() {
    let node = Node::start().await;
    for kind in TrapKind::ALL {
        let trap = Trap { kind, message: "boom".to_owned() };
        node.script(Script::Outcome(Outcome::Trap(trap)));
        let status = node.call("/kv.v1.KV/Put", PUT).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(metadata(status.metadata(), "conclave-trap"), Some(kind.name()));
        assert_eq!(metadata(status.metadata(), "conclave-outcome"), None);
        assert!(metadata(status.metadata(), "conclave-index").is_some());
        assert_eq!(metadata(status.metadata(), "conclave-leader"), Some("client:1"));
        assert!(status.message().contains("boom"), "{status}");
    }
}

#[tokio::test]
async fn a_failure_carries_the_machines_code_and_words() {
    let node = Node::start().await;
    let codes = [
        (MachineCode::InvalidArgument, Code::InvalidArgument),
        (MachineCode::NotFound, Code::NotFound),
        (MachineCode::AlreadyExists, Code::AlreadyExists),
        (MachineCode::PermissionDenied, Code::PermissionDenied),
        (MachineCode::ResourceExhausted, Code::ResourceExhausted),
        (MachineCode::FailedPrecondition, Code::FailedPrecondition),
        (MachineCode::Aborted, Code::Aborted),
        (MachineCode::OutOfRange, Code::OutOfRange),
        (MachineCode::Unimplemented, Code::Unimplemented),
        (MachineCode::Internal, Code::Internal),
    ];
    for (machine, expected) in codes {
        let failure = Failure { code: machine, message: "no key “k”\n".to_owned() };
        node.script(Script::Outcome(Outcome::Failure(failure.clone())));
        let status = node.call("/kv.v1.KV/Put", PUT).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (expected, "no key “k”\n"));
        assert!(metadata(status.metadata(), "conclave-index").is_some());
        node.script(Script::Answer(Err(failure)));
        let status = node.call("/kv.v1.KV/Get", GET).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (expected, "no key “k”\n"));
    }
}

/// The text of a state machine has no length limit, but clients reject long headers. The limit
/// applies to the encoded length, which is six bytes for `é`.
#[tokio::test]
async fn a_long_text_is_cut() {
    let node = Node::start().await;
    for (text, most) in [("é", 4096 / 6), ("a", 4096), ("%", 4096 / 3), ("字", 4096 / 9)] {
        let failure = Failure { code: MachineCode::Internal, message: text.repeat(1_000_000) };
        node.script(Script::Outcome(Outcome::Failure(failure)));
        let status = node.call("/kv.v1.KV/Put", PUT).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{status}");
        assert_eq!(status.message(), format!("{}…", text.repeat(most)));
        let failure = Failure { code: MachineCode::Internal, message: text.repeat(most) };
        node.script(Script::Outcome(Outcome::Failure(failure)));
        let status = node.call("/kv.v1.KV/Put", PUT).await.unwrap_err();
        assert_eq!(status.message(), text.repeat(most));
    }
}

#[test]
fn sources_are_kept_and_secrets_are_not_there_to_print() {
    let error = Error::fatal("the log cannot be written: free space")
        .with_source(std::io::Error::other("no space"))
        .at_index(7);
    assert_eq!(error.index(), Some(7));
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no space");
}
