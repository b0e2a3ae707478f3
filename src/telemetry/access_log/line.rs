//! A record as one line: JSON for machines, `key=value` for eyes.
//!
//! Both tell the same under the same names. Nothing foreign reaches a line as it came: every
//! control, quote and non-ASCII character is escaped as in JSON, so a line is one line and
//! plain ASCII, whatever a peer or a config has put into it.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::Format;
use crate::core::outcome::Reason;
use crate::core::priority::Priority;
use crate::telemetry::record::{Path, Record, Times, VERSION};

/// Appends the line and its line end.
pub fn append(line: &mut Vec<u8>, format: Format, record: &Record) {
    let told = Told::of(record);
    match format {
        Format::Json => append_json(line, &told),
        Format::Text => append_text(line, &told),
    }
    line.push(b'\n');
}

/// The record under the names that users see.
#[derive(Serialize)]
struct Told<'a> {
    v: u32,
    ts: String,
    conn_id: String,
    listener: &'a str,
    worker: usize,
    generation: u64,
    client: String,
    /// Left out where it is the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<&'static str>,
    local: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_addr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<String>,
    attempts: Vec<ToldAttempt<'a>>,
    t: ToldTimes,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'static str>,
    close: ToldClose<'a>,
}

#[derive(Serialize)]
struct ToldAttempt<'a> {
    server: &'a str,
    us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

/// Microseconds since the accept.
#[derive(Serialize)]
struct ToldTimes {
    #[serde(skip_serializing_if = "Option::is_none")]
    hello: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte: Option<u64>,
    total: u64,
}

#[derive(Serialize)]
struct ToldClose<'a> {
    by: &'static str,
    phase: &'static str,
    how: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    detail: &'a str,
}

impl<'a> Told<'a> {
    fn of(record: &'a Record) -> Self {
        let chosen = record.routed.as_ref().and_then(|routed| routed.server.as_ref());
        Told {
            v: VERSION,
            ts: timestamp(record),
            conn_id: format!("{:016x}", record.conn_id),
            listener: &record.listener,
            worker: record.worker,
            generation: record.generation,
            client: record.client.to_string(),
            priority: priority(record.priority),
            local: record.local.to_string(),
            route: record.route.as_deref(),
            pool: record.routed.as_ref().map(|routed| routed.pool.as_str()),
            server: chosen.map(|chosen| chosen.name.as_str()),
            server_addr: chosen.map(|chosen| chosen.address.to_string()),
            balance: chosen.map(|chosen| chosen.why.to_string()),
            attempts: attempts(record),
            t: times(&record.times),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            path: record.path.map(path_word),
            close: close(record),
        }
    }
}

/// RFC 3339, UTC, always with six digits of microseconds, so that lines sort as text.
fn timestamp(record: &Record) -> String {
    let at = jiff::Timestamp::try_from(record.ts).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{at:.6}")
}

fn attempts(record: &Record) -> Vec<ToldAttempt<'_>> {
    let told = record.attempts.iter().map(|attempt| ToldAttempt {
        server: &attempt.server,
        us: us(attempt.took),
        error: attempt.error.map(Reason::word),
    });
    told.collect()
}

fn times(times: &Times) -> ToldTimes {
    ToldTimes {
        hello: times.hello.map(us),
        queue: times.queue.map(us),
        connect: times.connect.map(us),
        first_byte: times.first_byte.map(us),
        total: us(times.total),
    }
}

fn close(record: &Record) -> ToldClose<'_> {
    let close = &record.close;
    ToldClose {
        by: close.by.word(),
        phase: close.phase.word(),
        how: close.how.word(),
        reason: close.reason.word(),
        errno: close.errno,
        detail: &close.detail,
    }
}

fn priority(class: Priority) -> Option<&'static str> {
    (class != Priority::default()).then(|| class.word())
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn path_word(path: Path) -> &'static str {
    match path {
        Path::Copy => "copy",
        Path::Splice => "splice",
    }
}

fn append_json(line: &mut Vec<u8>, told: &Told<'_>) {
    let mut json = Serializer::with_formatter(line, Ascii);
    // Neither a vector nor a value of strings and numbers can fail.
    let _ = told.serialize(&mut json);
}

/// JSON's own escapes, and `\uXXXX` for all that is not printable ASCII.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        for letter in fragment.chars() {
            match letter {
                ' '..='~' => out.write_all(&[letter as u8])?,
                _ => write_unicode(out, letter)?,
            }
        }
        Ok(())
    }
}

fn write_unicode<W: ?Sized + Write>(out: &mut W, letter: char) -> io::Result<()> {
    for unit in letter.encode_utf16(&mut [0; 2]) {
        write!(out, "\\u{unit:04x}")?;
    }
    Ok(())
}

fn append_text(line: &mut Vec<u8>, told: &Told<'_>) {
    let mut text = Text(line);
    text.number("v", told.v);
    text.word("ts", &told.ts);
    text.word("conn_id", &told.conn_id);
    text.word("listener", told.listener);
    text.number("worker", told.worker);
    text.number("generation", told.generation);
    text.word("client", &told.client);
    text.word_if("priority", told.priority);
    text.word("local", &told.local);
    text.word_if("route", told.route);
    text.word_if("pool", told.pool);
    text.word_if("server", told.server);
    text.word_if("server_addr", told.server_addr.as_deref());
    text.word_if("balance", told.balance.as_deref());
    text.word_if("attempts", attempts_text(&told.attempts).as_deref());
    text.number_if("t.hello", told.t.hello);
    text.number_if("t.queue", told.t.queue);
    text.number_if("t.connect", told.t.connect);
    text.number_if("t.first_byte", told.t.first_byte);
    text.number("t.total", told.t.total);
    text.number("bytes_in", told.bytes_in);
    text.number("bytes_out", told.bytes_out);
    text.word_if("path", told.path);
    text.word("close.by", told.close.by);
    text.word("close.phase", told.close.phase);
    text.word("close.how", told.close.how);
    text.word("close.reason", told.close.reason);
    text.number_if("close.errno", told.close.errno);
    text.word("close.detail", told.close.detail);
}

/// `db1 412us server_refused, db2 180us`; nothing where nothing was tried.
fn attempts_text(attempts: &[ToldAttempt<'_>]) -> Option<String> {
    let told = attempts.iter().map(|attempt| match attempt.error {
        Some(error) => format!("{} {}us {error}", attempt.server, attempt.us),
        None => format!("{} {}us", attempt.server, attempt.us),
    });
    (!attempts.is_empty()).then(|| told.collect::<Vec<_>>().join(", "))
}

/// `key=value` pairs, one space between them.
struct Text<'a>(&'a mut Vec<u8>);

impl Text<'_> {
    fn number(&mut self, key: &str, value: impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.0, "{value}"); // a vector takes everything
    }

    fn number_if(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.number(key, value);
        }
    }

    fn word(&mut self, key: &str, value: &str) {
        self.key(key);
        if !value.is_empty() && value.bytes().all(is_plain) {
            return self.0.extend_from_slice(value.as_bytes());
        }
        let mut json = Serializer::with_formatter(&mut *self.0, Ascii);
        let _ = value.serialize(&mut json); // a vector takes everything
    }

    fn word_if(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.word(key, value);
        }
    }

    fn key(&mut self, key: &str) {
        if self.0.last().is_some_and(|last| *last != b'\n') {
            self.0.push(b' ');
        }
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.:/[]-".contains(&byte)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::core::balance::{Ask, Chooser, Field, Kind, Member, Why};
    use crate::core::outcome::{By, Close, How, Phase, Reason};
    use crate::telemetry::record::{Attempt, Chosen, Routed};

    /// A connection that a second server took, and that the server then reset.
    pub fn record() -> Record {
        Record {
            ts: at(1_700_000_000_000_042),
            conn_id: 0x0001_0000_0000_00ff,
            listener: "web".into(),
            worker: 0,
            generation: 3,
            client: "192.0.2.7:40000".parse().expect("an address"),
            priority: Priority::Normal,
            local: "[2001:db8::1]:443".parse().expect("an address"),
            route: Some("default".into()),
            routed: Some(Routed { pool: "api".into(), server: Some(chosen()) }),
            attempts: vec![
                Attempt {
                    server: "a".into(),
                    took: Duration::from_micros(412),
                    error: Some(Reason::ServerRefused),
                },
                Attempt { server: "b".into(), took: Duration::from_micros(180), error: None },
            ],
            times: Times {
                hello: None,
                queue: None,
                connect: Some(Duration::from_micros(600)),
                first_byte: None,
                total: Duration::from_millis(2),
            },
            bytes_in: 10,
            bytes_out: 20,
            path: Some(Path::Copy),
            close: Close {
                by: By::Server,
                phase: Phase::Data,
                how: How::Rst,
                reason: Reason::ServerReset,
                errno: Some(104),
                detail: "server `b` sent a reset".into(),
            },
        }
    }

    fn at(us: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(us)
    }

    fn chosen() -> Chosen {
        Chosen { name: "b".into(), address: "127.0.0.1:8080".parse().expect("an address"), why: why() }
    }

    /// What a real chooser says, so that this test knows nothing of the words of `core/`.
    fn why() -> Why {
        struct Idle;
        impl Field for Idle {
            fn is_open(&self, _: usize) -> bool {
                true
            }
            fn active(&self, _: usize) -> usize {
                0
            }
        }
        let only = Member { name: "b".into(), weight: 1, is_eligible: true, tier: 0 };
        let chooser = Chooser::new(Kind::First, vec![only]);
        chooser.pick(&Ask { key: 0, random: 0, turn: 0 }, &Idle).expect("the only one").why
    }

    fn line(format: Format, record: &Record) -> String {
        let mut line = Vec::new();
        append(&mut line, format, record);
        String::from_utf8(line).expect("ASCII")
    }

    #[test]
    fn json_is_exactly_this() {
        let expected = concat!(
            r#"{"v":1,"ts":"2023-11-14T22:13:20.000042Z","conn_id":"00010000000000ff","listener":"web","#,
            r#""worker":0,"generation":3,"client":"192.0.2.7:40000","local":"[2001:db8::1]:443","#,
            r#""route":"default","pool":"api","server":"b","server_addr":"127.0.0.1:8080","balance":"WHY","#,
            r#""attempts":[{"server":"a","us":412,"error":"server_refused"},{"server":"b","us":180}],"#,
            r#""t":{"connect":600,"total":2000},"bytes_in":10,"bytes_out":20,"path":"copy","#,
            r#""close":{"by":"server","phase":"data","how":"rst","reason":"server_reset","errno":104,"#,
            r#""detail":"server `b` sent a reset"}}"#,
            "\n"
        );
        assert_eq!(line(Format::Json, &record()), expected.replace("WHY", &why().to_string()));
    }

    #[test]
    fn text_is_exactly_this() {
        let expected = concat!(
            "v=1 ts=2023-11-14T22:13:20.000042Z conn_id=00010000000000ff listener=web worker=0 generation=3 ",
            "client=192.0.2.7:40000 local=[2001:db8::1]:443 route=default pool=api server=b server_addr=127.0.0.1:8080 ",
            "balance=WHY attempts=\"a 412us server_refused, b 180us\" t.connect=600 t.total=2000 ",
            "bytes_in=10 bytes_out=20 path=copy close.by=server close.phase=data close.how=rst ",
            "close.reason=server_reset close.errno=104 close.detail=\"server `b` sent a reset\"\n"
        );
        assert_eq!(line(Format::Text, &record()), expected.replace("WHY", &why().to_string()));
    }

    #[test]
    fn what_was_not_reached_is_absent() {
        let bare = Record {
            route: None,
            routed: None,
            attempts: Vec::new(),
            times: Times::default(),
            path: None,
            close: Close { errno: None, ..record().close },
            ..record()
        };
        let told: serde_json::Value = serde_json::from_str(&line(Format::Json, &bare)).expect("JSON");
        for absent in ["route", "pool", "server", "server_addr", "balance", "path"] {
            assert!(told.get(absent).is_none(), "{absent}");
        }
        assert_eq!(told["t"], serde_json::json!({"total": 0}));
        assert_eq!(told["attempts"], serde_json::json!([]));
        let text = line(Format::Text, &bare);
        assert!(!text.contains("attempts") && !text.contains("pool"), "{text}");
    }

    #[test]
    fn a_class_is_told_where_it_is_not_the_usual_one() {
        let low = Record { priority: Priority::Low, ..record() };
        assert!(line(Format::Json, &low).contains(r#""client":"192.0.2.7:40000","priority":"low","local""#));
        assert!(line(Format::Text, &low).contains(" client=192.0.2.7:40000 priority=low local="));
    }

    #[test]
    fn nothing_foreign_reaches_a_line_as_it_came() {
        let nasty = "a\"b\\c\r\n\x1b[31m\0\u{7f}\u{202e}é😀 end";
        let mut nasty_record = record();
        nasty_record.close.detail = nasty.into();
        nasty_record.listener = nasty.into();
        let escaped = r#""a\"b\\c\r\n\u001b[31m\u0000\u007f\u202e\u00e9\ud83d\ude00 end""#;
        for (format, key) in [(Format::Json, "\"listener\":"), (Format::Text, "listener=")] {
            let line = line(format, &nasty_record);
            assert!(line.contains(&format!("{key}{escaped}")), "{line}");
            assert!(line.trim_end_matches('\n').bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
        }
        let json: serde_json::Value = serde_json::from_str(&line(Format::Json, &nasty_record)).expect("JSON");
        assert_eq!(json["close"]["detail"], nasty);
    }

    #[test]
    fn an_empty_value_is_still_a_value() {
        let mut quiet = record();
        quiet.close.detail = "".into();
        assert!(line(Format::Text, &quiet).ends_with("close.detail=\"\"\n"));
    }
}
