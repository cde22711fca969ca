//! Connections between nodes: back-off, long round trips, and members whose data is an old copy.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use conclave_client::Client;
use conclave_testing::cluster as testing;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    harness::{Cluster, PATIENCE, Setup, conclave, eventually, get, put},
    link::Link,
};

/// Returns the processor time of a process so far, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; user and system time are the 14th and 15th field.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|field| fields[*field].parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

fn log_lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// Asserts that idle nodes use little processor time and log almost no lines. An idle node with all
/// its peers uses about 1 to 2 % of a processor in this build. One that retries without a pause
/// uses more than 50 %.
async fn assert_idle(cluster: &Cluster, ids: &[u64], what: &str) {
    const SPAN: Duration = Duration::from_secs(4);
    let measure = || -> Vec<_> {
        let of = |id: &u64| (cpu_seconds(cluster.pid(*id)), log_lines(&cluster.node(*id).log));
        ids.iter().map(of).collect()
    };
    // Wait until the effects of the previous step are over.
    sleep(Duration::from_secs(2)).await;
    let before = measure();
    sleep(SPAN).await;
    for ((id, before), after) in ids.iter().zip(before).zip(measure()) {
        let (cpu, lines) = ((after.0 - before.0) / SPAN.as_secs_f64(), after.1 - before.1);
        eprintln!(
            "{what}: node {id} uses {:.1} % of a processor and logs {lines} lines",
            cpu * 100.0
        );
        assert!(cpu < 0.12, "{what}: node {id} uses {:.0} % of a processor", cpu * 100.0);
        assert!(lines < 10, "{what}: node {id} logged {lines} lines\n{}", cluster.log_tail(*id));
    }
}

fn others(leader: u64) -> (u64, u64) {
    (leader % 3 + 1, (leader + 1) % 3 + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_cluster_with_a_dead_or_refused_member_rests() {
    let mut cluster = Cluster::start().await;
    put(&cluster.client(), "key", "text").await.unwrap();
    let leader = cluster.leader().await;
    let (lost, healthy) = others(leader);
    cluster.kill(lost);
    assert_idle(&cluster, &[leader, healthy], "with a dead member").await;

    // A restarted member is reached soon, although the pauses between retries have become long.
    cluster.start_node(lost);
    eventually("the peer port listens", async || {
        let connected = TcpStream::connect(&cluster.node(lost).peer).await;
        connected.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let began = Instant::now();
    cluster.caught_up(&[1, 2, 3]).await;
    eprintln!("caught up {:?} after it listened", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5));

    cluster.kill(lost);
    fs::remove_dir_all(&cluster.node(lost).data_dir).unwrap();
    cluster.start_node(lost);
    assert_idle(&cluster, &[1, 2, 3], "with a member without its data").await;
    let logged = fs::read_to_string(&cluster.node(leader).log).unwrap();
    assert!(logged.contains("another data directory"), "the reason is missing\n{logged}");
}

/// Waits until a restarted node serves, and returns the time from then until these links are up.
async fn time_to_connect(cluster: &Cluster, restarted: u64, links: &[(u64, u64)]) -> Duration {
    const POLL: Duration = Duration::from_millis(2);
    let until = Instant::now() + PATIENCE;
    // The port already answers while the node starts.
    while cluster.metric(restarted, "conclave_raft_term").is_err() {
        assert!(Instant::now() < until, "node {restarted} does not serve");
        sleep(POLL).await;
    }
    let began = Instant::now();
    let mut missing = links.to_vec();
    loop {
        missing.retain(|(from, to)| {
            let name = format!("conclave_peer_connected{{peer=\"{to}\"}}");
            cluster.metric(*from, &name) != Ok(1.0)
        });
        if missing.is_empty() {
            return began.elapsed();
        }
        assert!(Instant::now() < until, "not connected: {missing:?}");
        sleep(POLL).await;
    }
}

/// A restarted member is connected in both directions as soon as it serves. This holds after a
/// stop, which its peers notice immediately, and on a host that has vanished, whose connections are
/// silent. The member announces itself to its peers, which then retry.
#[tokio::test(flavor = "multi_thread")]
async fn restarted_member_is_connected_as_soon_as_it_serves() {
    let mut cluster = Cluster::prepared(Setup::default());
    let away = 3;
    let link = Link::to(cluster.node(away).peer.clone()).await;
    cluster.reach(away, link.address.clone());
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    let links = [(1, away), (2, away), (away, 1), (away, 2)];
    let mut times = Vec::new();
    for (round, vanishes) in [(1, false), (2, true), (3, false), (4, true), (5, true)] {
        put(&cluster.client(), "key", "text").await.unwrap();
        cluster.caught_up(&[1, 2, 3]).await;
        if vanishes {
            link.vanish();
        }
        cluster.kill(away);
        // The others detect the loss, and their retries slow down to one per second.
        for other in [1, 2] {
            eventually("the peers notice", async || {
                let name = format!("conclave_peer_connected{{peer=\"{away}\"}}");
                let connected = cluster.metric(other, &name)?;
                if connected == 0.0 { Ok(()) } else { Err("still connected".to_owned()) }
            })
            .await;
        }
        sleep(Duration::from_millis(600 * round)).await;
        link.appear();
        cluster.start_node(away);
        let time = time_to_connect(&cluster, away, &links).await;
        eprintln!("connected {time:?} after it served (vanished: {vanishes})");
        times.push(time);
    }
    let slowest = times.into_iter().max().unwrap();
    assert!(slowest < Duration::from_millis(300), "{slowest:?}");
}

/// Starts three nodes with this round trip between any two, without waiting until they serve.
async fn distant_cluster(round_trip: Duration, flags: &[&str]) -> testing::Cluster {
    let options = testing::Options::new(conclave().get_program()).proxied();
    let options = flags.iter().fold(options, |options, flag| options.flag(*flag));
    let cluster = testing::Cluster::prepared(options).await.unwrap();
    for link in cluster.network().unwrap().all() {
        link.set(|shape| shape.delay = round_trip / 2);
    }
    cluster.start_all().unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_works_with_a_round_trip_of_250_ms() {
    let _turn = testing::turn();
    let cluster = distant_cluster(Duration::from_millis(250), &[]).await;
    let began = Instant::now();
    cluster.serving().await.unwrap();
    let client = cluster.client().unwrap();
    put(&client, "first", "text").await.unwrap();
    eprintln!("the first write is acknowledged after {:?}", began.elapsed());
    let leader = cluster.leader().await.unwrap();
    let term = client.status().await.unwrap().term;
    let began = Instant::now();
    let at_leader = cluster.client_of(leader).unwrap();
    for number in 0..20 {
        put(&at_leader, &format!("key-{number}"), "text").await.unwrap();
    }
    let each = began.elapsed() / 20;
    eprintln!("a write takes {each:?}");
    assert!(each < Duration::from_millis(500), "a write takes {each:?}");
    assert_eq!(get(&client, "key-19").await.unwrap(), "text");
    let status = client.status().await.unwrap();
    assert_eq!(status.term, term, "leadership is stable");
    let link = &status.nodes.iter().find(|node| node.id == leader).unwrap().links[0];
    assert!((240_000..300_000).contains(&link.round_trip_us), "{link:?}");
    assert_eq!(link.problem, "");
}

/// A round trip that is too long for the settings is measured and reported with advice.
#[tokio::test(flavor = "multi_thread")]
async fn too_long_a_round_trip_is_reported_with_advice() {
    let flags = ["--heartbeat=30ms", "--election-min=200ms", "--election-max=240ms"];
    let _turn = testing::turn();
    let cluster = distant_cluster(Duration::from_millis(200), &flags).await;
    eventually("the log says which setting is too small", async || {
        let log = fs::read_to_string(&cluster.node(1).log).unwrap_or_default();
        if log.contains("set heartbeat to") { Ok(()) } else { Err(log) }
    })
    .await;
    let status = cluster.status_of(1).await.unwrap();
    let node = status.nodes.iter().find(|node| node.id == 1).unwrap();
    assert!(node.links.iter().any(|link| link.problem.contains("heartbeat")), "{node:?}");
}

/// A call that a follower has forwarded to a leader that then falls silent ends as soon as another
/// node leads. Its outcome is unknown, so the client retries it.
#[tokio::test(flavor = "multi_thread")]
async fn forwarded_call_ends_when_its_leader_is_superseded() {
    let cluster = Cluster::start().await;
    put(&cluster.client(), "key", "text").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    let leader = cluster.leader().await;
    let (follower, _) = others(leader);
    let client = cluster.client_of(follower);
    // This opens the connection and loads the descriptors.
    put(&client, "key", "text").await.unwrap();
    let signal = |signal| {
        let pid = rustix::process::Pid::from_raw(cluster.pid(leader) as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    signal(rustix::process::Signal::STOP);
    let began = Instant::now();
    let call = tokio::spawn(async move {
        put(&client, "key", "after").await.map(|_| began.elapsed()).map_err(|e| e.to_string())
    });
    let answered = call.await.unwrap().unwrap();
    signal(rustix::process::Signal::CONT);
    eprintln!("the call is answered after {answered:?}");
    // An election takes a second. A dead connection is closed after three.
    assert!(answered < Duration::from_millis(2500), "{answered:?}");
    assert_eq!(get(&cluster.client(), "key").await.unwrap(), "after");
}

/// Lease reads rely on the time for which followers withhold their votes. Nodes with different
/// settings therefore refuse each other, at either end of a connection, and report the reason.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_another_election_timeout_refuse_each_other() {
    let mut cluster = Cluster::start().await;
    put(&cluster.client(), "key", "text").await.unwrap();
    let other = 3;
    cluster.stop(other);
    let mut command = cluster.command(other);
    command.arg("--election-max=3s");
    cluster.run(other, command);
    for (from, to) in [(1, other), (2, other), (other, 1), (other, 2)] {
        eventually("the link says why it is down", async || {
            let status = cluster.client_of(from).status().await.map_err(|e| e.to_string())?;
            let node = status.nodes.iter().find(|node| node.id == from).ok_or("no such node")?;
            let link = node.links.iter().find(|link| link.node_id == to).ok_or("no such link")?;
            let refused = !link.connected && link.problem.contains("election_max of");
            if refused { Ok(()) } else { Err(format!("{link:?}")) }
        })
        .await;
    }
    // The other nodes serve without it.
    put(&cluster.client_of(1), "key", "after").await.unwrap();
    cluster.assert_running(other);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_dir(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// Returns a cluster in which `leader` and `old` acknowledged 100 writes that `behind` never got.
/// `old` was then given a copy of its directory from before. Only `leader` runs.
async fn with_old_copy() -> (Cluster, u64, u64, u64) {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "before", "text").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    let leader = cluster.leader().await;
    let (old, behind) = others(leader);
    cluster.stop(old);
    let (dir, copy) = (cluster.node(old).data_dir.clone(), cluster.dir.path().join("copy"));
    copy_dir(&dir, &copy);
    cluster.start_node(old);
    cluster.caught_up(&[1, 2, 3]).await;
    assert_eq!(cluster.leader().await, leader);
    cluster.stop(behind);
    for number in 0..100 {
        put(&client, &format!("key-{number}"), "text").await.unwrap();
    }
    cluster.stop(old);
    fs::remove_dir_all(&dir).unwrap();
    copy_dir(&copy, &dir);
    (cluster, leader, old, behind)
}

/// Returns whether a majority without the writes serves, within a few elections.
async fn serves_without_them(client: &Client) -> bool {
    timeout(Duration::from_secs(5), get(client, "key-99")).await.is_ok_and(|found| found.is_ok())
}

/// Asserts that the old copy is refused by name, after a restart also by itself, and that no
/// majority forms with it. With the leader back, every write is there.
async fn assert_refused(cluster: &mut Cluster, leader: u64, old: u64, behind: u64) {
    eventually("the old copy is named", async || {
        let log = fs::read_to_string(&cluster.node(old).log).unwrap();
        if log.contains("old copy of its data directory") { Ok(()) } else { Err(log) }
    })
    .await;
    cluster.kill(leader);
    cluster.start_node(behind);
    assert!(!serves_without_them(&cluster.client_of(behind)).await, "writes are lost");
    // The node has recorded that its directory is an old copy.
    cluster.kill(old);
    cluster.start_node(old);
    assert!(!serves_without_them(&cluster.client_of(behind)).await, "writes are lost");
    cluster.ended(old);
    cluster.start_node(leader);
    let client = cluster.client();
    for number in 0..100 {
        assert_eq!(get(&client, &format!("key-{number}")).await.unwrap(), "text");
    }
    timeout(PATIENCE, cluster.caught_up(&[leader, behind])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_copy_of_a_directory_is_refused_and_no_write_is_lost() {
    let (mut cluster, leader, old, behind) = with_old_copy().await;
    cluster.start_node(old);
    assert_refused(&mut cluster, leader, old, behind).await;
}

/// The leader's record of its peers' acknowledgements survives a kill and a restart.
#[tokio::test(flavor = "multi_thread")]
async fn old_copy_is_refused_after_all_nodes_were_killed() {
    let (mut cluster, leader, old, behind) = with_old_copy().await;
    // Acknowledgements are written and synced every 200 ms. A leader that is killed earlier loses the
    // last ones.
    sleep(Duration::from_secs(2)).await;
    cluster.kill(leader);
    cluster.start_node(leader);
    eventually("the leader listens again", async || {
        let connected = TcpStream::connect(&cluster.node(leader).peer).await;
        connected.map(drop).map_err(|error| error.to_string())
    })
    .await;
    cluster.start_node(old);
    assert_refused(&mut cluster, leader, old, behind).await;
}

/// Entries that a later leader has truncated are no loss. A deposed member with entries that only
/// it had comes back, restarts, and is accepted by all.
#[tokio::test(flavor = "multi_thread")]
async fn truncated_tail_and_restarts_are_no_loss() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "before", "text").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    let first = cluster.leader().await;
    let (second, third) = others(first);
    // The leader and one follower get entries that the leader alone cannot commit later.
    cluster.kill(second);
    cluster.kill(third);
    let at_first = cluster.client_of(first);
    let _ = timeout(Duration::from_millis(500), put(&at_first, "lost", "text")).await;
    cluster.kill(first);
    cluster.start_node(second);
    cluster.start_node(third);
    put(&cluster.client_of(second), "after", "text").await.unwrap();
    cluster.start_node(first);
    cluster.caught_up(&[1, 2, 3]).await;
    for id in [first, second, third] {
        cluster.kill(id);
        cluster.start_node(id);
        cluster.caught_up(&[1, 2, 3]).await;
    }
    put(&client, "end", "text").await.unwrap();
    for id in 1..=3 {
        assert!(
            !fs::read_to_string(&cluster.node(id).log).unwrap().contains("old copy"),
            "node {id}"
        );
    }
}
