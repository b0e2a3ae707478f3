//! `[pool.NAME.health_check]`: how often the servers are checked, and what turns their state. What
//! they are asked is `probe.rs`.

use std::time::Duration;

use super::leaf::{self, Span};
use super::section::{Field, Section};
use super::{keys, probe, tls};
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::config::plan::{HealthCheck, Http, Probe, SendProxy, Tls};

/// Results in a row; beyond, a server would hardly ever change its state.
const ROW_MAX: i64 = 1000;

/// Below, our own thread would be late for most checks.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// What others call the versions of the PROXY protocol.
const FOREIGN_PROXY: &[(&str, &str)] =
    &[("1", "v1"), ("2", "v2"), ("on", "v1"), ("send-proxy", "v1"), ("send-proxy-v2", "v2"), ("none", "off")];

pub fn health_check(pool: &str, field: Field<'_>, found: &mut Mistakes) -> Option<HealthCheck> {
    let table = leaf::table(field, "a table such as { type = \"tcp\" }", found)?;
    let section = Section::read(format!("pool.{pool}.health_check"), table, &keys::HEALTH_CHECK, found);
    let mut check = HealthCheck::default();
    let probe = probe::probe(&section, found);
    check.tls = tls(&section, probe.as_ref(), found);
    check.probe = probe.unwrap_or(check.probe);
    intervals(&section, &mut check, found);
    if let Some(field) = section.get("timeout") {
        check.timeout = leaf::duration(field, Span::Positive, found).unwrap_or(check.timeout);
    }
    check.rise = in_a_row(&section, "rise", found).unwrap_or(check.rise);
    check.fall = in_a_row(&section, "fall", found).unwrap_or(check.fall);
    if let Some(field) = section.get("jitter") {
        check.jitter = leaf::percent(field, found).unwrap_or(check.jitter);
    }
    if let Some(field) = section.get("port") {
        check.port = leaf::number(field, 1, 65_535, found).and_then(|port| u16::try_from(port).ok());
    }
    if let Some(field) = section.get("send_proxy") {
        let read = leaf::word(field, SendProxy::ALL, SendProxy::word, FOREIGN_PROXY, found);
        check.send_proxy = read.unwrap_or(check.send_proxy);
    }
    check_pace(&section, &check, found);
    Some(check)
}

/// What is written, and for the states of which nothing is written what is written for servers that are up.
fn intervals(section: &Section<'_>, check: &mut HealthCheck, found: &mut Mistakes) {
    let mut read = |key, default| {
        let Some(field) = section.get(key) else { return default };
        let read = leaf::duration(field, Span::Positive, found);
        if read.is_some_and(|interval| interval < INTERVAL_MIN) {
            let message = format!("`{key}` is shorter than {INTERVAL_MIN:?}");
            let mistake = Mistake::new(Code::OutOfRange, field.value.span.clone(), message);
            found.add(mistake.label("checks would come late for our own reasons, and not count"));
        }
        read.unwrap_or(default)
    };
    check.interval = read("interval", check.interval);
    check.interval_down = read("interval_down", check.interval);
    check.interval_changing = read("interval_changing", check.interval);
}

/// Without a probe a mistake has been found, and whether the key has an effect is not known.
fn tls(section: &Section<'_>, probe: Option<&Probe>, found: &mut Mistakes) -> Option<Tls> {
    let mut tls = section.get("tls").and_then(|field| tls::tls(field, found));
    let probe = probe?;
    if let (Some(tls), Probe::Http(Http { host: Some(host), .. })) = (&mut tls, probe) {
        tls.sni = tls.sni.take().or_else(|| tls::name_in(host));
    }
    let no_effect = |field: Field<'_>, label: &str| {
        let message = format!("`{}` has no effect", field.key);
        Mistake::new(Code::NoEffect, field.value.span.clone(), message).label(label)
    };
    match (probe, section.get("tls"), section.get("starttls")) {
        (Probe::Tcp, Some(field), _) => {
            let mistake = no_effect(field, "a check of type \"tcp\" says nothing");
            found.add(mistake.help("for a TLS handshake and no more, set `type = \"tls\"`"));
            None
        }
        (Probe::Tls, ..) => Some(tls.unwrap_or_default()),
        (Probe::Smtp(_), None, Some(field)) => {
            let help = "add `tls = { verify = \"system\" }`: it says who the server must prove to be";
            found.add(no_effect(field, "without `tls` there is none to start").help(help));
            None
        }
        _ => tls,
    }
}

fn in_a_row(section: &Section<'_>, key: &'static str, found: &mut Mistakes) -> Option<u32> {
    let field = section.get(key)?;
    leaf::number(field, 1, ROW_MAX, found).and_then(|count| u32::try_from(count).ok())
}

fn check_pace(section: &Section<'_>, check: &HealthCheck, found: &mut Mistakes) {
    let intervals = [
        ("interval", check.interval),
        ("interval_down", check.interval_down),
        ("interval_changing", check.interval_changing),
    ];
    // One that is not written has the length of one that is, which comes first.
    let Some((key, shortest)) = intervals.into_iter().min_by_key(|(_, interval)| *interval) else { return };
    let written = section.get("timeout").or_else(|| section.get(key));
    if let Some(field) = written.filter(|_| check.timeout > shortest) {
        let message = "a health check may take longer than the time between two checks";
        let timeout = check.timeout;
        found.add(
            Mistake::new(Code::SlowCheck, field.value.span.clone(), message)
                .label(format!("timeout {timeout:?}, {key} {shortest:?}"))
                .help(format!("let `timeout` be no longer than `{key}`")),
        );
    }
}
