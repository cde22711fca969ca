//! Invalid input at every place where input arrives: a clear error, no panic, no loss of data.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use conclave_client::{CallOptions, Client};
use serde_json::json;

use crate::harness::{Cluster, PATIENCE, Setup, conclave, files, get, get_stale, put};

/// Returns bytes that look random and are the same in every run.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(step).collect()
}

fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
}

/// Runs a command that must end by itself, and kills it otherwise.
fn ended(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("still runs: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// Runs `conclave serve` with these flags, which must fail with this message.
fn refuses(flags: &[String], says: &str) {
    let mut serve = conclave();
    serve.arg("serve").args(flags).stdin(Stdio::null());
    let output = ended(serve);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "started with {flags:?}");
    assert!(stderr.contains(says), "{stderr:?} does not say {says:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn with(flags: &[String], name: &str, value: &str) -> Vec<String> {
    let mut flags = flags.to_vec();
    let at = flags.iter().position(|flag| flag == name).unwrap();
    flags[at + 1] = value.to_owned();
    flags
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_ports() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "key", "text").await.unwrap();
    let ports: Vec<String> = cluster
        .nodes
        .iter()
        .flat_map(|node| [node.client.clone(), node.peer.clone(), node.admin.clone()])
        .collect();
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for (seed, port) in ports.iter().enumerate() {
        send(port, b"");
        send(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        send(port, &noise(seed as u64 + 7, 64 * 1024));
        send(port, &[http2.clone(), noise(seed as u64 + 99, 4096)].concat());
    }
    assert_eq!(get(&client, "key").await.unwrap(), "text");
    for id in 1..=3 {
        cluster.assert_running(id);
        assert!(!cluster.log_tail(id).contains("panicked"), "{}", cluster.log_tail(id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_make_no_sense() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    let raw = |method: &str, bytes: Vec<u8>| {
        let (client, method) = (client.clone(), method.to_owned());
        async move { client.call_raw_with(&method, bytes, &CallOptions::write()).await }
    };
    let cases = [
        ("kv.v1.KV/Nonsense", vec![], "Unimplemented", "Nonsense"),
        ("no.such.Service/Put", vec![], "Unimplemented", "no.such.Service"),
        ("kv.v1.KV/Put", noise(3, 100), "InvalidArgument", ""),
        ("kv.v1.KV/Put", vec![0x0a, 0x7f], "InvalidArgument", ""),
        ("kv.v1.KV/Put", vec![0; 5 << 20], "ResourceExhausted", "4194304"),
    ];
    for (method, bytes, code, says) in cases {
        let error = raw(method, bytes).await.unwrap_err();
        assert_eq!(format!("{:?}", error.code()), code, "{method}: {error}");
        assert!(error.to_string().contains(says), "{method}: {error}");
    }
    let long = "k".repeat(5000);
    let error = put(&client, &long, "text").await.unwrap_err();
    assert_eq!(format!("{:?}", error.code()), "InvalidArgument", "{error}");
    let error = put(&client, "", "text").await.unwrap_err();
    assert_eq!(format!("{:?}", error.code()), "InvalidArgument", "{error}");
    let error = put(&client, "key", &"v".repeat((1 << 20) + 1)).await.unwrap_err();
    assert_eq!(format!("{:?}", error.code()), "InvalidArgument", "{error}");
    let error = client.call_json("kv.v1.KV/Get", json!({ "kee": "x" })).await.unwrap_err();
    assert!(error.to_string().contains("kee"), "{error}");
    // The largest allowed key and value are accepted.
    put(&client, &"k".repeat(4096), &"v".repeat(1 << 20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_hold() {
    let mut cluster = Cluster::start().await;
    let free = Cluster::serve_flags(&cluster, 1);
    cluster.stop(1);
    let dir = cluster.dir.path().to_owned();

    let config = dir.join("wrong.toml");
    fs::write(&config, "node_id = 1\nheartbeet_ms = 100\n").unwrap();
    let and = |more: &[&str]| [free.clone(), more.iter().map(|s| (*s).into()).collect()].concat();
    refuses(&and(&["--config", config.to_str().unwrap()]), "heartbeet_ms");
    refuses(&and(&["--config", "/no/such/file.toml"]), "/no/such/file.toml");
    refuses(&and(&["--election-min", "120ms"]), "2 times heartbeat");
    refuses(&and(&["--component", "/no/such.wasm"]), "/no/such.wasm");
    refuses(&with(&free, "--node-id", "9"), "must be among the members");
    refuses(&with(&free, "--master-key-file", "/no/such.key"), "/no/such.key");
    let taken = cluster.node(2).client.clone();
    refuses(&with(&free, "--listen-client", &taken), &taken);

    let short = dir.join("short.key");
    fs::write(&short, "too short").unwrap();
    refuses(&with(&free, "--master-key-file", short.to_str().unwrap()), "32");
    let other = dir.join("other.key");
    fs::write(&other, noise(5, 32)).unwrap();
    refuses(&with(&free, "--master-key-file", other.to_str().unwrap()), "key");

    let garbage = dir.join("garbage.wasm");
    fs::write(&garbage, noise(6, 1000)).unwrap();
    refuses(&and(&["--component", garbage.to_str().unwrap()]), "not WebAssembly");

    // The directories of another node and of another cluster, and one that is in use.
    let others = cluster.node(2).data_dir.display().to_string();
    refuses(&with(&free, "--data-dir", &others), "in use");
    cluster.stop(2);
    refuses(&with(&free, "--data-dir", &others), "node 2");
    refuses(&with(&free, "--cluster-id", "elsewhere"), "cluster");

    // After all that the node starts normally.
    cluster.start_node(1);
    cluster.start_node(2);
    put(&cluster.client(), "key", "text").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
}

/// Each file of a stopped node's directory is damaged in turn. The node refuses to start and names
/// the file or the index, or it starts with all its data. With the bytes restored it starts again.
#[tokio::test(flavor = "multi_thread")]
async fn damage_in_every_file_of_the_data_directory() {
    let setup = Setup {
        flags: vec!["--snapshot-entries=100".into(), "--keep-entries=20".into()],
        ..Setup::default()
    };
    let mut cluster = Cluster::start_with(setup).await;
    let client = cluster.client();
    for number in 0..150 {
        put(&client, &format!("key/{number}"), &"text ".repeat(20)).await.unwrap();
    }
    cluster.caught_up(&[1, 2, 3]).await;
    // Alone, so that no other node receives messages from the damaged one.
    for id in 1..=3 {
        cluster.stop(id);
    }
    let data_dir = cluster.node(1).data_dir.clone();
    let saved: Vec<(PathBuf, Vec<u8>)> =
        files(&data_dir).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    for (path, whole) in saved.iter().filter(|(_, whole)| !whole.is_empty()) {
        let first = whole.iter().position(|byte| *byte != 0).unwrap_or(0);
        let last = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        let flip = |at: usize| {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            damaged
        };
        let damages = [flip(first), flip((first + last) / 2), flip(last), noise(11, whole.len())];
        for damaged in damages {
            fs::write(path, damaged).unwrap();
            starts_whole_or_refuses(&mut cluster, &path.display().to_string()).await;
            for written in files(&data_dir) {
                fs::remove_file(written).unwrap();
            }
            for (path, whole) in &saved {
                fs::write(path, whole).unwrap();
            }
        }
    }
    cluster.start_node(2);
    cluster.start_node(3);
    cluster.start_node(1);
    cluster.caught_up(&[1, 2, 3]).await;
    let own = cluster.client_of(1);
    for number in 0..150 {
        let text = get_stale(&own, &format!("key/{number}")).await.unwrap();
        assert_eq!(text, "text ".repeat(20));
    }
}

async fn starts_whole_or_refuses(cluster: &mut Cluster, path: &str) {
    let log = cluster.node(1).log.clone();
    fs::write(&log, "").unwrap();
    let mut child = cluster.command(1).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let own = Client::builder()
        .endpoints([cluster.node(1).client.clone()])
        .deadline(Duration::from_millis(500))
        .build()
        .unwrap();
    let started = loop {
        if child.try_wait().unwrap().is_some() {
            break false;
        }
        assert!(Instant::now() < deadline, "{path}: neither starts nor refuses");
        if get_stale(&own, "key/149").await.is_ok() {
            break true;
        }
    };
    if started {
        for number in 0..150 {
            let text = get_stale(&own, &format!("key/{number}")).await.unwrap();
            assert_eq!(text, "text ".repeat(20), "{path}: silently wrong");
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    let said = fs::read_to_string(&log).unwrap();
    assert!(!said.contains("panicked"), "{path}: {said}");
    assert!(started || said.contains("conclave: "), "{path}: {said}");
}
