//! Quantities as operators write them: `"250ms"`, `"2s"`, `"10%"`, `"1000/s"`, `"10MiB/s"`.
//!
//! Pure, and exact in both directions: what [`write_duration`], [`write_percent`] and a [`Rate`] print
//! reads back as the same value. A text that does not fit says why, and how to write it.

use std::time::Duration;

use super::plan::{Bandwidth, Rate};
use crate::core::throttle::UNITS as BYTE_UNITS;

/// The units of time, largest first, with their length in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 24 * 60 * 60 * 1000), ("h", 60 * 60 * 1000), ("m", 60 * 1000), ("s", 1000), ("ms", 1)];

/// A year: longer than any connection, and far from the overflow of every clock and kernel interface.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a rate is by, in seconds.
const RATE_UNITS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];

/// Why a text is no quantity, for the caret; and what to write instead, where that can be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    pub why: String,
    pub instead: Option<String>,
}

impl Unfit {
    fn new(why: impl Into<String>, instead: Option<String>) -> Self {
        Unfit { why: why.into(), instead }
    }
}

/// One whole number and one unit: `ms`, `s`, `m`, `h` or `d`. No sign, fraction, space or sum.
pub fn duration(text: &str) -> Result<Duration, Unfit> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if digits == 0 {
        return Err(Unfit::new("a duration begins with a number", None));
    }
    let Some(number) = number.parse::<u64>().ok().filter(|&number| number <= milliseconds(DURATION_MAX))
    else {
        return Err(Unfit::new("longer than a year", Some("365d".to_owned())));
    };
    let Some((_, length)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(unknown_unit(text, number, unit));
    };
    match number.checked_mul(*length).map(Duration::from_millis) {
        Some(duration) if duration <= DURATION_MAX => Ok(duration),
        _ => Err(Unfit::new("longer than a year", Some("365d".to_owned()))),
    }
}

/// A whole number without a unit. Thousands are read as milliseconds, the habit of other balancers.
pub fn with_unit(number: u64) -> String {
    if number >= 1000 { format!("{number}ms") } else { format!("{number}s") }
}

/// The exact text of a duration, in the largest unit that fits. Below a millisecond is lost.
pub fn write_duration(duration: Duration) -> String {
    let length = milliseconds(duration);
    let fits = |unit: &&(&str, u64)| length > 0 && length.is_multiple_of(unit.1);
    match UNITS.iter().find(fits) {
        Some((name, unit)) => format!("{}{name}", length / unit),
        None => "0s".to_owned(),
    }
}

/// A share: `"10%"` is 0.1. From 0 % to 100 %, with a fraction if need be.
pub fn percent(text: &str) -> Result<f64, Unfit> {
    let (number, has_sign) = match text.strip_suffix('%') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let is_plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let Some(number) = number.parse::<f64>().ok().filter(|_| is_plain) else {
        return Err(Unfit::new("a share is a number and `%`", None));
    };
    match (has_sign, number) {
        (true, 0.0..=100.0) => Ok(number / 100.0),
        (true, _) => Err(Unfit::new("more than 100%", Some("100%".to_owned()))),
        (false, 0.0..=100.0) => Err(Unfit::new("the `%` is missing", Some(format!("{number}%")))),
        (false, _) => Err(Unfit::new("a share is a number and `%`", None)),
    }
}

/// The shortest text that reads back as this share.
pub fn write_percent(share: f64) -> String {
    // 17 digits tell every f64 from its neighbours, so the search ends.
    let reads_back = |text: &String| percent(text).is_ok_and(|read| read.to_bits() == share.to_bits());
    let mut shortest = (0..=17).map(|decimals| format!("{:.decimals$}%", share * 100.0));
    shortest.find(reads_back).unwrap_or_else(|| format!("{}%", share * 100.0))
}

/// So many in a second, a minute or an hour: `"1000/s"`, `"10/m"`, `"100/h"`.
pub fn rate(text: &str) -> Result<Rate, Unfit> {
    let Some((count, unit)) = text.split_once('/') else {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        return Err(Unfit::new(
            "a rate is a number, `/` and a unit of time",
            is_number.then(|| format!("{text}/s")),
        ));
    };
    let per = RATE_UNITS.iter().find(|(name, _)| *name == unit);
    let digits = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    match (count.parse::<u64>().unwrap_or(u64::MAX), per) {
        _ if !digits => Err(Unfit::new("a rate begins with a whole number", None)),
        (0, _) => {
            Err(Unfit::new("nobody would come in; for no limit, write \"off\"", Some("off".to_owned())))
        }
        (_, None) => Err(unknown_rate_unit(count, unit)),
        (count, Some((name, per))) => match u32::try_from(count) {
            Ok(count @ ..=Rate::COUNT_MAX) => Ok(Rate { count, per: Duration::from_secs(*per) }),
            _ => Err(Unfit::new("more than 1000000", Some(format!("{}/{name}", Rate::COUNT_MAX)))),
        },
    }
}

/// So many bytes in a second: `"64KiB/s"`, `"10MiB/s"`, `"1GiB/s"`, `"1500B/s"`.
pub fn bandwidth(text: &str) -> Result<Bandwidth, Unfit> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    if digits == 0 {
        return Err(Unfit::new("a bandwidth begins with a whole number", None));
    }
    let (unit, per) = rest.split_once('/').unwrap_or((rest, ""));
    let length = BYTE_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length);
    let (Some(length), "s") = (length, per) else { return Err(unknown_bandwidth_unit(number, unit, per)) };
    let number = number.parse::<u64>().unwrap_or(u64::MAX);
    match number.saturating_mul(length) {
        0 => Err(Unfit::new("nothing would move; for no limit, write \"off\"", Some("off".to_owned()))),
        bytes @ Bandwidth::LEAST..=Bandwidth::MOST => Ok(Bandwidth::new(bytes)),
        bytes => {
            let (why, nearest) = match bytes < Bandwidth::LEAST {
                true => ("less than 1KiB/s", Bandwidth::LEAST),
                false => ("more than 1024GiB/s", Bandwidth::MOST),
            };
            Err(Unfit::new(why, Some(Bandwidth::new(nearest).to_string())))
        }
    }
}

/// What is plainly meant by another unit, or nearly: a decimal one is up to 7 % less. Of bits
/// that would be another number.
fn unknown_bandwidth_unit(number: &str, unit: &str, per: &str) -> Unfit {
    let name = match unit.trim().to_ascii_lowercase().as_str() {
        "b" | "byte" | "bytes" => Some("B"),
        "k" | "ki" | "kb" | "kib" => Some("KiB"),
        "m" | "mi" | "mb" | "mib" => Some("MiB"),
        "g" | "gi" | "gb" | "gib" => Some("GiB"),
        _ => None,
    };
    let is_by_second = ["", "s", "1s", "sec", "second"].contains(&per.trim());
    let why = match (name, per) {
        (_, "") => "a bandwidth is a number, a unit and `/s`",
        (Some(_), _) if !is_by_second => "the unit of time is s",
        _ => "the units are B, KiB, MiB and GiB, by /s",
    };
    Unfit::new(why, name.filter(|_| is_by_second).map(|name| format!("{number}{name}/s")))
}

fn unknown_rate_unit(count: &str, unit: &str) -> Unfit {
    let better = match unit.trim().to_ascii_lowercase().as_str() {
        "s" | "1s" | "sec" | "second" => Some("s"),
        "m" | "1m" | "60s" | "min" | "minute" => Some("m"),
        "h" | "1h" | "60m" | "hour" => Some("h"),
        _ => None,
    };
    Unfit::new("the unit of time is s, m or h", better.map(|unit| format!("{count}/{unit}")))
}

fn unknown_unit(text: &str, number: u64, unit: &str) -> Unfit {
    let whole = |unit: &str| Some(format!("{number}{unit}"));
    match unit.trim().to_ascii_lowercase().as_str() {
        "" => Unfit::new("the unit is missing", Some(with_unit(number))),
        "msec" | "msecs" | "milliseconds" | "ms" => Unfit::new("milliseconds are written `ms`", whole("ms")),
        "sec" | "secs" | "second" | "seconds" | "s" => Unfit::new("seconds are written `s`", whole("s")),
        "min" | "mins" | "minute" | "minutes" | "m" => Unfit::new("minutes are written `m`", whole("m")),
        "hour" | "hours" | "hr" | "h" => Unfit::new("hours are written `h`", whole("h")),
        "day" | "days" | "d" => Unfit::new("days are written `d`", whole("d")),
        "us" | "µs" | "ns" => Unfit::new("finer than a millisecond", Some("1ms".to_owned())),
        _ => Unfit::new("a duration is one whole number and one unit", fraction(text).or_else(|| sum(text))),
    }
}

/// `1.5s` as whole milliseconds.
fn fraction(text: &str) -> Option<String> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let length = number.parse::<f64>().ok()? * (*length as f64);
    (length.fract() == 0.0 && length <= milliseconds(DURATION_MAX) as f64)
        .then(|| write_duration(Duration::from_millis(length as u64)))
}

/// `1h30m` as one number of the smaller unit.
fn sum(text: &str) -> Option<String> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        if digits == 0 || letters == 0 {
            return None;
        }
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let part = number.parse::<u64>().ok()?.checked_mul(*length)?;
        total = total.checked_add(Duration::from_millis(part))?;
        rest = &rest[digits + letters..];
    }
    (total <= DURATION_MAX).then(|| write_duration(total))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_has_its_length() {
        for (text, seconds) in [("0s", 0), ("7s", 7), ("3m", 180), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("365d"), Ok(DURATION_MAX));
    }

    #[test]
    fn what_does_not_fit_says_what_to_write() {
        let instead = |text: &str| duration(text).unwrap_err().instead;
        for (text, better) in [
            ("2", "2s"),
            ("5000", "5000ms"),
            ("2 s", "2s"),
            ("2min", "2m"),
            ("1.5s", "1500ms"),
            ("1h30m", "90m"),
            ("366d", "365d"),
            ("99999999999999999999s", "365d"),
        ] {
            assert_eq!(instead(text).as_deref(), Some(better), "{text}");
        }
        for hopeless in [
            "",
            "s",
            "-1s",
            "soon",
            "1.0000001s",
            "1h-3m",
            "2٣s",
            "30sfuse",
            "1h2weeks",
            "9999999999d9999999999d",
        ] {
            assert_eq!(instead(hopeless), None, "{hopeless}");
        }
    }

    #[test]
    fn a_duration_reads_back_as_it_was() {
        for milliseconds in [0, 1, 999, 1000, 1500, 60_000, 90_000, 3_600_000, 86_400_000, 86_400_001] {
            let length = Duration::from_millis(milliseconds);
            assert_eq!(duration(&write_duration(length)), Ok(length));
        }
        assert_eq!(write_duration(Duration::from_secs(3600)), "1h");
    }

    #[test]
    fn a_rate_is_a_number_and_a_unit_of_time() {
        for (text, count, seconds) in
            [("1000/s", 1000, 1), ("10/m", 10, 60), ("1/h", 1, 3600), ("1000000/s", 1_000_000, 1)]
        {
            let read = Rate { count, per: Duration::from_secs(seconds) };
            assert_eq!(rate(text), Ok(read));
            assert_eq!(read.to_string(), text);
        }
        let instead = |text: &str| rate(text).unwrap_err().instead;
        for (text, better) in [
            ("1000", "1000/s"),
            ("10/min", "10/m"),
            ("10/ s", "10/s"),
            ("10/60s", "10/m"),
            ("0/s", "off"),
            ("1000001/s", "1000000/s"),
            ("99999999999999999999/m", "1000000/m"),
        ] {
            assert_eq!(instead(text).as_deref(), Some(better), "{text}");
        }
        for hopeless in ["", "/s", "1.5/s", "-1/s", "many", "10/d", "10/", "1k/s", "10 /s"] {
            assert_eq!(instead(hopeless), None, "{hopeless}");
        }
    }

    #[test]
    fn a_bandwidth_is_a_number_of_bytes_in_a_second() {
        for (text, bytes) in
            [("64KiB/s", 64 << 10), ("10MiB/s", 10 << 20), ("1024GiB/s", 1 << 40), ("1500B/s", 1500)]
        {
            assert_eq!(bandwidth(text), Ok(Bandwidth::new(bytes)));
            assert_eq!(Bandwidth::new(bytes).to_string().replace("1TiB", "1024GiB"), text);
        }
        let instead = |text: &str| bandwidth(text).unwrap_err().instead;
        for (text, better) in [
            ("10MiB", "10MiB/s"),
            ("10M/s", "10MiB/s"),
            ("10 mib / s", "10MiB/s"),
            ("64k", "64KiB/s"),
            ("10MB/s", "10MiB/s"),
            ("0MiB/s", "off"),
            ("1023B/s", "1KiB/s"),
            ("1025GiB/s", "1024GiB/s"),
            ("99999999999999999999B/s", "1024GiB/s"),
        ] {
            assert_eq!(instead(text).as_deref(), Some(better), "{text}");
        }
        for hopeless in ["", "MiB/s", "1.5MiB/s", "-1KiB/s", "100Mbit/s", "10MiB/m", "much", "10"] {
            assert_eq!(instead(hopeless), None, "{hopeless}");
        }
    }

    #[test]
    fn a_share_is_between_nothing_and_all() {
        assert_eq!(percent("10%"), Ok(0.1));
        assert_eq!(percent("0%"), Ok(0.0));
        assert_eq!(percent("2.5%"), Ok(0.025));
        for wrong in ["101%", "-1%", "10", "%", "", "nan%", "inf%", "1e1%", "0.1"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
        for share in ["0%", "7%", "10%", "12.5%", "33.3%", "100%"] {
            assert_eq!(write_percent(percent(share).unwrap()), share);
        }
    }
}
