//! Fuzz targets for the data with which a component describes itself.

use prost::Message as _;

use super::descriptors;

/// Checks that a descriptor set is either rejected or gives methods that can be served.
pub fn descriptor_set(data: &[u8]) {
    if let Ok(methods) = descriptors::methods(data) {
        for method in methods {
            let (service, name) = method.name.split_once('/').unwrap_or_default();
            assert!(!service.is_empty() && !name.is_empty(), "{}", method.name);
            assert!(
                !service.starts_with("conclave.") && !service.starts_with("grpc."),
                "{service}"
            );
        }
    }
}

/// Returns the descriptor set of a small component.
pub fn descriptor_set_seeds() -> Vec<Vec<u8>> {
    let small = prost_types::FileDescriptorSet {
        file: vec![prost_types::FileDescriptorProto {
            name: Some("t.proto".to_owned()),
            package: Some("t".to_owned()),
            syntax: Some("proto3".to_owned()),
            message_type: vec![prost_types::DescriptorProto {
                name: Some("M".to_owned()),
                ..prost_types::DescriptorProto::default()
            }],
            service: vec![prost_types::ServiceDescriptorProto {
                name: Some("S".to_owned()),
                method: vec![prost_types::MethodDescriptorProto {
                    name: Some("Do".to_owned()),
                    input_type: Some(".t.M".to_owned()),
                    output_type: Some(".t.M".to_owned()),
                    server_streaming: Some(true),
                    ..prost_types::MethodDescriptorProto::default()
                }],
                ..prost_types::ServiceDescriptorProto::default()
            }],
            ..prost_types::FileDescriptorProto::default()
        }],
    };
    vec![small.encode_to_vec()]
}
