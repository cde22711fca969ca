//! Stored compiled code: reading returns either exactly the stored code, or nothing.
//!
//! Goal: a changed byte of a file is never returned, because the code would be run. No state of
//! these files keeps a node from starting. Method: files are damaged, moved, mixed and replaced, as
//! by a disk, an attacker or an operator, and then read again.

use std::{fs, path::PathBuf};

use conclave_crypto::MasterKey;
use conclave_storage::{CompiledStore, Options, Storage};
use conclave_types::ComponentId;

use crate::support::*;

const COMPONENT: ComponentId = ComponentId([1; 32]);
const OTHER: ComponentId = ComponentId([2; 32]);
const ENGINE: &str = "0123456789abcdef";

/// Returns code of `length` bytes.
fn code(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 256) as u8).collect()
}

/// Returns the only file of compiled code.
fn file(dir: &std::path::Path) -> PathBuf {
    let mut files = files(&dir.join("compiled"));
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn code_comes_back_after_a_restart_and_lies_sealed() {
    let (dir, storage) = fresh();
    assert_eq!(storage.compiled.get(COMPONENT, ENGINE), None);
    // Two whole pieces and a shorter one.
    let code = [&b"the code of the component"[..], &code((2 << 20) + 5)].concat();
    storage.compiled.put(COMPONENT, ENGINE, &code);
    assert!(storage.compiled.get(COMPONENT, ENGINE).unwrap() == code);
    drop(storage);
    let storage = open(dir.path());
    assert!(storage.compiled.get(COMPONENT, ENGINE).unwrap() == code);
    assert_eq!(storage.compiled.get(OTHER, ENGINE), None);
    assert_eq!(storage.compiled.get(COMPONENT, "another"), None);

    let sealed = fs::read(file(dir.path())).unwrap();
    for needle in [&code[..8], &code[15..25], &code[5_000..5_008], &code[2 << 20..][..5]] {
        assert!(!sealed.windows(needle.len()).any(|window| window == needle), "plain code");
    }
}

/// A damaged file is either read correctly, or not used and removed.
#[test]
fn changed_file_gives_no_code_and_is_removed() {
    let (dir, storage) = fresh();
    let code = code(100);
    storage.compiled.put(COMPONENT, ENGINE, &code);
    let path = file(dir.path());
    let whole = fs::read(&path).unwrap();
    let mut changed: Vec<Vec<u8>> = (0..whole.len()).map(|at| whole[..at].to_vec()).collect();
    changed.push([&whole[..], b"x"].concat());
    for at in 0..whole.len() {
        let mut other = whole.clone();
        other[at] ^= 1 << (at % 8);
        changed.push(other);
    }
    // The preamble of a file without pieces.
    changed.push([&whole[..26], &[0; 4]].concat());
    for changed in changed {
        fs::write(&path, &changed).unwrap();
        assert_eq!(storage.compiled.get(COMPONENT, ENGINE), None);
        assert!(!path.exists(), "an unusable file is removed");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(storage.compiled.get(COMPONENT, ENGINE).unwrap(), code);
}

/// Authentic pieces from another file or another position are rejected.
#[test]
fn pieces_of_another_file_or_place_give_no_code() {
    const PIECE: usize = 4 + (1 << 20) + 33;
    let (dir, storage) = fresh();
    let code = code(3 << 20);
    storage.compiled.put(COMPONENT, ENGINE, &code);
    let path = file(dir.path());
    let first = fs::read(&path).unwrap();
    storage.compiled.put(COMPONENT, ENGINE, &code);
    let second = fs::read(&path).unwrap();
    assert!(first != second);
    let piece = |file: &[u8], number: usize| file[30 + number * PIECE..][..PIECE].to_vec();
    let of = |preamble: &[u8], pieces: &[Vec<u8>]| [&preamble[..30], &pieces.concat()].concat();
    let [a, b, c] = [0, 1, 2].map(|number| piece(&first, number));
    let other = piece(&second, 1);
    for mixed in [
        of(&first, &[a.clone(), other, c.clone()]),
        of(&second, &[a.clone(), b.clone(), c.clone()]),
        of(&first, &[b.clone(), a.clone(), c.clone()]),
        of(&first, &[a.clone(), b.clone(), b.clone()]),
        of(&first, &[a.clone(), b.clone()]),
    ] {
        fs::write(&path, mixed).unwrap();
        assert!(storage.compiled.get(COMPONENT, ENGINE).is_none());
    }
    fs::write(&path, of(&first, &[a, b, c])).unwrap();
    assert!(storage.compiled.get(COMPONENT, ENGINE).unwrap() == code);

    // The same file under another component or engine.
    let named = |component: ComponentId, engine: &str| {
        path.with_file_name(format!("{component}-{engine}.compiled"))
    };
    for (component, engine) in [(OTHER, ENGINE), (COMPONENT, "fedcba9876543210")] {
        fs::write(named(component, engine), &first).unwrap();
        assert!(storage.compiled.get(component, engine).is_none());
    }
}

#[test]
fn file_of_another_node_gives_no_code() {
    let (from, storage) = fresh();
    storage.compiled.put(COMPONENT, ENGINE, &code(100));
    let sealed = fs::read(file(from.path())).unwrap();
    let name = file(from.path()).file_name().unwrap().to_owned();
    let to = tempfile::tempdir().unwrap();
    let options = Options { node_id: 2, ..options(to.path()) };
    drop(Storage::open(options.clone()).unwrap());
    fs::create_dir_all(to.path().join("compiled")).unwrap();
    fs::write(to.path().join("compiled").join(name), sealed).unwrap();
    let storage = Storage::open(options).unwrap();
    assert_eq!(storage.compiled.get(COMPONENT, ENGINE), None);
}

/// After a rotation the code is still available, and the old key is retired.
#[test]
fn code_survives_rotations_of_the_data_key() {
    let (dir, storage) = fresh();
    let code = code((1 << 20) + 1);
    storage.compiled.put(COMPONENT, ENGINE, &code);
    let first = fs::read(file(dir.path())).unwrap();
    drop(storage);
    for _ in 0..4 {
        let storage = open(dir.path());
        storage.keys.rotate().unwrap();
        drop(storage);
        assert!(open(dir.path()).compiled.get(COMPONENT, ENGINE).unwrap() == code);
    }
    assert!(open(dir.path()).keys.status().len() <= 2, "old keys are retired");
    // A file that is sealed under a retired key does not keep the store from opening.
    fs::write(file(dir.path()), first).unwrap();
    let storage = open(dir.path());
    assert_eq!(storage.compiled.get(COMPONENT, ENGINE), None);
    assert_eq!(files(&dir.path().join("compiled")), Vec::<PathBuf>::new());
}

#[test]
fn leftovers_and_forgotten_components_are_removed() {
    let (dir, storage) = fresh();
    storage.compiled.put(COMPONENT, ENGINE, b"first");
    storage.compiled.put(OTHER, ENGINE, b"other");
    storage.compiled.put(COMPONENT, "fedcba9876543210", b"second");
    assert_eq!(storage.compiled.get(COMPONENT, ENGINE), None, "replaced by a newer engine's code");
    drop(storage);
    let compiled = dir.path().join("compiled");
    fs::write(compiled.join("x.compiled.tmp"), "half").unwrap();
    fs::write(compiled.join("notes.txt"), "dear").unwrap();
    fs::create_dir(compiled.join("directory")).unwrap();
    let storage = open(dir.path());
    assert_eq!(fs::read_dir(&compiled).unwrap().count(), 2);
    storage.compiled.retain(|component| *component == OTHER);
    assert_eq!(files(&compiled).len(), 1);
    assert_eq!(storage.compiled.get(OTHER, ENGINE).unwrap(), b"other");
}

/// No state of the directory keeps a node from starting.
#[test]
fn directory_that_cannot_be_used_is_done_without() {
    let (dir, storage) = fresh();
    drop(storage);
    let compiled = dir.path().join("compiled");
    fs::write(&compiled, "a file").unwrap();
    let storage = open(dir.path());
    storage.compiled.put(COMPONENT, ENGINE, b"code");
    assert_eq!(storage.compiled.get(COMPONENT, ENGINE), None);
    storage.compiled.retain(|_| false);
}

/// The nodes of `conclave dev` share code that one of them compiled. Nodes of another cluster do not.
#[test]
fn shared_directory_is_one_cluster_s() {
    let dir = tempfile::tempdir().unwrap();
    let key = MasterKey::from_bytes([7; 32]);
    let store = |key: &MasterKey, cluster| {
        CompiledStore::shared(dir.path().join("compiled"), key, cluster).unwrap()
    };
    store(&key, "one").put(COMPONENT, ENGINE, b"code");
    let sealed = fs::read(file(dir.path())).unwrap();
    assert_eq!(store(&key, "one").get(COMPONENT, ENGINE).unwrap(), b"code");
    for other in [store(&key, "two"), store(&MasterKey::from_bytes([8; 32]), "one")] {
        assert_eq!(other.get(COMPONENT, ENGINE), None);
        fs::write(
            dir.path().join("compiled").join(format!("{COMPONENT}-{ENGINE}.compiled")),
            &sealed,
        )
        .unwrap();
    }
}

#[test]
fn one_process_at_a_time_compiles_into_a_shared_directory() {
    let dir = tempfile::tempdir().unwrap();
    let key = MasterKey::from_bytes([7; 32]);
    let compiled = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = CompiledStore::shared(dir.path().to_owned(), &key, "one").unwrap();
                let _turn = store.turn(COMPONENT).unwrap();
                if store.get(COMPONENT, ENGINE).is_none() {
                    compiled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    store.put(COMPONENT, ENGINE, b"code");
                }
            });
        }
    });
    assert_eq!(compiled.into_inner(), 1);
}
