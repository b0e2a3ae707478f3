//! Bad configurations, and the exact text that each of them earns.
//!
//! A case is `tests/mistakes/NAME.toml` beside `NAME.stderr`. After a change of wording run
//! with `TIDEGATE_BLESS=1`, which writes the texts anew, and read the difference as a user would.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tidegate::config::{self, Code, Colour, Format, Loaded, Mistakes};

/// Fewer would mean that cases were lost.
const CASES_MIN: usize = 25;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes")
}

/// The bad configurations: name and text.
fn cases() -> Vec<(String, String)> {
    let mut cases: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    cases.sort();
    cases
}

/// Mistakes or warnings, whichever there are.
fn mistakes(name: &str, text: &str) -> Mistakes {
    match config::parse(name, text) {
        Ok(Loaded { warnings, .. }) => warnings,
        Err(mistakes) => mistakes,
    }
}

fn plain(mistakes: &Mistakes) -> String {
    mistakes.render(Format::Human, Colour::Plain)
}

/// The first line in which two texts differ, with a few lines around it.
fn difference(expected: &str, found: &str) -> String {
    let same = expected.lines().zip(found.lines()).take_while(|(expected, found)| expected == found).count();
    let around = |text: &str| -> String {
        let lines = text.lines().enumerate().skip(same.saturating_sub(3)).take(8);
        lines.map(|(line, text)| format!("{}{text}\n", if line == same { "> " } else { "  " })).collect()
    };
    format!("line {}; expected:\n{}found:\n{}", same + 1, around(expected), around(found))
}

#[test]
fn each_mistake_earns_its_exact_text() {
    let is_blessing = std::env::var_os("TIDEGATE_BLESS").is_some_and(|value| value == "1");
    let mut wrong = Vec::new();
    for (name, text) in cases() {
        let found = plain(&mistakes(&format!("{name}.toml"), &text));
        let path = folder().join(format!("{name}.stderr"));
        if is_blessing {
            fs::write(&path, &found).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{name}: {}", difference(&expected, &found)));
        }
    }
    assert!(wrong.is_empty(), "{}\nTIDEGATE_BLESS=1 writes the new texts", wrong.join("\n"));
}

#[test]
fn every_case_is_a_mistake_and_every_code_has_a_case() {
    let cases = cases();
    assert!(cases.len() >= CASES_MIN, "{} cases", cases.len());
    let mut earned = BTreeSet::new();
    for (name, text) in &cases {
        let mistakes = mistakes(name, text);
        assert!(!mistakes.is_empty(), "{name} is no mistake");
        earned.extend(mistakes.iter().map(|mistake| mistake.code));
    }
    for (_, unreadable) in unreadable() {
        earned.extend(unreadable.iter().map(|mistake| mistake.code));
    }
    let without: Vec<_> = Code::ALL.iter().filter(|code| !earned.contains(code)).collect();
    assert!(without.is_empty(), "no case earns {without:?}");
}

#[test]
fn no_text_of_a_case_is_left_without_its_configuration() {
    let names: BTreeSet<_> = cases().into_iter().map(|(name, _)| name).collect();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(names.contains(&name), "{name}.stderr stands alone");
    }
}

/// A folder of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tidegate-mistakes-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Paths that lead to no configuration: what `load` says of each, by name.
fn unreadable() -> Vec<(&'static str, Mistakes)> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static RUN: AtomicUsize = AtomicUsize::new(0);
    let scratch = Scratch::new(&format!("unreadable-{}", RUN.fetch_add(1, Ordering::Relaxed)));
    let refused = |name: &'static str, path: PathBuf| (name, config::load(&path).unwrap_err());
    // Root may read everything, so the refusal itself comes from the system's error number.
    let by_errno = |name: &'static str, errno: i32| {
        let mut mistakes = Mistakes::none(name, "");
        mistakes.add(config::refused(Path::new(name), &std::io::Error::from_raw_os_error(errno)));
        (name, mistakes)
    };
    let fifo = scratch.0.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = scratch.0.join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    vec![
        refused("missing", scratch.0.join("missing")),
        refused("directory", scratch.0.clone()),
        refused("fifo", fifo),
        refused("socket", socket),
        refused("device", PathBuf::from("/dev/zero")),
        refused("latin-1", scratch.file("latin-1", b"[pool.web]\n# gr\xfcn\n")),
        refused("large", scratch.file("large", &vec![b'#'; 4 * 1024 * 1024 + 1])),
        refused("empty", scratch.file("empty", b" \n")),
        by_errno("forbidden", libc::EACCES),
        by_errno("broken", libc::EIO),
    ]
}

/// Title and help; the path differs from run to run.
fn told(mistakes: &Mistakes) -> (String, String, bool) {
    let mut list = mistakes.iter();
    let mistake = list.next().unwrap();
    assert!(list.next().is_none(), "one mistake says it all");
    let help = mistake.help.clone().unwrap_or_default();
    (format!("{} {}", mistake.code.text(), mistake.message), help, mistakes.is_permission())
}

#[test]
fn a_path_that_leads_to_no_configuration_says_why() {
    let again = "name the file itself; it is read again at each reload";
    let smallest = "the smallest one is\n\n[listener.web]\nbind = [\"0.0.0.0:80\"]\npool = \"web\"\n\n\
                    [pool.web]\nservers = [\"192.0.2.10:8080\"]";
    let expected = [
        (
            "missing",
            "E0001 there is no such file",
            "name another one on the command line, or in TIDEGATE_CONFIG",
        ),
        ("directory", "E0003 this is a directory, not a file", again),
        ("fifo", "E0003 this is a FIFO, not a file", again),
        ("socket", "E0003 this is a socket or a device, not a file", again),
        ("device", "E0003 this is a device, not a file", again),
        ("latin-1", "E0005 byte 15, in line 2, is not UTF-8", "save the file as UTF-8"),
        ("large", "E0004 the file is larger than 4 MiB", "is this the right path?"),
        ("empty", "E0007 the configuration is empty", smallest),
        (
            "forbidden",
            "E0002 this user may not read the file",
            "let the user that Tidegate runs as read forbidden and enter the folders above it",
        ),
        ("broken", "E0006 the file cannot be read: Input/output error (os error 5)", ""),
    ];
    let found = unreadable();
    assert_eq!(found.len(), expected.len());
    for ((name, mistakes), (expected_name, title, help)) in found.iter().zip(expected) {
        assert_eq!(*name, expected_name);
        assert_eq!(told(mistakes), (title.to_owned(), help.to_owned(), *name == "forbidden"), "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_shown_by_its_path_alone() {
    let mistakes = config::load(Path::new("/nowhere/tidegate.toml")).unwrap_err();
    assert_eq!(
        plain(&mistakes),
        "error[E0001]: there is no such file\n--> /nowhere/tidegate.toml\n \
         = help: name another one on the command line, or in TIDEGATE_CONFIG\n\n"
    );
}

const TWO: &str = "[listener.web]\nbind = [\"127.0.0.1:80\"]\npool = \"wbe\"\n\n\
                   [pool.web]\nservers = [\"192.0.2.1:80\"]\nhash_key = \"source-ip\"\n";

#[test]
fn programs_get_an_array_of_objects() {
    let found = mistakes("a,b.toml", TWO).render(Format::Json, Colour::Styled);
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(
        found,
        serde_json::json!([
            {
                "code": "E0106", "severity": "error", "file": "a,b.toml", "line": 3, "column": 8,
                "message": "there is no pool `wbe`", "hint": "did you mean `web`?",
                "patch": { "line": 3, "column": 8, "end_line": 3, "end_column": 13, "text": "\"web\"" },
            },
            {
                "code": "W0002", "severity": "warning", "file": "a,b.toml", "line": 7, "column": 12,
                "message": "`hash_key` has no effect",
                "hint": "it takes `balance = \"consistent-hash\"`; else leave it out", "patch": null,
            },
        ])
    );
    let fine = config::parse("fine.toml", include_str!("../conf/minimal.toml")).unwrap().warnings;
    assert_eq!(fine.render(Format::Json, Colour::Plain), "[]\n");
}

#[test]
fn a_forge_gets_one_command_for_each_mistake() {
    assert_eq!(
        mistakes("a,b.toml", TWO).render(Format::Github, Colour::Styled),
        "::error file=a%2Cb.toml,line=3,col=8,title=E0106::there is no pool `wbe`%0Adid you mean `web`?\n\
         ::warning file=a%2Cb.toml,line=7,col=12,title=W0002::`hash_key` has no effect%0A\
         it takes `balance = \"consistent-hash\"`; else leave it out\n"
    );
    let one = "[listener.web]\nbind = [\"127.0.0.1:80\"]\npool = \"web\"\nidle_timeout = 100%\n\
               [pool.web]\nservers = [\"192.0.2.1:80\"]\n";
    assert_eq!(
        mistakes("t.toml", one).render(Format::Github, Colour::Plain),
        "::error file=t.toml,line=4,col=16,title=E0010::a text value needs quotes%0Awrite `\"100%25\"`\n"
    );
}

#[test]
fn colour_changes_nothing_but_colour() {
    let mistakes = mistakes("t.toml", TWO);
    let styled = mistakes.render(Format::Human, Colour::Styled);
    assert!(styled.contains("\u{1b}["));
    let mut is_code = false;
    let bare: String = styled
        .chars()
        .filter(|letter| {
            let is_hidden = is_code || *letter == '\u{1b}';
            is_code = is_hidden && *letter != 'm';
            !is_hidden
        })
        .collect();
    assert_eq!(bare, plain(&mistakes));
}

#[test]
fn what_the_operator_wrote_cannot_steer_the_terminal() {
    let (_, text) = cases().into_iter().find(|(name, _)| name == "control-characters").unwrap();
    let mistakes = mistakes("t.toml", &text);
    assert!(mistakes.iter().any(|mistake| mistake.message.contains('\u{1b}')), "the case has lost its point");
    assert!(!plain(&mistakes).contains(|letter: char| letter.is_control() && letter != '\n'));
}

#[test]
fn every_patch_that_is_offered_heals_its_mistake() {
    for (name, text) in cases() {
        for mistake in mistakes(&name, &text).iter() {
            let Some(patch) = &mistake.patch else { continue };
            let mut healed = text.clone();
            healed.replace_range(patch.span.clone(), &patch.text);
            let is_same = |other: &&config::Mistake| {
                other.code == mistake.code
                    && other.message == mistake.message
                    && other.span.start == mistake.span.start
            };
            assert!(mistakes_of(&healed).iter().find(is_same).is_none(), "{name}: {mistake:?}");
        }
    }
}

fn mistakes_of(text: &str) -> Vec<config::Mistake> {
    mistakes("t.toml", text).iter().cloned().collect()
}

#[test]
fn a_file_of_nothing_but_mistakes_takes_bounded_time() {
    let started = std::time::Instant::now();
    let texts = [
        "a = 1\n".repeat(100_000),
        "x = [\n".repeat(100_000),
        format!("[{}]\n", vec!["a"; 400_000].join(".")),
        format!("{} = 1\n", vec!["a"; 400_000].join(".")),
        format!("a = {}", "[".repeat(800_000)),
        format!("a = {}", "{a=".repeat(400_000)),
        (0..60_000).map(|number| format!("[pol.p{number}]\n")).collect(),
        (0..60_000).map(|number| format!("[listener.p{number}]\npool = \"nobody\"\n")).collect(),
        (0..60_000).map(|number| format!("k{number} = {number}\n")).collect(),
    ];
    for text in texts {
        assert!(!plain(&mistakes("t.toml", &text)).is_empty());
    }
    // Half a minute each on a slow machine without optimisation: what matters is that it is not hours.
    assert!(started.elapsed().as_secs() < 300, "{:?}", started.elapsed());
}

#[test]
fn both_wildcards_stand_side_by_side() {
    let text = "[listener.web]\nbind = [\"0.0.0.0:80\", \"[::]:80\", \"127.0.0.1:81\", \"127.0.0.2:81\", \"[::1]:81\"]\n\
                pool = \"web\"\n[pool.web]\nservers = [\"192.0.2.1:80\"]\n";
    let loaded = config::parse("t.toml", text).unwrap();
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.plan.listeners[0].bind.len(), 5);
}

#[test]
fn a_listener_takes_so_many_routes_and_no_more() {
    let of = |count: usize| -> String {
        let route =
            |number| format!("[[listener.web.route]]\nfrom = [\"10.0.{number}.0/24\"]\npool = \"web\"\n");
        let routes: String = (0..count.min(256)).map(route).collect();
        let more = if count > 256 { "[[listener.web.route]]\nreject = true\n" } else { "" };
        format!(
            "[listener.web]\nbind = [\"127.0.0.1:80\"]\n{routes}{more}[pool.web]\nservers = [\"192.0.2.1:80\"]\n"
        )
    };
    let loaded = config::parse("t.toml", &of(256)).unwrap();
    assert_eq!((loaded.plan.listeners[0].routes.len(), loaded.warnings.is_empty()), (256, true));
    let found = mistakes_of(&of(257));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].code, found[0].label.as_deref()), (Code::OutOfRange, Some("at most 256")));
}

fn check_spans(text: &str) {
    let found = mistakes("t.toml", text);
    for mistake in found.iter() {
        let others =
            mistake.also.iter().map(|(span, _)| span).chain(mistake.patch.iter().map(|patch| &patch.span));
        for span in others.chain([&mistake.span]) {
            assert!(span.start <= span.end && text.get(span.clone()).is_some(), "{mistake:?} in {text:?}");
        }
    }
    for format in [Format::Human, Format::Json, Format::Github] {
        assert_eq!(
            found.render(format, Colour::Plain).is_empty(),
            found.is_empty() && format != Format::Json
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_a_mistake_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check_spans(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn random_toml_is_a_mistake_and_no_panic(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "\n", "\"", "'", "\"\"\"", "'''", "\\", "#", " ",
                "listener", "pool", "web", "bind", "servers", "\"127.0.0.1:80\"", "1", "2s", "true", "\r\n", "é",
                "[listener.web]\n", "[pool.web]\n", "pool = \"web\"\n", "retry = ", "{ attempts = ", "-", "\u{feff}",
            ]),
            0..60,
        )
    ) {
        check_spans(&pieces.concat());
    }

    #[test]
    fn a_mutated_configuration_is_no_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..40usize, "[\\[\\]{}=.,\n\"'#a0 é\\\\-]{0,4}"), 1..6)
    ) {
        let mut text = include_str!("../conf/tidegate.toml").to_owned();
        for (place, length, replacement) in edits {
            let start = text.floor_char_boundary(place.index(text.len() + 1));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end, &replacement);
        }
        check_spans(&text);
    }
}
