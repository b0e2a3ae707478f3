//! What becomes of connections whose server goes down, as the pool's `on_server_down` says.
//!
//! A change of state comes with a snapshot. Nothing here judges a server.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::visit::{Cut, Visit};
use super::worker::Worker;
use crate::config::plan::OnServerDown;
use crate::core::health::State;
use crate::live::ServerLive;
use crate::snapshot::{Pool, Server, Snapshot};

/// A server's connections have some time left.
pub(super) struct Drain {
    /// `None`: it was up again in time.
    deadline: Option<Instant>,
    /// When the task looks again that waits for the deadline, or one before that.
    wakes_at: Instant,
}

impl Worker {
    /// Ends, or gives a time to end, whatever is on servers that were not down before.
    pub(super) fn let_go_of_lost(self: &Rc<Self>, before: &Snapshot, now: &Snapshot) {
        for pool in now.pools.values() {
            let Some(old) = before.pools.get(&pool.plan.name).filter(|old| !Arc::ptr_eq(old, pool)) else {
                continue;
            };
            for (place, server) in pool.servers.iter().enumerate() {
                let was_down = match old.servers.get(place) {
                    Some(same) if Arc::ptr_eq(&same.live, &server.live) => Some(same.state == State::Down),
                    _ => is_down(old, &server.live),
                };
                match (was_down, server.state == State::Down) {
                    (Some(false), true) => self.let_go_of(&server.live, pool.plan.on_server_down),
                    (Some(true), false) => self.call_off(&server.live),
                    _ => {}
                }
            }
        }
    }

    fn let_go_of(self: &Rc<Self>, server: &Arc<ServerLive>, how: OnServerDown) {
        match how {
            OnServerDown::Keep => {}
            OnServerDown::CloseConnections => self.cut_server(server, Cut::MarkedDown),
            OnServerDown::Drain(within) => self.drain(server, self.net.now() + within),
        }
    }

    /// One task for each server that drains: one that goes up and down again moves its deadline.
    fn drain(self: &Rc<Self>, server: &Arc<ServerLive>, deadline: Instant) {
        let key = Arc::as_ptr(server) as usize;
        let mut draining = self.draining.borrow_mut();
        let wakes_at = draining.get(&key).map_or(deadline, |before| before.wakes_at.min(deadline));
        let before = draining.insert(key, Drain { deadline: Some(deadline), wakes_at });
        // The task of an earlier deadline sleeps on; that of a later one finds its entry gone when it wakes.
        if before.is_some_and(|before| before.wakes_at <= deadline) {
            return;
        }
        let (worker, server) = (Rc::clone(self), Arc::clone(server));
        drop(draining);
        self.net.spawn(async move {
            while let Some(at) = worker.next_look(key)
                && at > worker.net.now()
            {
                worker.net.sleep(at.saturating_duration_since(worker.net.now())).await;
            }
            let drain = worker.draining.borrow_mut().remove(&key);
            let was_called_off = drain.is_none_or(|drain| drain.deadline.is_none());
            if !was_called_off && worker.drains_still(&server) {
                worker.cut_server(&server, Cut::Drained);
            }
        });
    }

    /// The deadline of a drain, for the task that sleeps until then.
    fn next_look(&self, key: usize) -> Option<Instant> {
        let mut draining = self.draining.borrow_mut();
        let drain = draining.get_mut(&key)?;
        drain.wakes_at = drain.deadline?;
        drain.deadline
    }

    /// A server that is up again in time keeps its connections.
    fn call_off(&self, server: &Arc<ServerLive>) {
        if let Some(drain) = self.draining.borrow_mut().get_mut(&(Arc::as_ptr(server) as usize)) {
            drain.deadline = None;
        }
    }

    /// A reload may have taken the server away, or said that connections are kept.
    fn drains_still(&self, server: &Arc<ServerLive>) -> bool {
        self.pool(&server.pool).is_some_and(|pool| {
            matches!(pool.plan.on_server_down, OnServerDown::Drain(_)) && is_down(&pool, server) == Some(true)
        })
    }

    /// The server went down while somebody connected to it whom nobody could cut yet.
    pub(super) fn has_lost(&self, pool: &Pool, server: &Server) -> bool {
        pool.plan.on_server_down != OnServerDown::Keep
            && server.state != State::Down
            && self.pool(&pool.plan.name).is_some_and(|now| is_down(&now, &server.live) == Some(true))
    }

    fn cut_server(&self, server: &Arc<ServerLive>, cut: Cut) {
        let is_on_it = |visit: &Visit| {
            let attempts = visit.attempts.borrow();
            let last = attempts.last().filter(|last| last.error.is_none());
            last.is_some_and(|last| Arc::ptr_eq(&last.server, server))
        };
        self.cut_some(cut, is_on_it);
    }
}

/// `None`: it is not in the pool.
fn is_down(pool: &Pool, live: &Arc<ServerLive>) -> Option<bool> {
    let server = pool.servers.iter().find(|server| Arc::ptr_eq(&server.live, live))?;
    Some(server.state == State::Down)
}
