//! What is alive behind a plan: counts and health that outlive every reload.
//!
//! Each value is an `Arc` kept by name in `control/publisher.rs` and carried from snapshot
//! to snapshot. Nothing here decides anything; what is counted is given back by `Drop`.

mod room; // limits that can be waited for
mod bandwidth; // of all connections of a listener
mod bell; // something has changed
pub mod gate; // what a listener remembers of its clients' sources
mod guard; // may a server be tried
mod line; // who waits for one
mod route; // which of them go to a canary
pub mod search; // whom to ask for one client, step by step

#[cfg(test)]
mod tests; // what is counted is given back

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use self::gate::Gate;
pub use bandwidth::SharedBandwidth;
pub use bell::Bell;
pub use guard::{Circuit, Fault, Guard, Pass, Rules, Watched};
pub use line::{Line, Taker, Ticket, Turn};
pub use room::{Permit, Room};
pub use route::RouteLive;

use crate::core::affinity::{Key, Table};
use crate::core::budget::{Budget, Odds};
use crate::core::latency::Latency;
use crate::core::outlier::Ward;
use crate::core::slow_start::Share;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::telemetry::counters::PerWorker;
use crate::telemetry::stats::{ListenerStats, PoolStats, ServerStats};

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
    pub bandwidth: SharedBandwidth,
    pub stats: PerWorker<ListenerStats>,
}

/// A pool's counts.
#[derive(Debug)]
pub struct PoolLive {
    /// Grows by one with each connection, over all workers: the place in the round.
    turn: AtomicU64,
    pub affinity: Affinity,
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
            affinity: Affinity::default(),
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
    pub fn retry(&self, share: f64, odds: Odds, now: Instant) -> Option<Retry<'_>> {
        let connections = self.turn.load(Ordering::Relaxed);
        let may = self.budget().take(share, odds, connections, now);
        // Not made first and dropped then: that would give back what was never taken.
        may.then(|| Retry { pool: self, odds, is_ended: false })
    }

    /// Whoever panicked in here has counted one retry or not.
    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to make one retry. Whoever has it says how it went; dropping it instead says nothing.
#[derive(Debug)]
pub struct Retry<'a> {
    pool: &'a PoolLive,
    odds: Odds,
    is_ended: bool,
}

impl Retry<'_> {
    /// It has found a server, or not.
    pub fn end(mut self, found: bool, now: Instant) {
        self.is_ended = true;
        let connections = self.pool.turn.load(Ordering::Relaxed);
        self.pool.budget().on_end(self.odds, found, connections, now);
    }
}

impl Drop for Retry<'_> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.pool.budget().on_abandoned(self.odds);
        }
    }
}

/// Parts of a pool's affinity, each with a lock of its own: two workers seldom want the same one, and
/// hold it for one look.
const AFFINITY_PARTS: usize = 16;

/// Which server each client of a pool was served by, over all workers. It keeps no server alive.
#[derive(Debug)]
pub struct Affinity {
    made: Instant,
    parts: [Mutex<Table<Weak<ServerLive>>>; AFFINITY_PARTS],
}

/// What becomes of the server that a client is known to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie<T> {
    /// It serves the client again.
    Holds(T),
    /// Not this time: it has no room. It is the client's all the same.
    Rests,
    /// It cannot serve, or has failed this very client.
    Breaks,
}

impl Affinity {
    /// Where this client goes: to the server that it is known to, as far as that tie holds, or else to
    /// the proposed one, which it is known to from now on. One look under one lock, so that clients that
    /// come twice at the same moment are not torn in two.
    pub fn settle<T>(
        &self,
        key: Key,
        ttl: Duration,
        now: Instant,
        proposed: &Arc<ServerLive>,
        tie: impl FnOnce(&Weak<ServerLive>) -> Tie<T>,
    ) -> Option<T> {
        let now = now.saturating_duration_since(self.made);
        let mut part = self.part(key);
        let known = part.get(key, now, ttl).cloned();
        match known.as_ref().map_or(Tie::Breaks, tie) {
            Tie::Holds(server) => {
                part.set(key, known.unwrap_or_default(), now, ttl);
                Some(server)
            }
            Tie::Rests => None,
            Tie::Breaks => {
                part.set(key, Arc::downgrade(proposed), now, ttl);
                None
            }
        }
    }

    /// Over all parts. What is too much goes at once.
    pub fn set_limit(&self, limit: usize) {
        for (number, part) in self.parts.iter().enumerate() {
            let one_more = usize::from(number < limit % AFFINITY_PARTS);
            lock(part).set_limit(limit / AFFINITY_PARTS + one_more);
        }
    }

    /// Clients that are known now, and how many had to be forgotten before their time.
    pub fn count(&self, ttl: Duration, now: Instant) -> (usize, u64) {
        let now = now.saturating_duration_since(self.made);
        self.parts.iter().fold((0, 0), |(known, forgotten), part| {
            let mut part = lock(part);
            part.expire(now, ttl);
            (known + part.len(), forgotten + part.evicted())
        })
    }

    fn part(&self, key: Key) -> MutexGuard<'_, Table<Weak<ServerLive>>> {
        lock(&self.parts[key.part(AFFINITY_PARTS)])
    }
}

impl Default for Affinity {
    /// Knows nobody, and nobody comes to be known before there is a limit.
    fn default() -> Self {
        Affinity { made: Instant::now(), parts: std::array::from_fn(|_| Mutex::new(Table::new(0))) }
    }
}

/// A worker that panicked in the middle of a look has left a table that may be wrong about one client.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub warmup: Warmup,
    pub answers: Answers,
    pub guard: Guard,
    pub stats: PerWorker<ServerStats>,
}

/// How long a server takes to answer, kept by all workers together.
#[derive(Debug)]
pub struct Answers {
    made: Instant,
    latency: AtomicU64,
}

impl Answers {
    pub fn us(&self, now: Instant) -> Option<u32> {
        Latency::from_word(self.latency.load(Ordering::Relaxed)).us(self.ms(now))
    }

    pub fn observe(&self, took: Duration, now: Instant) {
        let now = self.ms(now);
        let observe = |word| Some(Latency::from_word(word).observe(took, now).word());
        // Never an error: there is always a next word.
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, observe);
    }

    fn ms(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.made).as_millis() as u32 // starts again every 49 days
    }
}

impl Default for Answers {
    fn default() -> Self {
        Answers { made: Instant::now(), latency: AtomicU64::new(0) }
    }
}

/// When a server began to take its share of the traffic little by little.
#[derive(Debug)]
pub struct Warmup {
    made: Instant,
    /// Milliseconds since `made`, and one more; 0 is never.
    begun: AtomicU64,
}

impl Warmup {
    pub fn new() -> Self {
        Warmup { made: Instant::now(), begun: AtomicU64::new(0) }
    }

    pub fn begin(&self, now: Instant) {
        let since = u64::try_from(now.saturating_duration_since(self.made).as_millis()).unwrap_or(u64::MAX);
        self.begun.store(since.saturating_add(1), Ordering::Relaxed);
    }

    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > 0
    }

    /// Its share now, where it has its full weight `over` that time.
    pub fn share(&self, over: Duration, now: Instant) -> Share {
        let Some(begun) = self.begun.load(Ordering::Relaxed).checked_sub(1) else { return Share::FULL };
        let since_made = now.saturating_duration_since(self.made);
        Share::after(since_made.saturating_sub(Duration::from_millis(begun)), over)
    }
}

impl Default for Warmup {
    fn default() -> Self {
        Warmup::new()
    }
}
