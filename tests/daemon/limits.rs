//! Never more than N, whatever the race.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::admission::is_reset;
use crate::peers::{Client, Greeter, config, config_at};
use crate::priority::waits;
use crate::support::record::word;
use crate::support::{Daemon, PATIENCE, eventually, free_port};

#[test]
fn a_full_listener_lets_clients_wait_until_there_is_room() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "max_connections = 2", "");
    let _daemon = Daemon::start(&text);
    let (first, _second) = (Client::connect(front).unwrap(), Client::connect(front).unwrap());
    let waiting = TcpStream::connect(front).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(waiting.peek(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "it waits in the queue");
    first.leave().unwrap();
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(waiting.peek(&mut [0]).unwrap(), 1, "it is greeted as soon as there is room");
}

#[test]
fn a_full_listener_that_refuses_resets_and_says_why() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "max_connections = 1\nwhen_full = \"refuse\"", "");
    let daemon = Daemon::start(&text);
    let first = Client::connect(front).unwrap();
    let refused = Client::connect(front).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    let record = &daemon.access_log_of(1)[0];
    assert_eq!((word(record, "close.reason"), word(record, "close.how")), ("listener_limit", "policy"));
    let rejected =
        || daemon.metric("tidegate_listener_rejected_connections_total", &[("reason", "listener_limit")]);
    assert_eq!(rejected(), 1.0);
    first.leave().unwrap();
    eventually("the place to be free", PATIENCE, || Client::connect(front).ok());
}

#[test]
fn a_process_limit_holds_over_all_listeners() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "when_full = \"refuse\"", "");
    let daemon = Daemon::start(&format!("[process]\nmax_connections = 1\n\n{text}"));
    let _first = Client::connect(front).unwrap();
    Client::connect(front).expect_err("the process is full");
    assert!(word(&daemon.access_log_of(1)[0], "close.detail").contains("the process"));
}

/// The bug: each worker's door kept a place of its listener while it waited for the process to have one. They
/// were counted as connections, and looked like a full listener.
#[test]
fn clients_that_wait_for_the_process_take_no_place_of_their_listener() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "max_connections = 5", "");
    let other = (Ipv4Addr::LOCALHOST, free_port()).into();
    let process = "[process]\nmax_connections = 4\nworkers = 4\n\n";
    let daemon =
        Daemon::start(&format!("{process}{text}\n[listener.other]\nbind = [\"{other}\"]\npool = \"p\"\n"));
    let inside = [front, front, other, other].map(|at| Client::connect(at).unwrap());
    // Among the doors of four workers; so many are before one of them at least, and most likely before each.
    let waiting: Vec<_> = (0..16).map(|_| TcpStream::connect(front).unwrap()).collect();
    waiting.iter().take(2).for_each(waits);
    assert_eq!(daemon.metric("tidegate_listener_active_connections", &[("listener", "l")]), 2.0);
    let shown = daemon.tidegate(&["listeners", "--json"]).stdout;
    let shown: Value = serde_json::from_slice(&shown).expect("JSON");
    let l = shown.as_array().expect("a list").iter().find(|it| word(it, "name") == "l").expect("listener l");
    assert_eq!((&l["active"], word(l, "state")), (&2.into(), "held back"));
    // Nobody's turn is lost: as places come free, all of them are served.
    let served = waiting.into_iter().map(|client| thread::spawn(|| Client::greeted_on(client)?.leave()));
    let served: Vec<_> = served.collect();
    inside.into_iter().for_each(|client| client.leave().unwrap());
    served.into_iter().for_each(|client| client.join().unwrap().expect("it was let in"));
}

#[test]
fn a_full_server_is_passed_over_and_a_full_pool_refuses() {
    let servers = [Greeter::start("a"), Greeter::start("b")];
    let limited = |server: &Greeter| server.toml().replace(" }", ", max_connections = 1 }");
    let (text, front) = config(&servers.each_ref().map(limited), "", "balance = \"first\"");
    let daemon = Daemon::start(&text);
    let (first, second) = (Client::connect(front).unwrap(), Client::connect(front).unwrap());
    assert_eq!((first.server.as_str(), second.server.as_str()), ("a", "b"));
    Client::connect(front).expect_err("both are full");
    assert_eq!(word(&daemon.access_log_of(1)[0], "close.reason"), "server_limit");
}

#[test]
fn limits_are_exact_under_many_clients_at_once() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "max_connections = 7", "");
    let daemon = Daemon::start(&text);
    let crowd: Vec<_> = (0..40)
        .map(|_| {
            std::thread::spawn(move || {
                for _ in 0..10 {
                    let mut client = Client::connect(front).unwrap();
                    client.echo(b"in").unwrap();
                    client.leave().unwrap();
                }
            })
        })
        .collect();
    crowd.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(server.taken(), 400);
    // The server sees an end a moment after its place was given to the next: one may overlap for each.
    assert!(server.most_open() <= 14, "{} at once", server.most_open());
    eventually("all places to be free", PATIENCE, || {
        (daemon.metric("tidegate_listener_active_connections", &[]) == 0.0).then_some(())
    });
}

/// A listener with two places, and two clients who have them.
fn full_listener(server: &Greeter) -> (Daemon, SocketAddr, [Client; 2]) {
    let (text, front) = config(&[server.toml()], "max_connections = 2", "");
    let daemon = Daemon::start(&format!("{LONG_DRAIN}{text}"));
    (daemon, front, [(); 2].map(|()| Client::connect(front).unwrap()))
}

const LONG_DRAIN: &str = "[process]\ndrain_timeout = \"1h\"\n\n";

fn reload(daemon: &mut Daemon, front: SocketAddr, server: &Greeter, rules: &str) {
    daemon.reload(&format!("{LONG_DRAIN}{}", config_at(front, &[server.toml()], rules, "")));
}

#[test]
fn a_reload_that_refuses_from_now_on_reaches_those_who_wait_already() {
    let server = Greeter::start("a");
    let (mut daemon, front, mut inside) = full_listener(&server);
    let waiting = [(); 3].map(|()| TcpStream::connect(front).unwrap());
    waiting.iter().for_each(waits);
    reload(&mut daemon, front, &server, "max_connections = 2\nwhen_full = \"refuse\"");
    waiting.into_iter().for_each(|client| is_reset(Client::greeted_on(client)));
    let log = daemon.access_log_of(3);
    assert!(log.iter().all(|record| word(record, "close.reason") == "listener_limit"), "{log:?}");
    inside.iter_mut().for_each(|client| client.echo(b"untouched").unwrap());

    reload(&mut daemon, front, &server, "max_connections = 2");
    let next = TcpStream::connect(front).unwrap();
    waits(&next);
    let [first, _second] = inside;
    first.leave().unwrap();
    Client::greeted_on(next).expect("there is room").leave().unwrap();
}

#[test]
fn a_reload_with_more_room_lets_in_who_waits_and_one_with_less_keeps_him_waiting() {
    let server = Greeter::start("a");
    let (mut daemon, front, inside) = full_listener(&server);
    let waiting = TcpStream::connect(front).unwrap();
    waits(&waiting);
    reload(&mut daemon, front, &server, "max_connections = 3");
    let third = Client::greeted_on(waiting).expect("there is room now");

    let waiting = TcpStream::connect(front).unwrap();
    waits(&waiting);
    reload(&mut daemon, front, &server, "max_connections = 2");
    third.leave().unwrap();
    daemon.access_log_of(1);
    waits(&waiting);
    let [first, _second] = inside;
    first.leave().unwrap();
    Client::greeted_on(waiting).expect("one of two is there").leave().unwrap();
}

/// They would have hung till `drain_timeout` otherwise: nobody leaves.
#[test]
fn who_waits_before_a_full_listener_when_it_closes_is_told_so() {
    let server = Greeter::start("a");
    let (mut daemon, front, mut inside) = full_listener(&server);
    let waiting = [(); 100].map(|()| TcpStream::connect(front).unwrap());
    waits(&waiting[0]);
    let asked = Instant::now();
    daemon.signal(Signal::SIGTERM);
    waiting.into_iter().for_each(|client| is_reset(Client::greeted_on(client)));
    assert!(asked.elapsed() < PATIENCE / 2, "{:?}", asked.elapsed());
    let log = daemon.access_log_of(100);
    let detail = "refused: the listener is at its max_connections (2)";
    let is_refused = |record: &Value| {
        ["close.reason", "close.detail"].map(|it| word(record, it)) == ["listener_limit", detail]
    };
    assert!(log.iter().all(is_refused), "{log:?}");
    inside.iter_mut().for_each(|client| client.echo(b"untouched").unwrap());
    inside.into_iter().for_each(|client| client.leave().unwrap());
    assert_eq!(daemon.wait().0, Some(0));
}

/// Their places come free by the daemon's own clock, so that a test that stalls meanwhile sees no refusal.
#[test]
fn who_waits_before_a_full_listener_when_it_closes_still_gets_the_room_that_comes_free() {
    let server = Greeter::start("a");
    let rules = "max_connections = 2\nidle_timeout = \"300ms\"";
    let (text, front) = config(&[server.toml()], rules, "");
    let mut daemon = Daemon::start(&format!("{LONG_DRAIN}{text}"));
    let _inside = [(); 2].map(|()| Client::connect(front).unwrap());
    let waiting = [(); 2].map(|()| TcpStream::connect(front).unwrap());
    daemon.signal(Signal::SIGTERM);
    let served = waiting.map(|client| Client::greeted_on(client).expect("it was let in"));
    drop(served);
    assert_eq!(daemon.wait().0, Some(0));
}

#[test]
fn a_full_listener_before_which_nobody_stands_is_closed_at_once() {
    let server = Greeter::start("a");
    let (mut daemon, front, inside) = full_listener(&server);
    daemon.signal(Signal::SIGTERM);
    eventually("new clients to be refused", PATIENCE, || {
        let error = TcpStream::connect_timeout(&front, Duration::from_millis(300)).err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    inside.into_iter().for_each(|client| client.leave().unwrap());
    assert_eq!(daemon.wait().0, Some(0));
}
