//! File operations of a process under a directory, parsed from strace's lines.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::Write,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::FileExt,
    },
    path::{Path, PathBuf},
};

use crate::durability::now;

/// The arguments of strace, see [`read`].
pub(super) const ARGUMENTS: [&str; 6] = ["-f", "-ttt", "-y", "-xx", "-s", "33554432"];

/// The system calls that can change a file or a name, and those that make changes durable.
pub(super) const CALLS: &str = "trace=openat,creat,pwrite64,write,pwritev,pwritev2,writev,ftruncate,truncate,\
     fallocate,fdatasync,fsync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat";

const CHUNK_BYTES: usize = 1 << 20;

/// A change, or a sync that makes changes durable.
#[derive(Debug, PartialEq)]
pub(super) enum Call {
    /// Open for writing; creates the file if it does not exist and `creates` is set.
    Open {
        path: PathBuf,
        creates: bool,
        truncates: bool,
    },
    /// Write at an offset, or after the previous write.
    Write {
        path: PathBuf,
        at: Option<u64>,
        data: Vec<u8>,
    },
    SetLength {
        path: PathBuf,
        bytes: u64,
    },
    /// Sync of a file or a directory.
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    /// Exchange of two names.
    Exchange(PathBuf, PathBuf),
    Remove(PathBuf),
    MakeDir(PathBuf),
}

/// A successful call, with its first and last line in the trace: the same line, unless other
/// threads came between.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) begun: usize,
    pub(super) ended: usize,
    pub(super) call: Call,
}

/// Returns the calls in the order in which they ended, and the time of each line. `before` has the
/// calls before the trace, which count as one line each.
pub(super) fn read(trace: &str, root: &Path, before: Vec<Event>) -> (Vec<Event>, Vec<f64>) {
    let mut unfinished: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    let (mut times, mut events) = (vec![0.0; before.len()], before);
    for line in trace.lines() {
        let number = times.len();
        // strace pads shorter process ids.
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((time, call)) = rest.trim_start().split_once(' ') else { continue };
        let Ok(time) = time.parse::<f64>() else { continue };
        times.push(time);
        if let Some(head) = call.strip_suffix(" <unfinished ...>") {
            unfinished.insert(pid, (number, head));
            continue;
        }
        let found = match call.strip_prefix("<... ") {
            Some(resumed) => unfinished.remove(pid).and_then(|(begun, head)| {
                let (_, tail) = resumed.split_once(" resumed>")?;
                // The first half has the arguments, the second the result.
                parse(head, tail, root).map(|call| (begun, call))
            }),
            None => {
                let at = call.rfind(" = ").unwrap_or(call.len());
                parse(&call[..at], &call[at..], root).map(|call| (number, call))
            }
        };
        if let Some((begun, call)) = found {
            events.push(Event { begun, ended: number, call });
        }
    }
    (events, times)
}

/// Completes the trace of a process that was killed. strace does not show the result of a call that
/// was under way, but the kernel may have done it, and the next process finds its effect. The files
/// show whether it was done. Call this before anything else changes them.
pub(super) fn complete_interrupted_calls(trace: &Path) {
    let text = fs::read_to_string(trace).unwrap();
    let mut unfinished: BTreeMap<&str, &str> = BTreeMap::new();
    let mut interrupted = Vec::new();
    let mut last = "";
    for line in text.lines() {
        let call = line.split_once(' ').and_then(|(pid, rest)| {
            let (time, call) = rest.trim_start().split_once(' ')?;
            time.parse::<f64>().ok().map(|_| (pid, time, call))
        });
        let Some((pid, time, call)) = call else { continue };
        last = time;
        if let Some(head) = call.strip_suffix(" <unfinished ...>") {
            unfinished.insert(pid, head);
        } else if let Some(resumed) = call.strip_prefix("<... ") {
            let head = unfinished.remove(pid).filter(|_| resumed.ends_with(" = ?"));
            interrupted.extend(head.map(|head| (pid, head)));
        } else if let Some(head) = call.strip_suffix(" = ?") {
            interrupted.push((pid, head));
        }
    }
    interrupted.extend(unfinished);
    let mut completed = String::new();
    for (pid, head) in interrupted {
        let head = head.trim_end().trim_end_matches(')').trim_end_matches(" <unfinished ...>");
        if let Some(result) = result_of(head) {
            completed += &format!("{pid} {last} {head}) = {result}\n");
        }
    }
    fs::write(trace, text + &completed).unwrap();
}

/// Returns the result of an interrupted call, if the kernel did it.
fn result_of(head: &str) -> Option<usize> {
    let (name, arguments) = head.split_once('(')?;
    let number = |text: &str| text.parse().unwrap();
    let last = arguments.rsplit(", ").next()?;
    let mut names = names(arguments);
    let done = match name {
        "pwrite64" => {
            let data = unhexed(arguments.split('"').nth(1)?);
            let mut there = vec![0; data.len()];
            let file = File::open(described(arguments)?);
            let read = file.and_then(|file| file.read_at(&mut there, number(last))).ok()?;
            let same = there[..read].iter().zip(&data).take_while(|(a, b)| a == b).count();
            return (same > 0).then_some(same);
        }
        "ftruncate" => fs::metadata(described(arguments)?).ok()?.len() == number(last),
        "rename" | "renameat" | "renameat2" => {
            !names.next()?.exists() && !arguments.contains("RENAME_EXCHANGE")
        }
        "unlink" | "unlinkat" | "rmdir" => !names.next()?.exists(),
        "openat" => arguments.contains("O_CREAT") && names.next()?.exists(),
        "mkdir" | "mkdirat" => names.next()?.exists(),
        _ => false,
    };
    done.then_some(0)
}

/// Returns the calls that make a directory as it is, durably.
pub(super) fn calls_that_make(dir: &Path) -> Vec<Event> {
    let mut calls = Vec::new();
    make(dir, &mut calls);
    let numbered = calls.into_iter().enumerate();
    numbered.map(|(line, call)| Event { begun: line, ended: line, call }).collect()
}

fn make(dir: &Path, calls: &mut Vec<Call>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            calls.push(Call::MakeDir(path.clone()));
            make(&path, calls);
            continue;
        }
        calls.push(Call::Open { path: path.clone(), creates: true, truncates: false });
        let content = fs::read(&path).unwrap();
        calls.push(Call::SetLength { path: path.clone(), bytes: content.len() as u64 });
        let zeros = vec![0; CHUNK_BYTES];
        for (number, data) in content.chunks(CHUNK_BYTES).enumerate() {
            if *data != zeros[..data.len()] {
                let (at, data) = (Some((number * CHUNK_BYTES) as u64), data.to_vec());
                calls.push(Call::Write { path: path.clone(), at, data });
            }
        }
        calls.push(Call::Sync(path));
    }
    calls.push(Call::Sync(dir.to_owned()));
}

/// Creates a file of zeros that takes no space, with its calls in the trace.
pub(super) fn create_sparse_file(trace: &Path, path: &Path, bytes: u64) {
    File::create_new(path).and_then(|file| file.set_len(bytes)).unwrap();
    let hex = |path: &Path| {
        path.as_os_str().as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>()
    };
    let (dir, path, time) = (hex(path.parent().unwrap()), hex(path), now());
    let calls = format!(
        "0 {time} openat(AT_FDCWD<>, \"{path}\", O_WRONLY|O_CREAT, 0600) = 3<{path}>\n\
         0 {time} ftruncate(3<{path}>, {bytes}) = 0\n\
         0 {time} fsync(3<{path}>) = 0\n\
         0 {time} fsync(3<{dir}>) = 0\n"
    );
    let mut file = File::options().append(true).open(trace).unwrap();
    file.write_all(calls.as_bytes()).unwrap();
}

fn parse(head: &str, tail: &str, root: &Path) -> Option<Call> {
    let result = &tail[tail.rfind(" = ")? + 3..];
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    let (name, arguments) = head.split_once('(')?;
    let within = |path: PathBuf| path.starts_with(root).then_some(path);
    let mut names = names(arguments);
    let of_descriptor = || within(described(arguments)?);
    Some(match name {
        "openat" => {
            if !arguments.contains("O_WRONLY") && !arguments.contains("O_RDWR") {
                return None;
            }
            let (creates, truncates) =
                (arguments.contains("O_CREAT"), arguments.contains("O_TRUNC"));
            Call::Open { path: within(names.next()?)?, creates, truncates }
        }
        "write" | "pwrite64" => {
            let path = of_descriptor()?;
            let data = unhexed(arguments.split('"').nth(1)?);
            let rest = arguments.rsplit('"').next()?;
            assert!(!rest.starts_with("..."), "the trace has not all of a write");
            let mut numbers = rest.trim_end_matches(')').split(", ").skip(1);
            let written: usize = result.trim().parse().ok()?;
            assert_eq!(numbers.next()?.parse(), Ok(data.len()), "{rest}");
            assert!(written <= data.len());
            let at = numbers.next().map(|at| at.parse().unwrap());
            Call::Write { path, at, data: data[..written].to_vec() }
        }
        "ftruncate" => {
            let bytes = arguments.rsplit(", ").next()?.trim_end_matches(')').parse().unwrap();
            Call::SetLength { path: of_descriptor()?, bytes }
        }
        "fdatasync" | "fsync" => Call::Sync(of_descriptor()?),
        "renameat2" if arguments.contains("RENAME_EXCHANGE") => {
            Call::Exchange(within(names.next()?)?, names.next()?)
        }
        "rename" | "renameat" | "renameat2" => Call::Rename(within(names.next()?)?, names.next()?),
        "unlink" | "unlinkat" | "rmdir" => Call::Remove(within(names.next()?)?),
        "mkdir" | "mkdirat" => Call::MakeDir(within(names.next()?)?),
        _ => {
            let ours = of_descriptor().or_else(|| within(names.next()?));
            assert!(ours.is_none(), "a call that is not understood: {head}");
            return None;
        }
    })
}

/// Returns the path that `-y` shows for the first descriptor.
fn described(arguments: &str) -> Option<PathBuf> {
    let (_, rest) = arguments.split_once('<')?;
    Some(path(rest.split_once('>')?.0))
}

/// Returns the names in quotes, joined with the path of the directory's descriptor if there is one.
fn names(arguments: &str) -> impl Iterator<Item = PathBuf> + '_ {
    let pieces: Vec<&str> = arguments.split('"').collect();
    let pairs = (0..pieces.len() / 2).map(move |at| (pieces[2 * at], pieces[2 * at + 1]));
    pairs.map(|(before, name)| described(before).unwrap_or_default().join(path(name)))
}

/// Converts the bytes of a name, which may be any. For a call without a name, such as a write to a
/// socket, these are its data.
fn path(hex: &str) -> PathBuf {
    OsString::from_vec(unhexed(hex)).into()
}

/// Decodes `\x68\x69`, the form in which strace prints every byte.
fn unhexed(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a hexadecimal digit") as u8;
    let (bytes, rest) = text.as_bytes().as_chunks::<4>();
    assert!(rest.is_empty(), "no bytes: {text:.40}");
    bytes.iter().map(|[_, _, high, low]| digit(*high) << 4 | digit(*low)).collect()
}

#[test]
fn a_trace_is_read() {
    let hex = |text: &str| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let (db, tmp) = (hex("/d/db"), hex("/d/tmp"));
    let trace = format!(
        "\
1 10.1 openat(AT_FDCWD<{}>, \"{db}\", O_RDWR|O_CREAT, 0600) = 3<{db}>
1 10.2 openat(AT_FDCWD<{}>, \"{tmp}\", O_RDWR|O_CREAT, 0600) = -1 ENOENT (No such file)
1 10.3 pwrite64(3<{db}>, \"{}\", 2, 512 <unfinished ...>
2 10.4 fsync(4<{}>) = 0
1 10.5 <... pwrite64 resumed>) = 2
1 10.6 renameat(AT_FDCWD<{}>, \"{tmp}\", AT_FDCWD<{}>, \"{db}\") = 0
1 10.7 unlinkat(5<{}>, \"{}\", 0) = 0
1 10.8 write(1<{}>, \"{}\", 2) = 2
1 10.9 renameat2(AT_FDCWD<{}>, \"{tmp}\", AT_FDCWD<{}>, \"{db}\", RENAME_EXCHANGE) = 0",
        hex("/x"),
        hex("/x"),
        hex("hi"),
        hex("/d"),
        hex("/x"),
        hex("/x"),
        hex("/d"),
        hex("tmp"),
        hex("/elsewhere"),
        hex("hi"),
        hex("/x"),
        hex("/x"),
    );
    let (events, times) = read(&trace, Path::new("/d"), Vec::new());
    assert_eq!(times.len(), 9);
    let spans: Vec<_> = events.iter().map(|event| (event.begun, event.ended)).collect();
    assert_eq!(spans, [(0, 0), (3, 3), (2, 4), (5, 5), (6, 6), (8, 8)]);
    let calls: Vec<_> = events.into_iter().map(|event| event.call).collect();
    let (db, tmp) = (PathBuf::from("/d/db"), PathBuf::from("/d/tmp"));
    let expected = [
        Call::Open { path: db.clone(), creates: true, truncates: false },
        Call::Sync("/d".into()),
        Call::Write { path: db.clone(), at: Some(512), data: b"hi".to_vec() },
        Call::Rename(tmp.clone(), db.clone()),
        Call::Remove(tmp.clone()),
        Call::Exchange(tmp, db),
    ];
    assert_eq!(calls, expected);
}
