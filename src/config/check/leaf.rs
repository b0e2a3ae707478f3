//! Single values: each reader gives the value, or reports why it is none and gives nothing.
//!
//! Callers then go on with the default, so that one run finds every mistake; the plan that
//! comes out beside a mistake is never used.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::section::{Field, listed, nearest};
use crate::config::file::{Kind, Table, Value};
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::{Auto, Bandwidth, Rate};
use crate::config::units::{self, Unfit};

/// More than any machine has descriptors for, and far below what overflows.
pub const COUNT_MAX: i64 = 100_000_000;
/// What `sockaddr_un` holds, less the closing zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// What is allowed for a duration.
#[derive(Clone, Copy, Debug)]
pub enum Span {
    /// Zero is as good as any.
    Any,
    /// Zero would cut everything off at once.
    Positive,
    /// TCP_KEEPIDLE takes whole seconds, from 1 to 32767 (tcp(7)).
    KeepaliveSeconds,
    /// TCP_USER_TIMEOUT takes milliseconds in 31 bits; 0 means something else (tcp(7)).
    UserTimeout,
}

impl Field<'_> {
    /// Reports the wrong type of value.
    pub fn wrong_type(&self, wanted: &str) -> Mistake {
        let message = format!("`{}` is {}, where {wanted} belongs", self.key, self.value.kind.name());
        Mistake::new(Code::WrongType, self.value.span.clone(), message)
    }

    fn out_of_range(&self, label: impl Into<String>) -> Mistake {
        let message = format!("`{}` is out of range", self.key);
        Mistake::new(Code::OutOfRange, self.value.span.clone(), message).label(label)
    }

    fn patched(&self, mistake: Mistake, text: impl Into<String>) -> Mistake {
        mistake.patch(self.value.span.clone(), text)
    }
}

pub fn text<'f>(field: Field<'f>, wanted: &str, found: &mut Mistakes) -> Option<&'f str> {
    match &field.value.kind {
        Kind::Text(text) => Some(text),
        _ => {
            found.add(field.wrong_type(wanted));
            None
        }
    }
}

pub fn table<'f>(field: Field<'f>, wanted: &str, found: &mut Mistakes) -> Option<&'f Table> {
    match &field.value.kind {
        Kind::Table(table) => Some(table),
        _ => {
            found.add(field.wrong_type(wanted));
            None
        }
    }
}

/// A list; a single item in its place is a mistake, but read as a list of one.
pub fn list<'f>(field: Field<'f>, found: &mut Mistakes) -> &'f [Value] {
    match &field.value.kind {
        Kind::Array(items) => items,
        Kind::Text(_) => {
            let written = found.text[field.value.span.clone()].to_owned();
            let mistake = field.wrong_type("a list").help("put it in brackets");
            found.add(field.patched(mistake, format!("[{written}]")));
            std::slice::from_ref(field.value)
        }
        _ => {
            found.add(field.wrong_type("a list"));
            &[]
        }
    }
}

pub fn boolean(field: Field<'_>, found: &mut Mistakes) -> Option<bool> {
    if let Kind::Boolean(flag) = field.value.kind {
        return Some(flag);
    }
    let mistake = field.wrong_type("true or false");
    found.add(match &field.value.kind {
        Kind::Text(text) if ["true", "yes", "on"].contains(&text.as_str()) => field.patched(mistake, "true"),
        Kind::Text(text) if ["false", "no", "off"].contains(&text.as_str()) => {
            field.patched(mistake, "false")
        }
        _ => mistake,
    });
    None
}

/// A whole number of that range.
pub fn number(field: Field<'_>, least: i64, most: i64, found: &mut Mistakes) -> Option<i64> {
    let number = match &field.value.kind {
        Kind::Integer(number) => *number,
        Kind::Text(text) if text.parse::<i64>().is_ok() => {
            let mistake = field.wrong_type("a number").help("a number takes no quotes");
            found.add(field.patched(mistake, text.clone()));
            return None;
        }
        _ => {
            found.add(field.wrong_type("a whole number"));
            return None;
        }
    };
    if (least..=most).contains(&number) {
        return Some(number);
    }
    found.add(field.out_of_range(format!("from {least} to {most}")));
    None
}

/// A limit on connections. No limit is written by leaving the key out.
pub fn limit(field: Field<'_>, found: &mut Mistakes) -> Option<usize> {
    let is_none = match &field.value.kind {
        Kind::Text(text) => ["off", "none", "unlimited", "infinite", "auto"].contains(&text.as_str()),
        Kind::Integer(number) => *number <= 0,
        _ => false,
    };
    if is_none {
        let limit = field.out_of_range("a limit is 1 or more");
        found.add(limit.help(format!("for no limit, leave `{}` out", field.key)));
        return None;
    }
    number(field, 1, COUNT_MAX, found).and_then(|number| usize::try_from(number).ok())
}

/// A limit, or `"off"` for none: for keys that `[defaults]` has, too.
pub fn limit_or_off(field: Field<'_>, found: &mut Mistakes) -> Option<Option<usize>> {
    let is_none = match &field.value.kind {
        Kind::Text(text) if text == "off" => return Some(None),
        Kind::Text(text) => ["none", "unlimited", "infinite"].contains(&text.as_str()),
        Kind::Integer(number) => *number == 0,
        Kind::Boolean(is_on) => !is_on,
        _ => false,
    };
    if is_none {
        let mistake = field.out_of_range("a limit is 1 or more").help("for no limit, write \"off\"");
        found.add(field.patched(mistake, "\"off\""));
        return None;
    }
    let limit = number(field, 1, COUNT_MAX, found)?;
    Some(usize::try_from(limit).ok())
}

/// `"auto"`, or what the other reader says.
pub fn auto_or<T>(
    field: Field<'_>,
    found: &mut Mistakes,
    other: impl FnOnce(Field<'_>, &mut Mistakes) -> Option<T>,
) -> Option<Auto<T>> {
    match &field.value.kind {
        Kind::Text(text) if text == "auto" => Some(Auto::Auto),
        _ => other(field, found).map(Auto::Set),
    }
}

/// A whole number of at least 1, in the place of which `"auto"` may stand.
pub fn count(field: Field<'_>, most: i64, found: &mut Mistakes) -> Option<usize> {
    match &field.value.kind {
        Kind::Text(text) if text.parse::<i64>().is_err() => {
            let message = format!("`{}` is {}, which is no number", field.key, quoted(text));
            let mistake = Mistake::new(Code::WrongType, field.value.span.clone(), message);
            found.add(mistake.label(format!("a number from 1 to {most}, or \"auto\"")));
            None
        }
        _ => number(field, 1, most, found).and_then(|number| usize::try_from(number).ok()),
    }
}

pub fn duration(field: Field<'_>, range: Span, found: &mut Mistakes) -> Option<Duration> {
    let duration = match &field.value.kind {
        Kind::Text(text) => match units::duration(text) {
            Ok(duration) => duration,
            Err(unfit) => {
                found.add(not_a(field, "duration", text, unfit));
                return None;
            }
        },
        Kind::Integer(number @ 0..) => {
            let mistake = Mistake::new(
                Code::BadQuantity,
                field.value.span.clone(),
                format!("`{}` has no unit", field.key),
            );
            let better = format!("\"{}\"", units::with_unit(number.unsigned_abs()));
            let help = format!("write {better}, if that is meant; units are ms, s, m, h and d");
            found.add(field.patched(mistake, better).help(help));
            return None;
        }
        _ => {
            found.add(field.wrong_type("a duration such as \"2s\""));
            return None;
        }
    };
    within(field, duration, range, found)
}

/// A duration, or `"off"` for none.
pub fn duration_or_off(field: Field<'_>, range: Span, found: &mut Mistakes) -> Option<Option<Duration>> {
    match &field.value.kind {
        Kind::Text(text) if text == "off" => Some(None),
        Kind::Boolean(false) => {
            found.add(field.patched(field.wrong_type("a duration or \"off\""), "\"off\""));
            None
        }
        Kind::Text(text) if units::duration(text) == Ok(Duration::ZERO) => {
            let mistake = field.out_of_range("nothing would outlive it");
            found.add(field.patched(mistake.help("for no limit, write \"off\""), "\"off\""));
            None
        }
        _ => duration(field, range, found).map(Some),
    }
}

/// A rate such as `"1000/s"`, or `"off"` for none.
pub fn rate_or_off(field: Field<'_>, found: &mut Mistakes) -> Option<Option<Rate>> {
    let mistake = match &field.value.kind {
        Kind::Text(text) if text == "off" => return Some(None),
        Kind::Text(text) => match units::rate(text) {
            Ok(rate) => return Some(Some(rate)),
            Err(unfit) => not_a(field, "rate", text, unfit),
        },
        Kind::Integer(number @ 1..) => {
            let message = format!("`{}` has no unit of time", field.key);
            let mistake = Mistake::new(Code::BadQuantity, field.value.span.clone(), message);
            let better = format!("\"{}/s\"", number.min(&i64::from(Rate::COUNT_MAX)));
            field.patched(mistake, &better).help(format!("write {better}, if that is meant; also /m and /h"))
        }
        Kind::Integer(0) | Kind::Boolean(false) => {
            let mistake = field.out_of_range("nobody would come in").help("for no limit, write \"off\"");
            field.patched(mistake, "\"off\"")
        }
        _ => field.wrong_type("a rate such as \"100/s\""),
    };
    found.add(mistake);
    None
}

/// A bandwidth such as `"10MiB/s"`, or `"off"` for none.
pub fn bandwidth_or_off(field: Field<'_>, found: &mut Mistakes) -> Option<Option<Bandwidth>> {
    let mistake = match &field.value.kind {
        Kind::Text(text) if text == "off" => return Some(None),
        Kind::Text(text) => match units::bandwidth(text) {
            Ok(bandwidth) => return Some(Some(bandwidth)),
            Err(unfit) => not_a(field, "bandwidth", text, unfit),
        },
        Kind::Integer(number @ 1..) => {
            let message = format!("`{}` has no unit", field.key);
            let mistake = Mistake::new(Code::BadQuantity, field.value.span.clone(), message);
            let better = format!("\"{}\"", Bandwidth::new(number.unsigned_abs()));
            let help = format!("write {better}, if bytes are meant; units are B, KiB, MiB and GiB");
            field.patched(mistake, &better).help(help)
        }
        Kind::Integer(0) | Kind::Boolean(false) => {
            let mistake = field.out_of_range("nothing would move").help("for no limit, write \"off\"");
            field.patched(mistake, "\"off\"")
        }
        _ => field.wrong_type("a bandwidth such as \"10MiB/s\""),
    };
    found.add(mistake);
    None
}

fn within(field: Field<'_>, duration: Duration, range: Span, found: &mut Mistakes) -> Option<Duration> {
    let (least, most) = match range {
        Span::Any => (Duration::ZERO, units::DURATION_MAX),
        Span::Positive => (Duration::from_millis(1), units::DURATION_MAX),
        Span::KeepaliveSeconds => (Duration::from_secs(1), Duration::from_secs(32_767)),
        Span::UserTimeout => (Duration::from_millis(1), Duration::from_millis(i32::MAX as u64)),
    };
    let is_whole = !matches!(range, Span::KeepaliveSeconds) || duration.subsec_millis() == 0;
    if duration < least || duration > most {
        let label = match range {
            Span::KeepaliveSeconds => "the kernel takes from 1s to 32767s".to_owned(),
            Span::UserTimeout => "the kernel takes from 1ms to 24d".to_owned(),
            _ => "must be longer than nothing".to_owned(),
        };
        found.add(field.out_of_range(label));
        return None;
    }
    if !is_whole {
        found.add(field.out_of_range("the kernel takes whole seconds"));
        return None;
    }
    Some(duration)
}

/// A share of the whole, 0.0 to 1.0.
pub fn percent(field: Field<'_>, found: &mut Mistakes) -> Option<f64> {
    let share = match &field.value.kind {
        Kind::Text(text) => units::percent(text).map_err(|unfit| not_a(field, "share", text, unfit)),
        Kind::Integer(number @ 0..=100) => {
            Err(field.patched(field.wrong_type("a share such as \"10%\""), format!("\"{number}%\"")))
        }
        _ => Err(field.wrong_type("a share such as \"10%\"")),
    };
    share.map_err(|mistake| found.add(mistake)).ok()
}

/// A load in whole percent of the mean, or `"off"` for none.
pub fn load(field: Field<'_>, range: RangeInclusive<u32>, found: &mut Mistakes) -> Option<Option<u32>> {
    let read = match &field.value.kind {
        Kind::Text(text) if text == "off" => return Some(None),
        Kind::Text(text) => {
            text.strip_suffix('%').unwrap_or(text).parse().ok().map(|load| (load, text.ends_with('%')))
        }
        Kind::Integer(number) => u32::try_from(*number).ok().map(|load| (load, false)),
        _ => None,
    };
    let Some((load, has_sign)) = read else {
        found.add(field.wrong_type("a load such as \"125%\" or \"off\""));
        return None;
    };
    if !range.contains(&load) {
        found.add(field.out_of_range(format!(
            "from \"{}%\" to \"{}%\", or \"off\"",
            range.start(),
            range.end()
        )));
        return None;
    }
    if !has_sign {
        found.add(field.patched(field.wrong_type("a load such as \"125%\""), format!("\"{load}%\"")));
        return None;
    }
    Some(Some(load))
}

fn not_a(field: Field<'_>, quantity: &str, text: &str, unfit: Unfit) -> Mistake {
    let message = format!("{} is no {quantity}", quoted(text));
    let mistake = Mistake::new(Code::BadQuantity, field.value.span.clone(), message).label(unfit.why);
    match unfit.instead {
        Some(better) => field.patched(mistake, format!("\"{better}\"")),
        None if quantity == "rate" => mistake.help("for example \"1000/s\", \"10/m\" or \"100/h\""),
        None if quantity == "bandwidth" => mistake.help("for example \"64KiB/s\", \"10MiB/s\" or \"1GiB/s\""),
        None if quantity == "share" => mistake.help("for example \"10%\""),
        None => mistake.help("for example \"250ms\", \"2s\", \"5m\", \"1h\" or \"7d\""),
    }
}

/// One of a few words; `foreign` are those that others use for them.
pub fn word<T: Copy>(
    field: Field<'_>,
    all: &[T],
    word_of: fn(T) -> &'static str,
    foreign: &[(&str, &'static str)],
    found: &mut Mistakes,
) -> Option<T> {
    let words: Vec<_> = all.iter().map(|value| word_of(*value)).collect();
    let written = text(field, &one_of(&words), found)?;
    if let Some(place) = words.iter().position(|word| *word == written) {
        return Some(all[place]);
    }
    found.add(unknown_word(field, written, &words, foreign));
    None
}

/// Reports a word that the key does not take, with the nearest that it does.
pub fn unknown_word(field: Field<'_>, written: &str, words: &[&str], foreign: &[(&str, &str)]) -> Mistake {
    let message = format!("unknown value {} for `{}`", quoted(written), field.key);
    let mistake = Mistake::new(Code::UnknownWord, field.value.span.clone(), message);
    let plain = written.to_ascii_lowercase().replace(['_', ' '], "-");
    let translated = foreign.iter().find(|(word, ours)| *word == plain && words.contains(ours));
    if let Some((_, ours)) = translated {
        return field.patched(mistake.help(format!("Tidegate calls it \"{ours}\"")), format!("\"{ours}\""));
    }
    match nearest(&plain, words.iter().copied()) {
        Some(ours) => field.patched(mistake.help(format!("did you mean \"{ours}\"?")), format!("\"{ours}\"")),
        None => mistake.help(format!("`{}` takes {}", field.key, listed(words, '"', "or"))),
    }
}

fn one_of(words: &[&str]) -> String {
    match words {
        [word] => format!("the word \"{word}\""),
        [first, ..] => format!("a word such as \"{first}\""),
        [] => "a word".to_owned(),
    }
}

/// A path to a file; `is_socket` holds it to the length that a unix socket may have.
pub fn path(field: Field<'_>, is_socket: bool, found: &mut Mistakes) -> Option<PathBuf> {
    let written = text(field, "a path", found)?;
    let wrong = |why: &str| Mistake::new(Code::BadPath, field.value.span.clone(), why);
    if written.is_empty() {
        let mistake = wrong("the path is empty");
        found.add(field.patched(mistake.help("for none, write \"off\""), "\"off\""));
        return None;
    }
    if written.contains('\0') {
        found.add(wrong("the path holds a zero byte"));
        return None;
    }
    if is_socket && written.len() > SOCKET_PATH_MAX {
        let label = format!("{} bytes; a unix socket takes {SOCKET_PATH_MAX}", written.len());
        found.add(wrong("the path is too long").label(label));
        return None;
    }
    if !written.starts_with('/') {
        let message = format!("`{}` is a relative path", field.key);
        let mistake = Mistake::new(Code::RelativePath, field.value.span.clone(), message);
        found.add(mistake.label("depends on the folder Tidegate starts in").help("begin it with `/`"));
    }
    Some(PathBuf::from(written))
}
