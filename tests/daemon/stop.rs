//! SIGTERM, and its friends.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::exhausted::{in_namespace, sh};
use crate::peers::{Client, Greeter, config};
use crate::support::daemon::Builder;
use crate::support::proc::is_root_or_skipped;
use crate::support::record::word;
use crate::support::{Daemon, PATIENCE, eventually};

#[test]
fn without_connections_it_ends_at_once_and_says_so() {
    let server = Greeter::start("a");
    let (text, _) = config(&[server.toml()], "", "");
    let mut daemon = Daemon::start(&text);
    daemon.signal(Signal::SIGTERM);
    let (code, _, stderr) = daemon.wait();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.ends_with("tidegate stopped: 0 connections finished, 0 were cut\n"), "{stderr}");
    assert!(daemon.notices().iter().any(|notice| notice == "STOPPING=1"));
}

#[test]
fn open_connections_finish_and_new_ones_are_refused() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let mut daemon = Daemon::start(&text);
    let mut open: Vec<Client> = (0..5).map(|_| Client::connect(front).unwrap()).collect();
    daemon.signal(Signal::SIGTERM);
    eventually("the listener to close", PATIENCE, || {
        let error = TcpStream::connect_timeout(&front, Duration::from_millis(300)).err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    for client in &mut open {
        client.echo(b"still here").unwrap();
    }
    open.into_iter().for_each(|client| client.leave().unwrap());
    let (code, _, stderr) = daemon.wait();
    assert_eq!(code, Some(0), "{stderr}");
    // The looks at the listener may have been let in before it closed.
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("tidegate stopped: ") && last.ends_with("finished, 0 were cut"), "{stderr}");
    let finished: usize = last.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(finished >= 5, "{stderr}");
}

#[test]
fn what_is_left_at_the_deadline_is_cut_and_counted() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let mut daemon = Daemon::start(&format!("[process]\ndrain_timeout = \"4s\"\n\n{text}"));
    let (leaves, mut stays) = (Client::connect(front).unwrap(), Client::connect(front).unwrap());
    daemon.signal(Signal::SIGTERM);
    eventually("the drain to begin", PATIENCE, || {
        daemon.notices().iter().any(|notice| notice == "STOPPING=1").then_some(())
    });
    leaves.leave().unwrap();
    assert_eq!(stays.farewell().unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (code, _, stderr) = daemon.wait();
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.ends_with("tidegate stopped: 1 connections finished, 1 were cut\n"), "{stderr}");
    let log = daemon.access_log_of(2);
    let cut = log.iter().find(|record| word(record, "close.reason") == "drain_deadline").unwrap();
    assert_eq!((word(cut, "close.by"), word(cut, "close.phase")), ("proxy", "drain"));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Greeter::start("a");
        let (text, front) = config(&[server.toml()], "", "");
        let mut daemon = Daemon::start(&text);
        let _stays = Client::connect(front).unwrap();
        daemon.signal(Signal::SIGTERM);
        eventually("the drain to begin", PATIENCE, || {
            daemon.notices().iter().any(|notice| notice == "STOPPING=1").then_some(())
        });
        let asked = Instant::now();
        daemon.signal(second);
        let (code, _, stderr) = daemon.wait();
        assert_eq!(code, Some(3), "{stderr}");
        assert!(asked.elapsed() < Duration::from_secs(10), "it did not wait for drain_timeout");
        assert!(stderr.ends_with("tidegate stopped: 0 connections finished, 1 were cut\n"), "{stderr}");
    }
}

#[test]
fn readiness_says_no_before_clients_are_refused() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let mut daemon = Daemon::start(&format!("[process]\nready_delay = \"5s\"\n\n{text}"));
    assert_eq!(daemon.http_get("/readyz").status, 200);
    daemon.signal(Signal::SIGTERM);
    eventually("readiness to say no", PATIENCE, || (daemon.http_get("/readyz").status == 503).then_some(()));
    assert_eq!(daemon.http_get("/livez").status, 200);
    Client::connect(front).unwrap().leave().unwrap();
    assert_eq!(daemon.wait().0, Some(0));
}

/// Whoever completed a handshake is served: nobody is reset by the closing of a queue.
#[test]
fn a_stop_under_load_loses_nobody_who_was_let_in() {
    stop_under_load(Daemon::builder);
}

/// The bug: what lets nobody new in was a filter, for which some kernels ask for this capability. The unit does not
/// have it, and whoever came in the last moment was reset.
#[test]
fn nor_does_it_without_the_capability_to_administer_the_network() {
    if is_root_or_skipped() {
        let plain = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"];
        stop_under_load(|text| Daemon::builder(text).under(plain));
    }
}

fn stop_under_load(daemon: impl FnOnce(&str) -> Builder) {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let mut daemon = daemon(&text).start();
    let (served, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let is_over = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..16)
        .map(|_| {
            let (served, lost, is_over) = (Arc::clone(&served), Arc::clone(&lost), Arc::clone(&is_over));
            std::thread::spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    // Who comes when nobody is let in any more hears nothing at first, and then a refusal.
                    let Ok(stream) = TcpStream::connect_timeout(&front, Duration::from_millis(500)) else {
                        continue;
                    };
                    match Client::greeted_on(stream).and_then(Client::leave) {
                        Ok(()) => served.fetch_add(1, Ordering::SeqCst),
                        Err(_) => lost.fetch_add(1, Ordering::SeqCst),
                    };
                }
            })
        })
        .collect();
    eventually("load", PATIENCE, || (served.load(Ordering::SeqCst) > 500).then_some(()));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
    is_over.store(true, Ordering::SeqCst);
    crowd.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(lost.load(Ordering::SeqCst), 0, "of {}", served.load(Ordering::SeqCst));
}

/// As that of a client far away does, it takes ten times as long as a listener stays open anyway.
#[test]
fn a_stop_waits_for_a_handshake_that_is_under_way() {
    in_namespace(|| {
        let server = Greeter::start("a");
        let (text, front) = config(&[server.toml()], "", "");
        let mut daemon = Daemon::start(&text);
        // The client's answer to ours is lost, and what it says at once as well. It says that again.
        let (port, is_answer) = (front.port(), "tcp flags & (syn | ack) == ack");
        sh(&format!(
            "nft add table ip far && nft add chain ip far in '{{ type filter hook input priority 0; }}' && \
             nft add rule ip far in tcp dport {port} '{is_answer}' numgen inc mod 1000000 '<' 2 drop"
        ));
        let mut client = TcpStream::connect(front).expect("it has our answer");
        client.write_all(b"hello").unwrap();
        daemon.signal(Signal::SIGTERM);
        assert_eq!(Client::greeted_on(client).expect("it thought that it was connected").server, "a");
        assert_eq!(daemon.wait().0, Some(0));
    });
}

#[test]
fn common_signals_do_not_end_it() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let mut daemon = Daemon::start(&text);
    for signal in [Signal::SIGPIPE, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM, Signal::SIGCHLD] {
        daemon.signal(signal);
    }
    Client::connect(front).unwrap().leave().unwrap();
    assert!(daemon.is_running());
}

#[test]
fn a_second_daemon_on_the_same_address_does_not_start() {
    let server = Greeter::start("a");
    let (text, _) = config(&[server.toml()], "", "");
    let _first = Daemon::start(&text);
    let (code, _, stderr) = Daemon::builder(&text).spawn().wait();
    assert_eq!(code, Some(1));
    assert!(stderr.contains("listener `l` cannot bind") && stderr.contains("ss -ltnp"), "{stderr}");
}

/// The bug: the kernel still held the sockets of the rings of the one that was killed, and the next one gave up.
#[test]
fn a_daemon_that_was_killed_is_started_again_at_once() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    for _ in 0..10 {
        let _daemon = Daemon::start(&text);
        let _open: Vec<_> = (0..20).map(|_| Client::connect(front).unwrap()).collect();
    }
}
