//! Readers that stop in the middle of a download cost the daemon nothing.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::rig::{Check, Rig};
use crate::support::{PATIENCE, eventually, listen, stream};

const READERS: usize = 10;
/// Read before stopping: by then the relay is in its bulk mode.
const HEAD_BYTES: u64 = 2 << 20;
/// What the relay may hold at once: a large pipe.
const RELAY_BYTES_MAX: u64 = 1 << 20;
/// Beyond what may be in flight, so that a relay that buffers would be found out.
const REST_BYTES: u64 = 16 << 20;
/// The readers may cost the daemon this much together; a single buffered download would cost more.
const GROWTH_KIB_MAX: u64 = 8 << 10;
/// The stop itself: this wait is the scenario.
const STOP: Duration = Duration::from_secs(3);

/// What the kernel's own buffers of the two connections can take, and the relay.
fn in_flight_bytes_max() -> u64 {
    let most = |which| {
        let limits = std::fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{which}mem")).expect(which);
        limits.split_whitespace().nth(2).and_then(|most| most.parse::<u64>().ok()).expect("three numbers")
    };
    2 * (most("r") + most("w")) + RELAY_BYTES_MAX
}

fn download_bytes() -> u64 {
    HEAD_BYTES + in_flight_bytes_max() + REST_BYTES
}

/// Gives the stream with that number as seed to each client, and counts what it got rid of.
fn serve(listener: &TcpListener, clients: usize, pushed: &Arc<[AtomicU64]>) -> io::Result<()> {
    let senders: Vec<_> = (0..clients)
        .map(|_| {
            let (socket, _) = listener.accept().expect("a connection");
            let pushed = Arc::clone(pushed);
            thread::spawn(move || push(&socket, &pushed))
        })
        .collect();
    senders.into_iter().try_for_each(|sender| sender.join().expect("a sender ends"))
}

fn push(mut socket: &TcpStream, pushed: &[AtomicU64]) -> io::Result<()> {
    let mut number = [0];
    io::Read::read_exact(&mut socket, &mut number)?;
    let mut counted = Counted { socket, pushed: &pushed[usize::from(number[0])] };
    stream::send(&mut counted, number[0].into(), 0..download_bytes())
}

/// Counts the bytes that the kernel has taken.
struct Counted<'a> {
    socket: &'a TcpStream,
    pushed: &'a AtomicU64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.socket.write(bytes)?;
        self.pushed.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn begin(rig: &Rig, number: usize) -> TcpStream {
    let mut socket = TcpStream::connect(rig.address()).expect("a connection");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    socket.write_all(&[number as u8]).expect("the number is sent");
    socket
}

fn download(socket: &TcpStream, number: usize, range: std::ops::Range<u64>) {
    stream::expect(socket, number as u64, range).expect("every byte as sent");
}

#[test]
fn readers_that_stop_hold_back_the_sender_and_cost_no_memory() {
    let listener = listen("127.0.0.1:0");
    let port = listener.local_addr().expect("its address").port();
    let pushed: Arc<[AtomicU64]> = (0..=READERS).map(|_| AtomicU64::new(0)).collect();
    let counts = Arc::clone(&pushed);
    let server = thread::spawn(move || serve(&listener, READERS + 1, &counts));
    let rig = Rig::start(&[port], Check::RetryOnly);
    // One download first, so that what the daemon keeps for good is in the baseline.
    download(&begin(&rig, READERS), READERS, 0..download_bytes());
    let before = rig.daemon.resources();

    let readers: Vec<_> = (0..READERS).map(|number| begin(&rig, number)).collect();
    readers.iter().enumerate().for_each(|(number, socket)| download(socket, number, 0..HEAD_BYTES));
    thread::sleep(STOP);

    let during = rig.daemon.resources();
    for (number, pushed) in pushed.iter().enumerate().take(READERS) {
        let ahead = pushed.load(Ordering::Relaxed) - HEAD_BYTES;
        assert!(ahead <= in_flight_bytes_max(), "the sender of reader {number} is {ahead} bytes ahead");
    }
    let growth = during.rss_kib.saturating_sub(before.rss_kib);
    assert!(growth <= GROWTH_KIB_MAX, "{READERS} readers cost {growth} KiB: {before:?} {during:?}");

    thread::scope(|scope| {
        for (number, socket) in readers.iter().enumerate() {
            scope.spawn(move || {
                download(socket, number, HEAD_BYTES..download_bytes());
                stream::expect_end(socket).expect("nothing after it");
            });
        }
    });
    server.join().expect("the server ends").expect("every stream was sent whole");
    drop(readers);
    assert_eq!(rig.settled().len(), READERS + 1);
    eventually("the memory to be what it was", PATIENCE, || {
        (rig.daemon.resources().rss_kib <= before.rss_kib + GROWTH_KIB_MAX).then_some(())
    });
}
