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

    pub(super) fn sort(&mut self) {
        self.list.sort_by_key(|mistake| (mistake.span.start, mistake.code));
    }
}
