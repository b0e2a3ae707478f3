//! Waits in the pool's line until a server takes the client, or it has waited long enough.
//!
//! Whose turn it is says `live/line.rs`. Who is called asks servers as `search.rs` does, and again
//! whenever something has changed (a place was given back, a server came up, the file was
//! reloaded) or a pause has passed, since a server that nobody checks tells nobody that it is back.

use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::connect::Waiting;
use super::failure::Unserved;
use super::search::{Found, Hunt};
use super::visit::Visit;
use super::worker::Worker;
use crate::config::plan::{OnNoServer, Queue};
use crate::core::budget;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::live::Ticket;
use crate::live::search::Manner;
use crate::net::{Either, Sock, either};
use crate::snapshot::Pool;
use crate::telemetry::stats::Flow;

/// May a client that met this end wait instead.
pub(super) fn may_wait(end: &Unserved, pool: &Pool) -> Option<Queue> {
    use Reason::{
        AllAttemptsFailed, ConnectTimeout, NoHealthyServer, ServerLimit, ServerMarkedDown, ServerRefused,
        ServerReset, ServerUnreachable,
    };
    let queue = pool.plan.queue?;
    let is_worth_it = match end.close.reason {
        ServerLimit => true,
        NoHealthyServer | AllAttemptsFailed | ServerRefused | ServerReset | ServerUnreachable
        | ServerMarkedDown | ConnectTimeout => end.has_full || pool.plan.on_no_server == OnNoServer::Queue,
        _ => false,
    };
    is_worth_it.then_some(queue)
}

/// # Errors
/// `queue_full`, `queue_timeout`, or how it ended otherwise.
pub(super) async fn wait(
    client: &Sock,
    line: Waiting<'_>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Found, Close> {
    let Waiting { pool, flow, queue, met } = line;
    visit.turn_to(flow); // whatever becomes of it, it waited for this pool
    let (name, begun) = (&pool.plan.name, worker.net.now());
    let Some(ticket) = pool.live.line.join(visit.class, visit.client.ip(), queue.max) else {
        let detail = format!("{} clients wait for pool `{name}` already{}", queue.max, because(&met));
        return Err(refusal(Reason::QueueFull, How::Policy, detail));
    };
    let met = RefCell::new(met);
    let end = {
        let asked = pin!(ask_in_turn(client, (pool, flow), &ticket, &met, visit, worker));
        let asked = pin!(worker.net.within(queue.timeout, asked));
        let displaced = pin!(poll_fn(|cx| ticket.poll_displaced(cx)));
        let hung_up = pin!(client.hung_up());
        either(asked, either(hung_up, displaced)).await
    };
    let found = match end {
        Either::Left(Some(found)) => found.inspect(|_| ticket.served()),
        Either::Left(None) => {
            let waited = format!("waited {:?} for a server of pool `{name}`", queue.timeout);
            let detail = format!("{waited}{}", because(&met.borrow()));
            Err(refusal(Reason::QueueTimeout, How::Timeout, detail))
        }
        Either::Right(Either::Left(error)) => Err(gone(&error)),
        Either::Right(Either::Right(())) => {
            pool.live.stats.of(worker.index).displaced.add(visit.class);
            Err(refusal(Reason::QueueFull, How::Policy, displaced(visit, queue, name)))
        }
    };
    let waited = worker.net.now().saturating_duration_since(begun);
    visit.queued_for.set(Some(waited));
    pool.live.stats.of(worker.index).queue_wait.observe(waited);
    found
}

async fn ask_in_turn(
    client: &Sock,
    (before, flow): (&Arc<Pool>, &Arc<Flow>),
    ticket: &Ticket,
    met: &RefCell<Cow<'static, str>>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Found, Close> {
    let mut times = 0_u32;
    loop {
        poll_fn(|cx| ticket.poll_called(cx)).await;
        let news = worker.news.rings();
        let pool = worker.pool(&before.plan.name).unwrap_or_else(|| Arc::clone(before));
        let full = full_servers(&pool);
        let mut hunt = Hunt::begin(&pool, flow, visit, worker);
        match hunt.search(client, Manner::Once, visit, worker).await {
            Ok(found) => return Ok(found),
            Err(end) if may_wait(&end, &pool).is_none() && !is_ours(&end.close) => return Err(end.close),
            Err(end) => {
                ticket.in_vain();
                met.replace(end.close.detail);
            }
        }
        let full = [full, full_servers(&pool)].concat();
        let changed = poll_fn(|cx| poll_change(&pool, &full, news, worker, cx));
        let retry = pool.plan.retry;
        let pause = budget::pause(retry.backoff, retry.max_backoff, times, fastrand::u64(..));
        worker.net.within(pause, pin!(changed)).await;
        times = times.saturating_add(1);
    }
}

/// This machine was short of something. It may be over in a moment, and is no reason to lose a place.
fn is_ours(end: &Close) -> bool {
    matches!(end.reason, Reason::FdExhausted | Reason::PortExhausted | Reason::Internal)
}

/// Servers that had no place left.
fn full_servers(pool: &Pool) -> Vec<usize> {
    let servers = pool.servers.iter().enumerate();
    servers.filter(|(_, server)| server.live.room.is_full()).map(|(place, _)| place).collect()
}

/// Ends when one of those has a place, or there is a new snapshot.
fn poll_change(pool: &Pool, full: &[usize], news: u64, worker: &Worker, cx: &mut Context<'_>) -> Poll<()> {
    let has_room = |server: &usize| pool.servers[*server].live.room.poll_free(cx).is_ready();
    if full.iter().any(has_room) {
        return Poll::Ready(());
    }
    worker.news.poll_after(news, cx)
}

fn displaced(visit: &Visit, queue: Queue, pool: &str) -> String {
    let (class, max) = (visit.class, queue.max);
    format!(
        "{max} clients wait for pool `{pool}`, and one of a higher priority than {class} came and took its place"
    )
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
