//! The same relay under a brake: not a byte sooner than it was granted, and none is lost.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate::net::{Brake, End, Patience, Side};
use tidegate::sys::socket;

use super::bumps::Bumps;
use super::{PATIENT, QUIET, Rig, bytes, in_time, orders, play_one};

/// Lets as many bytes through from each side as the test has put into it.
#[derive(Clone, Default)]
struct Sluice {
    open: Arc<[AtomicU64; 2]>,
    /// How long it holds a direction back, for which nothing is open.
    pause: Duration,
}

impl Sluice {
    fn with_pauses_of(milliseconds: u64) -> Sluice {
        Sluice { pause: Duration::from_millis(milliseconds), ..Sluice::default() }
    }

    fn open(&self, from: Side, bytes: u64) {
        self.open[from as usize].fetch_add(bytes, Ordering::SeqCst);
    }
}

impl Brake for Sluice {
    fn ask(&mut self, from: Side, wanted: u64, now: Instant) -> Result<u64, Instant> {
        match self.open[from as usize].load(Ordering::SeqCst).min(wanted) {
            0 => Err(now + self.pause),
            bytes => Ok(bytes),
        }
    }

    fn has_read(&mut self, from: Side, bytes: u64) {
        self.open[from as usize].fetch_sub(bytes, Ordering::SeqCst);
    }
}

fn rig(patience: Patience, sluice: &Sluice) -> Rig {
    let sluice = sluice.clone();
    Rig::with_brake(patience, move || Box::new(sluice))
}

/// Whether nothing comes for a moment.
fn is_quiet(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let error = stream.peek(&mut [0]).err();
    stream.set_read_timeout(None).unwrap();
    error.is_some_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn every_order_of_closing_is_survived_under_a_brake() {
    for length in [1, 64 * 1024, 3 * 1024 * 1024] {
        for (number, order) in orders().into_iter().enumerate() {
            for leaves in super::LEAVES {
                let seed = (length * 100 + number) as u64;
                let rig = Rig::with_brake(PATIENT, move || Box::new(Bumps::new(seed)));
                play_one(rig, order, leaves, length);
            }
        }
    }
}

#[test]
fn not_a_byte_more_is_read_than_was_granted() {
    for length in [10_000, 4 * 1024 * 1024] {
        let sluice = Sluice::with_pauses_of(5);
        let Rig { client, mut server, end } = rig(PATIENT, &sluice);
        let said = bytes(21, length);
        let writer = std::thread::spawn({
            let said = Arc::clone(&said);
            move || {
                (&client).write_all(&said).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                client
            }
        });
        let mut heard = Vec::new();
        for portion in [1, 999, 5000] {
            assert!(is_quiet(&server), "{} of {length}", heard.len());
            sluice.open(Side::Client, portion);
            let mut part = vec![0; portion as usize];
            server.read_exact(&mut part).unwrap();
            heard.extend(part);
        }
        assert!(is_quiet(&server), "{} of {length}", heard.len());
        sluice.open(Side::Client, length as u64);
        server.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, *said);
        drop(server); // an end needs no leave
        let mut client = writer.join().unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        assert!(matches!(end.told().how, End::Done { first: Side::Client }));
    }
}

#[test]
fn a_direction_that_is_held_back_does_not_hold_the_other() {
    let sluice = Sluice::with_pauses_of(3_600_000);
    let Rig { client, mut server, end } = rig(PATIENT, &sluice);
    sluice.open(Side::Server, 1 << 20);
    (&client).write_all(b"held back").unwrap();
    server.write_all(&[7; 100_000]).unwrap();
    let mut heard = vec![0; 100_000];
    (&client).read_exact(&mut heard).unwrap();
    assert!(is_quiet(&server));
    socket::reset(client.into());
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(matches!(end.told().how, End::Failed { side: Side::Client, .. }));
}

/// The idle timeout would have come several times meanwhile.
#[test]
fn who_is_held_back_is_not_idle_and_who_is_not_is() {
    const IDLE: Duration = Duration::from_millis(400);
    in_time(|| {
        let patience = Patience { idle: Some(IDLE), half_closed: None, server: QUIET };
        let sluice = Sluice::with_pauses_of(2000);
        let begun = Instant::now();
        let Rig { mut client, mut server, end } = rig(patience, &sluice);
        let said = client.write_all(b"patience");
        if begun.elapsed() >= IDLE {
            return None;
        }
        said.unwrap();
        let held_since = Instant::now();
        std::thread::sleep(IDLE * 3); // not a wait for anything: the pause is the scene
        sluice.open(Side::Client, 8);
        server.read_exact(&mut [0; 8]).unwrap();
        assert!(held_since.elapsed() >= IDLE * 3);
        // Now it is silent, and nobody holds it back.
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(matches!(end.told().how, End::Silent { .. }));
        Some(())
    });
}

#[test]
fn a_reset_is_seen_although_its_direction_is_held_back() {
    for resets in [Side::Client, Side::Server] {
        let sluice = Sluice::with_pauses_of(3_600_000);
        let Rig { client, server, end } = rig(PATIENT, &sluice);
        let (mut leaver, mut other) = match resets {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        leaver.write_all(b"something that stays where it is").unwrap();
        assert!(is_quiet(&other));
        let begun = Instant::now();
        socket::reset(leaver.into());
        assert_eq!(other.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{resets:?}");
        // What a server said gets a moment, though nothing is granted.
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        match end.told().how {
            End::Failed { side, .. } => assert_eq!(side, resets),
            how => panic!("{resets:?}: {how:?}"),
        }
    }
}

/// The kernel keeps what had come before a reset: `recv` gives all of it, and then the error.
#[test]
fn what_a_server_said_before_its_reset_comes_as_fast_as_it_may_and_then_the_reset() {
    for client_is_held in [false, true] {
        let sluice = Sluice::with_pauses_of(700);
        let Rig { mut client, mut server, end } = rig(PATIENT, &sluice);
        if client_is_held {
            client.write_all(b"nobody will read this").unwrap();
        }
        let said = bytes(23, 5000);
        server.write_all(&said).unwrap();
        assert!(is_quiet(&client));
        // It is asked for leave again only when the server is dead.
        sluice.open(Side::Server, said.len() as u64);
        socket::reset(server.into());
        let mut heard = vec![0; said.len()];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, *said);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(matches!(end.told().how, End::Failed { side: Side::Server, .. }));
    }
}

/// The bug: the two seconds for a server's last words held only where nothing else had noticed the reset before:
/// not a write to the server, and not where the client had ended.
#[test]
fn a_server_that_is_dead_holds_its_client_no_longer_than_its_last_words_may_take() {
    for client_has_ended in [true, false] {
        let sluice = Sluice::with_pauses_of(3_600_000);
        sluice.open(Side::Client, 1 << 40);
        let Rig { client, mut server, end } = rig(PATIENT, &sluice);
        server.write_all(b"what stays where it is").unwrap();
        if client_has_ended {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        } else {
            client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            while (&client).write(&[7; 65536]).is_ok() {} // the server reads nothing
        }
        assert!(is_quiet(&client));
        socket::reset(server.into());
        client.set_read_timeout(Some(super::PATIENCE)).unwrap();
        assert_eq!((&client).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(matches!(end.told().how, End::Failed { side: Side::Server, .. }));
    }
}

#[test]
fn urgent_data_does_not_stall_what_comes_after_it_under_a_brake() {
    let Rig { client, mut server, end } = Rig::with_brake(PATIENT, || Box::new(Bumps::new(22)));
    for _ in 0..20 {
        (&client).write_all(b"before").unwrap();
        socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
        (&client).write_all(b"after").unwrap();
        let mut heard = [0; 11];
        server.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"beforeafter");
    }
    assert!(socket::unread(server.as_fd()) == 0);
    drop((client, server));
    end.told();
}
