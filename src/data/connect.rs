//! From pool to pool until a server takes the connection: the canary where it is the client's, its own pool,
//! then those that this one falls back to.
//!
//! How a pool's servers are asked is `search.rs`. Where nobody is left at all, a pool may let its
//! clients wait: that is `wait.rs`.

use std::borrow::Cow;
use std::sync::Arc;

use super::accept::Places;
use super::admit::Admitted;
use super::failure::refusal;
use super::route::{Step, Way};
use super::search::Hunt;
use super::visit::{Side, Visit};
use super::wait::{may_wait, wait};
use super::worker::Worker;
use crate::config::plan;
use crate::core::outcome::{Close, Reason};
use crate::live::Permit;
use crate::live::search::Manner;
use crate::net::Sock;
use crate::snapshot::Pool;
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
    way: Way<'_>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Joined, Close> {
    let Admitted { sock: client, places } = admitted;
    let (server, lease, pool) = match first_found(&client, way, visit, worker).await? {
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

/// A server of the first pool of the way that has one for this client, ejected ones after all others; else the first line in which it
/// may wait, or how it ended. A canary without a server costs the client one connect at most: neither
/// does it wait for one there, nor does it end by it.
async fn first_found<'a>(
    client: &Sock,
    way: Way<'a>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Result<(Sock, Permit, Arc<Pool>), Waiting<'a>>, Close> {
    let (mut end, mut line) = (None, None);
    // Pools that had nobody for this client; at most as many as the way has.
    let mut asked: Vec<Hunt<'_>> = Vec::new();
    for Step { pool, flow, manner, is_again } in way.steps() {
        let is_canary = manner == Manner::Canary;
        if !is_canary && visit.side.get() == Side::Canary {
            way.leave_canary(visit, worker);
        }
        // Whoever waits already comes first.
        if let Some(queue) = pool.plan.queue.filter(|_| pool.live.line.length() > 0) {
            if !is_canary {
                line.get_or_insert(Waiting { pool, flow, queue, met: "".into() });
            }
            continue;
        }
        let tries = visit.attempts.borrow().len();
        let before = asked.iter().position(|hunt| hunt.is_in(pool)).map(|place| asked.swap_remove(place));
        let mut hunt = match before {
            Some(hunt) if is_again && hunt.is_over_budget() => continue, // as was told and counted
            Some(hunt) if is_again => hunt,
            // The canary may be a fallback of the main pool, too.
            Some(canary) => Hunt::begin(pool, flow, visit, worker).after(canary),
            None => Hunt::begin(pool, flow, visit, worker),
        };
        match hunt.search(client, manner, visit, worker).await {
            Ok((server, lease)) => return Ok(Ok((server, lease, Arc::clone(pool)))),
            // Another pool would meet the same.
            Err(unserved) if matches!(unserved.close.reason, Reason::ClientReset | Reason::FdExhausted) => {
                return Err(unserved.close);
            }
            Err(_) if is_canary => {}
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
        asked.push(hunt);
    }
    if let Some(line) = line {
        return Ok(Err(line));
    }
    let close = end.unwrap_or_else(|| refusal(Reason::NoHealthyServer, "there is no pool".to_owned()));
    Err(with_fallbacks(close, &way.target.pool, visit))
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
