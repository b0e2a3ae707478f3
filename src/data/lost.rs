//! What becomes of connections whose server goes down, as the pool's `on_server_down` says.
//!
//! A change of state comes with a snapshot. Nothing here judges a server.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::visit::{Cut, Visit};
use super::worker::Worker;
use crate::config::plan::OnServerDown;
use crate::core::health::State;
use crate::live::ServerLive;
use crate::snapshot::{Pool, Snapshot};

impl Worker {
    /// Ends, or gives a time to end, whatever is on servers that were not down before.
    pub(super) fn let_go_of_lost(self: &Rc<Self>, before: &Snapshot, now: &Snapshot) {
        for pool in now.pools.values() {
            let Some(old) = before.pools.get(&pool.plan.name) else { continue };
            if Arc::ptr_eq(old, pool) || pool.plan.on_server_down == OnServerDown::Keep {
                continue;
            }
            for server in pool.servers.iter().filter(|server| server.state == State::Down) {
                if is_down(old, &server.live) == Some(false) {
                    self.let_go_of(&server.live, pool.plan.on_server_down);
                }
            }
        }
    }

    fn let_go_of(self: &Rc<Self>, server: &Arc<ServerLive>, how: OnServerDown) {
        match how {
            OnServerDown::Keep => {}
            OnServerDown::CloseConnections => self.cut_server(server, Cut::MarkedDown),
            OnServerDown::Drain(within) => self.drain(Arc::clone(server), within),
        }
    }

    /// A server that is up again in time keeps its connections.
    fn drain(self: &Rc<Self>, server: Arc<ServerLive>, within: Duration) {
        let worker = Rc::clone(self);
        self.net.spawn(async move {
            worker.net.sleep(within).await;
            let pool = worker.pool(&server.pool);
            if pool.is_none_or(|pool| is_down(&pool, &server) != Some(false)) {
                worker.cut_server(&server, Cut::Drained);
            }
        });
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
