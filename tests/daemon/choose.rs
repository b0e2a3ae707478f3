//! Which server, and what happens when it does not take the client.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use crate::peers::{BlackHole, Client, Greeter, config, nobody, served_by};
use crate::support::record::{failed_attempts, word};
use crate::support::{Daemon, PATIENCE, eventually};

const CHECKED: &str = "[pool.p.health_check]\ninterval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 2";

fn counts(clients: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    clients.for_each(|server| *counts.entry(server).or_default() += 1);
    counts
}

#[test]
fn round_robin_is_even_over_all_workers() {
    let servers = [Greeter::start("a"), Greeter::start("b"), Greeter::start("c")];
    let (text, front) = config(&servers.each_ref().map(Greeter::toml), "", "balance = \"round-robin\"");
    let _daemon = Daemon::start(&text);
    let counts = counts((0..300).map(|_| served_by(front)));
    assert!(counts.values().all(|count| *count == 100), "{counts:?}");
}

#[test]
fn least_connections_fills_servers_evenly_with_connections_that_stay() {
    let servers = [Greeter::start("a"), Greeter::start("b"), Greeter::start("c")];
    let (text, front) = config(&servers.each_ref().map(Greeter::toml), "", "balance = \"least-connections\"");
    let _daemon = Daemon::start(&text);
    let open: Vec<Client> = (0..60).map(|_| Client::connect(front).unwrap()).collect();
    let counts = counts(open.iter().map(|client| client.server.clone()));
    assert!(counts.values().all(|count| *count == 20), "{counts:?}");
}

#[test]
fn a_consistent_hash_sends_a_source_to_the_same_server_also_after_a_restart() {
    let servers = [Greeter::start("a"), Greeter::start("b"), Greeter::start("c")];
    let (text, front) = config(&servers.each_ref().map(Greeter::toml), "", "balance = \"consistent-hash\"");
    let homes = || -> Vec<String> {
        let _daemon = Daemon::start(&text);
        let from = |host| Client::connect_from(Ipv4Addr::new(127, 0, 3, host), front).unwrap().server;
        let homes: Vec<String> = (1..=40).map(from).collect();
        assert_eq!(homes, (1..=40).map(from).collect::<Vec<_>>());
        homes
    };
    let before = homes();
    assert_eq!(before, homes());
    assert_eq!(counts(before.into_iter()).len(), 3, "forty sources and every server has some");
}

#[test]
fn a_client_does_not_notice_a_server_that_refuses() {
    let server = Greeter::start("alive");
    let dead = format!("{{ name = \"dead\", address = \"{}\" }}", nobody());
    let (text, front) = config(&[dead, server.toml()], "", "balance = \"round-robin\"");
    let daemon = Daemon::start(&text);
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        assert_eq!(served_by(front), "alive");
    }
    let seconds = begun.elapsed().as_secs_f64();
    let log = daemon.access_log_of(100);
    let retried = log.iter().filter(|record| failed_attempts(record) == [("dead", "server_refused")]).count();
    let most = 1 + seconds as usize;
    assert!(
        (1..=most).contains(&retried),
        "{retried}: the first finds out, and then one tries it each second"
    );
    let failures = daemon.metric(
        "tidegate_server_connect_failures_total",
        &[("server", "dead"), ("reason", "server_refused")],
    );
    assert_eq!(failures, retried as f64);
    assert_eq!(daemon.metric("tidegate_server_retries_total", &[("server", "alive")]), retried as f64);
}

#[test]
fn a_server_that_does_not_answer_costs_its_connect_timeout_and_no_more() {
    let (hole, server) = (BlackHole::start(), Greeter::start("alive"));
    let dead = format!("{{ name = \"dead\", address = \"{}\" }}", hole.address);
    let (text, front) =
        config(&[dead, server.toml()], "", "balance = \"first\"\nconnect_timeout = \"300ms\"");
    let daemon = Daemon::start(&text);
    let begun = Instant::now();
    assert_eq!(served_by(front), "alive");
    assert!(begun.elapsed().as_millis() >= 300, "the first server had its time");
    assert_eq!(failed_attempts(&daemon.access_log_of(1)[0]), [("dead", "connect_timeout")]);
}

#[test]
fn by_speed_a_server_that_refuses_is_not_a_fast_one() {
    let servers = [Greeter::start("a"), Greeter::start("b")];
    let dead = format!("{{ name = \"dead\", address = \"{}\" }}", nobody());
    let all = [servers[0].toml(), dead, servers[1].toml()];
    let (text, front) = config(&all, "", "balance = \"fastest\"");
    let daemon = Daemon::start(&text);
    let counts = counts((0..300).map(|_| served_by(front)));
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "b"], "both are tried, and nobody else answers");
    assert_eq!(counts.values().sum::<usize>(), 300);
    let tried = daemon.metric("tidegate_server_connect_failures_total", &[("server", "dead")]);
    assert_eq!(tried, 1.0, "it is new, so it is tried, and then it is known");
    let log = daemon.access_log_of(300);
    assert!(word(&log[299], "balance").starts_with("fastest:0@"), "{}", log[299]);
}

#[test]
fn no_server_is_asked_twice_for_one_client_and_attempts_are_bounded() {
    let dead: Vec<String> = (0..5).map(|_| format!("\"{}\"", nobody())).collect();
    let (text, front) = config(&dead, "", "balance = \"random\"\nretry = { attempts = 3 }");
    let daemon = Daemon::start(&text);
    for _ in 0..30 {
        Client::connect(front).expect_err("nobody is there");
    }
    for record in daemon.access_log_of(30) {
        let mut tried: Vec<&str> = failed_attempts(&record).into_iter().map(|(server, _)| server).collect();
        tried.sort_unstable();
        tried.dedup();
        assert_eq!(tried.len(), 3, "{record}");
        assert_eq!(word(&record, "close.reason"), "all_attempts_failed");
    }
}

#[test]
fn a_server_that_dies_under_load_costs_no_client_an_error() {
    let mut servers = [Greeter::start("a"), Greeter::start("b")];
    let (text, front) = config(&servers.each_ref().map(Greeter::toml), "", CHECKED);
    let daemon = Daemon::start(&text);
    let address = servers[0].address;
    let load = std::thread::spawn(move || counts((0..2000).map(|_| served_by(front))));
    eventually("some load", PATIENCE, || (servers[0].taken() > 100).then_some(()));
    servers[0].stop_listening(); // those that it has taken go on: what cannot be saved is not asked for
    eventually("the server to be down", PATIENCE, || {
        (daemon.metric("tidegate_server_up", &[("server", "a")]) == 0.0).then_some(())
    });
    let back = Greeter::at("a", address);
    eventually("the server to be up", PATIENCE, || {
        (daemon.metric("tidegate_server_up", &[("server", "a")]) == 1.0).then_some(())
    });
    let counts = load.join().expect("no client saw an error");
    assert_eq!(counts.values().sum::<usize>(), 2000);
    drop(back);
}

#[test]
fn a_pool_whose_servers_are_all_down_refuses_and_says_so() {
    let (text, front) = config(&[format!("\"{}\"", nobody())], "", CHECKED);
    let daemon = Daemon::start(&text);
    eventually("the server to be down", PATIENCE, || {
        (daemon.metric("tidegate_pool_servers", &[("state", "down")]) == 1.0).then_some(())
    });
    // Workers may come to know it a moment after the metric; until then a client is tried with it.
    let log = eventually("a refusal", PATIENCE, || {
        Client::connect(front).expect_err("nobody is there");
        daemon.access_log().into_iter().find(|record| word(record, "close.reason") == "no_healthy_server")
    });
    assert_eq!((word(&log, "close.by"), word(&log, "close.phase")), ("proxy", "connect"));
}
