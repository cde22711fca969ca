//! Invalid components: a clear error, no entry in the log, and the cluster continues.

use std::process::Output;

use tempfile::TempDir;

use super::machines::*;
use crate::harness::{Cluster, conclave, eventually};
use conclave_testing::{counters::version, wat::Wat};

/// Compiles a component from this text.
fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

fn run_verb(cluster: &Cluster, arguments: &[&str]) -> Output {
    let endpoints: Vec<_> = cluster.nodes.iter().map(|node| node.client.clone()).collect();
    let mut command = conclave();
    command.arg("component").args(arguments).args(["--endpoints", &endpoints.join(",")]);
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// Replaces the version in each name of the contract. The names keep their length, so the binary
/// stays valid.
fn of_contract(component: &[u8], version: &str) -> Vec<u8> {
    let (from, to) = (b"@0.1.0", version.as_bytes());
    assert_eq!(from.len(), to.len());
    let mut changed = component.to_vec();
    let places: Vec<_> = changed
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| window == from)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    for at in places {
        changed[at..at + to.len()].copy_from_slice(to);
    }
    changed
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_component_is_refused_and_the_cluster_goes_on() {
    let (mut cluster, dir) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    count(&client).await.unwrap();
    let machine = first().component();
    let clash =
        descriptor("package conclave.cluster.v1; service Cluster { rpc Status(M) returns (M); }");
    let streams = descriptor("package t.v1; service S { rpc A(stream M) returns (M); }");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "empty"),
        ("text", b"(component)".to_vec(), "WebAssembly text"),
        ("elf", b"\x7fELF and so on".to_vec(), "native program"),
        ("noise", vec![0xa5; 100_000], "not WebAssembly"),
        ("core", component("(module)"), "core WebAssembly module"),
        ("world", component("(component)"), "does not export conclave:fsm/fsm@0.1.0"),
        ("contract", of_contract(&machine, "@0.9.0"), "built against conclave:fsm/"),
        ("cut", machine[..machine.len() / 2].to_vec(), "does not compile"),
        ("huge", vec![0; 200 << 20], "209715200 bytes; the limit is 67108864"),
        (
            "import",
            component("(component (import \"wasi:http/types@0.2.0\" (instance)))"),
            "wasi:http/types@0.2.0",
        ),
        (
            "descriptor",
            Wat { descriptor_set: vec![0xff; 40], ..first() }.component().to_vec(),
            "descriptor set cannot be served",
        ),
        ("clash", Wat { descriptor_set: clash, ..first() }.component().to_vec(), "the host's own"),
        (
            "streams",
            Wat { descriptor_set: streams, ..first() }.component().to_vec(),
            "streams from the client",
        ),
        (
            "traps",
            Wat { describe: "unreachable", ..first() }.component().to_vec(),
            "traps when it is started",
        ),
    ];
    let before = client.status().await.unwrap().nodes[0].last_log;
    for (name, bytes, says) in cases {
        let path = write(&dir, &format!("{name}.wasm"), &bytes);
        let output = run_verb(&cluster, &["push", path.to_str().unwrap()]);
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {printed}");
        assert!(printed.contains(says), "{name}: {printed:?} does not say {says:?}");
    }
    assert_eq!(client.status().await.unwrap().nodes[0].last_log, before, "nothing was logged");
    assert_eq!(client.components().await.unwrap().len(), 1);
    count(&client).await.unwrap();
    for id in 1..=3 {
        cluster.assert_running(id);
        assert!(!cluster.log_tail(id).contains("panicked"));
    }
    let initial_component = active(&client).await;
    assert_eq!(all_agree(&cluster, &initial_component).await, 2);
}

fn descriptor(body: &str) -> Vec<u8> {
    struct Source(String);
    impl protox::file::FileResolver for Source {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, &self.0)
        }
    }
    let mut compiler = protox::Compiler::with_file_resolver(Source(format!(
        "syntax = \"proto3\"; {body} message M {{}}"
    )));
    compiler.open_file("t.proto").unwrap();
    compiler.encode_file_descriptor_set()
}

/// The steps on the command line, their output for people and for scripts, and their errors.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_leads_through_an_upgrade() {
    let (cluster, _initial_component) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    count(&client).await.unwrap();
    let dir = TempDir::new().unwrap();
    let path = write(&dir, "second.wasm", &second().component());
    let run = |arguments: &[&str]| {
        let output = run_verb(&cluster, arguments);
        (output.status.code(), text(&output))
    };
    let refused = |arguments: &[&str], says: &str| {
        let (code, printed) = run(arguments);
        assert!(
            code == Some(1) && printed.contains(says),
            "{arguments:?}: {printed:?}, not {says:?}"
        );
    };
    refused(&["activate", "123456"], "conclave component push");
    refused(&["activate", "12"], "at least the first 6 digits");
    refused(&["rollback"], "nothing to roll back to");
    refused(&["push", "/no/such/file.wasm"], "/no/such/file.wasm");

    let (code, printed) = run(&["push", path.to_str().unwrap()]);
    assert!(code == Some(0) && printed.contains("the cluster has second"), "{printed}");
    let id = printed.split_once('(').unwrap().1[..12].to_owned();
    assert!(printed.contains(&format!("conclave component activate {id}")), "{printed}");
    let (code, again) = run(&["push", path.to_str().unwrap(), "--json"]);
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!((code, again["name"].as_str()), (Some(0), Some("second")));
    let (code, printed) = run(&["rehearse", &id]);
    assert!(code == Some(0) && printed.contains("node 3: ready"), "{printed}");
    let (code, printed) = run(&["diff", &id]);
    assert!(code == Some(0) && printed.contains("state version 1 → 2"), "{printed}");
    let (code, printed) = run(&["list"]);
    assert!(code == Some(0) && printed.contains("1 ready, 2 ready, 3 ready"), "{printed}");
    let (code, printed) = run(&["activate", &id]);
    assert!(code == Some(0) && printed.contains("is active since index"), "{printed}");

    // A rollback is impossible if the previous component does not restore the state.
    let narrow = version("third", 1, 2, &[2]).component();
    let third = push_ready(&client, narrow).await;
    client.activate_component(&third, false).await.unwrap();
    let path = write(&dir, "narrow.wasm", &super::machines::narrow().component());
    let (_, printed) = run(&["push", path.to_str().unwrap(), "--json"]);
    let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let narrow = printed["component"].as_str().unwrap().to_owned();
    eventually("it has been rehearsed", async || {
        let components = client.components().await.map_err(|error| error.to_string())?;
        let found = components.into_iter().find(|component| component.id == narrow).unwrap();
        let failed = found.nodes.iter().all(|node| node.state == "failed");
        if failed { Ok(()) } else { Err(format!("{:?}", found.nodes)) }
    })
    .await;
    refused(&["activate", &narrow], "restores only versions [1]");
    let (code, printed) = run(&["list"]);
    assert!(
        code == Some(0) && printed.contains("on node 2: failed: the state has version 2"),
        "{printed}"
    );
    count(&client).await.unwrap();
    assert_eq!(all_agree(&cluster, &third).await, 2);
}
