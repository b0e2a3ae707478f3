//! How a file looks, and that it is part of the program at all.

use crate::source::{Breach, Source, find, modules, words};

/// Nine in ten files are to be far below; one that reaches this is two.
const LINES_MAX: usize = 600;

/// A file begins with what it is.
pub fn opening(source: &Source) -> Vec<Breach> {
    let lesson = "begin the file with `//!`: what it is, what it never does, and why";
    if source.text.starts_with("//!") { Vec::new() } else { vec![source.breach(0, lesson)] }
}

/// A file fits into a reader's head.
pub fn length(source: &Source) -> Vec<Breach> {
    let lines = source.text.lines().count();
    let lesson = format!("{lines} lines are more than {LINES_MAX}: part the file where its story parts");
    if lines > LINES_MAX { vec![source.breach(0, lesson)] } else { Vec::new() }
}

/// Nothing is left for later, in tests neither.
pub fn unfinished(source: &Source) -> Vec<Breach> {
    let found = ["todo!", "unimplemented!", "dbg!"].into_iter().flat_map(|word| {
        let lesson = format!("`{word}` is not for the tree: write what is meant, or leave the feature out");
        find(&source.code, word).into_iter().map(move |offset| source.breach(offset, lesson.clone()))
    });
    found.collect()
}

/// Words of other products stand where the configuration understands what users write, only.
pub fn foreign_words(source: &Source) -> Vec<Breach> {
    if source.plane() == "config" {
        return Vec::new();
    }
    // Put together, so that a search for the word finds real uses alone.
    let word = ["back", "end"].concat();
    let lesson = "half the field means a group by this word and half a machine: say `pool` or `server`";
    let text = source.text.to_ascii_lowercase();
    text.match_indices(&word).map(|(offset, _)| source.breach(offset, lesson)).collect()
}

/// Each unsafe block and impl of `src/sys` says why it is sound.
pub fn safety_comments(source: &Source) -> Vec<Breach> {
    if source.plane() != "sys" {
        return Vec::new();
    }
    let lesson = "put `// SAFETY:` above: which invariant makes this sound, and who keeps it";
    let begins = |at: usize| {
        let after = source.code[at + "unsafe".len()..].trim_start();
        after.starts_with('{') || after.starts_with("impl")
    };
    let all = find(&source.code, "unsafe").into_iter();
    all.filter(|at| begins(*at) && !is_explained(&source.text, *at))
        .map(|at| source.breach(at, lesson))
        .collect()
}

/// Does a comment with the word stand above the statement that this offset is in, or in it.
fn is_explained(text: &str, offset: usize) -> bool {
    let line_start = text[..offset].rfind('\n').map_or(0, |at| at + 1);
    if text[line_start..offset].contains("SAFETY:") {
        return true;
    }
    let mut is_comment_read = false;
    for line in text[..line_start].lines().rev().map(str::trim) {
        let is_comment = line.starts_with("//") || line.starts_with("#[");
        if is_comment && line.contains("SAFETY:") {
            return true;
        }
        // Above the comment, or above a line that ends a statement, another one begins.
        let is_other = line.is_empty() || line.ends_with([';', '{', '}', ',']);
        if !is_comment && (is_comment_read || is_other) {
            return false;
        }
        is_comment_read |= is_comment;
    }
    false
}

/// The files that no `mod` leads to, from `lib.rs` and `main.rs` on.
pub fn unreachable(sources: &[Source]) -> Vec<Breach> {
    let mut reached = vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned()];
    let mut next = 0;
    while next < reached.len() {
        if let Some(source) = sources.iter().find(|source| source.path == reached[next]) {
            let fresh = declared(source).into_iter().filter(|path| sources.iter().any(|s| s.path == *path));
            let fresh: Vec<String> = fresh.filter(|path| !reached.contains(path)).collect();
            reached.extend(fresh);
        }
        next += 1; // each file is reached once at the most
    }
    let lesson = "no `mod` leads here: declare it in its parent, or delete the file";
    sources.iter().filter(|source| !reached.contains(&source.path)).map(|s| s.breach(0, lesson)).collect()
}

/// The paths at which the modules may lie that this file declares.
fn declared(source: &Source) -> Vec<String> {
    let all = modules(&source.code);
    let mut paths = Vec::new();
    for (offset, name, _) in all.iter().filter(|(.., inside)| inside.is_none()) {
        let around = all.iter().filter(|(.., inside)| inside.as_ref().is_some_and(|i| i.contains(offset)));
        let mut parts = vec!["src".to_owned()];
        parts.extend(source.module());
        parts.extend(around.map(|(_, outer, _)| outer.clone()));
        parts.push(name.clone());
        let path = parts.join("/");
        paths.extend([format!("{path}.rs"), format!("{path}/mod.rs")]);
    }
    paths
}

/// A file that sets the path of a module by hand would lead [`unreachable`] astray.
pub fn moved_modules(source: &Source) -> Vec<Breach> {
    let lesson = "no `#[path]`: a module lies where its name says";
    let found = words(&source.code)
        .into_iter()
        .filter(|(at, word)| *word == "path" && { source.code[..*at].trim_end().ends_with("#[") });
    found.map(|(offset, _)| source.breach(offset, lesson)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(&Source) -> Vec<Breach>;

    fn lines(rule: Rule, path: &str, text: &str) -> Vec<usize> {
        rule(&Source::new(path, text)).into_iter().map(|breach| breach.line).collect()
    }

    #[test]
    fn a_file_without_an_opening_or_an_end_is_found() {
        assert_eq!(lines(opening, "src/live.rs", "use std::fmt;\n"), [1]);
        assert_eq!(lines(opening, "src/live.rs", "//! What is alive.\n"), []);
        assert_eq!(lines(length, "src/live.rs", &"\n".repeat(LINES_MAX + 1)), [1]);
        assert_eq!(lines(length, "src/live.rs", &"\n".repeat(LINES_MAX)), []);
    }

    #[test]
    fn what_is_unfinished_is_found() {
        let text = "// todo!\nfn f() { todo!() }\nfn g() { dbg!(1) }\nfn h() { unimplemented!() }\nlet not_todo = 1;\n";
        let mut found = lines(unfinished, "src/live.rs", text);
        found.sort_unstable();
        assert_eq!(found, [2, 3, 4]);
    }

    #[test]
    fn foreign_words_are_found_in_comments_too_and_known_to_the_configuration() {
        let text = format!("//! x\n// the {}end\nstruct Back{};\n", "Back", "ends");
        assert_eq!(lines(foreign_words, "src/data/route.rs", &text), [2, 3]);
        assert_eq!(lines(foreign_words, "src/config/check.rs", &text), []);
    }

    #[test]
    fn an_unsafe_block_without_its_reason_is_found() {
        let bad = "fn f() {\n    // Fine.\n    unsafe { g() }\n}\n";
        assert_eq!(lines(safety_comments, "src/sys/pipe.rs", bad), [3]);
        let used_up = "// SAFETY: `a` is ours.\nunsafe { a() };\nunsafe { b() };\n";
        assert_eq!(lines(safety_comments, "src/sys/pipe.rs", used_up), [3]);
        assert_eq!(lines(safety_comments, "src/sys/pipe.rs", "unsafe impl Send for A {}\n"), [1]);
    }

    #[test]
    fn an_unsafe_block_with_its_reason_is_left_alone() {
        let good = "// SAFETY: `fd` is open,\n// as the caller holds it.\n#[allow(x)]\nlet n =\n    check(unsafe { g(fd) });\n\
                    unsafe fn h() {}\n";
        assert_eq!(lines(safety_comments, "src/sys/pipe.rs", good), []);
    }

    #[test]
    fn a_file_that_nothing_declares_is_found() {
        let file = |path: &str, text: &str| Source::new(path, text);
        let tree = [
            file("src/lib.rs", "pub mod data;\nmod live;\n"),
            file("src/main.rs", "fn main() {}\n"),
            file("src/live.rs", ""),
            file("src/data/mod.rs", "mod relay; // mod lost;\nmod inner { mod deep; }\n"),
            file("src/data/relay.rs", "#[cfg(test)]\nmod tests;\n"),
            file("src/data/relay/tests.rs", ""),
            file("src/data/inner/deep.rs", ""),
            file("src/data/lost.rs", ""),
        ];
        let found: Vec<String> = unreachable(&tree).into_iter().map(|breach| breach.path).collect();
        assert_eq!(found, ["src/data/lost.rs"]);
    }

    #[test]
    fn a_module_with_a_path_of_its_own_is_found() {
        assert_eq!(lines(moved_modules, "src/lib.rs", "\n#[path = \"x.rs\"]\nmod y;\nlet path = 1;\n"), [2]);
    }
}
