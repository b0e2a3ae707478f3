//! What the daemon's log says of servers that their clients' failures take out, and bring back.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::Value;

use crate::peers::{Client, Greeter, Slammer, config, named, nobody, served_by};
use crate::support::{Daemon, PATIENCE, eventually};

/// Clients come until the log has that text.
#[track_caller]
fn clients_until(daemon: &Daemon, front: SocketAddr, text: &str) {
    eventually(&format!("the log to say `{text}`"), PATIENCE, || {
        let _ = Client::connect(front);
        daemon.stderr().contains(text).then_some(())
    });
}

#[test]
fn an_ejection_is_told_with_its_cause_and_so_is_its_end() {
    let server = Greeter::start("alive");
    let rules = "balance = \"round-robin\"\n\
                 [pool.p.outlier_detection]\nconsecutive_failures = 3\neject_for = \"2s\"";
    let (text, front) = config(&[named("dead", nobody()), server.toml()], "", rules);
    let daemon = Daemon::start(&text);
    let out = "WARN server `p/dead` is ejected for 2s: 3 failures in a row, the last: connection refused; \
               ejected in its pool: 1 of 2\n";
    clients_until(&daemon, front, out);
    daemon.has_said("INFO server `p/dead` is in again after its ejection; ejected in its pool: 0 of 2\n");
}

#[test]
fn a_reset_before_the_first_byte_is_told_as_one() {
    let (server, slammer) = (Greeter::start("alive"), Slammer::start());
    let rules = "balance = \"round-robin\"\n[pool.p.outlier_detection]\nconsecutive_failures = 1";
    let (text, front) = config(&[named("slams", slammer.address), server.toml()], "", rules);
    let daemon = Daemon::start(&text);
    clients_until(&daemon, front, "server `p/slams` is ejected for 30s: 1 failures in a row, the last: ");
    let reset = ["a reset before its first byte", "connection reset"]; // as it comes: at once or a moment later
    assert!(reset.iter().any(|reset| daemon.stderr().contains(&format!("the last: {reset};"))));
}

#[test]
fn an_ejection_that_the_pool_cannot_spare_is_told_and_counted() {
    let rules = "retry = { attempts = 1 }\n[pool.p.outlier_detection]\nconsecutive_failures = 2";
    let (text, front) = config(&[named("dead", nobody())], "", rules);
    let daemon = Daemon::start(&text);
    // How many in a row, depends on who comes before control looks.
    clients_until(&daemon, front, "WARN server `p/dead` stands out (");
    daemon.has_said(
        " failures in a row, the last: connection refused) and stays in, as max_ejected is reached; \
         ejected in its pool: 0 of 1",
    );
    let refused = daemon.metric("tidegate_outlier_ejections_refused_total", &[("server", "dead")]);
    assert!(refused >= 1.0);
    assert_eq!(daemon.metric("tidegate_outlier_ejections_total", &[]), 0.0);
}

/// The messages of a log in JSON, with their levels.
fn messages(daemon: &Daemon) -> Vec<(String, String)> {
    let stderr = daemon.stderr();
    let lines = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    lines.map(|line| (word(&line["level"]), word(&line["fields"]["message"]))).collect()
}

#[test]
fn a_breaker_that_opens_and_closes_is_told_each_time_and_so_is_what_it_means_for_the_pool() {
    let address = nobody();
    let breaker = "retry = { attempts = 1 }\n[pool.p.circuit_breaker]\nfailures = 2\nopen_for = \"2s\"";
    let (text, front) = config(&[named("back", address)], "", breaker);
    let daemon = Daemon::start(&format!("[log]\nformat = \"json\"\n\n{text}"));
    clients_until(&daemon, front, "is left alone");
    daemon.has_said("no server is left");
    let _back = Greeter::at("back", address);
    daemon.has_said("may be tried by 2 connections");
    eventually("the breaker to close", PATIENCE, || {
        let _ = Client::connect(front);
        daemon.stderr().contains("has closed").then_some(())
    });
    assert_eq!(served_by(front), "back");
    let told = messages(&daemon);
    let has = |level: &str, text: &str| {
        assert!(
            told.iter().any(|line| (line.0.as_str(), line.1.as_str()) == (level, text)),
            "{text}: {told:?}"
        );
    };
    has(
        "WARN",
        "server `p/back` is left alone for 2s, its circuit breaker has opened: 2 connects failed within 10s, \
         the last: connection refused; open in its pool: 1 of 1",
    );
    has("WARN", "pool `p`: no server is left, the breaker of the one that is up is open");
    has("INFO", "server `p/back` may be tried by 2 connections, its circuit breaker is half-open");
    has("INFO", "pool `p`: its servers serve");
    has("INFO", "server `p/back` is in again, its circuit breaker has closed; open in its pool: 0 of 1");
}

#[test]
fn a_server_that_flaps_fills_no_log() {
    let begun = Instant::now();
    let breaker = "retry = { attempts = 1 }\n\
                   [pool.p.circuit_breaker]\nfailures = 1\nopen_for = \"20ms\"\nhalf_open_trials = 1\n\
                   [pool.p.outlier_detection]\nconsecutive_failures = 1";
    let (text, front) = config(&[named("flaps", nobody())], "", breaker);
    let daemon = Daemon::start(&text);
    eventually("a hundred openings", PATIENCE, || {
        let _ = Client::connect(front);
        (daemon.metric("tidegate_circuit_breaker_opened_total", &[]) >= 100.0).then_some(())
    });
    let log = daemon.stderr();
    let most = 6 + begun.elapsed().as_secs().div_ceil(60) as usize;
    for topic in ["circuit breaker", "stands out", "pool `p`"] {
        let lines = log.lines().filter(|line| line.contains(topic)).count();
        assert!((1..=most).contains(&lines), "{lines} lines with `{topic}`:\n{log}");
    }
}
