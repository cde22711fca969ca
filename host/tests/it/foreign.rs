//! A client that knows nothing but an address: Python's grpcio with grpc-reflection.
//!
//! `cargo xtask test` installs both and names their Python in CONCLAVE_TEST_PYTHON; where they are
//! missing the test says so.

use std::{path::PathBuf, process::Command};

use crate::harness::{Cluster, put, skip};

/// Lists the services, builds the messages from reflection, and calls.
const PROGRAM: &str = r#"
import sys
import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

address, number = sys.argv[1], sys.argv[2]
channel = grpc.insecure_channel(address)
database = ProtoReflectionDescriptorDatabase(channel)
services = sorted(database.get_services())
assert "kv.v1.KV" in services, services
assert "grpc.health.v1.Health" in services, services
service = DescriptorPool(database).FindServiceByName("kv.v1.KV")

def call(name, **fields):
    method = service.FindMethodByName(name)
    request = GetMessageClass(method.input_type)(**fields)
    response = GetMessageClass(method.output_type)
    stub = channel.unary_unary(
        "/kv.v1.KV/" + name,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    return stub(request, timeout=20)

call("Put", key="foreign/" + number, text="from python " + number)
answer = str(call("Get", key="foreign/" + number))
assert "from python " + number in answer, answer
assert "from rust" in str(call("Get", key="native")), "reads what others wrote"
try:
    call("Get", key="missing")
    raise SystemExit("a missing key was found")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
print(" ".join(services))
"#;

/// Why a test is skipped, see [`python`].
pub(crate) const NO_GRPCIO: &str = "Python with grpcio and grpcio-reflection is not installed";

/// A Python with grpcio and its reflection.
pub(crate) fn python() -> Option<PathBuf> {
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python");
    let named = std::env::var_os("CONCLAVE_TEST_PYTHON").map(PathBuf::from);
    let mut candidates = named.into_iter().chain([target, PathBuf::from("python3")]);
    candidates.find(|python| {
        let probe = Command::new(python).args(["-c", "import grpc, grpc_reflection"]).output();
        probe.is_ok_and(|output| output.status.success())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn python_calls_any_node_by_reflection() {
    let Some(python) = python() else {
        return skip("a client in Python", NO_GRPCIO);
    };
    let cluster = Cluster::start().await;
    put(&cluster.client(), "native", "from rust").await.unwrap();
    for node in &cluster.nodes {
        let run = Command::new(&python)
            .args(["-c", PROGRAM, &node.client, &node.id.to_string()])
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
}
