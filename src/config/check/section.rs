//! One table of the file under its rules: which keys it has, and what to say of the others.
//!
//! A key whose meaning can be guessed is a mistake, but is read as what it was meant to be:
//! else the missing right one would be reported, too.

use std::ops::Range;

use super::keys::{Keys, TABLES};
use crate::config::file::{Entry, Kind, Table, Value};
use crate::config::mistake::{Code, Mistake, Mistakes, SECRETS, quoted};

/// Names that are compared with a misspelt one, at the most.
const COMPARED_MAX: usize = 200;

/// A table whose keys are known by now.
#[derive(Debug)]
pub struct Section<'f> {
    /// As in `pool.web`.
    pub name: String,
    pub span: Range<usize>,
    fields: Vec<(&'static str, &'f Value)>,
    /// Keys that are written as something else; that is reported already.
    guessed: Vec<&'static str>,
}

/// A value and what it is called: its key, with the tables above it.
#[derive(Clone, Copy, Debug)]
pub struct Field<'f> {
    pub key: &'static str,
    pub value: &'f Value,
}

impl<'f> Section<'f> {
    pub fn read(
        name: impl Into<String>,
        table: &'f Table,
        keys: &'static Keys,
        found: &mut Mistakes,
    ) -> Self {
        let mut section =
            Section { name: name.into(), span: table.span.clone(), fields: Vec::new(), guessed: Vec::new() };
        for entry in &table.entries {
            let known = keys.names.iter().find(|name| **name == entry.key);
            let meant = match known {
                Some(name) => Some(*name),
                None => section.unknown(entry, table, keys, found),
            };
            section.guessed.extend(meant.filter(|_| known.is_none()));
            section.fields.extend(meant.map(|name| (name, &entry.value)));
        }
        section
    }

    pub fn get(&self, key: &'static str) -> Option<Field<'f>> {
        self.all(key).next()
    }

    /// Whether the key goes by another name here.
    pub fn is_guessed(&self, key: &str) -> bool {
        self.guessed.contains(&key)
    }

    /// Also under the foreign names of the key: `[pool.a]` and `[backend.b]`.
    pub fn all(&self, key: &'static str) -> impl Iterator<Item = Field<'f>> {
        let of_key = move |field: &&(&'static str, &'f Value)| field.0 == key;
        self.fields.iter().filter(of_key).map(|(key, value)| Field { key, value })
    }

    /// Reports a key that does not belong here; gives what it was meant to be, if that is plain.
    fn unknown(
        &self,
        entry: &Entry,
        table: &Table,
        keys: &Keys,
        found: &mut Mistakes,
    ) -> Option<&'static str> {
        if found.is_full() {
            return None;
        }
        let place = if self.name.is_empty() { "the file".to_owned() } else { format!("`{}`", self.name) };
        let message = format!("unknown key {} in {place}", quoted(&entry.key));
        let mistake = Mistake::new(Code::UnknownKey, entry.key_span.clone(), message);
        let word = entry.key.to_ascii_lowercase().replace('-', "_");
        if keys.names.contains(&"password_file") && SECRETS.contains(&word.as_str()) {
            let help = "write it into a file of its own, one line, and name that with `password_file`";
            found.add(mistake.label("a password has no place in here").help(help));
            return None;
        }
        match meant(&word, keys) {
            Meant::Foreign(ours) => {
                let mistake = mistake.label(format!("Tidegate calls it `{ours}`"));
                report_each(&mistake, entry, ours, found);
                Some(ours)
            }
            Meant::Misspelt(ours) if table.entries.iter().any(|entry| entry.key == ours) => {
                found.add(mistake.help(format!("`{ours}` is there already")));
                None
            }
            Meant::Misspelt(ours) => {
                report_each(&mistake.help(format!("did you mean `{ours}`?")), entry, ours, found);
                Some(ours)
            }
            Meant::Elsewhere(home) => {
                found.add(belongs_elsewhere(mistake, &word, home, keys));
                None
            }
            Meant::Nothing => {
                found.add(mistake.help(format!("{} takes {}", title(keys), listed(keys.names, '`', "and"))));
                None
            }
        }
    }
}

/// What an unknown key may have been meant to be.
enum Meant {
    /// The word that others use for one of ours.
    Foreign(&'static str),
    Misspelt(&'static str),
    /// A key of another table.
    Elsewhere(&'static Keys),
    Nothing,
}

fn meant(word: &str, keys: &Keys) -> Meant {
    if let Some((_, ours)) = keys.foreign.iter().find(|(foreign, _)| *foreign == word) {
        return Meant::Foreign(ours);
    }
    // `connect-timeout` where `connect_timeout` is a key: no need to look elsewhere.
    if let Some(ours) = keys.names.iter().find(|name| **name == word) {
        return Meant::Misspelt(ours);
    }
    if let Some(home) = TABLES.iter().find(|table| table.names.contains(&word)) {
        return Meant::Elsewhere(home);
    }
    nearest(word, keys.names.iter().copied()).map_or(Meant::Nothing, Meant::Misspelt)
}

fn title(keys: &Keys) -> String {
    if keys.header.starts_with('[') { format!("`{}`", keys.header) } else { keys.header.to_owned() }
}

fn belongs_elsewhere(mistake: Mistake, key: &str, home: &Keys, here: &Keys) -> Mistake {
    let wanted = match (here.header, key) {
        // The one key with the same meaning in three tables, and for good reason in no default.
        ("[defaults]", "max_connections") => "a limit is set where it holds: in `[process]`, \
            in each `[listener.NAME]`, or for each server"
            .to_owned(),
        ("[pool.NAME]", "max_connections") => "a limit is set where it holds: for each server in `servers`, \
            or in the `[listener.NAME]` that uses the pool"
            .to_owned(),
        ("[defaults]", _) => format!("`{key}` has no common default: it belongs in {}", title(home)),
        _ => format!("`{key}` belongs in {}", title(home)),
    };
    mistake.help(wanted)
}

/// A table may have several headers (`[backend.a]`, `[backend.b]`); each is named and gets its patch.
fn report_each(mistake: &Mistake, entry: &Entry, ours: &str, found: &mut Mistakes) {
    let mut spans = vec![entry.key_span.clone()];
    if let Kind::Table(table) = &entry.value.kind {
        let headers = table.entries.iter().filter_map(|child| header_key(entry, child, found));
        spans.extend(headers);
    }
    spans.sort_by_key(|span| span.start);
    spans.dedup();
    for span in spans {
        let text = if span.len() == entry.key.len() { ours.to_owned() } else { format!("\"{ours}\"") };
        found.add(Mistake { span: span.clone(), ..mistake.clone() }.patch(span, text));
    }
}

/// Where a child's header repeats the key of its parent.
fn header_key(parent: &Entry, child: &Entry, found: &Mistakes) -> Option<Range<usize>> {
    let span = match &child.value.kind {
        Kind::Table(table) => table.span.clone(),
        _ => return None,
    };
    let header = found.text.get(span.clone())?;
    let inner = header.trim_start_matches(['[', ' ', '\t']);
    let start = span.start + (header.len() - inner.len());
    (header.starts_with('[') && inner.starts_with(&parent.key)).then(|| start..start + parent.key.len())
}

/// The most similar of some names, if it is similar at all.
pub fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let most = (word.chars().count() / 3).max(1);
    names
        .take(COMPARED_MAX)
        .filter(|name| name.len().abs_diff(word.len()) <= most)
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `a`, `b` and `c`, each in the given quote.
pub fn listed(names: &[&str], quote: char, conjunction: &str) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("{quote}{name}{quote}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {conjunction} {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}
