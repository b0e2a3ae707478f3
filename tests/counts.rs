//! What a request, a short connection and bulk cost in system calls, held as numbers.
//!
//! Counts, never times: they are the same on a busy machine and on an idle one. Each claim comes from
//! two runs of different length under `strace -c`: what they differ by is what the additional
//! units cost, without the daemon's start and end. A number that rises here is a call that
//! somebody added to every request; one that falls may be written down.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use nix::sys::signal::Signal;

use support::proc::TempDir;
use support::{Daemon, PATIENCE, eventually, free_port};

/// Units of the two runs. What the daemon does by itself meanwhile is shared out over their difference.
const FEW: usize = 50;
const MANY: usize = 550;

/// What both a question and its answer have.
const MESSAGE: [u8; 64] = [0x21; 64];

/// Calls of the daemon for one unit, by name.
struct PerUnit(BTreeMap<String, f64>);

impl PerUnit {
    fn of(io: &str, load: Load) -> Self {
        let (few, many) = (traced(io, load, FEW), traced(io, load, MANY));
        let more = |(name, calls): (String, f64)| {
            let before = few.get(&name).copied().unwrap_or_default();
            (name, (calls - before) / (MANY - FEW) as f64)
        };
        let mut calls: BTreeMap<_, _> = many.into_iter().map(more).collect();
        // Before each close, std without optimisation asks with fcntl(2) whether the descriptor is
        // still open. That is not our call, and is not in the build that users have.
        let closed = calls.get("close").copied().unwrap_or_default();
        calls.entry("fcntl".into()).and_modify(|asked| *asked = (*asked - closed).max(0.0));
        PerUnit(calls)
    }

    /// Waiting for sockets: how often depends on what arrives together.
    fn waits(&self) -> f64 {
        self.0.iter().filter(|(name, _)| is_wait(name)).map(|(_, calls)| calls).sum()
    }

    /// Everything else: depends on the code alone.
    fn others(&self) -> f64 {
        self.0.iter().filter(|(name, _)| !is_wait(name)).map(|(_, calls)| calls).sum()
    }

    fn of_these(&self, names: &[&str]) -> f64 {
        names.iter().filter_map(|name| self.0.get(*name)).sum()
    }

    /// The calls that come up at all, for the message of a failed claim.
    fn list(&self) -> String {
        let noticed = self.0.iter().filter(|(_, calls)| calls.abs() >= 0.01);
        noticed.map(|(name, calls)| format!("\n  {calls:6.2} {name}")).collect()
    }

    #[track_caller]
    fn expect_at_most(&self, others: f64, waits: f64) {
        let (got_others, got_waits) = (self.others(), self.waits());
        assert!(
            got_others <= others && got_waits <= waits,
            "{got_others:.2} calls (at most {others}) and {got_waits:.2} waits (at most {waits}):{}",
            self.list()
        );
    }
}

/// What clients do with so many units, and how a server serves one connection.
#[derive(Clone, Copy)]
struct Load {
    ask: fn(SocketAddr, usize),
    answer: fn(TcpStream),
}

const REQUESTS: Load = Load { ask: requests, answer: echo };
const SHORT_CONNECTIONS: Load = Load { ask: short_connections, answer: echo };
const UPLOAD: Load = Load { ask: upload, answer: swallow };

fn is_wait(name: &str) -> bool {
    matches!(name, "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "io_uring_enter")
}

/// All calls of a daemon that served so many units and was stopped in good order.
fn traced(io: &str, load: Load, units: usize) -> BTreeMap<String, f64> {
    let dir = TempDir::new("counts");
    let summary = dir.join("summary");
    let (front, server) = (SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())), serve(load.answer));
    let text = format!(
        "[process]\nworkers = 1\nio = \"{io}\"\n[log.access]\noutput = \"off\"\n\
         [listener.l]\nbind = [\"{front}\"]\npool = \"p\"\n[pool.p]\nservers = [\"{server}\"]\n"
    );
    // With -D the daemon keeps its own number, so that signals reach it and not the tracer.
    let path = summary.to_str().expect("a temporary directory has a plain name");
    let tracer = ["strace", "-D", "-f", "-qq", "-c", "-U", "name,calls", "-o", path];
    let mut daemon = Daemon::builder(&text).under(tracer).start();
    (load.ask)(front, units);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0), "{}", daemon.stderr());
    // The tracer writes when everything that it traced has ended.
    eventually("the tracer's summary", PATIENCE, || {
        let text = fs::read_to_string(&summary).ok().filter(|text| text.contains("total"))?;
        Some(text.lines().filter_map(name_and_calls).collect())
    })
}

/// One line of the summary; `None` for its head, its rules and its sum.
fn name_and_calls(line: &str) -> Option<(String, f64)> {
    let (name, calls) = line.trim().split_once(char::is_whitespace)?;
    let calls = calls.trim().parse().ok()?;
    (name != "total").then(|| (name.to_owned(), calls))
}

/// Serves one connection after the other, until the test process ends.
fn serve(answer: fn(TcpStream)) -> SocketAddr {
    // Not from the range of outgoing connections: a dial there is looked at once more.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).expect("a port for the server");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || listener.incoming().flatten().for_each(answer));
    address
}

/// Answers every byte with itself.
fn echo(mut client: TcpStream) {
    let mut room = MESSAGE;
    // An error here is an early end for the client, who will say so.
    while let Ok(got @ 1..) = client.read(&mut room) {
        if client.write_all(&room[..got]).is_err() {
            break;
        }
    }
}

/// Takes all there is, and says how much it was.
fn swallow(mut client: TcpStream) {
    let taken = io::copy(&mut client, &mut io::sink()).unwrap_or(0);
    let _ = client.write_all(&taken.to_be_bytes()); // the client misses it
}

/// So many MiB on one connection.
fn upload(front: SocketAddr, units: usize) {
    let (mut stream, mut taken) = (connect(front), [0; 8]);
    let block = vec![0x21; 1 << 20];
    (0..units).for_each(|_| stream.write_all(&block).expect("the server takes all"));
    stream.shutdown(Shutdown::Write).expect("the end goes out");
    stream.read_exact(&mut taken).expect("the server's count");
    assert_eq!(u64::from_be_bytes(taken), (units as u64) << 20);
}

fn ask(stream: &mut TcpStream) {
    let mut answer = [0; MESSAGE.len()];
    stream.write_all(&MESSAGE).expect("the question goes out");
    stream.read_exact(&mut answer).expect("the answer comes back");
    assert_eq!(answer, MESSAGE);
}

fn connect(front: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(front).expect("the daemon takes the connection");
    stream.set_nodelay(true).expect("a socket option");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    stream
}

/// So many requests on one connection.
fn requests(front: SocketAddr, units: usize) {
    let mut stream = connect(front);
    (0..units).for_each(|_| ask(&mut stream));
}

/// So many connections with one request each, closed by the client first.
fn short_connections(front: SocketAddr, units: usize) {
    for _ in 0..units {
        ask(&mut connect(front));
    }
}

/// A read and a write in each direction, nothing else.
#[test]
fn on_epoll_a_request_costs_four_system_calls_besides_waiting() {
    PerUnit::of("epoll", REQUESTS).expect_at_most(4.2, 2.3);
}

/// Two accepts (the second finds nobody: clients come one at a time here), a socket with one option
/// and its connect, two registrations, the request, the answer and an end each read and passed on,
/// two closes. Where clients come together, the second accept is shared.
#[test]
fn on_epoll_a_short_connection_costs_sixteen_system_calls_besides_waiting() {
    PerUnit::of("epoll", SHORT_CONNECTIONS).expect_at_most(16.2, 4.2);
}

/// Everything goes through the ring. A lone connection needs a wait for each of its four steps;
/// with more of them a wait serves many.
#[test]
fn on_io_uring_a_request_costs_nothing_besides_waiting() {
    if tidegate::net::probe::io_uring().is_ok() {
        PerUnit::of("io-uring", REQUESTS).expect_at_most(0.2, 4.3);
    }
}

/// The client's address, a socket with one option, and one shutdown.
#[test]
fn on_io_uring_a_short_connection_costs_four_system_calls_besides_waiting() {
    if tidegate::net::probe::io_uring().is_ok() {
        PerUnit::of("io-uring", SHORT_CONNECTIONS).expect_at_most(4.2, 9.3);
    }
}

/// A unit is 1 MiB. Once a direction is known as bulk, its bytes are spliced and never copied to us.
#[test]
fn bulk_is_not_copied_on_either_driver() {
    for io in ["epoll", "io-uring"] {
        if io == "epoll" || tidegate::net::probe::io_uring().is_ok() {
            let upload = PerUnit::of(io, UPLOAD);
            let (copies, splices) = (upload.of_these(&["recvfrom", "sendto"]), upload.of_these(&["splice"]));
            assert!(
                copies <= 0.1 && splices > 0.0,
                "{io}: {copies:.2} copies for each MiB:{}",
                upload.list()
            );
        }
    }
}

#[test]
fn a_line_of_the_tracers_summary_is_read_and_its_frame_is_not() {
    assert_eq!(name_and_calls("accept4               12"), Some(("accept4".to_owned(), 12.0)));
    for frame in ["syscall                calls", "---------------- ---------", "total   99", ""] {
        assert_eq!(name_and_calls(frame), None, "{frame}");
    }
}
