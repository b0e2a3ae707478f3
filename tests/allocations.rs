//! Relaying a message allocates nothing, held as a number.
//!
//! An allocator counts for each thread, and only the thread that relays is asked: what the peers
//! of the test allocate does not matter. Each claim is about what comes after a warm-up, in which
//! queues and tables grow to the size that they keep.
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait; this one counts and hands on to std's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tidegate::net::{Driver, Liveness, Loop, Net, Patience, Tally};
use tidegate::sys::socket;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Where this thread's allocations are counted, if anybody wants to know. Needs none itself.
    static COUNT: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

fn count_one() {
    // A thread at its end has no count any more.
    if let Ok(Some(count)) = COUNT.try_with(Cell::get) {
        count.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call goes to std's allocator unchanged, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_one();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

const EXCHANGES: usize = 10_000;
const WARM_UP: usize = 1_000;

/// What does not grow with the number of messages: memory for one rest, doubled to what it keeps.
const A_FEW: u64 = 16;

const MIB: usize = 1024 * 1024;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const QUIET: Liveness = Liveness { keepalive: None, user_timeout: None };

/// One relayed connection, and what its relay's thread has allocated so far.
struct Rig {
    client: TcpStream,
    server: TcpStream,
    count: &'static AtomicU64,
    has_spliced: Receiver<bool>,
    relay: JoinHandle<()>,
}

impl Rig {
    fn start(driver: Driver) -> Rig {
        let servers = TcpListener::bind("127.0.0.1:0").unwrap();
        let server_at = servers.local_addr().unwrap();
        let front = socket::listen_shared("127.0.0.1:0".parse().unwrap(), QUIET).unwrap();
        let front_at = socket::local_address(front.as_fd()).unwrap();
        let count: &'static AtomicU64 = Box::leak(Box::default()); // as long as the thread, whatever happens
        let (tell, has_spliced) = sync_channel(1);
        let relay = thread::spawn(move || {
            COUNT.set(Some(count));
            let tally = Rc::new(Tally::default());
            let told = Rc::clone(&tally);
            Loop::new(driver, None).unwrap().run(|net| relay_one(net, front, server_at, tally));
            tell.send(told.has_spliced.get()).unwrap();
        });
        let client = TcpStream::connect(front_at).unwrap();
        let server = servers.accept().unwrap().0;
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Rig { client, server, count, has_spliced, relay }
    }

    fn allocated(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// One message there, and one back.
    fn exchange(&mut self, message: &mut [u8]) {
        self.client.write_all(message).unwrap();
        self.server.read_exact(message).unwrap();
        self.server.write_all(message).unwrap();
        self.client.read_exact(message).unwrap();
    }

    /// So many bytes from the client to the server, which reads as they come.
    fn upload(&mut self, bytes: usize) {
        let mut client = self.client.try_clone().unwrap();
        let writer = thread::spawn(move || {
            let chunk = vec![7; MIB];
            (0..bytes / MIB).for_each(|_| client.write_all(&chunk).unwrap());
        });
        let mut chunk = vec![0; MIB];
        (0..bytes / MIB).for_each(|_| self.server.read_exact(&mut chunk).unwrap());
        writer.join().unwrap();
    }

    /// As much as the buffers on the way take, in small messages, while the server reads nothing.
    fn flood(&mut self) -> usize {
        let (mut sent, mut stuck) = (0, 0);
        self.client.set_nonblocking(true).unwrap();
        while stuck < 5 {
            match self.client.write(&[2; 8000]) {
                Ok(written) => (sent, stuck) = (sent + written, 0),
                Err(_) => {
                    stuck += 1;
                    thread::sleep(Duration::from_millis(2)); // nothing tells that the relay is stuck
                }
            }
        }
        self.client.set_nonblocking(false).unwrap();
        sent
    }

    /// Ends in good order, and says whether bulk was spliced.
    fn end(self) -> bool {
        self.client.shutdown(Shutdown::Write).unwrap();
        drop((self.client, self.server));
        let has_spliced = self.has_spliced.recv_timeout(PATIENCE).expect("the relay ends");
        self.relay.join().unwrap();
        has_spliced
    }
}

async fn relay_one(net: Net, front: OwnedFd, server_at: SocketAddr, tally: Rc<Tally>) {
    let listener = net.listen(front).unwrap();
    let client = loop {
        listener.ready().await;
        if let Some((client, _)) = listener.accept().unwrap() {
            break net.adopt(client).unwrap();
        }
    };
    let server = net.dial(server_at).await.unwrap();
    let patience = Patience { idle: Some(PATIENCE), half_closed: Some(PATIENCE), server: QUIET };
    net.relay(client, server, patience, tally).await;
}

/// Both drivers, where this kernel has both.
fn drivers() -> Vec<Driver> {
    let mut drivers = vec![Driver::Epoll, Driver::IoUring];
    drivers.retain(|driver| Loop::new(*driver, None).is_ok());
    drivers
}

/// Longer than a second in all, so that whatever is done from time to time is counted too.
#[track_caller]
fn expect_none_for_messages_of(bytes: usize) {
    for driver in drivers() {
        let mut rig = Rig::start(driver);
        let mut message = vec![1; bytes];
        (0..WARM_UP).for_each(|_| rig.exchange(&mut message));
        let before = rig.allocated();
        (0..EXCHANGES).for_each(|_| rig.exchange(&mut message));
        let after = rig.allocated();
        assert!(before > 0, "{driver:?}: nothing was counted at all");
        assert_eq!(after - before, 0, "{driver:?}: {EXCHANGES} exchanges of {bytes} bytes");
        assert!(!rig.end(), "small messages are copied");
    }
}

#[test]
fn ten_thousand_exchanges_of_64_bytes_allocate_nothing() {
    expect_none_for_messages_of(64);
}

#[test]
fn ten_thousand_exchanges_of_1_kib_allocate_nothing() {
    expect_none_for_messages_of(1024);
}

/// Now and then bulk is copied for a moment, and leaves a rest; memory for it is there by then, but
/// may have to grow.
#[test]
fn bulk_allocates_a_little_to_begin_with_and_then_nothing() {
    for driver in drivers() {
        let mut rig = Rig::start(driver);
        rig.exchange(&mut [1; 64]);
        let at_first = rig.allocated();
        rig.upload(16 * MIB);
        let begun = rig.allocated();
        rig.upload(256 * MIB);
        let after = rig.allocated();
        assert!(begun - at_first <= A_FEW, "{driver:?}: {} allocations to begin bulk", begun - at_first);
        assert!(after - begun <= A_FEW, "{driver:?}: {} allocations for 256 MiB more", after - begun);
        assert!(rig.end(), "{driver:?}: bulk is spliced");
    }
}

/// Each time the server reads, a few messages pass, and the last of them leaves a rest again.
#[test]
fn a_slow_reader_costs_a_few_allocations_once_and_none_with_each_message() {
    for driver in drivers() {
        let mut rig = Rig::start(driver);
        let turn = |rig: &mut Rig| {
            let sent = rig.flood();
            rig.server.read_exact(&mut vec![0; sent]).unwrap();
        };
        (0..10).for_each(|_| turn(&mut rig));
        let before = rig.allocated();
        (0..40).for_each(|_| turn(&mut rig));
        let allocated = rig.allocated() - before;
        assert!(allocated <= A_FEW, "{driver:?}: {allocated} allocations");
        rig.end();
    }
}
