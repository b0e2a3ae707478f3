//! What is alive behind a plan: counts and health that outlive every reload.
//!
//! Each value is an `Arc` kept by name in `control/publisher.rs` and carried from snapshot
//! to snapshot. Nothing here decides anything; what is counted is given back by `Drop`.

pub mod gate; // what a listener remembers of its clients' sources
mod guard; // may a server be tried
mod line; // who waits for one

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use self::gate::Gate;
pub use guard::{Circuit, Guard, Pass, Rules, Watched};
pub use line::{Line, Ticket};

use crate::core::budget::Budget;
use crate::core::limit::Places;
use crate::core::outlier::Ward;
use crate::telemetry::counters::PerWorker;
use crate::telemetry::stats::{ListenerStats, PoolStats, ServerStats};

/// A limit that can be waited for.
#[derive(Debug)]
pub struct Room {
    places: Places,
    /// Set while `waiting` holds anybody, so that giving back a place costs no lock otherwise.
    is_awaited: AtomicBool,
    /// Accept loops that wait, and clients that are called out of a pool's line: one entry for a
    /// task, and so never more than connections and listeners.
    waiting: Mutex<Vec<Waker>>,
}

impl Room {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Room {
            places: Places::new(limit),
            is_awaited: AtomicBool::new(false),
            waiting: Mutex::default(),
        })
    }

    /// A place, if there is one.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        self.places.take().map(|_| Permit(Arc::clone(self)))
    }

    /// A place, as soon as there is one. For use under `std::future::poll_fn`.
    pub fn poll_take(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        if let Some(permit) = self.take() {
            return Poll::Ready(permit);
        }
        self.await_place(cx);
        match self.take() {
            Some(permit) => Poll::Ready(permit),
            None => Poll::Pending,
        }
    }

    /// Ends when there is a place, which somebody else may take first.
    pub fn poll_free(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_full() {
            self.await_place(cx);
        }
        if self.is_full() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn await_place(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        self.is_awaited.store(true, Ordering::SeqCst);
        drop(waiting);
        // A place given back between the first look and the flag woke nobody: the caller looks again.
        // The fence pairs with the SeqCst of `give_back`: either we see the place, or it sees the flag.
        fence(Ordering::SeqCst);
    }

    /// A new limit; whoever waits looks again.
    pub fn set_limit(&self, limit: usize) {
        self.places.set_limit(limit);
        self.wake_waiting();
    }

    pub fn taken(&self) -> usize {
        self.places.taken()
    }

    pub fn limit(&self) -> usize {
        self.places.limit()
    }

    pub fn is_full(&self) -> bool {
        self.places.is_full()
    }

    fn wake_waiting(&self) {
        if self.is_awaited.swap(false, Ordering::SeqCst) {
            let woken = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            woken.into_iter().for_each(Waker::wake);
        }
    }
}

/// One place in a [`Room`]. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<Room>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.places.give_back();
        self.0.wake_waiting();
    }
}

/// What each worker has open, and what it has been handed and not yet taken up.
#[derive(Debug)]
pub struct Loads(PerWorker<AtomicUsize>);

impl Loads {
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Loads(PerWorker::new(workers)))
    }

    /// One more connection for that worker.
    pub fn seat(self: &Arc<Self>, worker: usize) -> Seat {
        self.0.of(worker).fetch_add(1, Ordering::Relaxed);
        Seat { loads: Arc::clone(self), worker }
    }

    /// Connections by worker.
    pub fn iter(&self) -> impl Iterator<Item = usize> + Clone {
        self.0.iter().map(|open| open.load(Ordering::Relaxed))
    }
}

/// A connection's place at one worker. Dropping it frees the place.
#[derive(Debug)]
pub struct Seat {
    loads: Arc<Loads>,
    worker: usize,
}

impl Seat {
    pub fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.loads.0.of(self.worker).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A listener's counts.
#[derive(Debug)]
pub struct ListenerLive {
    pub name: String,
    pub room: Arc<Room>,
    pub gate: Arc<Gate>,
    pub stats: PerWorker<ListenerStats>,
}

/// A pool's counts.
#[derive(Debug)]
pub struct PoolLive {
    /// Grows by one with each connection, over all workers: the place in the round.
    turn: AtomicU64,
    /// Which of its servers are ejected.
    pub ward: Arc<Mutex<Ward>>,
    /// Locked for each retry, and never for a connection that the first server takes.
    budget: Mutex<Budget>,
    /// Clients that wait for one of its servers.
    pub line: Arc<Line>,
    pub stats: PerWorker<PoolStats>,
}

impl PoolLive {
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(PoolLive {
            turn: AtomicU64::new(0),
            ward: Arc::default(),
            budget: Mutex::default(),
            line: Arc::default(),
            stats: PerWorker::new(workers),
        })
    }

    pub fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Leave to retry, if the budget has any; `share` is what the plan allows.
    pub fn retry(&self, share: f64, now: Instant) -> Option<Retry<'_>> {
        let connections = self.turn.load(Ordering::Relaxed);
        let may = self.budget().take(share, connections, now);
        may.then_some(Retry { pool: self, found: None })
    }

    /// Whoever panicked in here has counted one retry or not.
    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to make one retry. Dropping it tells the budget how it went.
#[derive(Debug)]
pub struct Retry<'a> {
    pool: &'a PoolLive,
    found: Option<bool>,
}

impl Retry<'_> {
    /// It has found a server, or not.
    pub fn end(mut self, found: bool) {
        self.found = Some(found);
    }
}

impl Drop for Retry<'_> {
    fn drop(&mut self) {
        self.pool.budget().on_end(self.found);
    }
}

/// A server's counts. Its open connections are the places taken in `room`.
///
/// It knows who it is, because an open connection keeps this alone and not the snapshot that it
/// was chosen from: a thousand old snapshots must not live on for one idle connection each.
#[derive(Debug)]
pub struct ServerLive {
    pub pool: String,
    pub name: String,
    pub address: SocketAddr,
    pub room: Arc<Room>,
    pub guard: Guard,
    pub stats: PerWorker<ServerStats>,
}
