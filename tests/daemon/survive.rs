//! Servers that fail: who is left alone, for how long, and what it costs the clients.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::peers::{BlackHole, Client, Greeter, Slammer, config, config_at, named, nobody, served_by};
use crate::queue::{visitor, wait_for_line};
use crate::support::record::{failed_attempts, word};
use crate::support::{Daemon, PATIENCE, eventually};

/// The server's entry in `tidegate servers --json`.
fn shown(daemon: &Daemon, name: &str) -> Value {
    let output = daemon.tidegate(&["servers", "--json"]);
    let servers: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    servers.as_array().unwrap().iter().find(|server| server["name"] == name).expect("a server").clone()
}

fn failures(daemon: &Daemon, server: &str) -> f64 {
    daemon.metric("tidegate_server_connect_failures_total", &[("server", server)])
}

fn circuit(daemon: &Daemon, server: &str, state: &str) -> bool {
    daemon.metric("tidegate_circuit_breaker_state", &[("server", server), ("state", state)]) == 1.0
}

/// `count` clients at once; gives those that were served.
fn crowd(front: SocketAddr, count: usize) -> Vec<Client> {
    let all: Vec<_> = (0..count).map(|_| std::thread::spawn(move || Client::connect(front))).collect();
    all.into_iter().filter_map(|client| client.join().unwrap().ok()).collect()
}

#[test]
fn a_server_that_fails_too_often_is_left_alone_also_after_a_reload() {
    let (server, dead) = (Greeter::start("alive"), nobody());
    let breaker = "balance = \"round-robin\"\n[pool.p.circuit_breaker]\nfailures = 3\nopen_for = \"1h\"";
    let servers = [named("dead", dead), server.toml()];
    let (text, front) = config(&servers, "", breaker);
    let mut daemon = Daemon::start(&text);
    for _ in 0..100 {
        assert_eq!(served_by(front), "alive");
    }
    assert_eq!(failures(&daemon, "dead"), 3.0, "nobody was sent there once its breaker was open");
    assert!(circuit(&daemon, "dead", "open") && circuit(&daemon, "alive", "closed"));
    assert_eq!(daemon.metric("tidegate_circuit_breaker_opened_total", &[("server", "dead")]), 1.0);
    let told = shown(&daemon, "dead");
    assert_eq!((word(&told, "circuit"), word(&told, "state")), ("open", "cut-off"));
    assert!(word(&told, "why").contains("circuit breaker"), "{told}");

    daemon.rewrite_config(&config_at(front, &servers, "", breaker));
    daemon.signal(Signal::SIGHUP);
    eventually("the reload", PATIENCE, || {
        (daemon.metric("tidegate_config_generation", &[]) == 2.0).then_some(())
    });
    for _ in 0..20 {
        assert_eq!(served_by(front), "alive");
    }
    assert_eq!(failures(&daemon, "dead"), 3.0);
}

#[test]
fn a_server_that_is_back_is_tried_and_then_serves_as_before() {
    let (server, address) = (Greeter::start("alive"), nobody());
    let breaker = "balance = \"round-robin\"\n[pool.p.circuit_breaker]\nfailures = 2\nopen_for = \"200ms\"";
    let (text, front) = config(&[named("back", address), server.toml()], "", breaker);
    let daemon = Daemon::start(&text);
    while failures(&daemon, "back") < 2.0 {
        assert_eq!(served_by(front), "alive");
    }
    let _back = Greeter::at("back", address);
    eventually("the breaker to close", PATIENCE, || {
        served_by(front);
        circuit(&daemon, "back", "closed").then_some(())
    });
    let half = (0..10).filter(|_| served_by(front) == "back").count();
    assert_eq!(half, 5, "round robin gives it its share again");
}

#[test]
fn no_more_clients_than_trials_wait_for_a_server_that_may_be_dead() {
    let hole = BlackHole::start();
    let breaker = "connect_timeout = \"4s\"\nretry = { attempts = 1 }\n\
                   [pool.p.circuit_breaker]\nfailures = 2\nopen_for = \"100ms\"\nhalf_open_trials = 2";
    let (text, front) = config(&[named("hole", hole.address)], "", breaker);
    let daemon = Daemon::start(&text);
    assert!(crowd(front, 2).is_empty());
    eventually("trials to be due", PATIENCE, || circuit(&daemon, "hole", "half-open").then_some(()));
    assert!(crowd(front, 20).is_empty());
    let log = daemon.access_log_of(22);
    let on_trial = log[2..].iter().filter(|record| failed_attempts(record) == [("hole", "connect_timeout")]);
    assert_eq!(on_trial.count(), 2);
    let refused = log.iter().filter(|record| word(record, "close.reason") == "no_healthy_server");
    let refused: Vec<_> = refused.collect();
    assert_eq!(refused.len(), 18);
    assert!(word(refused[0], "close.detail").contains("circuit breaker"), "{}", refused[0]);
}

/// The bug: clients waited till `open_for` was over for a server that its checks had long seen come back.
#[test]
fn a_server_that_its_checks_find_back_is_tried_at_once() {
    let (address, mut sentry) = (nobody(), Greeter::start("sentry"));
    let line = "on_no_server = \"queue\"\nqueue = { timeout = \"20s\" }\nretry = { backoff = \"1h\" }";
    let breaker = "[pool.p.circuit_breaker]\nfailures = 1\nopen_for = \"1h\"";
    let check = format!("{CHECKED}\nport = {}", sentry.address.port());
    let (text, front) = config(&[named("back", address)], "", &format!("{line}\n{breaker}\n{check}"));
    let daemon = Daemon::start(&text);
    let is_up = |up: f64| {
        let labels = [("pool", "p"), ("state", "down")];
        let wanted = || (daemon.metric("tidegate_pool_servers", &labels) == 1.0 - up).then_some(());
        eventually("its checks to see it", PATIENCE, wanted);
    };
    let passed = || daemon.metric("tidegate_health_check_total", &[("result", "ok")]);
    eventually("a check", PATIENCE, || (passed() > 0.0).then_some(()));
    let waits = visitor(Ipv4Addr::LOCALHOST, front);
    wait_for_line(&daemon, 1);
    let before = passed();
    eventually("more checks", PATIENCE, || (passed() > before + 2.0).then_some(()));
    assert!(circuit(&daemon, "back", "open"), "a check that passes as before is no news");

    sentry.stop_listening();
    is_up(0.0);
    let _back = Greeter::at("back", address);
    let _sentry = Greeter::at("sentry", sentry.address);
    assert_eq!(waits.join().unwrap().expect("it only waited"), "back");
    assert!(circuit(&daemon, "back", "closed"));
    is_up(1.0);
}

fn ejections(daemon: &Daemon) -> f64 {
    daemon.metric("tidegate_outlier_ejections_total", &[])
}

#[test]
fn a_server_that_resets_before_its_first_byte_is_taken_out_and_says_why() {
    let (server, slammer) = (Greeter::start("alive"), Slammer::start());
    let rules = "balance = \"round-robin\"\n[pool.p.outlier_detection]\nconsecutive_failures = 3";
    let (text, front) = config(&[named("slams", slammer.address), server.toml()], "", rules);
    // The verdict follows upon the reset that the client sees: another worker could send somebody there in between.
    let daemon = Daemon::start(&format!("[process]\nworkers = 1\n\n{text}"));
    let met = (0..100).filter(|_| Client::connect(front).is_err()).count();
    assert_eq!(slammer.taken(), 3, "the failures that it took, and not one more");
    assert!(met <= 3, "a reset that comes at once is still a failed connect, which a retry hides");
    assert_eq!(ejections(&daemon), 1.0);
    assert_eq!(daemon.metric("tidegate_server_up", &[("server", "slams")]), 0.0);
    assert_eq!(daemon.metric("tidegate_pool_servers", &[("state", "ejected")]), 1.0);
    let told = shown(&daemon, "slams");
    assert_eq!(word(&told, "state"), "ejected");
    assert!(word(&told, "why").contains("3 failures in a row"), "{told}");
}

#[test]
fn an_ejected_server_comes_back_and_the_next_time_is_out_for_longer() {
    let (server, slammer) = (Greeter::start("alive"), Slammer::start());
    let rules = "balance = \"round-robin\"\n\
                 [pool.p.outlier_detection]\nconsecutive_failures = 1\neject_for = \"400ms\"";
    let (text, front) = config(&[named("slams", slammer.address), server.toml()], "", rules);
    let daemon = Daemon::start(&text);
    // Each lies between the look before it, which counted one less, and the look that counts it.
    let (mut met, mut before) = (Vec::new(), Instant::now());
    eventually("three ejections", PATIENCE, || {
        let _ = Client::connect(front);
        let now = Instant::now();
        if ejections(&daemon) > met.len() as f64 {
            met.push((before, Instant::now()));
        }
        before = now;
        (met.len() == 3).then_some(())
    });
    let (first, second) = (met[1].1 - met[0].0, met[2].1 - met[1].0);
    assert!(first.as_millis() >= 400 && second.as_millis() >= 800, "{first:?}, then {second:?}");
}

#[test]
fn never_more_than_the_share_are_out() {
    let (server, slammers) = (Greeter::start("alive"), [Slammer::start(), Slammer::start()]);
    let rules = "balance = \"round-robin\"\n\
                 [pool.p.outlier_detection]\nconsecutive_failures = 1\nmax_ejected = \"34%\"";
    let servers = [named("a", slammers[0].address), named("b", slammers[1].address), server.toml()];
    let (text, front) = config(&servers, "", rules);
    let daemon = Daemon::start(&text);
    crowd(front, 60);
    assert_eq!(daemon.metric("tidegate_pool_servers", &[("state", "ejected")]), 1.0, "one of three");
}

#[test]
fn an_ejected_server_is_tried_when_nothing_else_is_left() {
    let (mut server, slammer) = (Greeter::start("alive"), Slammer::start());
    let rules = "balance = \"round-robin\"\n[pool.p.outlier_detection]\nconsecutive_failures = 1";
    let (text, front) = config(&[named("slams", slammer.address), server.toml()], "", rules);
    let daemon = Daemon::start(&text);
    eventually("an ejection", PATIENCE, || {
        let _ = Client::connect(front);
        (ejections(&daemon) == 1.0).then_some(())
    });
    let before = slammer.taken();
    (0..5).for_each(|_| assert_eq!(served_by(front), "alive"));
    assert_eq!(slammer.taken(), before);
    server.stop_listening();
    (0..5).for_each(|_| _ = Client::connect(front).expect_err("nobody serves"));
    assert!(slammer.taken() >= before + 5);
}

#[test]
fn connections_that_are_served_speak_for_a_server_while_they_last() {
    let server = Greeter::start("a");
    let slammer = Slammer::start();
    let rules = "balance = \"round-robin\"\n[pool.p.outlier_detection]\nconsecutive_failures = 2";
    let (text, front) = config(&[server.toml(), named("slams", slammer.address)], "", rules);
    let daemon = Daemon::start(&text);
    // Greeted and still open: nothing here may ever count against `a`.
    let _open: Vec<Client> = crowd(front, 12);
    eventually("the other one to be out", PATIENCE, || (ejections(&daemon) == 1.0).then_some(()));
    assert_eq!(word(&shown(&daemon, "a"), "state"), "up");
}

#[test]
fn a_server_that_refuses_is_asked_again_and_the_client_only_waits() {
    let address = nobody();
    let (text, front) = config(&[named("late", address)], "", "retry = { attempts = 50 }");
    let daemon = Daemon::start(&text);
    let client = std::thread::spawn(move || served_by(front));
    eventually("a refusal", PATIENCE, || (failures(&daemon, "late") >= 1.0).then_some(()));
    let _late = Greeter::at("late", address);
    assert_eq!(client.join().expect("no error"), "late");
    let record = &daemon.access_log_of(1)[0];
    assert!(failed_attempts(record).iter().all(|attempt| *attempt == ("late", "server_refused")), "{record}");
}

#[test]
fn nothing_is_tried_any_more_after_the_deadline() {
    let retry = "retry = { attempts = 100, backoff = \"100ms\", max_backoff = \"100ms\", deadline = \"2s\" }";
    let (text, front) = config(&[named("dead", nobody())], "", retry);
    let daemon = Daemon::start(&text);
    Client::connect(front).expect_err("nobody is there");
    let record = &daemon.access_log_of(1)[0];
    let attempts = failed_attempts(record).len();
    assert!((5..=41).contains(&attempts), "{attempts} attempts, each after 50 to 100 ms");
    assert_eq!(word(record, "close.reason"), "server_refused", "it was the only one that was tried");
}

#[test]
fn a_storm_against_a_dead_pool_is_bounded_by_the_budget() {
    let dead: Vec<_> = (0..3).map(|_| format!("\"{}\"", nobody())).collect();
    let (text, front) = config(&dead, "", "retry = { attempts = 3, budget = \"20%\" }");
    let daemon = Daemon::start(&text);
    for _ in 0..50 {
        assert!(crowd(front, 20).is_empty());
    }
    let dials = daemon.metric("tidegate_server_connect_failures_total", &[]);
    assert!((1100.0..=1340.0).contains(&dials), "{dials} connects for 1000 clients, and not 3000");
    assert!(daemon.metric("tidegate_pool_retries_refused_total", &[("pool", "p")]) > 100.0);
    // Not the last one in any case: on a slow machine the budget has looked away from the first by then.
    let mut records = daemon.access_log_of(1000).into_iter();
    assert!(records.any(|record| word(&record, "close.detail").contains("budget")));
}

/// The bug: until the first of them had ended its search, all who came at the same moment might retry.
#[test]
fn a_storm_of_clients_that_come_at_once_is_bounded_while_nobody_has_answered() {
    let holes = [BlackHole::start(), BlackHole::start(), BlackHole::start()];
    let servers: Vec<_> =
        holes.iter().zip(["a", "b", "c"]).map(|(hole, name)| named(name, hole.address)).collect();
    // Longer than it takes four hundred clients to come.
    let more = "connect_timeout = \"2s\"\nretry = { attempts = 3, budget = \"0%\" }";
    let (text, front) = config(&servers, "", more);
    let daemon = Daemon::start(&text);
    assert!(crowd(front, 400).is_empty());
    let dials = daemon.metric("tidegate_server_connect_failures_total", &[]);
    // And a few that go to a server before it has failed anybody.
    assert!((500.0..=540.0).contains(&dials), "{dials} connects for 400 clients, and not 1200");
}

#[test]
fn a_dead_server_among_good_ones_never_uses_up_the_budget() {
    let server = Greeter::start("alive");
    // A breaker that never opens, so that the dead one is tried as often as the other.
    let retry =
        "balance = \"round-robin\"\nretry = { budget = \"0%\" }\n[pool.p.circuit_breaker]\nfailures = 1000";
    let (text, front) = config(&[named("dead", nobody()), server.toml()], "", retry);
    let daemon = Daemon::start(&text);
    for _ in 0..25 {
        assert_eq!(crowd(front, 20).len(), 20);
    }
    assert!(failures(&daemon, "dead") >= 249.0);
}

const CHECKED: &str = "[pool.p.health_check]\ninterval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 1";

/// A client on a server that no longer listens, and the daemon that has noticed.
fn on_a_lost_server(what: &str) -> (Client, Daemon, Greeter) {
    let mut server = Greeter::start("lost");
    let (text, front) = config(&[server.toml()], "", &format!("on_server_down = \"{what}\"\n{CHECKED}"));
    let daemon = Daemon::start(&text);
    let client = Client::connect(front).unwrap();
    server.stop_listening();
    eventually("the server to be down", PATIENCE, || {
        (daemon.metric("tidegate_server_up", &[("server", "lost")]) == 0.0).then_some(())
    });
    (client, daemon, server)
}

#[test]
fn connections_outlive_a_server_that_is_marked_down_where_they_are_kept() {
    let (mut client, _daemon, _server) = on_a_lost_server("keep");
    client.echo(b"still here").unwrap();
    client.leave().unwrap();
}

#[test]
fn connections_of_a_server_that_goes_down_are_reset_where_that_is_asked_for() {
    let (mut client, daemon, _server) = on_a_lost_server("close-connections");
    assert_eq!(client.farewell().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let record = &daemon.access_log_of(1)[0];
    assert_eq!((word(record, "close.reason"), word(record, "close.by")), ("server_marked_down", "proxy"));
}

#[test]
fn connections_of_a_server_that_goes_down_have_their_time_to_drain() {
    let begun = Instant::now();
    let (mut client, daemon, _server) = on_a_lost_server("drain 3s");
    client.echo(b"still here").unwrap();
    assert_eq!(client.farewell().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(begun.elapsed().as_millis() >= 3000);
    assert_eq!(word(&daemon.access_log_of(1)[0], "close.reason"), "server_drained");
}

#[test]
fn a_server_that_is_back_in_time_keeps_its_connections() {
    let (mut client, daemon, server) = on_a_lost_server("drain 4s");
    let down = Instant::now();
    let _back = Greeter::at("back", server.address);
    eventually("the server to be up", PATIENCE, || {
        (daemon.metric("tidegate_server_up", &[("server", "lost")]) == 1.0).then_some(())
    });
    while down.elapsed().as_millis() < 4300 {
        client.echo(b"still here").unwrap();
    }
    client.leave().unwrap();
}
