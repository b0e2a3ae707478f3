//! Waits in the pool's line until a server takes the client, or it has waited long enough.
//!
//! Whose turn it is says `live/line.rs`. Who is called asks the pools of its way as `connect.rs` does, and
//! again whenever something has changed (a place was given back, a server came up, the file was
//! reloaded) or a pause has passed, since a server that nobody checks tells nobody that it is back.

use std::borrow::Cow;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::pin;
use std::ptr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::connect::{Asker, Found, Waiting, first_found};
use super::failure::Unserved;
use super::route::{Way, route_again};
use super::visit::Visit;
use super::worker::Worker;
use crate::config::plan::{OnNoServer, Queue};
use crate::core::budget;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::live::{PoolLive, ServerLive, Taker, Ticket, Turn};
use crate::net::{Either, Sock, either};
use crate::snapshot::Pool;

/// How long a client whose turn it is may ask before the next one asks, too: longer than it takes to
/// connect where servers are near, and too short to be noticed in a line.
const KEPT_AFTER: Duration = Duration::from_millis(50);

/// May a client that met this end wait instead.
pub(super) fn may_wait(end: &Unserved, pool: &Pool) -> Option<Queue> {
    use Reason::{
        AllAttemptsFailed, ConnectTimeout, NoHealthyServer, PortExhausted, ServerLimit, ServerMarkedDown,
        ServerRefused, ServerReset, ServerUnreachable,
    };
    let queue = pool.plan.queue?;
    let is_worth_it = match end.close.reason {
        ServerLimit | PortExhausted => true, // others will end
        NoHealthyServer | AllAttemptsFailed | ServerRefused | ServerReset | ServerUnreachable
        | ServerMarkedDown | ConnectTimeout => end.has_full || pool.plan.on_no_server == OnNoServer::Queue,
        _ => false,
    };
    is_worth_it.then_some(queue)
}

/// How a wait in one line ended, if the client lives.
pub(super) enum Waited {
    Served(Found),
    /// Its pool lets nobody wait any more, and one of the others does.
    For(Waiting),
    /// A reload has taken its way to the pool away.
    Lost,
}

/// In all the lines that it stands in one after the other, a client waits no longer than its last one allows.
///
/// # Errors
/// `queue_full`, `queue_timeout`, or how it ended otherwise.
pub(super) async fn wait(
    client: &Sock,
    line: &Waiting,
    visit: &Visit,
    worker: &Worker,
) -> Result<Waited, Close> {
    let Waiting { pool, flow, queue, met } = line;
    visit.turn_to(flow); // whatever becomes of it, it waited for this pool
    let name = &pool.plan.name;
    let Some(ticket) = pool.live.line.join(visit.class, visit.client.ip(), queue.max) else {
        let detail = format!("{} clients wait for pool `{name}` already{}", queue.max, because(met));
        return Err(refusal(Reason::QueueFull, How::Policy, detail));
    };
    let _stay = Stay { pool, begun: worker.net.now(), visit, worker };
    let met = RefCell::new(met.clone());
    let end = {
        let asked = pin!(ask_in_turn(client, &pool.live, &ticket, &met, visit, worker));
        let before = visit.queued_for.get().unwrap_or_default();
        let asked = pin!(worker.net.within(queue.timeout.saturating_sub(before), asked));
        let displaced = pin!(poll_fn(|cx| ticket.poll_displaced(cx)));
        let hung_up = pin!(client.hung_up());
        either(asked, either(hung_up, displaced)).await
    };
    match end {
        Either::Left(Some(Ok(Waited::Served(found)))) => {
            ticket.served();
            Ok(Waited::Served(found))
        }
        // Where it resets while its turn has come, the search may see it first.
        Either::Left(Some(Err(end))) if end.reason == Reason::ClientReset => {
            Err(Close { phase: Phase::Queue, ..end })
        }
        Either::Left(Some(end)) => end,
        Either::Left(None) => {
            let waited = format!("waited {:?} for a server of pool `{name}`", queue.timeout);
            let detail = format!("{waited}{}", because(&met.borrow()));
            Err(refusal(Reason::QueueTimeout, How::Timeout, detail))
        }
        Either::Right(Either::Left(error)) => Err(gone(&error)),
        Either::Right(Either::Right(taker)) => {
            pool.live.stats.of(worker.index).displaced.add(visit.class);
            Err(refusal(Reason::QueueFull, How::Policy, displaced(taker, visit, *queue, name)))
        }
    }
}

/// A client's time in the line, noted when it is over: also where the client is cut, and nobody is left to say
/// so.
struct Stay<'a> {
    pool: &'a Pool,
    begun: Instant,
    visit: &'a Visit,
    worker: &'a Worker,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        let waited = self.worker.net.now().saturating_duration_since(self.begun);
        let before = self.visit.queued_for.get().unwrap_or_default();
        self.visit.queued_for.set(Some(before + waited));
        self.pool.live.stats.of(self.worker.index).queue_wait.observe(waited);
    }
}

/// Asks the pools of the client's way, as they are then, whenever it is its turn.
async fn ask_in_turn(
    client: &Sock,
    line: &PoolLive,
    ticket: &Ticket,
    met: &RefCell<Cow<'static, str>>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Waited, Close> {
    let mut times = 0_u32;
    loop {
        let turn = poll_fn(|cx| ticket.poll_called(cx)).await;
        let news = worker.news.rings();
        let Some(world) = worker.listener(&visit.listener.name) else { return Ok(Waited::Lost) };
        let way = route_again(&world, visit, worker)?;
        if !way.leads_to(line) {
            return Ok(Waited::Lost);
        }
        let full = full_servers(way);
        let asked = {
            let asked = pin!(first_found(client, way, Asker::Called { line, turn }, visit, worker));
            let kept = pin!(async {
                worker.net.sleep(KEPT_AFTER).await;
                ticket.is_kept();
                pending::<Infallible>().await
            });
            match either(asked, kept).await {
                Either::Left(asked) => asked,
                Either::Right(never) => match never {},
            }
        };
        match asked {
            Ok(Ok(found)) => return Ok(Waited::Served(found)),
            // Whom this one did not ask the one before it does.
            Ok(Err(other)) if turn == Turn::First && !ptr::eq(&raw const *other.pool.live, line) => {
                return Ok(Waited::For(other));
            }
            Err(end) if turn == Turn::First && !is_ours(&end) => return Err(end),
            Ok(Err(Waiting { met: why, .. })) | Err(Close { detail: why, .. }) => {
                ticket.in_vain();
                met.replace(why);
            }
        }
        let full = [full, full_servers(way)].concat();
        let changed = poll_fn(|cx| poll_change(&full, news, worker, cx));
        let retry = way.target.pool.plan.retry;
        let pause = budget::pause(retry.backoff, retry.max_backoff, times, fastrand::u64(..));
        worker.net.within(pause, pin!(changed)).await;
        times = times.saturating_add(1);
    }
}

/// This machine was short of something. It may be over in a moment, and is no reason to lose a place.
fn is_ours(end: &Close) -> bool {
    matches!(end.reason, Reason::FdExhausted | Reason::PortExhausted | Reason::Internal)
}

/// Servers that have no place left.
fn full_servers(way: Way<'_>) -> Vec<Arc<ServerLive>> {
    let servers = way.pools().flat_map(|pool| &pool.servers);
    servers.filter(|server| server.live.room.is_full()).map(|server| Arc::clone(&server.live)).collect()
}

/// Ends when one of those has a place, or there is a new snapshot.
fn poll_change(full: &[Arc<ServerLive>], news: u64, worker: &Worker, cx: &mut Context<'_>) -> Poll<()> {
    if full.iter().any(|server| server.room.poll_free(cx).is_ready()) {
        return Poll::Ready(());
    }
    worker.news.poll_after(news, cx)
}

fn displaced(taker: Taker, visit: &Visit, queue: Queue, pool: &str) -> String {
    let from = match taker {
        Taker::HigherClass => format!("of a higher priority than {}", visit.class),
        Taker::OtherSource => "from another source, of which fewer wait,".to_owned(),
    };
    format!("{} clients wait for pool `{pool}`, and one {from} came and took its place", queue.max)
}

fn because(met: &str) -> String {
    if met.is_empty() { String::new() } else { format!(": {met}") }
}

fn refusal(reason: Reason, how: How, detail: String) -> Close {
    Close { by: By::Proxy, phase: Phase::Queue, how, reason, errno: None, detail: detail.into() }
}

fn gone(error: &io::Error) -> Close {
    Close {
        by: By::Client,
        phase: Phase::Queue,
        how: How::Rst,
        reason: Reason::ClientReset,
        errno: error.raw_os_error(),
        detail: "the client reset the connection while it waited for a server".into(),
    }
}
