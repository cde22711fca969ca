//! Detection of the installed compilers for `wasm32-unknown-unknown`.
//!
//! A toolchain from rustup has the target after `rustup target add`. Debian's compiler comes
//! without the target's standard library, but with its source (`rust-web-src`), from which cargo
//! builds it. The state machine may use another compiler than the host.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{TARGET, environment::clean_environment};

/// Environment variable that selects the compiler: `rustup` (the current toolchain) or `debian`.
/// Default: the first one available.
pub const COMPILER_VARIABLE: &str = "CONCLAVE_WASM_COMPILER";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A compiler that can build state machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// The current toolchain: `cargo` and `rustc` from the path, with the target installed.
    Rustup,
    /// Debian's rustc and cargo, which build the standard library from source, and LLVM's linker.
    Debian {
        /// The path of the linker, such as `/usr/bin/wasm-ld-19`.
        linker: PathBuf,
    },
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustup => write!(f, "the current toolchain, which has the target {TARGET}"),
            Self::Debian { linker } => {
                write!(f, "{DEBIAN_RUSTC} with rust-web-src and {}", linker.display())
            }
        }
    }
}

/// The detected compilers, and the reasons for those that are missing.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The current toolchain, or the reason why it cannot build state machines.
    pub rustup: Result<Compiler, String>,
    /// Debian's compiler, or the reason why it cannot build state machines.
    pub debian: Result<Compiler, String>,
}

impl Toolchain {
    /// Returns the compiler to use: the one selected by [`COMPILER_VARIABLE`], otherwise the first
    /// one available.
    pub fn compiler(&self) -> Result<Compiler> {
        self.choose(env::var(COMPILER_VARIABLE).ok().as_deref())
    }

    fn choose(&self, wish: Option<&str>) -> Result<Compiler> {
        let found = match wish {
            None | Some("") => self.rustup.clone().or_else(|rustup| {
                self.debian.clone().map_err(|debian| format!("\n  {rustup}\n  {debian}"))
            }),
            Some("rustup") => self.rustup.clone(),
            Some("debian") => self.debian.clone(),
            Some(other) => {
                bail!("{COMPILER_VARIABLE} is {other:?}; it must be \"rustup\" or \"debian\"")
            }
        };
        found.or_else(|missing| bail!("no suitable compiler: {missing}\n{}", how_to_install()))
    }
}

/// Returns instructions to install a compiler for state machines, with and without Conclave's source.
pub(crate) fn how_to_install() -> String {
    format!(
        "Run `rustup target add {TARGET}` (rustup is at https://rustup.rs), or on Debian \
         `apt-get install rustc-web cargo-web rust-web-src lld`. In Conclave's own source \
         `cargo xtask setup` does one of the two."
    )
}

/// Looks for compilers. Runs `rustc` once and checks a few files.
pub fn toolchain() -> Toolchain {
    Toolchain { rustup: rustup(), debian: debian(Path::new("/usr")) }
}

fn rustup() -> Result<Compiler, String> {
    let mut rustc = Command::new("rustc");
    clean_environment(&mut rustc);
    let sysroot = rustc
        .args(["--print", "sysroot"])
        .output()
        .map_err(|error| format!("the current toolchain: cannot run rustc: {error}"))?;
    let sysroot = String::from_utf8_lossy(&sysroot.stdout);
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib");
    if library.is_dir() {
        Ok(Compiler::Rustup)
    } else {
        Err(format!("the current toolchain lacks the target: no {}", library.display()))
    }
}

fn debian(prefix: &Path) -> Result<Compiler, String> {
    for (file, package) in [
        ("bin/rustc", "rustc-web"),
        ("bin/cargo", "cargo-web"),
        ("lib/rustlib/src/rust/library/std/Cargo.toml", "rust-web-src"),
    ] {
        if !prefix.join(file).exists() {
            return Err(format!("Debian: no {}/{file} (package {package})", prefix.display()));
        }
    }
    let bin = prefix.join("bin");
    match newest_linker(&bin) {
        Some(linker) => Ok(Compiler::Debian { linker }),
        None => Err(format!("Debian: no {}/wasm-ld-NN (package lld-NN)", bin.display())),
    }
}

/// Returns the linker with the highest version. A linker without a version comes last.
fn newest_linker(bin: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(bin).ok()?;
    let linkers = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = match name.strip_prefix("wasm-ld")? {
            "" => 0,
            suffix => suffix.strip_prefix('-')?.parse::<u32>().ok()?,
        };
        Some((version, entry.path()))
    });
    linkers.max().map(|(_, path)| path)
}

/// Returns the cargo command of a compiler.
pub(crate) fn cargo(compiler: &Compiler) -> Command {
    match compiler {
        Compiler::Rustup => Command::new("cargo"),
        Compiler::Debian { .. } => Command::new(DEBIAN_CARGO),
    }
}

/// Adds the settings that a compiler needs beyond a clean environment.
pub(crate) fn prepare(compiler: &Compiler, cargo: &mut Command) {
    let Compiler::Debian { linker } = compiler else { return };
    let path = env::var_os("PATH").unwrap_or_default();
    let path =
        env::join_paths(std::iter::once(PathBuf::from("/usr/bin")).chain(env::split_paths(&path)));
    if let Ok(path) = path {
        cargo.env("PATH", path);
    }
    cargo
        .env("RUSTC", DEBIAN_RUSTC)
        // Building the standard library from source is unstable; this variable allows it in a
        // stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
        .arg("-Zbuild-std=std,panic_abort");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_linker_wins_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path();
        assert_eq!(newest_linker(bin), None);
        for name in ["wasm-ld-9", "wasm-ld-19", "wasm-ld", "wasm-ld-old", "ld.lld-21"] {
            fs::write(bin.join(name), "").unwrap();
        }
        assert_eq!(newest_linker(bin), Some(bin.join("wasm-ld-19")));
    }

    #[test]
    fn the_wish_decides_and_a_missing_compiler_says_what_to_run() {
        let debian = Compiler::Debian { linker: "/usr/bin/wasm-ld-19".into() };
        let both = Toolchain { rustup: Ok(Compiler::Rustup), debian: Ok(debian.clone()) };
        assert_eq!(both.choose(None).unwrap(), Compiler::Rustup);
        assert_eq!(both.choose(Some("debian")).unwrap(), debian);
        assert!(both.choose(Some("gcc")).unwrap_err().to_string().contains("\"gcc\""));

        let none = Toolchain { rustup: Err("no target".into()), debian: Err("no rustc".into()) };
        let error = none.choose(None).unwrap_err().to_string();
        for part in ["no target", "no rustc", "rustup target add", "apt-get", "cargo xtask setup"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
