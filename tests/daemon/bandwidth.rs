//! How fast bytes may move, for one connection and for all of a listener.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::exhausted::cpu_ticks;
use crate::peers::{Greeter, config, config_at};
use crate::support::record::{number, word};
use crate::support::{Daemon, PATIENCE, eventually, stream};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What the README promises: a tenth of a second's worth, and no less than 64 KiB.
fn burst(rate: u64) -> u64 {
    (rate / 10).max(64 * KIB)
}

/// A client of a `Greeter` whose greeting it has read.
fn connect(front: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(front).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_nodelay(true).unwrap();
    client.read_exact(&mut [0; 2]).unwrap();
    client
}

/// Sends a stream through the echo and reads it back, byte by byte the same. `on_read` is told how much has
/// come back so far.
fn echo(client: &TcpStream, seed: u64, length: u64, on_read: impl FnMut(u64)) {
    let sender = client.try_clone().unwrap();
    let sending = thread::spawn(move || {
        stream::send(&sender, seed, 0..length).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    stream::expect(Noted { from: client, heard: 0, on_read }, seed, 0..length).unwrap();
    stream::expect_end(client).unwrap();
    sending.join().unwrap();
}

struct Noted<'a, F> {
    from: &'a TcpStream,
    heard: u64,
    on_read: F,
}

impl<F: FnMut(u64)> Read for Noted<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.heard += read as u64;
        (self.on_read)(self.heard);
        Ok(read)
    }
}

fn active(daemon: &Daemon) -> f64 {
    daemon.metric("tidegate_listener_active_connections", &[])
}

fn throttled(daemon: &Daemon, limit: &str) -> f64 {
    daemon.metric("tidegate_listener_throttled_seconds_total", &[("listener", "l"), ("limit", limit)])
}

/// Says as much as is taken of it.
fn say_until_it_is_full(client: &TcpStream) -> usize {
    let mut said = 0;
    client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while let Ok(taken) = (&*client).write(&[7; 64 * 1024]) {
        said += taken;
    }
    said
}

/// The faster one moves in portions that are worth a pipe, the slower one in small ones.
#[test]
fn a_connection_is_no_faster_than_its_limit_and_loses_no_byte() {
    let server = Greeter::start("a");
    for (rate, written, length, path) in
        [(2 * MIB, "2MiB/s", 4 * MIB, "splice"), (128 * KIB, "128KiB/s", 256 * KIB, "copy")]
    {
        let keys = format!("bandwidth_per_connection = \"{written}\"");
        let (text, front) = config(&[server.toml()], &keys, "");
        let daemon = Daemon::start(&text);
        let begun = Instant::now();
        let client = connect(front);
        echo(&client, rate, length, |heard| {
            let worth = rate as f64 * begun.elapsed().as_secs_f64();
            assert!(heard as f64 <= burst(rate) as f64 + worth, "{heard} bytes in {:?}", begun.elapsed());
        });
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        let record = &daemon.access_log_of(1)[0];
        assert_eq!((word(record, "close.reason"), word(record, "path")), ("done", path), "{record}");
        assert_eq!(number(record, "bytes_in"), length);
        assert!(throttled(&daemon, "bandwidth_per_connection") > 1.0);
        assert_eq!((throttled(&daemon, "bandwidth"), active(&daemon)), (0.0, 0.0));
    }
}

#[test]
fn all_connections_of_a_listener_share_its_limit_and_share_it_fairly() {
    const EACH: u64 = MIB;
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "bandwidth = \"2MiB/s\"", "");
    let daemon = Daemon::start(&text);
    // Where the machine lets one of the clients wait, that is no unfairness of ours, and the scene shows nothing.
    let mut scenes = (0..5).map(|_| heard_when_the_first_of_four_ends(front, 2 * MIB, EACH));
    assert!(
        scenes.any(|heard| heard.iter().all(|one| *one >= EACH / 3)),
        "one had less than a third each time"
    );
    assert!(throttled(&daemon, "bandwidth") > 1.0);
    assert_eq!(throttled(&daemon, "bandwidth_per_connection"), 0.0);
}

/// Four clients let so much be echoed under a rate that is theirs together. Never is more than it allows.
fn heard_when_the_first_of_four_ends(front: SocketAddr, rate: u64, each: u64) -> Vec<u64> {
    let begun = Instant::now();
    let heard = Arc::new([const { AtomicU64::new(0) }; 4]);
    let when_the_first_ended = Arc::new(Mutex::new(None));
    let clients: Vec<_> = (0..4).map(|_| connect(front)).collect();
    let clients: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(at, client)| {
            let (heard, ended) = (heard.clone(), when_the_first_ended.clone());
            thread::spawn(move || {
                let sum = || heard.iter().map(|one| one.load(SeqCst)).sum::<u64>();
                echo(&client, at as u64, each, |now| {
                    heard[at].store(now, SeqCst);
                    let worth = rate as f64 * begun.elapsed().as_secs_f64();
                    assert!(sum() as f64 <= burst(rate) as f64 + worth, "{} in {:?}", sum(), begun.elapsed());
                });
                let all = heard.iter().map(|one| one.load(SeqCst)).collect::<Vec<_>>();
                ended.lock().unwrap().get_or_insert(all);
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    when_the_first_ended.lock().unwrap().take().unwrap()
}

#[test]
fn a_client_that_reads_nothing_does_not_hold_what_others_could_have() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "bandwidth = \"8MiB/s\"", "");
    let _daemon = Daemon::start(&text);
    let stopped = connect(front);
    say_until_it_is_full(&stopped);
    let begun = Instant::now();
    echo(&connect(front), 1, 4 * MIB, |_| ());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_reset_while_it_is_held_back_is_passed_on_at_once_and_frees_all() {
    let mut server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "bandwidth = \"1KiB/s\"", "");
    let daemon = Daemon::start(&text);
    let before = daemon.resources();
    let resets = connect(front);
    assert!(say_until_it_is_full(&resets) as u64 > burst(KIB), "it is held back");
    let asked = Instant::now();
    socket2::SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
    drop(resets);
    assert_eq!(word(&daemon.access_log_of(1)[0], "close.reason"), "client_reset");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());

    let mut stays = connect(front);
    say_until_it_is_full(&stays);
    server.die();
    assert_eq!(stays.read_to_end(&mut Vec::new()).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(word(&daemon.access_log_of(2)[1], "close.reason"), "server_reset");
    drop(stays);
    eventually("all to be given back", PATIENCE, || (active(&daemon) == 0.0).then_some(()));
    eventually("the descriptors, too", PATIENCE, || {
        (daemon.resources().descriptors <= before.descriptors).then_some(())
    });
}

#[test]
fn a_drain_cuts_what_is_held_back_at_its_deadline() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "bandwidth_per_connection = \"1KiB/s\"", "");
    let mut daemon = Daemon::start(&format!("[process]\ndrain_timeout = \"300ms\"\n\n{text}"));
    let mut held = connect(front);
    say_until_it_is_full(&held);
    let asked = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(held.read_to_end(&mut Vec::new()).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(daemon.wait().0, Some(3));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(word(&daemon.access_log_of(1)[0], "close.reason"), "drain_deadline");
}

/// A portion takes a second here, and silence is borne for half of one.
#[test]
fn a_connection_that_is_held_back_is_not_idle() {
    const IDLE: Duration = Duration::from_millis(500);
    let server = Greeter::start("a");
    let keys = format!("bandwidth_per_connection = \"1KiB/s\"\nidle_timeout = \"{}ms\"", IDLE.as_millis());
    let (text, front) = config(&[server.toml()], &keys, "");
    let daemon = Daemon::start(&text);
    // Before its first word and after its last one nobody holds the client back, and a machine that stalls
    // there makes it silent for too long: then the scene proves nothing, and is played again.
    let is_held_and_lives = (1..=5).any(|turn| {
        let begun = Instant::now();
        let client = connect(front);
        let said = (&client).write_all(&[7; 66 * KIB as usize]);
        let heard = said.and_then(|()| (&client).read_exact(&mut vec![0; 66 * KIB as usize]));
        let was_held = begun.elapsed() >= IDLE * 3;
        client.shutdown(Shutdown::Both).ok();
        let log = daemon.access_log_of(turn);
        heard.is_ok() && was_held && word(&log[turn - 1], "close.reason") != "idle_timeout"
    });
    assert!(is_held_and_lives, "{:?}", daemon.access_log());
}

#[test]
fn those_that_are_held_back_burn_no_time() {
    let server = Greeter::start("a");
    let keys = "bandwidth = \"64KiB/s\"\nbandwidth_per_connection = \"32KiB/s\"";
    let (text, front) = config(&[server.toml()], keys, "");
    let daemon = Daemon::start(&text);
    let held: Vec<_> = (0..20).map(|_| connect(front)).collect();
    held.iter().for_each(|client| _ = say_until_it_is_full(client));
    let (begun, before) = (Instant::now(), cpu_ticks(daemon.pid()));
    thread::sleep(Duration::from_secs(1)); // not a wait for anything: the second is the measure
    let burnt = cpu_ticks(daemon.pid()) - before;
    let most = 20.0 * begun.elapsed().as_secs_f64();
    assert!((burnt as f64) < most, "{burnt} ticks of a hundredth in {:?}", begun.elapsed());
}

#[test]
fn a_reload_changes_the_listeners_limit_for_those_that_are_under_it() {
    let server = Greeter::start("a");
    let (text, front) = config(&[server.toml()], "bandwidth = \"1KiB/s\"", "");
    let mut daemon = Daemon::start(&text);
    let client = connect(front);
    let so_far = Arc::new(AtomicU64::new(0));
    let echoing = thread::spawn({
        let so_far = Arc::clone(&so_far);
        move || echo(&client, 1, 2 * MIB, |heard| so_far.store(heard, SeqCst))
    });
    // The rest would take half an hour.
    eventually("the burst to be back", PATIENCE, || (so_far.load(SeqCst) > 60 * KIB).then_some(()));
    daemon.rewrite_config(&config_at(front, &[server.toml()], "bandwidth = \"100MiB/s\"", ""));
    daemon.signal(Signal::SIGHUP);
    echoing.join().unwrap();
}
