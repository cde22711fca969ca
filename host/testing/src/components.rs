//! Components of this repository, for tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "for tests, which fail by panicking")]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::{LazyLock, Mutex, PoisonError},
};

use bytes::Bytes;
use conclave_build::{MachineSpec, build_machine};

static BUILT: LazyLock<Mutex<BTreeMap<PathBuf, Bytes>>> = LazyLock::new(Mutex::default);

/// Builds the state machine in a folder of this repository, once per process.
pub fn build(folder: &str) -> Bytes {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(component) = built.get(&manifest_dir) {
        return component.clone();
    }
    // A test program is TARGET/PROFILE/deps/NAME.
    let target_dir = env::current_exe().unwrap().ancestors().nth(3).unwrap().join("machines");
    // Several test programs build the same state machine at the same time.
    let name = format!("{}-{}.wasm", folder.replace('/', "-"), process::id());
    let output = target_dir.join(name);
    let spec = MachineSpec { manifest_dir: manifest_dir.clone(), output, target_dir };
    let path = build_machine(&spec).unwrap().path;
    let component = Bytes::from(fs::read(&path).unwrap());
    fs::remove_file(&path).unwrap();
    built.insert(manifest_dir, component.clone());
    component
}

/// The state machine `machines/hostile`.
pub fn hostile() -> Bytes {
    build("host/testing/machines/hostile")
}

/// The state machine `machines/wrong` with the mistake of this number. Number 0 has none.
pub fn wrong(number: u8) -> Bytes {
    const SELECTOR: &[u8] = b"conclave-wrong-machine-is";
    let mut component = build("host/testing/machines/wrong").to_vec();
    let places: Vec<_> = component
        .windows(SELECTOR.len())
        .enumerate()
        .filter_map(|(at, window)| (window == SELECTOR).then_some(at + SELECTOR.len()))
        .collect();
    let [place] = places[..] else { panic!("the selector is there {} times", places.len()) };
    component[place] = b'0' + number / 10;
    component[place + 1] = b'0' + number % 10;
    component.into()
}
