//! Scenarios on connections that stay: bulk, ping-pong (closed loop), pings (open loop), idle.
//!
//! A connection that fails is counted and not made again: an error is never hidden by going on
//! elsewhere, and a proxy that fails at once cannot make the load spin.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::arrivals::Arrivals;
use crate::meter::{Fault, Meter, Run};
use crate::sys::{self, Poll, READ, WRITE};

/// How long a connection may take to be made, and the first answer to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks at whether the run is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// After the end of an open loop, how long its last answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// More than any socket holds: one call takes all there is.
const DISCARD_BYTES: usize = 4 << 20;

/// The largest message of these scenarios.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Pings that may be due at once before answers are looked at again.
const SENDS_IN_A_ROW: usize = 64;

/// Connection `number` of the run, established as far as this side can see.
pub fn establish(run: &Run, number: usize) -> io::Result<OwnedFd> {
    let (from, to) = run.ends(number);
    let socket = sys::connect(from, to)?;
    sys::set_no_delay(&socket)?;
    let mut poll = Poll::new()?;
    poll.add(socket.as_raw_fd(), 0, WRITE)?;
    if poll.wait(PATIENCE)? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    let stream = TcpStream::from(socket);
    stream.take_error()?.map_or(Ok(stream.into()), Err)
}

/// Server to client, as fast as it comes; a unit is a byte.
pub fn bulk(meter: &mut Meter<'_>, connections: usize) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut sockets = Vec::new();
    for number in meter.share(connections) {
        let Ok(socket) = establish(meter.run, number) else {
            meter.fault(Fault::Connect);
            continue;
        };
        poll.add(socket.as_raw_fd(), sockets.len() as u64, READ)?;
        sockets.push(Some(socket));
    }
    while !meter.run.is_over() {
        for event in 0..poll.wait(LOOK_EVERY)? {
            let slot = &mut sockets[poll.token(event) as usize];
            let Some(socket) = slot else { continue };
            match sys::discard(socket.as_raw_fd(), DISCARD_BYTES) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => meter.fault(Fault::Reset),
                Ok(0) => meter.fault(Fault::Short),
                Ok(bytes) => {
                    meter.count(bytes as u64);
                    continue;
                }
            }
            *slot = None; // closed, and so no longer watched
        }
    }
    Ok(())
}

/// A connection with messages on their way: when each was sent, or was due.
struct Line {
    socket: OwnedFd,
    waiting: VecDeque<u64>,
    /// Bytes of the oldest answer that have come.
    got: usize,
}

/// The lines of one thread, the message, and room for answers.
struct Lines {
    poll: Poll,
    lines: Vec<Option<Line>>,
    message: Vec<u8>,
    room: Vec<u8>,
}

impl Lines {
    fn open(meter: &Meter<'_>, connections: usize, bytes: usize) -> io::Result<Self> {
        let (message, room) = (vec![0x21; bytes], vec![0; MESSAGE_BYTES_MAX]);
        let mut lines = Lines { poll: Poll::new()?, lines: Vec::new(), message, room };
        for number in meter.share(connections) {
            let Ok(socket) = establish(meter.run, number) else {
                meter.fault(Fault::Connect);
                continue;
            };
            lines.poll.add(socket.as_raw_fd(), lines.lines.len() as u64, READ)?;
            lines.lines.push(Some(Line { socket, waiting: VecDeque::with_capacity(64), got: 0 }));
        }
        Ok(lines)
    }

    /// Sends one message that counts from `began_ns`.
    fn send(&mut self, meter: &Meter<'_>, index: usize, began_ns: u64) {
        let Some(line) = &mut self.lines[index] else {
            return meter.fault(Fault::Lost); // its line failed before: this one cannot be answered
        };
        match sys::send(line.socket.as_raw_fd(), &self.message) {
            Ok(sent) if sent == self.message.len() => line.waiting.push_back(began_ns),
            _ => self.fail(meter, index, Fault::Reset),
        }
    }

    /// Takes what has come on a line; returns how many answers are complete.
    fn receive(&mut self, meter: &mut Meter<'_>, index: usize) -> usize {
        let Some(line) = &mut self.lines[index] else { return 0 };
        let got = match sys::receive(line.socket.as_raw_fd(), &mut self.room) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
            Ok(got @ 1..) => got,
            Ok(0) => return self.fail(meter, index, Fault::Short),
            _ => return self.fail(meter, index, Fault::Reset),
        };
        line.got += got;
        let mut complete = 0;
        while line.got >= self.message.len() {
            let Some(began_ns) = line.waiting.pop_front() else {
                return self.fail(meter, index, Fault::Excess);
            };
            line.got -= self.message.len();
            meter.complete(began_ns);
            complete += 1;
        }
        complete
    }

    /// The messages that are on their way on a failed line will have no answer.
    fn fail<T: Default>(&mut self, meter: &Meter<'_>, index: usize, kind: Fault) -> T {
        meter.fault(kind);
        if let Some(line) = self.lines[index].take() {
            line.waiting.iter().for_each(|_| meter.fault(Fault::Lost));
        }
        T::default()
    }

    fn waiting(&self) -> impl Iterator<Item = u64> + '_ {
        self.lines.iter().flatten().flat_map(|line| line.waiting.iter().copied())
    }
}

/// On each connection one message at a time: the next when the answer to the last is complete.
pub fn ping_pong(meter: &mut Meter<'_>, connections: usize, bytes: usize) -> io::Result<()> {
    let mut lines = Lines::open(meter, connections, bytes)?;
    for index in 0..lines.lines.len() {
        lines.send(meter, index, meter.run.now_ns());
    }
    while !meter.run.is_over() {
        for event in 0..lines.poll.wait(LOOK_EVERY)? {
            let index = lines.poll.token(event) as usize;
            for _ in 0..lines.receive(meter, index) {
                lines.send(meter, index, meter.run.now_ns());
            }
        }
    }
    Ok(())
}

/// Messages at a rate that does not ask how the answers are doing; `rate` is of all threads together.
pub fn pings(meter: &mut Meter<'_>, connections: usize, bytes: usize, rate: f64) -> io::Result<()> {
    sys::wake_in_time()?;
    let mut lines = Lines::open(meter, connections, bytes)?;
    if lines.lines.is_empty() {
        return Ok(()); // each of them was counted as an error
    }
    let seed = meter.run.seed.wrapping_mul(1000) + meter.thread as u64;
    let mut arrivals = Arrivals::new(rate / meter.run.threads as f64, meter.run.now_ns(), seed);
    while !meter.run.is_over() {
        for _ in 0..SENDS_IN_A_ROW {
            if arrivals.next_ns() > meter.run.now_ns() {
                break;
            }
            let index = arrivals.pick(lines.lines.len());
            let due = arrivals.take();
            lines.send(meter, index, due);
        }
        let until_next = Duration::from_nanos(arrivals.next_ns().saturating_sub(meter.run.now_ns()));
        take_answers(&mut lines, meter, until_next.min(LOOK_EVERY))?;
    }
    let deadline = Instant::now() + LAST_ANSWERS;
    while lines.waiting().next().is_some() && Instant::now() < deadline {
        take_answers(&mut lines, meter, LOOK_EVERY)?;
    }
    let lost = lines.waiting().filter(|due| meter.is_in_window(*due)).count();
    (0..lost).for_each(|_| meter.fault(Fault::Lost));
    Ok(())
}

fn take_answers(lines: &mut Lines, meter: &mut Meter<'_>, timeout: Duration) -> io::Result<()> {
    for event in 0..lines.poll.wait(timeout)? {
        let index = lines.poll.token(event) as usize;
        lines.receive(meter, index);
    }
    Ok(())
}

/// Opens connections one after the other, proves with one message each that it leads to a server,
/// and returns them, to be held.
pub fn idle(meter: &Meter<'_>, connections: usize, bytes: usize) -> Vec<TcpStream> {
    let message = vec![0x21; bytes];
    let mut room = vec![0; bytes];
    let open = |number| -> io::Result<TcpStream> {
        let mut stream = TcpStream::from(establish(meter.run, number)?);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&message)?;
        stream.read_exact(&mut room)?;
        Ok(stream)
    };
    let opened: Vec<io::Result<TcpStream>> = (0..connections).map(open).collect();
    let held: Vec<TcpStream> = opened.into_iter().flatten().collect();
    (held.len()..connections).for_each(|_| meter.fault(Fault::Connect));
    meter.count(held.len() as u64);
    held
}
