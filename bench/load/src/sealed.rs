//! Scenarios over TLS: every unit a handshake, or bulk on connections that stay.
//!
//! A handshake's connection is closed in order: the client says that it is done and stays until the
//! proxy has ended too, so that a proxy that tears the end off is seen.
//!
//! In bulk the client would be as busy as the proxy if it decrypted everything. One connection of each thread
//! does, to the last byte, and tells how many bytes of plain text one byte of the wire is; on the
//! others, once the handshake is over, the wire's bytes are thrown away unseen.

use std::cmp::Ordering;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::lines;
use crate::meter::{Fault, Meter};
use crate::serve::STREAM_BYTE;
use crate::sys::{self, Poll, READ, WRITE};
use crate::tls::{Client, Session};

/// Between two looks at whether the run is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long a handshake of bulk may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one call receives: four records of the largest kind, and small enough for the cache.
const ROOM_BYTES: usize = 64 << 10;

/// More than any socket holds: one call takes all there is.
const DISCARD_BYTES: usize = 4 << 20;

/// What a record may carry, to compare with at the speed of memory; byte by byte took longer than AES.
static STREAM: [u8; 16 << 10] = [STREAM_BYTE; 16 << 10];

/// One connection from its beginning to the end of both directions.
struct Visit {
    socket: OwnedFd,
    session: Session,
    began_ns: u64,
    /// The socket did not take all at once, and is watched for room.
    is_pressed: bool,
    is_answered: bool,
    got: usize,
}

/// The visits of one thread in numbered places.
struct Visits {
    client: Client,
    poll: Poll,
    places: Vec<Option<Visit>>,
    free: Vec<usize>,
    message: Vec<u8>,
    room: Vec<u8>,
    /// Connections so far: spreads them over source addresses.
    begun: usize,
}

impl Visits {
    fn new(meter: &Meter<'_>, is_resuming: bool, places: usize, bytes: usize) -> io::Result<Self> {
        Ok(Visits {
            client: Client::new(is_resuming)?,
            poll: Poll::new()?,
            places: (0..places).map(|_| None).collect(),
            free: (0..places).rev().collect(),
            message: vec![0x21; bytes],
            room: vec![0; ROOM_BYTES],
            begun: meter.thread,
        })
    }

    fn begin(&mut self, meter: &Meter<'_>) {
        let Some(place) = self.free.pop() else { return };
        match self.try_begin(meter, place) {
            Ok(visit) => self.places[place] = Some(visit),
            Err(_) => {
                meter.fault(Fault::Connect);
                self.free.push(place);
            }
        }
    }

    /// Connects and says hello at once, the question waiting behind it: see `visits`.
    fn try_begin(&mut self, meter: &Meter<'_>, place: usize) -> io::Result<Visit> {
        let began_ns = meter.run.now_ns();
        let (from, to) = meter.run.ends(self.begun);
        self.begun += meter.run.threads;
        let mut session = self.client.session()?;
        session.say(&self.message)?;
        let socket = sys::connect(from, to)?;
        sys::set_no_delay(&socket)?; // the end is a message of its own, and must not wait for an ACK
        let is_pressed = !session.flush(socket.as_raw_fd())?;
        let interest = if is_pressed { READ | WRITE } else { READ };
        self.poll.add(socket.as_raw_fd(), place as u64, interest)?;
        Ok(Visit { socket, session, began_ns, is_pressed, is_answered: false, got: 0 })
    }

    /// Waits, and looks at what is reported.
    fn turn(&mut self, meter: &mut Meter<'_>) -> io::Result<()> {
        for event in 0..self.poll.wait(LOOK_EVERY)? {
            let place = self.poll.token(event) as usize;
            let Some(visit) = &mut self.places[place] else { continue };
            let was_pressed = visit.is_pressed;
            match visit.look(meter, &self.message, &mut self.room) {
                Ok(false) if visit.is_pressed == was_pressed => continue,
                Ok(false) => {
                    visit.watch(&self.poll, place)?;
                    continue;
                }
                Ok(true) => {}
                Err(kind) => meter.fault(kind),
            }
            self.places[place] = None; // closed here
            self.free.push(place);
        }
        Ok(())
    }
}

impl Visit {
    /// Takes the next step, whichever it is; true when both sides have ended.
    fn look(&mut self, meter: &mut Meter<'_>, message: &[u8], room: &mut [u8]) -> Result<bool, Fault> {
        let fd = self.socket.as_raw_fd();
        let received = match sys::receive(fd, room) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.flush()?;
                return Ok(false);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Err(Fault::Connect),
            Err(_) => return Err(Fault::Reset),
            Ok(0) if self.is_answered => return Ok(true),
            Ok(0) => return Err(Fault::Short),
            Ok(received) => received,
        };
        let (mut got, mut is_ours) = (0, true);
        let taken = self.session.take(&room[..received], |piece| {
            got += piece.len();
            is_ours &= piece.iter().all(|byte| *byte == message[0]);
        });
        self.got += got;
        match self.got.cmp(&message.len()) {
            _ if taken.is_err() || !is_ours => return Err(Fault::Tls),
            Ordering::Greater => return Err(Fault::Excess),
            Ordering::Equal if !self.is_answered => {
                self.is_answered = true;
                meter.complete(self.began_ns);
                meter.count_resumed(self.session.is_resumed());
                self.session.end();
            }
            _ => {}
        }
        self.flush()?;
        Ok(false)
    }

    /// Sends what there is to send, and the end of all behind the last of it.
    fn flush(&mut self) -> Result<(), Fault> {
        let fd = self.socket.as_raw_fd();
        let is_all_sent = self.session.flush(fd).map_err(|_| Fault::Reset)?;
        if is_all_sent && self.is_answered {
            // Fails only where the other side has reset, which the next look finds.
            let _ = sys::end_sending(fd);
        }
        self.is_pressed = !is_all_sent;
        Ok(())
    }

    fn watch(&self, poll: &Poll, place: usize) -> io::Result<()> {
        let interest = if self.is_pressed { READ | WRITE } else { READ };
        poll.modify(self.socket.as_raw_fd(), place as u64, interest)
    }
}

/// `at_once` connections at any time, of all threads together, each with a handshake of its own.
pub fn handshakes(meter: &mut Meter<'_>, is_resuming: bool, at_once: usize, bytes: usize) -> io::Result<()> {
    let mut visits = Visits::new(meter, is_resuming, meter.share(at_once).count(), bytes)?;
    while !meter.run.is_over() {
        // Each free place is tried once, so that a failure ends in the wait below and does not spin.
        for _ in 0..visits.free.len() {
            visits.begin(meter);
        }
        visits.turn(meter)?;
    }
    Ok(())
}

/// How much plain text the wire carries, as the connection that decrypts sees it.
#[derive(Default)]
struct Framing {
    wire: u64,
    plain: u64,
}

impl Framing {
    /// Nothing, as long as nothing is known.
    fn plain_of(&self, wire: usize) -> u64 {
        (u128::from(self.plain) * wire as u128 / u128::from(self.wire.max(1))) as u64
    }
}

/// Server to client, as fast as it comes; a unit is a byte of plain text.
pub fn bulk(meter: &mut Meter<'_>, connections: usize) -> io::Result<()> {
    let client = Client::new(false)?;
    let (mut poll, mut room) = (Poll::new()?, vec![0; ROOM_BYTES]);
    let mut streams = Vec::new();
    for number in meter.share(connections) {
        match shake_hands(meter, &client, number, &mut room) {
            Err(kind) => meter.fault(kind),
            Ok((socket, session)) => {
                poll.add(socket.as_raw_fd(), streams.len() as u64, READ)?;
                // The first one goes on decrypting, and is who the others are measured by.
                let session = streams.is_empty().then_some(session);
                streams.push(Some((socket, session)));
            }
        }
    }
    let mut framing = Framing::default();
    while !meter.run.is_over() {
        for event in 0..poll.wait(LOOK_EVERY)? {
            let slot = &mut streams[poll.token(event) as usize];
            let Some((socket, session)) = slot else { continue };
            let taken = match session {
                Some(session) => decrypt(socket, session, &mut room, &mut framing),
                None => discard(socket, &framing),
            };
            match taken {
                Ok(bytes) => meter.count(bytes),
                Err(kind) => {
                    meter.fault(kind);
                    *slot = None; // closed, and so no longer watched
                }
            }
        }
    }
    Ok(())
}

fn discard(socket: &OwnedFd, framing: &Framing) -> Result<u64, Fault> {
    match sys::discard(socket.as_raw_fd(), DISCARD_BYTES) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(_) => Err(Fault::Reset),
        Ok(0) => Err(Fault::Short),
        Ok(wire) => Ok(framing.plain_of(wire)),
    }
}

fn decrypt(
    socket: &OwnedFd,
    session: &mut Session,
    room: &mut [u8],
    framing: &mut Framing,
) -> Result<u64, Fault> {
    let received = match sys::receive(socket.as_raw_fd(), room) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
        Err(_) => return Err(Fault::Reset),
        Ok(0) => return Err(Fault::Short),
        Ok(received) => received,
    };
    let (mut plain, mut is_ours) = (0, true);
    let taken = session.take(&room[..received], |piece| {
        plain += piece.len() as u64;
        is_ours &= piece.chunks(STREAM.len()).all(|chunk| *chunk == STREAM[..chunk.len()]);
    });
    if taken.is_err() || !is_ours {
        return Err(Fault::Tls);
    }
    framing.wire += received as u64;
    framing.plain += plain;
    Ok(plain)
}

/// A connection with TLS on it, not blocking; what the server has said by then counts for nobody.
fn shake_hands(
    meter: &Meter<'_>,
    client: &Client,
    number: usize,
    room: &mut [u8],
) -> Result<(OwnedFd, Session), Fault> {
    let socket = lines::establish(meter.run, number).map_err(|_| Fault::Connect)?;
    let mut session = client.session().map_err(|_| Fault::Tls)?;
    let mut poll = Poll::new().map_err(|_| Fault::Connect)?;
    poll.add(socket.as_raw_fd(), 0, READ).map_err(|_| Fault::Connect)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A hello and a Finished: no socket is too small for them.
        if !session.flush(socket.as_raw_fd()).map_err(|_| Fault::Reset)? {
            return Err(Fault::Reset);
        }
        if !session.is_handshaking() {
            return Ok((socket, session));
        }
        let patience = deadline.saturating_duration_since(Instant::now());
        if poll.wait(patience).map_err(|_| Fault::Connect)? == 0 {
            return Err(Fault::Connect);
        }
        decrypt(&socket, &mut session, room, &mut Framing::default())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_decrypted_counts_as_what_is() {
        let framing = Framing { wire: 16_406_000, plain: 16_384_000 };
        assert_eq!(framing.plain_of(16_406), 16_384);
        assert_eq!(Framing::default().plain_of(16_406), 0, "nothing is known yet");
    }
}
