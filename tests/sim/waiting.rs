//! The line before the pool, as `data/wait.rs` stands in it: who comes too late, whose turn it is, and
//! that whoever sleeps is woken.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tidegate::core::budget;
use tidegate::core::priority::Priority;
use tidegate::live::search::Manner;
use tidegate::live::{Taker, Ticket, Turn};

use super::plan::Queue;
use super::search::{Search, Stage};
use super::world::{Client, PoolPlace, World};

/// As long as in `data/wait.rs`: whoever asks for longer lets the next one ask, too.
const KEPT_AFTER: Duration = Duration::from_millis(50);

/// A place in the line.
pub struct Waits {
    pub ticket: Ticket,
    pub deadline: Instant,
    times: u32,
    /// While it asks, and has not said that it is kept: when it will.
    pub kept_at: Option<Instant>,
    /// When it is to ask again though nothing has changed; `None`: as soon as it is its turn.
    ask_at: Cell<Option<Instant>>,
    /// Of the pool, when it was asked last.
    news: u64,
    /// Servers that had no place then.
    full: Vec<u64>,
    bell: Arc<Bell>,
    /// It has left its bell with whoever may wake it.
    is_asleep: Cell<bool>,
}

/// A waker that remembers that it was called.
#[derive(Debug, Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl World {
    /// Nobody took the client: it may wait, or is gone.
    pub fn give_up(&mut self, mut client: Client, search: Search) {
        let is_full = search.walk.has_full();
        let pool = if client.waits.is_some() { &self.pool } else { &search.pool };
        let queue = pool.plan.queue.filter(|queue| is_full || queue.for_dead);
        // Whom one behind another did not ask that one does.
        let is_behind = search.manner == Manner::Trusted;
        match (queue, &mut client.waits) {
            (None, _) if !is_behind => self.leave(client, "unserved"),
            (Some(queue), None) => self.join_line(client, queue),
            (_, None) => panic!("nobody asks behind another but in the line"),
            (_, Some(waits)) => {
                waits.ticket.in_vain();
                waits.kept_at = None;
                self.models.line.in_vain(client.id);
                let plan = &self.pool.plan;
                let pause = budget::pause(plan.backoff, plan.max_backoff, waits.times, self.dice.roll());
                waits.times += 1;
                waits.ask_at.set(Some(self.now + pause));
                let is_full = |place: &&PoolPlace| self.servers[&place.id].live.room.is_full();
                waits.full = self.pool.places.iter().filter(is_full).map(|place| place.id).collect();
                waits.news = self.news;
                waits.is_asleep.set(false);
                client.stage = Stage::InLine;
                self.clients.insert(client.id, client);
            }
        }
    }

    pub fn join_line(&mut self, mut client: Client, queue: Queue) {
        let class = class_of(client.from);
        let ticket = self.live.line.join(class, client.from, queue.max);
        let lane = (class, queue_source(client.from));
        let has_room = self.models.line.has_room_for(lane, queue.max);
        assert_eq!(ticket.is_some(), has_room, "{} of {} wait", self.models.line.len(), queue.max);
        let Some(ticket) = ticket else { return self.leave(client, "queue-full") };
        self.models.line.join(lane, client.id, queue.max);
        self.trace.add("waits", format_args!("#{}", client.id));
        client.waits = Some(Waits {
            ticket,
            deadline: self.now + queue.timeout,
            times: 0,
            kept_at: None,
            ask_at: Cell::new(None),
            news: self.news,
            full: Vec::new(),
            bell: Arc::default(),
            is_asleep: Cell::new(false),
        });
        client.stage = Stage::InLine;
        self.clients.insert(client.id, client);
    }

    /// Does a client in the line ask servers now: something has changed since it did, and it is its turn.
    /// Whoever slept has been woken for it.
    pub fn is_to_ask(&self, client: &Client) -> bool {
        let Some(waits) = &client.waits else { return false };
        let waker = Waker::from(Arc::clone(&waits.bell));
        let mut cx = Context::from_waker(&waker);
        let was_rung = waits.bell.0.swap(false, Ordering::Relaxed);
        if let Some(ask_at) = waits.ask_at.get() {
            let room = |id: &u64| self.servers.get(id).map(|server| &server.live.room);
            let looks: Vec<_> = waits.full.iter().filter_map(room).map(|room| room.poll_free(&cx)).collect();
            let has_room = looks.iter().any(Poll::is_ready);
            assert!(
                !has_room || was_rung || !waits.is_asleep.get(),
                "#{} was not woken for a place",
                client.id
            );
            waits.is_asleep.set(!has_room);
            if !has_room && self.news == waits.news && self.now < ask_at {
                return false;
            }
            waits.ask_at.set(None);
            waits.is_asleep.set(false);
        }
        let is_called = waits.ticket.poll_called(&mut cx).is_ready();
        assert_eq!(is_called, self.models.line.may_ask(client.id), "is it the turn of #{}", client.id);
        assert!(
            !is_called || was_rung || !waits.is_asleep.get(),
            "#{} was not woken for its turn",
            client.id
        );
        waits.is_asleep.set(!is_called);
        is_called
    }

    /// Whose its place is now, if it is another's. Whoever slept has been woken for it.
    pub fn displaced(&self, client: &Client) -> Option<Taker> {
        let waits = client.waits.as_ref()?;
        let waker = Waker::from(Arc::clone(&waits.bell));
        let taker = match waits.ticket.poll_displaced(&mut Context::from_waker(&waker)) {
            Poll::Ready(taker) => Some(taker),
            Poll::Pending => None,
        };
        let is_out = taker.is_some();
        assert_eq!(is_out, !self.models.line.holds(client.id), "has #{} lost its place", client.id);
        let was_rung = waits.bell.0.load(Ordering::Relaxed);
        assert!(
            !is_out || was_rung || !waits.is_asleep.get(),
            "#{} was not woken for the loss of its place",
            client.id
        );
        taker
    }

    /// The client asks again.
    pub fn ask_again(&mut self, mut client: Client) {
        let is_behind = self.models.line.is_behind(client.id);
        if let Some(waits) = &mut client.waits {
            let expected = if is_behind { Turn::Behind } else { Turn::First };
            let turn = waits.ticket.poll_called(&mut Context::from_waker(Waker::noop()));
            assert_eq!(turn, Poll::Ready(expected), "the turn of #{}", client.id);
            waits.kept_at = Some(self.now + KEPT_AFTER);
        }
        let manner = if is_behind { Manner::Trusted } else { Manner::Once };
        client.search = Some(self.begin(client.from, manner));
        self.trace.add(if is_behind { "behind" } else { "asks" }, format_args!("#{}", client.id));
        self.go_on(client);
    }

    /// Does a client of the line ask for so long that the next one may, too.
    pub fn is_to_be_kept(&self, client: &Client) -> bool {
        client.waits.as_ref().and_then(|waits| waits.kept_at).is_some_and(|at| at <= self.now)
    }

    pub fn keep(&mut self, client: &mut Client) {
        let Some(waits) = &mut client.waits else { return };
        waits.kept_at = None;
        waits.ticket.is_kept();
        self.models.line.keep(client.id);
        self.trace.add("kept", format_args!("#{}", client.id));
    }
}

/// One number for each source that has turns of its own: an address of IPv4 or a network of IPv6.
fn queue_source(from: IpAddr) -> u128 {
    match from.to_canonical() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => (ip.to_bits() >> 64) + (1 << 64),
    }
}

/// The class of whoever comes from there, as `priority_from` would name it.
pub fn class_of(from: IpAddr) -> Priority {
    let host = queue_source(from) as usize;
    Priority::ALL[host % Priority::ALL.len()]
}
