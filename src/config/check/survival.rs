//! `[pool.NAME.outlier_detection]` and `[pool.NAME.circuit_breaker]`: what a pool does about servers that fail.

use std::time::Duration;

use super::keys;
use super::leaf::{self, Span};
use super::section::{Field, Section};
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::{CircuitBreaker, OnServerDown, OutlierDetection};
use crate::config::units;
use crate::core::outlier;

/// Beyond, a server would hardly ever be found out; each failure within the window is remembered.
const FAILURES_MAX: i64 = 1000;
/// More than any server has in half a minute.
const CONNECTIONS_MAX: i64 = 1_000_000;

/// `"keep"`, `"close-connections"`, or `"drain"` and a duration.
pub fn on_server_down(field: Field<'_>, found: &mut Mistakes) -> Option<OnServerDown> {
    let written = leaf::text(field, "a word such as \"keep\"", found)?;
    let words = ["keep", "close-connections", "drain 10s"];
    match written.split_once(' ') {
        None if written == "keep" => Some(OnServerDown::Keep),
        None if written == "close-connections" => Some(OnServerDown::CloseConnections),
        Some(("drain", within)) => {
            let span = field.value.span.clone();
            match units::duration(within) {
                Ok(within) if within.is_zero() => {
                    let message = "`on_server_down` drains for no time";
                    let mistake = Mistake::new(Code::OutOfRange, span.clone(), message);
                    found.add(mistake.patch(span, "\"close-connections\""));
                    None
                }
                Ok(within) => Some(OnServerDown::Drain(within)),
                Err(unfit) => {
                    let message = format!("{} is no duration", quoted(within));
                    let mistake = Mistake::new(Code::BadQuantity, span.clone(), message).label(unfit.why);
                    found.add(match unfit.instead {
                        Some(better) => mistake.patch(span, format!("\"drain {better}\"")),
                        None => mistake.help("for example \"drain 10s\""),
                    });
                    None
                }
            }
        }
        _ => {
            found.add(leaf::unknown_word(field, written, &words, keys::FOREIGN_DOWN));
            None
        }
    }
}

/// Of a pool with so many servers.
pub fn outlier_detection(
    pool: &str,
    servers: usize,
    field: Field<'_>,
    found: &mut Mistakes,
) -> Option<OutlierDetection> {
    let table = leaf::table(field, "a table such as { consecutive_failures = 5 }", found)?;
    let name = format!("pool.{pool}.outlier_detection");
    let section = Section::read(name, table, &keys::OUTLIER_DETECTION, found);
    let mut rules = OutlierDetection::default();
    set(&mut rules.consecutive_failures, count(&section, "consecutive_failures", FAILURES_MAX, found));
    set(&mut rules.failure_ratio, share(&section, "failure_ratio", found));
    set(&mut rules.min_connections, count(&section, "min_connections", CONNECTIONS_MAX, found));
    set(&mut rules.eject_for, length(&section, "eject_for", found));
    set(&mut rules.max_ejected, share(&section, "max_ejected", found));
    check_beds(&section, field, servers, rules.max_ejected, found);
    Some(rules)
}

/// One server always stays, so a pool of one can spare none; nor can a small one that is to lose
/// no more than a small share.
fn check_beds(
    section: &Section<'_>,
    whole: Field<'_>,
    servers: usize,
    max_ejected: f64,
    found: &mut Mistakes,
) {
    if servers == 0 || outlier::beds(servers, max_ejected) > 0 {
        return;
    }
    let at = section.get("max_ejected").unwrap_or(whole).value.span.clone();
    let mistake = Mistake::new(Code::NoEffect, at.clone(), "`outlier_detection` can never eject a server");
    found.add(match servers {
        1 => mistake.label("the pool has one server, and one always stays"),
        _ => mistake
            .label(format!("less than one of the pool's {servers} servers"))
            .patch(at, format!("\"{}%\"", 100_usize.div_ceil(servers))),
    });
}

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

/// A share of which something is left.
fn share(section: &Section<'_>, key: &'static str, found: &mut Mistakes) -> Option<f64> {
    let field = section.get(key)?;
    let share = leaf::percent(field, found)?;
    if share > 0.0 {
        return Some(share);
    }
    let message = format!("`{key}` is out of range");
    let mistake = Mistake::new(Code::OutOfRange, field.value.span.clone(), message);
    found.add(mistake.label("must be more than nothing"));
    None
}

fn length(section: &Section<'_>, key: &'static str, found: &mut Mistakes) -> Option<Duration> {
    leaf::duration(section.get(key)?, Span::Positive, found)
}
