//! Mistakes as text: for people, for programs, for the review page of a change.
//!
//! Never decides what is a mistake. Whatever the operator wrote is untrusted here: control
//! characters are made harmless before they reach a terminal or a log.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{
    AnnotationKind, Group, Level, Origin, Patch as Edit, Renderer, Snippet,
    normalize_untrusted_str as harmless,
};
use serde_json::{Value, json};

use super::mistake::{Mistake, Mistakes, Patch};

/// How mistakes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// With the line, a caret and a hint, for a terminal.
    Human,
    /// An array of objects: `code severity file line column message hint patch`.
    Json,
    /// One workflow command for each, which a forge shows beside the line.
    Github,
}

/// Whether [`Format::Human`] is coloured; the other formats never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Styled,
}

impl Colour {
    /// Colour on a terminal, unless NO_COLOR is set and not empty.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if stream.is_terminal() && !is_unwanted { Colour::Styled } else { Colour::Plain }
    }
}

/// Columns of a line of the file that are shown; longer lines are cut around the caret.
const WIDTH: usize = 120;

impl Mistakes {
    /// All of them, ready to print, ending in a newline; empty for none in the formats for lines.
    pub fn render(&self, format: Format, colour: Colour) -> String {
        match format {
            Format::Human => self.for_people(colour),
            Format::Json => self.as_json(),
            Format::Github => self.as_commands(),
        }
    }

    /// `2 mistakes and 1 warning`
    pub fn count(&self) -> String {
        let errors = plural(self.errors(), "mistake");
        let warnings = plural(self.warnings(), "warning");
        match (self.errors(), self.warnings()) {
            (_, 0) => errors,
            (0, _) => warnings,
            _ => format!("{errors} and {warnings}"),
        }
    }

    fn for_people(&self, colour: Colour) -> String {
        let renderer = match colour {
            Colour::Plain => Renderer::plain(),
            Colour::Styled => Renderer::styled(),
        };
        let renderer = renderer.decor_style(DecorStyle::Ascii).term_width(WIDTH);
        let mut out = String::new();
        for mistake in &self.list {
            let _ = writeln!(out, "{}\n", renderer.render(&self.report(mistake)));
        }
        // What cannot be read has no place in a text, and is one mistake by nature: nothing to sum up.
        if !self.list.is_empty() && !self.text.is_empty() {
            let name = harmless(&self.name);
            let _ = match self.left_out {
                0 => writeln!(out, "{} in {name}", self.count()),
                more => writeln!(out, "{} in {name}, the last {more} not shown", self.count()),
            };
        }
        out
    }

    fn report<'m>(&'m self, mistake: &'m Mistake) -> Vec<Group<'m>> {
        let level = if mistake.code.is_warning() { Level::WARNING } else { Level::ERROR };
        let title = level.primary_title(harmless(&mistake.message)).id(mistake.code.text());
        let help = mistake.help.as_deref().map(harmless);
        if self.text.is_empty() {
            let group = title.element(Origin::path(harmless(&self.name)));
            return vec![match help {
                Some(help) => group.element(Level::HELP.message(help)),
                None => group,
            }];
        }
        let group = title.element(self.snippet(mistake));
        match (&mistake.patch, help) {
            (Some(patch), help) => vec![group, self.suggestion(patch, help)],
            (None, Some(help)) => vec![group.element(Level::HELP.message(help))],
            (None, None) => vec![group],
        }
    }

    fn snippet<'m>(&'m self, mistake: &'m Mistake) -> Snippet<'m, annotate_snippets::Annotation<'m>> {
        let also = mistake.also.as_ref();
        let mut around = mistake.span.clone();
        if let Some((span, _)) = also {
            around = around.start.min(span.start)..around.end.max(span.end);
        }
        let (source, line, offset) = self.lines(&around);
        let within = |span: &Range<usize>| span.start - offset..span.end - offset;
        let caret = AnnotationKind::Primary.span(within(&self.first_line_of(&mistake.span)));
        let caret = caret.label(mistake.label.as_deref().map(harmless));
        let mut snippet =
            Snippet::source(source).line_start(line).path(harmless(&self.name)).annotation(caret);
        if let Some((span, label)) = also {
            let span = within(&self.first_line_of(span));
            snippet = snippet.annotation(AnnotationKind::Context.span(span).label(harmless(label)));
        }
        snippet
    }

    fn suggestion<'m>(&'m self, patch: &'m Patch, help: Option<String>) -> Group<'m> {
        let (source, line, offset) = self.lines(&patch.span);
        let edit = Edit::new(patch.span.start - offset..patch.span.end - offset, harmless(&patch.text));
        Level::HELP
            .secondary_title(help.unwrap_or_else(|| "write this instead".to_owned()))
            .element(Snippet::source(source).line_start(line).path(harmless(&self.name)).patch(edit))
    }

    /// The whole lines around a span, the number of the first, and where it begins. The printer
    /// walks through all that it is given, for each mistake anew: so it gets no more than that.
    fn lines(&self, span: &Range<usize>) -> (&str, usize, usize) {
        let start = self.text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
        let end = self.text[span.end..].find('\n').map_or(self.text.len(), |newline| span.end + newline + 1);
        (&self.text[start..end], self.place(span.start).0, start)
    }

    /// A caret under twenty lines of an array says less than one under its beginning.
    fn first_line_of(&self, span: &Range<usize>) -> Range<usize> {
        match self.text[span.clone()].find('\n') {
            Some(newline) => span.start..span.start + newline,
            None => span.clone(),
        }
    }

    fn as_json(&self) -> String {
        let list: Vec<_> = self.list.iter().map(|mistake| self.object(mistake)).collect();
        format!("{:#}\n", Value::Array(list))
    }

    fn object(&self, mistake: &Mistake) -> Value {
        let (line, column) = self.place(mistake.span.start);
        let patch = mistake.patch.as_ref().map(|patch| {
            let (line, column) = self.place(patch.span.start);
            let (end_line, end_column) = self.place(patch.span.end);
            json!({
                "line": line, "column": column, "end_line": end_line, "end_column": end_column,
                "text": patch.text,
            })
        });
        json!({
            "code": mistake.code.text(), "severity": severity(mistake), "file": self.name,
            "line": line, "column": column, "message": mistake.message, "hint": mistake.hint(), "patch": patch,
        })
    }

    fn as_commands(&self) -> String {
        let mut out = String::new();
        for mistake in &self.list {
            let (line, column) = self.place(mistake.span.start);
            let hint = mistake.hint().map(|hint| format!("\n{hint}")).unwrap_or_default();
            let _ = writeln!(
                out,
                "::{} file={},line={line},col={column},title={}::{}",
                severity(mistake),
                escaped(&self.name, true),
                mistake.code.text(),
                escaped(&format!("{}{hint}", mistake.message), false),
            );
        }
        out
    }
}

impl Mistake {
    /// The help, or else the label: one sentence on what to do.
    fn hint(&self) -> Option<String> {
        let suggestion = self.patch.as_ref().filter(|patch| !patch.text.is_empty());
        match (&self.help, &self.label, suggestion) {
            (Some(help), _, _) => Some(help.clone()),
            (None, _, Some(patch)) => Some(format!("write `{}`", patch.text.trim())),
            (None, label, None) => label.clone(),
        }
    }
}

fn severity(mistake: &Mistake) -> &'static str {
    if mistake.code.is_warning() { "warning" } else { "error" }
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Percent-encodes what would end a workflow command or one of its properties.
fn escaped(text: &str, is_property: bool) -> String {
    let text = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if is_property { text.replace(':', "%3A").replace(',', "%2C") } else { text }
}
