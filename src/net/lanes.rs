//! The relays of a worker on io_uring: one operation in flight for each direction.
//!
//! Small messages are received into a buffer of the ring and sent from it; the next receive is
//! armed after the send, which is the back-pressure. What a slow reader does not take is moved to
//! memory of its own. Bulk is spliced by the same pump as on epoll, with polls through the ring,
//! and comes back when the chunks are small again. A relay with a brake moves everything in that way,
//! since how much a receive brings is known only afterwards.
//!
//! A relay that ends cancels what is in flight and waits for the last event: only then are its
//! sockets closed and its place given up, so no operation ever meets a descriptor of another.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use nix::libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDHUP};
use slab::Slab;

use super::brake::Holds;
use super::pump::{Halt, Tools};
use super::relay::{Ended, Relay, Side, Turn};
use super::relays::Schedule;
use super::sock::Socket;
use super::spares::Spares;
use super::uring::{Token, is_cancelled};
use crate::sys::ring::{Chunk, Event, Op, Ring};
use crate::sys::socket;

/// Which of a direction's operations an event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Receive,
    Send,
    /// The rest of a message that the sink did not take at once.
    SendRest,
    /// Bulk: the source has more.
    Readable,
    /// Bulk: the sink takes more.
    Writable,
    /// The source has died while nobody reads it.
    Watch,
}

pub(super) struct Lanes {
    all: Slab<Entry>,
    /// Relays in bulk that have more to move at once.
    tired: VecDeque<(usize, Side)>,
    /// Directions that found no buffer to receive into.
    starved: VecDeque<(usize, Side)>,
    holds: Holds,
    tools: Tools,
    /// For what sinks do not take at once.
    rests: Spares<Vec<u8>>,
    schedule: Schedule,
}

enum Entry {
    Running(Box<Running>),
    /// Closed; its end has yet to be told.
    Ended(Ended),
    Told,
}

struct Running {
    relay: Relay,
    /// What is in flight from the client, from the server.
    ops: [Option<Op>; 2],
    /// The watch over a side that nobody reads.
    watches: [Option<Op>; 2],
    is_ending: bool,
    ended: Option<Ended>,
    waker: Option<Waker>,
    /// Nobody waits for the end any more.
    is_forgotten: bool,
}

impl Running {
    /// Whether something can be begun for that direction, which stands in a queue. Or stood there
    /// when the relay's number was another's: then it may be busy, or have ended long ago.
    fn has_turn(&mut self, from: Side) -> bool {
        !self.is_ending && self.ops[from as usize].is_none() && !self.relay.pump_of(from).has_ended()
    }
}

type TokenRing = Ring<Token>;

impl Lanes {
    pub(super) fn new() -> Self {
        Lanes {
            all: Slab::new(),
            tired: VecDeque::new(),
            starved: VecDeque::new(),
            holds: Holds::default(),
            tools: Tools::new(Instant::now()),
            rests: Spares::default(),
            schedule: Schedule::default(),
        }
    }

    pub(super) fn begin(&mut self, relay: Relay, now: Instant, ring: &mut TokenRing) -> usize {
        self.schedule.hasten(relay.deadline(), now);
        let is_braked = relay.is_braked();
        let key = self.all.insert(Entry::Running(Box::new(Running {
            relay,
            ops: [None; 2],
            watches: [None; 2],
            is_ending: false,
            ended: None,
            waker: None,
            is_forgotten: false,
        })));
        if is_braked {
            self.tired.extend([(key, Side::Client), (key, Side::Server)]);
            return key;
        }
        // The client has often spoken already; the server seldom has.
        self.receive(key, Side::Client, false, ring);
        self.receive(key, Side::Server, true, ring);
        key
    }

    /// The time at which the events that are about to be delivered were taken.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.tools.now = now;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    #[cfg(test)]
    pub(super) fn is_ending(&self, key: usize) -> bool {
        matches!(self.all.get(key), Some(Entry::Running(running)) if running.is_ending)
    }

    /// Relays under way or not yet told, pipes that they hold, and directions that are held back.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> (usize, usize, usize) {
        (self.all.len(), self.tools.pipes.out(), self.holds.len())
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.tired.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.schedule.next(), self.holds.next()].into_iter().flatten().min()
    }

    /// Gives each relay in bulk that has more to move one turn, and those that were held back until now.
    pub(super) fn turn(&mut self, now: Instant, ring: &mut TokenRing) {
        self.tools.now = now;
        while let Some((key, from)) = self.holds.due(now) {
            if let Some(braked) = self.relay(key).braked() {
                braked.go_on(from);
            }
            self.tired.push_back((key, from));
        }
        for _ in 0..self.tired.len() {
            let Some((key, from)) = self.tired.pop_front() else { return };
            if self.running(key).is_some_and(|running| running.has_turn(from)) {
                self.pump(key, from, ring);
            }
        }
    }

    pub(super) fn on_event(
        &mut self,
        key: usize,
        from: Side,
        part: Part,
        mut event: Event<Token>,
        ring: &mut TokenRing,
    ) {
        let ended = self.running(key).and_then(|running| match part {
            Part::Watch => running.watches[from as usize].take(),
            _ => running.ops[from as usize].take(),
        });
        debug_assert!(ended.is_some(), "a relay keeps its place until the last event of its operations");
        let Some(running) = self.running(key) else { return };
        if running.is_ending {
            event.chunk.into_iter().for_each(|chunk| ring.give_back(chunk));
            self.feed(ring);
            return self.close_if_idle(key, ring);
        }
        let chunk = event.chunk.take();
        match part {
            Part::Receive => self.on_received(key, from, chunk, &event, ring),
            Part::Send => self.on_sent(key, from, chunk, &event, ring),
            Part::SendRest => self.on_sent_rest(key, from, event, ring),
            Part::Readable | Part::Writable => self.on_ready(key, from, part, &event, ring),
            Part::Watch => self.on_watched(key, from, &event, ring),
        }
        self.feed(ring);
    }

    fn on_received(
        &mut self,
        key: usize,
        from: Side,
        chunk: Option<Chunk>,
        event: &Event<Token>,
        ring: &mut TokenRing,
    ) {
        let error = match &event.result {
            Ok(0) => {
                chunk.into_iter().for_each(|chunk| ring.give_back(chunk));
                self.relay(key).pump_of(from).end();
                return self.judge(key, from, Halt::Ended, ring);
            }
            Ok(length) => {
                let Some(chunk) = chunk else { return };
                let now = self.tools.now;
                self.relay(key).note_heard(now);
                if self.relay(key).pump_of(from).on_chunk(*length as usize) {
                    return self.send(key, from, chunk, ring);
                }
                ring.give_back(chunk);
                let has_ended = self.relay(key).pump_of(from).has_ended();
                return if has_ended {
                    self.judge(key, from, Halt::Ended, ring);
                } else {
                    self.receive(key, from, false, ring);
                };
            }
            Err(error) => std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(0)),
        };
        chunk.into_iter().for_each(|chunk| ring.give_back(chunk));
        match error.raw_os_error() {
            Some(nix::libc::ENOBUFS) => self.starved.push_back((key, from)),
            Some(nix::libc::EINTR | nix::libc::EAGAIN) => self.receive(key, from, true, ring),
            _ => self.judge(key, from, Halt::SourceFailed(error), ring),
        }
    }

    fn on_sent(
        &mut self,
        key: usize,
        from: Side,
        chunk: Option<Chunk>,
        event: &Event<Token>,
        ring: &mut TokenRing,
    ) {
        let Some(chunk) = chunk else { return };
        let sent = match &event.result {
            Ok(sent) => *sent as usize,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                let error = std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(0));
                ring.give_back(chunk);
                return self.judge(key, from, Halt::SinkFailed(error), ring);
            }
        };
        self.note_moved(key, from, sent);
        let unsent = &ring.bytes(&chunk)[sent..];
        let rest = (!unsent.is_empty()).then(|| {
            let mut rest = self.rests.take();
            rest.clear();
            rest.extend_from_slice(unsent);
            rest
        });
        ring.give_back(chunk);
        match rest {
            Some(rest) => self.send_rest(key, from, rest, ring),
            None => self.go_on(key, from, ring),
        }
    }

    fn on_sent_rest(&mut self, key: usize, from: Side, event: Event<Token>, ring: &mut TokenRing) {
        let (sent, mut rest) = match (event.result, event.bytes) {
            (Ok(sent), Some(rest)) => (sent as usize, rest),
            (Err(error), _) => return self.judge(key, from, Halt::SinkFailed(error), ring),
            (Ok(_), None) => return,
        };
        self.note_moved(key, from, sent);
        rest.drain(..sent);
        if !rest.is_empty() {
            return self.send_rest(key, from, rest, ring);
        }
        self.rests.keep(rest);
        // In bulk the sink may be full again at once, and the watch be needed.
        let watch = self.running(key).and_then(|running| running.watches[from as usize]);
        if let Some(watch) = watch.filter(|_| !self.relay(key).pump_of(from).is_bulk()) {
            ring.cancel(watch);
        }
        self.go_on(key, from, ring);
    }

    fn on_ready(&mut self, key: usize, from: Side, part: Part, event: &Event<Token>, ring: &mut TokenRing) {
        if self.relay(key).pump_of(from).has_ended() {
            return; // the server has died meanwhile, and what it said is being passed on
        }
        let events = *event.result.as_ref().unwrap_or(&(POLLERR as u32)) as i32;
        let side = if part == Part::Readable { from } else { from.other() };
        let Socket { fd, ready } = self.relay(key).socket(side);
        let is_broken = events & i32::from(POLLERR | POLLHUP) != 0;
        ready.is_broken |= is_broken;
        ready.is_read_closed |= events & i32::from(POLLRDHUP) != 0;
        // A ring passes on what the wake-up was for, and TCP says "perhaps urgent" at every byte.
        if events & i32::from(POLLPRI) != 0 {
            ready.has_urgent |= socket::has_urgent(fd.as_fd());
        }
        match part {
            Part::Readable => ready.to_read = true,
            _ => ready.to_write = true,
        }
        self.pump(key, from, ring);
    }

    /// A watched side is broken: nobody would see its error otherwise.
    fn on_watched(&mut self, key: usize, from: Side, event: &Event<Token>, ring: &mut TokenRing) {
        let broken = u32::from(POLLERR.unsigned_abs() | POLLHUP.unsigned_abs());
        if event.result.as_ref().is_ok_and(|events| events & broken == 0) || is_cancelled(&event.result) {
            return; // a clean end is told as well; whoever reads next will find it
        }
        let Some(Entry::Running(running)) = self.all.get_mut(key) else { return };
        running.relay.socket(from).ready.is_broken = true;
        let was_half_closed = (running.relay.is_half_closed(), running.relay.last_words_until());
        let turn = running.relay.judge_unseen(from, &mut self.tools);
        self.note_half_close(key, was_half_closed);
        self.settle(key, from, turn, ring);
    }

    /// After all of a message has gone: the next one, or bulk.
    fn go_on(&mut self, key: usize, from: Side, ring: &mut TokenRing) {
        let relay = self.relay(key);
        if !relay.pump_of(from).is_bulk() {
            return self.receive(key, from, true, ring);
        }
        relay.socket(from).ready.to_read = true;
        relay.socket(from.other()).ready.to_write = true;
        self.pump(key, from, ring);
    }

    /// Lets a direction in bulk go as far as it can without waiting.
    fn pump(&mut self, key: usize, from: Side, ring: &mut TokenRing) {
        let Some(Entry::Running(running)) = self.all.get_mut(key) else { return };
        let halt = running.relay.pump(from, &mut self.tools);
        let Halt::Waiting { for_sink } = halt else { return self.judge(key, from, halt, ring) };
        let is_braked = running.relay.is_braked();
        let pump = running.relay.pump_of(from);
        if !for_sink && !pump.is_bulk() && !pump.is_loaded() && !is_braked {
            return self.receive(key, from, true, ring);
        }
        let (side, part, events) = match for_sink {
            true => (from.other(), Part::Writable, POLLOUT),
            false => (from, Part::Readable, POLLIN | POLLRDHUP | POLLPRI),
        };
        let token = Token::Relay(key as u32, from, part);
        let op = ring.poll(running.relay.socket(side).fd.as_fd(), events as u32, token);
        running.ops[from as usize] = Some(op);
        if for_sink {
            self.watch(key, from, ring);
        }
    }

    fn receive(&mut self, key: usize, from: Side, is_quiet: bool, ring: &mut TokenRing) {
        let token = Token::Relay(key as u32, from, Part::Receive);
        let Some(running) = self.running(key) else { return };
        let op = ring.receive(running.relay.socket(from).fd.as_fd(), is_quiet, token);
        running.ops[from as usize] = Some(op);
    }

    fn send(&mut self, key: usize, from: Side, chunk: Chunk, ring: &mut TokenRing) {
        let token = Token::Relay(key as u32, from, Part::Send);
        let Some(running) = self.running(key) else { return };
        let op = ring.send(running.relay.socket(from.other()).fd.as_fd(), chunk, token);
        running.ops[from as usize] = Some(op);
    }

    fn send_rest(&mut self, key: usize, from: Side, rest: Vec<u8>, ring: &mut TokenRing) {
        let token = Token::Relay(key as u32, from, Part::SendRest);
        let Some(running) = self.running(key) else { return };
        let op = ring.send_bytes(running.relay.socket(from.other()).fd.as_fd(), rest, token);
        running.ops[from as usize] = Some(op);
        self.watch(key, from, ring);
    }

    /// Waits for the death of a side that nobody reads.
    fn watch(&mut self, key: usize, from: Side, ring: &mut TokenRing) {
        let token = Token::Relay(key as u32, from, Part::Watch);
        let Some(running) = self.running(key) else { return };
        if running.watches[from as usize].is_none() {
            running.watches[from as usize] = Some(ring.poll(running.relay.socket(from).fd.as_fd(), 0, token));
        }
    }

    fn note_moved(&mut self, key: usize, from: Side, sent: usize) {
        let now = self.tools.now;
        self.relay(key).note_moved(from, sent as u64, now);
    }

    /// Receives for those who found no buffer, as long as there are some.
    fn feed(&mut self, ring: &mut TokenRing) {
        while ring.has_buffers()
            && let Some((key, from)) = self.starved.pop_front()
        {
            if self.running(key).is_some_and(|running| running.has_turn(from)) {
                self.receive(key, from, false, ring);
            }
        }
    }

    fn judge(&mut self, key: usize, from: Side, halt: Halt, ring: &mut TokenRing) {
        let Some(Entry::Running(running)) = self.all.get_mut(key) else { return };
        let was_half_closed = (running.relay.is_half_closed(), running.relay.last_words_until());
        let is_held = matches!(halt, Halt::Held);
        let turn = running.relay.judge(from, halt, &mut self.tools);
        self.holds.enter(key, running.relay.braked());
        self.note_half_close(key, was_half_closed);
        if is_held && matches!(turn, Turn::Waiting) {
            self.watch(key, from, ring); // nobody reads it meanwhile
        }
        self.settle(key, from, turn, ring);
    }

    /// A relay that is half closed has less patience than before.
    fn note_half_close(&mut self, key: usize, was_half_closed: (bool, Option<Instant>)) {
        let relay = self.relay(key);
        if was_half_closed != (relay.is_half_closed(), relay.last_words_until()) {
            let deadline = relay.deadline();
            self.schedule.hasten(deadline, self.tools.now);
        }
    }

    fn settle(&mut self, key: usize, from: Side, turn: Turn, ring: &mut TokenRing) {
        match turn {
            Turn::Waiting => {}
            Turn::Tired if self.relay(key).is_braked() => self.tired.push_back((key, from)),
            Turn::Tired => match self.relay(key).pump_of(from).is_discarding() {
                true => self.receive(key, from, false, ring),
                false => self.tired.push_back((key, from)),
            },
            Turn::Ended(ended) => self.end(key, Some(ended), ring),
        }
    }

    /// The beginning of the end: nothing new is begun, and what is in flight is cancelled.
    fn end(&mut self, key: usize, ended: Option<Ended>, ring: &mut TokenRing) {
        let Some(Entry::Running(running)) = self.all.get_mut(key) else { return };
        if !std::mem::replace(&mut running.is_ending, true) {
            self.holds.strike(key, running.relay.braked());
            running.relay.prepare_close(ended.as_ref().map(|ended| &ended.how), &mut self.tools);
            running.ended = ended;
            let in_flight = running.ops.iter().chain(&running.watches);
            in_flight.flatten().for_each(|op| ring.cancel(*op));
        }
        self.close_if_idle(key, ring);
    }

    /// The end: nothing is in flight, so the sockets can be closed and the place given up.
    fn close_if_idle(&mut self, key: usize, ring: &mut TokenRing) {
        let Some(Entry::Running(running)) = self.all.get(key) else { return };
        if running.ops.iter().chain(&running.watches).any(Option::is_some) {
            return;
        }
        let Entry::Running(running) = std::mem::replace(&mut self.all[key], Entry::Told) else { return };
        let Running { relay, ended, waker, is_forgotten, .. } = *running;
        relay.into_sockets().into_iter().for_each(|socket| ring.close(socket.fd));
        match ended {
            Some(ended) if !is_forgotten => {
                self.all[key] = Entry::Ended(ended);
                waker.into_iter().for_each(Waker::wake);
            }
            _ => drop(self.all.remove(key)),
        }
    }

    pub(super) fn sweep(&mut self, now: Instant, ring: &mut TokenRing) {
        if !self.schedule.is_due(now) {
            return;
        }
        let mut earliest: Option<Instant> = None;
        let (mut silent, mut unread) = (Vec::new(), Vec::new());
        for (key, entry) in &mut self.all {
            let Entry::Running(running) = entry else { continue };
            if running.is_ending {
                continue;
            }
            let half_closed = running.relay.half_closed();
            let due = running.relay.deadline().filter(|due| *due <= now);
            if let Some(ended) = due.and_then(|_| running.relay.on_deadline(now)) {
                silent.push((key, ended));
            } else if let Some(due) = running.relay.deadline() {
                earliest = Some(earliest.map_or(due, |so_far| so_far.min(due)));
            }
            if half_closed == Some(Side::Client) {
                unread.push(key); // if it dies, nobody is left to read the answer
            }
        }
        unread.into_iter().for_each(|key| self.watch(key, Side::Client, ring));
        silent.into_iter().for_each(|(key, ended)| self.end(key, Some(ended), ring));
        self.schedule.set(earliest, now);
    }

    /// The end of a relay, once.
    pub(super) fn poll_ended(&mut self, key: usize, cx: &Context<'_>) -> Poll<Ended> {
        match self.all.get_mut(key) {
            Some(Entry::Running(running)) => {
                running.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(entry @ Entry::Ended(_)) => match std::mem::replace(entry, Entry::Told) {
                Entry::Ended(ended) => Poll::Ready(ended),
                _ => unreachable!("matched just above"),
            },
            _ => unreachable!("a relay is asked for its end until it has told it"),
        }
    }

    /// Nobody waits for the end any more; if it still runs, both sides are reset.
    pub(super) fn forget(&mut self, key: usize, ring: &mut TokenRing) {
        match self.all.get_mut(key) {
            Some(Entry::Running(running)) => {
                running.is_forgotten = true;
                self.end(key, None, ring);
            }
            _ => drop(self.all.remove(key)),
        }
    }

    fn running(&mut self, key: usize) -> Option<&mut Running> {
        match self.all.get_mut(key) {
            Some(Entry::Running(running)) => Some(running),
            _ => None,
        }
    }

    fn relay(&mut self, key: usize) -> &mut Relay {
        match &mut self.all[key] {
            Entry::Running(running) => &mut running.relay,
            _ => unreachable!("a place is kept until the last event of its relay"),
        }
    }
}
