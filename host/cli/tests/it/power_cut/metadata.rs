//! Metadata entries that a leader keeps about its peers, after a power cut.
//!
//! They are written and synced every 200 ms, so the last of them may be lost. The remaining ones
//! must be complete and correct: an entry that claims more than a peer acknowledged would cause a
//! healthy node to be refused.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use conclave_crypto::MasterKey;
use conclave_proto::raft::Acknowledged;
use conclave_storage::{LogStore, Options, Storage};
use conclave_types::ComponentId;
use prost::Message;

use super::{
    contexts,
    disk::{Disk, Unsynced},
    read_trace, start_traced, stop_traced,
};
use crate::{
    durability::{NO_STRACE, now, strace_works},
    harness::{Cluster, Setup, eventually, put, skip},
};

const PUTS: usize = 200;
/// Time after which an acknowledgement is on disk, as `raft/network/local.rs` guarantees, with some
/// tolerance for the trace.
const LATE_S: f64 = 1.5;
/// Number of entries besides the puts: the membership, the leader's first entry,
/// consistency checks.
const OTHERS: u64 = 30;

/// Opens the log of node 1 on an image.
fn open(cluster: &Cluster, image: &Path) -> Storage {
    let component = bytes::Bytes::from_static(conclave_cli::DEFAULT_MACHINE);
    let options = Options {
        dir: image.to_owned(),
        cluster_id: "test".into(),
        node_id: 1,
        component_id: ComponentId::of(&component),
        component,
        master_key: MasterKey::from_file(&cluster.dir.path().join("master.key")).unwrap(),
    };
    Storage::open(options).unwrap_or_else(|error| panic!("{}: {error}", image.display()))
}

/// Returns the highest index that a peer has acknowledged to this node.
fn acknowledged(log: &LogStore, peer: u64) -> Option<u64> {
    let entry = log.get_record(&format!("peer/{peer}/acknowledged")).unwrap()?;
    let known = Acknowledged::decode(&entry[..]).unwrap();
    assert!(known.vote.is_some_and(|vote| vote.committed && vote.node_id == 1), "{known:?}");
    known.log_id.map(|log_id| log_id.index)
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_peers_survives_a_power_cut_whole_and_true() {
    if !strace_works() {
        return skip("metadata survives a power cut", NO_STRACE);
    }
    let mut cluster = Cluster::prepared(Setup::default());
    start_traced(&mut cluster);
    cluster.start_node(2);
    cluster.start_node(3);
    cluster.serving().await;
    eventually("the traced node leads", async || {
        let leader = cluster.leader().await;
        if leader == 1 {
            return Ok(());
        }
        cluster.stop(leader);
        cluster.start_node(leader);
        cluster.caught_up(&[1, 2, 3]).await;
        Err(format!("node {leader} leads"))
    })
    .await;
    let client = cluster.client_of(1);
    let before = last_log(&cluster).await;
    let mut puts = Vec::new();
    for number in 0..PUTS {
        put(&client, "key", &number.to_string()).await.unwrap();
        puts.push(now());
        // Spread over some seconds, so that entries become old enough to be required.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    stop_traced(&mut cluster);
    let incarnations: BTreeMap<u64, Vec<u8>> = (2..=3)
        .map(|peer| (peer, fs::read(cluster.node(peer).data_dir.join("identity")).unwrap()))
        .map(|(peer, identity)| (peer, identity[18..34].to_vec()))
        .collect();

    let (events, times) = read_trace(&cluster);
    let disk = Disk::new(&cluster.node(1).data_dir, &events);
    let (mut present, mut demanded) = (0, 0);
    for (number, cut) in contexts(&events, times.len()).into_iter().enumerate() {
        let unsynced = match number % 3 {
            0 => Unsynced::Nothing,
            1 => Unsynced::Some(number as u64),
            _ => Unsynced::Everything,
        };
        let image = cluster.dir.path().join(format!("cut-{number}"));
        disk.image(cut, unsynced, &image);
        if !image.join("identity").exists() {
            continue; // The cut is before the directory was complete.
        }
        let what = format!("cut at line {cut} of the trace, of the unsynced {unsynced:?}");
        let storage = open(&cluster, &image);
        let acknowledged_by = |time: f64| puts.iter().filter(|at| **at < time).count() as u64;
        let most = before + OTHERS + acknowledged_by(times[cut]) + 1;
        let known: Vec<_> = [2, 3].map(|peer| acknowledged(&storage.log, peer)).into();
        let highest = known.iter().copied().max().flatten();
        assert!(highest <= Some(most), "{what}: {known:?} of {most}");
        // One of the two peers has acknowledged each put.
        let old = acknowledged_by(times[cut] - LATE_S);
        if old > 0 {
            demanded += 1;
            assert!(highest >= Some(before + old), "{what}: {known:?}, not {}", before + old);
            let lease = storage.log.get_record("lease").unwrap();
            assert_eq!(lease, Some(500_u64.to_be_bytes().to_vec()), "{what}");
        }
        for (peer, incarnation) in &incarnations {
            let met = storage.log.get_record(&format!("peer/{peer}/incarnation")).unwrap();
            assert!(met.is_none_or(|met| met == *incarnation), "{what}: node {peer}");
        }
        present += usize::from(highest.is_some());
        drop(storage);
        fs::remove_dir_all(&image).unwrap();
    }
    assert!(present > 5 && demanded > 5, "{present} images had entries, {demanded} had to");
}

async fn last_log(cluster: &Cluster) -> u64 {
    let status = cluster.client().status().await.unwrap();
    status.nodes.iter().find(|node| node.id == 1).unwrap().last_log
}
