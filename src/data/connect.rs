//! From pool to pool until a server takes the connection: the canary where it is the client's, its own pool,
//! then those that this one falls back to.
//!
//! How a pool's servers are asked is `search.rs`. Where nobody is left at all, a pool may let its
//! clients wait: that is `wait.rs`.

use std::borrow::Cow;
use std::ptr;
use std::sync::Arc;

use super::accept::Places;
use super::admit::Admitted;
use super::failure::refusal;
use super::route::{Step, Way, route_again};
use super::search::Hunt;
use super::visit::{Side, Visit};
use super::wait::{Waited, may_wait, wait};
use super::worker::Worker;
use crate::config::plan;
use crate::core::outcome::{Close, Reason};
use crate::live::search::Manner;
use crate::live::{Permit, PoolLive, Turn};
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

/// A server that took the client, a place on it, and its pool.
pub(super) type Found = (Sock, Permit, Arc<Pool>);

/// The line that a client may wait in.
pub(super) struct Waiting {
    pub(super) pool: Arc<Pool>,
    pub(super) flow: Arc<Flow>,
    pub(super) queue: plan::Queue,
    /// What the client has met before; empty where others stood in the line already.
    pub(super) met: Cow<'static, str>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub(super) enum Asker<'a> {
    /// One that has just come. Where others wait for a pool it stands behind them: what comes after that
    /// pool in its way comes after it in theirs.
    Newcomer,
    /// One in that pool's line whose turn it is.
    Called { line: &'a PoolLive, turn: Turn },
}

impl Asker<'_> {
    /// How this one asks whom a newcomer asks in that manner.
    fn manner(self, manner: Manner) -> Manner {
        match (self, manner) {
            (Asker::Called { turn: Turn::Behind, .. }, _) => Manner::Trusted,
            // The line makes the pauses.
            (Asker::Called { turn: Turn::First, .. }, Manner::AgainAfterPauses) => Manner::Once,
            (_, manner) => manner,
        }
    }

    fn is_in_line_of(self, pool: &Pool) -> bool {
        matches!(self, Asker::Called { line, .. } if ptr::eq(line, &raw const *pool.live))
    }
}

/// From line to line, one client: as often as its way may have pools. Those who wait for pools of which none
/// lets anybody wait any more would otherwise show each other from one line to the next.
const MOVES_MAX: usize = 1 + plan::FALLBACKS_MAX;

const NOWHERE: &str = "no pool has a server, and none of those that it waited for lets it wait any more";

/// # Errors
/// How it ended when no server took the client, or the client did not wait.
pub(super) async fn connect(
    admitted: Admitted,
    way: Way<'_>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Joined, Close> {
    let Admitted { sock: client, places } = admitted;
    let (mut asked, mut moves) = (first_found(&client, way, Asker::Newcomer, visit, worker).await?, 0);
    let (server, lease, pool) = loop {
        let line = match asked {
            Ok(found) => break found,
            Err(line) => line,
        };
        // Boxed, as most find a server at once: they are not to keep the room for it.
        asked = match Box::pin(wait(&client, &line, visit, worker)).await? {
            Waited::Served(found) => break found,
            Waited::For(_) if moves == MOVES_MAX => {
                return Err(refusal(Reason::NoHealthyServer, NOWHERE.to_owned()));
            }
            Waited::For(other) => {
                moves += 1;
                Err(other)
            }
            Waited::Lost => Box::pin(ask_anew(&client, visit, worker)).await?,
        };
    };
    Ok(Joined { client, server, _places: places, _lease: lease, pool })
}

/// As one that has just come, by the routes as they are now.
async fn ask_anew(client: &Sock, visit: &Visit, worker: &Worker) -> Result<Result<Found, Waiting>, Close> {
    let world = worker.listener(&visit.listener.name);
    let world = world.ok_or_else(|| refusal(Reason::NoRoute, "the listener is gone".to_owned()))?;
    let way = route_again(&world, visit, worker)?;
    first_found(client, way, Asker::Newcomer, visit, worker).await
}

/// A server of the first pool of the way that has one for this client, ejected ones after all others; else
/// the first line in which it may wait, or how it ended. A canary without a server costs the client one
/// connect at most: neither does it wait for one there, nor does it end by it.
pub(super) async fn first_found(
    client: &Sock,
    way: Way<'_>,
    asker: Asker<'_>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Result<Found, Waiting>, Close> {
    let (mut end, mut line) = (None, None);
    // Pools that had nobody for this client; at most as many as the way has.
    let mut asked: Vec<Hunt<'_>> = Vec::new();
    for Step { pool, flow, manner, is_again } in way.steps() {
        let is_canary = manner == Manner::Canary;
        if !is_canary && visit.side.get() == Side::Canary {
            way.leave_canary(visit, worker);
        }
        // Whoever waits already comes first.
        let queue = pool.plan.queue.filter(|_| pool.live.line.length() > 0 && !asker.is_in_line_of(pool));
        match (queue, asker) {
            (Some(_), Asker::Newcomer) if is_canary => continue,
            (Some(queue), Asker::Newcomer) => {
                line.get_or_insert(waiting(pool, flow, queue, "".into()));
                break;
            }
            (Some(queue), Asker::Called { .. }) => {
                line.get_or_insert(waiting(pool, flow, queue, "".into()));
                continue;
            }
            (None, _) => {}
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
        match hunt.search(client, asker.manner(manner), visit, worker).await {
            Ok((server, lease)) => return Ok(Ok((server, lease, Arc::clone(pool)))),
            // Another pool would meet the same.
            Err(unserved) if matches!(unserved.close.reason, Reason::ClientReset | Reason::FdExhausted) => {
                return Err(unserved.close);
            }
            Err(_) if is_canary => {}
            Err(unserved) => {
                let is_better = line.is_none() || asker.is_in_line_of(pool);
                if let Some(queue) = may_wait(&unserved, pool).filter(|_| is_better) {
                    line = Some(waiting(pool, flow, queue, unserved.close.detail.clone()));
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

fn waiting(pool: &Arc<Pool>, flow: &Arc<Flow>, queue: plan::Queue, met: Cow<'static, str>) -> Waiting {
    Waiting { pool: Arc::clone(pool), flow: Arc::clone(flow), queue, met }
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
