//! Both directions of one connection, until both have ended.
//!
//! A half-closed connection is normal and carries the other direction to its last byte. A reset
//! is passed on as a reset, because a clean end would hide that something is missing. Only a
//! server that answered, closed, and then resets what the client goes on sending has left
//! nothing out: the client gets the whole answer and a clean end.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::libc::{ECONNRESET, EPIPE};

use super::brake::{Brake, Braked};
use super::pump::{Budget, Halt, Pump, Tools};
use super::sock::{Ready, Socket};
use crate::sys::socket::{self, Liveness};

/// Keepalive and user timeout of the server's side are set when a connection has lived this
/// long: five system calls that short connections do without. Both take longer to matter.
const GUARD_AFTER: Duration = Duration::from_secs(1);

/// How long what a server said before its reset may take where a brake holds it back. A refusal or an error
/// fits into the least that may move at once; whoever has megabytes to come is to hear of the reset rather.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// One end of a relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// How long silence is borne; `None` is for ever.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// With both directions open.
    pub idle: Option<Duration>,
    /// After one side has ended.
    pub half_closed: Option<Duration>,
    /// How a dead server is found out. A client's side has this from its listener.
    pub server: Liveness,
}

/// What a relay has moved so far, for whoever watches it.
#[derive(Debug, Default)]
pub struct Tally {
    pub to_server: Cell<u64>,
    pub to_client: Cell<u64>,
    /// When the server's first byte was passed on.
    pub first_byte: Cell<Option<Instant>>,
    /// Some bytes went through a pipe.
    pub has_spliced: Cell<bool>,
}

/// How a relay ended. Its sockets are closed.
#[derive(Debug)]
pub struct Ended {
    pub how: End,
    /// The side that had already ended its direction cleanly by then.
    pub half_closed: Option<Side>,
}

#[derive(Debug)]
pub enum End {
    /// Both sides said all they had to say; `first` was the first to.
    Done { first: Side },
    /// The connection with that side failed.
    Failed { side: Side, error: io::Error },
    /// Nothing moved for longer than [`Patience`] allows.
    Silent { allowed: Duration },
}

/// What a turn brought.
pub(super) enum Turn {
    Waiting,
    /// There is more to do at once, but others have their turn first.
    Tired,
    Ended(Ended),
}

pub(super) struct Relay {
    /// The client's socket, the server's.
    sockets: [Socket; 2],
    /// From the client, from the server.
    pumps: [Pump; 2],
    /// How long silence is borne, with both directions open and after one has ended.
    idle: Option<Duration>,
    half_closed: Option<Duration>,
    tally: Rc<Tally>,
    last_moved: Instant,
    /// `None`: as fast as it goes.
    braked: Option<Box<Braked>>,
    /// How and when the server's side is to learn to find out a dead peer; `None` once it has. Apart,
    /// since an idle connection has long done without.
    guard: Option<Box<(Instant, Liveness)>>,
    first_ended: Option<Side>,
    /// The server has answered, closed, and reset what the client went on sending.
    is_server_dead: bool,
    /// The server has reset the connection, and what it had said before is being passed on.
    server_reset: Option<i32>,
}

impl Relay {
    pub(super) fn new(
        sockets: [Socket; 2],
        patience: Patience,
        tally: Rc<Tally>,
        brake: Option<Box<dyn Brake>>,
        now: Instant,
    ) -> Self {
        let pumps = Default::default();
        let Patience { idle, half_closed, server } = patience;
        Relay {
            sockets,
            pumps,
            idle,
            half_closed,
            tally,
            last_moved: now,
            braked: brake.map(Braked::new),
            guard: Some(Box::new((now + GUARD_AFTER, server))),
            first_ended: None,
            is_server_dead: false,
            server_reset: None,
        }
    }

    pub(super) fn ready(&mut self, side: Side) -> &mut Ready {
        &mut self.sockets[side as usize].ready
    }

    pub(super) fn half_closed(&self) -> Option<Side> {
        self.first_ended
    }

    pub(super) fn is_half_closed(&self) -> bool {
        self.first_ended.is_some() || self.is_server_dead || self.server_reset.is_some()
    }

    /// When there is something to do although nothing moves.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let guard_at = self.guard.as_ref().map(|guard| guard.0);
        [guard_at, self.last_words_until(), self.silent_at()].into_iter().flatten().min()
    }

    pub(super) fn last_words_until(&self) -> Option<Instant> {
        self.braked.as_ref()?.last_words_until()
    }

    /// Does what is due by `now`; tells the end when silence, or last words, have lasted too long.
    pub(super) fn on_deadline(&mut self, now: Instant) -> Option<Ended> {
        if let Some(guard) = self.guard.take_if(|guard| guard.0 <= now) {
            // Fails only on a socket that is gone, which its own direction tells.
            let _ = socket::set_liveness(self.sockets[1].fd.as_fd(), guard.1);
        }
        if self.last_words_until().is_some_and(|until| until <= now) {
            return Some(self.ended_by_reset());
        }
        self.silent_at().filter(|due| *due <= now)?;
        let how = End::Silent { allowed: self.patience()? };
        Some(Ended { how, half_closed: self.first_ended })
    }

    /// Whoever is held back by us is not silent.
    fn silent_at(&self) -> Option<Instant> {
        let held_until = self.braked.as_ref().and_then(|braked| braked.held_until());
        let since = held_until.map_or(self.last_moved, |until| until.max(self.last_moved));
        Some(since + self.patience()?)
    }

    fn patience(&self) -> Option<Duration> {
        if self.is_half_closed() { self.half_closed } else { self.idle }
    }

    /// Moves what can be moved now, in both directions.
    pub(super) fn turn(&mut self, tools: &mut Tools) -> Turn {
        let mut is_tired = false;
        for from in [Side::Client, Side::Server] {
            if self.pumps[from as usize].has_ended() {
                continue;
            }
            let halt = self.pump(from, tools);
            match self.judge(from, halt, tools) {
                Turn::Waiting => {}
                Turn::Tired => is_tired = true,
                ended @ Turn::Ended(_) => return ended,
            }
        }
        if self.first_ended == Some(Side::Client)
            && let Some(error) = self.unseen_failure(Side::Client)
        {
            return self.failed(Side::Client, error); // nobody is left to read the answer
        }
        if is_tired { Turn::Tired } else { Turn::Waiting }
    }

    /// What follows for the connection when the direction from that side has come to a halt.
    pub(super) fn judge(&mut self, from: Side, halt: Halt, tools: &mut Tools) -> Turn {
        match halt {
            Halt::Waiting { for_sink: false } => Turn::Waiting,
            Halt::Waiting { for_sink: true } | Halt::Held => self.judge_unseen(from, tools),
            Halt::Tired => Turn::Tired,
            Halt::Ended if from == Side::Server && self.server_reset.is_some() => {
                Turn::Ended(self.ended_by_reset())
            }
            Halt::Ended => self.on_end_of(from, tools.now).unwrap_or(Turn::Waiting),
            Halt::SourceFailed(error) => self.failed(from, error),
            // Hear the client out, for a reset would tear the server's answer from it.
            Halt::SinkFailed(error) if from == Side::Client && self.has_server_answered(&error) => {
                self.bury_server(tools);
                Turn::Tired
            }
            // What the server said before its reset often says why (a refused upload): it is passed
            // on first. The failed write has taken the error out of the socket, which now reads as a
            // clean end, so it is kept here.
            Halt::SinkFailed(error)
                if from == Side::Client && !self.pumps[Side::Server as usize].has_ended() =>
            {
                self.hear_server_out(&error, tools);
                Turn::Waiting
            }
            Halt::SinkFailed(error) => self.failed(from.other(), error),
        }
    }

    /// What follows when the side that nobody reads just now has died. A server that is held back has perhaps
    /// said something before, which the kernel still has: its client gets that first, as fast as it may.
    pub(super) fn judge_unseen(&mut self, from: Side, tools: &mut Tools) -> Turn {
        let Some(error) = self.unseen_failure(from) else { return Turn::Waiting };
        match self.braked.as_mut().filter(|braked| from == Side::Server && braked.is_held(from)) {
            Some(_) => {
                self.hear_server_out(&error, tools);
                Turn::Waiting
            }
            None => self.failed(from, error),
        }
    }

    /// The server has reset the connection. Nothing more goes to it, and what it said before is passed on.
    fn hear_server_out(&mut self, error: &io::Error, tools: &mut Tools) {
        self.server_reset = Some(error.raw_os_error().unwrap_or(ECONNRESET));
        if let Some(braked) = &mut self.braked {
            braked.hear_out(tools.now + LAST_WORDS);
        }
        let from_client = &mut self.pumps[Side::Client as usize];
        from_client.unload(tools);
        from_client.end();
        self.sockets[Side::Server as usize].ready.to_read = true; // its event may be yet to come
    }

    fn ended_by_reset(&self) -> Ended {
        let error = io::Error::from_raw_os_error(self.server_reset.unwrap_or(ECONNRESET));
        Ended { how: End::Failed { side: Side::Server, error }, half_closed: self.first_ended }
    }

    fn bury_server(&mut self, tools: &mut Tools) {
        self.is_server_dead = true;
        let from_client = &mut self.pumps[Side::Client as usize];
        if !from_client.has_ended() {
            from_client.discard(tools);
        }
    }

    /// The server had ended its direction before it reset: we have seen the end, or the kernel says
    /// so with EPIPE instead of ECONNRESET (tcp_reset in net/ipv4/tcp_input.c).
    fn has_server_answered(&self, error: &io::Error) -> bool {
        self.first_ended == Some(Side::Server) || error.raw_os_error() == Some(EPIPE)
    }

    /// Lets one direction go as far as it can without waiting.
    pub(super) fn pump(&mut self, from: Side, tools: &mut Tools) -> Halt {
        let [client, server] = &mut self.sockets;
        let (source, sink) = match from {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let pump = &mut self.pumps[from as usize];
        let mut moved = 0;
        let halt = match &mut self.braked {
            None => pump.run(source, sink, tools, &mut Budget::of_a_turn(), &mut moved),
            Some(braked) => braked.run(from, pump, [source, sink], tools, &mut moved),
        };
        if pump.has_spliced {
            self.tally.has_spliced.set(true);
        }
        self.note_moved(from, moved, tools.now);
        halt
    }

    /// Bytes have come, and are on their way to the other side.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.last_moved = now;
    }

    /// Notes bytes that the other side has taken.
    pub(super) fn note_moved(&mut self, from: Side, moved: u64, now: Instant) {
        if moved == 0 {
            return;
        }
        self.last_moved = now;
        let total = match from {
            Side::Client => &self.tally.to_server,
            Side::Server => &self.tally.to_client,
        };
        if from == Side::Server && total.get() == 0 {
            self.tally.first_byte.set(Some(now));
        }
        total.set(total.get() + moved);
    }

    /// One direction has ended: tells the other side, or ends the relay with the second.
    fn on_end_of(&mut self, from: Side, now: Instant) -> Option<Turn> {
        if let Some(first) = self.first_ended {
            let how = if self.is_server_dead {
                End::Failed { side: Side::Server, error: io::Error::from_raw_os_error(EPIPE) }
            } else {
                End::Done { first }
            };
            // Everything is read and written, so that closing says the rest: no shutdown needed.
            return Some(Turn::Ended(Ended { how, half_closed: Some(first) }));
        }
        self.first_ended = Some(from);
        self.last_moved = now;
        // Fails when the other side is gone, which its own direction is about to tell.
        let _ = socket::finish(self.sockets[from.other() as usize].fd.as_fd());
        None
    }

    /// The error of a side that nobody reads just now, because its sink takes nothing or because
    /// it has ended already: without asking, it would go unseen.
    pub(super) fn unseen_failure(&mut self, from: Side) -> Option<io::Error> {
        let source = &self.sockets[from as usize];
        if !source.ready.is_broken {
            return None;
        }
        let error = socket::outcome(source.fd.as_fd()).err()?;
        // EPIPE: it had ended cleanly before it reset. What a server said is then complete and still
        // on its way; of a client it means that nobody is left to read.
        if from == Side::Server && error.raw_os_error() == Some(EPIPE) {
            self.is_server_dead = true;
            return None;
        }
        Some(error)
    }

    pub(super) fn failed(&self, side: Side, error: io::Error) -> Turn {
        Turn::Ended(Ended { how: End::Failed { side, error }, half_closed: self.first_ended })
    }

    /// Gives back what the pumps hold, and sees to it that closing is a reset where something is
    /// missing: everywhere but after a clean end, and but for a side that has been told the end
    /// of a dead peer's complete answer. To be called once, before the sockets are closed.
    pub(super) fn prepare_close(&mut self, how: Option<&End>, tools: &mut Tools) {
        self.pumps.iter_mut().for_each(|pump| pump.unload(tools));
        for side in [Side::Client, Side::Server] {
            let is_complete = match how {
                Some(End::Done { .. }) => true,
                Some(End::Failed { side: failed, .. }) => {
                    *failed != side
                        && self.server_reset.is_none()
                        && self.pumps[side.other() as usize].has_ended()
                }
                Some(End::Silent { .. }) | None => false,
            };
            if !is_complete {
                socket::reset_on_close(self.sockets[side as usize].fd.as_fd());
            }
        }
    }

    pub(super) fn braked(&mut self) -> Option<&mut Braked> {
        self.braked.as_deref_mut()
    }

    pub(super) fn is_braked(&self) -> bool {
        self.braked.is_some()
    }

    pub(super) fn into_sockets(self) -> [Socket; 2] {
        self.sockets
    }

    pub(super) fn socket(&mut self, side: Side) -> &mut Socket {
        &mut self.sockets[side as usize]
    }

    pub(super) fn pump_of(&mut self, from: Side) -> &mut Pump {
        &mut self.pumps[from as usize]
    }
}
