//! The hashes of this node's state, by index.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use conclave_machine::Worker;
use conclave_types::status::Verified;

/// The number of results that are kept. Only the last few are requested.
const KEPT_MAX: usize = 8;

/// The hash of the state after an entry, or the reason why there is none.
pub(crate) type StateHash = Result<Verified, String>;

/// This node's results, by index.
#[derive(Default)]
pub(crate) struct StateHashes(watch::Sender<BTreeMap<u64, StateHash>>);

impl StateHashes {
    fn add(&self, index: u64, found: StateHash) {
        self.0.send_modify(|all| {
            all.insert(index, found);
            if all.len() > KEPT_MAX {
                all.pop_first();
            }
        });
    }

    /// Returns the results, and their changes.
    pub(super) fn watch(&self) -> watch::Receiver<BTreeMap<u64, StateHash>> {
        self.0.subscribe()
    }

    /// Hashes the state after `index`, the last entry that was fed to the worker. Runs when it is polled.
    pub(crate) fn hash(
        self: Arc<Self>,
        worker: &Worker,
        index: u64,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (state, worker) = (worker.snapshot(index), worker.clone());
        async move {
            let found = async {
                let (state, digest) = tokio::join!(state, worker.digest_at(index));
                let mut state = state.map_err(|error| error.to_string())?;
                let digest = digest.map_err(|fatal_error| fatal_error.to_string())?;
                let digest = digest.ok_or("the digest is no longer known")?;
                let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
                while let Some(chunk) = state.next().await {
                    let chunk = chunk.map_err(|error| error.to_string())?;
                    bytes += chunk.len() as u64;
                    hasher.update(&chunk);
                }
                Ok(Verified { digest, state: *hasher.finalize().as_bytes(), bytes })
            };
            let found = found.await;
            self.add(index, found);
        }
    }
}
