//! What one client has met in a pool so far, and whether it may try again: within `retry.attempts`,
//! `retry.deadline` and the pool's budget.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use super::failure::Failure;
use super::worker::Worker;
use crate::config::plan;
use crate::core::budget;
use crate::core::health::State;
use crate::core::outcome::Reason;
use crate::live::{PoolLive, Retry, ServerLive};
use crate::snapshot::{Pool, Server};

/// What one client has met in one pool so far.
pub(super) struct Story<'a> {
    live: &'a PoolLive,
    begun: Instant,
    /// Servers asked.
    attempts: Cell<u32>,
    pauses: Cell<u32>,
    /// Those that refused: they may be asked again after a pause.
    refused: RefCell<Vec<Arc<ServerLive>>>,
    /// Those that did not answer, or went down: they have cost this client enough.
    silent: RefCell<Vec<Arc<ServerLive>>>,
    /// Leave that was used. What it was good for shows at the end: who is served had to pass by the servers
    /// that failed, and only who is not has retried in vain.
    retries: RefCell<Vec<Retry<'a>>>,
    pub(super) is_over_budget: Cell<bool>,
    /// The last attempt that failed.
    pub(super) last: RefCell<Option<(Failure, Server)>>,
}

impl<'a> Story<'a> {
    pub(super) fn begin(live: &'a PoolLive, now: Instant) -> Self {
        Story {
            live,
            begun: now,
            attempts: Cell::default(),
            pauses: Cell::default(),
            refused: RefCell::default(),
            silent: RefCell::default(),
            retries: RefCell::default(),
            is_over_budget: Cell::default(),
            last: RefCell::default(),
        }
    }

    /// One more attempt, while there are any, and time, and, from the second on, the pool's budget bears it.
    pub(super) fn may_try(&self, plan: &plan::Retry, worker: &Worker) -> bool {
        let (attempts, now) = (self.attempts.get(), worker.net.now());
        if attempts >= plan.attempts {
            return false;
        }
        if attempts > 0 {
            if now.saturating_duration_since(self.begun) >= plan.deadline {
                return false;
            }
            let Some(retry) = self.live.retry(plan.budget, now) else {
                self.is_over_budget.set(true);
                self.live.stats.of(worker.index).retries_refused.add(1);
                return false;
            };
            self.retries.borrow_mut().push(retry);
        }
        true
    }

    pub(super) fn end_retries(&self, found: bool, now: Instant) {
        self.retries.take().into_iter().for_each(|retry| retry.end(found, now));
    }

    pub(super) fn has_refused(&self) -> bool {
        !self.refused.borrow().is_empty()
    }

    /// When those that refused may be asked again; `None`: that is too late.
    pub(super) fn next_pause(&self, plan: &plan::Retry, now: Instant) -> Option<Instant> {
        let pause = budget::pause(plan.backoff, plan.max_backoff, self.pauses.get(), fastrand::u64(..));
        self.pauses.set(self.pauses.get() + 1);
        Some(now + pause).filter(|end| *end < self.begun + plan.deadline)
    }

    /// From here on those that refused may be asked again.
    pub(super) fn forgive(&self) {
        self.refused.borrow_mut().clear();
    }

    /// Those that have come up in the meantime may be asked at once.
    pub(super) fn forgive_risen(&self, before: &Pool, now: &Pool) {
        let is_up = |pool: &Pool, live: &Arc<ServerLive>| {
            let mut servers = pool.servers.iter();
            servers.any(|server| Arc::ptr_eq(&server.live, live) && server.state == State::Up)
        };
        let has_not_risen = |live: &Arc<ServerLive>| is_up(before, live) || !is_up(now, live);
        self.refused.borrow_mut().retain(has_not_risen);
        self.silent.borrow_mut().retain(has_not_risen);
    }

    /// A server is asked.
    pub(super) fn on_attempt(&self) {
        self.attempts.set(self.attempts.get() + 1);
    }

    /// It did not take the client.
    pub(super) fn on_failure(&self, server: &Server, failure: Failure) {
        let list = match failure.reason {
            Reason::ServerRefused | Reason::ServerReset => &self.refused,
            _ => &self.silent,
        };
        list.borrow_mut().push(Arc::clone(&server.live));
        self.last.replace(Some((failure, server.clone())));
    }

    pub(super) fn has_asked(&self, server: &Arc<ServerLive>) -> bool {
        let is_it = |other: &Arc<ServerLive>| Arc::ptr_eq(other, server);
        self.refused.borrow().iter().any(is_it) || self.silent.borrow().iter().any(is_it)
    }
}
