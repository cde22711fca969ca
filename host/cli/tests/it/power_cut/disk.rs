//! Model of a disk that loses unsynced data.
//!
//! A change is on the disk for certain if a sync of the same file (of the directory, for names)
//! begins after the change has ended, and ends before the power fails. Of the other changes, any
//! may be there: any sectors of a write; of the names in a directory, the changes up to any one, as
//! journals keep their order.

use std::{
    collections::BTreeMap,
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

enum Naming {
    File(PathBuf, usize),
    Dir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// The changes to one file or directory, and its syncs.
type Past<T> = (Vec<(Span, T)>, Vec<Span>);

/// The changes and syncs of every file and directory.
#[derive(Default)]
pub(super) struct Disk<'a> {
    root: PathBuf,
    files: Vec<Past<Change<'a>>>,
    dirs: BTreeMap<PathBuf, Past<Naming>>,
}

impl<'a> Disk<'a> {
    pub(super) fn new(root: &Path, events: &'a [Event]) -> Self {
        let mut disk = Self { root: root.to_owned(), ..Self::default() };
        let mut live: BTreeMap<&Path, usize> = BTreeMap::new();
        let mut ends: Vec<u64> = Vec::new();
        for Event { begun, ended, call } in events {
            let span = Span { begun: *begun, ended: *ended };
            match call {
                Call::Open { path, creates, truncates } => {
                    if *creates && !live.contains_key(path.as_path()) {
                        let file = disk.files.len();
                        disk.files.push(Default::default());
                        ends.push(0);
                        live.insert(path, file);
                        disk.name(path, span, Naming::File(path.clone(), file));
                    }
                    let Some(file) = live.get(path.as_path()) else { continue };
                    ends[*file] = 0;
                    if *truncates {
                        disk.files[*file].0.push((span, Change::Length(0)));
                    }
                }
                Call::Write { path, at, data } => {
                    let Some(file) = live.get(path.as_path()) else { continue };
                    let offset = at.unwrap_or(ends[*file]);
                    if at.is_none() {
                        ends[*file] += data.len() as u64;
                    }
                    disk.files[*file].0.push((span, Change::Write(offset, data)));
                }
                Call::SetLength { path, bytes } => {
                    let Some(file) = live.get(path.as_path()) else { continue };
                    disk.files[*file].0.push((span, Change::Length(*bytes)));
                }
                Call::Sync(path) => match live.get(path.as_path()) {
                    Some(file) => disk.files[*file].1.push(span),
                    None => disk.dirs.entry(path.clone()).or_default().1.push(span),
                },
                Call::Rename(from, to) => {
                    assert_eq!(from.parent(), to.parent(), "a rename between directories");
                    let file = live.remove(from.as_path()).expect("a file is renamed");
                    live.insert(to, file);
                    disk.name(from, span, Naming::Rename(from.clone(), to.clone()));
                }
                Call::Remove(path) => {
                    live.remove(path.as_path());
                    disk.name(path, span, Naming::Remove(path.clone()));
                }
                Call::MakeDir(path) if *path == disk.root => {}
                Call::MakeDir(path) => disk.name(path, span, Naming::Dir(path.clone())),
            }
        }
        disk
    }

    fn name(&mut self, path: &Path, span: Span, naming: Naming) {
        let dir = path.parent().unwrap().to_owned();
        self.dirs.entry(dir).or_default().0.push((span, naming));
    }

    /// Writes the files that are on the disk if the power fails just before a line of the trace.
    pub(super) fn image(&self, cut: usize, unsynced: Unsynced, to: &Path) {
        let mut dice = Dice::new(if let Unsynced::Some(seed) = unsynced { seed } else { 1 });
        fs::create_dir(to).unwrap();
        self.write_dir(&self.root, to, cut, unsynced, &mut dice);
    }

    fn write_dir(&self, dir: &Path, to: &Path, cut: usize, unsynced: Unsynced, dice: &mut Dice) {
        let Some((namings, syncs)) = self.dirs.get(dir) else { return };
        let synced = synced(syncs, cut);
        let begun: Vec<_> = namings.iter().filter(|(span, _)| span.begun < cut).collect();
        let sure = begun.iter().filter(|(span, _)| span.ended < synced).count();
        let there = match unsynced {
            Unsynced::Nothing => sure,
            Unsynced::Everything => begun.len(),
            Unsynced::Some(_) => sure + dice.below(begun.len() - sure + 1),
        };
        let mut names: BTreeMap<&Path, Option<usize>> = BTreeMap::new();
        for (_, naming) in &begun[..there] {
            match naming {
                Naming::File(path, file) => drop(names.insert(path, Some(*file))),
                Naming::Dir(path) => drop(names.insert(path, None)),
                Naming::Rename(from, to) => {
                    let file = names.remove(from.as_path()).unwrap();
                    names.insert(to, file);
                }
                Naming::Remove(path) => drop(names.remove(path.as_path())),
            }
        }
        for (path, file) in names {
            let target = to.join(path.file_name().unwrap());
            match file {
                Some(file) => self.write_file(file, &target, cut, unsynced, dice),
                None => {
                    fs::create_dir(&target).unwrap();
                    self.write_dir(path, &target, cut, unsynced, dice);
                }
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
