//! Descriptors and ports run out, peers vanish: what exists goes on, nothing spins, and all
//! comes back. These run in network namespaces of their own, where that is what it takes.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::peers::{Client, Greeter, config};
use crate::support::proc::is_root_or_skipped;
use crate::support::record::word;
use crate::support::{Daemon, PATIENCE, eventually};

/// Runs `scene` in a network namespace with nothing but a loopback interface, which only root may make.
pub fn in_namespace(scene: impl FnOnce() + Send + 'static) {
    if !is_root_or_skipped() {
        return;
    }
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        sh("ip link set lo up");
        scene();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[track_caller]
pub fn sh(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// CPU time of a process so far, in clock ticks of a hundredth of a second.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn without_descriptors_it_waits_and_does_not_spin() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let daemon = Daemon::builder(&text).under(["prlimit", "--nofile=64:64"]).start();
    let mut crowd: Vec<TcpStream> = (0..120).map(|_| TcpStream::connect(front).unwrap()).collect();
    let active = || server.taken();
    eventually("as many as fit", PATIENCE, || (active() >= 8).then_some(()));
    let (begun, before) = (Instant::now(), cpu_ticks(daemon.pid()));
    thread::sleep(Duration::from_secs(1)); // not a wait: the second is what is measured
    let burnt = (cpu_ticks(daemon.pid()) - before) as f64 / begun.elapsed().as_secs_f64();
    assert!(burnt <= 20.0, "{burnt} % of a core while nothing can be done");
    while let Some(stream) = crowd.pop() {
        drop(stream);
    }
    eventually("room for a new client", PATIENCE, || Client::connect(front).ok()).leave().unwrap();
}

#[test]
fn without_local_ports_other_connections_go_on_and_the_server_is_not_blamed() {
    in_namespace(|| {
        sh("echo '40000 40049' > /proc/sys/net/ipv4/ip_local_port_range");
        let server = Greeter::start("a");
        let (text, front) = config(&[server.toml()], "", "");
        let daemon = Daemon::start(&text);
        let sources = (10..14).map(|host| Ipv4Addr::new(127, 0, 0, host));
        let mut open: Vec<Client> = Vec::new();
        for source in sources {
            open.extend((0..18).filter_map(|_| Client::connect_from(source, front).ok()));
        }
        // The clients' own ports, bound one by one, are out of reach for connections to servers.
        assert!((10..=50).contains(&open.len()), "{} connections over 50 ports", open.len());
        let log = eventually("a connection without a port", PATIENCE, || {
            daemon.access_log().into_iter().find(|record| word(record, "close.reason") == "port_exhausted")
        });
        assert_eq!(word(&log, "close.by"), "proxy");
        for client in &mut open {
            client.echo(b"still here").unwrap();
        }
        open.pop().unwrap().leave().unwrap();
    });
}

/// A rig whose client's side or server's side can be cut off without a word.
fn cut_off(port_of: impl FnOnce(SocketAddr, SocketAddr) -> u16, listener: &str, pool: &str, expected: &str) {
    let backing = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::support::free_port())).unwrap();
    let server_at = backing.local_addr().unwrap();
    let (text, front) = config(&[format!("\"{server_at}\"")], listener, pool);
    let daemon = Daemon::start(&text);
    let client = TcpStream::connect(front).unwrap();
    let server = backing.accept().unwrap().0;
    let port = port_of(front, server_at);
    sh(&format!(
        "nft add table ip cut && nft add chain ip cut out '{{ type filter hook output priority 0; }}' && \
         nft add rule ip cut out tcp sport {port} drop && nft add rule ip cut out tcp dport {port} drop"
    ));
    // Sends towards the side that is cut off, so that unacknowledged data tells.
    use std::io::Write;
    let mut sender = if expected == "server_vanished" { &client } else { &server };
    sender.write_all(b"anybody there?").unwrap();
    let record = eventually(expected, PATIENCE, || {
        daemon.access_log().into_iter().find(|record| word(record, "close.reason") == expected)
    });
    assert_eq!(word(&record, "close.how"), "timeout", "{record}");
}

#[test]
fn a_client_that_vanishes_is_found_out() {
    in_namespace(|| cut_off(|front, _| front.port(), "tcp_user_timeout = \"500ms\"", "", "client_vanished"));
}

#[test]
fn a_server_that_vanishes_is_found_out() {
    in_namespace(|| {
        cut_off(|_, server| server.port(), "", "tcp_user_timeout = \"500ms\"", "server_vanished");
    });
}

#[test]
fn accept_errors_of_every_kind_are_survived() {
    for error in ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPROTO", "EINTR"] {
        let server = Greeter::start("a");
        let (text, front) = config(&[server.toml()], "", "");
        let inject = format!("inject=accept4:error={error}:when=2+3");
        let daemon = Daemon::builder(&text)
            .under(["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", &inject])
            .start();
        for _ in 0..12 {
            let mut client = Client::connect(front).unwrap();
            client.echo(error.as_bytes()).unwrap();
            client.leave().unwrap();
        }
        drop(daemon);
    }
}

#[test]
fn without_pipes_bulk_is_copied_to_the_last_byte() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let inject = "inject=pipe2:error=EMFILE";
    let daemon =
        Daemon::builder(&text).under(["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", inject]).start();
    let mut client = Client::connect(front).unwrap();
    for _ in 0..64 {
        client.echo(&[7; 128 * 1024]).unwrap();
    }
    client.leave().unwrap();
    assert_eq!(word(&daemon.access_log_of(1)[0], "path"), "copy");
}

#[test]
fn a_socket_that_cannot_be_made_costs_one_client_and_says_so() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    let text = format!("[process]\nworkers = 2\n\n{text}");
    // strace counts for each thread, and only workers make so many: with two, one has at least sixty clients.
    let inject = "inject=socket:error=EMFILE:when=20..21";
    let daemon =
        Daemon::builder(&text).under(["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", inject]).start();
    let failed = (0..120).filter(|_| Client::connect(front).and_then(Client::leave).is_err()).count();
    let log = daemon.access_log_of(120);
    let told: Vec<_> = log.iter().filter(|record| word(record, "close.reason") == "fd_exhausted").collect();
    assert!(failed > 0 && told.len() == failed, "{failed} clients failed, {} are told", told.len());
    assert!(told.iter().all(|record| word(record, "close.by") == "proxy"));
}

/// The bug: it got a clean end, as if it had been served to its last byte, and no record told of it.
#[test]
fn a_client_that_cannot_be_watched_is_reset_and_told_of() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "", "");
    // io_uring watches sockets without a call of its own.
    let text = format!("[process]\nio = \"epoll\"\nworkers = 1\n\n{text}");
    // Two calls for each client before; strace counts for each thread, and only the worker makes so many.
    let inject = "inject=epoll_ctl:error=ENOSPC:when=60..64";
    let daemon =
        Daemon::builder(&text).under(["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", inject]).start();
    let failed = (0..50).filter_map(|_| Client::connect(front).and_then(Client::leave).err());
    let failed: Vec<_> = failed.map(|error| error.kind()).collect();
    assert!((4..=5).contains(&failed.len()), "{failed:?}");
    assert!(failed.iter().all(|kind| *kind == ErrorKind::ConnectionReset), "{failed:?}");
    let log = daemon.access_log_of(50);
    let told: Vec<_> = log.iter().filter(|record| word(record, "close.reason") == "fd_exhausted").collect();
    assert_eq!(told.len(), failed.len());
    let unwatched = told.iter().filter(|record| word(record, "close.phase") == "accept");
    assert!(unwatched.clone().count() >= 4, "{told:?}");
    unwatched.for_each(|record| assert!(word(record, "close.detail").contains("watch"), "{record}"));
    let sum = |name| daemon.metric(name, &[]);
    assert_eq!(sum("tidegate_listener_connections_total"), 50.0);
    assert_eq!(sum("tidegate_connections_closed_total"), 50.0);
}

#[test]
fn without_local_ports_it_begins_with_the_driver_that_it_has() {
    // Otherwise there is no io_uring to be found.
    if tidegate::net::probe::io_uring().is_err() {
        return;
    }
    in_namespace(|| {
        sh("echo '40000 40007' > /proc/sys/net/ipv4/ip_local_port_range");
        let (text, _) = config(&["\"127.0.0.1:1\"".to_owned()], "", "");
        for (io, reason) in [("auto", "works"), ("io-uring", "configured")] {
            let all = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            let taken: Vec<_> = (40000..=40007).map(all).collect();
            let daemon = Daemon::start(&format!("[process]\nio = \"{io}\"\n\n{text}"));
            drop(taken);
            let labels = [("io", "io-uring"), ("reason", reason)];
            assert_eq!(daemon.metric("tidegate_process_io", &labels), 1.0, "{}", daemon.stderr());
        }
    });
}

#[test]
fn a_dead_server_is_never_met_as_oneself() {
    in_namespace(|| {
        // Few ports to dial from, and one of them is the server's: some dials would meet themselves.
        sh("echo '40000 40007' > /proc/sys/net/ipv4/ip_local_port_range");
        let (text, front) = config(&["\"127.0.0.1:40002\"".to_owned()], "", "");
        let daemon = Daemon::start(&text);
        for _ in 0..40 {
            Client::connect(front).expect_err("nobody is there");
        }
        let log = daemon.access_log_of(40);
        assert!(log.iter().all(|record| word(record, "close.reason") == "server_refused"), "{log:?}");
    });
}
