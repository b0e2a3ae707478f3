//! Every byte arrives, in order, in both directions at once, whatever the size.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};

use crate::rig::{Check, Rig};
use crate::support::record::{number, word};
use crate::support::{PATIENCE, listen, stream};

/// Enough for a thread whose buffers are on the heap; there are thousands of threads here.
const STACK_BYTES: usize = 256 << 10;

/// How much each side says, and which stream: the client's has the seed, the server's the next.
#[derive(Clone, Copy)]
struct Talk {
    seed: u64,
    from_client: u64,
    from_server: u64,
}

/// One end of a talk: sends its stream and ends it (half-close), while it compares every byte of
/// the other's stream up to its end. The two ends come at different times when the lengths
/// differ, and the later half must still arrive whole.
fn converse(socket: &TcpStream, seed: u64, sends: u64, other_seed: u64, expects: u64) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        let sender = move || {
            stream::send(socket, seed, 0..sends)?;
            socket.shutdown(Shutdown::Write)
        };
        let sender = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, sender)?;
        let received =
            stream::expect(socket, other_seed, 0..expects).and_then(|()| stream::expect_end(socket));
        let sent = sender.join().expect("the sender ends");
        received.and(sent)
    })
}

/// A server for as many talks as come, all of the same lengths. The client's first 8 bytes say
/// which seed the talk has, since the order of arrival says nothing.
struct Server {
    port: u16,
    accepting: JoinHandle<Vec<io::Result<()>>>,
}

impl Server {
    fn start(talks: usize, like: Talk) -> Server {
        let listener = listen("127.0.0.1:0");
        let port = listener.local_addr().expect("its address").port();
        let accepting = thread::spawn(move || {
            let take = |_| {
                let (socket, _) = listener.accept().expect("a connection");
                spawn(move || answer(&socket, like))
            };
            let talks: Vec<_> = (0..talks).map(take).collect();
            talks.into_iter().map(|talk| talk.join().expect("a talk ends")).collect()
        });
        Server { port, accepting }
    }

    #[track_caller]
    fn expect_all_right(self) {
        let results = self.accepting.join().expect("the server ends");
        let wrong: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(wrong.is_empty(), "the servers' side: {wrong:?}");
    }
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::Builder::new().stack_size(STACK_BYTES).spawn(work).expect("a thread")
}

fn answer(socket: &TcpStream, like: Talk) -> io::Result<()> {
    let mut seed = [0; 8];
    socket.set_read_timeout(Some(PATIENCE))?;
    io::Read::read_exact(&mut &*socket, &mut seed)?;
    let seed = u64::from_be_bytes(seed);
    converse(socket, seed + 1, like.from_server, seed, like.from_client)
}

fn ask(address: SocketAddr, talk: Talk) -> io::Result<()> {
    let socket = TcpStream::connect(address)?;
    io::Write::write_all(&mut &socket, &talk.seed.to_be_bytes())?;
    converse(&socket, talk.seed, talk.from_client, talk.seed + 1, talk.from_server)
}

/// `count` talks at once, each with a seed of its own; then the books.
#[track_caller]
fn talks_at_once(count: usize, like: Talk) {
    let server = Server::start(count, like);
    let rig = Rig::start(&[server.port], Check::RetryOnly);
    let address = rig.address();
    let seeds = (0..count as u64).map(|number| like.seed + 2 * number);
    let clients: Vec<_> = seeds.map(|seed| spawn(move || ask(address, Talk { seed, ..like }))).collect();
    let results = clients.into_iter().map(|client| client.join().expect("a client ends"));
    let wrong: Vec<_> = results.filter_map(Result::err).collect();
    let log = rig.settled();
    let abnormal: Vec<_> = log.iter().filter(|record| word(record, "close.reason") != "done").collect();
    assert!(wrong.is_empty(), "the clients' side: {wrong:?}, and in the log: {abnormal:#?}");
    server.expect_all_right();

    assert_eq!(log.len(), count);
    for record in &log {
        assert_eq!(number(record, "bytes_in"), like.from_client + 8, "{record}");
        assert_eq!(number(record, "bytes_out"), like.from_server, "{record}");
        assert_eq!(word(record, "close.reason"), "done", "{record}");
    }
}

#[test]
fn a_gibibyte_each_way_at_once_arrives_byte_for_byte() {
    talks_at_once(1, Talk { seed: 1, from_client: 1 << 30, from_server: (1 << 30) + 12_345 });
}

#[test]
fn sixty_four_connections_of_five_megabytes_each_way_arrive_byte_for_byte() {
    talks_at_once(64, Talk { seed: 1_000, from_client: 5_000_000, from_server: 5_000_001 });
}

#[test]
fn five_hundred_connections_of_a_hundred_kilobytes_each_way_arrive_byte_for_byte() {
    talks_at_once(500, Talk { seed: 10_000, from_client: 100_000, from_server: 100_003 });
}

#[test]
fn an_end_of_one_side_leaves_the_other_side_all_its_bytes() {
    // The client has nothing to say and ends at once; the server still has all to say, and the reverse.
    talks_at_once(8, Talk { seed: 20_000, from_client: 0, from_server: 5_000_000 });
    talks_at_once(8, Talk { seed: 30_000, from_client: 5_000_000, from_server: 0 });
}
