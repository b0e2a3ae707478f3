//! What a health check asks: `type`, and the keys that belong to it.
//!
//! Each type has its own keys; one that belongs to another type is understood and has no effect,
//! which is worth a warning, because somebody believes in it.

use super::leaf::{self, Span};
use super::listener::missing;
use super::login::login;
use super::section::{Field, Section, listed};
use super::steps::steps;
use crate::config::file::{Kind, Value};
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::{
    CheckKind, Galera, Http, Method, Mysql, Postgres, Probe, Redis, Role, Smtp, Statuses,
};

/// Room for any path or text that an answer is known by; what is longer is a slip.
const TEXT_MAX: usize = 256;

/// What others call our types.
const FOREIGN_KIND: &[(&str, &str)] = &[
    ("httpchk", "http"),
    ("option-httpchk", "http"),
    ("connect", "tcp"),
    ("ssl", "tls"),
    ("ssl-hello-chk", "tls"),
    ("https", "http"),
    ("tcp-check", "send-expect"),
    ("smtpchk", "smtp"),
    ("mariadb", "mysql"),
    ("postgresql", "postgres"),
    ("pgsql", "postgres"),
    ("mysql-check", "mysql"),
    ("pgsql-check", "postgres"),
    ("redis-check", "redis"),
];

/// The keys that only some types take, and which.
const OWN_KEYS: &[(&str, &[CheckKind])] = &[
    ("method", &[CheckKind::Http]),
    ("path", &[CheckKind::Http]),
    ("host", &[CheckKind::Http]),
    ("expect", &[CheckKind::Http]),
    ("expect_body", &[CheckKind::Http]),
    ("expect_headers", &[CheckKind::Http]),
    ("role", &[CheckKind::Postgres, CheckKind::Mysql, CheckKind::Redis]),
    ("galera", &[CheckKind::Mysql]),
    ("max_lag", &[CheckKind::Postgres]),
    ("user", &[CheckKind::Postgres, CheckKind::Mysql, CheckKind::Redis]),
    ("password_file", &[CheckKind::Postgres, CheckKind::Mysql, CheckKind::Redis]),
    ("steps", &[CheckKind::SendExpect]),
    ("database", &[CheckKind::Postgres]),
    ("starttls", &[CheckKind::Smtp]),
];

/// Nothing where `type` is none, or where what it needs is missing: then a mistake says so.
pub fn probe(section: &Section<'_>, found: &mut Mistakes) -> Option<Probe> {
    let kind = match section.get("type") {
        Some(field) => kind(field, section.get("tls").is_some(), found)?,
        None => CheckKind::Tcp,
    };
    check_effect(section, kind, found);
    match kind {
        CheckKind::Tcp => Some(Probe::Tcp),
        CheckKind::SendExpect => steps(section, found).map(Probe::SendExpect),
        CheckKind::Tls => Some(Probe::Tls),
        CheckKind::Smtp => Some(Probe::Smtp(smtp(section, found))),
        CheckKind::Http => Some(Probe::Http(http(section, found))),
        CheckKind::Postgres => postgres(section, found).map(Probe::Postgres),
        CheckKind::Mysql => mysql(section, found).map(Probe::Mysql),
        CheckKind::Redis => {
            Some(Probe::Redis(Redis { login: login(section, found), role: role(section, found) }))
        }
    }
}

fn kind(field: Field<'_>, has_tls: bool, found: &mut Mistakes) -> Option<CheckKind> {
    match &field.value.kind {
        // The word alone would be asked in clear on a port for TLS.
        Kind::Text(word) if word.eq_ignore_ascii_case("https") && !has_tls => {
            let words: Vec<_> = CheckKind::ALL.iter().map(|kind| kind.word()).collect();
            let mistake = leaf::unknown_word(field, word, &words, FOREIGN_KIND);
            let help = "Tidegate calls it \"http\", with `tls = { verify = \"system\" }` beside it";
            found.add(mistake.help(help));
            None
        }
        _ => leaf::word(field, CheckKind::ALL, CheckKind::word, FOREIGN_KIND, found),
    }
}

fn check_effect(section: &Section<'_>, kind: CheckKind, found: &mut Mistakes) {
    for (key, kinds) in OWN_KEYS {
        let Some(field) = section.get(key).filter(|_| !kinds.contains(&kind)) else { continue };
        let words: Vec<_> = kinds.iter().map(|kind| kind.word()).collect();
        let message = format!("`{key}` has no effect");
        let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), message);
        let help = format!("it takes `type` = {}; else leave it out", listed(&words, '"', "or"));
        found.add(mistake.label(format!("the check is of type \"{kind}\"")).help(help));
    }
}

fn postgres(section: &Section<'_>, found: &mut Mistakes) -> Option<Postgres> {
    let postgres = Postgres {
        login: login(section, found),
        database: section.get("database").and_then(|field| some_text(field, "a name", found)),
        role: role(section, found),
        max_lag: section.get("max_lag").and_then(|field| leaf::duration(field, Span::Any, found)),
    };
    if let (Some(field), Some(Role::Primary)) = (section.get("max_lag"), postgres.role) {
        let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), "`max_lag` has no effect");
        found.add(
            mistake.label("a primary is behind nobody").help("it takes `role = \"replica\"`, or no role"),
        );
    }
    check_user(section, found);
    postgres.login.user.is_some().then_some(postgres)
}

/// A connection that ends before its login is one that MySQL counts against the host it came from.
fn mysql(section: &Section<'_>, found: &mut Mistakes) -> Option<Mysql> {
    let mysql = Mysql {
        login: login(section, found),
        role: role(section, found),
        galera: section
            .get("galera")
            .and_then(|field| leaf::word(field, Galera::ALL, Galera::word, FOREIGN_GALERA, found)),
    };
    check_user(section, found);
    mysql.login.user.is_some().then_some(mysql)
}

fn smtp(section: &Section<'_>, found: &mut Mistakes) -> Smtp {
    let starttls = section.get("starttls").and_then(|field| leaf::boolean(field, found));
    // Without TLS there is none to start: see `health_check.rs`.
    Smtp { starttls: starttls.unwrap_or_default() && section.get("tls").is_some() }
}

fn check_user(section: &Section<'_>, found: &mut Mistakes) {
    if section.get("user").is_none() {
        found.add(missing(section, "user", "user = \"tidegate\""));
    }
}

/// What others call the two states.
const FOREIGN_GALERA: &[(&str, &str)] =
    &[("sync", "synced"), ("donor", "synced-or-donor"), ("available-when-donor", "synced-or-donor")];

/// What others call the two.
const FOREIGN_ROLE: &[(&str, &str)] =
    &[("master", "primary"), ("slave", "replica"), ("standby", "replica"), ("secondary", "replica")];

fn role(section: &Section<'_>, found: &mut Mistakes) -> Option<Role> {
    leaf::word(section.get("role")?, Role::ALL, Role::word, FOREIGN_ROLE, found)
}

fn http(section: &Section<'_>, found: &mut Mistakes) -> Http {
    let mut http = Http::default();
    if let Some(field) = section.get("method") {
        let read = leaf::word(field, Method::ALL, Method::word, &[("get", "GET"), ("head", "HEAD")], found);
        http.method = read.unwrap_or(http.method);
    }
    if let Some(field) = section.get("path") {
        http.path = path(field, found).unwrap_or(http.path);
    }
    http.host = section.get("host").and_then(|field| visible(field, "a host name", found));
    if let Some(field) = section.get("expect") {
        http.expect = statuses(field, found).unwrap_or(http.expect);
    }
    http.expect_body = section.get("expect_body").and_then(|field| some_text(field, "a text", found));
    if let Some(field) = section.get("expect_headers") {
        http.expect_headers =
            leaf::list(field, found).iter().filter_map(|item| header(item, found)).collect();
    }
    if let (Some(field), Method::Head) = (section.get("expect_body"), http.method) {
        let message = "`expect_body` can never be met";
        let mistake = Mistake::new(Code::OutOfRange, field.value.span.clone(), message);
        found.add(mistake.label("an answer to HEAD has no body").help("use `method = \"GET\"`"));
    }
    http
}

fn path(field: Field<'_>, found: &mut Mistakes) -> Option<String> {
    let path = visible(field, "a path such as \"/healthz\"", found)?;
    if !path.starts_with('/') {
        let mistake = Mistake::new(Code::OutOfRange, field.value.span.clone(), "a path begins with `/`");
        found.add(mistake.patch(field.value.span.clone(), format!("\"/{path}\"")));
        return None;
    }
    Some(path)
}

/// A text that is not empty, not too long, and cannot end a line.
pub(super) fn some_text(field: Field<'_>, wanted: &str, found: &mut Mistakes) -> Option<String> {
    let text = leaf::text(field, wanted, found)?;
    let why = match () {
        () if text.is_empty() => "empty".to_owned(),
        () if text.len() > TEXT_MAX => format!("{} bytes; {TEXT_MAX} are allowed", text.len()),
        () => match text.chars().find(|c| c.is_control()) {
            None => return Some(text.to_owned()),
            Some(control) => format!("{control:?} is not allowed"),
        },
    };
    found.add(out_of_range(field, why));
    None
}

/// The same without spaces: a part of a line whose parts they separate.
fn visible(field: Field<'_>, wanted: &str, found: &mut Mistakes) -> Option<String> {
    let text = some_text(field, wanted, found)?;
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(text);
    }
    found.add(out_of_range(field, "a space or a letter that is not ASCII is not allowed"));
    None
}

fn out_of_range(field: Field<'_>, why: impl Into<String>) -> Mistake {
    let message = format!("`{}` cannot be used", field.key);
    Mistake::new(Code::OutOfRange, field.value.span.clone(), message).label(why)
}

/// `200`, `"200-299"`, or a list of them.
fn statuses(field: Field<'_>, found: &mut Mistakes) -> Option<Vec<Statuses>> {
    if let Kind::Integer(status) = field.value.kind {
        let mistake = field.wrong_type("a list").help("put it in brackets");
        found.add(mistake.patch(field.value.span.clone(), format!("[{status}]")));
        return None;
    }
    let items = leaf::list(field, found);
    if items.is_empty() && matches!(field.value.kind, Kind::Array(_)) {
        let mistake = Mistake::new(Code::EmptyList, field.value.span.clone(), "no status would be right");
        found.add(mistake.help("for example [200, \"300-399\"]"));
    }
    let read: Vec<_> = items.iter().filter_map(|item| status(item, found)).collect();
    (!read.is_empty()).then_some(read)
}

fn status(item: &Value, found: &mut Mistakes) -> Option<Statuses> {
    let number = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    let (read, written): (Option<Statuses>, String) = match &item.kind {
        Kind::Integer(status) => {
            let status = number(&status.to_string());
            (status.map(|status| Statuses(status..=status)), found.text[item.span.clone()].to_owned())
        }
        Kind::Text(text) => {
            let (start, end) = text.split_once('-').unwrap_or((text, text));
            let range = number(start).zip(number(end)).filter(|(start, end)| start <= end);
            (range.map(|(start, end)| Statuses(start..=end)), text.clone())
        }
        _ => (None, found.text[item.span.clone()].to_owned()),
    };
    if read.is_none() {
        let message = format!("{} is no status of HTTP", quoted(&written));
        let mistake = Mistake::new(Code::OutOfRange, item.span.clone(), message);
        let (label, better) = meant_statuses(&written);
        found.add(match better {
            Some(better) => mistake.label(label).patch(item.span.clone(), format!("\"{better}\"")),
            None => mistake.label(label).help("for example 200, or \"200-299\" for a range"),
        });
    }
    read
}

/// What is wrong with it, and what to write where that is plain: `2xx`, or a range that ends before it begins.
fn meant_statuses(written: &str) -> (&'static str, Option<String>) {
    let is_status = |text: &&str| text.parse().is_ok_and(|status: u16| (100..=599).contains(&status));
    if let Some(class) = written.to_ascii_lowercase().strip_suffix("xx")
        && ["1", "2", "3", "4", "5"].contains(&class)
    {
        return ("a range is written with both of its ends", Some(format!("{class}00-{class}99")));
    }
    match written.split_once('-').map(|(start, end)| (start.trim(), end.trim())) {
        Some((start, end)) if is_status(&start) && is_status(&end) => {
            let (least, most) = if start <= end { (start, end) } else { (end, start) };
            ("a range is its lower end, `-` and its upper end", Some(format!("{least}-{most}")))
        }
        _ => ("from 100 to 599", None),
    }
}

/// `"Name"` or `"Name: value"`.
fn header(item: &Value, found: &mut Mistakes) -> Option<(String, Option<String>)> {
    let text = some_text(Field { key: "expect_headers", value: item }, "a text", found)?;
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => (name, Some(value.trim().to_owned())),
        None => (text.as_str(), None),
    };
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        let message = format!("{} names no header", quoted(&text));
        let mistake = Mistake::new(Code::OutOfRange, item.span.clone(), message);
        found.add(mistake.help("for example \"X-Role: primary\", or \"X-Role\" for any value"));
        return None;
    }
    Some((name.to_owned(), value))
}
