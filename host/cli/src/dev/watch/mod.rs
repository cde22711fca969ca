//! The edit-build-upgrade loop of `conclave dev --watch`: the running cluster follows the saved
//! sources and keeps its state.
//!
//! Contract: any failure (of a build, a component, a rehearsal or an activation) is reported, the
//! cluster continues with its present component, and the next change is a new attempt. A change
//! during a build leads to another build.
//!
//! Caveats: the files are polled. That needs no support from the operating system and also works
//! in containers and on network disks. Files that a project uses from outside of its directory
//! are not watched.

mod builder;
mod sources;
mod upgrade;

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use conclave_client::Client;

use self::sources::{Picture, Sources};
use crate::{Failed, Result, build, output::Output};

/// Polling interval. Sources that are equal in two successive polls are completely saved.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The watched sources, with their state when they were last handled.
pub(super) struct Watch {
    /// The path of `conclave` itself.
    program: PathBuf,
    /// The component's file.
    file: PathBuf,
    /// The project from which the component is built. `None`: another program writes the
    /// component's file.
    project: Option<PathBuf>,
    sources: Sources,
    /// The sources of the last build. `None`: a build is needed.
    done: Option<Picture>,
}

impl Watch {
    /// Watches the component `file`, which need not exist if a project above it builds it.
    /// `data_dir` is the cluster's directory.
    pub(super) fn new(program: &Path, file: &Path, data_dir: &Path) -> Result<Self> {
        let file = real(file)?;
        let project = build::project_above(&file);
        let sources = match &project {
            Some(project) if project == data_dir => {
                return Err(Failed::Usage(format!(
                    "--watch would see the cluster's own files change in {}: choose another --data-dir",
                    data_dir.display()
                )));
            }
            Some(project) => {
                let mut others = vec![data_dir.to_owned(), project.join("target")];
                others.extend(build::outputs(project, &file));
                if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
                    others.push(real(Path::new(&target))?);
                }
                Sources::new(project, others)
            }
            None => Sources::new(&file, Vec::new()),
        };
        let picture = sources.picture();
        let built = fs::metadata(&file).and_then(|metadata| metadata.modified()).ok();
        let newest = picture.values().map(|(modified, _)| *modified).max();
        let done = (built.is_some() && newest <= built).then_some(picture);
        Ok(Self { program: program.to_owned(), file, project, sources, done })
    }

    /// Describes in one line what is watched.
    pub(super) fn describe(&self) -> String {
        let file = self.file.display();
        match &self.project {
            Some(project) => {
                format!("watching {}: each change is built into {file}", project.display())
            }
            None => format!("watching {file}: there is no project above it from which to build it"),
        }
    }

    /// Builds the component if it does not exist, as the initial component of the cluster.
    pub(super) async fn first(&mut self) -> Result {
        let Some(project) = self.project.as_ref().filter(|_| !self.file.exists()) else {
            return Ok(());
        };
        let picture = self.sources.look().await;
        builder::build(&self.program, project, &self.file).await.map_err(Failed::local)?;
        self.done = Some(picture);
        Ok(())
    }

    /// Upgrades the cluster to the present sources, and again after each change.
    pub(super) async fn run(mut self, client: Client, mut output: Output) -> Infallible {
        if self.done.is_some() {
            self.upgrade(&client, &mut output).await;
        }
        let mut before = None;
        loop {
            let now = self.sources.look().await;
            if before.as_ref() == Some(&now) && self.done.as_ref() != Some(&now) {
                self.follow(&client, &mut output).await;
                self.done = before;
            }
            before = Some(now);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Builds the changed sources and upgrades the cluster.
    async fn follow(&self, client: &Client, output: &mut Output) {
        if let Some(project) = &self.project {
            output.remark(format!("building {}", project.display()));
            if let Err(why) = builder::build(&self.program, project, &self.file).await {
                output.remark(format!("{why}; {GOES_ON}"));
                return;
            }
        }
        if !self.upgrade(client, output).await {
            output.remark("the cluster already runs this component");
        }
    }

    /// Upgrades the cluster. Returns `false` if it already runs this component.
    async fn upgrade(&self, client: &Client, output: &mut Output) -> bool {
        match upgrade::upgrade(client, &self.file, output).await {
            Ok(changed) => changed,
            Err(why) => {
                output.remark(format!("not upgraded: {why}; {GOES_ON}"));
                true
            }
        }
    }
}

const GOES_ON: &str =
    "the cluster keeps its present component, and the next change is a new attempt";

/// Resolves the symbolic links of the part of a path that exists.
fn real(path: &Path) -> Result<PathBuf> {
    let failed = Failed::at(path);
    let path = std::path::absolute(path).map_err(failed)?;
    let missing = |cause: &io::Error| cause.kind() == io::ErrorKind::NotFound;
    for above in path.ancestors() {
        match fs::canonicalize(above) {
            Ok(found) => {
                let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
                // `join` with an empty path would append a slash.
                return Ok(found.components().chain(rest.components()).collect());
            }
            Err(cause) if missing(&cause) => {}
            Err(cause) => return Err(failed(cause)),
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn project(dir: &Path) -> PathBuf {
        let project = fs::canonicalize(dir).unwrap().join("lock");
        fs::create_dir_all(project.join("src")).unwrap();
        fs::write(project.join("Cargo.toml"), "[package]\nname = \"lock\"\n").unwrap();
        fs::write(project.join("src/lib.rs"), "").unwrap();
        project
    }

    fn watch(project: &Path) -> Watch {
        let file = project.join("target/lock.wasm");
        Watch::new(Path::new("conclave"), &file, &project.join("conclave-dev")).unwrap()
    }

    #[test]
    fn what_is_built_of_older_sources_is_built_anew() {
        let dir = tempfile::tempdir().unwrap();
        let project = project(dir.path());
        assert!(watch(&project).done.is_none(), "nothing is built");
        fs::create_dir(project.join("target")).unwrap();
        let component = fs::File::create(project.join("target/lock.wasm")).unwrap();
        let now = SystemTime::now();
        component.set_modified(now - Duration::from_secs(60)).unwrap();
        assert!(watch(&project).done.is_none(), "a source is newer");
        component.set_modified(now + Duration::from_secs(60)).unwrap();
        assert!(watch(&project).done.is_some());
    }

    #[test]
    fn a_component_without_a_project_is_watched_itself() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::canonicalize(dir.path()).unwrap().join("lock.wasm");
        fs::write(&file, "one").unwrap();
        let watch = Watch::new(Path::new("conclave"), &file, dir.path()).unwrap();
        assert!(watch.describe().contains("no project") && watch.done.is_some());
        assert_eq!(watch.sources.picture().into_keys().collect::<Vec<_>>(), [file]);
    }

    #[test]
    fn a_cluster_in_the_project_itself_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let project = project(dir.path());
        let watch = Watch::new(Path::new("conclave"), &project.join("lock.wasm"), &project);
        assert!(matches!(watch, Err(Failed::Usage(_))));
    }
}
