//! Errors of syntax: which of them is the cause, what to say of it, and which lines to take out
//! so that the rest can be read without its echo.
//!
//! The parser recovers by itself, but after a bracket that is never closed it reports each line
//! that follows. So only its first error counts; then the statement at fault makes way.

use std::cell::LazyCell;
use std::ops::Range;

use toml::de::{DeTable, DeValue, Error};

use super::mistake::{Code, Mistake};

/// Errors of syntax that are looked for in one file, at the most: each costs another reading.
const ROUNDS_MAX: usize = 40;
/// Bytes that these readings go through together.
const WORK_MAX: usize = 32 * 1024 * 1024;
/// One error, and the lines that it makes unreadable.
pub struct SyntaxError {
    pub mistake: Mistake,
    pub statement: Range<usize>,
}

/// How often a text of that length may be read.
pub fn rounds(length: usize) -> usize {
    (WORK_MAX / length.max(1)).clamp(2, ROUNDS_MAX)
}

/// The error that comes first, as a mistake.
pub fn first(text: &str, tree: &DeTable<'_>, errors: &[Error]) -> SyntaxError {
    let deepest = LazyCell::new(|| deepest_line(text));
    let span_of = |error: &Error| sound(text, error.span().unwrap_or_else(|| deepest.clone()));
    let opened = errors
        .iter()
        .filter(|error| error.message().starts_with("unclosed array,") || is_open_table(error))
        .filter_map(|error| enclosing(text, tree, span_of(error).start))
        .min_by_key(|value| value.start);
    let first = errors.iter().min_by_key(|error| span_of(error).start);
    let at = first.map_or(0..0, span_of);
    let swallowed = enclosing(text, tree, at.start).filter(|list| is_swallowed(text, list, at.start));
    match (opened.or(swallowed), first) {
        (Some(opened), _) if opened.start <= at.start => unclosed(text, &opened),
        (_, Some(first)) => SyntaxError {
            statement: statement(text, tree, &at),
            mistake: explained(text, tree, at, first.message()),
        },
        (_, None) => unclosed(text, &at),
    }
}

/// Blanks the lines, so that all other places stay what they are. False if they were blank already.
pub fn take_out(text: &mut String, statement: &Range<usize>) -> bool {
    let is_anything = !text[statement.clone()].trim().is_empty();
    let lines = &text[statement.clone()];
    let blank: String = lines.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
    text.replace_range(statement.clone(), &blank);
    is_anything
}

/// Where the nesting is that the parser refuses without saying where.
fn deepest_line(text: &str) -> Range<usize> {
    let mut start = 0;
    let lines = text.split_inclusive('\n').map(|line| {
        start += line.len();
        (
            line.matches(['.', '[', '{']).count(),
            start - line.len()..start - line.len() + line.trim_end().len(),
        )
    });
    lines.max_by_key(|(depth, _)| *depth).map_or(0..0, |(_, line)| line)
}

/// A list that holds what looks like the next statement was meant to end before it: brackets
/// further down may close it, though not where the operator thought.
fn is_swallowed(text: &str, list: &Range<usize>, at: usize) -> bool {
    let line = text[line_start(text, at)..line_end(text, at)].trim();
    let is_below = text[list.start..at.max(list.start)].contains('\n');
    is_below && text[list.start..].starts_with('[') && (is_header(line) || is_assignment(line))
}

fn is_open_table(error: &Error) -> bool {
    error.message().starts_with("unclosed inline table")
}

fn unclosed(text: &str, value: &Range<usize>) -> SyntaxError {
    let bracket = value.start..(value.start + 1).min(text.len());
    let (message, closing) = match text.get(bracket.clone()) {
        Some("{") => ("this table is never closed", "}"),
        _ => ("this list is never closed", "]"),
    };
    let statement = line_start(text, value.start)..next_statement(text, value.start);
    let mistake = Mistake::new(Code::Syntax, bracket, message).label(format!("its `{closing}` is missing"));
    SyntaxError { mistake, statement }
}

/// The parser's words, where needed in ours; and what to do about it.
fn explained(text: &str, tree: &DeTable<'_>, span: Range<usize>, message: &str) -> Mistake {
    let found = &text[span.clone()];
    let token = token(text, span.start);
    let syntax = |message: &str| Mistake::new(Code::Syntax, span.clone(), message);
    if let Some(mistake) = colon(text, span.start) {
        return mistake;
    }
    if let Some(mistake) = half_quoted(text, &token).or_else(|| curly_quoted(text, &span)) {
        return mistake;
    }
    match message.split_once(", expected ").unwrap_or((message, "")) {
        ("duplicate key", _) => duplicate(text, tree, span),
        ("string values must be quoted", _) if found.is_empty() => {
            syntax("the value is missing").label("expected a value")
        }
        ("string values must be quoted", _) => unquoted(span.clone(), found),
        (problem, _) if problem.starts_with("invalid ") && looks_like_text(&text[token.clone()]) => {
            unquoted(token.clone(), &text[token])
        }
        ("invalid basic string" | "invalid literal string", "`\"`" | "`'`") => {
            syntax("the closing quote is missing").label("the text should have ended by here")
        }
        ("missing opening quote", "`\"`" | "`'`") => {
            let mistake = syntax("the opening quote is missing").label("the text should have begun here");
            match text[token.end..].chars().next().filter(|letter| "\"'".contains(*letter)) {
                Some(quote) => mistake.patch(token.start..token.start, quote),
                None => mistake,
            }
        }
        ("key with no value", _) => syntax("the key has no value")
            .label("expected `=` and a value")
            .help("TOML is written `key = value`, below a `[table]`"),
        // The parser's own bound (80) on what would use up the stack.
        (problem, _) if problem.contains("recursion") || problem.contains("recurse") => {
            syntax("nested too deep").label("Tidegate's tables nest four deep at the most")
        }
        ("extra `=`", _) => syntax("one `=` too many"),
        ("unclosed table" | "unclosed array table", wanted) => {
            syntax("the header is never closed").label(format!("expected {wanted}"))
        }
        ("missing comma between array elements", _) => {
            syntax("a comma is missing between two items").label("expected `,` before this")
        }
        ("unexpected key or value", _) => {
            syntax("more than one statement on a line").label("expected a new line")
        }
        (problem, "" | "nothing") => syntax(problem),
        (problem, wanted) => syntax(problem).label(format!("expected {wanted}")),
    }
}

fn unquoted(span: Range<usize>, written: &str) -> Mistake {
    let mistake = Mistake::new(Code::Syntax, span.clone(), "a text value needs quotes");
    mistake.patch(span, in_quotes(written))
}

fn in_quotes(written: &str) -> String {
    format!("\"{}\"", written.trim_matches('\'').replace(['"', '\\'], ""))
}

/// `key: value`, as others write it.
fn colon(text: &str, at: usize) -> Option<Mistake> {
    let start = line_start(text, at);
    let line = text[start..line_end(text, at)].split('#').next().unwrap_or_default().trim_end();
    let indent = line.len() - line.trim_start().len();
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
    let key = line[indent..].split(|letter| !is_bare(letter)).next().filter(|key| !key.is_empty())?;
    let rest = line[indent + key.len()..].trim_start().strip_prefix(':')?;
    if rest.starts_with(|letter: char| !letter.is_whitespace() && !"\"'[{".contains(letter)) {
        return None; // an address, or a word of its own
    }
    let value = rest.trim();
    let is_value = value.parse::<f64>().is_ok()
        || ["true", "false"].contains(&value)
        || value.starts_with(['"', '\'', '[', '{']);
    let value = if is_value { value.to_owned() } else { in_quotes(value) };
    let span = start + indent..start + line.len();
    let mistake = Mistake::new(Code::Syntax, span.clone(), "a key and its value are joined by `=`");
    Some(mistake.patch(span, format!("{key} = {value}")))
}

/// A text that begins with a quote and has no other: `'word`.
fn half_quoted(text: &str, last_word: &Range<usize>) -> Option<Mistake> {
    let line = line_start(text, last_word.start)..line_end(text, last_word.start);
    let (before, after) = (&text[line.start..last_word.start], &text[last_word.end..line.end]);
    let is_last = |rest: &str| rest.is_empty() || rest.starts_with([',', ']', '}', '#']);
    if last_word.is_empty() || !is_last(after.trim()) || after.contains(['"', '\'']) {
        return None;
    }
    let quotes = before.chars().filter(|letter| "\"'".contains(*letter));
    let quote = quotes.fold(None, |open, quote| match open {
        None => Some(quote),
        Some(open) if open == quote => None, // it is closed
        within => within,
    })?;
    let mistake = Mistake::new(Code::Syntax, last_word.clone(), "the closing quote is missing");
    Some(mistake.patch(last_word.end..last_word.end, quote))
}

/// The quotes of a word processor.
fn curly_quoted(text: &str, span: &Range<usize>) -> Option<Mistake> {
    const CURLY: [char; 7] =
        ['\u{201c}', '\u{201d}', '\u{201e}', '\u{2018}', '\u{2019}', '\u{201a}', '\u{ab}'];
    let line = line_start(text, span.start)..line_end(text, span.start);
    let (first, _) = text[line.clone()].char_indices().find(|(_, letter)| CURLY.contains(letter))?;
    let (last, closing) = text[line.clone()]
        .char_indices()
        .rev()
        .find(|(_, letter)| CURLY.contains(letter) || *letter == '\u{bb}')?;
    let (start, end) = (line.start + first, line.start + last + closing.len_utf8());
    let is_about_it = start <= span.start && span.start < end;
    let inner = text.get(start..end)?.trim_matches(|letter| CURLY.contains(&letter) || letter == '\u{bb}');
    if !is_about_it || first == last || inner.contains(|letter| CURLY.contains(&letter)) {
        return None; // several on the line: each would need its own
    }
    let mistake = Mistake::new(Code::Syntax, start..end, "these are no quotes that TOML knows");
    Some(mistake.patch(start..end, in_quotes(inner)))
}

/// The whole of a bare value, of which the parser may name a part.
fn token(text: &str, at: usize) -> Range<usize> {
    let is_end = |letter: char| letter.is_whitespace() || ",[]{}=#\"'".contains(letter);
    let start =
        text[..at].rfind(is_end).map_or(0, |end| end + text[end..].chars().next().map_or(0, char::len_utf8));
    let end = text[at..].find(is_end).map_or(text.len(), |length| at + length);
    start..end
}

/// Addresses, durations and words, but no slip in a number.
fn looks_like_text(token: &str) -> bool {
    token.contains(|letter: char| letter.is_alphabetic() || letter == ':') || token.matches('.').count() > 1
}

fn duplicate(text: &str, tree: &DeTable<'_>, span: Range<usize>) -> Mistake {
    let key = &text[span.clone()];
    let name = super::mistake::quoted(key);
    if text[line_start(text, span.start)..].trim_start().starts_with('[') {
        let line = line_start(text, span.start)..line_end(text, span.start);
        let header = text[line.clone()].trim();
        let mistake = Mistake::new(Code::Duplicate, span, format!("the table {name} is defined twice"))
            .help("put all of its keys below one header, or give this one another name");
        return match text[..line.start]
            .match_indices(header)
            .map(|(at, _)| at)
            .find(|at| line_start(text, *at) == *at)
        {
            Some(first) => mistake.label("again").also(first..first + header.len(), "first here"),
            None => mistake,
        };
    }
    let mistake = Mistake::new(Code::Duplicate, span.clone(), format!("{name} is written twice"));
    match first_use(tree, key, span.start) {
        Some(first) => mistake.label("again").also(first, "first here"),
        None => mistake,
    }
}

/// The nearest place before `before` where the tree holds that key.
fn first_use(tree: &DeTable<'_>, key: &str, before: usize) -> Option<Range<usize>> {
    let here = tree.keys().filter(|found| found.get_ref() == key).map(toml::Spanned::span);
    let below = tree.values().filter_map(|value| match value.get_ref() {
        DeValue::Table(inner) => first_use(inner, key, before),
        _ => None,
    });
    here.chain(below).filter(|span| span.start < before).max_by_key(|span| span.start)
}

/// The lines that have to go: the whole value around the error, or else its line; a header at
/// fault takes its keys along, for they would end up in the table above.
fn statement(text: &str, tree: &DeTable<'_>, error: &Range<usize>) -> Range<usize> {
    if let Some(value) = enclosing(text, tree, error.start) {
        return line_start(text, value.start)..line_end(text, value.end);
    }
    // An error between two lines belongs to the one that it ends.
    let at = if text[..error.start].ends_with('\n') && error.is_empty() && error.start == text.len() {
        error.start.saturating_sub(1)
    } else {
        error.start
    };
    let start = line_start(text, at);
    if text[start..].trim_start_matches([' ', '\t']).starts_with('[') {
        return start..next_header(text, start);
    }
    start..line_end(text, at)
}

/// The outermost value in brackets or long quotes that an error lies within.
fn enclosing(text: &str, table: &DeTable<'_>, at: usize) -> Option<Range<usize>> {
    table.values().find_map(|value| {
        let span = value.span();
        match value.get_ref() {
            DeValue::Table(inner) if !text[span.start..].starts_with('{') => enclosing(text, inner, at),
            // An array of tables begins where the header of its first table does.
            DeValue::Array(items)
                if items.iter().next().is_some_and(|item| item.span().start == span.start) =>
            {
                items.iter().find_map(|item| enclosing(text, item.get_ref().as_table()?, at))
            }
            _ => (span.start <= at && at <= span.end && !span.is_empty()).then_some(span),
        }
    })
}

/// Where the next line begins that looks like a header or a key, for a bracket never closed.
fn next_statement(text: &str, from: usize) -> usize {
    next_line(text, from, |line| is_header(line) || is_assignment(line))
}

fn next_header(text: &str, from: usize) -> usize {
    next_line(text, from, is_header)
}

fn next_line(text: &str, from: usize, is_wanted: fn(&str) -> bool) -> usize {
    let mut start = line_end(text, from);
    while start < text.len() {
        let end = line_end(text, start + 1);
        if is_wanted(text[start..end].trim()) {
            return start + 1;
        }
        start = end;
    }
    text.len()
}

fn is_header(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default().trim();
    let inner = line.trim_start_matches('[');
    inner.len() < line.len()
        && inner.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && line.ends_with(']')
}

fn is_assignment(line: &str) -> bool {
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
    let rest = line.trim_start_matches(is_bare);
    rest.len() < line.len() && rest.trim_start().starts_with('=')
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// The end of the line, before its newline.
fn line_end(text: &str, at: usize) -> usize {
    text.get(at..).and_then(|rest| rest.find('\n')).map_or(text.len(), |newline| at + newline)
}

/// The parser's places are bytes of its own reckoning: never beyond the text or within a character.
fn sound(text: &str, span: Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(span.start.min(text.len()));
    let end = text.ceil_char_boundary(span.end.clamp(start, text.len()));
    start..end
}
