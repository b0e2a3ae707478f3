//! What a plane never does, by the words that doing it would need.

use crate::source::{Breach, Source, find, paths, words as words_of};

/// Words that code of certain planes does without, outside of tests.
struct Absence {
    planes: &'static [&'static str],
    words: &'static [&'static str],
    lesson: &'static str,
}

const ABSENCES: &[Absence] = &[
    Absence {
        planes: &["core", "wire"],
        words: &["Instant::now", "SystemTime"],
        lesson: "a core never reads the clock: take `now` as an argument",
    },
    Absence {
        planes: &["core", "wire"],
        words: &["TcpStream", "TcpListener", "TcpSocket", "UdpSocket", "std::fs"],
        lesson: "a core does no I/O: take what was read as an argument and return what is to be done",
    },
    Absence {
        planes: &["core", "wire"],
        words: &["fastrand", "rand"],
        lesson: "a core draws no randomness of its own: take a random number as an argument",
    },
    Absence {
        planes: &["core", "wire"],
        words: &["Mutex", "RwLock"],
        lesson: "a core takes no lock: use atomics, or `&mut self` and let the caller keep it",
    },
    Absence {
        planes: &["core", "wire"],
        words: &["async", "thread"],
        lesson: "a core does not run by itself: return a value and let a doer wait or spawn",
    },
    Absence {
        planes: &["core", "wire", "data", "net"],
        words: &["tracing", "println!", "eprintln!", "print!", "eprint!"],
        lesson: "this plane writes nothing: return an error or fill the record, which `data/close.rs` hands on",
    },
    Absence {
        planes: &["core", "wire", "data", "net", "control"],
        words: &["thread::sleep"],
        lesson: "this would stop every connection or every doer of its thread: await the executor's or tokio's sleep",
    },
];

/// Every word in the product's code that its plane does without.
pub fn words(source: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for absence in ABSENCES.iter().filter(|absence| absence.planes.contains(&source.plane())) {
        for word in absence.words {
            let lesson = |offset| source.breach(offset, format!("`{word}`: {}", absence.lesson));
            breaches.extend(places(source, word).into_iter().map(lesson));
        }
    }
    breaches
}

/// Where a word stands; a path into std also where it is part of a `use std::{..}`.
fn places(source: &Source, word: &str) -> Vec<usize> {
    match word.strip_prefix("std::") {
        None => find(&source.product, word),
        Some(module) => {
            let paths = paths(&source.product, "std").into_iter();
            paths
                .filter(|(_, path)| path.first().is_some_and(|part| part == module))
                .map(|(at, _)| at)
                .collect()
        }
    }
}

/// Planes in which workers share what they count and wait for.
const SHARING: &[&str] = &["core", "net", "live", "telemetry", "orders", "data"];

/// What threads share by.
const SHARED: &[&str] = &["atomic", "Mutex", "MutexGuard", "RwLock", "Condvar", "Barrier"];

/// Every atomic and lock of std's that a worker shares past `src/sync.rs`, and so past the model checks.
pub fn past_the_switch(source: &Source) -> Vec<Breach> {
    if !SHARING.contains(&source.plane()) {
        return Vec::new();
    }
    let lesson = "take it from `crate::sync`, where tests/races puts the model checker's in its place";
    let shared = |path: &[String]| matches!(path, [sync, what, ..] if sync == "sync" && SHARED.contains(&what.as_str()));
    let found = paths(&source.product, "std").into_iter().filter(|(_, path)| shared(path));
    found.map(|(offset, _)| source.breach(offset, lesson)).collect()
}

/// `unsafe`, or a lifted ban of it, anywhere but in `src/sys`; tests are no exception.
pub fn unsafe_outside_sys(source: &Source) -> Vec<Breach> {
    if source.plane() == "sys" {
        return Vec::new();
    }
    let lesson = "unsafe code lives in src/sys alone: add a safe function there and call it";
    let found =
        words_of(&source.code).into_iter().filter(|(_, word)| matches!(*word, "unsafe" | "unsafe_code"));
    found.map(|(offset, _)| source.breach(offset, lesson)).collect()
}

/// The one place that makes snapshots.
const PUBLISHER: &str = "src/control/publisher.rs";

/// Every `Snapshot { .. }` that makes one, outside of the publisher and of tests.
pub fn snapshot_builders(source: &Source) -> Vec<Breach> {
    if source.path == PUBLISHER {
        return Vec::new();
    }
    let lesson = "only control/publisher.rs makes a snapshot: ask it to publish, or take one as an argument";
    let made = find(&source.product, "Snapshot").into_iter().filter(|at| {
        let after = source.product[at + "Snapshot".len()..].trim_start();
        after.starts_with('{') && is_expression(&source.product[..*at])
    });
    let mut breaches: Vec<Breach> = made.map(|offset| source.breach(offset, lesson)).collect();
    if source.path == "src/snapshot.rs" {
        let of_itself = find(&source.product, "Self").into_iter();
        let made = of_itself.filter(|at| source.product[at + "Self".len()..].trim_start().starts_with('{'));
        let made = made.filter(|at| is_expression(&source.product[..*at]));
        breaches.extend(made.map(|offset| source.breach(offset, lesson)));
    }
    breaches
}

/// Does a type's name after this text, followed by a brace, make a value; and not declare the
/// type, implement it, return it or take one apart.
fn is_expression(before: &str) -> bool {
    let mut before = before.trim_end();
    while let Some(path) = before.strip_suffix("::") {
        before = path.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_').trim_end();
    }
    before = before.trim_end_matches('&').trim_end();
    if before.ends_with("->") {
        return false;
    }
    let word = before.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
    !matches!(word, "struct" | "impl" | "for" | "let" | "mod" | "enum" | "trait" | "union" | "dyn")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(&Source) -> Vec<Breach>;

    fn lines(rule: Rule, path: &str, text: &str) -> Vec<usize> {
        rule(&Source::new(path, text)).into_iter().map(|breach| breach.line).collect()
    }

    #[test]
    fn a_core_that_is_not_pure_is_found() {
        let bad = "let now = Instant::now();\nuse std::{fmt, fs};\nfastrand::u64(..);\nlet m = Mutex::new(1);\n\
                   async fn f() {}\ntracing::info!();\nstd::thread::spawn(f);\nstd::net::TcpStream::connect(a);\n\
                   println!();\nstd::time::SystemTime::UNIX_EPOCH;\n";
        let mut found = lines(words, "src/core/health.rs", bad);
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn a_core_that_is_pure_is_left_alone() {
        let good = "//! No Mutex here.\nuse std::net::SocketAddr;\nfn f(now: Instant, random: u64) { \"thread\"; }\n\
                    #[cfg(test)]\nmod tests { use std::thread; }\n";
        assert_eq!(lines(words, "src/core/health.rs", good), []);
        assert_eq!(lines(words, "src/control/prober.rs", "use std::fs; tracing::info!();"), []);
    }

    #[test]
    fn the_data_plane_that_writes_is_found() {
        assert_eq!(lines(words, "src/data/relay.rs", "\ntracing::warn!();\n"), [2]);
        assert_eq!(lines(words, "src/net/epoll.rs", "eprintln!();\n"), [1]);
        assert_eq!(lines(words, "src/control/drainer.rs", "std::thread::sleep(second);\n"), [1]);
        assert_eq!(lines(words, "src/data/relay.rs", "use std::sync::Mutex;\n"), []);
    }

    #[test]
    fn an_atomic_that_the_model_checks_do_not_see_is_found() {
        let bad = "use std::sync::atomic::AtomicU64;\nuse std::{fmt, sync::{Arc, Mutex}};\nstd::sync::RwLock::new(1);\n";
        assert_eq!(lines(past_the_switch, "src/live/line.rs", bad), [1, 2, 3]);
        assert_eq!(lines(past_the_switch, "src/control/desk.rs", bad), []);
        let good = "use std::sync::{Arc, Weak, mpsc};\nuse crate::sync::{Mutex, atomic};\n\
                    #[cfg(test)]\nmod tests { use std::sync::atomic::AtomicU64; }\n";
        assert_eq!(lines(past_the_switch, "src/live/line.rs", good), []);
    }

    #[test]
    fn unsafe_code_outside_sys_is_found_even_in_a_test() {
        let text = "// unsafe\nfn f() {}\n#[cfg(test)]\nmod tests { fn g() { unsafe { h() } } }\n";
        assert_eq!(lines(unsafe_outside_sys, "src/net/epoll.rs", text), [4]);
        assert_eq!(lines(unsafe_outside_sys, "src/net/epoll.rs", "#![allow(unsafe_code)]\n"), [1]);
        assert_eq!(lines(unsafe_outside_sys, "src/sys/pipe.rs", "unsafe { h() }\n"), []);
    }

    #[test]
    fn a_snapshot_that_is_made_elsewhere_is_found() {
        let bad = "let s = Arc::new(Snapshot { generation: 1 });\nlet t = snapshot::Snapshot { ..s };\nf(&Snapshot {});\n";
        assert_eq!(lines(snapshot_builders, "src/control/reloader.rs", bad), [1, 2, 3]);
        assert_eq!(lines(snapshot_builders, PUBLISHER, bad), []);
        let own = "impl Snapshot {\n    fn empty() -> Self {\n        Self { generation: 0 }\n    }\n}\n";
        assert_eq!(lines(snapshot_builders, "src/snapshot.rs", own), [3]);
    }

    #[test]
    fn a_snapshot_that_is_declared_returned_or_taken_apart_is_left_alone() {
        let good = "pub struct Snapshot { a: u8 }\nimpl Snapshot {}\nimpl Drop for Snapshot {}\n\
                    fn f() -> &Snapshot { x }\nfn g() -> snapshot::Snapshot { x }\nlet Snapshot { a } = s;\n\
                    fn h(s: &Snapshot) { s.a }\n";
        assert_eq!(lines(snapshot_builders, "src/snapshot.rs", good), []);
    }
}
