//! Clients that come and say nothing: no server hears of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::peers::{Client, Greeter, config};
use crate::support::record::{field, number, word};
use crate::support::{Daemon, PATIENCE, eventually};

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn active(daemon: &Daemon) -> f64 {
    daemon.metric("tidegate_listener_active_connections", &[])
}

#[test]
fn a_silent_client_is_closed_at_its_deadline_and_no_server_hears_of_it() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "first_byte_timeout = \"300ms\"", "");
    let daemon = Daemon::start(&text);
    let begun = Instant::now();
    let mut silent = connect(front);
    assert_eq!(silent.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    let record = &daemon.access_log_of(1)[0];
    assert_eq!((word(record, "close.reason"), word(record, "close.how")), ("hello_timeout", "timeout"));
    assert_eq!((word(record, "close.by"), word(record, "close.phase")), ("proxy", "hello"));
    assert!(word(record, "close.detail").contains("first_byte_timeout (300ms)"), "{record}");
    assert!(field(record, "server").is_null() && field(record, "t.connect").is_null(), "{record}");
    assert_eq!(server.taken(), 0);
    let closed = daemon.metric("tidegate_connections_closed_total", &[("reason", "hello_timeout")]);
    assert_eq!((closed, active(&daemon)), (1.0, 0.0));
}

#[test]
fn in_a_dry_run_a_silent_client_goes_on_to_its_server_and_is_counted() {
    let server = Greeter::start("a");
    let limit = "admission = \"dry-run\"\nfirst_byte_timeout = \"100ms\"";
    let (text, front) = config(&[server.toml()], limit, "");
    let daemon = Daemon::start(&text);
    let mut silent = connect(front);
    let mut heard = [0; 2];
    silent.read_exact(&mut heard).expect("its server speaks first");
    assert_eq!(&heard, b"a\n");
    let counted = || {
        let labels = [("reason", "hello_timeout")];
        daemon.metric("tidegate_listener_would_reject_connections_total", &labels)
    };
    assert_eq!(counted(), 1.0);
    let mut ended = connect(front);
    ended.shutdown(Shutdown::Write).unwrap();
    ended.read_exact(&mut heard).expect("who has only ended is not refused either");
    assert_eq!((&heard, counted()), (b"a\n", 1.0));
}

#[test]
fn a_client_that_speaks_is_served_to_the_last_byte_and_its_first_one_is_timed() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "first_byte_timeout = \"30s\"", "");
    let daemon = Daemon::start(&text);
    let mut client = connect(front);
    eventually("the client to be let in", PATIENCE, || (active(&daemon) == 1.0).then_some(()));
    assert_eq!(server.taken(), 0, "it has not said anything yet");
    client.write_all(b"x").unwrap();
    let mut heard = [0; 3];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"a\nx", "the greeting, and the byte that was waited for");
    client.write_all(b"and more").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "and more");
    let record = &daemon.access_log_of(1)[0];
    assert_eq!((word(record, "close.reason"), number(record, "bytes_in")), ("done", 9));
    assert!(number(record, "t.hello") <= number(record, "t.connect"), "{record}");
}

/// One that has said all and ended before anybody looked is heard out all the same.
#[test]
fn a_client_that_says_all_at_once_and_ends_is_answered() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "first_byte_timeout = \"30s\"", "");
    let _daemon = Daemon::start(&text);
    for _ in 0..20 {
        let mut client = connect(front);
        client.write_all(b"all").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        client.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "a\nall");
    }
}

#[test]
fn a_client_that_leaves_without_a_word_costs_no_server_and_is_told_apart() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "first_byte_timeout = \"30s\"", "");
    let daemon = Daemon::start(&text);
    let mut ends = connect(front);
    ends.shutdown(Shutdown::Write).unwrap();
    assert_eq!(ends.read(&mut [0]).unwrap(), 0, "a clean end for a clean end");
    let record = &daemon.access_log_of(1)[0];
    let told = ["close.reason", "close.by", "close.phase", "close.how"].map(|name| word(record, name));
    assert_eq!(told, ["done", "client", "hello", "fin"]);

    let resets = connect(front);
    eventually("it to be let in", PATIENCE, || (active(&daemon) == 1.0).then_some(()));
    socket2::SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
    drop(resets);
    let record = &daemon.access_log_of(2)[1];
    let told = ["close.reason", "close.by", "close.phase", "close.how"].map(|name| word(record, name));
    assert_eq!(told, ["client_reset", "client", "hello", "rst"]);
    assert_eq!((server.taken(), active(&daemon)), (0, 0.0));
}

#[test]
fn who_is_silent_holds_a_place_under_max_connections_and_gives_it_back() {
    let server = Greeter::start("a");
    let keys = "first_byte_timeout = \"300ms\"\nmax_connections = 1";
    let (text, front) = config(&[server.toml()], keys, "");
    let _daemon = Daemon::start(&text);
    let _silent = connect(front);
    let mut next = connect(front);
    next.write_all(b"!").unwrap();
    Client::greeted_on(next).expect("it is served after the silent one's deadline");
}

#[test]
fn a_drain_waits_for_who_has_not_spoken_yet_and_cuts_it_at_its_deadline() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "first_byte_timeout = \"1h\"", "");
    let mut daemon = Daemon::start(&format!("[process]\ndrain_timeout = \"4s\"\n\n{text}"));
    let (mut speaks, mut silent) = (connect(front), connect(front));
    eventually("both to be let in", PATIENCE, || (active(&daemon) == 2.0).then_some(()));
    daemon.signal(Signal::SIGTERM);
    eventually("the drain to begin", PATIENCE, || {
        daemon.notices().iter().any(|notice| notice == "STOPPING=1").then_some(())
    });
    speaks.write_all(b"late").unwrap();
    speaks.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    speaks.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "a\nlate");
    assert_eq!(silent.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (code, _, stderr) = daemon.wait();
    assert_eq!(code, Some(3), "{stderr}");
    let log = daemon.access_log_of(2);
    let cut = log.iter().find(|record| word(record, "close.reason") == "drain_deadline").unwrap();
    assert!(word(cut, "close.detail").contains("without a server"), "{cut}");
    assert!(cut.get("route").is_none() && cut.get("pool").is_none(), "nobody had asked where it goes: {cut}");
}
