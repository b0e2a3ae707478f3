//! The configuration as written: the operator's tables, keys and values, each with its place.
//!
//! Knows TOML and nothing of Tidegate. Syntax errors do not end the reading: the statement at
//! fault is taken out and the rest is read again, so that one run finds them all.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::mistake::Mistakes;
use super::syntax;

/// What could be read of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    pub root: Table,
    /// Whether nothing had to be taken out.
    pub is_whole: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The header, the inline table, or the key that implies it.
    pub span: Range<usize>,
    /// In order of the file.
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_span: Range<usize>,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub span: Range<usize>,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Text(String),
    /// Numbers beyond 64 bits become the largest or smallest: out of range for every key.
    Integer(i64),
    Float(String),
    Boolean(bool),
    Date,
    Array(Vec<Value>),
    Table(Table),
}

impl Kind {
    /// As in "this is ...".
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Text(_) => "a text",
            Kind::Integer(_) => "a number",
            Kind::Float(_) => "a fraction",
            Kind::Boolean(_) => "true or false",
            Kind::Date => "a date",
            Kind::Array(_) => "a list",
            Kind::Table(_) => "a table",
        }
    }
}

impl File {
    /// Reads what can be read, and adds what cannot to the mistakes.
    pub fn read(text: &str, mistakes: &mut Mistakes) -> File {
        let mut rest = text.to_owned();
        for _ in 0..syntax::rounds(text.len()) {
            let (tree, errors) = DeTable::parse_recoverable(&rest);
            if errors.is_empty() {
                return File { root: table(tree.get_ref(), 0..0), is_whole: rest == text };
            }
            let error = syntax::first(&rest, tree.get_ref(), &errors);
            let is_out = error.statement.clone();
            mistakes.add(error.mistake);
            if !syntax::take_out(&mut rest, &is_out) {
                break;
            }
        }
        let (tree, _) = DeTable::parse_recoverable("");
        File { root: table(tree.get_ref(), 0..0), is_whole: false }
    }
}

fn table(table: &DeTable<'_>, span: Range<usize>) -> Table {
    let mut entries: Vec<_> = table
        .iter()
        .map(|(key, found)| Entry {
            key: key.get_ref().to_string(),
            key_span: key.span(),
            value: value(found.get_ref(), found.span()),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_span.start);
    Table { span, entries }
}

fn value(found: &DeValue<'_>, span: Range<usize>) -> Value {
    let kind = match found {
        DeValue::String(text) => Kind::Text(text.to_string()),
        DeValue::Integer(number) => Kind::Integer(integer(number.as_str(), number.radix())),
        DeValue::Float(number) => Kind::Float(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Kind::Boolean(*flag),
        DeValue::Datetime(_) => Kind::Date,
        DeValue::Array(items) => {
            Kind::Array(items.iter().map(|item| value(item.get_ref(), item.span())).collect())
        }
        DeValue::Table(inner) => Kind::Table(table(inner, span.clone())),
    };
    Value { span, kind }
}

fn integer(digits: &str, radix: u32) -> i64 {
    let beyond = if digits.starts_with('-') { i64::MIN } else { i64::MAX };
    i64::from_str_radix(digits, radix).unwrap_or(beyond)
}
