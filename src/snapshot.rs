//! What control gives the workers: one immutable value of plan and live servers.
//!
//! Made by `control/publisher.rs` alone and swapped whole, so a connection sees one
//! consistent world from accept to close, whatever is reloaded meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::config::plan;
use crate::core::balance::Chooser;
use crate::core::health;
use crate::core::slow_start::Share;
use crate::live::{ListenerLive, Loads, PoolLive, Room, ServerLive};
use crate::telemetry::stats::Flow;

/// The world at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows by one with each reload that was applied; starts at 1.
    pub generation: u64,
    /// The room of the whole process, over all listeners.
    pub process_room: Arc<Room>,
    /// What each worker has open.
    pub loads: Arc<Loads>,
    pub listeners: BTreeMap<String, Arc<Listener>>,
    /// Every pool, also one that no listener names.
    pub pools: BTreeMap<String, Arc<Pool>>,
}

#[derive(Debug)]
pub struct Listener {
    pub plan: plan::Listener,
    pub live: Arc<ListenerLive>,
    pub pool: Arc<Pool>,
    /// Where the ends of this listener's connections to `pool` are counted.
    pub flow: Arc<Flow>,
    /// Where those to the pools that `pool` falls back to are counted, in the order of that chain.
    pub fallback_flows: Vec<Arc<Flow>>,
}

#[derive(Debug)]
pub struct Pool {
    pub plan: plan::Pool,
    pub live: Arc<PoolLive>,
    /// In the order of `plan.servers`; a [`Chooser`]'s numbers are places in it.
    pub servers: Vec<Server>,
    pub chooser: Chooser,
    /// Asked when this one has no server left.
    pub fallback: Option<Arc<Pool>>,
}

impl Pool {
    /// This pool and those that it falls back to, in the order in which they are asked.
    pub fn chain(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Pool>> {
        std::iter::successors(Some(self), |pool| pool.fallback.as_ref()).take(1 + plan::FALLBACKS_MAX)
    }
}

impl Pool {
    /// How much of its weight a server of this pool has.
    pub fn share(&self, server: &Server, now: impl FnOnce() -> Instant) -> Share {
        self.plan.slow_start.map_or(Share::FULL, |over| server.live.warmup.share(over, now()))
    }
}

#[derive(Clone, Debug)]
pub struct Server {
    pub plan: plan::Server,
    pub live: Arc<ServerLive>,
    pub state: health::State,
}
