//! Which counters there are. One struct for each thing that has labels of its own.

use super::counters::{Count, PerWorker};
use super::histogram::Histogram;
use crate::core::outcome::{By, Close, Reason};
use crate::core::priority::Priority;

/// What one worker counts of one listener.
#[derive(Debug, Default)]
pub struct ListenerStats {
    /// Connections taken from the kernel's queue, refused ones included.
    pub accepted: Count,
    /// Times the kernel could not hand over a client: no descriptor or no memory was left.
    pub accept_failures: Count,
    /// Connections refused by a limit or a rule before a server was chosen.
    pub rejected: ByReason,
    /// Those of them that a client of a higher class would not have met.
    pub outranked: ByPriority,
    /// Connections let in that would have been refused, had the admission been enforced.
    pub would_reject: ByReason,
    /// Bytes from clients.
    pub received: Count,
    /// Bytes to clients.
    pub sent: Count,
    pub duration: Histogram,
    /// Microseconds that directions were held back by `bandwidth_per_connection`.
    pub held_by_own_us: Count,
    /// The same by the listener's `bandwidth`.
    pub held_by_all_us: Count,
}

/// What one worker counts of one server.
#[derive(Debug, Default)]
pub struct ServerStats {
    /// Connections made.
    pub connections: Count,
    pub connect_failures: ByReason,
    /// Attempts that came here because another server had failed first.
    pub retries: Count,
    /// Bytes from the server.
    pub received: Count,
    /// Bytes to the server.
    pub sent: Count,
    pub connect: Histogram,
}

/// What one worker counts of one pool.
#[derive(Debug, Default)]
pub struct PoolStats {
    /// Retries that were not made, because the pool's budget was used up.
    pub retries_refused: Count,
    /// Of clients that waited in the pool's line.
    pub queue_wait: Histogram,
    /// Clients that lost their place in the line to one of a higher class, or of a source with fewer in it.
    pub displaced: ByPriority,
}

/// What one worker counts of one route of a listener.
#[derive(Debug, Default)]
pub struct RouteStats {
    /// Connections that it has taken, rejected ones included.
    pub connections: Count,
    /// Those of them that were the canary's.
    pub canary: Count,
    /// Those of the canary's that it had no server for: the main pool was asked.
    pub canary_left: Count,
}

/// A count for each reason.
#[derive(Debug)]
pub struct ByReason([Count; Reason::ALL.len()]);

impl Default for ByReason {
    fn default() -> Self {
        ByReason(std::array::from_fn(|_| Count::default()))
    }
}

impl ByReason {
    pub fn add(&self, reason: Reason) {
        self.0[reason.index()].add(1);
    }

    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason.index()].get()
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(Count::get).sum()
    }
}

/// A count for each class of clients.
#[derive(Debug, Default)]
pub struct ByPriority([Count; Priority::ALL.len()]);

impl ByPriority {
    pub fn add(&self, class: Priority) {
        self.0[class.index()].add(1);
    }

    pub fn get(&self, class: Priority) -> u64 {
        self.0[class.index()].get()
    }
}

/// How the connections of one listener to one pool ended.
#[derive(Debug)]
pub struct Flow {
    pub listener: String,
    pub pool: String,
    closed: PerWorker<Closed>,
}

#[derive(Debug)]
struct Closed([ByReason; By::ALL.len()]);

impl Default for Closed {
    fn default() -> Self {
        Closed(std::array::from_fn(|_| ByReason::default()))
    }
}

impl Flow {
    pub fn new(listener: String, pool: String, workers: usize) -> Self {
        Flow { listener, pool, closed: PerWorker::new(workers) }
    }

    pub fn count(&self, worker: usize, close: &Close) {
        self.closed.of(worker).0[close.by.index()].add(close.reason);
    }

    /// Ends seen so far by that side for that reason.
    pub fn closed(&self, by: By, reason: Reason) -> u64 {
        self.closed.sum(|closed| closed.0[by.index()].get(reason))
    }
}
