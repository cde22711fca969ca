//! JavaScript on QuickJS: `host/testing/machines/javascript`. Zig's C compiler, which
//! includes a C library for WASI, compiles the engine's source. `conclave build` adapts the
//! result to a component.

use std::{path::PathBuf, process::Command};

use super::{
    Missing, assert_is_a_function_of_the_log, conclave, root, run, scratch, skip, toolchains,
};

const ZIG: &str = "ziglang==0.17.1";
/// A Python package that contains QuickJS 2021-03-27.
const QUICKJS: &str = "quickjs==1.19.4";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_in_javascript_is_a_function_of_the_log() {
    match build() {
        Ok(component) => assert_is_a_function_of_the_log(&component).await,
        Err(why) => skip("a machine in JavaScript", &why),
    }
}

fn build() -> Result<PathBuf, Missing> {
    let zig = toolchains::pypi("zig", &[ZIG])?;
    let python = zig.join("bin/python");
    let quickjs = toolchains::pypi_source("quickjs", QUICKJS, &python)?.join("upstream-quickjs");
    let module = scratch().join("javascript.core.wasm");
    let component = scratch().join("javascript.wasm");
    let mut compile = Command::new(python);
    compile.args(["-m", "ziglang", "cc", "-target", "wasm32-wasi", "-mexec-model=reactor"]);
    // Without threads, as for the browser, and with the only rounding mode of WebAssembly.
    compile.args(["-O1", "-s", "-w", "-DEMSCRIPTEN", "-DFE_DOWNWARD=0", "-DFE_UPWARD=0"]);
    compile.arg("-DCONFIG_VERSION=\"2021-03-27\"").arg("-I").arg(&quickjs);
    compile.arg(root().join("host/testing/machines/javascript/engine.c"));
    let sources = ["quickjs.c", "libregexp.c", "libunicode.c", "cutils.c"];
    compile.args(sources.map(|source| quickjs.join(source)));
    compile.arg("-o").arg(&module).env("ZIG_GLOBAL_CACHE_DIR", scratch().join("zig-cache"));
    run(&mut compile);
    run(conclave().arg("build").arg(&module).arg("--output").arg(&component));
    Ok(component)
}
