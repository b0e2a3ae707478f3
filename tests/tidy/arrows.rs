//! Which plane may use which. The table says what the map in `src/lib.rs` draws; both change
//! together, and a new arrow needs its reason in the commit.

use crate::source::{Breach, Source, modules, paths};

/// A plane, and what it may use besides itself: a whole plane or one module of it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("main", &["cli", "run"]),
    ("lib", &[]),
    // Starts the daemon, or talks to a running one through the API's client, which is in `control`.
    // The demo's sample servers close their listeners as carefully as the data plane does, with `sys`.
    ("cli", &["config", "run", "core", "control", "sys"]),
    ("run", &["control", "data", "config", "snapshot", "orders", "live", "telemetry", "net", "sys", "core"]),
    ("control", &["config", "snapshot", "live", "orders", "core", "wire", "telemetry", "sys"]),
    ("data", &["snapshot", "live", "orders", "net", "core", "telemetry", "config::plan", "sync"]),
    ("net", &["sys", "sync"]),
    ("orders", &["snapshot", "sync"]),
    ("snapshot", &["live", "config::plan", "core", "telemetry"]),
    ("live", &["core", "telemetry", "sync"]),
    ("telemetry", &["core", "config::plan", "sync"]),
    ("config", &["core"]),
    // Its atomics; locks it does without, see `absence.rs`.
    ("core", &["sync::atomic"]),
    ("wire", &[]),
    ("sys", &[]),
    // The model checker's, of the package tests/races, which alone sets `cfg(loom)`.
    ("sync", &["checked"]),
];

/// Every path to another plane, outside of tests, that the table does not allow.
pub fn check(source: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (offset, path) in targets(source) {
        let Some(plane) = path.first() else { continue };
        if plane != source.plane() && !is_allowed(source.plane(), &path) {
            breaches.push(source.breach(offset, lesson(source.plane(), &path)));
        }
    }
    breaches
}

/// The modules that `src/lib.rs` declares and the table does not know.
pub fn rows(lib: &Source) -> Vec<Breach> {
    let unknown = modules(&lib.product).into_iter().filter(|(_, name, _)| allowed(name).is_none());
    let lesson =
        |name: &str| format!("`{name}` has no row in MAY_USE of tests/tidy/arrows.rs: say what it may use");
    unknown.map(|(offset, name, _)| lib.breach(offset, lesson(&name))).collect()
}

fn allowed(plane: &str) -> Option<&'static [&'static str]> {
    MAY_USE.iter().find(|(name, _)| *name == plane).map(|(_, targets)| *targets)
}

fn is_allowed(plane: &str, path: &[String]) -> bool {
    let path = path.join("::");
    let begins = |target: &&str| path == **target || path.starts_with(&format!("{target}::"));
    allowed(plane).is_some_and(|targets| targets.iter().any(begins))
}

fn lesson(plane: &str, path: &[String]) -> String {
    let targets = match allowed(plane) {
        Some([]) => "nothing of ours".to_owned(),
        Some(targets) => targets.join(", "),
        None => "nothing, because it is not on the map".to_owned(),
    };
    format!(
        "`{plane}` uses `{}`, but the map in src/lib.rs lets it use {targets}; take a value or a trait \
         from there, or move the code to the plane that may",
        path.join("::")
    )
}

/// Every path into this crate, from its root on.
fn targets(source: &Source) -> Vec<(usize, Vec<String>)> {
    let mut found = paths(&source.product, "crate");
    if source.plane() == "main" {
        found.extend(paths(&source.product, "tidegate"));
    }
    for (offset, path) in paths(&source.product, "super") {
        // The later ones of `super::super::` are parts of the path of the first.
        if !source.product[..offset].trim_end_matches("::").ends_with("super") {
            found.push((offset, above(source, offset, &path)));
        }
    }
    found.sort_by_key(|(offset, _)| *offset);
    found
}

/// What `super::` followed by `path` means at that place.
fn above(source: &Source, offset: usize, path: &[String]) -> Vec<String> {
    let mut module = source.module();
    let around = modules(&source.product)
        .into_iter()
        .filter(|(.., inside)| inside.as_ref().is_some_and(|inside| inside.contains(&offset)));
    module.extend(around.map(|(_, name, _)| name));
    let more = path.iter().take_while(|part| *part == "super").count();
    module.truncate(module.len().saturating_sub(1 + more));
    module.extend(path[more..].iter().cloned());
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a text in which an arrow is broken.
    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&Source::new(path, text)).into_iter().map(|breach| breach.line).collect()
    }

    #[test]
    fn a_path_to_a_plane_that_is_not_to_the_right_is_found() {
        assert_eq!(lines("src/core/health.rs", "//! x\nuse crate::live::Room;\n"), [2]);
        assert_eq!(lines("src/data/route.rs", "fn f() {\n    crate::control::publisher::now()\n}\n"), [2]);
        assert_eq!(lines("src/net/mod.rs", "use crate::{sys::ring, core::limit};\n"), [1]);
        assert_eq!(lines("src/cli/status.rs", "use crate::data::worker;\n"), [1]);
        assert_eq!(lines("src/main.rs", "fn main() { tidegate::control::start() }\n"), [1]);
    }

    #[test]
    fn of_the_configuration_the_data_plane_sees_the_plan_alone() {
        assert_eq!(lines("src/data/connect.rs", "use crate::config::{plan::Pool, check};\n"), [1]);
        assert_eq!(lines("src/data/connect.rs", "use crate::config;\n"), [1]);
        assert_eq!(lines("src/data/connect.rs", "use crate::config::plan::{self, Pool};\n"), []);
        assert_eq!(lines("src/data/connect.rs", "use crate::config::planner;\n"), [1]);
    }

    #[test]
    fn a_way_upwards_is_followed() {
        assert_eq!(lines("src/orders.rs", "use super::live::Room;\n"), [1]);
        assert_eq!(lines("src/data/relay/pipes.rs", "use super::super::super::control::x;\n"), [1]);
        assert_eq!(lines("src/data/relay/pipes.rs", "use super::super::worker::Pool;\n"), []);
        assert_eq!(lines("src/data/mod.rs", "mod a {\n    use super::super::control::x;\n}\n"), [2]);
        assert_eq!(lines("src/data/mod.rs", "mod a {\n    use super::worker;\n}\n"), []);
    }

    #[test]
    fn tests_comments_and_the_plane_itself_are_free() {
        assert_eq!(
            lines("src/core/limit.rs", "#[cfg(test)]\nmod tests {\n    use crate::live::Room;\n}\n"),
            []
        );
        assert_eq!(lines("src/core/limit.rs", "/// See [`crate::live`].\nuse crate::core::outcome;\n"), []);
    }

    #[test]
    fn a_module_that_is_not_on_the_map_is_found() {
        assert_eq!(lines("src/extra.rs", "use crate::core::limit;\n"), [1]);
        let lib = Source::new("src/lib.rs", "pub mod core;\npub mod extra;\n");
        assert_eq!(rows(&lib).into_iter().map(|breach| breach.line).collect::<Vec<_>>(), [2]);
    }
}
