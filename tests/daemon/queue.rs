//! Clients that wait for a server: in what order, how many, how long.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::peers::{BlackHole, Client, Greeter, config, config_at, named, nobody};
use crate::support::record::{accepted_at, number, word};
use crate::support::{Daemon, PATIENCE, eventually};

/// As few looks at a dead server as a test can bear.
const WAITS: &str = "on_no_server = \"queue\"\nqueue = { timeout = \"20s\" }";

fn queued(daemon: &Daemon) -> f64 {
    daemon.metric("tidegate_pool_queued_connections", &[("pool", "p")])
}

pub fn wait_for_line(daemon: &Daemon, length: usize) {
    eventually(&format!("{length} in the line"), PATIENCE, || {
        (queued(daemon) == length as f64).then_some(())
    });
}

/// A client that says who served it, and leaves.
pub fn visitor(from: Ipv4Addr, front: SocketAddr) -> JoinHandle<std::io::Result<String>> {
    thread::spawn(move || {
        let mut client = Client::connect_from(from, front)?;
        client.echo(b"hello")?;
        let server = client.server.clone();
        client.leave()?;
        Ok(server)
    })
}

pub fn full_server(server: &Greeter) -> String {
    server.toml().replace(" }", ", max_connections = 1 }")
}

#[test]
fn while_the_only_server_is_away_clients_only_wait() {
    let address = nobody();
    let (text, front) = config(&[format!("\"{address}\"")], "", WAITS);
    let daemon = Daemon::start(&text);
    let clients: Vec<_> = (0..100).map(|_| visitor(Ipv4Addr::LOCALHOST, front)).collect();
    wait_for_line(&daemon, 100);
    let _back = Greeter::at("back", address);
    for client in clients {
        assert_eq!(client.join().unwrap().expect("it only waited"), "back");
    }
    wait_for_line(&daemon, 0);
    let log = daemon.access_log_of(100);
    assert!(log.iter().all(|record| word(record, "close.reason") == "done"));
    assert!(log.iter().all(|record| number(record, "t.queue") <= number(record, "t.connect")));
    assert_eq!(daemon.metric("tidegate_queue_wait_seconds_count", &[("pool", "p")]), 100.0);
}

#[test]
fn a_line_asks_a_dead_server_as_one_client() {
    let pauses = "retry = { attempts = 1, backoff = \"200ms\" }";
    let (text, front) =
        config(&[format!("\"{}\"", nobody())], "", &format!("{pauses}\n{WAITS}").replace("20s", "2s"));
    let daemon = Daemon::start(&text);
    let clients: Vec<_> = (0..50).map(|_| visitor(Ipv4Addr::LOCALHOST, front)).collect();
    clients.into_iter().for_each(|client| _ = client.join().unwrap().expect_err("nobody is there"));
    let log = daemon.access_log_of(50);
    assert!(log.iter().all(|record| word(record, "close.reason") == "queue_timeout"), "{log:?}");
    assert!(log.iter().any(|record| word(record, "close.detail").contains("refused")), "{log:?}");
    // Each asks once on coming, as long as there is no line. Then one at a time: 20 pauses of 100 ms in 2 s
    // at the most, and with each whose time is over the next begins with a short pause.
    let dials = daemon.metric("tidegate_server_connect_failures_total", &[]);
    assert!(dials <= 50.0 + 20.0 + 50.0, "{dials} connects for 50 clients that waited 2 s");
}

#[test]
fn a_server_that_comes_up_is_given_to_the_line_at_once() {
    let address = nobody();
    let check = "[pool.p.health_check]\ninterval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 1";
    // Pauses of an hour: only the news that it is up can end them.
    let pauses = "retry = { backoff = \"1h\" }";
    let (text, front) = config(&[format!("\"{address}\"")], "", &format!("{WAITS}\n{pauses}\n{check}"));
    let daemon = Daemon::start(&text);
    eventually("the server to be down", PATIENCE, || {
        (daemon.metric("tidegate_pool_servers", &[("state", "down")]) == 1.0).then_some(())
    });
    let clients: Vec<_> = (0..10).map(|_| visitor(Ipv4Addr::LOCALHOST, front)).collect();
    wait_for_line(&daemon, 10);
    let _back = Greeter::at("back", address);
    clients.into_iter().for_each(|client| assert_eq!(client.join().unwrap().expect("it waited"), "back"));
}

#[test]
fn a_place_that_is_given_back_goes_to_the_line_and_sources_take_turns() {
    let server = Greeter::start("a");
    let (text, front) =
        config(&[full_server(&server)], "", "queue = { timeout = \"20s\" }\nretry = { backoff = \"1h\" }");
    let daemon = Daemon::start(&text);
    let first = Client::connect(front).unwrap();
    let (greedy, modest) = (Ipv4Addr::new(127, 0, 4, 1), Ipv4Addr::new(127, 0, 4, 2));
    let mut clients = Vec::new();
    for (place, from) in [greedy, greedy, greedy, greedy, modest].into_iter().enumerate() {
        clients.push(visitor(from, front));
        wait_for_line(&daemon, place + 1);
    }
    first.leave().unwrap();
    clients.into_iter().for_each(|client| assert_eq!(client.join().unwrap().expect("it waited"), "a"));
    let mut log = daemon.access_log_of(6);
    log.sort_by_key(|record| accepted_at(record) + Duration::from_micros(number(record, "t.connect")));
    let place = log[1..].iter().position(|record| word(record, "client").starts_with("127.0.4.2"));
    assert!(place <= Some(2), "the modest client was {place:?} after four of the greedy one");
    assert!(server.most_open() <= 2, "its end is seen a moment after its place was given on");
}

/// The bug: who waited never saw the pool that its own falls back to, and those who came later were served there.
#[test]
fn who_waits_is_served_by_the_fallback_when_it_has_a_place_and_before_those_who_come_later() {
    let (a, b) = (Greeter::start("a"), Greeter::start("b"));
    let line = "fallback = \"q\"\nqueue = { timeout = \"1m\" }\nretry = { backoff = \"1h\" }";
    let (text, front) = config(&[full_server(&a)], "", line);
    let daemon = Daemon::start(&format!("{text}\n[pool.q]\nservers = [{}]\n", full_server(&b)));
    let (_on_a, on_b) = (Client::connect(front).unwrap(), Client::connect(front).unwrap());
    assert_eq!(on_b.server, "b");
    let waiting = visitor(Ipv4Addr::LOCALHOST, front);
    wait_for_line(&daemon, 1);
    on_b.leave().unwrap();
    assert_eq!(waiting.join().unwrap().expect("b has a place"), "b");

    let _on_b = Client::connect(front).unwrap();
    let waiting = [visitor(Ipv4Addr::LOCALHOST, front), visitor(Ipv4Addr::LOCALHOST, front)];
    wait_for_line(&daemon, 2);
    drop(_on_b);
    for client in waiting {
        assert_eq!(client.join().unwrap().expect("one after the other"), "b");
    }
    let log = daemon.access_log_of(5);
    let served = log.iter().filter(|record| word(record, "server") == "b");
    assert!(
        served.clone().count() == 5 && served.clone().all(|record| word(record, "pool") == "q"),
        "{log:?}"
    );
}

/// The bug: they went on asking servers of which the file said nothing any more, until their time was over.
#[test]
fn a_reload_that_takes_the_pool_away_takes_those_who_wait_along() {
    let next = Greeter::start("next");
    let (text, front) = config(&[format!("\"{}\"", nobody())], "", &WAITS.replace("20s", "10m"));
    let mut daemon = Daemon::start(&text);
    let clients: Vec<_> = (0..5).map(|_| visitor(Ipv4Addr::LOCALHOST, front)).collect();
    wait_for_line(&daemon, 5);
    let other =
        config_at(front, &[next.toml()], "", "").replace("\"p\"", "\"z\"").replace("[pool.p]", "[pool.z]");
    daemon.reload(&other);
    for client in clients {
        assert_eq!(client.join().unwrap().expect("it only waited"), "next");
    }
    let log = daemon.access_log_of(5);
    assert!(log.iter().all(|record| word(record, "pool") == "z" && word(record, "close.reason") == "done"));
}

#[test]
fn a_line_that_is_full_refuses_and_one_that_is_waited_in_too_long_gives_up() {
    let server = Greeter::start("a");
    let (text, front) = config(&[full_server(&server)], "", "queue = { max = 1, timeout = \"3s\" }");
    let daemon = Daemon::start(&text);
    let _first = Client::connect(front).unwrap();
    let waiting = visitor(Ipv4Addr::LOCALHOST, front);
    wait_for_line(&daemon, 1);
    Client::connect(front).expect_err("the line is full");
    waiting.join().unwrap().expect_err("its time is over");
    let log = daemon.access_log_of(2);
    let told: Vec<_> =
        log.iter().map(|record| (word(record, "close.reason"), word(record, "close.phase"))).collect();
    assert_eq!(told, [("queue_full", "queue"), ("queue_timeout", "queue")]);
    assert!(number(&log[1], "t.queue") >= 3_000_000);
    assert!(word(&log[1], "close.detail").contains("max_connections"), "{}", log[1]);
    for reason in ["queue_full", "queue_timeout"] {
        assert_eq!(daemon.metric("tidegate_connections_closed_total", &[("reason", reason)]), 1.0);
    }
}

/// The bug: one source filled the line, and everybody else was refused.
#[test]
fn nobody_fills_the_line_for_others() {
    let server = Greeter::start("a");
    let queue = "queue = { max = 5, timeout = \"20s\" }\nretry = { backoff = \"1h\" }";
    let (text, front) = config(&[full_server(&server)], "", queue);
    let daemon = Daemon::start(&text);
    let first = Client::connect(front).unwrap();
    let mut greedy = Vec::new();
    for place in 0..5 {
        greedy.push(visitor(Ipv4Addr::new(127, 0, 4, 1), front));
        wait_for_line(&daemon, place + 1);
    }
    Client::connect_from(Ipv4Addr::new(127, 0, 4, 1), front).expect_err("it has them all already");
    let displaced = || daemon.metric("tidegate_pool_displaced_connections_total", &[("priority", "normal")]);
    let mut others = Vec::new();
    for (host, lost) in [(2, 1.0), (3, 2.0), (4, 3.0)] {
        others.push(visitor(Ipv4Addr::new(127, 0, 4, host), front));
        eventually("a place to be given up", PATIENCE, || (displaced() == lost).then_some(()));
        greedy.pop().unwrap().join().unwrap().expect_err("the newest of the greedy one");
    }
    first.leave().unwrap();
    for client in greedy.into_iter().chain(others) {
        assert_eq!(client.join().unwrap().expect("it waited"), "a");
    }
    let log = daemon.access_log_of(10);
    let told: Vec<_> = log.iter().filter(|record| word(record, "close.reason") == "queue_full").collect();
    assert!(told.iter().all(|record| word(record, "client").starts_with("127.0.4.1:")), "{told:?}");
    let detail = "5 clients wait for pool `p`, and one from another source, of which fewer wait, came and took \
                  its place";
    let lost = told.iter().filter(|record| word(record, "close.detail") == detail);
    assert_eq!((told.len(), lost.filter(|record| number(record, "t.queue") > 0).count()), (4, 3), "{told:?}");
}

#[test]
fn a_client_that_resets_leaves_the_line_at_once() {
    let (text, front) = config(&[format!("\"{}\"", nobody())], "", WAITS);
    let daemon = Daemon::start(&text);
    let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(front).unwrap()).collect();
    wait_for_line(&daemon, 3);
    for client in clients {
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }
    wait_for_line(&daemon, 0);
    for record in daemon.access_log_of(3) {
        assert_eq!((word(&record, "close.reason"), word(&record, "close.phase")), ("client_reset", "queue"));
    }
}

/// The bug: whose turn it was had been told to end while it connected, the others while they waited.
#[test]
fn a_client_that_resets_while_it_is_its_turn_has_waited_like_the_others() {
    let hole = BlackHole::start();
    let pauses =
        "connect_timeout = \"1s\"\nretry = { attempts = 1, backoff = \"1ms\", max_backoff = \"1ms\" }";
    let (text, front) = config(&[named("hole", hole.address)], "", &format!("{pauses}\n{WAITS}"));
    let daemon = Daemon::start(&text);
    let mut clients = Vec::new();
    for place in 0..2 {
        clients.push(TcpStream::connect(front).unwrap());
        wait_for_line(&daemon, place + 1);
    }
    for client in clients {
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }
    wait_for_line(&daemon, 0);
    for record in daemon.access_log_of(2) {
        assert_eq!((word(&record, "close.reason"), word(&record, "close.phase")), ("client_reset", "queue"));
    }
}

/// The bug: the record of such a client did not say that it had waited.
#[test]
fn who_is_cut_by_a_stop_while_it_waits_is_told_of_as_one_that_waited() {
    let (text, front) = config(&[format!("\"{}\"", nobody())], "", WAITS);
    let mut daemon = Daemon::start(&format!("[process]\ndrain_timeout = \"1s\"\n\n{text}"));
    let _waits = TcpStream::connect(front).unwrap();
    wait_for_line(&daemon, 1);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(3));
    let record = &daemon.access_log_of(1)[0];
    assert_eq!(word(record, "close.reason"), "drain_deadline");
    assert!(number(record, "t.queue") >= 1_000_000, "{record}");
}

#[test]
fn a_reload_gives_the_line_its_new_servers() {
    let server = Greeter::start("new");
    let (text, front) =
        config(&[format!("\"{}\"", nobody())], "", &format!("{WAITS}\nretry = {{ backoff = \"1h\" }}"));
    let mut daemon = Daemon::start(&text);
    let clients: Vec<_> = (0..10).map(|_| visitor(Ipv4Addr::LOCALHOST, front)).collect();
    wait_for_line(&daemon, 10);
    daemon.rewrite_config(&config_at(front, &[server.toml()], "", WAITS));
    daemon.signal(Signal::SIGHUP);
    clients.into_iter().for_each(|client| assert_eq!(client.join().unwrap().expect("it waited"), "new"));
}
