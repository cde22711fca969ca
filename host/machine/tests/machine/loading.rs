//! A component that does not implement a state machine is rejected when it is loaded, with the
//! reason and the remedy.

use bytes::Bytes;
use conclave_machine::{Component, Engine, Limits, LoadError, MethodKind};
use conclave_types::TrapKind;
use prost::Message;
use prost_types::{
    DescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, MethodOptions,
    ServiceDescriptorProto, method_options::IdempotencyLevel,
};

use crate::support::{HOSTILE, hostile, limits};
use conclave_testing::wat::Wat;

fn load(component: impl Into<Bytes>) -> Result<Component, LoadError> {
    Component::load(&Engine::new(&limits()).unwrap(), component.into())
}

fn refusal(component: impl Into<Bytes>) -> (LoadError, String) {
    let error = load(component).unwrap_err();
    let text = error.to_string();
    eprintln!("{text}");
    (error, text)
}

fn component(text: &str) -> Bytes {
    wat::parse_str(text).unwrap().into()
}

#[test]
fn a_machine_is_described_with_its_methods() {
    let component = hostile();
    assert_eq!(component.description().name, "hostile");
    assert_eq!(component.state_version(), 1);
    assert_eq!(component.bytes(), &*HOSTILE);
    let kind =
        |name: &str| component.methods().iter().find(|method| &*method.name == name).unwrap().kind;
    assert_eq!(kind("hostile.v1.Hostile/Add"), MethodKind::Command);
    assert_eq!(kind("hostile.v1.Hostile/Get"), MethodKind::Query);
    assert_eq!(component.methods().len(), 14);
}

#[test]
fn a_hand_made_machine_without_services_is_a_machine() {
    assert!(load(Wat::default().component()).unwrap().methods().is_empty());
}

#[test]
fn what_is_no_component_is_refused() {
    let (error, text) = refusal(wat::parse_str("(module)").unwrap());
    assert!(matches!(error, LoadError::CoreModule) && text.contains("conclave build"));
    assert!(matches!(refusal(&b"PK\x03\x04"[..]).0, LoadError::NotWasm { .. }));
    assert!(refusal(&b"(module)"[..]).1.contains("text"));
    assert!(refusal(&b""[..]).1.contains("empty"));
    let mut torn = HOSTILE.to_vec();
    torn.truncate(torn.len() / 2);
    assert!(matches!(refusal(torn).0, LoadError::Compile(_)));
}

#[test]
fn a_component_above_the_limit_is_refused() {
    let engine = Engine::new(&Limits { component_bytes_max: 1024, ..limits() }).unwrap();
    assert!(matches!(
        Component::load(&engine, HOSTILE.clone()),
        Err(LoadError::TooLarge { bytes_max: 1024, .. })
    ));
}

#[test]
fn a_foreign_import_is_refused_by_name() {
    let (error, text) =
        refusal(component(r#"(component (import "wasi:http/types@0.2.3" (instance)))"#));
    assert!(matches!(error, LoadError::ForeignImport { .. }));
    assert!(text.contains("`wasi:http/types@0.2.3`") && text.contains("--disable http"), "{text}");
    let (_, text) =
        refusal(component(r#"(component (import "wasi:keyvalue/store@0.2.0" (instance)))"#));
    assert!(text.contains("`wasi:keyvalue/store@0.2.0`") && text.contains("clocks"), "{text}");
    let (_, text) = refusal(component(r#"(component (import "run" (func)))"#));
    assert!(text.contains("`run`"));
    // A function that is not served, of an interface that is.
    let (error, text) = refusal(component(
        r#"(component (import "wasi:clocks/wall-clock@0.2.0" (instance (export "set" (func)))))"#,
    ));
    assert!(matches!(error, LoadError::ForeignImport { .. }));
    assert!(text.contains("`wasi:clocks/wall-clock@0.2.0#set`"), "{text}");
    // The host does not export the interface of the state machine.
    let (_, text) =
        refusal(component(r#"(component (import "conclave:fsm/fsm@0.1.0" (instance)))"#));
    assert!(text.contains("`conclave:fsm/fsm@0.1.0`"));
}

#[test]
fn another_version_of_wasi_is_refused_by_name() {
    for version in ["0.2.0-rc-2023-11-10", "0.3.0"] {
        let import = format!("wasi:cli/environment@{version}");
        let (error, text) =
            refusal(component(&format!(r#"(component (import "{import}" (instance)))"#)));
        assert!(matches!(error, LoadError::WasiVersion { .. }) && text.contains(&import), "{text}");
    }
    // The function is served, but not with this type.
    let (error, _) = refusal(component(
        r#"(component (import "wasi:cli/exit@0.2.0" (instance (export "exit" (func))))
             (instance $i) (export "conclave:fsm/fsm@0.1.0" (instance $i)))"#,
    ));
    assert!(matches!(error, LoadError::NotAMachine(_)), "{error}");
}

#[test]
fn another_version_of_the_contract_is_refused_by_name() {
    for text in [
        r#"(component (import "conclave:fsm/log@0.2.0" (instance)))"#,
        r#"(component (instance $i) (export "conclave:fsm/fsm@1.0.0" (instance $i)))"#,
    ] {
        let (error, text) = refusal(component(text));
        assert!(
            matches!(error, LoadError::WrongVersion { .. }) && text.contains("rebuild"),
            "{text}"
        );
    }
}

#[test]
fn another_world_is_refused() {
    assert!(matches!(refusal(component("(component)")).0, LoadError::NotAMachine(_)));
    let empty = r#"(component (instance $i) (export "conclave:fsm/fsm@0.1.0" (instance $i)))"#;
    assert!(matches!(refusal(component(empty)).0, LoadError::NotAMachine(_)));
}

#[test]
fn a_machine_that_breaks_when_it_is_described_is_refused() {
    let (error, _) = refusal(Wat { describe: "unreachable", ..Wat::default() }.component());
    assert!(matches!(error, LoadError::Traps(trap) if trap.kind == TrapKind::Panic));
    // A list outside of memory.
    let (error, _) = refusal(Wat { describe: "(i32.const 131068)", ..Wat::default() }.component());
    assert!(matches!(error, LoadError::Traps(trap) if trap.kind == TrapKind::BadAnswer));
    // The initial memory exceeds the limit.
    let (error, _) = refusal(Wat { memory: "65536", ..Wat::default() }.component());
    assert!(matches!(error, LoadError::Traps(trap) if trap.kind == TrapKind::MemoryExhausted));
}

/// Each memory reserves 4 GiB of addresses, however small it is.
#[test]
fn a_machine_of_too_many_parts_is_refused_with_their_limits() {
    let with = |more: String| Wat { more, ..Wat::default() }.component();
    load(with("(memory 0)".repeat(15))).unwrap();
    let (error, text) = refusal(with("(memory 0)".repeat(16)));
    assert!(matches!(error, LoadError::Traps(trap) if trap.kind == TrapKind::Invalid));
    assert!(text.contains("more than 16 memories"), "{text}");
}

#[test]
fn a_description_that_cannot_be_is_refused() {
    let (error, text) = refusal(Wat { restores: &[2, 3], ..Wat::default() }.component());
    assert!(matches!(error, LoadError::Description(_)) && text.contains("[2, 3]"));
    let long = "a-name-that-is-longer-than-the-sixty-four-bytes-that-a-name-may-have";
    assert!(refusal(Wat { name: long, ..Wat::default() }.component()).1.contains("64"));
    assert!(matches!(
        refusal(Wat { name: "", ..Wat::default() }.component()).0,
        LoadError::Description(_)
    ));
}

/// Returns a descriptor set with one file and one service with these methods.
fn descriptor_set(package: &str, service: &str, methods: &[MethodDescriptorProto]) -> Vec<u8> {
    let file = FileDescriptorProto {
        name: Some("a.proto".to_owned()),
        package: Some(package.to_owned()),
        message_type: vec![DescriptorProto { name: Some("M".to_owned()), ..Default::default() }],
        service: vec![ServiceDescriptorProto {
            name: Some(service.to_owned()),
            method: methods.to_vec(),
            options: None,
        }],
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

fn method(name: &str) -> MethodDescriptorProto {
    MethodDescriptorProto {
        name: Some(name.to_owned()),
        input_type: Some(".a.v1.M".to_owned()),
        output_type: Some(".a.v1.M".to_owned()),
        ..Default::default()
    }
}

fn with_descriptors(descriptor_set: Vec<u8>) -> Bytes {
    Wat { descriptor_set, ..Wat::default() }.component()
}

#[test]
fn the_kinds_of_methods_follow_the_descriptor_set() {
    let query = MethodOptions {
        idempotency_level: Some(IdempotencyLevel::NoSideEffects.into()),
        ..Default::default()
    };
    let set = descriptor_set(
        "a.v1",
        "S",
        &[
            method("Put"),
            MethodDescriptorProto { options: Some(query.clone()), ..method("Get") },
            MethodDescriptorProto {
                server_streaming: Some(true),
                options: Some(query),
                ..method("Watch")
            },
        ],
    );
    let component = load(with_descriptors(set.clone())).unwrap();
    let methods: Vec<_> =
        component.methods().iter().map(|method| (&*method.name, method.kind)).collect();
    assert_eq!(
        methods,
        [
            ("a.v1.S/Put", MethodKind::Command),
            ("a.v1.S/Get", MethodKind::Query),
            ("a.v1.S/Watch", MethodKind::Subscription),
        ]
    );
    assert_eq!(component.descriptor_set(), &set);
}

#[test]
fn a_descriptor_set_that_cannot_be_served_is_refused() {
    let descriptor = |set: Vec<u8>| {
        let (error, text) = refusal(with_descriptors(set));
        assert!(matches!(error, LoadError::Descriptor(_)), "{error:?}");
        text
    };
    assert!(descriptor(b"no protobuf".to_vec()).contains("FileDescriptorSet"));
    let file = |syntax: &str| FileDescriptorProto {
        name: Some("a.proto".to_owned()),
        syntax: Some(syntax.to_owned()),
        ..FileDescriptorProto::default()
    };
    let editions = FileDescriptorSet { file: vec![file("editions")] }.encode_to_vec();
    assert!(descriptor(editions).contains("a.proto has the syntax \"editions\""));
    // Empty messages: each has two bytes here, and some hundred when decoded.
    let bomb = [&[0x0a, 0xe0, 0xa7, 0x12][..], &[0x22, 0x00].repeat(150_000)].concat();
    let wat = Wat { descriptor_set: bomb, memory: "16", ..Wat::default() };
    assert!(refusal(wat.component()).1.contains("more than 100000"));
    assert!(descriptor(descriptor_set("b.v1", "S", &[method("Put")])).contains("a.v1.M"));
    assert!(
        descriptor(descriptor_set("a.v1", "S", &[method("Put"), method("Put")])).contains("Put")
    );
    let streams = MethodDescriptorProto { client_streaming: Some(true), ..method("Put") };
    assert!(descriptor(descriptor_set("a.v1", "S", &[streams])).contains("a.v1.S/Put"));
    let long = "M".repeat(300);
    assert!(descriptor(descriptor_set("a.v1", "S", &[method(&long)])).contains("256"));
    for package in ["conclave.machine.v1", "grpc.health.v1"] {
        let own = MethodDescriptorProto {
            input_type: Some(format!(".{package}.M")),
            output_type: Some(format!(".{package}.M")),
            ..method("Put")
        };
        assert!(descriptor(descriptor_set(package, "S", &[own])).contains("host's own"));
    }
}
