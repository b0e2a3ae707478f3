//! From the file as written to the plan as meant, or to every mistake in it.
//!
//! Never stops at a mistake: a value that cannot be read is reported and stands in as its
//! default, so that the checks behind it still run. Such a plan is thrown away at the end.

mod across; // what must fit together: pools, ports, loops
mod address; // an IP address and a port
mod admission; // who may come in at a listener
mod common; // [defaults], and what listeners and pools share
mod health_check; // [pool.NAME.health_check]: its pace
pub mod keys; // which keys there are, and what others call them
mod leaf; // single values
mod login; // who logs in for a check, and the file of the password
mod listener; // [listener.NAME]
mod route; // [[listener.NAME.route]], and where else a listener's clients go
mod taken; // and which of its routes is never reached
mod priority; // who comes first when room is short
mod pool; // [pool.NAME] and its servers
mod prefix; // a network of addresses
mod survival; // what a pool does about servers that fail
mod probe; // and what it asks
mod process; // [process], [admin], [log]
mod tls; // who a server must prove to be
mod steps; // of a check in the operator's own words
mod fallback; // from pool to pool, without coming back
mod harm; // what is allowed and does harm
mod section; // one table under its rules

use super::file::{Entry, File, Kind, Value};
use super::mistake::{Code, Mistake, Mistakes, quoted};
use super::plan::Plan;
use section::{Field, Section};

/// Letters of a name: it becomes a metric label and a field of every log line.
const NAME_MAX: usize = 64;

/// Adds every mistake of meaning to `found`. The plan holds only if no error is among them.
pub fn check(file: &File, found: &mut Mistakes) -> Plan {
    let root = Section::read("", &file.root, &keys::ROOT, found);
    let process = process::process(&root, found);
    let admin = process::admin(&root, found);
    let log = process::log(&root, found);
    let common = common::defaults(&root, found);
    let listeners: Vec<_> = named(&root, "listener", found)
        .iter()
        .map(|entry| listener::listener(entry, &common, found))
        .collect();
    let pools: Vec<_> =
        named(&root, "pool", found).iter().map(|entry| pool::pool(entry, &common, found)).collect();

    if file.root.entries.is_empty() {
        found.add(empty());
    } else if listeners.is_empty() && root.get("listener").is_none_or(|field| is_table(field.value)) {
        let mistake = Mistake::new(Code::NoListener, 0..0, "no listener: nobody could connect");
        found.add(mistake.help("add a table `[listener.NAME]` with `bind` and `pool`"));
    }
    across::check(&process, &admin, &listeners, &pools, found);
    Plan {
        process,
        admin: admin.plan,
        log,
        listeners: listeners.into_iter().map(|listener| listener.plan).collect(),
        pools: pools.into_iter().map(|pool| pool.plan).collect(),
    }
}

/// What to say of a file without a word.
pub fn empty() -> Mistake {
    Mistake::new(Code::Empty, 0..0, "the configuration is empty").help(
        "the smallest one is\n\n[listener.web]\nbind = [\"0.0.0.0:80\"]\npool = \"web\"\n\n\
         [pool.web]\nservers = [\"192.0.2.10:8080\"]",
    )
}

/// The tables below `[listener.…]` or `[pool.…]`, in order of the file.
fn named<'f>(root: &Section<'f>, kind: &'static str, found: &mut Mistakes) -> Vec<&'f Entry> {
    let mut entries = Vec::new();
    for field in root.all(kind) {
        match &field.value.kind {
            Kind::Table(table) => entries.extend(&table.entries),
            _ => found.add(unnamed(field)),
        }
    }
    entries.sort_by_key(|entry| entry.key_span.start);
    entries
}

fn is_table(value: &Value) -> bool {
    matches!(value.kind, Kind::Table(_))
}

fn unnamed(field: Field<'_>) -> Mistake {
    let header = format!("[{}.NAME]", field.key);
    field
        .wrong_type("a table for each")
        .help(format!("each {} has a table of its own: `{header}`", field.key))
}

/// Reports a name that could not stand in a label, a log field or a command.
fn check_name(name: &str, what: &str, span: std::ops::Range<usize>, found: &mut Mistakes) {
    let is_right = |letter: char| {
        letter.is_ascii_alphanumeric()
            || "_.:-".contains(letter)
            || (what == "server" && "[]".contains(letter))
    };
    let label = if name.is_empty() {
        "empty".to_owned()
    } else if name.len() > NAME_MAX {
        format!("{} bytes", name.len())
    } else {
        match name.chars().find(|letter| !is_right(*letter)) {
            None => return,
            Some(wrong) => format!("{wrong:?} is not allowed"),
        }
    };
    let message = format!("{} is no name for a {what}", quoted(name));
    let mistake = Mistake::new(Code::BadName, span, message).label(label);
    found.add(mistake.help("a name is 1 to 64 letters, digits, `_`, `.`, `:` or `-`"));
}
