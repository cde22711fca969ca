//! Selection of a component's services from its descriptor set.
//!
//! A descriptor set holds the component's files and all their imports, without distinguishing them.
//! A service that only an import defines, such as `google.longrunning.Operations`, is not the
//! component's: no handler serves it.
//!
//! A file is the component's own in these cases:
//! * no other file of the set imports it, or
//! * an own file imports it publicly (`import public`), or
//! * it is in the package of a file that no other file imports, or in a package inside that package.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{DescriptorPool, ServiceDescriptor};

/// Returns the services of the component's own files, in the order of the set.
pub fn own(pool: &DescriptorPool) -> Vec<ServiceDescriptor> {
    let files: BTreeMap<String, _> =
        pool.files().map(|file| (file.name().to_owned(), file)).collect();
    let imported: BTreeSet<String> = files
        .values()
        .flat_map(|file| file.dependencies().map(|import| import.name().to_owned()))
        .collect();
    let mut queue: Vec<String> =
        files.keys().filter(|name| !imported.contains(*name)).cloned().collect();
    let packages: BTreeSet<String> = queue
        .iter()
        .filter_map(|name| files.get(name))
        .map(|file| file.package_name().to_owned())
        .collect();
    queue.extend(
        files
            .iter()
            .filter(|(_, file)| packages.iter().any(|outer| lies_in(file.package_name(), outer)))
            .map(|(name, _)| name.clone()),
    );
    let mut own = BTreeSet::new();
    while let Some(name) = queue.pop() {
        if let Some(file) = files.get(&name)
            && own.insert(name)
        {
            queue.extend(file.public_dependencies().map(|import| import.name().to_owned()));
        }
    }
    pool.services().filter(|service| own.contains(service.parent_file().name())).collect()
}

/// Whether a package is `outer` or lies inside it. The unnamed package does not count as an outer
/// package, because it contains all packages.
fn lies_in(package: &str, outer: &str) -> bool {
    let inside = package.strip_prefix(outer);
    inside.is_some_and(|rest| rest.is_empty() || (!outer.is_empty() && rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::collections::HashMap;

    use super::*;

    struct Files(HashMap<&'static str, &'static str>);

    impl protox::file::FileResolver for Files {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            match self.0.get(name) {
                Some(source) => protox::file::File::from_source(name, source),
                None => Err(protox::Error::file_not_found(name)),
            }
        }
    }

    /// The services of `app.proto` and its imports.
    fn services(files: &[(&'static str, &'static str)]) -> Vec<String> {
        let resolver = Files(files.iter().copied().collect());
        let mut compiler = protox::Compiler::with_file_resolver(resolver);
        compiler.include_imports(true).open_file("app.proto").unwrap();
        own(&compiler.descriptor_pool()).iter().map(|found| found.full_name().to_owned()).collect()
    }

    const FOREIGN: &str = r#"syntax = "proto3"; package foreign.v1;
        message M {} service Foreign { rpc Do(M) returns (M); rpc Up(stream M) returns (M); }"#;

    #[test]
    fn services_of_imports_are_not_the_components() {
        let app = r#"syntax = "proto3"; package app.v1; import "foreign.proto";
            service App { rpc Do(foreign.v1.M) returns (foreign.v1.M); }"#;
        assert_eq!(services(&[("app.proto", app), ("foreign.proto", FOREIGN)]), ["app.v1.App"]);
    }

    #[test]
    fn an_import_of_the_same_package_or_a_public_one_is_the_components() {
        let app = r#"syntax = "proto3"; package app.v1; import "admin.proto"; import public "foreign.proto";
            service App { rpc Do(foreign.v1.M) returns (foreign.v1.M); }"#;
        let admin = r#"syntax = "proto3"; package app.v1.admin;
            message A {} service Admin { rpc Do(A) returns (A); }"#;
        let mut found =
            services(&[("app.proto", app), ("admin.proto", admin), ("foreign.proto", FOREIGN)]);
        found.sort();
        assert_eq!(found, ["app.v1.App", "app.v1.admin.Admin", "foreign.v1.Foreign"]);
    }

    #[test]
    fn a_file_without_a_package_does_not_own_all_others() {
        let app = r#"syntax = "proto3"; import "foreign.proto";
            service App { rpc Do(foreign.v1.M) returns (foreign.v1.M); }"#;
        assert_eq!(services(&[("app.proto", app), ("foreign.proto", FOREIGN)]), ["App"]);
    }
}
