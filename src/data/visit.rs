//! What is known of one connection so far. The steps fill it in; `close.rs` tells it.
//!
//! It keeps the live counts of its listener and its server, never the snapshot: an idle
//! connection must not hold on to a world that has been reloaded away.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::signal::Signal;
use crate::config::plan::Route;
use crate::core::balance::Why;
use crate::core::outcome::Reason;
use crate::core::priority::Priority;
use crate::live::{ListenerLive, RouteLive, Seat, ServerLive};
use crate::net::Tally;
use crate::telemetry::stats::Flow;

/// One connection, from accept to close.
pub(super) struct Visit {
    pub(super) conn_id: u64,
    pub(super) ts: SystemTime,
    pub(super) accepted: Instant,
    pub(super) generation: u64,
    pub(super) client: SocketAddr,
    pub(super) class: Priority,
    pub(super) local: SocketAddr,
    pub(super) listener: Arc<ListenerLive>,
    /// Of the pool that serves it: another one once a fallback has been asked.
    pub(super) flow: RefCell<Arc<Flow>>,
    /// The route that took it, where there is more than one way to go.
    pub(super) route: RefCell<Option<Arc<RouteLive>>>,
    pub(super) side: Cell<Side>,
    pub(super) attempts: RefCell<Vec<Attempt>>,
    /// Outlier detection has not heard yet how the server serves this client.
    pub(super) is_watched: Cell<bool>,
    /// When the client's first byte came, in microseconds since the accept, where it was waited for; else 0.
    /// In 32 bits (later is told as 71 minutes), so that a connection that did not wait is no larger.
    pub(super) heard_after_us: Cell<u32>,
    /// How long it waited in the pool's line.
    pub(super) queued_for: Cell<Option<Duration>>,
    pub(super) connected_after: Cell<Option<Duration>>,
    pub(super) tally: Rc<Tally>,
    /// Among the worker's open connections.
    pub(super) place: Cell<usize>,
    /// What of the tally the counters have already.
    counted: Cell<(u64, u64)>,
    /// Raised to end the connection from outside.
    pub(super) cut: Signal<Cut>,
    _seat: Seat,
}

/// On which side of a split a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// No route has been looked for yet, or none takes it.
    Unrouted,
    /// Where there is no canary, and where the main pool's share is.
    Main,
    Canary,
    /// It was the canary's, which had no server for it: the main pool was asked.
    LeftCanary,
}

/// Why a connection is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// `drain_timeout` has passed.
    DrainDeadline,
    /// The server went down.
    MarkedDown,
    /// The server went down, and the time to drain is over.
    Drained,
    /// The daemon stops at once.
    Stop,
}

/// One try to connect to a server.
pub(super) struct Attempt {
    pub(super) server: Arc<ServerLive>,
    pub(super) why: Why,
    pub(super) took: Duration,
    /// `None`: it connected.
    pub(super) error: Option<Reason>,
}

/// Who came, where and when.
pub(super) struct Arrival {
    pub(super) conn_id: u64,
    pub(super) accepted: Instant,
    pub(super) generation: u64,
    pub(super) client: SocketAddr,
    pub(super) class: Priority,
    pub(super) local: SocketAddr,
    pub(super) seat: Seat,
}

impl Visit {
    pub(super) fn begin(arrival: Arrival, listener: Arc<ListenerLive>, flow: Arc<Flow>) -> Rc<Self> {
        let Arrival { conn_id, accepted, generation, client, class, local, seat } = arrival;
        Rc::new(Visit {
            conn_id,
            ts: SystemTime::now(),
            accepted,
            generation,
            client,
            class,
            local,
            listener,
            flow: RefCell::new(flow),
            route: RefCell::default(),
            side: Cell::new(Side::Unrouted),
            attempts: RefCell::default(),
            is_watched: Cell::new(false),
            heard_after_us: Cell::new(0),
            queued_for: Cell::new(None),
            connected_after: Cell::new(None),
            tally: Rc::default(),
            place: Cell::default(),
            counted: Cell::default(),
            cut: Signal::new(),
            _seat: seat,
        })
    }

    pub(super) fn take_route(&self, route: Option<&Arc<RouteLive>>) {
        self.route.replace(route.map(Arc::clone));
    }

    pub(super) fn has_route(&self, route: Option<&Arc<RouteLive>>) -> bool {
        self.route.borrow().as_ref().map(Arc::as_ptr) == route.map(Arc::as_ptr)
    }

    /// It is counted there from now on.
    pub(super) fn turn_to(&self, flow: &Arc<Flow>) {
        if !Arc::ptr_eq(&self.flow.borrow(), flow) {
            self.flow.replace(Arc::clone(flow));
        }
    }

    /// The name of its route; `None` before it has one. What goes to a canary has a name of its own.
    pub(super) fn route_name(&self) -> Option<Cow<'static, str>> {
        let canary = match self.side.get() {
            Side::Unrouted => return None,
            Side::Main => "",
            Side::Canary => "canary",
            Side::LeftCanary => "canary-fallback",
        };
        let route = self.route.borrow();
        let route = route.as_ref().map(|route| route.name.as_str());
        Some(match (route.filter(|name| *name != Route::DEFAULT), canary) {
            (None, "") => Route::DEFAULT.into(),
            (None, canary) => canary.into(),
            (Some(name), "") => name.to_owned().into(),
            (Some(name), canary) => format!("{name}/{canary}").into(),
        })
    }

    /// Tells outlier detection that the server has begun to answer, once; or that it never will.
    pub(super) fn judge_server(&self, has_failed: bool, now: Instant) {
        let is_good = self.tally.first_byte.get().is_some();
        if self.is_watched.get() && (is_good || has_failed) {
            self.is_watched.set(false);
            if let Some(last) = self.attempts.borrow().last() {
                last.server.guard.on_service(is_good, now);
            }
        }
    }

    /// Brings the counters of listener and server up to what has been moved. `worker` is the
    /// one that calls.
    pub(super) fn count_bytes(&self, worker: usize) {
        let now = (self.tally.to_server.get(), self.tally.to_client.get());
        let before = self.counted.replace(now);
        if now == before {
            return;
        }
        let (to_server, to_client) = (now.0 - before.0, now.1 - before.1);
        let listener = self.listener.stats.of(worker);
        listener.received.add(to_server);
        listener.sent.add(to_client);
        if let Some(last) = self.attempts.borrow().last() {
            let server = last.server.stats.of(worker);
            server.sent.add(to_server);
            server.received.add(to_client);
        }
    }
}
