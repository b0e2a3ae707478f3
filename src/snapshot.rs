//! What control gives the workers: one immutable value of plan and live servers.
//!
//! Made by `control/publisher.rs` alone and swapped whole, so each step of a connection sees one
//! consistent world, whatever is reloaded meanwhile. A connection that had to wait (for its client's first
//! byte, between two attempts, in a line) goes on in the world of that moment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::plan;
use crate::core::acl::Acl;
use crate::core::balance::Chooser;
use crate::core::health;
use crate::core::priority::{Among, Priority, Reach};
use crate::core::slow_start::Share;
use crate::core::split::Split;
use crate::live::search;
use crate::live::{ListenerLive, Loads, PoolLive, Room, RouteLive, ServerLive};
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
    /// The first that takes a client decides where it goes. Where the listener has a pool of its own, that is
    /// the last of them and takes everybody.
    pub routes: Vec<Route>,
    /// Where connections are counted that end before they have a route.
    pub flow: Arc<Flow>,
    /// Classes of this listener's clients: they share its room.
    pub own_classes: Among,
    /// Those of all listeners: they share the room of the process.
    pub all_classes: Among,
}

impl Listener {
    /// Every pool that is the first to be asked for some client.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        let targets = self.routes.iter().filter_map(|route| route.target.as_ref());
        targets.flat_map(|target| {
            std::iter::once(&target.pool).chain(target.canary.as_ref().map(|canary| &canary.pool))
        })
    }

    pub fn reaches(&self, class: Priority) -> Reaches {
        Reaches { listener: self.own_classes.reach(class), process: self.all_classes.reach(class) }
    }

    /// How far anybody reaches who may come here: that is what holds before it is known who does. In a dry
    /// run, nobody is kept out for his class.
    pub fn reaches_of_anybody(&self) -> Reaches {
        match self.plan.admission.mode {
            plan::AdmissionMode::Enforce => self.reaches(self.own_classes.top()),
            plan::AdmissionMode::DryRun => Reaches::WHOLE,
        }
    }
}

/// How far a client may fill the rooms that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaches {
    pub listener: Reach,
    pub process: Reach,
}

impl Reaches {
    pub const WHOLE: Reaches = Reaches { listener: Reach::WHOLE, process: Reach::WHOLE };
}

/// Where some of a listener's clients go.
#[derive(Debug)]
pub struct Route {
    pub from: Arc<Acl>,
    /// `None` where it is the only one, and shares nothing out.
    pub live: Option<Arc<RouteLive>>,
    /// `None`: they are refused.
    pub target: Option<Target>,
}

impl Route {
    pub fn takes(&self, client: IpAddr) -> bool {
        self.from.check(client).is_ok()
    }
}

/// A pool and those that it falls back to.
#[derive(Debug)]
pub struct Target {
    pub pool: Arc<Pool>,
    /// Where the ends of connections to each of them are counted, in the order in which they are asked.
    pub flows: Vec<Arc<Flow>>,
    pub canary: Option<Canary>,
}

/// The pool that gets a share of a target's connections.
#[derive(Debug)]
pub struct Canary {
    pub from: Arc<Acl>,
    pub split: Split,
    pub pool: Arc<Pool>,
    pub flow: Arc<Flow>,
    /// Of the route that it is a part of.
    pub live: Arc<RouteLive>,
}

impl Canary {
    /// Whether this connection from there is the canary's. A turn is taken only for one that might be.
    pub fn takes(&self, client: IpAddr) -> bool {
        self.from.check(client).is_ok() && self.split.takes(client, || self.live.next_turn())
    }
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

    /// How much of its weight a server of this pool has.
    pub fn share(&self, server: &Server, now: impl FnOnce() -> Instant) -> Share {
        self.plan.slow_start.map_or(Share::FULL, |over| server.live.warmup.share(over, now()))
    }
}

impl<'p> search::Pool<'p> for &'p Pool {
    fn rules(&self) -> search::Rules {
        let plan::Retry { attempts, backoff, max_backoff, budget, deadline } = self.plan.retry;
        search::Rules {
            attempts,
            backoff,
            max_backoff,
            budget,
            deadline,
            affinity: self.plan.affinity.map(|affinity| (affinity.by, affinity.ttl)),
            has_line: self.plan.queue.is_some(),
            ejects: self.plan.outlier_detection.is_some(),
        }
    }

    fn chooser(&self) -> &Chooser {
        &self.chooser
    }

    fn size(&self) -> usize {
        self.servers.len()
    }

    fn server(&self, place: usize) -> &'p Arc<ServerLive> {
        &self.servers[place].live
    }

    fn is_up(&self, place: usize) -> bool {
        self.servers[place].state == health::State::Up
    }

    fn share(&self, place: usize, now: Instant) -> Share {
        Pool::share(self, &self.servers[place], || now)
    }
}

#[derive(Clone, Debug)]
pub struct Server {
    pub plan: plan::Server,
    pub live: Arc<ServerLive>,
    pub state: health::State,
}
