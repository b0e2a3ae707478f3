//! The epoll driver: which sockets are ready, and who is told.
//!
//! Each socket is registered once, edge-triggered, for all that can happen to it. Events set
//! flags and wake; sockets are read, written and closed only afterwards, so an event never meets
//! a descriptor that was closed under it and a number that was given to another.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Token};
use nix::sys::eventfd::EventFd;
use slab::Slab;

use super::brake::Brake;
#[cfg(test)]
use super::driver::InUse;
use super::relay::{Ended, Patience, Relay, Side, Tally};
use super::relays::Relays;
use super::sock::{Ready, Socket};
use crate::sys::{accept, socket};

/// Events taken in one call. What does not fit comes with the next.
const EVENTS_MAX: usize = 1024;

/// Where the doorbell of other threads is registered: beyond any number of a socket.
const DOORBELL: Token = Token(usize::MAX);

pub(super) struct Epoll {
    poll: RefCell<(mio::Poll, Events)>,
    registry: mio::Registry,
    slots: RefCell<Slab<Slot>>,
    relays: RefCell<Relays>,
}

/// Who is told of a socket's events. Its number is the socket's token.
enum Slot {
    Lone { socket: Socket, waiter: Option<Waker> },
    Relayed { relay: usize, side: Side },
}

impl Epoll {
    pub(super) fn new(doorbell: &EventFd) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let registry = poll.registry().try_clone()?;
        // Edge-triggered and never read: each ring is an edge.
        registry.register(&mut SourceFd(&doorbell.as_raw_fd()), DOORBELL, Interest::READABLE)?;
        let poll = RefCell::new((poll, Events::with_capacity(EVENTS_MAX)));
        Ok(Epoll { poll, registry, slots: RefCell::default(), relays: RefCell::new(Relays::new()) })
    }

    /// Registers a socket, for reading, writing and urgent data.
    pub(super) fn watch(&self, fd: OwnedFd) -> io::Result<usize> {
        let mut slots = self.slots.borrow_mut();
        let entry = slots.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let registered = self.registry.register(&mut SourceFd(&fd.as_raw_fd()), Token(entry.key()), interest);
        if let Err(error) = registered {
            socket::reset(fd);
            return Err(error);
        }
        let slot = entry.key();
        entry.insert(Slot::Lone { socket: Socket { fd, ready: Ready::default() }, waiter: None });
        Ok(slot)
    }

    /// Takes a lone socket out, to be closed. Closing takes it out of epoll as well.
    pub(super) fn unwatch(&self, slot: usize) -> OwnedFd {
        match self.slots.borrow_mut().remove(slot) {
            Slot::Lone { socket, .. } => socket.fd,
            Slot::Relayed { .. } => unreachable!("a Sock owns its slot"),
        }
    }

    /// Uses a lone socket without waiting.
    pub(super) fn with<T>(&self, slot: usize, act: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        self.with_ready(slot, |fd, _| act(fd))
    }

    fn with_ready<T>(&self, slot: usize, act: impl FnOnce(BorrowedFd<'_>, &mut Ready) -> T) -> T {
        match self.slots.borrow_mut().get_mut(slot) {
            Some(Slot::Lone { socket, .. }) => act(socket.fd.as_fd(), &mut socket.ready),
            _ => unreachable!("a Sock owns its slot"),
        }
    }

    /// Lets `look` at a lone socket; when it wants to wait, its task is woken by the next event.
    fn poll_ready<T>(&self, slot: usize, cx: &Context<'_>, look: impl FnOnce(Ready) -> Option<T>) -> Poll<T> {
        match self.slots.borrow_mut().get_mut(slot) {
            Some(Slot::Lone { socket, waiter }) => match look(socket.ready) {
                Some(found) => Poll::Ready(found),
                None => {
                    *waiter = Some(cx.waker().clone());
                    Poll::Pending
                }
            },
            _ => unreachable!("a Sock owns its slot"),
        }
    }

    pub(super) fn poll_broken(&self, slot: usize, cx: &Context<'_>) -> Poll<()> {
        self.poll_ready(slot, cx, |ready| ready.is_broken.then_some(()))
    }

    pub(super) fn begin_dial(&self, to: SocketAddr) -> io::Result<usize> {
        let socket = socket::outgoing(to)?;
        socket::connect(socket.as_fd(), to)?;
        self.watch(socket)
    }

    /// The end of a dial. Only a broken socket has an error to ask for.
    pub(super) fn poll_connected(&self, slot: usize, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let look = |ready: Ready| (ready.to_write || ready.is_broken).then_some(ready.is_broken);
        self.poll_ready(slot, cx, look).map(|is_broken| match is_broken {
            true => self.with(slot, socket::outcome),
            false => Ok(()),
        })
    }

    /// Ends when the socket may have something to read.
    pub(super) fn poll_readable(&self, slot: usize, cx: &Context<'_>) -> Poll<()> {
        self.poll_ready(slot, cx, |ready| ready.to_read.then_some(()))
    }

    /// What a read would bring, up to one byte, and leaves it there.
    pub(super) fn peek(&self, slot: usize) -> io::Result<usize> {
        self.with_ready(slot, |fd, ready| {
            socket::peek(fd).inspect_err(|error| {
                ready.to_read &= error.kind() != io::ErrorKind::WouldBlock;
            })
        })
    }

    pub(super) fn poll_acceptable(&self, slot: usize, cx: &Context<'_>) -> Poll<()> {
        self.poll_readable(slot, cx)
    }

    /// Takes one client; `WouldBlock` when nobody waits.
    pub(super) fn accept(&self, slot: usize) -> io::Result<(OwnedFd, SocketAddr)> {
        self.with_ready(slot, |fd, ready| {
            accept::accept(fd).inspect_err(|error| {
                ready.to_read &= error.kind() != io::ErrorKind::WouldBlock;
            })
        })
    }

    pub(super) fn begin_relay(
        &self,
        slots: [usize; 2],
        patience: Patience,
        tally: Rc<Tally>,
        brake: Option<Box<dyn Brake>>,
        now: Instant,
    ) -> usize {
        let mut table = self.slots.borrow_mut();
        let mut relays = self.relays.borrow_mut();
        let relay = relays.reserve(slots);
        let sockets =
            [(slots[0], Side::Client), (slots[1], Side::Server)].map(|(slot, side)| match std::mem::replace(
                &mut table[slot],
                Slot::Relayed { relay, side },
            ) {
                Slot::Lone { socket, .. } => socket,
                Slot::Relayed { .. } => unreachable!("a Sock is moved into its relay"),
            });
        relays.begin(relay, Relay::new(sockets, patience, tally, brake, now), now);
        relay
    }

    pub(super) fn poll_ended(&self, relay: usize, cx: &Context<'_>) -> Poll<Ended> {
        self.relays.borrow_mut().poll_ended(relay, cx)
    }

    pub(super) fn end_relay(&self, relay: usize) {
        let mut slots = self.slots.borrow_mut();
        self.relays.borrow_mut().end(relay).iter().for_each(|slot| drop(slots.remove(*slot)));
    }

    pub(super) fn turn(&self, now: Instant) {
        self.relays.borrow_mut().turn(now);
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.relays.borrow_mut().sweep(now);
    }

    /// A relay ends at once here.
    #[cfg(test)]
    pub(super) fn is_ending(&self, _relay: usize) -> bool {
        false
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> InUse {
        let (relays, pipes_out, held) = self.relays.borrow().in_use();
        InUse { sockets: self.slots.borrow().len(), relays, pipes_out, held, ..InUse::default() }
    }

    pub(super) fn has_ready(&self) -> bool {
        self.relays.borrow().has_ready()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.relays.borrow().deadline()
    }

    /// Nothing outlives its owner here: what is dropped is closed.
    pub(super) fn settle(&self) {}

    /// Waits for events and delivers them; `true` when the doorbell rang.
    pub(super) fn wait(&self, patience: Option<Duration>) -> bool {
        let (poll, events) = &mut *self.poll.borrow_mut();
        match poll.poll(events, patience) {
            // All of them, also after the doorbell.
            Ok(()) => events.iter().filter(|event| self.deliver(event)).count() > 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            // epoll_wait(2) fails otherwise only on a descriptor or a buffer that is not ours.
            Err(error) => panic!("epoll_wait: {error}"),
        }
    }

    fn deliver(&self, event: &Event) -> bool {
        if event.token() == DOORBELL {
            return true;
        }
        match self.slots.borrow_mut().get_mut(event.token().0) {
            Some(Slot::Lone { socket, waiter }) => {
                note(&mut socket.ready, event);
                if let Some(waiter) = waiter.take() {
                    waiter.wake();
                }
            }
            Some(Slot::Relayed { relay, side }) => {
                self.relays.borrow_mut().on_event(*relay, *side, |ready| note(ready, event));
            }
            None => {}
        }
        false
    }
}

fn note(ready: &mut Ready, event: &Event) {
    ready.to_read |= event.is_readable() || event.is_read_closed() || event.is_error();
    ready.to_write |= event.is_writable() || event.is_error();
    ready.is_read_closed |= event.is_read_closed();
    ready.is_broken |= event.is_error() || (event.is_read_closed() && event.is_write_closed());
    ready.has_urgent |= event.is_priority();
}
