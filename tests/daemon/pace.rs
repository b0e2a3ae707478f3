//! How often servers are asked: as they stand, once for all who want to know, and not in step.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::checks::{Scripted, message_when};
use crate::peers::config;
use crate::support::{Daemon, PATIENCE, eventually, free_port, http, listen};

const PING: &str =
    "type = \"send-expect\"\nsteps = [{ send = \"PING\", expect = \"PONG\" }]\njitter = \"0%\"\n";

/// A server whose gate can be shut: then it hangs up on each check. When each came is noted.
struct Gated {
    address: SocketAddr,
    is_shut: Arc<AtomicBool>,
    came: Arc<Mutex<Vec<Instant>>>,
}

impl Gated {
    /// Answers PING while its gate is open.
    fn start() -> Gated {
        let (is_shut, came) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (shut, noted) = (Arc::clone(&is_shut), Arc::clone(&came));
        let server = Scripted::start(move |stream| {
            noted.lock().unwrap().push(Instant::now());
            let mut said = [0; 4];
            if !shut.load(Ordering::SeqCst) && stream.read_exact(&mut said).is_ok() {
                let _ = stream.write_all(b"PONG");
            }
            let _ = stream.shutdown(Shutdown::Write);
        });
        Gated { address: server.address, is_shut, came }
    }

    /// Checks that have come so far.
    fn count(&self) -> usize {
        self.came.lock().unwrap().len()
    }

    /// From the check of that number to the one that many after it.
    fn time_of(&self, from: usize, checks: usize) -> Duration {
        let came = self.came.lock().unwrap();
        came[from + checks] - came[from]
    }
}

/// With one interval for all, these verdicts would take forty seconds.
#[test]
fn a_server_is_asked_seldom_while_it_is_up_and_often_once_something_is_wrong() {
    let server = Gated::start();
    let pace = "interval = \"1s\"\ninterval_changing = \"20ms\"\ninterval_down = \"300ms\"\n";
    let named = format!("{{ name = \"a\", address = \"{}\" }}", server.address);
    let check = format!("[pool.p.health_check]\n{pace}timeout = \"1s\"\nrise = 20\nfall = 20\n{PING}");
    let daemon = Daemon::start(&config(&[named], "", &check).0);
    message_when(&daemon, "up");

    server.is_shut.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    message_when(&daemon, "down");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?} for 20 failures", begun.elapsed());

    let from = server.count();
    eventually("checks of a server that is down", PATIENCE, || (server.count() > from + 8).then_some(()));
    // One that comes late shortens the time to the next; over eight of them that does not matter.
    assert!(server.time_of(from, 8) > Duration::from_millis(1200), "{:?}", server.time_of(from, 8));

    server.is_shut.store(false, Ordering::SeqCst);
    let begun = Instant::now();
    message_when(&daemon, "up");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?} for 20 successes", begun.elapsed());
}

/// Pools `p` and `q` of that one server, both checked like this.
fn two_pools(server: &Gated, check: &str) -> String {
    let named = format!("{{ name = \"a\", address = \"{}\" }}", server.address);
    let (text, _) = config(std::slice::from_ref(&named), "", &format!("[pool.p.health_check]\n{check}"));
    let second = format!("[listener.m]\nbind = [\"127.0.0.1:{}\"]\npool = \"q\"\n", free_port());
    format!("{text}\n{second}[pool.q]\nservers = [{named}]\n[pool.q.health_check]\n{check}")
}

/// Checks of the pool's server that passed.
fn passed(daemon: &Daemon, pool: &str) -> usize {
    daemon.metric("tidegate_health_check_total", &[("pool", pool), ("result", "ok")]) as usize
}

#[test]
fn two_pools_that_check_a_server_alike_ask_it_once_and_both_know() {
    let server = Gated::start();
    let daemon = Daemon::start(&two_pools(
        &server,
        &format!("interval = \"50ms\"\ntimeout = \"5s\"\nrise = 1\nfall = 1\n{PING}"),
    ));
    eventually("twenty checks", PATIENCE, || (passed(&daemon, "p") >= 20).then_some(()));
    let metrics = daemon.http_get("/metrics").body; // of one moment
    let passed = |pool: &str| {
        let labels = [("pool", pool), ("result", "ok")];
        http::metric(&metrics, "tidegate_health_check_total", &labels) as usize
    };
    let (at_p, at_q, asked) = (passed("p"), passed("q"), server.count());
    assert!((at_p..=at_p + 1).contains(&at_q), "each has an account of its own: {at_p} and {at_q}");
    // Those that came since that moment, and the one that was under way, are not among its results.
    let since = self::passed(&daemon, "p") - at_p + 1;
    assert!(asked < at_p + at_p / 2 + since, "{asked} checks for {at_p} results of each pool");

    server.is_shut.store(true, Ordering::SeqCst);
    let up = |pool| daemon.metric("tidegate_server_up", &[("pool", pool)]);
    eventually("both to know", PATIENCE, || (up("p") == 0.0 && up("q") == 0.0).then_some(()));
    let told = daemon.stdout() + &daemon.stderr();
    for server in ["p/a", "q/a"] {
        assert!(told.contains(&format!("server `{server}` is down: ")), "{told}");
    }
}

#[test]
fn a_reload_that_leaves_a_check_as_it_is_neither_restarts_it_nor_asks_anew() {
    let server = Gated::start();
    let text = two_pools(&server, &format!("interval = \"1h\"\n{PING}"));
    let mut daemon = Daemon::start(&text);
    eventually("the one check", PATIENCE, || (passed(&daemon, "q") == 1).then_some(()));
    for generation in 2..=4 {
        let changed = format!("[pool.q]\nslow_start = \"{generation}s\"\n");
        daemon.rewrite_config(&text.replace("[pool.q]\n", &changed));
        daemon.signal(Signal::SIGHUP);
        eventually("the reload", PATIENCE, || {
            (daemon.metric("tidegate_config_generation", &[]) == f64::from(generation)).then_some(())
        });
        let changes = daemon.metric("tidegate_health_state_changes_total", &[("pool", "q")]);
        assert_eq!((server.count(), changes), (1, 1.0), "one check, and up ever since");
    }
}

/// Forty servers that come up with the daemon, and so are all checked at its start.
#[test]
fn checks_that_began_together_do_not_go_in_step() {
    let listener = listen((Ipv4Addr::UNSPECIFIED, 0));
    let port = listener.local_addr().unwrap().port();
    let came = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&came);
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            noted.lock().unwrap().push(Instant::now());
            drop(stream);
        }
    });
    let servers: Vec<_> = (1..=40).map(|host| format!("\"127.0.0.{host}:{port}\"")).collect();
    let daemon = Daemon::start(&config(&servers, "", "[pool.p.health_check]\ninterval = \"1s\"").0);
    let came = eventually("seven rounds", PATIENCE, || {
        Some(came.lock().unwrap().clone()).filter(|came| came.len() >= 280)
    });
    drop(daemon);
    let busiest = |came: &[Instant]| {
        let within = |from: &Instant| {
            came.iter().filter(|at| (*from..*from + Duration::from_millis(100)).contains(at)).count()
        };
        came.iter().map(within).max().unwrap()
    };
    // Whoever goes in step does so in every round. What a stall of this machine has put off comes together, too,
    // but in that round alone.
    let calmest = came[80..].chunks_exact(40).map(busiest).min().unwrap();
    assert!(calmest <= 20, "{calmest} of 40 within a tenth of the interval");
}

/// Each holds a descriptor, so a thousand servers that hang must not take a thousand.
#[test]
fn no_more_than_256_checks_are_under_way_at_once() {
    let listener = listen((Ipv4Addr::UNSPECIFIED, 0));
    let port = listener.local_addr().unwrap().port();
    let (open, most, taken) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let noted = (Arc::clone(&open), Arc::clone(&most), Arc::clone(&taken));
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let (open, most, taken) = noted.clone();
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            taken.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || {
                let _ = stream.read_to_end(&mut Vec::new()); // it says nothing until the check leaves
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let servers: Vec<_> =
        (1..=300).map(|host| format!("\"127.0.{}.{}:{port}\"", 1 + host / 200, 1 + host % 200)).collect();
    let check = "[pool.p.health_check]\ntype = \"redis\"\ninterval = \"1s\"\ntimeout = \"500ms\"";
    let daemon = Daemon::start(&config(&servers, "", check).0);
    eventually("two rounds", PATIENCE, || (taken.load(Ordering::SeqCst) >= 600).then_some(()));
    let most = most.load(Ordering::SeqCst);
    assert!((200..=256).contains(&most), "{most} at once");
    drop(daemon);
}
