//! `[process]`, `[admin]` and `[log]`: what holds for the daemon as a whole.

use std::ops::Range;

use super::address::address;
use super::keys;
use super::leaf::{self, Span};
use super::section::{Field, Section, nearest};
use crate::config::file::{Kind, Table};
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::{
    AccessLog, AccessOutput, AccessWhen, Admin, Auto, Io, Level, Log, LogFormat, Process,
};

/// Far more threads than cores only cost; a number beyond this is a slip.
const WORKERS_MAX: i64 = 1024;

/// `[admin]`, with the place of its port.
#[derive(Debug)]
pub struct AdminAt {
    pub plan: Admin,
    pub http_span: Option<Range<usize>>,
}

pub fn process(root: &Section<'_>, found: &mut Mistakes) -> Process {
    let mut process = Process::default();
    for table in tables(root, "process", found) {
        let section = Section::read("process", table, &keys::PROCESS, found);
        if let Some(field) = section.get("workers") {
            process.workers = count(field, WORKERS_MAX, found).unwrap_or(process.workers);
        }
        if let Some(field) = section.get("pin_workers") {
            process.pin_workers = leaf::boolean(field, found).unwrap_or(process.pin_workers);
        }
        if let Some(field) = section.get("io") {
            process.io = io(field, found).unwrap_or(process.io);
        }
        if let Some(field) = section.get("max_connections") {
            process.max_connections = count(field, leaf::COUNT_MAX, found).unwrap_or(process.max_connections);
        }
        // Zero is allowed for both: it means at once.
        if let Some(field) = section.get("drain_timeout") {
            process.drain_timeout = leaf::duration(field, Span::Any, found).unwrap_or(process.drain_timeout);
        }
        if let Some(field) = section.get("ready_delay") {
            process.ready_delay = leaf::duration(field, Span::Any, found).unwrap_or(process.ready_delay);
        }
    }
    process
}

/// A number from 1 on, or `"auto"`.
fn count(field: Field<'_>, most: i64, found: &mut Mistakes) -> Option<Auto<usize>> {
    leaf::auto_or(field, found, |field, found| leaf::count(field, most, found))
}

fn io(field: Field<'_>, found: &mut Mistakes) -> Option<Auto<Io>> {
    let written = leaf::text(field, "a word such as \"auto\"", found)?;
    if written == "auto" {
        return Some(Auto::Auto);
    }
    if let Some(io) = Io::ALL.iter().find(|io| io.word() == written) {
        return Some(Auto::Set(*io));
    }
    let mut words = vec!["auto"];
    words.extend(Io::ALL.iter().map(|io| io.word()));
    found.add(leaf::unknown_word(field, written, &words, &[]));
    None
}

pub fn admin(root: &Section<'_>, found: &mut Mistakes) -> AdminAt {
    let mut admin = AdminAt { plan: Admin::default(), http_span: None };
    for table in tables(root, "admin", found) {
        let section = Section::read("admin", table, &keys::ADMIN, found);
        if let Some(field) = section.get("socket") {
            admin.plan.socket = if is_off(field) { None } else { leaf::path(field, true, found) };
        }
        if let Some(field) = section.get("http").filter(|field| !is_off(*field)) {
            admin.plan.http = address(field.value, found);
            admin.http_span = Some(field.value.span.clone());
        }
    }
    admin
}

pub fn log(root: &Section<'_>, found: &mut Mistakes) -> Log {
    let mut log = Log::default();
    for table in tables(root, "log", found) {
        let section = Section::read("log", table, &keys::LOG, found);
        if let Some(field) = section.get("level") {
            let read = leaf::word(field, Level::ALL, Level::word, keys::FOREIGN_LEVEL, found);
            log.level = read.unwrap_or(log.level);
        }
        if let Some(field) = section.get("format") {
            log.format = format(field, found).unwrap_or(log.format);
        }
        if let Some(field) = section.get("access") {
            log.access = access(field, found);
        }
    }
    log
}

fn format(field: Field<'_>, found: &mut Mistakes) -> Option<LogFormat> {
    leaf::word(field, LogFormat::ALL, LogFormat::word, keys::FOREIGN_FORMAT, found)
}

fn access(field: Field<'_>, found: &mut Mistakes) -> AccessLog {
    let mut access = AccessLog::default();
    let table = match &field.value.kind {
        Kind::Text(text) => {
            let better = format!("{{ output = {} }}", toml::Value::from(text.as_str()));
            let mistake = field.wrong_type("a table").help("the table has a key for it");
            found.add(mistake.patch(field.value.span.clone(), better));
            return access;
        }
        _ => match leaf::table(field, "a table", found) {
            Some(table) => table,
            None => return access,
        },
    };
    let section = Section::read("log.access", table, &keys::ACCESS, found);
    if let Some(field) = section.get("output") {
        access.output = output(field, found).unwrap_or(access.output);
    }
    if let Some(field) = section.get("format") {
        access.format = format(field, found).unwrap_or(access.format);
    }
    if let Some(field) = section.get("when") {
        let read = leaf::word(field, AccessWhen::ALL, AccessWhen::word, keys::FOREIGN_WHEN, found);
        access.when = read.unwrap_or(access.when);
    }
    access
}

/// `"stdout"`, `"off"` or a path. A lone word is taken for a slip rather than for a file's name.
fn output(field: Field<'_>, found: &mut Mistakes) -> Option<AccessOutput> {
    let written = leaf::text(field, "a path, \"stdout\" or \"off\"", found)?;
    match written {
        "stdout" => return Some(AccessOutput::Stdout),
        "off" => return Some(AccessOutput::Off),
        _ if written.is_empty() || written.contains(['/', '.']) => {}
        _ => {
            let message = format!("unknown value {} for `output`", quoted(written));
            let mistake = Mistake::new(Code::UnknownWord, field.value.span.clone(), message);
            found.add(match nearest(written, ["stdout", "off"].into_iter()) {
                Some(word) => mistake
                    .help(format!("did you mean \"{word}\"?"))
                    .patch(field.value.span.clone(), format!("\"{word}\"")),
                None => mistake.help("write \"stdout\", \"off\", or a path that begins with `/`"),
            });
            return None;
        }
    }
    leaf::path(field, false, found).map(AccessOutput::File)
}

fn is_off(field: Field<'_>) -> bool {
    matches!(&field.value.kind, Kind::Text(text) if text == "off")
}

fn tables<'f>(root: &Section<'f>, key: &'static str, found: &mut Mistakes) -> Vec<&'f Table> {
    let wanted = "a table";
    root.all(key).filter_map(|field| leaf::table(field, wanted, found)).collect()
}
