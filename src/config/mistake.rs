//! A mistake in the configuration: where it is, what is wrong, what to write instead.
//!
//! Values only; `print.rs` makes text of them. A [`Mistakes`] carries the text it is about,
//! so whoever gets one (the command line, the reloader, the API) can show it as it stands.

use std::ops::Range;
use std::sync::Arc;

pub use super::codes::Code;

/// Mistakes kept of one file. Beyond, they are only counted: nobody reads on, and a file of
/// 4 MiB that is no configuration at all would otherwise take minutes.
pub const MISTAKES_MAX: usize = 500;

/// Characters of the operator's text that are repeated in a message.
const QUOTED_MAX: usize = 60;

/// What keys are called that hold a password, which no key of ours does.
pub const SECRETS: [&str; 8] =
    ["password", "passwd", "passphrase", "requirepass", "pass", "auth_pass", "secret", "token"];

/// Where passwords stand, whether or not the lines around them can be read: behind a key of such a name, up to
/// the closing quote, or else to the end of the word.
fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    // Letters of one byte change their case within it, so places stay what they are.
    let text = text.to_ascii_lowercase();
    for line in text.split_inclusive('\n') {
        let is_comment = line.trim_start().starts_with('#');
        for name in SECRETS.iter().filter(|_| !is_comment) {
            let mut done = 0; // each byte is looked at once for each name, whatever the line holds
            for (at, _) in line.match_indices(name) {
                let span = (at >= done).then(|| secret_after(line, at, name)).flatten();
                done = span.as_ref().map_or(done, |span| span.end);
                found.extend(span.map(|span| start + span.start..start + span.end));
            }
        }
        start += line.len();
    }
    found
}

/// The value of a key that begins there, if it is one.
fn secret_after(line: &str, at: usize, name: &str) -> Option<Range<usize>> {
    // `redis_password` and `auth-pass` are such keys, and `bypass` is none.
    let is_word = char::is_alphanumeric;
    let rest = line[at + name.len()..].trim_start_matches(['"', '\'']).trim_start();
    if line[..at].ends_with(is_word) {
        return None;
    }
    let value = rest.strip_prefix(['=', ':'])?.trim_start();
    let quote = value.chars().next().filter(|first| "\"'".contains(*first));
    let inner = quote.map_or(value, |quote| value.trim_start_matches(quote));
    let start = line.len() - inner.len();
    let end = match quote {
        Some(quote) => {
            let is_escaped = |end: usize| quote == '"' && inner[..end].ends_with('\\');
            inner.match_indices(quote).map(|(end, _)| end).find(|end| !is_escaped(*end))
        }
        None => inner.find([',', '}', '#']),
    };
    let length = inner[..end.unwrap_or(inner.len())].trim_end().len();
    (length > 0).then(|| start..start + length)
}

/// One mistake. Built up with the methods that are named after the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub code: Code,
    /// Bytes of the text; empty and at 0 where the file as a whole is meant.
    pub span: Range<usize>,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// A few words at the caret.
    pub label: Option<String>,
    /// Another place that has to do with it.
    pub also: Option<(Range<usize>, String)>,
    /// What to do about it.
    pub help: Option<String>,
    pub patch: Option<Patch>,
}

/// A text that would make it right, most likely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Bytes to replace.
    pub span: Range<usize>,
    pub text: String,
}

impl Mistake {
    pub fn new(code: Code, span: Range<usize>, message: impl Into<String>) -> Self {
        Mistake { code, span, message: message.into(), label: None, also: None, help: None, patch: None }
    }

    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub fn also(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.also = Some((span, label.into()));
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn patch(mut self, span: Range<usize>, text: impl Into<String>) -> Self {
        self.patch = Some(Patch { span, text: text.into() });
        self
    }
}

/// A piece of the operator's text for use within a message: in backquotes, and not too long.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        None if text.is_empty() => "an empty text".to_owned(),
        None => format!("`{text}`"),
        Some((end, _)) => format!("`{}...`", &text[..end]),
    }
}

/// The mistakes of one file, in order of their places, with the text that they are about.
#[derive(Clone, Debug)]
pub struct Mistakes {
    /// What the file is called in messages.
    pub(super) name: String,
    /// Empty where the file could not be read.
    pub(super) text: Arc<str>,
    pub(super) list: Vec<Mistake>,
    /// Found, but not kept; see [`MISTAKES_MAX`].
    pub(super) left_out: usize,
}

impl Mistakes {
    /// No mistake yet, in the file of that name.
    pub fn none(name: impl Into<String>, text: impl Into<Arc<str>>) -> Self {
        Mistakes { name: name.into(), text: text.into(), list: Vec::new(), left_out: 0 }
    }

    /// Adds one, or only counts it where there are many already.
    pub fn add(&mut self, mistake: Mistake) {
        if self.is_full() {
            self.left_out += 1;
        } else {
            self.list.push(mistake);
        }
    }

    pub fn is_full(&self) -> bool {
        self.list.len() >= MISTAKES_MAX
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.list.iter()
    }

    /// What the file is called in messages.
    pub fn file_name(&self) -> &str {
        &self.name
    }

    /// The file could not be read for want of permission; the exit code says so.
    pub fn is_permission(&self) -> bool {
        self.list.iter().any(|mistake| mistake.code == Code::NotPermitted)
    }

    /// Whether anything keeps Tidegate from starting.
    pub fn has_errors(&self) -> bool {
        self.errors() > 0
    }

    pub fn errors(&self) -> usize {
        self.list.len() + self.left_out - self.warnings()
    }

    pub fn warnings(&self) -> usize {
        self.list.iter().filter(|mistake| mistake.code.is_warning()).count()
    }

    /// Line and column of a byte of the text, both from 1; columns count characters.
    pub fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// Nothing is added any more: in order, with patches that fit together, and without a secret.
    pub(super) fn finish(&mut self) {
        self.list.sort_by_key(|mistake| (mistake.span.start, mistake.code));
        self.join_patches();
        self.hide_secrets();
    }

    /// A key that has another name and whose value has another form, too, is one patch: each alone would be
    /// wrong again.
    fn join_patches(&mut self) {
        for place in 1..self.list.len() {
            let (before, after) = self.list.split_at_mut(place);
            let (Some(key), value) = (before.last_mut(), &mut after[0]) else { continue };
            let (Some(of_key), Some(of_value)) = (&mut key.patch, &value.patch) else { continue };
            let between = self.text.get(of_key.span.end..of_value.span.start);
            if let Some(between) = between.filter(|between| between.trim() == "=") {
                of_key.text = format!("{}{between}{}", of_key.text, of_value.text);
                of_key.span.end = of_value.span.end;
                value.patch = None;
            }
        }
    }

    /// Whoever looks at the mistakes of a file need not know the passwords that somebody wrote into it.
    fn hide_secrets(&mut self) {
        let secrets = secrets(&self.text);
        if secrets.is_empty() {
            return;
        }
        let mut text = self.text.to_string();
        for secret in &secrets {
            text.replace_range(secret.clone(), &"*".repeat(secret.len())); // each place stays what it is
        }
        self.text = text.into();
        let is_touched = |patch: &Patch| {
            secrets.iter().any(|secret| secret.start < patch.span.end && patch.span.start < secret.end)
        };
        for mistake in &mut self.list {
            mistake.patch = mistake.patch.take().filter(|patch| !is_touched(patch));
        }
    }
}
