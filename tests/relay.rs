//! The relay on real sockets: to the last byte, under every order of closing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tidegate::net::{self, Brake, Driver, End, Liveness, Loop, Patience, Side, Tally};
use tidegate::sys::socket;

#[path = "relay/braked.rs"]
mod braked; // the same, no faster than it may go
#[path = "../src/net/tests/bumps.rs"]
mod bumps; // holds it back again and again

const QUIET: Liveness = Liveness { keepalive: None, user_timeout: None };
const PATIENT: Patience = Patience {
    idle: Some(Duration::from_secs(30)),
    half_closed: Some(Duration::from_secs(30)),
    server: QUIET,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays a scene that must keep up with a timeout of a fraction of a second, again where the machine was too slow
/// for it (`None`). Five times: one that stalls whenever it is looked at is of no use to anybody.
fn in_time(scene: impl FnMut() -> Option<()>) {
    assert!(
        std::iter::repeat_with(scene).take(5).any(|played| played.is_some()),
        "this machine always stalls"
    );
}

/// The driver under test: io_uring where it works; `TIDEGATE_TEST_IO=epoll` runs all on the other one.
fn driver() -> Driver {
    match std::env::var("TIDEGATE_TEST_IO").as_deref() {
        Ok("epoll") => Driver::Epoll,
        Ok("io-uring") => Driver::IoUring,
        _ if net::probe::io_uring().is_ok() => Driver::IoUring,
        _ => Driver::Epoll,
    }
}

/// How one connection ended, as the relay tells it.
#[derive(Debug)]
struct Told {
    how: End,
    to_server: u64,
    to_client: u64,
    has_spliced: bool,
}

/// A relay for one connection, and the two sockets at its ends.
struct Rig {
    client: TcpStream,
    server: TcpStream,
    end: Ending,
}

/// The relay's thread, and what it will tell.
struct Ending {
    told: mpsc::Receiver<Told>,
    relay: JoinHandle<()>,
}

impl Rig {
    fn start(patience: Patience) -> Rig {
        Rig::with_front(patience, |_| ())
    }

    /// With options on the relay's listener, which its clients' sockets inherit.
    fn with_front(patience: Patience, set: impl FnOnce(socket2::SockRef<'_>)) -> Rig {
        Rig::with(patience, set, || None)
    }

    /// No faster than that brake lets it.
    fn with_brake(patience: Patience, brake: impl FnOnce() -> Box<dyn Brake> + Send + 'static) -> Rig {
        Rig::with(patience, |_| (), || Some(brake()))
    }

    fn with(
        patience: Patience,
        set: impl FnOnce(socket2::SockRef<'_>),
        brake: impl FnOnce() -> Option<Box<dyn Brake>> + Send + 'static,
    ) -> Rig {
        let backing = TcpListener::bind("127.0.0.1:0").unwrap();
        let server_at = backing.local_addr().unwrap();
        let front = socket::listen_shared("127.0.0.1:0".parse().unwrap(), QUIET).unwrap();
        set(socket2::SockRef::from(&front));
        let front_at = socket::local_address(front.as_fd()).unwrap();
        let (tell, told) = mpsc::sync_channel(1);
        let relay = thread::spawn(move || {
            Loop::new(driver(), None)
                .unwrap()
                .run(move |net| relay_one(net, front, server_at, (patience, brake()), tell));
        });
        let client = TcpStream::connect(front_at).unwrap();
        client.set_nodelay(true).unwrap();
        let server = backing.accept().unwrap().0;
        server.set_nodelay(true).unwrap();
        Rig { client, server, end: Ending { told, relay } }
    }
}

impl Ending {
    fn told(self) -> Told {
        let told = self.told.recv_timeout(PATIENCE).expect("the relay ends");
        self.relay.join().unwrap();
        told
    }
}

async fn relay_one(
    net: net::Net,
    front: std::os::fd::OwnedFd,
    server_at: SocketAddr,
    (patience, brake): (Patience, Option<Box<dyn Brake>>),
    tell: mpsc::SyncSender<Told>,
) {
    let listener = net.listen(front).unwrap();
    let client = loop {
        listener.ready().await;
        if let Some((client, _)) = listener.accept().unwrap() {
            break net.adopt(client).unwrap();
        }
    };
    let tally = Rc::new(Tally::default());
    let server = match net.dial(server_at).await {
        Ok(server) => server,
        Err(error) => {
            // The server had reset before we looked: the end of a dial, not of a relay.
            client.reset();
            let how = End::Failed { side: Side::Server, error };
            return tell.send(Told { how, to_server: 0, to_client: 0, has_spliced: false }).unwrap();
        }
    };
    let ended = net.relay_braked([client, server], patience, Rc::clone(&tally), brake).await;
    let (to_server, to_client) = (tally.to_server.get(), tally.to_client.get());
    tell.send(Told { how: ended.how, to_server, to_client, has_spliced: tally.has_spliced.get() }).unwrap();
}

/// Reproducible bytes, different for each seed.
fn bytes(seed: u64, length: usize) -> Arc<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    Arc::new(bytes)
}

/// What a peer has read until its stream ended or failed.
struct Heard {
    bytes: Vec<u8>,
    /// `None`: a clean end.
    error: Option<ErrorKind>,
}

/// Reads in the background, so that neither side waits for the other to read.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Heard>,
}

impl Reader {
    fn of(stream: &Arc<TcpStream>) -> Reader {
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (stream, stop) = (Arc::clone(stream), Arc::clone(&stop));
            move || read_until_end(&stream, &stop)
        });
        Reader { stop, thread }
    }

    fn join(self) -> Heard {
        self.thread.join().unwrap()
    }

    /// Stops reading before the end has come.
    fn give_up(self) -> Heard {
        self.stop.store(true, Ordering::Release);
        self.join()
    }
}

fn read_until_end(mut stream: &TcpStream, stop: &AtomicBool) -> Heard {
    let mut heard = Heard { bytes: Vec::new(), error: None };
    let mut chunk = vec![0; 64 * 1024];
    let deadline = Instant::now() + PATIENCE;
    while !stop.load(Ordering::Acquire) {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => heard.bytes.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => {
                heard.error = Some(error.kind());
                break;
            }
        }
    }
    heard
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Fin,
    Rst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Send(Side),
    Leave(Side),
}

/// One peer of a scene: what it says, how it leaves, what it has heard.
struct Peer {
    stream: Option<Arc<TcpStream>>,
    reader: Option<Reader>,
    says: Arc<Vec<u8>>,
    leaves: Leave,
    /// Tells whether all was taken.
    sending: Option<JoinHandle<bool>>,
    was_refused: bool,
}

impl Peer {
    fn new(stream: TcpStream, says: Arc<Vec<u8>>, leaves: Leave) -> Peer {
        let stream = Arc::new(stream);
        let reader = Some(Reader::of(&stream));
        Peer { stream: Some(stream), reader, says, leaves, sending: None, was_refused: false }
    }

    fn send(&mut self) {
        let (stream, says) = (Arc::clone(self.stream.as_ref().unwrap()), Arc::clone(&self.says));
        self.sending = Some(thread::spawn(move || (&*stream).write_all(&says).is_ok()));
    }

    fn leave(&mut self) {
        if let Some(sending) = self.sending.take() {
            self.was_refused = !sending.join().unwrap();
        }
        match self.leaves {
            Leave::Fin => _ = self.stream.as_ref().unwrap().shutdown(Shutdown::Write),
            Leave::Rst => {
                self.reader.take().unwrap().give_up();
                let stream = Arc::into_inner(self.stream.take().unwrap()).unwrap();
                socket::reset(stream.into());
            }
        }
    }
}

/// Plays one order of acts, and holds what must hold whatever the order was.
fn play(order: [Act; 4], leaves: [Leave; 2], length: usize) {
    play_one(Rig::start(PATIENT), order, leaves, length);
}

fn play_one(rig: Rig, order: [Act; 4], leaves: [Leave; 2], length: usize) {
    let scene = format!("{order:?} {leaves:?} {length} bytes");
    let Rig { client, server, end } = rig;
    let said = [bytes(1, length), bytes(2, length)];
    let mut peers = [
        Peer::new(client, Arc::clone(&said[0]), leaves[0]),
        Peer::new(server, Arc::clone(&said[1]), leaves[1]),
    ];
    for act in order {
        match act {
            Act::Send(side) => peers[side as usize].send(),
            Act::Leave(side) => peers[side as usize].leave(),
        }
    }
    let is_clean = leaves == [Leave::Fin; 2];
    for (at, peer) in peers.into_iter().enumerate() {
        let Some(reader) = peer.reader else { continue };
        let heard = reader.join();
        assert!(said[1 - at].starts_with(&heard.bytes), "{scene}: peer {at} heard what was never said");
        if is_clean {
            assert_eq!((heard.bytes.len(), heard.error), (length, None), "{scene}: peer {at}");
        } else {
            // Linux tells a reset once, to whoever asks first: the reader or the writer.
            let was_told = heard.error.is_some() || peer.was_refused;
            assert!(was_told, "{scene}: peer {at} took a reset for a clean end");
        }
    }
    let told = end.told();
    match (&told.how, is_clean) {
        (End::Done { .. }, true) => {
            assert_eq!((told.to_server, told.to_client), (length as u64, length as u64), "{scene}");
        }
        (End::Failed { .. }, false) => {}
        (how, _) => panic!("{scene}: ended as {how:?}"),
    }
}

/// All orders of the two peers' acts in which each sends before it leaves.
fn orders() -> Vec<[Act; 4]> {
    use Side::{Client, Server};
    let (cs, cl, ss, sl) = (Act::Send(Client), Act::Leave(Client), Act::Send(Server), Act::Leave(Server));
    vec![
        [cs, cl, ss, sl],
        [cs, ss, cl, sl],
        [cs, ss, sl, cl],
        [ss, cs, cl, sl],
        [ss, cs, sl, cl],
        [ss, sl, cs, cl],
    ]
}

const LEAVES: [[Leave; 2]; 4] =
    [[Leave::Fin, Leave::Fin], [Leave::Fin, Leave::Rst], [Leave::Rst, Leave::Fin], [Leave::Rst, Leave::Rst]];

fn play_all(length: usize) {
    for order in orders() {
        for leaves in LEAVES {
            play(order, leaves, length);
        }
    }
}

#[test]
fn one_byte_survives_every_order_of_closing() {
    play_all(1);
}

#[test]
fn a_buffer_full_survives_every_order_of_closing() {
    play_all(64 * 1024);
}

#[test]
fn bulk_survives_every_order_of_closing() {
    play_all(5 * 1024 * 1024);
}

#[test]
fn bulk_is_spliced_and_small_messages_are_copied() {
    for (length, is_bulk) in [(4 * 1024, false), (64 * 1024 * 1024, true)] {
        let Rig { client, server, end } = Rig::start(PATIENT);
        let said = bytes(3, length);
        let server = Arc::new(server);
        let reader = Reader::of(&server);
        (&client).write_all(&said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.join().bytes, *said);
        drop((client, server));
        assert_eq!(end.told().has_spliced, is_bulk);
    }
}

#[test]
fn a_half_closed_client_still_gets_the_whole_answer() {
    let Rig { mut client, mut server, end } = Rig::start(PATIENT);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    let answer = bytes(4, 5 * 1024 * 1024);
    let writer = thread::spawn({
        let answer = Arc::clone(&answer);
        move || server.write_all(&answer).unwrap()
    });
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    writer.join().unwrap();
    assert_eq!(heard, *answer);
    assert!(matches!(end.told().how, End::Done { first: Side::Client }));
}

#[test]
fn a_server_that_answers_early_and_closes_does_not_tear_its_answer_from_the_client() {
    let Rig { mut client, mut server, end } = Rig::start(PATIENT);
    client.write_all(b"a long upload begins").unwrap();
    let mut begun = [0; 20];
    server.read_exact(&mut begun).unwrap();
    let answer = bytes(5, 256 * 1024);
    let writer = thread::spawn({
        let answer = Arc::clone(&answer);
        move || {
            server.write_all(&answer).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            // As servers do that linger: reads on for a moment, and is then dropped with bytes unread.
            server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let lingers_until = Instant::now() + Duration::from_millis(100);
            while Instant::now() < lingers_until && server.read(&mut [0; 64]).is_ok() {}
        }
    });
    let mut first = vec![0; 1];
    client.read_exact(&mut first).unwrap();
    writer.join().unwrap(); // the server has gone: what is sent now meets a closed socket and is reset
    for _ in 0..64 {
        client.write_all(&[7; 64 * 1024]).unwrap();
    }
    let mut heard = first;
    client.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, *answer);
    client.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(end.told().how, End::Failed { side: Side::Server, .. }));
}

#[test]
fn silence_in_both_directions_ends_the_connection_on_both_sides() {
    const IDLE: Duration = Duration::from_millis(400);
    const LATE: Duration = Duration::from_secs(1);
    in_time(|| {
        // From before the relay, or the last byte, to after it: no silence that the relay saw was longer.
        let mut spoken = Instant::now();
        let patience = Patience { idle: Some(IDLE), half_closed: None, server: QUIET };
        let Rig { mut client, mut server, end } = Rig::start(patience);
        for _ in 0..4 {
            thread::sleep(IDLE / 2); // not a wait for anything: the pause is the scene
            let now = Instant::now();
            let passed = client.write_all(b".").and_then(|()| server.read_exact(&mut [0]));
            if spoken.elapsed() >= IDLE {
                return None;
            }
            passed.expect("nobody was silent for so long");
            spoken = now;
        }
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let waited = spoken.elapsed();
        assert!(waited >= IDLE, "ended after {waited:?} of silence");
        assert!(server.read(&mut [0]).is_err());
        assert!(matches!(end.told().how, End::Silent { .. }));
        (waited < IDLE + LATE).then_some(())
    });
}

#[test]
fn a_half_closed_connection_is_bounded_by_its_own_timeout() {
    let patience = Patience { idle: None, half_closed: Some(Duration::from_millis(200)), server: QUIET };
    let Rig { mut client, mut server, end } = Rig::start(patience);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(matches!(end.told().how, End::Silent { .. }));
}

#[test]
fn a_reset_is_seen_although_the_other_side_takes_nothing() {
    let Rig { client, server, end } = Rig::start(PATIENT);
    client.set_nonblocking(true).unwrap();
    let (mut pushed, chunk) = (0, [1; 64 * 1024]);
    let mut stuck_since = Instant::now();
    while stuck_since.elapsed() < Duration::from_millis(300) {
        if let Ok(taken) = (&client).write(&chunk) {
            pushed += taken;
            stuck_since = Instant::now();
        }
    }
    assert!(pushed < 64 * 1024 * 1024, "{pushed} bytes were taken for a server that reads nothing");
    socket::reset(client.into());
    assert!(matches!(end.told().how, End::Failed { side: Side::Client, .. }));
    drop(server);
}

/// Where the last message that is copied goes out in parts and bulk follows it, the wait for the
/// sink ends and begins again in one step. Whether it stays there depends on how much the sink takes
/// and its owner reads, so all of a range is tried.
#[test]
fn a_reset_is_seen_however_much_was_taken_before_the_other_side_took_nothing() {
    let ranges = (8..24).step_by(4).flat_map(|room| (0..160).step_by(16).map(move |read| (room, read)));
    for (room, read) in ranges {
        let narrow = |front: socket2::SockRef<'_>| front.set_send_buffer_size(room * 1024).unwrap();
        let Rig { mut client, mut server, end } = Rig::with_front(PATIENT, narrow);
        server.write_all(&vec![1; 1024 * 1024]).unwrap();
        (0..read).for_each(|_| client.read_exact(&mut [0; 1024]).unwrap());
        thread::sleep(Duration::from_millis(20)); // nothing tells that the relay cannot write any more
        socket::reset(server.into());
        let told = end.told.recv_timeout(PATIENCE); // by then silence would have ended it as well
        assert!(
            matches!(told, Ok(Told { how: End::Failed { side: Side::Server, .. }, .. })),
            "with room for {room} KiB, after {read} KiB: {told:?}"
        );
    }
}

#[test]
fn urgent_data_does_not_stall_what_comes_after_it() {
    let Rig { client, mut server, end } = Rig::start(PATIENT);
    let raw = socket2::SockRef::from(&client);
    (&client).write_all(&[b'a'; 1000]).unwrap();
    raw.send_out_of_band(b"!").unwrap();
    (&client).write_all(&[b'b'; 1000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).unwrap();
    let expected = [[b'a'; 1000], [b'b'; 1000]].concat();
    assert_eq!(heard, expected, "the urgent byte is dropped, the rest is not");
    drop((client, server));
    end.told();
}

#[test]
fn ten_thousand_single_bytes_in_each_direction_do_not_stall() {
    let Rig { mut client, mut server, end } = Rig::start(PATIENT);
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while server.read(&mut byte).unwrap() == 1 {
            server.write_all(&byte).unwrap();
        }
    });
    for n in 0..10_000_u32 {
        let byte = [n.to_le_bytes()[0]];
        client.write_all(&byte).unwrap();
        let mut back = [0];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, byte);
    }
    client.shutdown(Shutdown::Write).unwrap();
    echo.join().unwrap();
    drop(client);
    assert!(matches!(end.told().how, End::Done { first: Side::Client }));
}

/// Splice stops at the urgent mark and calls it "nothing there", or even the end.
#[test]
fn urgent_data_within_bulk_neither_stalls_nor_truncates() {
    for pause in [Duration::ZERO, Duration::from_millis(50)] {
        let Rig { client, mut server, end } = Rig::start(PATIENT);
        let said = bytes(6, 4 * 1024 * 1024);
        let writer = thread::spawn({
            let said = Arc::clone(&said);
            move || {
                let (before, after) = said.split_at(said.len() / 2);
                (&client).write_all(before).unwrap();
                socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
                thread::sleep(pause); // not a wait for anything: the mark alone, or bytes behind it
                (&client).write_all(after).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                client
            }
        });
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = Vec::new();
        let ended = server.read_to_end(&mut heard);
        assert!(ended.is_ok(), "{pause:?}: after {} of {} bytes: {ended:?}", heard.len(), said.len());
        assert_eq!(heard.len(), said.len(), "{pause:?}: the urgent byte is dropped, the rest is not");
        assert_eq!(heard, *said);
        drop((writer.join().unwrap(), server));
        assert!(end.told().has_spliced);
    }
}

/// The end of one direction is noted in a turn that leaves more to do: its deadline holds all the same.
#[test]
fn a_half_close_amid_bulk_is_bounded_long_after_the_beginning() {
    let half_closed = Some(Duration::from_millis(200));
    let patience = Patience { idle: Some(Duration::from_secs(3600)), half_closed, server: QUIET };
    let Rig { client, mut server, end } = Rig::start(patience);
    thread::sleep(Duration::from_millis(1300)); // past the sweep that every beginning brings
    let talk = thread::spawn(move || {
        let chunk = vec![3; 1024 * 1024];
        for _ in 0..64 {
            server.write_all(&chunk).unwrap();
        }
        server
    });
    let (mut heard, mut chunk) = (0, vec![0; 1024 * 1024]);
    while heard < 64 * 1024 * 1024 {
        if (16..17).contains(&(heard >> 20)) {
            _ = client.shutdown(Shutdown::Write);
        }
        heard += (&client).read(&mut chunk).unwrap();
    }
    let server = talk.join().unwrap();
    let told = end.told.recv_timeout(PATIENCE).expect("silence is bounded");
    assert!(matches!(told.how, End::Silent { .. }), "{told:?}");
    drop(server);
}

#[test]
fn a_complete_answer_reaches_a_slow_client_although_the_server_resets_what_it_still_sends() {
    let Rig { mut client, mut server, end } = Rig::start(PATIENT);
    client.write_all(b"a long upload begins").unwrap();
    server.read_exact(&mut [0; 20]).unwrap();
    // As much as the buffers on the way hold, while the client reads nothing.
    let answer = bytes(7, 64 * 1024 * 1024);
    server.set_nonblocking(true).unwrap();
    let (mut said, mut stuck_since) = (0, Instant::now());
    while stuck_since.elapsed() < Duration::from_millis(300) {
        if let Ok(taken) = server.write(&answer[said..]) {
            (said, stuck_since) = (said + taken, Instant::now());
        }
    }
    server.shutdown(Shutdown::Write).unwrap();
    // The client reads no more than it takes to let the rest and the end into the relay's kernel.
    let mut heard = Vec::new();
    // In large steps: the kernel's table takes long to read where other tests left much in TIME_WAIT.
    let mut chunk = vec![0; 1024 * 1024];
    while !is_heard_out(&server) {
        let read = client.read(&mut chunk).unwrap();
        heard.extend_from_slice(&chunk[..read]);
    }
    drop(server); // what the client still sends meets a closed socket and is reset
    for _ in 0..10 {
        client.write_all(&[7; 1024]).unwrap();
        thread::sleep(Duration::from_millis(10)); // not a wait for anything: the client is in no hurry
    }
    let ended = client.read_to_end(&mut heard);
    assert!(ended.is_ok(), "after {} of {said} bytes: {ended:?}", heard.len());
    assert_eq!(heard, answer[..said]);
    client.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(end.told().how, End::Failed { side: Side::Server, .. }));
}

/// Whether the other end's kernel has all that was sent, and the end itself: FIN_WAIT2.
fn is_heard_out(stream: &TcpStream) -> bool {
    let [own, other] =
        [stream.local_addr(), stream.peer_addr()].map(|at| format!(":{:04X}", at.unwrap().port()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1].ends_with(&own) && fields[2].ends_with(&other) && fields[3] == "05"
    })
}

#[test]
fn what_a_server_said_before_its_reset_is_passed_on_first() {
    let Rig { client, mut server, end } = Rig::start(PATIENT);
    let client = Arc::new(client);
    (&*client).write_all(b"a long upload begins").unwrap();
    server.read_exact(&mut [0; 20]).unwrap();
    let upload = thread::spawn({
        let client = Arc::clone(&client);
        move || while (&*client).write_all(&[7; 16 * 1024]).is_ok() {}
    });
    server.read_exact(&mut vec![0; 1024 * 1024]).unwrap();
    server.write_all(&[b'x'; 20_000]).unwrap();
    drop(server); // with bytes unread: a reset
    let mut heard = Vec::new();
    let how = (&*client).read_to_end(&mut heard);
    upload.join().unwrap();
    drop(client);
    let told = end.told();
    assert_eq!(heard.len(), 20_000, "{how:?} {told:?}");
}
