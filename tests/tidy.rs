//! The shape of the code, held by reading the sources.
//!
//! Each rule is a function over the text of a file and has a test of its own on a bad snippet, in
//! `tests/tidy/`; here they meet the real tree. A failure names file and line, and says what to
//! do instead. A rule that turns out wrong is changed here, together with the map in `src/lib.rs`.

#[path = "tidy/source.rs"]
mod source; // text -> code without comments and strings, paths, modules

#[path = "tidy/arrows.rs"]
mod arrows; // which plane may use which

#[path = "tidy/absence.rs"]
mod absence; // what a plane never does

#[path = "tidy/shape.rs"]
mod shape; // how a file looks, and that it is read at all

#[path = "tidy/packages.rs"]
mod packages; // what Cargo.toml may name

use std::fs;
use std::path::{Path, PathBuf};

use source::{Breach, Source};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file under `src/`, in order of path.
fn sources() -> Vec<Source> {
    let (mut folders, mut files) = (vec![root().join("src")], Vec::<PathBuf>::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src/ can be listed") {
            let path = entry.expect("src/ can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let relative = |path: &Path| path.strip_prefix(root()).expect("below the root").display().to_string();
    let sources: Vec<_> = files.iter().map(|path| Source::new(&relative(path), &read(path))).collect();
    source::mark_test_files(sources)
}

fn expect_none(breaches: &[Breach]) {
    let lines: Vec<String> = breaches.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} places need a change:\n{}\n", lines.len(), lines.join("\n"));
}

fn expect_none_in_any_file(rule: fn(&Source) -> Vec<Breach>) {
    expect_none(&sources().iter().flat_map(rule).collect::<Vec<_>>());
}

#[test]
fn modules_use_only_what_the_map_lets_them() {
    expect_none_in_any_file(arrows::check);
}

#[test]
fn every_plane_has_a_row_in_the_table_of_arrows() {
    let sources = sources();
    expect_none(
        &sources.iter().filter(|s| s.path == "src/lib.rs").flat_map(arrows::rows).collect::<Vec<_>>(),
    );
}

#[test]
fn planes_do_without_what_they_promise_to_do_without() {
    expect_none_in_any_file(absence::words);
}

#[test]
fn what_workers_share_is_seen_by_the_model_checks() {
    expect_none_in_any_file(absence::past_the_switch);
}

#[test]
fn only_the_publisher_builds_a_snapshot() {
    expect_none_in_any_file(absence::snapshot_builders);
}

#[test]
fn unsafe_code_stays_in_sys_and_says_why_it_is_sound() {
    expect_none_in_any_file(absence::unsafe_outside_sys);
    expect_none_in_any_file(shape::safety_comments);
}

#[test]
fn every_file_begins_by_saying_what_it_is() {
    expect_none_in_any_file(shape::opening);
}

#[test]
fn no_file_is_too_long_to_read() {
    expect_none_in_any_file(shape::length);
}

#[test]
fn nothing_is_left_unfinished_and_words_are_the_house_words() {
    expect_none_in_any_file(shape::unfinished);
    expect_none_in_any_file(shape::foreign_words);
}

#[test]
fn every_file_is_part_of_the_program() {
    expect_none_in_any_file(shape::moved_modules);
    expect_none(&shape::unreachable(&sources()));
}

#[test]
fn direct_dependencies_are_none_that_we_avoid() {
    expect_none(&packages::banned("Cargo.toml", &read(&root().join("Cargo.toml"))));
}

#[test]
fn the_dependency_checker_bans_what_this_test_bans() {
    expect_none(&packages::not_banned_in("deny.toml", &read(&root().join("deny.toml"))));
}
