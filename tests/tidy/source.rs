//! Rust text as the rules see it: without comments and strings, and with its tests apart.
//!
//! Not a parser. It knows just enough of the lexical grammar (nested comments, raw strings,
//! characters against lifetimes) never to take a word in a comment for code. All texts keep
//! their length and their line breaks, so an offset in one is an offset in all.

use std::fmt;
use std::ops::Range;

/// One file of the tree.
#[derive(Clone, Debug)]
pub struct Source {
    /// From the root of the repository, such as `src/data/relay.rs`.
    pub path: String,
    pub text: String,
    /// The text with comments and the inside of strings blanked.
    pub code: String,
    /// The code with everything under `#[cfg(test)]` blanked.
    pub product: String,
}

/// A rule that was broken, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    pub path: String,
    pub line: usize,
    pub lesson: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.lesson)
    }
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = without_comments_and_strings(text);
        let product = without_tests(&code);
        Source { path: path.to_owned(), text: text.to_owned(), code, product }
    }

    /// The path of the file's module below the crate; empty for `lib.rs` and `main.rs`.
    pub fn module(&self) -> Vec<String> {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let mut parts: Vec<String> = inner.split('/').map(str::to_owned).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts
    }

    /// The first part of the path below `src/`: `data`, `live`, `main`.
    pub fn plane(&self) -> &str {
        let inner = self.path.trim_start_matches("src/");
        inner.split('/').next().unwrap_or(inner).trim_end_matches(".rs")
    }

    pub fn breach(&self, offset: usize, lesson: impl Into<String>) -> Breach {
        let line = self.text[..offset].matches('\n').count() + 1;
        Breach { path: self.path.clone(), line, lesson: lesson.into() }
    }
}

/// Blanks the product of files that are declared as tests: `#[cfg(test)] mod tests;`.
pub fn mark_test_files(mut sources: Vec<Source>) -> Vec<Source> {
    let mut tests: Vec<Vec<String>> = Vec::new();
    for source in &sources {
        let in_product = modules(&source.product);
        for (offset, name, inside) in modules(&source.code) {
            let is_test = !in_product.iter().any(|(at, ..)| *at == offset);
            if is_test && inside.is_none() {
                tests.push([source.module(), vec![name]].concat());
            }
        }
    }
    for source in &mut sources {
        if tests.iter().any(|test| source.module().starts_with(test)) {
            source.product = blank(&source.product, 0..source.product.len());
        }
    }
    sources
}

fn is_word_byte(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric() || byte >= 0x80
}

/// The words (identifiers, keywords, numbers) of a code, each with its offset.
pub fn words(code: &str) -> Vec<(usize, &str)> {
    let (bytes, mut found, mut at) = (code.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let end = word_end(bytes, at);
        if end > at {
            found.push((at, &code[at..end]));
        }
        at = end.max(at + 1);
    }
    found
}

fn word_end(bytes: &[u8], start: usize) -> usize {
    start + bytes[start..].iter().take_while(|byte| is_word_byte(**byte)).count()
}

/// Where `pattern` stands in a code, not as a part of a longer word.
pub fn find(code: &str, pattern: &str) -> Vec<usize> {
    let is_apart = |at: usize| {
        let (before, after) = (code[..at].bytes().last(), code[at + pattern.len()..].bytes().next());
        let ends_in_word = pattern.bytes().last().is_some_and(is_word_byte);
        !(before.is_some_and(is_word_byte) || ends_in_word && after.is_some_and(is_word_byte))
    };
    code.match_indices(pattern).map(|(at, _)| at).filter(|at| is_apart(*at)).collect()
}

/// Every path that begins with the word `root`, without it: `root::{a, b::c}` is `a` and `b::c`.
pub fn paths(code: &str, root: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for at in find(code, root) {
        let after = skip_blank(code.as_bytes(), at + root.len());
        if code[after..].starts_with("::") {
            let mut leaves = Vec::new();
            read_tree(code.as_bytes(), after + 2, &[], &mut leaves);
            found.extend(leaves.into_iter().map(|leaf| (at, leaf)));
        }
    }
    found
}

/// Reads a path or a tree of paths from `at` on and says where it ends.
fn read_tree(bytes: &[u8], at: usize, prefix: &[String], leaves: &mut Vec<Vec<String>>) -> usize {
    let mut at = skip_blank(bytes, at);
    if bytes.get(at) == Some(&b'{') {
        at += 1;
        while at < bytes.len() && bytes[at] != b'}' {
            at = read_tree(bytes, at, prefix, leaves);
            while at < bytes.len() && !matches!(bytes[at], b',' | b'}') {
                at += 1; // `as name`
            }
            at = skip_blank(bytes, at + usize::from(bytes.get(at) == Some(&b',')));
        }
        return at + 1;
    }
    let end = if bytes.get(at) == Some(&b'*') { at + 1 } else { word_end(bytes, at) };
    if end == at {
        leaves.push(prefix.to_vec()); // `::<` or the end of the text
        return at + 1;
    }
    let path = [prefix, &[String::from_utf8_lossy(&bytes[at..end]).into_owned()]].concat();
    let next = skip_blank(bytes, end);
    if bytes[next..].starts_with(b"::") {
        return read_tree(bytes, next + 2, &path, leaves);
    }
    leaves.push(path);
    end
}

fn skip_blank(bytes: &[u8], at: usize) -> usize {
    let at = at.min(bytes.len());
    at + bytes[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Every `mod`, with its offset and name, and the range of what stands between its braces.
pub fn modules(code: &str) -> Vec<(usize, String, Option<Range<usize>>)> {
    let all = words(code);
    let named = all.windows(2).filter(|pair| pair[0].1 == "mod");
    let modules = named.filter_map(|pair| {
        let (at, name) = pair[1];
        let open = skip_blank(code.as_bytes(), at + name.len());
        match code.as_bytes().get(open)? {
            b';' => Some((pair[0].0, name.to_owned(), None)),
            b'{' => Some((pair[0].0, name.to_owned(), Some(open + 1..closing(code.as_bytes(), open)))),
            _ => None,
        }
    });
    modules.collect()
}

/// The offset of the bracket that closes the one at `open`, or the end of the text.
fn closing(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in bytes.iter().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// The text with a range of it turned into blanks, line breaks kept.
fn blank(text: &str, range: Range<usize>) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for byte in bytes[range].iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
    String::from_utf8(bytes).expect("whole characters were blanked")
}

/// Blanks each item under `#[cfg(test)]` or `#[cfg(all(test, ..))]`, or all under `#![cfg(test)]`.
fn without_tests(code: &str) -> String {
    if code.contains("#![cfg(test)]") {
        return blank(code, 0..code.len());
    }
    let mut product = code.to_owned();
    for attribute in ["#[cfg(test)]", "#[cfg(all(test"] {
        while let Some(start) = product.find(attribute) {
            let end = item_end(product.as_bytes(), start);
            product = blank(&product, start..end);
        }
    }
    product
}

/// Where the item ends whose first attribute stands at `start`.
fn item_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    while bytes[at..].starts_with(b"#[") {
        at = skip_blank(bytes, closing(bytes, at + 1) + 1);
    }
    while at < bytes.len() {
        match bytes[at] {
            b';' => return at + 1,
            b'{' => return (closing(bytes, at) + 1).min(bytes.len()),
            b'(' | b'[' => at = closing(bytes, at) + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Blanks comments and what stands between quotes.
fn without_comments_and_strings(text: &str) -> String {
    let (bytes, mut code, mut at) = (text.as_bytes(), text.as_bytes().to_vec(), 0);
    while at < bytes.len() {
        let (hidden, next) = hidden_at(bytes, at);
        for byte in code[hidden].iter_mut().filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        at = next;
    }
    String::from_utf8(code).expect("whole characters were blanked")
}

/// What is to be blanked of the token at `at`, and where the next token may begin.
fn hidden_at(bytes: &[u8], at: usize) -> (Range<usize>, usize) {
    let rest = &bytes[at..];
    let until = |end: usize| (at..end, end);
    let starts_word = at == 0 || !is_word_byte(bytes[at - 1]);
    if rest.starts_with(b"//") {
        return until(at + rest.iter().take_while(|byte| **byte != b'\n').count());
    }
    if rest.starts_with(b"/*") {
        return until(block_comment_end(bytes, at));
    }
    if let Some(end) = raw_string_end(bytes, at).filter(|_| starts_word) {
        return until(end);
    }
    match rest[0] {
        b'"' => until(quoted_end(bytes, at, b'"')),
        b'\'' if is_character(rest) => until(quoted_end(bytes, at, b'\'')),
        byte if is_word_byte(byte) && matches!(rest.get(1), Some(b'"' | b'\'' | b'r')) => (at..at, at + 1),
        byte if is_word_byte(byte) => (at..at, word_end(bytes, at)),
        _ => (at..at, at + 1),
    }
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// Where `r"..."`, `r#"..."#`, `br"..."` or `cr"..."` ends, if one begins at `at`.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let prefix = usize::from(matches!(bytes[at], b'b' | b'c'));
    if bytes.get(at + prefix) != Some(&b'r') {
        return None;
    }
    let fence = at + prefix + 1;
    let hashes = bytes[fence..].iter().take_while(|byte| **byte == b'#').count();
    let open = fence + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None; // a raw identifier, or a word that begins with r
    }
    let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let length = bytes[open + 1..].windows(close.len()).position(|window| window == close);
    Some(length.map_or(bytes.len(), |length| open + 1 + length + close.len()))
}

/// Where the quoted text ends that begins at `open`; a backslash hides the next byte.
fn quoted_end(bytes: &[u8], open: usize, quote: u8) -> usize {
    let mut at = open + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Is this quote the begin of a character, and not of a lifetime.
fn is_character(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        Some(first) => {
            let length = match first {
                0xf0.. => 4,
                0xe0.. => 3,
                0xc0.. => 2,
                _ => 1,
            };
            rest.get(1 + length) == Some(&b'\'')
        }
        None => false,
    }
}

#[test]
fn comments_and_strings_are_no_code_and_lifetimes_are() {
    let text = "a /* x /* y */ z */ b // c\n\"d\\\"e\" 'f' '\\'' <'g> r#\"h\"i\"# b\"j\" br\"k\" cr\"l\" '—' m r#n\n";
    let code = without_comments_and_strings(text);
    assert_eq!(code.len(), text.len());
    let left: Vec<&str> = words(&code).into_iter().map(|(_, word)| word).collect();
    assert_eq!(left, ["a", "b", "g", "b", "m", "r", "n"]);
}

#[test]
fn items_under_cfg_test_are_not_product() {
    let text =
        "use a;\n#[cfg(test)]\nuse b;\n#[cfg(test)]\n#[allow(x)]\nmod tests { fn f() { c } }\nfn d() {}\n";
    let source = Source::new("src/x.rs", text);
    let left: Vec<&str> = words(&source.product).into_iter().map(|(_, word)| word).collect();
    assert_eq!(left, ["use", "a", "fn", "d"]);
}

#[test]
fn a_file_of_tests_is_not_product() {
    let sources = vec![
        Source::new("src/data/relay.rs", "#[cfg(test)]\nmod tests;\nmod pipes;\n"),
        Source::new("src/data/relay/tests.rs", "fn f() {}\n"),
        Source::new("src/data/relay/pipes.rs", "fn g() {}\n"),
    ];
    let marked = mark_test_files(sources);
    assert!(marked[1].product.trim().is_empty());
    assert!(!marked[2].product.trim().is_empty());
}

#[test]
fn trees_of_paths_are_taken_apart() {
    let code = "use crate::{a, b::{c as d, self}, e::*}; crate::f::<u8>(); let crate_x = 1;";
    let found: Vec<String> = paths(code, "crate").into_iter().map(|(_, path)| path.join("::")).collect();
    assert_eq!(found, ["a", "b::c", "b::self", "e::*", "f"]);
}
