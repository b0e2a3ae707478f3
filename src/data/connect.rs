//! From pool to pool until a server takes the connection: the client's own, then those it falls back to.
//!
//! How a pool's servers are asked is `search.rs`. Where nobody is left at all, a pool may let its
//! clients wait: that is `wait.rs`.

use std::borrow::Cow;
use std::iter;
use std::sync::Arc;

use super::accept::Places;
use super::admit::Admitted;
use super::failure::refusal;
use super::search::{Manner, search};
use super::visit::Visit;
use super::wait::{may_wait, wait};
use super::worker::Worker;
use crate::config::plan;
use crate::core::outcome::{Close, Reason};
use crate::live::Permit;
use crate::net::Sock;
use crate::snapshot::{Listener, Pool};
use crate::telemetry::stats::Flow;

/// A client and the server that took it. It holds the places of both.
pub(super) struct Joined {
    pub(super) client: Sock,
    pub(super) server: Sock,
    pub(super) _places: Places,
    /// The server's place, given back when the connection ends.
    pub(super) _lease: Permit,
    /// The pool that served.
    pub(super) pool: Arc<Pool>,
}

/// # Errors
/// How it ended when no server took the client, or the client did not wait.
pub(super) async fn connect(
    admitted: Admitted,
    listener: &Listener,
    pool: &Arc<Pool>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Joined, Close> {
    let Admitted { sock: client, places } = admitted;
    let (server, lease, pool) = match first_found(&client, listener, pool, visit, worker).await? {
        Ok(found) => found,
        Err(line) => {
            let pool = Arc::clone(line.pool);
            let (server, lease) = wait(&client, line, visit, worker).await?;
            (server, lease, pool)
        }
    };
    Ok(Joined { client, server, _places: places, _lease: lease, pool })
}

/// The line that a client may wait in.
pub(super) struct Waiting<'a> {
    pub(super) pool: &'a Arc<Pool>,
    pub(super) flow: &'a Arc<Flow>,
    pub(super) queue: plan::Queue,
    /// What the client has met before; empty where others stood in the line already.
    pub(super) met: Cow<'static, str>,
}

/// A server of the first pool of the chain that has one for this client; else the first line in which it
/// may wait, or how it ended.
async fn first_found<'a>(
    client: &Sock,
    listener: &'a Listener,
    pool: &'a Arc<Pool>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Result<(Sock, Permit, Arc<Pool>), Waiting<'a>>, Close> {
    let flows = iter::once(&listener.flow).chain(&listener.fallback_flows);
    let (mut end, mut line) = (None, None);
    for (pool, flow) in pool.chain().zip(flows) {
        // Whoever waits already comes first.
        if let Some(queue) = pool.plan.queue.filter(|_| pool.live.line.length() > 0) {
            line.get_or_insert(Waiting { pool, flow, queue, met: "".into() });
            continue;
        }
        let tries = visit.attempts.borrow().len();
        let manner = if pool.plan.fallback.is_none() { Manner::AgainAfterPauses } else { Manner::Once };
        match search(client, pool, flow, manner, visit, worker).await {
            Ok((server, lease)) => return Ok(Ok((server, lease, Arc::clone(pool)))),
            // Another pool would meet the same.
            Err(unserved) if matches!(unserved.close.reason, Reason::ClientReset | Reason::FdExhausted) => {
                return Err(unserved.close);
            }
            Err(unserved) => {
                if let Some(queue) = may_wait(&unserved, pool) {
                    line.get_or_insert(Waiting { pool, flow, queue, met: unserved.close.detail.clone() });
                }
                // A pool with nobody to try has nothing to add to what the ones before it met.
                if end.is_none() || visit.attempts.borrow().len() > tries {
                    end = Some(unserved.close);
                }
            }
        }
    }
    if let Some(line) = line {
        return Ok(Err(line));
    }
    let close = end.unwrap_or_else(|| refusal(Reason::NoHealthyServer, "there is no pool".to_owned()));
    Err(with_fallbacks(close, pool, visit))
}

/// Says that the other pools had no server either.
fn with_fallbacks(close: Close, pool: &Arc<Pool>, visit: &Visit) -> Close {
    let others: Vec<_> = pool.chain().skip(1).map(|pool| format!("`{}`", pool.plan.name)).collect();
    if others.is_empty() || !visit.attempts.borrow().is_empty() {
        return close;
    }
    let detail =
        format!("{}, and no server is left in what it falls back to: {}", close.detail, others.join(", "));
    Close { detail: detail.into(), ..close }
}
