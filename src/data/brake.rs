//! How fast one connection may go: its own bandwidth, then its turn in that of its listener.
//!
//! Each direction reserves a portion of its own limit, waits until it may move, reserves as much of the
//! listener's, and waits for that; what it then finds nothing to read for is given back. So a listener's
//! bandwidth goes round among those that have something to move, and nobody holds it who does not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::visit::Visit;
use super::worker::Worker;
use crate::config::plan::{self, Bandwidth};
use crate::core::throttle::Throttle;
use crate::live::ListenerLive;
use crate::net::{self, Side};

/// Nobody is woken more often: what has come together by then moves at once. The bursts are long enough that
/// nothing is lost by it.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Nobody sleeps longer without a look at whether a reload has changed the limit.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What holds a connection back, if anything does.
pub(super) fn brake(
    listener: &plan::Listener,
    visit: &Visit,
    worker: &Worker,
) -> Option<Box<dyn net::Brake>> {
    listener.bandwidth.or(listener.bandwidth_per_connection)?;
    Some(Box::new(Brake {
        began: worker.net.now(),
        own: listener.bandwidth_per_connection.map(|limit| (limit, Default::default())),
        listener: Arc::clone(&visit.listener),
        worker: worker.index,
        lanes: Default::default(),
    }))
}

struct Brake {
    began: Instant,
    /// Its limit does not change while it is open.
    own: Option<(Bandwidth, [Throttle; 2])>,
    /// Whose limit is looked at anew each time.
    listener: Arc<ListenerLive>,
    worker: usize,
    lanes: [Lane; 2],
}

/// How far one direction is.
#[derive(Default)]
struct Lane {
    step: Step,
    /// Since when it waits, in the current step.
    waits_since: Option<Instant>,
}

#[derive(Clone, Copy, Default)]
enum Step {
    #[default]
    Idle,
    /// These may move by its own limit, from then on.
    Own { bytes: u64, from: Instant },
    /// And by the listener's, as it was when they were reserved.
    Shared { bytes: u64, from: Instant, limit: Bandwidth },
    /// They may move; `limit` is the listener's.
    Granted { bytes: u64, limit: Option<Bandwidth> },
}

impl net::Brake for Brake {
    fn ask(&mut self, side: Side, wanted: u64, now: Instant) -> Result<u64, Instant> {
        loop {
            let step = self.lanes[side as usize].step;
            self.lanes[side as usize].step = match step {
                Step::Idle => self.reserve_own(side, wanted, now),
                Step::Own { from, .. } | Step::Shared { from, .. } if now < from && !self.is_stale(step) => {
                    self.lanes[side as usize].waits_since.get_or_insert(now);
                    return Err(from.min(now + PAUSE_MAX));
                }
                Step::Own { bytes, .. } => {
                    self.count_wait(side, now, false);
                    self.reserve_shared(side, bytes, now)
                }
                Step::Shared { bytes, limit, .. } => {
                    self.count_wait(side, now, true);
                    match self.is_stale(step) {
                        true => self.reserve_shared(side, bytes, now),
                        false => Step::Granted { bytes, limit: Some(limit) },
                    }
                }
                Step::Granted { bytes, .. } => return Ok(bytes),
            };
        }
    }

    fn has_read(&mut self, side: Side, read: u64) {
        let step = std::mem::take(&mut self.lanes[side as usize].step);
        if let Step::Granted { bytes, limit } = step {
            self.settle_own(side, bytes, read);
            self.settle_shared(side, bytes, read, limit);
        }
    }
}

impl Brake {
    fn reserve_own(&self, side: Side, wanted: u64, now: Instant) -> Step {
        let Some((limit, throttles)) = &self.own else { return Step::Own { bytes: wanted, from: now } };
        let bytes = wanted.min(limit.portion(Duration::ZERO));
        let time = now.saturating_duration_since(self.began);
        let wait = throttles[side as usize].reserve(bytes, *limit, time);
        Step::Own { bytes, from: later(now, wait) }
    }

    /// Of what its own limit lets through.
    fn reserve_shared(&self, side: Side, own: u64, now: Instant) -> Step {
        let shared = &self.listener.bandwidth;
        let Some(limit) = shared.limit() else { return Step::Granted { bytes: own, limit: None } };
        let (throttle, time) = (self.shared(side), shared.time(now));
        let bytes = own.min(limit.portion(throttle.backlog(limit, time)));
        self.settle_own(side, own, bytes);
        let wait = throttle.reserve(bytes, limit, time);
        Step::Shared { bytes, from: later(now, wait), limit }
    }

    /// A reload has changed the limit that it was reserved under.
    fn is_stale(&self, step: Step) -> bool {
        matches!(step, Step::Shared { limit, .. } if self.listener.bandwidth.limit() != Some(limit))
    }

    fn settle_own(&self, side: Side, reserved: u64, read: u64) {
        if let Some((limit, throttles)) = &self.own {
            throttles[side as usize].settle(reserved, read, *limit);
        }
    }

    fn settle_shared(&self, side: Side, reserved: u64, read: u64, limit: Option<Bandwidth>) {
        if let Some(limit) = limit.filter(|limit| self.listener.bandwidth.limit() == Some(*limit)) {
            self.shared(side).settle(reserved, read, limit);
        }
    }

    fn shared(&self, side: Side) -> &Throttle {
        match side {
            Side::Client => &self.listener.bandwidth.to_server,
            Side::Server => &self.listener.bandwidth.to_client,
        }
    }

    fn count_wait(&mut self, side: Side, now: Instant, is_shared: bool) {
        if let Some(since) = self.lanes[side as usize].waits_since.take() {
            let stats = self.listener.stats.of(self.worker);
            let held = if is_shared { &stats.held_by_all_us } else { &stats.held_by_own_us };
            let waited = now.saturating_duration_since(since);
            held.add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
        }
    }
}

impl Drop for Brake {
    /// Others may have what is reserved.
    fn drop(&mut self) {
        for side in [Side::Client, Side::Server] {
            match self.lanes[side as usize].step {
                Step::Shared { bytes, limit, .. } => self.settle_shared(side, bytes, 0, Some(limit)),
                Step::Granted { bytes, limit } => self.settle_shared(side, bytes, 0, limit),
                Step::Idle | Step::Own { .. } => {}
            }
        }
    }
}

fn later(now: Instant, wait: Duration) -> Instant {
    if wait.is_zero() { now } else { now + wait.max(PAUSE_MIN) }
}
