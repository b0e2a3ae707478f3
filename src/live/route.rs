//! What is counted of one route of a listener, and how far its canary has come.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::telemetry::counters::PerWorker;
use crate::telemetry::stats::RouteStats;

/// By listener and name of the route; it outlives reloads, so a new share goes on where the old one was.
#[derive(Debug)]
pub struct RouteLive {
    pub name: String,
    /// Grows by one with each connection that is shared out, over all workers.
    turn: AtomicU64,
    pub stats: PerWorker<RouteStats>,
}

impl RouteLive {
    pub fn new(name: String, workers: usize) -> Self {
        RouteLive { name, turn: AtomicU64::new(0), stats: PerWorker::new(workers) }
    }

    /// One atomic addition, so the order in which workers come here is the order of turns.
    pub fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}
