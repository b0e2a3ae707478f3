//! Every connection ends in exactly one word, and the log and the metric tell the same one.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use nix::sys::signal::Signal;

use crate::peers::{BlackHole, Client, Greeter, config, nobody};
use crate::support::record::{number, word};
use crate::support::{Daemon, PATIENCE, eventually, free_port};

/// The record with that reason, which the metric must know as well.
#[track_caller]
fn told(daemon: &Daemon, reason: &str) -> Value {
    let what = format!("a record of {reason}");
    let record = eventually(&what, PATIENCE, || {
        daemon.access_log().into_iter().find(|record| word(record, "close.reason") == reason)
    });
    let labels = [("listener", "l"), ("pool", "p"), ("by", word(&record, "close.by")), ("reason", reason)];
    assert!(
        daemon.metric("tidegate_connections_closed_total", &labels) >= 1.0,
        "the metric knows {labels:?}"
    );
    assert!(!word(&record, "close.detail").is_empty(), "a sentence to paste: {record}");
    record
}

fn in_front_of(server: SocketAddr, listener: &str, pool: &str) -> (Daemon, SocketAddr) {
    let (text, front) = config(&[format!("\"{server}\"")], listener, pool);
    (Daemon::start(&text), front)
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A listener of ours, a daemon before it, and the two ends of one connection through it.
fn through(listener: &str, pool: &str) -> (Daemon, TcpStream, TcpStream) {
    let backing = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let (daemon, front) = in_front_of(backing.local_addr().unwrap(), listener, pool);
    let client = TcpStream::connect(front).unwrap();
    let server = backing.accept().unwrap().0;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (daemon, client, server)
}

#[test]
fn done_with_every_field_of_the_record() {
    let (daemon, mut client, mut server) = through("", "");
    let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    client.write_all(b"four").unwrap();
    server.read_exact(&mut [0; 4]).unwrap();
    server.write_all(b"sixsix").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);
    let record = told(&daemon, "done");
    assert_eq!((word(&record, "close.by"), word(&record, "close.how")), ("client", "fin"));
    assert_eq!((number(&record, "bytes_in"), number(&record, "bytes_out")), (4, 6));
    assert_eq!(word(&record, "client"), ends.0.to_string());
    assert_eq!(word(&record, "local"), ends.1.to_string());
    assert_eq!((number(&record, "v"), number(&record, "generation")), (1, 1));
    assert_eq!((word(&record, "listener"), word(&record, "pool"), word(&record, "path")), ("l", "p", "copy"));
    assert!(word(&record, "balance").starts_with("least"), "{record}");
    let times = ["t.connect", "t.first_byte", "t.total"].map(|name| number(&record, name));
    assert!(times.is_sorted(), "{record}");
    assert_eq!(record["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(daemon.metric("tidegate_listener_received_bytes_total", &[("listener", "l")]), 4.0);
    assert_eq!(daemon.metric("tidegate_server_received_bytes_total", &[("pool", "p")]), 6.0);
}

#[test]
fn the_side_that_ends_first_is_named() {
    let (daemon, mut client, server) = through("", "");
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    assert_eq!(word(&told(&daemon, "done"), "close.by"), "server");
}

#[test]
fn a_reset_by_the_client() {
    let (daemon, client, mut server) = through("", "");
    reset(client);
    assert!(server.read(&mut [0]).is_err(), "a reset is passed on as a reset");
    let record = told(&daemon, "client_reset");
    assert_eq!((word(&record, "close.by"), word(&record, "close.how")), ("client", "rst"));
}

#[test]
fn a_reset_by_the_server() {
    let (daemon, mut client, mut server) = through("", "");
    // A reset in the moment of the accept may still count as a connect that failed, and is retried.
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    reset(server);
    assert!(client.read(&mut [0]).is_err(), "a reset is passed on as a reset");
    let record = told(&daemon, "server_reset");
    assert_eq!((word(&record, "close.by"), word(&record, "close.how")), ("server", "rst"));
}

#[test]
fn silence() {
    let (daemon, _client, _server) = through("idle_timeout = \"200ms\"", "");
    let record = told(&daemon, "idle_timeout");
    assert_eq!((word(&record, "close.by"), word(&record, "close.how")), ("proxy", "timeout"));
    assert!(number(&record, "t.total") >= 200_000, "{record}");
}

#[test]
fn silence_after_one_side_has_ended() {
    let (daemon, client, _server) = through("half_close_timeout = \"200ms\"", "");
    client.shutdown(Shutdown::Write).unwrap();
    let record = told(&daemon, "half_close_timeout");
    assert!(word(&record, "close.detail").starts_with("the client had ended"), "{record}");
}

#[test]
fn one_server_that_refuses() {
    let (daemon, front) = in_front_of(nobody(), "", "");
    Client::connect(front).expect_err("nobody is there");
    let record = told(&daemon, "server_refused");
    assert_eq!((word(&record, "close.by"), word(&record, "close.phase")), ("server", "connect"));
    assert_eq!(number(&record, "close.errno"), 111);
}

#[test]
fn one_server_that_cannot_be_reached() {
    // A multicast address takes no TCP connection: the kernel says so before any packet.
    let (daemon, front) = in_front_of("224.0.0.1:9".parse().unwrap(), "", "");
    Client::connect(front).expect_err("no way there");
    told(&daemon, "server_unreachable");
}

#[test]
fn one_server_that_does_not_answer() {
    let hole = BlackHole::start();
    let (daemon, front) = in_front_of(hole.address, "", "connect_timeout = \"200ms\"");
    Client::connect(front).expect_err("no answer");
    assert_eq!(word(&told(&daemon, "connect_timeout"), "close.how"), "timeout");
}

#[test]
fn a_client_that_resets_while_a_server_is_looked_for() {
    let hole = BlackHole::start();
    let (daemon, front) = in_front_of(hole.address, "", "connect_timeout = \"10s\"");
    let client = TcpStream::connect(front).unwrap();
    eventually("the client to be taken", PATIENCE, || {
        (daemon.metric("tidegate_listener_active_connections", &[]) == 1.0).then_some(())
    });
    reset(client);
    let record = told(&daemon, "client_reset");
    assert_eq!(word(&record, "close.phase"), "connect");
    assert_eq!(daemon.metric("tidegate_server_connect_failures_total", &[]), 0.0, "no fault of the server");
}

#[test]
fn the_text_format_tells_the_same() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let text = format!("[log.access]\noutput = \"stdout\"\nformat = \"text\"\n\n{text}");
    let daemon = Daemon::start(&text);
    Client::connect(front).unwrap().leave().unwrap();
    let line = eventually("a line", PATIENCE, || daemon.stdout().lines().next().map(String::from));
    assert!(line.contains("close.reason=done") && line.contains("server=a"), "{line}");
}

#[test]
fn only_abnormal_ends_are_logged_when_asked() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "max_connections = 1\nwhen_full = \"refuse\"", "");
    let text = format!("[log.access]\noutput = \"stdout\"\nwhen = \"abnormal\"\n\n{text}");
    let daemon = Daemon::start(&text);
    let first = Client::connect(front).unwrap();
    Client::connect(front).expect_err("full");
    first.leave().unwrap();
    eventually("both to have ended", PATIENCE, || {
        (daemon.metric("tidegate_connections_closed_total", &[]) == 2.0).then_some(())
    });
    eventually("a line", PATIENCE, || daemon.stdout().lines().next().map(drop));
    assert_eq!(daemon.stdout().lines().count(), 1, "{}", daemon.stdout());
    assert!(daemon.stdout().contains("listener_limit"), "{}", daemon.stdout());
}

/// A stopped machine goes on where it was: what came meanwhile counts before the time that passed.
#[test]
fn a_byte_that_came_while_the_daemon_stood_still_keeps_its_connection() {
    let (mut daemon, mut client, mut server) = through("idle_timeout = \"3s\"", "");
    client.write_all(b"a").unwrap();
    server.read_exact(&mut [0]).unwrap();
    daemon.signal(Signal::SIGSTOP);
    let threads = format!("/proc/{}/task", daemon.pid());
    eventually("every thread to stand still", PATIENCE, || {
        let is_stopped = |thread: std::io::Result<std::fs::DirEntry>| {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            status.contains("State:\tT")
        };
        std::fs::read_dir(&threads).unwrap().all(is_stopped).then_some(())
    });
    client.write_all(b"b").unwrap();
    std::thread::sleep(Duration::from_millis(3500)); // not a wait for anything: the pause is the scene
    daemon.signal(Signal::SIGCONT);
    server.read_exact(&mut [0]).expect("the connection was not silent");
    server.write_all(b"c").unwrap();
    client.read_exact(&mut [0]).unwrap();
}
