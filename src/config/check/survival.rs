//! `[pool.NAME.circuit_breaker]`: what a pool does about servers that fail.

use std::time::Duration;

use super::keys;
use super::leaf::{self, Span};
use super::section::{Field, Section};
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::config::plan::CircuitBreaker;

/// Beyond, a server would hardly ever be found out; each failure within the window is remembered.
const FAILURES_MAX: i64 = 1000;

pub fn circuit_breaker(pool: &str, field: Field<'_>, found: &mut Mistakes) -> Option<CircuitBreaker> {
    let table = leaf::table(field, "a table such as { failures = 5 }", found)?;
    let name = format!("pool.{pool}.circuit_breaker");
    let section = Section::read(name, table, &keys::CIRCUIT_BREAKER, found);
    let mut breaker = CircuitBreaker::default();
    set(&mut breaker.failures, count(&section, "failures", FAILURES_MAX, found));
    set(&mut breaker.window, length(&section, "window", found));
    set(&mut breaker.open_for, length(&section, "open_for", found));
    breaker.half_open_trials = breaker.half_open_trials.min(breaker.failures);
    set(&mut breaker.half_open_trials, count(&section, "half_open_trials", FAILURES_MAX, found));
    check_trials(&section, breaker, found);
    Some(breaker)
}

fn check_trials(section: &Section<'_>, breaker: CircuitBreaker, found: &mut Mistakes) {
    let CircuitBreaker { failures, half_open_trials, .. } = breaker;
    if let Some(field) = section.get("half_open_trials").filter(|_| half_open_trials > failures) {
        let message = "`half_open_trials` is larger than `failures`";
        let label = format!("{half_open_trials} trials, but {failures} failures open the breaker");
        let help = "let there be no more trials, or trying again costs more clients than finding out did";
        found.add(Mistake::new(Code::OutOfRange, field.value.span.clone(), message).label(label).help(help));
    }
}

fn set<T>(value: &mut T, written: Option<T>) {
    if let Some(written) = written {
        *value = written;
    }
}

fn count(section: &Section<'_>, key: &'static str, most: i64, found: &mut Mistakes) -> Option<u32> {
    leaf::number(section.get(key)?, 1, most, found).and_then(|count| u32::try_from(count).ok())
}

fn length(section: &Section<'_>, key: &'static str, found: &mut Mistakes) -> Option<Duration> {
    leaf::duration(section.get(key)?, Span::Positive, found)
}
