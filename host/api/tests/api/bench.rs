//! Goal: the dynamic path costs no more than a service that tonic generates.
//!
//! `cargo test --workspace --test api bench -- --ignored --nocapture`
//!
//! Compare the numbers with each other only. Client and server share the host, and the profile is
//! that of the tests.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::Bytes;
use conclave_proto::machine as wire;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    task::JoinSet,
};
use tonic::{
    Request, Response, Status,
    client::Grpc,
    transport::{Server, server::TcpIncoming},
};

use crate::fake::{Node, Raw, channel};

const CLIENTS: usize = 64;
const ROUNDS: usize = 4;
const ROUND: Duration = Duration::from_secs(1);

/// The service that tonic generates, over the same messages.
struct Echo;

#[tonic::async_trait]
impl wire::machine_server::Machine for Echo {
    async fn apply(
        &self,
        request: Request<wire::ApplyRequest>,
    ) -> Result<Response<wire::ApplyResponse>, Status> {
        let response = request.into_inner().request;
        Ok(Response::new(wire::ApplyResponse { response, index: 1 }))
    }

    async fn query(
        &self,
        _: Request<wire::QueryRequest>,
    ) -> Result<Response<wire::QueryResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn describe(
        &self,
        _: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Runs calls for one round and counts them. The clients share `connections` connections.
async fn load(address: SocketAddr, path: &'static str, request: Bytes, connections: usize) -> u32 {
    let mut channels = Vec::new();
    for _ in 0..connections {
        channels.push(channel(address).await);
    }
    let until = Instant::now() + ROUND;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let channel = channels[client % connections].clone();
        let request = request.clone();
        clients.spawn(async move {
            let mut client = Grpc::new(channel);
            let mut calls = 0_u32;
            while Instant::now() < until {
                client.ready().await.unwrap();
                let path = http::uri::PathAndQuery::from_static(path);
                client.unary(Request::new(request.clone()), path, Raw).await.unwrap();
                calls += 1;
            }
            calls
        });
    }
    clients.join_all().await.into_iter().sum()
}

/// Returns the CPU time of the threads with this name. On a host with other load it is more
/// reliable than the number of calls per second.
fn cpu(name: &str) -> Duration {
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        if fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let usage = fs::read_to_string(task.join("schedstat")).unwrap();
            nanoseconds += usage.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    Duration::from_nanos(nanoseconds)
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().unwrap()
}

#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout, reason = "a measurement")]
fn against_a_generated_service() {
    let generated = runtime("generated");
    let generated_address = generated.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = wire::machine_server::MachineServer::new(Echo);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        address
    });
    let dynamic = runtime("dynamic");
    let node = dynamic.block_on(Node::start());
    node.fake.records.store(false, Ordering::Relaxed);
    // PutRequest and ApplyRequest both consist of a string and 256 bytes. The descriptor does not
    // know the method name, so Apply passes any bytes on.
    let mut message = b"\x0a\x0ckv.v1.KV/Raw\x12\x80\x02".to_vec();
    message.resize(message.len() + 256, b'v');
    let message = Bytes::from(message);
    let clients = runtime("clients");
    for connections in [CLIENTS, 4] {
        let cases = [
            ("generated", generated_address, "/conclave.machine.v1.Machine/Apply"),
            ("dynamic", node.client, "/kv.v1.KV/Put"),
            ("dynamic", node.client, "/conclave.machine.v1.Machine/Apply"),
        ];
        let mut sums = [(0, Duration::ZERO); 3];
        for _ in 0..ROUNDS {
            for ((calls, used), (threads, address, path)) in sums.iter_mut().zip(cases) {
                let before = cpu(threads);
                *calls += clients.block_on(load(address, path, message.clone(), connections));
                *used += cpu(threads) - before;
            }
        }
        for ((calls, used), (threads, _, path)) in sums.into_iter().zip(cases) {
            let rate = f64::from(calls) / (ROUND.as_secs_f64() * ROUNDS as f64);
            let each = used / calls;
            println!(
                "{connections} connections: {threads} {path}: {rate:.0}/s, {each:?} of CPU per call"
            );
        }
    }
}
