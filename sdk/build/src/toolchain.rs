//! Which compilers for `wasm32-unknown-unknown` this computer has.
//!
//! A toolchain from rustup has the target once `rustup target add` ran. Debian's compiler comes
//! without the target's standard library but with its source (`rust-web-src`), from which cargo
//! builds it. The machine's compiler need not be the host's.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::TARGET;

/// Chooses the compiler: `rustup` (the current toolchain) or `debian`. Unset: the first that is there.
pub const COMPILER_VARIABLE: &str = "CONCLAVE_WASM_COMPILER";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A compiler that can build machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// The current toolchain: `cargo` and `rustc` as the path finds them, with the target installed.
    Rustup,
    /// Debian's rustc and cargo, which build the standard library from source, and LLVM's linker.
    Debian {
        /// Such as `/usr/bin/wasm-ld-19`.
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

/// What was found, and what is missing.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The current toolchain, or why it cannot build machines.
    pub rustup: Result<Compiler, String>,
    /// Debian's, or why it cannot.
    pub debian: Result<Compiler, String>,
}

impl Toolchain {
    /// The compiler to use: the one that [`COMPILER_VARIABLE`] names, otherwise the first that is there.
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
                bail!("{COMPILER_VARIABLE} is {other:?}; it may be \"rustup\" or \"debian\"")
            }
        };
        found.or_else(|missing| bail!("no compiler for machines: {missing}\n{}", how_to_install()))
    }
}

/// For somebody who has no compiler for machines, with Conclave's source or without.
pub(crate) fn how_to_install() -> String {
    format!(
        "Run `rustup target add {TARGET}` (rustup is at https://rustup.rs), or on Debian \
         `apt-get install rustc-web cargo-web rust-web-src lld`. In Conclave's own source \
         `cargo xtask setup` does either."
    )
}

/// Looks for compilers. Takes one run of `rustc` and a look at a few files.
pub fn toolchain() -> Toolchain {
    Toolchain { rustup: rustup(), debian: debian(Path::new("/usr")) }
}

fn rustup() -> Result<Compiler, String> {
    let mut rustc = Command::new("rustc");
    crate::compile::clean_environment(&mut rustc);
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

/// `wasm-ld-19` before `wasm-ld-9`, and one without a version last.
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

/// The programs of a compiler.
pub(crate) fn cargo(compiler: &Compiler) -> Command {
    match compiler {
        Compiler::Rustup => Command::new("cargo"),
        Compiler::Debian { .. } => Command::new(DEBIAN_CARGO),
    }
}

/// What a compiler needs beyond a clean environment.
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
        // Building the standard library from source is unstable; this opens it in a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
        .arg("-Zbuild-std=std,panic_abort");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_linker_wins_by_number() {
        let bin = env::temp_dir().join(format!("conclave-linkers-{}", std::process::id()));
        fs::create_dir_all(&bin).unwrap();
        assert_eq!(newest_linker(&bin), None);
        for name in ["wasm-ld-9", "wasm-ld-19", "wasm-ld", "wasm-ld-old", "ld.lld-21"] {
            fs::write(bin.join(name), "").unwrap();
        }
        assert_eq!(newest_linker(&bin), Some(bin.join("wasm-ld-19")));
        fs::remove_dir_all(bin).unwrap();
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
