//! A power cut while a node rebuilds its log.
//!
//! A node rebuilds its log at its start if the log takes far more space than its content: it copies
//! the log, exchanges the directories of the copy and of the original, and removes the original. The
//! power fails around each of these steps, of which any unsynced part may be on the disk. A restart
//! has every acknowledged put and leaves one log. A restart is itself cut off again.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    Put, Restarted, WRITERS, assert_same, check_images,
    disk::{Disk, Unsynced},
    kill_traced, read_trace, start_traced, stop_traced,
    trace::{self, Call, Event},
    traced, write,
};
use crate::{
    durability::{NO_STRACE, strace_works},
    harness::{Cluster, Setup, skip},
};

/// Number of puts of each writer in each life.
const PUTS: usize = 20;
/// The space that makes a log large enough for a rebuild. A sparse file among sled's takes it.
const PADDING_BYTES: u64 = 600 << 20;
/// Number of cuts after the rebuild, spread over the puts.
const CUTS_AFTER: usize = 6;
/// Number of cuts of each second start.
const SECOND_CUTS: usize = 8;

/// A cut: the line of the trace, and the unsynced changes that are on the disk.
type Cut = (usize, Unsynced);

pub(super) async fn check_cuts_of_a_rebuild() {
    if !strace_works() {
        return skip("acknowledged puts survive a power cut during a rebuild", NO_STRACE);
    }
    let mut cluster = Cluster::prepared(Setup::default());
    cluster.nodes.truncate(1);
    let data_dir = cluster.node(1).data_dir.clone();
    let puts = Arc::<Mutex<Vec<Put>>>::default();
    for life in 0..2 {
        start_traced(&mut cluster);
        cluster.serving().await;
        let ends = write(&cluster.client(), &puts, life * PUTS, (life + 1) * PUTS);
        assert_eq!(ends.join_all().await, [(life + 1) * PUTS; WRITERS]);
        stop_traced(&mut cluster);
        if life == 0 {
            let padding = data_dir.join("log/blobs/0");
            trace::create_sparse_file(&cluster.dir.path().join("trace"), &padding, PADDING_BYTES);
        }
    }
    let puts = std::mem::take(&mut *puts.lock().unwrap());
    let (events, times) = read_trace(&cluster);
    let disk = Disk::new(&data_dir, &events);
    let steps = Steps::of(&events, &data_dir);
    let cuts = steps.cuts(&events);
    let cuts = cuts.into_iter().map(|(cut, unsynced)| (cut, unsynced, times[cut]));
    check_images(&cluster, &disk, cuts.collect(), &puts).await;
    for (cut, unsynced) in steps.kinds_of_leftovers() {
        let at = times[cut];
        let there = puts.iter().filter(|put| put.acknowledged < at).cloned().collect();
        let image = cluster.dir.path().join("second");
        disk.image(cut, unsynced, &image);
        cut_again(&cluster, &image, there).await;
        fs::remove_dir_all(&image).unwrap();
    }
}

/// The steps of a rebuild, as indexes of events.
struct Steps<'a> {
    begun: usize,
    exchanged: &'a Event,
    exchanged_at: usize,
    log_removed: &'a Event,
    ended: usize,
}

impl<'a> Steps<'a> {
    fn of(events: &'a [Event], data_dir: &Path) -> Self {
        let (log, other) = (data_dir.join("log"), data_dir.join("log.rebuild"));
        let at = |call: Call| {
            let at = events.iter().rposition(|event| event.call == call);
            at.unwrap_or_else(|| panic!("the log is not rebuilt: no {call:?}"))
        };
        let exchanged_at = at(Call::Exchange(log, other.clone()));
        Self {
            begun: at(Call::MakeDir(other.clone())),
            exchanged: &events[exchanged_at],
            exchanged_at,
            log_removed: &events[at(Call::Remove(other.join("db")))],
            ended: at(Call::Remove(other)),
        }
    }

    /// Returns cuts around each step, and some later ones.
    fn cuts(&self, events: &[Event]) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for (number, event) in events[self.begun..self.exchanged_at].iter().enumerate() {
            cuts.push((event.ended, some_part(number)));
        }
        // The last of the copying, the exchange and the removal.
        for event in &events[self.exchanged_at - 2..=self.ended] {
            cuts.extend([0, 1, 2, 4].map(|number| (event.ended + 1, some_part(number))));
        }
        let later = &events[self.ended + 1..];
        let syncs: Vec<_> =
            later.iter().filter(|event| matches!(event.call, Call::Sync(_))).collect();
        for sync in syncs.iter().step_by(syncs.len() / CUTS_AFTER) {
            cuts.push((sync.ended, Unsynced::Nothing));
        }
        cuts
    }

    /// Returns one cut for each kind of leftover: an incomplete or unsynced copy, a complete copy
    /// that was not exchanged, the original, and a part of the original.
    fn kinds_of_leftovers(&self) -> [Cut; 4] {
        [
            (self.exchanged.begun, Unsynced::Some(1)),
            (self.exchanged.ended + 1, Unsynced::Nothing),
            (self.exchanged.ended + 1, Unsynced::Everything),
            (self.log_removed.ended + 1, Unsynced::Everything),
        ]
    }
}

fn some_part(number: usize) -> Unsynced {
    match number % 3 {
        0 => Unsynced::Nothing,
        1 => Unsynced::Some(number as u64),
        _ => Unsynced::Everything,
    }
}

/// Starts a node on the disk that a first cut left, lets it serve, and cuts it off again.
async fn cut_again(cluster: &Cluster, image: &Path, puts: Vec<Put>) {
    let before = trace::calls_that_make(image);
    let first = before.len();
    let trace = image.with_extension("trace");
    let mut node = Restarted::start_with(cluster, image, |serve| traced(&serve, &trace, &[]));
    node.has(&puts, f64::INFINITY, "a start after a power cut").await;
    let puts = Arc::new(Mutex::new(puts));
    let ends = write(&node.client, &puts, 2 * PUTS, 3 * PUTS);
    assert_eq!(ends.join_all().await, [3 * PUTS; WRITERS]);
    kill_traced(image);
    node.child.wait().unwrap();
    drop(node);
    trace::complete_interrupted_calls(&trace);
    let text = fs::read_to_string(&trace).unwrap();
    fs::remove_file(&trace).unwrap();
    let (events, times) = trace::read(&text, image, before);
    let disk = Disk::new(image, &events);
    let model = cluster.dir.path().join("model");
    disk.image(times.len(), Unsynced::Everything, &model);
    assert_same(&model, image);
    fs::remove_dir_all(&model).unwrap();

    let puts = std::mem::take(&mut *puts.lock().unwrap());
    // Most names and syncs are at the start. The last cut comes after all puts.
    let changes: Vec<_> = (events.iter())
        .filter(|event| event.begun >= first && !matches!(event.call, Call::Write { .. }))
        .take(100)
        .collect();
    let cuts = changes.iter().step_by(changes.len() / SECOND_CUTS).map(|event| event.ended + 1);
    let cuts = cuts.enumerate().map(|(number, cut)| (cut, some_part(number)));
    let last = [(times.len() - 1, Unsynced::Nothing)];
    let cuts = cuts.chain(last).map(|(cut, unsynced)| (cut, unsynced, times[cut]));
    check_images(cluster, &disk, cuts.collect(), &puts).await;
}
