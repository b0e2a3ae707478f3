//! `steps` of a check of type "send-expect": what is said and what must come back, as text or, where
//! it is none, in hexadecimal digits.

use super::keys;
use super::leaf;
use super::listener::missing;
use super::section::{Field, Section};
use crate::config::file::{Kind, Value};
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::config::plan::Step;

/// A conversation longer than this is a program, not a check.
const STEPS_MAX: usize = 20;
/// Bytes of one text.
const TEXT_MAX: usize = 1024;

/// Nothing where there are none that can be used: then a mistake says so.
pub fn steps(section: &Section<'_>, found: &mut Mistakes) -> Option<Vec<Step>> {
    let Some(field) = section.get("steps") else {
        found.add(missing(section, "steps", "steps = [{ send = \"PING\\r\\n\", expect = \"PONG\" }]"));
        return None;
    };
    let Kind::Array(items) = &field.value.kind else {
        found.add(
            field.wrong_type("a list").help("for example [{ send = \"PING\\r\\n\", expect = \"PONG\" }]"),
        );
        return None;
    };
    if items.is_empty() || items.len() > STEPS_MAX {
        let mistake = Mistake::new(Code::OutOfRange, field.value.span.clone(), "`steps` is out of range");
        found.add(mistake.label(format!("from 1 to {STEPS_MAX} steps")));
        return None;
    }
    let steps: Vec<_> = items.iter().filter_map(|item| step(item, found)).collect();
    (steps.len() == items.len()).then_some(steps)
}

fn step(item: &Value, found: &mut Mistakes) -> Option<Step> {
    let field = Field { key: "steps", value: item };
    let table = leaf::table(field, "a table such as { send = \"PING\\r\\n\", expect = \"PONG\" }", found)?;
    let section = Section::read("steps", table, &keys::STEP, found);
    let step = Step {
        send: bytes(&section, "send", "send_hex", found)?,
        expect: bytes(&section, "expect", "expect_hex", found)?,
    };
    if step.send.is_empty() && step.expect.is_empty() {
        let mistake = Mistake::new(Code::MissingKey, item.span.clone(), "this step says and expects nothing");
        found.add(mistake.help("add `send`, `expect`, or both"));
        return None;
    }
    Some(step)
}

/// Empty where neither key is written, nothing where what is written is wrong.
fn bytes(
    section: &Section<'_>,
    text_key: &'static str,
    hex_key: &'static str,
    found: &mut Mistakes,
) -> Option<Vec<u8>> {
    let (text, digits) = (section.get(text_key), section.get(hex_key));
    let (field, bytes) = match (text, digits) {
        (None, None) => return Some(Vec::new()),
        (Some(field), None) => (field, leaf::text(field, "a text", found)?.as_bytes().to_vec()),
        (None, Some(field)) => (field, hex(field, found)?),
        (Some(field), Some(idle)) => {
            let message = format!("`{hex_key}` has no effect");
            let mistake = Mistake::new(Code::NoEffect, idle.value.span.clone(), message);
            let label = format!("`{text_key}` stands beside it");
            found.add(mistake.label(label).help("write one of the two; each step may have its own"));
            (field, leaf::text(field, "a text", found)?.as_bytes().to_vec())
        }
    };
    if bytes.is_empty() || bytes.len() > TEXT_MAX {
        let message = format!("`{}` is out of range", field.key);
        let mistake = Mistake::new(Code::OutOfRange, field.value.span.clone(), message);
        found.add(mistake.label(format!("from 1 to {TEXT_MAX} bytes")));
        return None;
    }
    Some(bytes)
}

fn hex(field: Field<'_>, found: &mut Mistakes) -> Option<Vec<u8>> {
    let text = leaf::text(field, "a text", found)?;
    let digits: Vec<_> =
        text.chars().filter(|letter| *letter != ' ').map(|letter| letter.to_digit(16)).collect();
    let digits: Option<Vec<u8>> = digits.into_iter().map(|digit| u8::try_from(digit?).ok()).collect();
    match digits.filter(|digits| digits.len().is_multiple_of(2)) {
        Some(digits) => Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()),
        None => {
            let message = format!("`{}` is not made of pairs of hexadecimal digits", field.key);
            let mistake = Mistake::new(Code::BadQuantity, field.value.span.clone(), message);
            found.add(mistake.help("two digits for each byte, such as \"0a ff 00\""));
            None
        }
    }
}
