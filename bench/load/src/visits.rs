//! Scenarios in which every unit is a connection: connect, ask, be answered, close first.
//!
//! Closing is one close(2): the client sends its FIN and does not stay to see the other's. The
//! question is sent right behind the connect, as a client does whose connect waits; on
//! loopback the handshake is over by then, which saves the load a turn through epoll.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::arrivals::Arrivals;
use crate::meter::{Fault, Meter};
use crate::sys::{self, Poll, READ, WRITE};

/// Between two looks at whether the run is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// After the end of an open loop, how long its last answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Open at once on one thread of an open loop; what is due beyond them counts as failed to connect.
const OPEN_MAX: usize = 4096;

/// Connections begun in a row before answers are looked at again.
const BEGUN_IN_A_ROW: usize = 16;

/// One connection that waits for its answer.
struct Visit {
    socket: OwnedFd,
    began_ns: u64,
    is_sent: bool,
    got: usize,
}

/// What became of a visit that was looked at.
enum Seen {
    Goes,
    Answered,
    Failed(Fault),
}

/// The visits of one thread in numbered places.
struct Visits {
    poll: Poll,
    places: Vec<Option<Visit>>,
    free: Vec<usize>,
    message: Vec<u8>,
    room: Vec<u8>,
    /// Connections so far: spreads them over source addresses and targets.
    begun: usize,
}

impl Visits {
    fn new(meter: &Meter<'_>, places: usize, bytes: usize) -> io::Result<Self> {
        Ok(Visits {
            poll: Poll::new()?,
            places: (0..places).map(|_| None).collect(),
            free: (0..places).rev().collect(),
            message: vec![0x21; bytes],
            room: vec![0; 2 * bytes],
            begun: meter.thread,
        })
    }

    /// Connects and asks, counting from `began_ns`; whatever fails is counted.
    fn begin(&mut self, meter: &Meter<'_>, began_ns: u64) {
        let Some(place) = self.free.pop() else { return meter.fault(Fault::Connect) };
        match self.try_begin(meter, place, began_ns) {
            Ok(visit) => self.places[place] = Some(visit),
            Err(_) => {
                meter.fault(Fault::Connect);
                self.free.push(place);
            }
        }
    }

    fn try_begin(&mut self, meter: &Meter<'_>, place: usize, began_ns: u64) -> io::Result<Visit> {
        let (from, to) = meter.run.ends(self.begun);
        self.begun += meter.run.threads;
        let socket = sys::connect(from, to)?;
        let is_sent = match sys::send(socket.as_raw_fd(), &self.message) {
            Ok(sent) if sent == self.message.len() => true,
            Ok(_) => return Err(ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => return Err(error),
        };
        let interest = if is_sent { READ } else { READ | WRITE };
        self.poll.add(socket.as_raw_fd(), place as u64, interest)?;
        Ok(Visit { socket, began_ns, is_sent, got: 0 })
    }

    /// Waits, and looks at what is reported; returns how many visits have come to an end.
    fn turn(&mut self, meter: &mut Meter<'_>, timeout: Duration) -> io::Result<usize> {
        let mut ended = 0;
        for event in 0..self.poll.wait(timeout)? {
            let place = self.poll.token(event) as usize;
            let began_ns = self.places[place].as_ref().map_or(0, |visit| visit.began_ns);
            match self.look(place) {
                Seen::Goes => continue,
                Seen::Answered => meter.complete(began_ns),
                Seen::Failed(kind) => meter.fault(kind),
            }
            self.places[place] = None; // closed here: the client is first
            self.free.push(place);
            ended += 1;
        }
        Ok(ended)
    }

    fn look(&mut self, place: usize) -> Seen {
        let Some(visit) = &mut self.places[place] else { return Seen::Goes };
        let fd = visit.socket.as_raw_fd();
        if !visit.is_sent {
            match sys::send(fd, &self.message) {
                Ok(sent) if sent == self.message.len() => visit.is_sent = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Seen::Goes,
                _ => return Seen::Failed(Fault::Connect),
            }
            return match self.poll.modify(fd, place as u64, READ) {
                Ok(()) => Seen::Goes,
                Err(_) => Seen::Failed(Fault::Connect),
            };
        }
        match sys::receive(fd, &mut self.room) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Seen::Goes,
            Err(_) => return Seen::Failed(Fault::Reset),
            Ok(0) => return Seen::Failed(Fault::Short),
            Ok(got) => visit.got += got,
        }
        match visit.got.cmp(&self.message.len()) {
            std::cmp::Ordering::Less => Seen::Goes,
            std::cmp::Ordering::Equal => Seen::Answered,
            std::cmp::Ordering::Greater => Seen::Failed(Fault::Excess),
        }
    }

    fn open(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

/// `at_once` connections at any time, of all threads together.
pub fn closed_loop(meter: &mut Meter<'_>, at_once: usize, bytes: usize) -> io::Result<()> {
    let mut visits = Visits::new(meter, meter.share(at_once).count(), bytes)?;
    while !meter.run.is_over() {
        // Each free place is tried once, so that a failure ends in the wait below and does not spin.
        for _ in 0..visits.free.len() {
            visits.begin(meter, meter.run.now_ns());
        }
        visits.turn(meter, LOOK_EVERY)?;
    }
    Ok(())
}

/// `rate` connections per second, of all threads together, whatever becomes of those before.
pub fn open_loop(meter: &mut Meter<'_>, rate: f64, bytes: usize) -> io::Result<()> {
    sys::wake_in_time()?;
    let mut visits = Visits::new(meter, OPEN_MAX, bytes)?;
    let seed = meter.run.seed.wrapping_mul(1000) + meter.thread as u64;
    let mut arrivals = Arrivals::new(rate / meter.run.threads as f64, meter.run.now_ns(), seed);
    while !meter.run.is_over() {
        for _ in 0..BEGUN_IN_A_ROW {
            if arrivals.next_ns() > meter.run.now_ns() {
                break;
            }
            let due = arrivals.take();
            visits.begin(meter, due);
        }
        let until_next = Duration::from_nanos(arrivals.next_ns().saturating_sub(meter.run.now_ns()));
        visits.turn(meter, until_next.min(LOOK_EVERY))?;
    }
    let deadline = Instant::now() + LAST_ANSWERS;
    while visits.open() > 0 && Instant::now() < deadline {
        visits.turn(meter, LOOK_EVERY)?;
    }
    (0..visits.open()).for_each(|_| meter.fault(Fault::Lost));
    Ok(())
}
