//! Connections torn down at every step, under load, leave nothing behind.
//!
//! Thousands of connections over one loop. Two thirds of them are torn down at a step that the
//! seed chooses: their future is dropped, or their peers reset or close. The others carry bytes that
//! are looked at one by one. Afterwards all that the loop and its driver had lent out is back, the
//! process has the descriptors that it had before, and a hundred fresh connections lose nothing.
//!
//! A failure names its seed; `TIDEGATE_TEST_SEED=N` plays the same connections again, though
//! not at the same pace.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use super::driver::InUse;
use super::{Brake, Driver, Either, End, Liveness, Loop, Net, Patience, Sock, Tally, either, listen_shared};
use crate::sys::socket;
use bumps::Bumps;
use script::{Fate, Pause, Scene, Script};

mod bumps; // a brake that holds its relay back again and again
mod peers; // both peers of one connection
mod script; // what happens to it, by its number

/// Connections of the storm. In a debug build on two cores they take a few seconds.
const STORM: u32 = 2500;

/// Connections afterwards, all of which must be whole.
const FRESH: u32 = 100;

/// Connections at once. With two directions each they want more than the 64 buffers of a ring.
const AT_ONCE: usize = 48;

/// What is dropped may need a turn of the loop or two until the kernel has let go of it.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// What a client's socket takes at the narrow listener: less than a read, so that the rest of many
/// must be kept.
const NARROW: usize = 8 * 1024;

/// For what is given up long before.
const LONG: Duration = Duration::from_secs(3600);

/// A prime, so that streams do not come by the same words at the same places.
const WORDS: usize = 1_048_573;

const QUIET: Liveness = Liveness { keepalive: None, user_timeout: None };
const PATIENT: Patience = Patience { idle: None, half_closed: None, server: QUIET };

/// What the peers and the relay between them know of each other.
struct Shared {
    seed: u64,
    /// The relay's listeners: one like any other, and a narrow one.
    fronts: [SocketAddr; 2],
    server_port: u16,
    /// An address that never answers.
    silent: SocketAddr,
    words: Vec<u8>,
    /// The connection of that number is where its fate may come.
    scenes: Vec<AtomicBool>,
    /// The storm is over; the fresh connections are.
    is_calm: AtomicBool,
    is_over: AtomicBool,
    /// Something went wrong: nobody needs to wait for anything any more.
    is_broken: AtomicBool,
}

impl Shared {
    fn words_at(&self, at: usize, most: usize) -> &[u8] {
        let at = at % WORDS;
        &self.words[at..(at + most).min(WORDS)]
    }

    fn is_said(&self, mut at: usize, mut heard: &[u8]) -> bool {
        while !heard.is_empty() {
            let said = self.words_at(at, heard.len());
            let (now, later) = heard.split_at(said.len());
            if now != said {
                return false;
            }
            (at, heard) = (at + said.len(), later);
        }
        true
    }

    fn set_scene(&self, number: u32) {
        self.scenes[number as usize].store(true, Ordering::Release);
    }

    fn script(&self, number: u32) -> Script {
        if number < STORM { Script::of(self.seed, number) } else { Script::kept(self.seed, number) }
    }
}

#[test]
fn connections_torn_down_at_every_step_leave_nothing_behind_on_epoll() {
    in_a_process_of_its_own(
        "net::tests::connections_torn_down_at_every_step_leave_nothing_behind_on_epoll",
        || tear_down(Driver::Epoll),
    );
}

#[test]
fn connections_torn_down_at_every_step_leave_nothing_behind_on_io_uring() {
    // Not the probe: where a ring can be had and does not work, the test must fail.
    if Loop::new(Driver::IoUring, None).is_ok() {
        in_a_process_of_its_own(
            "net::tests::connections_torn_down_at_every_step_leave_nothing_behind_on_io_uring",
            || tear_down(Driver::IoUring),
        );
    }
}

/// Other tests open and close descriptors meanwhile: counting them takes a process without others.
fn in_a_process_of_its_own(name: &str, test: impl FnOnce()) {
    const ALONE: &str = "TIDEGATE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let itself = std::env::current_exe().expect("the test knows its own binary");
    let output = Command::new(itself)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .expect("the test runs itself");
    let told = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success(), "{}\n{}", told[0], told[1]);
    assert!(told[0].contains("1 passed"), "no test has this name: {name}");
}

fn tear_down(driver: Driver) {
    let (server_port, _claim) = server_port();
    let before = open_descriptors();
    let seed = std::env::var("TIDEGATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let _told = Told(seed);
    let (silent, _queue) = silent_server();
    let fronts = [(); 2].map(|()| listen_shared((Ipv4Addr::LOCALHOST, 0).into(), QUIET).expect("a listener"));
    socket2::SockRef::from(&fronts[1]).set_send_buffer_size(NARROW).expect("a socket option");
    let mut words = vec![0; WORDS];
    fastrand::Rng::with_seed(seed).fill(&mut words);
    let shared = Arc::new(Shared {
        seed,
        fronts: fronts.each_ref().map(|front| socket::local_address(front.as_fd()).expect("its address")),
        server_port,
        silent,
        words,
        scenes: (0..STORM + FRESH).map(|_| AtomicBool::new(false)).collect(),
        is_calm: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        is_broken: AtomicBool::new(false),
    });
    let (tell, told) = mpsc::sync_channel(3); // at first, after the storm, in the end
    let relay = thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            let _alarm = Alarm(Arc::clone(&shared));
            Loop::new(driver, None).expect("a loop").run(|net| keep(net, fronts, shared, tell));
        }
    });
    let next = || told.recv().expect("the loop turns");
    let at_first = next();
    play_all(&shared, 0..STORM);
    shared.is_calm.store(true, Ordering::Release);
    assert_eq!(next(), at_first, "after the storm");
    play_all(&shared, STORM..STORM + FRESH);
    shared.is_over.store(true, Ordering::Release);
    assert_eq!(next(), at_first, "after the fresh connections");
    relay.join().expect("the loop ends");
    drop((_queue, shared));
    assert_eq!(open_descriptors(), before);
}

/// Names the seed when the test fails.
struct Told(u64);

impl Drop for Told {
    #[allow(clippy::print_stderr, reason = "a failing test's words go where its panic goes")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("TIDEGATE_TEST_SEED={} plays the same connections again", self.0);
        }
    }
}

/// Lets nobody wait for a thread that has failed.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.is_broken.store(true, Ordering::Release);
        }
    }
}

/// Plays these connections, many at once. Panics when one of them went wrong.
fn play_all(shared: &Arc<Shared>, numbers: std::ops::Range<u32>) {
    let next = Arc::new(AtomicU32::new(numbers.start));
    let threads: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (shared, next, end) = (Arc::clone(shared), Arc::clone(&next), numbers.end);
            thread::spawn(move || {
                let _alarm = Alarm(Arc::clone(&shared));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return;
                    }
                    peers::play(&shared.script(number), &shared);
                }
            })
        })
        .collect();
    let failed = threads.into_iter().filter_map(|thread| thread.join().err()).count();
    assert_eq!(failed, 0, "connections went wrong; what they were stands above");
}

/// The life of the loop: tells what is in use at first, after the storm, and in the end.
async fn keep(net: Net, fronts: [OwnedFd; 2], shared: Arc<Shared>, tell: mpsc::SyncSender<InUse>) {
    for front in fronts {
        let listener = net.listen(front).expect("a listener");
        net.spawn(serve_all(net.clone(), listener, Arc::clone(&shared)));
    }
    net.sleep(Duration::from_millis(20)).await; // both doors wait for their first client
    let at_first = net.in_use();
    let _ = tell.send(at_first);
    for phase in [&shared.is_calm, &shared.is_over] {
        while !phase.load(Ordering::Acquire) {
            net.sleep(Duration::from_millis(1)).await;
        }
        let deadline = Instant::now() + SETTLED_WITHIN;
        while net.in_use() != at_first && Instant::now() < deadline {
            net.sleep(Duration::from_millis(1)).await;
        }
        let _ = tell.send(net.in_use());
    }
}

async fn serve_all(net: Net, listener: super::Listener, shared: Arc<Shared>) {
    loop {
        listener.ready().await;
        let taken = listener.accept().expect("clients are taken, however they leave");
        if let Some((client, peer)) = taken {
            let client = net.adopt(client).expect("room to watch it");
            let script = shared.script(Script::number_of(peer));
            net.spawn(serve(net.clone(), client, script, Arc::clone(&shared)));
        }
    }
}

async fn serve(net: Net, client: Sock, script: Script, shared: Arc<Shared>) {
    let server = SocketAddr::from((script.address(), shared.server_port));
    match script.scene {
        Scene::Accepted => {
            either(pin!(client.hung_up()), pin!(script.pause.pass(&net))).await;
            give_up(client, script.is_closed);
        }
        Scene::Dialling { is_answered } => {
            let to = if is_answered { server } else { shared.silent };
            {
                let left =
                    pin!(async { either(pin!(client.hung_up()), pin!(script.pause.pass(&net))).await });
                let dial = pin!(net.dial(to));
                if let Either::Left(Some(Ok(server))) = either(pin!(net.within(LONG, dial)), left).await {
                    give_up(server, script.is_closed);
                }
            }
            give_up(client, script.is_closed);
        }
        _ => relay(net, client, server, script, shared).await,
    }
}

async fn relay(net: Net, client: Sock, server: SocketAddr, script: Script, shared: Arc<Shared>) {
    let dialled = if script.is_watched {
        let dial = pin!(net.dial(server));
        match either(pin!(net.within(LONG, dial)), pin!(client.hung_up())).await {
            Either::Left(dialled) => dialled.expect("the server is there"),
            Either::Right(_) if matches!(script.fate, Fate::Left { .. }) => return,
            Either::Right(error) => panic!("{script:?}: the client has gone: {error}"),
        }
    } else {
        net.dial(server).await
    };
    let tally = Rc::new(Tally::default());
    let server = match dialled {
        Ok(server) => server,
        Err(_) if matches!(script.fate, Fate::Left { .. }) => return, // it had left before we looked
        Err(error) => panic!("{script:?}: {error}"),
    };
    let brake: Option<Box<dyn Brake>> = match script.is_braked {
        true => Some(Box::new(Bumps::new(shared.seed ^ u64::from(script.number)))),
        false => None,
    };
    let relay = net.relay_braked([client, server], PATIENT, Rc::clone(&tally), brake);
    let is_ending = relay.watch_for_its_end();
    match script.fate {
        Fate::Left { .. } => drop(relay.await),
        Fate::Dropped => {
            let dropped = pin!(async {
                while !shared.scenes[script.number as usize].load(Ordering::Acquire) {
                    net.sleep(Duration::from_millis(1)).await;
                }
                match script.scene {
                    Scene::Failing => each_turn_until(is_ending).await,
                    _ => script.pause.pass(&net).await,
                }
            });
            either(pin!(relay), dropped).await;
        }
        Fate::Kept => {
            let ended = relay.await;
            let moved = [tally.to_server.get() as usize, tally.to_client.get() as usize];
            let is_whole = matches!(ended.how, End::Done { .. }) && moved == script.lengths;
            assert!(is_whole, "{script:?}: {ended:?} after {moved:?} bytes");
        }
    }
}

/// Looks in every turn of the loop, which does not sleep meanwhile.
async fn each_turn_until(is_there: impl Fn() -> bool) {
    poll_fn(|cx| match is_there() {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

impl Pause {
    async fn pass(self, net: &Net) {
        match self {
            Pause::For(time) => net.sleep(time).await,
            Pause::Polls(count) => {
                let mut left = count;
                poll_fn(|cx| match left.checked_sub(1) {
                    Some(fewer) => {
                        left = fewer;
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                    None => Poll::Ready(()),
                })
                .await;
            }
        }
    }
}

fn give_up(sock: Sock, is_closed: bool) {
    if is_closed {
        sock.close();
    }
}

/// A listener whose queue is full, and who fills it: the kernel drops what comes, as a dead host does.
fn silent_server() -> (SocketAddr, Vec<OwnedFd>) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut held: Vec<OwnedFd> = vec![listener.into()];
    while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        held.push(filler.into());
    }
    (address, held)
}

/// A port at which every address of loopback is free: below the range of outgoing connections, and claimed by a UDP
/// socket of the same number, as the tests of the daemon do, for whoever else tests at the same time.
fn server_port() -> (u16, UdpSocket) {
    let claim = |port| Some((port, UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?));
    (0..1000)
        .filter_map(|_| claim(fastrand::u16(12_000..32_000)))
        .find(|(port, _)| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
        .expect("a free port")
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("our own descriptors").count()
}
