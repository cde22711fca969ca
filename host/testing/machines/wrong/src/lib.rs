//! Stores words, and breaks the contract in one selectable way, for the tests of `conclave check`.
//!
//! The component itself selects the breach: its bytes contain [`SELECTOR`] once, and a test
//! overwrites the two digits at its end. So each variant is an ordinary component, and all are made
//! from one build. `00` selects no breach.

use std::{
    cell::Cell,
    collections::BTreeSet,
    hint::black_box,
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use conclave_sdk::{
    Call, Context, Failure, Machine, Reply, Router,
    snapshot::{Bytes, Collect, RestoreWriter, SnapshotReader},
};

mod pb {
    conclave_sdk::include_protobuf!("wrong.v1");
}
pub use pb::{AddRequest, Added, Amount, Nothing, Number, Word};

/// The text that tests search for in the component. The two digits select the breach.
#[used]
static SELECTOR: [u8; 27] = *b"conclave-wrong-machine-is00";

/// The selected breach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// A `static` affects an answer, and is not saved.
    HiddenGlobal,
    /// A query for the number of words increases the next answer.
    QueryChanges,
    /// The first word is the one at the lowest address.
    AddressOrder,
    /// The sum is maintained along the log, but computed in the order of the words after a restore.
    FloatSum,
    /// A `static` also stores the words, and a restore adds to it.
    LeakAcrossRestore,
    /// The snapshot has the words in the order of insertion.
    InsertionOrder,
    /// The bytes of a snapshot depend on the sizes in which it is read.
    ChunkMarks,
    /// The restored state depends on the sizes in which a snapshot is written.
    ChunkLoss,
    /// A snapshot shows the state at the time when it is read.
    LateSnapshot,
    /// Each restore leaks memory.
    MemoryLeak,
    /// The empty word causes a panic.
    Panics,
    /// The word `slow` uses a third of the available fuel.
    Slow,
    /// Taking a snapshot changes an answer.
    SnapshotChanges,
    /// Each restore leaks a small amount of memory.
    SmallLeak,
    /// The count is wrong after a word was added twice, and correct again after a restore. Only a
    /// tick shows it.
    StaleCount,
    /// An event of each call contains the request three times.
    LargeEvents,
    /// Adding a known word adds to its amount, and fails.
    FailureChanges,
    /// All words expire ten seconds after the first one. With two words, the state requests no
    /// wake-up time for that.
    DroppedWakeUp,
    /// All words expire ten seconds after the first one, but the state never requests a wake-up
    /// time for that.
    NoWakeUp,
    /// No breach: all words expire ten seconds after the first one, and the state requests that
    /// wake-up time. Adding a known word fails, after expired words were removed.
    NothingWithTimers,
    /// No breach: snapshots have another format, and snapshots in the old format can be restored.
    NewFormat,
    /// A restore of a snapshot in the old format fails if it has words.
    RefusesOld,
    /// A restore of a snapshot in the old format panics if it has words.
    MigrationPanics,
    /// The last word of a snapshot in the old format is lost.
    MigrationLoses,
    /// The count is one too high after a restore from the old format. A tick shows it.
    MigrationMiscounts,
}

/// The first bytes of snapshots in the new format. No amount has these bytes, because NaNs are canonical.
const NEW_FORMAT: [u8; 8] = [0xff; 8];

impl Wrong {
    fn chosen() -> Self {
        const ALL: [Wrong; 26] = [
            Wrong::Nothing,
            Wrong::HiddenGlobal,
            Wrong::QueryChanges,
            Wrong::AddressOrder,
            Wrong::FloatSum,
            Wrong::LeakAcrossRestore,
            Wrong::InsertionOrder,
            Wrong::ChunkMarks,
            Wrong::ChunkLoss,
            Wrong::LateSnapshot,
            Wrong::MemoryLeak,
            Wrong::Panics,
            Wrong::Slow,
            Wrong::SnapshotChanges,
            Wrong::SmallLeak,
            Wrong::StaleCount,
            Wrong::LargeEvents,
            Wrong::FailureChanges,
            Wrong::DroppedWakeUp,
            Wrong::NoWakeUp,
            Wrong::NothingWithTimers,
            Wrong::NewFormat,
            Wrong::RefusesOld,
            Wrong::MigrationPanics,
            Wrong::MigrationLoses,
            Wrong::MigrationMiscounts,
        ];
        // `black_box` hides the value from the optimizer, which would otherwise see that the static
        // is never written.
        let [.., tens, ones] = *black_box(&SELECTOR);
        let number = usize::from(tens - b'0') * 10 + usize::from(ones - b'0');
        ALL.get(number).copied().unwrap_or(Wrong::Nothing)
    }

    /// Returns true if snapshots have the new format.
    fn has_new_format(self) -> bool {
        matches!(
            self,
            Self::NewFormat
                | Self::RefusesOld
                | Self::MigrationPanics
                | Self::MigrationLoses
                | Self::MigrationMiscounts
        )
    }

    /// Returns true if words expire.
    fn has_timers(self) -> bool {
        matches!(self, Self::DroppedWakeUp | Self::NoWakeUp | Self::NothingWithTimers)
    }
}

static SERIAL: AtomicU64 = AtomicU64::new(0);
static SNAPSHOTS: AtomicU64 = AtomicU64::new(0);
static ALL_WORDS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static LATEST: Mutex<Vec<u8>> = Mutex::new(Vec::new());

static ROUTER: LazyLock<Router<Words>> = LazyLock::new(|| {
    Router::new()
        .command("wrong.v1.Wrong/Add", Words::add)
        .query("wrong.v1.Wrong/Count", Words::count)
        .query("wrong.v1.Wrong/First", Words::first)
        .query("wrong.v1.Wrong/Sum", Words::sum)
});

/// The state: words and their amounts. They are sorted, unless the breach concerns their order.
#[derive(Default)]
pub struct Words {
    words: Vec<(Box<str>, f64)>,
    /// The sum of the amounts, in the order of the calls.
    running: f64,
    /// The number of words.
    total: usize,
    asked: Cell<u64>,
    /// The time at which all words expire. 0 for never.
    until_ms: u64,
}

impl Words {
    fn add(&mut self, context: &Context, request: AddRequest) -> Result<Added, Failure> {
        let wrong = Wrong::chosen();
        if wrong.has_timers() {
            self.end(context);
            if self.until_ms == 0 {
                self.until_ms = context.time_ms + 10_000;
            }
        }
        if wrong == Wrong::Slow && request.word == "slow" {
            spin();
        }
        assert!(wrong != Wrong::Panics || !request.word.is_empty(), "there is no empty word");
        let known = self.words.iter().position(|(word, _)| **word == *request.word);
        match (known, wrong) {
            (Some(_), Wrong::NothingWithTimers) => return Err(already_there()),
            (Some(at), Wrong::FailureChanges) => {
                self.words[at].1 += 1.0;
                return Err(already_there());
            }
            (Some(_), Wrong::StaleCount) => self.total += 1,
            (Some(_), _) => {}
            (None, _) => self.insert(wrong, request.word.into(), request.amount),
        }
        let serial = match wrong {
            Wrong::HiddenGlobal => SERIAL.fetch_add(1, Ordering::Relaxed),
            Wrong::SnapshotChanges => SNAPSHOTS.load(Ordering::Relaxed),
            _ => 0,
        };
        if wrong == Wrong::LateSnapshot {
            *lock(&LATEST) = self.save();
        }
        Ok(Added { new: known.is_none(), serial })
    }

    fn end(&mut self, context: &Context) {
        if (1..=context.time_ms).contains(&self.until_ms) {
            *self = Self::default();
        }
    }

    fn insert(&mut self, wrong: Wrong, word: Box<str>, amount: f64) {
        if wrong == Wrong::LeakAcrossRestore {
            lock(&ALL_WORDS).insert(word.to_string());
        }
        self.running += amount;
        self.total += 1;
        self.words.push((word, amount));
        match wrong {
            Wrong::InsertionOrder => {}
            Wrong::AddressOrder => self.words.sort_by_key(|(word, _)| word.as_ptr() as usize),
            _ => self.words.sort_by(|(left, _), (right, _)| left.cmp(right)),
        }
    }

    /// Migrates the words from the old format to the new one.
    fn migrate(&mut self, wrong: Wrong) -> Result<(), Failure> {
        match wrong {
            Wrong::RefusesOld => {
                return Err(Failure::invalid_argument("the words have no language"));
            }
            Wrong::MigrationPanics => assert!(self.words.is_empty(), "a word without a language"),
            Wrong::MigrationLoses => {
                self.words.pop();
                self.total -= 1;
            }
            Wrong::MigrationMiscounts => self.total += 1,
            _ => {}
        }
        Ok(())
    }

    fn count(&self, _: &Context, _: Nothing) -> Result<Number, Failure> {
        let words = self.words.len() as u64;
        let number = match Wrong::chosen() {
            Wrong::QueryChanges => words + self.asked.replace(self.asked.get() + 1),
            Wrong::LeakAcrossRestore => lock(&ALL_WORDS).len() as u64,
            _ => words,
        };
        Ok(Number { number })
    }

    fn first(&self, _: &Context, _: Nothing) -> Result<Word, Failure> {
        let first = match Wrong::chosen() {
            // This variant stores the words unsorted.
            Wrong::InsertionOrder => self.words.iter().map(|(word, _)| word).min(),
            _ => self.words.first().map(|(word, _)| word),
        };
        let first = first.ok_or_else(|| Failure::not_found("there are no words"))?;
        Ok(Word { word: first.to_string() })
    }

    fn sum(&self, _: &Context, _: Nothing) -> Result<Amount, Failure> {
        let amount = match Wrong::chosen() {
            Wrong::FloatSum => self.running,
            _ => {
                let mut words: Vec<_> = self.words.iter().collect();
                words.sort_by(|(left, _), (right, _)| left.cmp(right));
                words.iter().fold(0.0, |sum, (_, amount)| sum + amount)
            }
        };
        Ok(Amount { amount })
    }
}

fn already_there() -> Failure {
    Failure::already_exists("the word is there")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Uses about 7×10⁸ of the 2×10⁹ units of fuel.
fn spin() {
    for round in 0..100_000_000_u64 {
        black_box(round);
    }
}

impl Machine for Words {
    const NAME: &'static str = "wrong";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = 1;

    fn descriptor_set() -> &'static [u8] {
        pb::DESCRIPTOR_SET
    }

    fn apply(&mut self, context: &Context, call: &Call) -> Result<Reply, Failure> {
        let reply = ROUTER.apply(self, context, call)?;
        Ok(match Wrong::chosen() {
            Wrong::LargeEvents => reply.event("words", call.request.repeat(3)),
            _ => reply,
        })
    }

    fn query(&self, context: &Context, call: &Call) -> Result<Vec<u8>, Failure> {
        ROUTER.answer(self, context, call)
    }

    fn wake_at(&self) -> Option<u64> {
        let named = match Wrong::chosen() {
            Wrong::DroppedWakeUp => self.words.len() != 2,
            Wrong::NoWakeUp => false,
            _ => true,
        };
        (named && self.until_ms > 0).then_some(self.until_ms)
    }

    /// Removes expired words. Also removes a word if the count is too high.
    fn tick(&mut self, context: &Context) -> Reply {
        self.end(context);
        if self.total > self.words.len() {
            self.words.pop();
        }
        Reply::default()
    }

    /// Encodes each word as its amount, its length and its bytes. Variants with timers first write
    /// the time at which all words expire.
    fn save(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if Wrong::chosen().has_new_format() {
            bytes.extend(NEW_FORMAT);
        }
        if Wrong::chosen().has_timers() {
            bytes.extend(self.until_ms.to_be_bytes());
        }
        for (word, amount) in &self.words {
            bytes.extend(amount.to_bits().to_be_bytes());
            bytes.extend((word.len() as u64).to_be_bytes());
            bytes.extend(word.as_bytes());
        }
        bytes
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        let wrong = Wrong::chosen();
        let mut words = Self::default();
        let broken = || Failure::invalid_argument("the snapshot is cut off");
        let mut rest = bytes;
        let from_new = wrong.has_new_format() && bytes.starts_with(&NEW_FORMAT);
        if from_new {
            rest = &bytes[NEW_FORMAT.len()..];
        }
        if wrong.has_timers() {
            let (until_ms, after) = bytes.split_first_chunk::<8>().ok_or_else(broken)?;
            words.until_ms = u64::from_be_bytes(*until_ms);
            rest = after;
        }
        while !rest.is_empty() {
            let (amount, after) = rest.split_first_chunk::<8>().ok_or_else(broken)?;
            let (length, after) = after.split_first_chunk::<8>().ok_or_else(broken)?;
            let length = u64::from_be_bytes(*length) as usize;
            let (word, after) = after.split_at_checked(length).ok_or_else(broken)?;
            let word = String::from_utf8_lossy(word).into_owned().into_boxed_str();
            words.insert(wrong, word, f64::from_bits(u64::from_be_bytes(*amount)));
            rest = after;
        }
        if !from_new && !words.words.is_empty() {
            words.migrate(wrong)?;
        }
        if wrong == Wrong::MemoryLeak {
            std::mem::forget(black_box(vec![1_u8; 16 << 10]));
        }
        if wrong == Wrong::SmallLeak {
            std::mem::forget(black_box(vec![1_u8; 200]));
        }
        if wrong == Wrong::LateSnapshot {
            *lock(&LATEST) = words.save();
        }
        Ok(words)
    }

    fn snapshot(&self) -> Box<dyn SnapshotReader> {
        match Wrong::chosen() {
            Wrong::ChunkMarks => Box::new(Marks(self.save())),
            Wrong::LateSnapshot => Box::new(Late(0)),
            Wrong::SnapshotChanges => {
                SNAPSHOTS.fetch_add(1, Ordering::Relaxed);
                Box::new(Bytes::new(self.save()))
            }
            _ => Box::new(Bytes::new(self.save())),
        }
    }

    fn restore(state_version: u32) -> Result<Box<dyn RestoreWriter<Self>>, Failure> {
        Ok(match Wrong::chosen() {
            Wrong::ChunkLoss => Box::new(Lossy(Vec::new())),
            _ => Box::new(Collect::new(state_version)),
        })
    }
}

/// Replaces the last byte of each full piece by `#`.
struct Marks(Vec<u8>);

impl SnapshotReader for Marks {
    fn read(&mut self, max_bytes: usize) -> Vec<u8> {
        let rest = self.0.split_off(self.0.len().min(max_bytes));
        let mut piece = std::mem::replace(&mut self.0, rest);
        if let Some(last) = piece.get_mut(max_bytes - 1) {
            *last = b'#';
        }
        piece
    }
}

/// Reads the state at the time of the read.
struct Late(usize);

impl SnapshotReader for Late {
    fn read(&mut self, max_bytes: usize) -> Vec<u8> {
        let latest = lock(&LATEST);
        let rest = latest.get(self.0..).unwrap_or_default();
        let piece = rest.get(..max_bytes).unwrap_or(rest).to_vec();
        self.0 += piece.len();
        piece
    }
}

/// Overwrites the first byte of every piece except the first.
struct Lossy(Vec<u8>);

impl RestoreWriter<Words> for Lossy {
    fn write(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        let from = self.0.len();
        self.0.extend_from_slice(chunk);
        if from > 0
            && let Some(first) = self.0.get_mut(from)
        {
            *first = b'#';
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Words, Failure> {
        Words::load(1, &self.0)
    }
}

conclave_sdk::export!(Words);
