//! Model of a disk that loses unsynced data.
//!
//! A change is on the disk for certain if a sync of the same file (of the directory, for names)
//! begins after the change has ended, and ends before the power fails. Of the other changes, any
//! may be there: any sectors of a write; of the names in a directory, the changes up to any one, as
//! journals keep their order. An exchange of two names is one such change: ext4 (`ext4_cross_rename`)
//! and XFS (`xfs_cross_rename`) do both halves in one transaction, so either both names are exchanged
//! or none is. A journal also keeps the order between directories. The model does not, so that no
//! test depends on it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::trace::{Call, Event};

const SECTOR_BYTES: u64 = 512;

/// The part of the unsynced changes that is on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unsynced {
    Nothing,
    Everything,
    /// A part, chosen by a seed.
    Some(u64),
}

/// Generator of numbers that look random and are the same in every run.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

#[derive(Clone, Copy)]
struct Span {
    begun: usize,
    ended: usize,
}

enum Change<'a> {
    Write(u64, &'a [u8]),
    Length(u64),
}

/// A file or a directory, by its number.
#[derive(Clone, Copy)]
enum Node {
    File(usize),
    Dir(usize),
}

/// The names in one directory.
type Names = BTreeMap<OsString, Node>;

/// A change of the names in one directory.
enum Naming {
    Add(OsString, Node),
    Rename(OsString, OsString),
    Exchange(OsString, OsString),
    Remove(OsString),
}

impl Naming {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Add(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Rename(from, to) => {
                let node = names.remove(from).expect("the renamed name exists");
                names.insert(to.clone(), node);
            }
            Self::Exchange(one, other) => {
                let (node, other_node) = (names[one], names[other]);
                names.insert(one.clone(), other_node);
                names.insert(other.clone(), node);
            }
            Self::Remove(name) => drop(names.remove(name)),
        }
    }
}

/// The changes to one file or directory, and its syncs.
type Past<T> = (Vec<(Span, T)>, Vec<Span>);

/// The changes and syncs of every file and directory. The first directory is the root.
pub(super) struct Disk<'a> {
    root: PathBuf,
    files: Vec<Past<Change<'a>>>,
    dirs: Vec<Past<Naming>>,
    /// The names that processes see, of every directory.
    live: Vec<Names>,
}

impl<'a> Disk<'a> {
    pub(super) fn new(root: &Path, events: &'a [Event]) -> Self {
        let (dirs, live) = (vec![Default::default()], vec![Names::new()]);
        let mut disk = Self { root: root.to_owned(), files: Vec::new(), dirs, live };
        let mut ends: Vec<u64> = Vec::new();
        for Event { begun, ended, call } in events {
            let span = Span { begun: *begun, ended: *ended };
            match call {
                Call::Open { path, creates, truncates } => {
                    if *creates && disk.find(path).is_none() {
                        disk.files.push(Default::default());
                        ends.push(0);
                        let file = Node::File(disk.files.len() - 1);
                        disk.name(path, span, |name| Naming::Add(name, file));
                    }
                    let Some(file) = disk.file(path) else { continue };
                    ends[file] = 0;
                    if *truncates {
                        disk.files[file].0.push((span, Change::Length(0)));
                    }
                }
                Call::Write { path, at, data } => {
                    let Some(file) = disk.file(path) else { continue };
                    let offset = at.unwrap_or(ends[file]);
                    if at.is_none() {
                        ends[file] += data.len() as u64;
                    }
                    disk.files[file].0.push((span, Change::Write(offset, data)));
                }
                Call::SetLength { path, bytes } => {
                    let Some(file) = disk.file(path) else { continue };
                    disk.files[file].0.push((span, Change::Length(*bytes)));
                }
                Call::Sync(path) => match disk.find(path) {
                    Some(Node::File(file)) => disk.files[file].1.push(span),
                    Some(Node::Dir(dir)) => disk.dirs[dir].1.push(span),
                    // It was removed.
                    None => {}
                },
                Call::Rename(from, to) => {
                    let to = sibling(from, to);
                    disk.name(from, span, |from| Naming::Rename(from, to));
                }
                Call::Exchange(one, other) => {
                    let other = sibling(one, other);
                    disk.name(one, span, |one| Naming::Exchange(one, other));
                }
                Call::Remove(path) => disk.name(path, span, Naming::Remove),
                Call::MakeDir(path) if disk.find(path).is_some() => {}
                Call::MakeDir(path) => {
                    disk.dirs.push(Default::default());
                    disk.live.push(Names::new());
                    let dir = Node::Dir(disk.dirs.len() - 1);
                    disk.name(path, span, |name| Naming::Add(name, dir));
                }
            }
        }
        disk
    }

    /// Returns the file or directory that has a path.
    fn find(&self, path: &Path) -> Option<Node> {
        let mut node = Node::Dir(0);
        for name in path.strip_prefix(&self.root).unwrap() {
            let Node::Dir(dir) = node else { return None };
            node = *self.live[dir].get(name)?;
        }
        Some(node)
    }

    fn file(&self, path: &Path) -> Option<usize> {
        match self.find(path)? {
            Node::File(file) => Some(file),
            Node::Dir(_) => None,
        }
    }

    /// Changes a name in its directory.
    fn name(&mut self, path: &Path, span: Span, naming: impl FnOnce(OsString) -> Naming) {
        let Some(Node::Dir(dir)) = self.find(path.parent().unwrap()) else {
            panic!("the directory of {} is unknown", path.display())
        };
        let naming = naming(path.file_name().unwrap().to_owned());
        naming.apply(&mut self.live[dir]);
        self.dirs[dir].0.push((span, naming));
    }

    /// Writes the files that are on the disk if the power fails just before a line of the trace.
    pub(super) fn image(&self, cut: usize, unsynced: Unsynced, to: &Path) {
        let mut dice = Dice::new(if let Unsynced::Some(seed) = unsynced { seed } else { 1 });
        self.write_dir(0, to, cut, unsynced, &mut dice);
    }

    fn write_dir(&self, dir: usize, to: &Path, cut: usize, unsynced: Unsynced, dice: &mut Dice) {
        fs::create_dir(to).unwrap();
        let (namings, syncs) = &self.dirs[dir];
        let synced = synced(syncs, cut);
        let begun: Vec<_> = namings.iter().filter(|(span, _)| span.begun < cut).collect();
        let sure = begun.iter().filter(|(span, _)| span.ended < synced).count();
        let there = match unsynced {
            Unsynced::Nothing => sure,
            Unsynced::Everything => begun.len(),
            Unsynced::Some(_) => sure + dice.below(begun.len() - sure + 1),
        };
        let mut names = Names::new();
        for (_, naming) in &begun[..there] {
            naming.apply(&mut names);
        }
        for (name, node) in names {
            match node {
                Node::File(file) => self.write_file(file, &to.join(name), cut, unsynced, dice),
                Node::Dir(dir) => self.write_dir(dir, &to.join(name), cut, unsynced, dice),
            }
        }
    }

    fn write_file(&self, file: usize, to: &Path, cut: usize, unsynced: Unsynced, dice: &mut Dice) {
        let (changes, syncs) = &self.files[file];
        let synced = synced(syncs, cut);
        let file = File::create(to).unwrap();
        for (span, change) in changes.iter().filter(|(span, _)| span.begun < cut) {
            let sure = span.ended < synced;
            let torn = match unsynced {
                _ if sure => false,
                Unsynced::Nothing => continue,
                Unsynced::Everything => false,
                Unsynced::Some(_) => match dice.below(3) {
                    0 => continue,
                    1 => false,
                    _ => true,
                },
            };
            match change {
                Change::Length(bytes) => file.set_len(*bytes).unwrap(),
                Change::Write(at, data) if !torn => file.write_all_at(data, *at).unwrap(),
                Change::Write(at, data) => write_torn(&file, *at, data, dice),
            }
        }
    }
}

/// Returns the new name of a path in the same directory.
fn sibling(path: &Path, other: &Path) -> OsString {
    assert_eq!(path.parent(), other.parent(), "a rename between directories");
    other.file_name().unwrap().to_owned()
}

/// Returns the first line of the last sync that has ended: changes that had ended before it are on
/// the disk.
fn synced(syncs: &[Span], cut: usize) -> usize {
    syncs.iter().filter(|sync| sync.ended < cut).map(|sync| sync.begun).max().unwrap_or(0)
}

fn write_torn(file: &File, at: u64, data: &[u8], dice: &mut Dice) {
    let (mut from, end) = (at, at + data.len() as u64);
    while from < end {
        let to = end.min((from / SECTOR_BYTES + 1) * SECTOR_BYTES);
        if dice.below(2) == 0 {
            file.write_all_at(&data[(from - at) as usize..(to - at) as usize], from).unwrap();
        }
        from = to;
    }
}

#[test]
fn what_was_not_synced_may_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file) = (PathBuf::from("/d"), PathBuf::from("/d/file"));
    let write = |at, byte| Call::Write { path: file.clone(), at: Some(at), data: vec![byte; 1024] };
    let open = Call::Open { path: file.clone(), creates: true, truncates: false };
    let calls =
        [open, Call::Sync(root.clone()), write(0, 1), Call::Sync(file.clone()), write(512, 2)];
    let calls = calls.into_iter().enumerate();
    let events: Vec<_> =
        calls.map(|(at, call)| Event { begun: 2 * at, ended: 2 * at + 1, call }).collect();
    let disk = Disk::new(&root, &events);
    let mut number = 0;
    let mut content = |cut, unsynced| {
        number += 1;
        let to = dir.path().join(number.to_string());
        disk.image(cut, unsynced, &to);
        fs::read(to.join("file")).ok()
    };
    assert_eq!(content(3, Unsynced::Nothing), None, "its name was being synced");
    assert_eq!(content(4, Unsynced::Nothing), Some(vec![]));
    assert_eq!(content(7, Unsynced::Nothing), Some(vec![]), "it was being synced");
    assert_eq!(content(8, Unsynced::Nothing), Some(vec![1; 1024]));
    assert_eq!(content(20, Unsynced::Nothing), Some(vec![1; 1024]));
    let whole = [vec![1; 512], vec![2; 1024]].concat();
    assert_eq!(content(20, Unsynced::Everything), Some(whole));
    let torn = [[1; 512], [0; 512], [2; 512]].concat();
    assert!((0..64).any(|seed| content(20, Unsynced::Some(seed)) != Some(torn.clone())));
    assert!((0..64).all(|seed| content(20, Unsynced::Some(seed)).unwrap()[..512] == [1; 512]));
}

/// A directory keeps its content and its syncs when its name is exchanged.
#[test]
fn an_exchange_of_two_directories_is_done_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let root = PathBuf::from("/d");
    let (one, other) = (root.join("one"), root.join("other"));
    let create = |path: PathBuf| Call::Open { path, creates: true, truncates: false };
    let calls = [
        Call::MakeDir(one.clone()),
        Call::MakeDir(other.clone()),
        Call::Sync(root.clone()),
        create(one.join("old")),
        create(other.join("new")),
        Call::Sync(one.clone()),
        Call::Sync(other.clone()),
        Call::Exchange(one.clone(), other.clone()),
        create(one.join("newer")),
        Call::Sync(one.clone()),
        Call::Sync(root.clone()),
        Call::Remove(other.join("old")),
        Call::Remove(other.clone()),
    ];
    let events: Vec<_> = (calls.into_iter().enumerate())
        .map(|(at, call)| Event { begun: at, ended: at, call })
        .collect();
    let disk = Disk::new(&root, &events);
    let mut number = 0;
    let mut content = |cut, unsynced| {
        number += 1;
        let to = dir.path().join(number.to_string());
        disk.image(cut, unsynced, &to);
        ["one/old", "one/new", "one/newer", "other/old", "other/new", "other/newer"]
            .into_iter()
            .filter(|name| to.join(name).exists())
            .collect::<Vec<_>>()
    };
    let before = vec!["one/old", "other/new"];
    let after = vec!["one/new", "other/old"];
    assert_eq!(content(7, Unsynced::Everything), before);
    assert_eq!(content(8, Unsynced::Nothing), before, "the exchange is not synced");
    assert_eq!(content(8, Unsynced::Everything), after);
    let either: Vec<_> = (0..64).map(|seed| content(8, Unsynced::Some(seed))).collect();
    assert!(either.contains(&before) && either.contains(&after));
    assert!(either.iter().all(|found| *found == before || *found == after), "{either:?}");
    // The sync of the new directory makes the name in it durable, but not its own.
    assert_eq!(content(10, Unsynced::Nothing), ["one/old", "other/new", "other/newer"]);
    assert_eq!(content(11, Unsynced::Nothing), ["one/new", "one/newer", "other/old"]);
    assert_eq!(content(13, Unsynced::Nothing), ["one/new", "one/newer", "other/old"]);
    assert_eq!(content(13, Unsynced::Everything), ["one/new", "one/newer"]);
}
