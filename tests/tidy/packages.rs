//! What `Cargo.toml` may name. The licences, sources and advisories of the whole tree are the
//! business of `deny.toml`; the few packages that we avoid stand in both.

use crate::source::Breach;

/// Packages that we avoid, and what is there instead.
const AVOIDED: &[(&str, &str)] = &[
    ("ring", "aws-lc-rs, which has the post-quantum key exchange"),
    ("rustls-pemfile", "the PEM reader of rustls-pki-types, which took its place"),
    ("ktls", "rustls in the worker's own buffer"),
    ("fred", "a health check that speaks the few bytes itself"),
    ("figment", "toml with places, read twice"),
    ("miette", "annotate-snippets"),
    ("core_affinity", "nix, which sets affinity too"),
];

/// Every direct dependency that we avoid.
pub fn banned(path: &str, manifest: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (line, name) in dependencies(manifest) {
        // Cargo takes `-` and `_` for the same.
        let avoided = AVOIDED.iter().find(|(avoided, _)| avoided.replace('_', "-") == name.replace('_', "-"));
        if let Some((_, instead)) = avoided {
            let lesson = format!("`{name}` is a package that we avoid: use {instead}");
            breaches.push(Breach { path: path.to_owned(), line, lesson });
        }
    }
    breaches
}

/// Every package that we avoid and that `deny.toml` lets pass.
pub fn not_banned_in(path: &str, deny: &str) -> Vec<Breach> {
    let missing = AVOIDED.iter().filter(|(name, _)| !deny.contains(&format!("crate = \"{name}\"")));
    let lesson = |name: &str| format!("add `{name}` to `deny` under `[bans]`, with its reason");
    missing.map(|(name, _)| Breach { path: path.to_owned(), line: 1, lesson: lesson(name) }).collect()
}

/// The packages of all dependency tables, each with its line: `name = ..`, `package = ".."`
/// inside of it, or a table of its own.
fn dependencies(manifest: &str) -> Vec<(usize, String)> {
    let (mut found, mut is_inside) = (Vec::new(), false);
    for (number, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            is_inside = table.ends_with("dependencies");
            if let Some((_, name)) = table.split_once("dependencies.") {
                found.push((number + 1, name.trim_matches('"').to_owned()));
            }
        } else if is_inside && !line.starts_with('#') {
            let name = line.split_once('=').map(|(name, _)| name.trim().trim_matches('"'));
            found.extend(name.map(|name| (number + 1, name.split('.').next().unwrap_or(name).to_owned())));
        }
        if let Some((_, renamed)) = line.split_once("package = \"") {
            found.push((number + 1, renamed.split('"').next().unwrap_or_default().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_avoided_package_is_found_in_every_way_of_naming_it() {
        let bad = "[package]\nring = 1\n[dependencies]\nring = \"0.17\"\ntls = { package = \"ktls\" }\n# fred = 1\n\
                   [target.'cfg(unix)'.dependencies]\ncore-affinity.workspace = true\n[dev-dependencies.miette]\nversion = \"7\"\n";
        let lines: Vec<usize> = banned("Cargo.toml", bad).into_iter().map(|breach| breach.line).collect();
        assert_eq!(lines, [4, 5, 8, 9]);
    }

    #[test]
    fn packages_with_a_similar_name_are_left_alone() {
        assert_eq!(banned("Cargo.toml", "[dependencies]\nstring = \"1\"\nio-uring = \"1\"\n"), []);
    }

    #[test]
    fn a_ban_that_the_checker_does_not_know_is_found() {
        let deny = AVOIDED[1..].iter().map(|(name, _)| format!("{{ crate = \"{name}\" }}\n"));
        let found = not_banned_in("deny.toml", &deny.collect::<String>());
        assert_eq!(found.len(), 1);
        assert!(found[0].lesson.contains("`ring`"));
    }
}
