//! Cache of compiled code that a node keeps for its next start.

use std::{fs, path::PathBuf};

use super::machines::*;
use crate::harness::{Cluster, eventually, files};

/// Returns the numbers of components that a node has compiled and loaded from the cache since
/// its start.
fn compilations(cluster: &Cluster, id: u64) -> Result<[f64; 2], String> {
    let metric = |name| cluster.metric(id, name);
    Ok([metric("conclave_components_compiled_total")?, metric("conclave_components_loaded_total")?])
}

fn kept(cluster: &Cluster, id: u64) -> Vec<PathBuf> {
    files(&cluster.node(id).data_dir.join("compiled"))
}

async fn compilations_are(cluster: &Cluster, id: u64, expected: [f64; 2]) {
    eventually("the components are there", async || {
        let found = compilations(cluster, id)?;
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// A restart loads the code that the previous run compiled: the initial component, the active one
/// and the previous one. A damaged file only costs one compilation.
#[tokio::test(flavor = "multi_thread")]
async fn restarted_node_compiles_nothing_again() {
    let (mut cluster, _dir) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    for id in 1..=3 {
        assert_eq!(compilations(&cluster, id).unwrap(), [1.0, 0.0]);
        assert_eq!(kept(&cluster, id).len(), 1);
    }
    let component = push_ready(&client, second().component()).await;
    client.activate_component(&component, false).await.unwrap();
    count(&client).await.unwrap();
    for id in 1..=3 {
        assert_eq!(compilations(&cluster, id).unwrap(), [2.0, 0.0]);
        assert_eq!(kept(&cluster, id).len(), 2);
    }
    let restarted = cluster.leader().await;
    cluster.stop(restarted);
    cluster.start_node(restarted);
    cluster.serving().await;
    compilations_are(&cluster, restarted, [0.0, 2.0]).await;
    assert_eq!(all_agree(&cluster, &component).await, 1);

    cluster.kill(restarted);
    let damaged = kept(&cluster, restarted).remove(0);
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    cluster.start_node(restarted);
    cluster.serving().await;
    compilations_are(&cluster, restarted, [1.0, 1.0]).await;
    count(&client).await.unwrap();
    assert_eq!(all_agree(&cluster, &component).await, 2);
    assert_eq!(kept(&cluster, restarted).len(), 2, "it was kept again");
}

/// The code of a component that the cluster has dropped is removed, and that of the others is kept.
#[tokio::test(flavor = "multi_thread")]
async fn code_of_forgotten_components_is_removed() {
    /// Maximum number of components of a cluster.
    const COMPONENTS_MAX: usize = 8;
    let (cluster, _dir) = cluster_of(&first(), &[]).await;
    let client = cluster.client();
    for number in 0..COMPONENTS_MAX + 2 {
        push_ready(&client, padded(&second().component(), number)).await;
    }
    eventually("what was forgotten is removed", async || {
        let counts: Vec<usize> = (1..=3).map(|id| kept(&cluster, id).len()).collect();
        if counts == [COMPONENTS_MAX; 3] { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    count(&client).await.unwrap();
}
