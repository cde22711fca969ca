//! `conclave dev --watch`: the running cluster follows the saved sources and keeps its state.
//!
//! Each test reads the output of `dev` and waits for the expected line.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use conclave_client::{CallOptions, Client};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    dev::{port_base, stop},
    harness::{PATIENCE, call, conclave, skip},
    projects,
};
use conclave_testing::counters::version;

/// Maximum time of a build, which may compile all dependencies.
const BUILDING_TIME_MAX: Duration = Duration::from_secs(400);

/// A running `conclave dev`, with the lines of both its outputs.
struct Dev {
    child: Option<Child>,
    said: Receiver<String>,
    /// The lines read so far, for the message of a failed test.
    heard: Vec<String>,
    endpoints: Vec<String>,
}

fn listen(source: impl Read + Send + 'static, said: Sender<String>) {
    let lines = BufReader::new(source).lines().map_while(Result::ok);
    thread::spawn(move || lines.for_each(|line| drop(said.send(line))));
}

impl Dev {
    fn start(data_dir: &Path, base: u16, nodes: u16, component: &Path) -> Self {
        let mut child = conclave()
            .args(["dev", "--nodes", &nodes.to_string(), "--port-base", &base.to_string()])
            .arg("--data-dir")
            .arg(data_dir)
            .arg("--component")
            .arg(component)
            .arg("--watch")
            .env("CARGO_TARGET_DIR", projects::target())
            // Many Rust developers have this set.
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, said) = channel();
        listen(child.stdout.take().unwrap(), sender.clone());
        listen(child.stderr.take().unwrap(), sender);
        let endpoints = (1..=nodes).map(|id| format!("127.0.0.1:{}", base + id)).collect();
        Self { child: Some(child), said, heard: Vec::new(), endpoints }
    }

    /// Waits for the next line that contains these words and returns it.
    fn says(&mut self, words: &str) -> String {
        let deadline = Instant::now() + BUILDING_TIME_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.said.recv_timeout(left) else {
                panic!("it does not say {words:?}, but:\n{}", self.heard.join("\n"))
            };
            self.heard.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    fn client(&self) -> Client {
        Client::builder().endpoints(self.endpoints.clone()).deadline(PATIENCE).build().unwrap()
    }

    fn stop(mut self) {
        stop(self.child.take().unwrap());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn add(client: &Client, amount: i64) -> Value {
    let request = json!({"name": "pear", "amount": amount});
    let answer = call(client, "my_tally.v1.MyTally/Add", request, CallOptions::write()).await;
    answer.unwrap()["count"].clone()
}

/// Replaces `from` in a file, which must contain it.
fn edit(file: &Path, from: &str, to: &str) {
    let source = fs::read_to_string(file).unwrap();
    assert!(source.contains(from), "{} has no {from:?}", file.display());
    fs::write(file, source.replace(from, to)).unwrap();
}

/// Returns the processes with these words in their command line.
fn processes(words: &Path) -> Vec<String> {
    let of = |path: PathBuf| fs::read(path.join("cmdline")).unwrap_or_default();
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let lines = entries.map(|path| String::from_utf8_lossy(&of(path)).replace('\0', " "));
    lines.filter(|line| line.contains(&*words.to_string_lossy())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_written_while_it_runs() {
    let project = projects::empty("watched").join("my-tally");
    assert!(conclave().arg("new").arg(&project).output().unwrap().status.success());
    // The tested dependency versions, which are already downloaded.
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
    fs::copy(lock, project.join("Cargo.lock")).unwrap();
    let (source, manifest) = (project.join("src/lib.rs"), project.join("Cargo.toml"));
    let repair = |from: &str, to: &str, versions: [&str; 2]| {
        edit(&source, from, to);
        let [before, after] = versions.map(|version| format!("\nversion = \"{version}\"\n"));
        edit(&manifest, &before, &after);
    };

    // The component is not built yet, and the cluster's directory lies in the project.
    let (component, data) = (project.join("target/my-tally.wasm"), project.join("conclave-dev"));
    let mut dev = Dev::start(&data, port_base() + 10, 1, &component);
    dev.says("watching");
    dev.says(" serves: ");
    let client = dev.client();
    assert_eq!(add(&client, 3).await, "3");

    repair("checked_add(amount)", "checked_add(amount * 10)", ["0.1.0", "0.2.0"]);
    let upgraded = dev.says("upgraded to my-tally 0.2.0 (sha256 ");
    assert!(upgraded.contains("at log index ") && upgraded.ends_with(" ms"), "{upgraded}");
    assert_eq!(add(&client, 1).await, "13", "the new machine with the state of the old one");

    // The compiler's messages are shown, and the running component stays active.
    edit(&source, "checked_add(amount * 10)", "checked_add(amount * )");
    dev.says("error: expected expression");
    dev.says("the next change is a new attempt");
    assert_eq!(add(&client, 1).await, "23");

    repair("checked_add(amount * )", "checked_add(amount * 100)", ["0.2.0", "0.3.0"]);
    dev.says("upgraded to my-tally 0.3.0");
    assert_eq!(add(&client, 1).await, "123");

    // If the new component does not restore the state, `dev` continues.
    edit(&source, "STATE_VERSION: u32 = 1", "STATE_VERSION: u32 = 2");
    dev.says("--reset");
    assert_eq!(add(&client, 1).await, "223");

    // A stop during a build leaves no process behind.
    edit(&source, "STATE_VERSION: u32 = 2", "STATE_VERSION: u32 = 1 ");
    dev.says("building ");
    dev.stop();
    let begun = Instant::now();
    while !processes(&project).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{:?}", processes(&project));
        thread::sleep(Duration::from_millis(20));
    }

    // The interrupted build is repeated now, on the same data.
    repair("amount * 100", "amount * 1000", ["0.3.0", "0.4.0"]);
    let mut dev = Dev::start(&data, port_base() + 10, 1, &component);
    dev.says("upgraded to my-tally 0.4.0");
    assert_eq!(add(&dev.client(), 1).await, "1223");
    dev.stop();
}

/// The same in Python, where every build includes an interpreter.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_in_python_is_written_while_it_runs() {
    let project = projects::empty("watched-python").join("my-tally");
    let made = conclave().args(["new", "--lang", "python"]).arg(&project).output().unwrap();
    assert!(made.status.success());
    let built = projects::build_python(&project);
    if let Some(why) = projects::without_python(&built) {
        return skip("a machine in Python that is watched", &why);
    }
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let source = project.join("machine.py");
    let (component, data) = (project.join("target/my-tally.wasm"), project.join("conclave-dev"));
    let mut dev = Dev::start(&data, port_base() + 30, 1, &component);
    dev.says(" serves: ");
    assert_eq!(add(&dev.client(), 3).await, "3");

    // The interpreter's message is shown without a backtrace of its compiler.
    edit(&source, "+ request.amount", "+ request.amount *");
    dev.says("SyntaxError: invalid syntax (machine.py, line ");
    dev.says("the next change is a new attempt");
    assert!(!dev.heard.iter().any(|line| line.contains("backtrace")), "{:#?}", dev.heard);
    assert_eq!(add(&dev.client(), 1).await, "4");

    // The protobuf file is a source too, and a new client sees the changed message.
    let proto = project.join("proto/my_tally/v1/my_tally.proto");
    edit(&proto, "message AddResponse {", "message AddResponse {\n  string name = 2;");
    let text = fs::read_to_string(&source).unwrap();
    let text = text.replace("version = \"0.1.0\"", "version = \"0.2.0\"");
    let text = text.replace("+ request.amount *", "+ request.amount * 10");
    fs::write(&source, text.replace("(count=count)", "(count=count, name=request.name)")).unwrap();
    dev.says("to the nodes, which compile and rehearse it");
    dev.says("upgraded to my-tally 0.2.0 (sha256 ");
    let request = json!({"name": "pear", "amount": 1});
    let answer =
        call(&dev.client(), "my_tally.v1.MyTally/Add", request, CallOptions::write()).await;
    let answer = answer.unwrap();
    assert_eq!(answer, json!({"name": "pear", "count": "14"}), "with the state of the old one");
    dev.stop();
}

/// Counts once and returns the count.
async fn count(client: &Client) -> i64 {
    let request = json!({"method": "any", "request": ""});
    let apply = "conclave.machine.v1.Machine/Apply";
    let answer = call(client, apply, request, CallOptions::write()).await.unwrap();
    let bytes = BASE64.decode(answer["response"].as_str().unwrap()).unwrap();
    i64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_project_the_component_is_watched() {
    let dir = TempDir::new().unwrap();
    let (file, data) = (dir.path().join("counting.wasm"), dir.path().join("data"));
    let write = |name: &'static str, step: i64| {
        let partial = dir.path().join("partial");
        fs::write(&partial, version(name, step, 1, &[1]).component()).unwrap();
        fs::rename(partial, &file).unwrap();
    };
    write("ones", 1);
    let mut dev = Dev::start(&data, port_base() + 20, 3, &file);
    dev.says("no project");
    dev.says(" serves: ");
    let client = dev.client();
    assert_eq!(count(&client).await, 1);
    write("tens", 10);
    dev.says("upgraded to tens ");
    assert_eq!(count(&client).await, 11);

    fs::write(&file, "half of it").unwrap();
    let refused = dev.says("not upgraded");
    assert!(refused.contains("WebAssembly"), "{refused}");
    assert_eq!(count(&client).await, 21);

    // While a node is down, no component is activated. The next change after its return is.
    let cluster = fs::read_to_string(data.join("cluster.json")).unwrap();
    let cluster: Value = serde_json::from_str(&cluster).unwrap();
    let pid = cluster["nodes"][1]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    dev.says("node 2 was ended by signal 9");
    let again = dev.says(" dev restart 2 ");
    write("hundreds", 100);
    let refused = dev.says("not upgraded");
    assert!(refused.contains("node 2 is unreachable"), "{refused}");
    assert!(refused.contains("the next change is a new attempt"), "{refused}");
    assert_eq!(count(&client).await, 31);
    let restarted = Command::new("sh").arg("-c").arg(again.trim()).output().unwrap();
    assert!(restarted.status.success(), "{restarted:?}");
    let second = Client::builder().endpoints([&dev.endpoints[1]]).follow_leader(false);
    let second = second.deadline(PATIENCE).build().unwrap();
    let begun = Instant::now();
    while !second.is_serving().await.unwrap_or(false) {
        assert!(begun.elapsed() < PATIENCE, "node 2 is not back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    write("hundreds", 100);
    dev.says("upgraded to hundreds ");
    assert_eq!(count(&client).await, 131);
    dev.stop();

    // A cluster with data first continues with its own component, and then changes to the file's.
    write("thousands", 1000);
    let mut dev = Dev::start(&data, port_base() + 20, 3, &file);
    dev.says(" serves: ");
    dev.says("upgraded to thousands ");
    assert_eq!(count(&dev.client()).await, 1131);
    dev.stop();
}
