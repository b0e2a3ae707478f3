//! Some servers of a pool are lost while others serve: no client is lost with them.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::peers::{BlackHole, Client, Greeter, config, config_at, named, nobody};
use crate::queue::wait_for_line;
use crate::support::record::{failed_attempts, word};
use crate::support::{Daemon, PATIENCE, eventually};

fn limited(name: &str, address: SocketAddr) -> String {
    format!("{{ name = \"{name}\", address = \"{address}\", max_connections = 1 }}")
}

fn come(front: SocketAddr) -> JoinHandle<io::Result<Client>> {
    thread::spawn(move || Client::connect(front))
}

fn wait_until_up(daemon: &Daemon, server: &str, up: bool) {
    eventually(&format!("{server} to have up = {up}"), PATIENCE, || {
        (daemon.metric("tidegate_server_up", &[("server", server)]) == f64::from(u8::from(up))).then_some(())
    });
}

/// The bug: dead servers have the fewest connections, so every client went there first, from one dead
/// server to the next, and used up the budget for retries; then nobody was served by the eight others.
#[test]
fn two_dead_servers_of_ten_cost_no_client_its_connection() {
    let alive: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h"].map(Greeter::start).into();
    let dead = (0..2).map(|_| format!("\"{}\"", nobody()));
    let servers: Vec<_> = dead.chain(alive.iter().map(Greeter::toml)).collect();
    let (text, front) = config(&servers, "", "retry = { budget = \"0%\" }");
    let daemon = Daemon::start(&text);
    let mut staying = Vec::new();
    for _ in 0..20 {
        let crowd: Vec<_> = (0..15).map(|_| come(front)).collect();
        staying.extend(crowd.into_iter().map(|client| client.join().unwrap().expect("eight could serve")));
    }
    let tried = daemon.metric("tidegate_server_connect_failures_total", &[]);
    assert!((2.0..=150.0).contains(&tried), "{tried} attempts on dead servers for 300 clients");
    let least = alive.iter().map(Greeter::taken).min();
    assert!(least >= Some(30), "the eight share them: {least:?} at the least");
}

/// The bug: whoever was called from the line met the dead server, was refused, and the next was called,
/// though the other server was only full.
#[test]
fn a_line_before_a_full_pool_outlives_the_death_of_one_of_its_servers() {
    let (mut a, b) = (Greeter::start("a"), Greeter::start("b"));
    let servers = [limited("a", a.address), limited("b", b.address)];
    let (text, front) = config(&servers, "", "queue = { max = 100, timeout = \"20s\" }");
    let daemon = Daemon::start(&text);
    let mut first = [Client::connect(front).unwrap(), Client::connect(front).unwrap()];
    let waiting: Vec<_> =
        (0..10).map(|_| thread::spawn(move || Client::connect(front).and_then(Client::leave))).collect();
    wait_for_line(&daemon, 10);
    a.die();
    // `b` is full as long as its client stays; from then on it serves the line.
    let on_b = first.iter_mut().position(|client| client.server == "b").expect("one each");
    let [one, other] = first;
    let (on_a, on_b) = if on_b == 0 { (other, one) } else { (one, other) };
    drop(on_a);
    on_b.leave().unwrap();
    for client in waiting {
        client.join().unwrap().expect("it only waited");
    }
    assert_eq!(b.taken(), 11);
}

/// The bug: the first of the line spent `connect_timeout` with the server that does not answer, again and
/// again, while the other one had room.
#[test]
fn a_server_that_does_not_answer_holds_up_no_line() {
    let (hole, b) = (BlackHole::start(), Greeter::start("b"));
    let servers = [named("hole", hole.address), limited("b", b.address)];
    let line = "connect_timeout = \"500ms\"\non_no_server = \"queue\"\nqueue = { timeout = \"20s\" }";
    let (text, front) = config(&servers, "", line);
    let daemon = Daemon::start(&text);
    let clients: Vec<_> =
        (0..60).map(|_| thread::spawn(move || Client::connect(front).and_then(Client::leave))).collect();
    for client in clients {
        client.join().unwrap().expect("b could serve them all");
    }
    let log = daemon.access_log_of(60);
    let lost = log.iter().flat_map(failed_attempts).filter(|attempt| attempt.1 == "connect_timeout");
    // Those who came first did not know; after that one tries it every five seconds.
    let known = log.iter().filter(|record| failed_attempts(record).is_empty()).count();
    assert!(known >= 1 && lost.count() <= 60);
    assert_eq!(b.taken(), 60);
}

/// The bug: the first of the line was at a server that did not answer, and nobody else might ask, though the
/// other server had room.
#[test]
fn while_one_of_the_line_waits_for_a_server_to_answer_the_others_are_served() {
    let (hole, b) = (BlackHole::start(), Greeter::start("b"));
    let servers = [limited("hole", hole.address), limited("b", b.address)];
    let pool = |patience: &str| {
        format!("balance = \"first\"\nconnect_timeout = \"{patience}\"\nqueue = {{ timeout = \"1m\" }}")
    };
    let (text, front) = config(&servers, "", &pool("300ms"));
    let mut daemon = Daemon::start(&text);
    let first = Client::connect(front).unwrap();
    daemon.reload(&config_at(front, &servers, "", &pool("1h")));
    let (sender, served) = mpsc::sync_channel(6);
    for _ in 0..6 {
        let sender = sender.clone();
        thread::spawn(move || sender.send(Client::connect(front).and_then(Client::leave)));
    }
    eventually("one at the server that does not answer", PATIENCE, || {
        (daemon.metric("tidegate_server_active_connections", &[("server", "hole")]) == 1.0).then_some(())
    });
    first.leave().unwrap();
    for _ in 0..5 {
        served.recv().unwrap().expect("b could serve them all");
    }
    assert_eq!(b.taken(), 6);
    assert_eq!(daemon.metric("tidegate_server_active_connections", &[("server", "hole")]), 1.0);
}

/// The bug: with outlier detection, a server that was only full was no reason to wait, so the line went
/// to the one that was ejected, for `connect_timeout` each.
#[test]
fn nobody_of_a_line_is_sent_to_an_ejected_server_while_another_is_only_full() {
    let (hole, b) = (BlackHole::start(), Greeter::start("b"));
    let servers = [named("hole", hole.address), limited("b", b.address)];
    let pool = "balance = \"first\"\nconnect_timeout = \"300ms\"\nqueue = { timeout = \"1m\" }\n\
                [pool.p.outlier_detection]\nconsecutive_failures = 1\neject_for = \"1h\"";
    let (text, front) = config(&servers, "", pool);
    let daemon = Daemon::start(&text);
    let first = Client::connect(front).unwrap();
    let waiting: Vec<_> =
        (0..10).map(|_| thread::spawn(move || Client::connect(front).and_then(Client::leave))).collect();
    wait_for_line(&daemon, 10);
    first.leave().unwrap();
    for client in waiting {
        client.join().unwrap().expect("b could serve them all");
    }
    let failures = daemon.metric("tidegate_server_connect_failures_total", &[("server", "hole")]);
    assert_eq!((failures, b.taken()), (1.0, 11));
}

/// The bug: a client in a pause knew only the servers that were up when it came.
#[test]
fn a_client_between_two_attempts_sees_a_server_come_up() {
    let (mut gone, late) = (Greeter::start("gone"), nobody());
    // One that was up stays so for a thousand failures.
    let check = "retry = { attempts = 100, backoff = \"10m\", max_backoff = \"10m\", deadline = \"1h\" }\n\
                 [pool.p.health_check]\ninterval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 1000";
    let servers = [gone.toml(), named("late", late)];
    let (text, front) = config(&servers, "", check);
    let daemon = Daemon::start(&text);
    wait_until_up(&daemon, "gone", true);
    wait_until_up(&daemon, "late", false);
    gone.stop_listening();
    let client = come(front);
    eventually("a refusal", PATIENCE, || {
        (daemon.metric("tidegate_server_connect_failures_total", &[]) == 1.0).then_some(())
    });
    let _late = Greeter::at("late", late);
    // Its own pause lasts for minutes, and its patience does not.
    assert_eq!(client.join().unwrap().expect("it only waited").server, "late");
}

/// The bug: a connection that was being made when its server went down was in nobody's list, and stayed.
#[test]
fn a_server_that_goes_down_while_it_is_connected_to_gets_nobody() {
    let (hole, mut health) = (BlackHole::start(), Greeter::start("health"));
    let pool = format!(
        "connect_timeout = \"15s\"\non_server_down = \"close-connections\"\n\
         [pool.p.health_check]\nport = {}\ninterval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 1",
        health.address.port()
    );
    let server = named("hole", hole.address);
    let (text, front) = config(&[server], "", &pool);
    let daemon = Daemon::start(&text);
    wait_until_up(&daemon, "hole", true);
    let client = come(front);
    eventually("a dial under way", PATIENCE, || {
        (daemon.metric("tidegate_server_active_connections", &[("server", "hole")]) == 1.0).then_some(())
    });
    health.stop_listening();
    wait_until_up(&daemon, "hole", false);
    hole.wake();
    client.join().unwrap().expect_err("its server is down, and there is no other");
    let record = &daemon.access_log_of(1)[0];
    assert_eq!(failed_attempts(record), [("hole", "server_marked_down")]);
    assert_eq!(word(record, "close.reason"), "server_marked_down");
}

fn on_server_down(policy: &str) -> String {
    format!(
        "on_server_down = \"{policy}\"\n[pool.p.health_check]\ninterval = \"50ms\"\ntimeout = \"5s\"\n\
         rise = 1\nfall = 1"
    )
}

/// The bug: the time to drain ran on from the first time that the server went down.
#[test]
fn a_server_that_was_back_meanwhile_has_its_whole_time_to_drain_again() {
    const DRAIN: Duration = Duration::from_secs(4);
    let mut server = Greeter::start("lost");
    let address = server.address;
    let (text, front) = config(&[server.toml()], "", &on_server_down("drain 4s"));
    let mut daemon = Daemon::start(&text);
    let mut client = Client::connect(front).unwrap();
    let down = |daemon: &Daemon, server: &mut Greeter| {
        let before = Instant::now();
        server.stop_listening();
        wait_until_up(daemon, "lost", false);
        (before, Instant::now())
    };
    down(&daemon, &mut server);
    let mut back = Greeter::at("back", address);
    wait_until_up(&daemon, "lost", true);
    let (again, _) = down(&daemon, &mut back);
    client.echo(b"still here").unwrap();
    client.farewell().expect_err("its time is over");
    assert!(again.elapsed() >= DRAIN, "{:?}", again.elapsed());

    // What a reload says counts at the end of that time, too.
    let mut third = Greeter::at("third", address);
    wait_until_up(&daemon, "lost", true);
    // Workers may come to know it a moment after the metric; until then nobody is served.
    let mut kept = eventually("a client to be served", PATIENCE, || Client::connect(front).ok());
    let (_, gone) = down(&daemon, &mut third);
    daemon.reload(&config_at(front, &[named("lost", address)], "", &on_server_down("keep")));
    while gone.elapsed() < DRAIN + Duration::from_millis(300) {
        kept.echo(b"still here").unwrap();
    }
    let log = daemon.access_log_of(1);
    let first =
        log.iter().find(|record| word(record, "close.reason") != "no_healthy_server").expect("the first");
    assert_eq!(word(first, "close.reason"), "server_drained");
}

/// The bug: the task of the drain that was called off slept until its own deadline, and the shorter one
/// relied on it.
#[test]
fn a_drain_that_was_called_off_does_not_lengthen_the_next() {
    let mut server = Greeter::start("lost");
    let address = server.address;
    let (text, front) = config(&[server.toml()], "", &on_server_down("drain 1h"));
    let mut daemon = Daemon::start(&text);
    let mut client = Client::connect(front).unwrap();
    server.stop_listening();
    wait_until_up(&daemon, "lost", false);
    let mut back = Greeter::at("back", address);
    wait_until_up(&daemon, "lost", true);
    daemon.reload(&config_at(front, &[named("lost", address)], "", &on_server_down("drain 1s")));
    back.stop_listening();
    client.farewell().expect_err("its second is over");
    assert_eq!(word(&daemon.access_log_of(1)[0], "close.reason"), "server_drained");
}

/// The bug: a server whose checks passed all along stayed behind the others for as long as the one failure said.
#[test]
fn a_check_that_passes_ends_the_doubt_of_one_failure() {
    let (a, b, health) = (nobody(), Greeter::start("b"), Greeter::start("health"));
    let check = format!(
        "[pool.p.health_check]\nport = {}\ninterval = \"20ms\"\ntimeout = \"5s\"\nfall = 1000",
        health.address.port()
    );
    let servers = [named("a", a), format!("{{ name = \"b\", address = \"{}\", tier = 1 }}", b.address)];
    let (text, front) = config(&servers, "", &check);
    let daemon = Daemon::start(&text);
    wait_until_up(&daemon, "a", true);
    assert_eq!(
        Client::connect(front).unwrap().server,
        "b",
        "nobody is at a, and that is how it comes into doubt"
    );
    let _a = Greeter::at("a", a);
    let passed = || daemon.metric("tidegate_health_check_total", &[("server", "a"), ("result", "ok")]);
    let before = passed();
    eventually("two checks", PATIENCE, || (passed() >= before + 2.0).then_some(()));
    assert_eq!(Client::connect(front).unwrap().server, "a");
}
