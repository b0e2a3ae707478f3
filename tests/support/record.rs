//! Reads what one line of the access log says, by the names that the documentation uses.

use std::time::{Duration, SystemTime};

use serde_json::Value;

/// The value at a dotted name such as `close.reason`; null where the record has none.
pub fn field<'a>(record: &'a Value, name: &str) -> &'a Value {
    record.get(name).unwrap_or_else(|| name.split('.').fold(record, |value, key| &value[key]))
}

/// The word at a dotted name; empty where the record has none.
pub fn word<'a>(record: &'a Value, name: &str) -> &'a str {
    field(record, name).as_str().unwrap_or_default()
}

/// The number at a dotted name. Panics where the record has none.
#[track_caller]
pub fn number(record: &Value, name: &str) -> u64 {
    field(record, name).as_u64().unwrap_or_else(|| panic!("no number {name} in {record}"))
}

/// When the connection was accepted.
#[track_caller]
pub fn accepted_at(record: &Value) -> SystemTime {
    let timestamp: Result<jiff::Timestamp, _> = word(record, "ts").parse();
    timestamp.unwrap_or_else(|error| panic!("no time in {record}: {error}")).into()
}

/// When the connection had ended.
#[track_caller]
pub fn ended_at(record: &Value) -> SystemTime {
    accepted_at(record) + Duration::from_micros(number(record, "t.total"))
}

/// The servers that were tried in vain, with the word for what went wrong.
pub fn failed_attempts(record: &Value) -> Vec<(&str, &str)> {
    let attempts = record["attempts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let failed = attempts.iter().filter(|attempt| attempt["error"].is_string());
    failed.map(|attempt| (word(attempt, "server"), word(attempt, "error"))).collect()
}
