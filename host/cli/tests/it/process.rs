//! A node as a process: its log, signals, environment and files, under ordinary faults.

use std::{
    convert::Infallible,
    fs,
    io::Read,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Instant,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Cluster, PATIENCE, Setup, conclave, eventually, get, put, skip};

/// Returns a component file at which a node's start blocks: a pipe to which no process writes.
fn stuck(cluster: &Cluster) -> PathBuf {
    let path = cluster.dir.path().join("pipe.wasm");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path
}

fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the process does not end");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

async fn page_says(cluster: &Cluster, id: u64, path: &str, says: &[&str]) {
    eventually(&format!("{path} says {says:?}"), async || {
        let page = cluster.page(id, path)?;
        if says.iter().all(|says| page.contains(says)) { Ok(()) } else { Err(page) }
    })
    .await;
}

/// Goal: a log that cannot be written does not stop, block or blind a node. Method: one node's log
/// is on a full disk, one's reader is gone, one's reader does not read. Then the third node loses
/// its peers and is signalled to end.
#[tokio::test(flavor = "multi_thread")]
async fn logs_that_cannot_be_written_do_no_harm() {
    let cluster = Cluster::prepared(Setup::default());
    let with_log = |cluster: &Cluster, id, log: Stdio| {
        let mut command = cluster.command(id);
        // Without the compiler's millions of lines.
        command.stderr(log).env("CONCLAVE_LOG", "info,conclave=trace,openraft=trace,h2=trace");
        command
    };
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut on_full_disk = with_log(&cluster, 1, full.into()).spawn().unwrap();
    let mut without_reader = with_log(&cluster, 2, Stdio::piped()).spawn().unwrap();
    drop(without_reader.stderr.take());
    let mut unread = with_log(&cluster, 3, Stdio::piped()).spawn().unwrap();
    let pipe = unread.stderr.take().unwrap();

    cluster.serving().await;
    let client = cluster.client();
    for id in 1..=3 {
        eventually("lines are dropped", async || {
            put(&client, "key", "text").await.map_err(|error| error.to_string())?;
            match cluster.metric(id, "conclave_log_lines_dropped_total")? {
                dropped if dropped > 0.0 => Ok(()),
                none => Err(format!("node {id}: {none}")),
            }
        })
        .await;
        page_says(&cluster, id, "/readyz", &["200 OK"]).await;
    }
    assert_eq!(get(&client, "key").await.unwrap(), "text");

    // The loss of the peers is logged, and is detected although that line is not written.
    for child in [&mut on_full_disk, &mut without_reader] {
        assert!(child.try_wait().unwrap().is_none(), "the node has ended");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    page_says(&cluster, 3, "/readyz", &["503 Service Unavailable"]).await;
    kill_process(Pid::from_child(&unread), Signal::TERM).unwrap();
    let status = ended(&mut unread);
    assert!(status.success(), "{status}");
    drop(pipe);
}

/// Goal: a starting node answers probes, refuses calls immediately and obeys signals.
#[tokio::test(flavor = "multi_thread")]
async fn ports_answer_and_signals_are_obeyed_while_a_node_starts() {
    let mut cluster = Cluster::prepared(Setup::default());
    let component = stuck(&cluster);
    let mut command = cluster.command(1);
    command.arg("--component").arg(&component);
    let mut child = command.spawn().unwrap();
    page_says(&cluster, 1, "/readyz", &["503 Service Unavailable", "not ready: starting: "]).await;
    page_says(&cluster, 1, "/livez", &["200 OK"]).await;
    page_says(&cluster, 1, "/metrics", &["\nconclave_ready 0\n", "\nprocess_open_fds "]).await;

    let endpoint = cluster.node(1).client.clone();
    let call = ["kv", "get", "key", "--timeout", "1s", "--endpoints", &endpoint];
    let refused = conclave().args(call).output().unwrap();
    assert!(text(&refused).contains("this node is starting: "), "{}", text(&refused));
    let health = conclave().args(["health", "--endpoint", &endpoint]).output().unwrap();
    assert_eq!(health.status.code(), Some(1));
    assert!(text(&health).contains("this node is starting: "), "{}", text(&health));

    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = ended(&mut child);
    assert!(status.success(), "{status}\n{}", cluster.log_tail(1));
    assert!(!cluster.node(1).data_dir.exists());
    // With a real component the node starts.
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
}

/// Goal: a second signal ends a stop that takes long. Method: a call whose request never ends
/// delays the node's stop for some seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_node_at_once() {
    let cluster = Cluster::prepared(Setup::default());
    let mut children: Vec<Child> = (1..=3).map(|id| cluster.command(id).spawn().unwrap()).collect();
    cluster.serving().await;
    let stream = tokio::net::TcpStream::connect(&cluster.node(1).client).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let begun = hyper::body::Frame::data(Bytes::from_static(b"\0\0\0\0\x09a"));
    let body = stream::iter([Ok::<_, Infallible>(begun)]).chain(stream::pending());
    let request = http::Request::post("http://x/kv.v1.KV/Put")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "60S")
        .body(BodyExt::boxed_unsync(StreamBody::new(body)))
        .unwrap();
    let _answer = tokio::spawn(client.send_request(request));
    // The node has received the call when it answers a later one on the same connection.
    let body = http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\0"));
    let later = http::Request::post("http://x/kv.v1.KV/Range")
        .header("content-type", "application/grpc")
        .body(BodyExt::boxed_unsync(body))
        .unwrap();
    client.send_request(later).await.unwrap();
    kill_process(Pid::from_child(&children[0]), Signal::TERM).unwrap();
    page_says(&cluster, 1, "/readyz", &["shutting down"]).await;
    kill_process(Pid::from_child(&children[0]), Signal::INT).unwrap();
    assert_eq!(ended(&mut children[0]).code(), Some(128 + 2));
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Goal: an empty variable counts as unset, an image's defaults have the lowest precedence, and a
/// key in the environment takes precedence over the file that the image names.
#[tokio::test(flavor = "multi_thread")]
async fn empty_variables_are_unset_and_defaults_are_overridden() {
    let mut cluster = Cluster::prepared(Setup::default());
    let component = stuck(&cluster);
    let node = cluster.node(1);
    let dir = cluster.dir.path();
    let flags = cluster.serve_flags(1);
    let of = |name: &str| {
        let at = flags.iter().position(|flag| flag == name).unwrap();
        flags[at + 1].clone()
    };
    let config = dir.join("node.toml");
    let members: Vec<_> = flags
        .iter()
        .zip(&flags[1..])
        .filter(|(flag, _)| *flag == "--member")
        .map(|(_, m)| m)
        .collect();
    fs::write(
        &config,
        format!(
            "node_id = 1\ndata_dir = {:?}\nlisten_client = {:?}\nlisten_admin = {:?}\ncomponent = {component:?}\n\
             members = {members:?}\n",
            of("--data-dir"),
            node.client,
            node.admin
        ),
    )
    .unwrap();
    let defaults = dir.join("defaults.toml");
    let peer = &node.peer;
    fs::write(
        &defaults,
        format!(
            "data_dir = \"/nowhere\"\nlisten_admin = \"0.0.0.0:1\"\nlisten_peer = {peer:?}\n\
             master_key_file = \"/nowhere/key\"\n"
        ),
    )
    .unwrap();
    let mut help = conclave();
    help.args(["serve", "--help"]);
    let help = text(&help.output().unwrap());
    let names = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    let names: Vec<String> = names.map(str::to_owned).collect();
    assert!(names.len() > 20, "{names:?}");

    let key = hex::encode(fs::read(dir.join("master.key")).unwrap());
    let key =
        if key.len() == 64 { key } else { fs::read_to_string(dir.join("master.key")).unwrap() };
    let mut command = conclave();
    command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.envs(names.iter().map(|name| (name, "")));
    command.env("CONCLAVE_CONFIG", &config).env("CONCLAVE_DEFAULTS", &defaults);
    command.env("CONCLAVE_MASTER_KEY", key.trim()).env("CONCLAVE_CLUSTER_ID", "test");
    cluster.run(1, command);
    page_says(&cluster, 1, "/readyz", &["not ready: starting: "]).await;

    // A probe uses the port from the configuration file.
    let health = conclave().arg("health").env("CONCLAVE_CONFIG", &config).output().unwrap();
    assert!(text(&health).contains("this node is starting: "), "{}", text(&health));
    cluster.kill(1);
}

/// Each line is a mistake in the configuration. The exit code is the one for wrong usage, and no
/// key is printed.
#[test]
fn mistakes_in_the_configuration_have_the_exit_code_of_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    let key = "6368616e676520746869732070617373776f726420746f206120736563726574";
    for verb in ["serve", "replay", "recover"] {
        for line in [
            format!("master_key = \"{key}\""),
            format!(
                "master_key_file = \"{key}\"\ndata_dir = \"x\"\nnode_id = 1\ncluster_id = \"c\"\n\
                     members = [\"1=localhost:7201,localhost:7101\"]"
            ),
            "node_id = ".to_owned(),
        ] {
            fs::write(&path, &line).unwrap();
            let mut command = conclave();
            command.arg(verb).arg("--config").arg(&path);
            if verb == "recover" {
                command.args(["--trap-entry", "1"]);
            }
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{verb}, {line}: {}", text(&output));
            assert!(!text(&output).contains(key), "{}", text(&output));
        }
    }
    let filter = conclave()
        .args(["serve", "--node-id=1", "--cluster-id=c", "--data-dir=x"])
        .args(["--master-key-file=k", "--member=1=localhost:7201,localhost:7101"])
        .env("CONCLAVE_LOG", "conclave=loud")
        .output()
        .unwrap();
    assert_eq!(filter.status.code(), Some(2), "{}", text(&filter));
    assert!(text(&filter).contains("CONCLAVE_LOG"), "{}", text(&filter));
}

/// Goal: a node raises its limit of open files. Method: it starts with a soft limit below the
/// hard one.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_open_files_is_raised() {
    let mut cluster = Cluster::prepared(Setup::default());
    let serve = cluster.command(1);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -Sn 200; exec \"$0\" \"$@\""]).arg(serve.get_program());
    command.args(serve.get_args()).arg("--component").arg(stuck(&cluster));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    cluster.run(1, command);
    eventually("the limit is raised", async || match cluster.metric(1, "process_max_fds")? {
        files if files > 200.0 => Ok(()),
        files => Err(files.to_string()),
    })
    .await;
}

/// Goal: a volume that belongs to another user and is shared through its group is accepted. Method:
/// the node runs as a user of that group, for which the test needs root.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_the_group_may_write_to_is_accepted() {
    const USER: u32 = 65_532;
    if !rustix::process::geteuid().is_root() {
        return skip("a data directory of another user", "it takes root");
    }
    let mut cluster = Cluster::prepared(Setup::default());
    let dir = cluster.dir.path().to_owned();
    // All files that the node needs, accessible to the other user.
    let binary = dir.join("conclave");
    fs::copy(conclave().get_program(), &binary).unwrap();
    open_for_all(&dir, 0o755);
    open_for_all(&dir.join("master.key"), 0o644);
    let data = cluster.node(1).data_dir.clone();
    fs::DirBuilder::new().mode(0o700).create(&data).unwrap();
    chown(&data, Some(0), Some(USER)).unwrap();
    open_for_all(&data, 0o2770);
    let serve = cluster.command(1);
    let mut command = Command::new(&binary);
    command.args(serve.get_args()).uid(USER).gid(USER);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&cluster.node(1).log).unwrap());
    cluster.run(1, command);
    cluster.start_node(2);
    cluster.start_node(3);
    cluster.serving().await;
    page_says(&cluster, 1, "/readyz", &["200 OK"]).await;
    assert!(cluster.log_tail(1).contains("belongs to another user"), "{}", cluster.log_tail(1));
}

fn open_for_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Goal: snapshots are also taken by time, so that the log of a quiet cluster is purged too.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_taken_by_time() {
    let flags = ["--snapshot-interval=1s", "--snapshot-interval-entries=20"];
    let setup = Setup { flags: flags.map(str::to_owned).to_vec(), ..Setup::default() };
    let cluster = Cluster::start_with(setup).await;
    let client = cluster.client();
    for number in 0..30 {
        put(&client, "key", &number.to_string()).await.unwrap();
    }
    for id in 1..=3 {
        eventually("a snapshot is taken", async || {
            match cluster.metric(id, "conclave_raft_snapshot_index")? {
                index if index > 0.0 => Ok(()),
                index => Err(format!("node {id}: {index}")),
            }
        })
        .await;
    }
}

/// Goal: a result that cannot be written is a failure. One whose reader has closed the pipe is not.
#[test]
fn results_that_cannot_be_written_are_failures() {
    let dir = tempfile::tempdir().unwrap();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let new = |name: &str| {
        let mut command = conclave();
        command.arg("new").arg(dir.path().join(name));
        command
    };
    let output = new("one").stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("standard output"), "{}", text(&output));
    // There is no stream left on which to report the failure.
    assert_eq!(new("two").stdout(full()).stderr(full()).status().unwrap().code(), Some(1));

    let mut child = new("three").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut remarks = String::new();
    child.stderr.take().unwrap().read_to_string(&mut remarks).unwrap();
    assert_eq!(ended(&mut child).code(), Some(0), "{remarks}");
    assert!(!remarks.contains("standard output") && !remarks.contains("panicked"), "{remarks}");
}
