//! Goal: the conformance tests find all ways in which a state machine can break the contract.
//! Method: one small incorrect state machine per way, and the expected report.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

use conclave_sdk::{
    Call, Context, Failure, Machine, Reply,
    snapshot::{RestoreWriter, SnapshotReader},
    testing::{Log, check, check_derived, check_same_state},
};

/// Remembers words. `Wrong` selects the mistake.
struct Words<W> {
    words: Vec<String>,
    wrong: W,
}

impl<W: Default> Default for Words<W> {
    fn default() -> Self {
        Self { words: Vec::new(), wrong: W::default() }
    }
}

trait Wrong: Default + 'static {
    /// Inserts the word in sorted order. One implementation gets the order wrong.
    fn insert(&mut self, words: &mut Vec<String>, word: String) {
        if let Err(place) = words.binary_search(&word) {
            words.insert(place, word);
        }
    }
    fn answer(&mut self, words: usize) -> u64 {
        words as u64
    }
    fn on_query(&self) -> u64 {
        0
    }
    fn on_save(&self, _words: &mut Vec<String>) {}
    fn reader(_bytes: &[u8]) -> Option<Box<dyn SnapshotReader>> {
        None
    }
}

impl<W: Wrong> Machine for Words<W> {
    const NAME: &'static str = "words";
    const VERSION: &'static str = "1.0.0";
    const STATE_VERSION: u32 = 1;

    fn apply(&mut self, _: &Context, call: &Call) -> Result<Reply, Failure> {
        let word = String::from_utf8(call.request.clone())
            .map_err(|_| Failure::invalid_argument("not UTF-8"))?;
        self.wrong.insert(&mut self.words, word);
        Ok(Reply::new(self.wrong.answer(self.words.len()).to_be_bytes()))
    }

    fn query(&self, _: &Context, _: &Call) -> Result<Vec<u8>, Failure> {
        Ok((self.words.len() as u64 + self.wrong.on_query()).to_be_bytes().into())
    }

    fn save(&self) -> Vec<u8> {
        let mut words = self.words.clone();
        self.wrong.on_save(&mut words);
        words.join("\n").into()
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        let text = String::from_utf8(bytes.to_vec());
        let text = text.map_err(|_| Failure::invalid_argument("not UTF-8"))?;
        let words = text.split_terminator('\n').map(str::to_owned).collect();
        Ok(Self { words, wrong: W::default() })
    }

    fn snapshot(&self) -> Box<dyn SnapshotReader> {
        W::reader(&self.save())
            .unwrap_or_else(|| Box::new(conclave_sdk::snapshot::Bytes::new(self.save())))
    }
}

fn log(words: &[&str]) -> Log {
    let mut log = Log::new();
    log.ask(Call::new("Count", []));
    for word in words {
        log.apply(Call::new("Add", *word));
    }
    log
}

const WORDS: [&str; 5] = ["pear", "apple", "fig", "apple", "cherry"];

/// Returns the message of a failed check, or `None` if the check passes.
fn complaint(check: impl FnOnce()) -> Option<String> {
    let failed = catch_unwind(AssertUnwindSafe(check)).err()?;
    let text = failed.downcast_ref::<String>().cloned();
    Some(text.or_else(|| failed.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap())
}

fn assert_caught<W: Wrong>(parts: &[&str]) {
    let said = complaint(|| check::<Words<W>>(&log(&WORDS))).expect("the check must fail");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[derive(Default)]
struct NothingWrong;
impl Wrong for NothingWrong {}

#[test]
fn a_right_machine_passes() {
    check::<Words<NothingWrong>>(&log(&WORDS));
    check_same_state::<Words<NothingWrong>>(&log(&["a", "b"]), &log(&["b", "a", "b"]));
}

static HIDDEN: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct HiddenStatic;
impl Wrong for HiddenStatic {
    fn answer(&mut self, _: usize) -> u64 {
        HIDDEN.fetch_add(1, Ordering::Relaxed)
    }
}

#[test]
fn a_hidden_static_is_caught() {
    assert_caught::<HiddenStatic>(&["applied twice", "entry 0", "Add at index 3"]);
}

#[derive(Default)]
struct UnsavedField(u64);
impl Wrong for UnsavedField {
    fn answer(&mut self, _: usize) -> u64 {
        self.0 += 1;
        self.0
    }
}

#[test]
fn a_field_that_is_not_saved_is_caught() {
    assert_caught::<UnsavedField>(&["restored after 1 entries", "entry 1 (Add at index 4)"]);
}

#[derive(Default)]
struct InsertionOrder;
impl Wrong for InsertionOrder {
    fn insert(&mut self, words: &mut Vec<String>, word: String) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
}

#[test]
fn a_snapshot_in_order_of_insertion_is_caught() {
    let said = complaint(|| {
        check_same_state::<Words<InsertionOrder>>(&log(&["fig", "apple"]), &log(&["apple", "fig"]));
    });
    assert!(said.unwrap().contains("reached in two ways differ from byte 0"));
}

/// Imitates a hash table with a random seed: the order differs between instances.
#[derive(Default)]
struct InstanceOrder(Cell<u64>);
static INSTANCES: AtomicU64 = AtomicU64::new(1);
impl Wrong for InstanceOrder {
    fn on_save(&self, words: &mut Vec<String>) {
        if self.0.get() == 0 {
            self.0.set(INSTANCES.fetch_add(1, Ordering::Relaxed));
        }
        let turn = self.0.get() as usize % words.len().max(1);
        words.rotate_left(turn);
    }
}

#[test]
fn an_order_that_differs_between_instances_is_caught() {
    assert_caught::<InstanceOrder>(&["snapshots after the same log, applied twice differ"]);
}

#[derive(Default)]
struct QueryChanges(Cell<u64>);
impl Wrong for QueryChanges {
    fn on_query(&self) -> u64 {
        self.0.replace(self.0.get() + 1)
    }
}

#[test]
fn a_query_that_changes_something_is_caught() {
    assert_caught::<QueryChanges>(&[
        "after 0 entries, Count answered differently when asked again",
    ]);
}

/// Marks the beginning of each chunk, so that the bytes depend on the chunk sizes.
struct Marks(Vec<u8>);
impl SnapshotReader for Marks {
    fn read(&mut self, max_bytes: usize) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let rest = self.0.split_off(self.0.len().min(max_bytes.saturating_sub(1)));
        let mut chunk = std::mem::replace(&mut self.0, rest);
        chunk.insert(0, b'#');
        if max_bytes == 1 {
            self.0.clear();
        }
        chunk
    }
}

#[derive(Default)]
struct ChunkDependent;
impl Wrong for ChunkDependent {
    fn reader(bytes: &[u8]) -> Option<Box<dyn SnapshotReader>> {
        Some(Box::new(Marks(bytes.to_vec())))
    }
}

#[test]
fn bytes_that_depend_on_the_chunks_are_caught() {
    assert_caught::<ChunkDependent>(&["read in chunks of 1 MiB and"]);
}

/// Loses the first byte of every chunk except the first.
struct Lossy(Vec<u8>);
impl RestoreWriter<Lost> for Lossy {
    fn write(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        let from = usize::from(!self.0.is_empty());
        self.0.extend_from_slice(&chunk[from..]);
        Ok(())
    }
    fn finish(self: Box<Self>) -> Result<Lost, Failure> {
        Lost::load(1, &self.0)
    }
}

#[derive(Default)]
struct Lost(Vec<u8>);
impl Machine for Lost {
    const NAME: &'static str = "lost";
    const VERSION: &'static str = "1.0.0";
    const STATE_VERSION: u32 = 1;
    fn apply(&mut self, _: &Context, call: &Call) -> Result<Reply, Failure> {
        self.0.extend(&call.request);
        Ok(Reply::default())
    }
    fn query(&self, _: &Context, _: &Call) -> Result<Vec<u8>, Failure> {
        Ok(self.0.clone())
    }
    fn save(&self) -> Vec<u8> {
        self.0.clone()
    }
    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        Ok(Self(bytes.to_vec()))
    }
    fn restore(_: u32) -> Result<Box<dyn RestoreWriter<Self>>, Failure> {
        Ok(Box::new(Lossy(Vec::new())))
    }
}

#[test]
fn a_restore_that_depends_on_the_chunks_is_caught() {
    let said = complaint(|| check::<Lost>(&log(&WORDS))).expect("the check must fail");
    assert!(said.contains("before and after a restore differ from byte 1"), "{said}");
}

/// Counts words. `total` is derived from them, maintained along the log, and wrong if a word comes
/// twice. A tick makes the error visible.
#[derive(Debug, Default, PartialEq)]
struct Counted {
    words: std::collections::BTreeSet<String>,
    total: usize,
}

impl Machine for Counted {
    const NAME: &'static str = "counted";
    const VERSION: &'static str = "1.0.0";
    const STATE_VERSION: u32 = 1;

    fn apply(&mut self, _: &Context, call: &Call) -> Result<Reply, Failure> {
        self.words.insert(String::from_utf8_lossy(&call.request).into_owned());
        self.total += 1;
        Ok(Reply::default())
    }

    fn tick(&mut self, _: &Context) -> Reply {
        if self.total > self.words.len() {
            self.words.pop_first();
        }
        Reply::default()
    }

    fn query(&self, _: &Context, _: &Call) -> Result<Vec<u8>, Failure> {
        Ok(Vec::new())
    }

    fn save(&self) -> Vec<u8> {
        self.words.iter().map(String::as_str).collect::<Vec<_>>().join("\n").into()
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        let text = String::from_utf8_lossy(bytes);
        let words: std::collections::BTreeSet<_> = text.lines().map(str::to_owned).collect();
        let total = words.len();
        Ok(Self { words, total })
    }
}

#[test]
fn a_derived_field_that_no_entry_of_the_log_shows_is_found() {
    let said = complaint(|| check::<Counted>(&log(&WORDS))).expect("the check must fail");
    assert!(said.contains("a restored state machine and the original"), "{said}");
    assert!(said.contains("snapshots after tick"), "{said}");
    let said = complaint(|| check_derived::<Counted>(&log(&WORDS))).expect("the check must fail");
    assert!(said.contains("after 4 entries, a restored state machine has other fields"), "{said}");
    // Without a word that comes twice, `total` is correct.
    check_derived::<Counted>(&log(&["a", "b"]));
}
