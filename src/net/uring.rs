//! The io_uring driver: operations instead of readiness.
//!
//! What is in flight on a descriptor or a buffer ends before either is used for anything else:
//! buffers and addresses belong to `sys/ring.rs` until the operation's last event, a slot with an
//! operation under way is kept as an orphan until that event, and a relay closes its sockets only
//! when nothing of it is in flight any more (`lanes.rs`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nix::libc::{POLLERR, POLLHUP, POLLIN, POLLRDHUP};
use nix::sys::eventfd::EventFd;
use slab::Slab;

use super::brake::Brake;
#[cfg(test)]
use super::driver::InUse;
use super::lanes::{Lanes, Part};
use super::relay::{Ended, Patience, Relay, Side, Tally};
use super::sock::{Ready, Socket};
use crate::sys::ring::{Event, Op, Ring};
use crate::sys::{accept, socket};

/// Clients taken from the kernel that nobody has asked for yet. With more the kernel keeps them.
const PARKED_MAX: usize = 16;

/// Turns that cancelled operations get to end in, when the loop does. They need one or two.
const SETTLE_TURNS_MAX: u32 = 1000;

/// What an operation is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    Doorbell,
    /// Of a lone socket: its dial, its clients, or the wait for its end.
    Slot(u32),
    /// Of the relay with that number.
    Relay(u32, Side, Part),
}

pub(super) struct Uring {
    ring: RefCell<Ring<Token>>,
    slots: RefCell<Slab<Slot>>,
    lanes: RefCell<Lanes>,
    events: RefCell<Vec<Event<Token>>>,
    doorbell: OwnedFd,
}

/// A socket outside a relay.
struct Slot {
    /// `None`: it is closed or has moved on, and its operation has yet to end.
    fd: Option<OwnedFd>,
    op: Option<Op>,
    /// How the dial or the wait ended.
    outcome: Option<io::Result<()>>,
    /// The peer has ended its direction. A poll tells that unasked, and at once each time, so there
    /// is no waiting for its reset any more.
    has_peer_ended: bool,
    /// Clients of a listener, not yet asked for.
    parked: VecDeque<OwnedFd>,
    waiter: Option<Waker>,
}

impl Uring {
    pub(super) fn new(doorbell: &EventFd) -> io::Result<Self> {
        let mut ring = Ring::new()?;
        let doorbell = doorbell.as_fd().try_clone_to_owned()?;
        ring.poll_again_and_again(doorbell.as_fd(), Token::Doorbell);
        Ok(Uring {
            ring: RefCell::new(ring),
            slots: RefCell::default(),
            lanes: RefCell::new(Lanes::new()),
            events: RefCell::default(),
            doorbell,
        })
    }

    /// Takes a socket in. Nothing is in flight on it until somebody waits.
    pub(super) fn watch(&self, fd: OwnedFd) -> io::Result<usize> {
        let slot = Slot {
            fd: Some(fd),
            op: None,
            outcome: None,
            has_peer_ended: false,
            parked: VecDeque::new(),
            waiter: None,
        };
        Ok(self.slots.borrow_mut().insert(slot))
    }

    /// Takes a lone socket out, to be closed or moved on.
    pub(super) fn unwatch(&self, key: usize) -> OwnedFd {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        let fd = slot.fd.take().expect("a Sock owns its slot");
        match slot.op {
            // Its event is still to come, and names this slot. The kernel is told before the caller
            // may close the descriptor: a queued operation would meet whoever gets its number next.
            Some(op) => self.ring.borrow_mut().cancel_now(op),
            None => drop(slots.remove(key)),
        }
        fd
    }

    /// Uses a lone socket without waiting.
    pub(super) fn with<T>(&self, key: usize, act: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        act(self.slots.borrow()[key].fd.as_ref().expect("a Sock owns its slot").as_fd())
    }

    pub(super) fn begin_dial(&self, to: SocketAddr) -> io::Result<usize> {
        let key = self.watch(socket::outgoing(to)?)?;
        self.begin(key, |ring, fd, token| ring.connect(fd, to, token));
        Ok(key)
    }

    pub(super) fn poll_connected(&self, key: usize, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.poll_outcome(key, cx)
    }

    /// Ends when the socket is broken: the kernel tells that without being asked for more.
    pub(super) fn poll_broken(&self, key: usize, cx: &Context<'_>) -> Poll<()> {
        let is_idle = {
            let slots = self.slots.borrow();
            slots[key].op.is_none() && slots[key].outcome.is_none() && !slots[key].has_peer_ended
        };
        if is_idle {
            self.begin(key, |ring, fd, token| ring.poll(fd, 0, token));
        }
        self.poll_outcome(key, cx).map(drop)
    }

    /// Ends when the socket has something to read, or never will.
    pub(super) fn poll_readable(&self, key: usize, cx: &Context<'_>) -> Poll<()> {
        let is_idle = {
            let slots = self.slots.borrow();
            slots[key].op.is_none() && slots[key].outcome.is_none()
        };
        if is_idle {
            self.begin(key, |ring, fd, token| ring.poll(fd, POLLIN as u32, token));
        }
        self.poll_outcome(key, cx).map(drop)
    }

    /// What a read would bring, up to one byte, and leaves it there.
    pub(super) fn peek(&self, key: usize) -> io::Result<usize> {
        self.with(key, socket::peek)
    }

    /// Ends when a client is parked, and asks the kernel for clients.
    pub(super) fn poll_acceptable(&self, key: usize, cx: &Context<'_>) -> Poll<()> {
        let is_idle = {
            let slots = self.slots.borrow();
            if !slots[key].parked.is_empty() || slots[key].outcome.is_some() {
                return Poll::Ready(());
            }
            slots[key].op.is_none()
        };
        if is_idle {
            self.begin(key, Ring::accept);
        }
        self.slots.borrow_mut()[key].waiter = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes one client; `WouldBlock` when nobody waits. While the kernel hands them over by itself
    /// it is not asked.
    pub(super) fn accept(&self, key: usize) -> io::Result<(OwnedFd, SocketAddr)> {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        if let Some(client) = slot.parked.pop_front() {
            let peer = socket::peer_address(client.as_fd())?;
            return Ok((client, peer));
        }
        if let Some(Err(error)) = slot.outcome.take() {
            return Err(error);
        }
        if slot.op.is_some() {
            return Err(io::ErrorKind::WouldBlock.into()); // the kernel hands them over as they come
        }
        accept::accept(slot.fd.as_ref().expect("a Listener owns its slot").as_fd())
    }

    pub(super) fn begin_relay(
        &self,
        slots: [usize; 2],
        patience: Patience,
        tally: Rc<Tally>,
        brake: Option<Box<dyn Brake>>,
        now: Instant,
    ) -> usize {
        // With a brake nothing is in flight yet: the first read tells.
        let may = brake.is_some();
        let ready = Ready { to_read: may, to_write: may, ..Ready::default() };
        let sockets = slots.map(|slot| Socket { fd: self.unwatch(slot), ready });
        let relay = Relay::new(sockets, patience, tally, brake, now);
        self.lanes.borrow_mut().begin(relay, now, &mut self.ring.borrow_mut())
    }

    pub(super) fn poll_ended(&self, relay: usize, cx: &Context<'_>) -> Poll<Ended> {
        self.lanes.borrow_mut().poll_ended(relay, cx)
    }

    pub(super) fn end_relay(&self, relay: usize) {
        self.lanes.borrow_mut().forget(relay, &mut self.ring.borrow_mut());
    }

    pub(super) fn turn(&self, now: Instant) {
        self.lanes.borrow_mut().turn(now, &mut self.ring.borrow_mut());
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.lanes.borrow_mut().sweep(now, &mut self.ring.borrow_mut());
    }

    #[cfg(test)]
    pub(super) fn is_ending(&self, relay: usize) -> bool {
        self.lanes.borrow().is_ending(relay)
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> InUse {
        let (relays, pipes_out, held) = self.lanes.borrow().in_use();
        let (operations, buffers_out) = self.ring.borrow().in_use();
        let sockets = self.slots.borrow().len();
        InUse { sockets, relays, pipes_out, held, operations, buffers_out, ..InUse::default() }
    }

    pub(super) fn has_ready(&self) -> bool {
        self.lanes.borrow().has_ready()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lanes.borrow().deadline()
    }

    /// After the last task: lets relays that are being reset end, and tells the kernel the rest.
    pub(super) fn settle(&self) {
        for _ in 0..SETTLE_TURNS_MAX {
            self.wait(Some(Duration::ZERO));
            if self.lanes.borrow().is_empty() {
                break;
            }
        }
        self.wait(Some(Duration::ZERO));
    }

    /// Submits what is queued, waits, and delivers; `true` when the doorbell rang.
    pub(super) fn wait(&self, patience: Option<Duration>) -> bool {
        let mut events = self.events.take();
        {
            let mut ring = self.ring.borrow_mut();
            // io_uring_enter(2) fails otherwise only on a ring or an argument that is not ours.
            ring.enter(patience).unwrap_or_else(|error| panic!("io_uring_enter: {error}"));
            ring.take_events(&mut events);
        }
        self.lanes.borrow_mut().set_now(Instant::now());
        let mut rang = false;
        for event in events.drain(..) {
            match event.token {
                Token::Doorbell => {
                    rang = true;
                    if !event.goes_on {
                        let mut ring = self.ring.borrow_mut();
                        ring.poll_again_and_again(self.doorbell.as_fd(), Token::Doorbell);
                    }
                }
                Token::Slot(key) => self.on_slot(key as usize, event),
                Token::Relay(key, from, part) => {
                    self.lanes.borrow_mut().on_event(
                        key as usize,
                        from,
                        part,
                        event,
                        &mut self.ring.borrow_mut(),
                    );
                }
            }
        }
        self.events.replace(events);
        rang
    }

    fn on_slot(&self, key: usize, event: Event<Token>) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        if !event.goes_on {
            slot.op = None;
        }
        if slot.fd.is_none() {
            // An orphan. A client that came too late is closed with the event.
            if slot.op.is_none() {
                slots.remove(key);
            }
            return;
        }
        if let Some(client) = event.client {
            slot.parked.push_back(client);
            if slot.parked.len() == PARKED_MAX
                && let Some(op) = slot.op
            {
                self.ring.borrow_mut().cancel(op);
            }
        } else if event.result.as_ref().is_ok_and(|events| is_only_an_end(*events)) {
            slot.has_peer_ended = true;
            return;
        } else if !is_cancelled(&event.result) {
            slot.outcome = Some(event.result.map(drop));
        }
        if let Some(waiter) = slot.waiter.take() {
            waiter.wake();
        }
    }

    fn begin(&self, key: usize, submit: impl FnOnce(&mut Ring<Token>, BorrowedFd<'_>, Token) -> Op) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        let fd = slot.fd.as_ref().expect("a Sock owns its slot").as_fd();
        let token = Token::Slot(u32::try_from(key).expect("descriptors are fewer than 2^32"));
        slot.op = Some(submit(&mut self.ring.borrow_mut(), fd, token));
    }

    fn poll_outcome(&self, key: usize, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let slot = &mut self.slots.borrow_mut()[key];
        match slot.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                slot.waiter = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// What a poll for nothing tells when the peer has ended its direction and nothing is broken. One for
/// reading says that there is the end to read, too. A dial's result is 0, and never this.
fn is_only_an_end(events: u32) -> bool {
    let events = i64::from(events);
    events & i64::from(POLLRDHUP) != 0 && events & i64::from(POLLERR | POLLHUP | POLLIN) == 0
}

pub(super) fn is_cancelled(result: &io::Result<u32>) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(nix::libc::ECANCELED))
}
