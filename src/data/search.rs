//! The servers of one pool in order of preference, until one takes the connection.
//!
//! When a server refuses or does not answer in time the next choice is asked at once, and the
//! client does not notice. When every server has been asked, those that refused are asked again
//! after a pause. Whom to ask and when to stop says `live/search.rs`; here it is done. A client that
//! resets meanwhile ends the search; one that only ended its direction may still want an answer.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::failure::{Failure, Unserved, client_gone, refusal};
use super::visit::{Attempt, Visit};
use super::worker::Worker;
use crate::config::plan;
use crate::core::balance::{self, Ask};
use crate::core::outcome::{Close, Reason};
use crate::live::Permit;
use crate::live::search::{Manner, Next, Search, Step};
use crate::net::{Either, Sock, either};
use crate::snapshot::{Pool, Server};
use crate::telemetry::stats::Flow;

/// Most dials are over sooner, and then nobody had to be watched.
const WATCH_CLIENT_AFTER: Duration = Duration::from_millis(10);

/// Attempts that one client's record tells of. While it waits in a line there may be thousands; the
/// newest then takes the place of the one before it.
const ATTEMPTS_KEPT_MAX: usize = 100;

/// A server's socket and the place on it.
pub(super) type Found = (Sock, Permit);

/// The last attempt that failed.
type Last = Option<(Failure, Server)>;

/// One client's search in one pool. Where it ended without a server, it may be taken up again.
pub(super) struct Hunt<'p> {
    pool: &'p Pool,
    flow: &'p Arc<Flow>,
    walk: Search<'p>,
    last: Last,
}

impl<'p> Hunt<'p> {
    pub(super) fn begin(pool: &'p Pool, flow: &'p Arc<Flow>, visit: &Visit, worker: &Worker) -> Self {
        let walk = Search::begin(&pool.live, visit.client.ip(), ask(pool, visit), worker.net.now());
        Hunt { pool, flow, walk, last: None }
    }

    /// After another one for the same client; see [`Search::after`].
    pub(super) fn after(self, before: Hunt<'_>) -> Self {
        Hunt { walk: self.walk.after(before.walk), ..self }
    }

    pub(super) fn is_over_budget(&self) -> bool {
        self.walk.is_over_budget()
    }

    pub(super) fn is_in(&self, pool: &Pool) -> bool {
        Arc::ptr_eq(&self.pool.live, &pool.live)
    }

    /// Asks servers until one takes the client. What changes during a pause (a server comes up, the file is
    /// reloaded) is seen at once.
    ///
    /// # Errors
    /// How it ended when no server took the client, or the client did not wait.
    pub(super) async fn search(
        &mut self,
        client: &Sock,
        manner: Manner,
        visit: &Visit,
        worker: &Worker,
    ) -> Result<Found, Unserved> {
        let Hunt { pool, flow, walk, last } = self;
        let mut fresh = None::<Arc<Pool>>;
        loop {
            let current = fresh.clone();
            let pool = current.as_deref().unwrap_or(pool);
            let news = worker.news.rings();
            let round = Round { pool, flow, visit, worker };
            let end = match round.ask_all(walk, manner, last, client).await? {
                Asked::Found(found) => return Ok(found),
                Asked::Pause(end) => end,
                Asked::GaveUp => return Err(round.give_up(walk, last.as_ref())),
            };
            let left = end.saturating_duration_since(worker.net.now());
            let rings = pin!(poll_fn(|cx| worker.news.poll_after(news, cx)));
            let pause = pin!(worker.net.within(left, rings));
            if let Either::Right(error) = either(pause, pin!(client.hung_up())).await {
                return Err(client_gone(&error).into());
            }
            if let Some(now) = worker.pool(&pool.plan.name) {
                walk.on_change(&pool, &&*now);
                fresh = Some(now);
            }
        }
    }
}

/// What the choice goes by for this client: one turn, however many servers are asked.
fn ask(pool: &Pool, visit: &Visit) -> Ask {
    let plan = &pool.plan;
    let key = match plan.balance {
        plan::Balance::ConsistentHash => balance::key(plan.hash_key, visit.client, visit.local),
        _ => 0,
    };
    Ask { key, random: fastrand::u64(..), turn: pool.live.next_turn() }
}

/// How one round went.
enum Asked {
    Found(Found),
    /// Until then, or until there is news.
    Pause(Instant),
    GaveUp,
}

/// One walk over the servers of a pool as they are now.
struct Round<'a> {
    pool: &'a Pool,
    /// Where the connection is counted if a server of this pool is tried.
    flow: &'a Arc<Flow>,
    visit: &'a Visit,
    worker: &'a Worker,
}

impl<'a> Round<'a> {
    async fn ask_all(
        &self,
        walk: &mut Search<'_>,
        manner: Manner,
        last: &mut Last,
        client: &Sock,
    ) -> Result<Asked, Unserved> {
        loop {
            let now = self.worker.net.now();
            let next = match walk.next(&self.pool, manner, now, || fastrand::u64(..)) {
                Step::Ask(next) => next,
                Step::PauseUntil(end) => return Ok(Asked::Pause(end)),
                Step::GiveUp => {
                    walk.end(false, now);
                    return Ok(Asked::GaveUp);
                }
            };
            let server = &self.pool.servers[next.choice.server];
            match self.dial(server, next, client).await? {
                Ok(found) => {
                    walk.end(true, self.worker.net.now());
                    return Ok(Asked::Found(found));
                }
                Err(failure) if failure.is_ours() => return Err(failure.close(server).into()),
                Err(failure) => {
                    walk.on_failure(&server.live, failure.on_server());
                    *last = Some((failure, server.clone()));
                }
            }
        }
    }

    /// Connects to one server and notes how it went. The outer error ends the search.
    async fn dial(
        &self,
        server: &Server,
        next: Next<'_>,
        client: &Sock,
    ) -> Result<Result<Found, Failure>, Close> {
        let Next { choice, place, pass } = next;
        let (plan, net, stats) = (&self.pool.plan, &self.worker.net, server.live.stats.of(self.worker.index));
        self.visit.turn_to(self.flow);
        if !self.visit.attempts.borrow().is_empty() {
            stats.retries.add(1);
        }
        let begun = net.now();
        let dial = pin!(net.dial(server.plan.address));
        let dialled = pin!(net.within(plan.connect_timeout, dial));
        let hung_up = pin!(async {
            net.sleep(WATCH_CLIENT_AFTER).await;
            client.hung_up().await
        });
        let result = match either(dialled, hung_up).await {
            Either::Left(Some(Ok(_))) if self.worker.has_lost(self.pool, server) => Err(Failure::went_down()),
            Either::Left(Some(Ok(sock))) => Ok(sock),
            Either::Left(Some(Err(error))) => Err(Failure::of(error)),
            Either::Left(None) => Err(Failure::timed_out(plan.connect_timeout)),
            Either::Right(error) => return Err(client_gone(&error)),
        };
        let took = net.now().saturating_duration_since(begun);
        if plan.balance == plan::Balance::Fastest && !result.as_ref().is_err_and(Failure::is_ours) {
            // A server that refuses at once is not a fast one.
            let took = if result.is_ok() { took } else { took.max(plan.connect_timeout) };
            server.live.answers.observe(took, net.now());
        }
        match &result {
            Ok(_) => {
                stats.connections.add(1);
                stats.connect.observe(took);
                let since_accept = net.now().saturating_duration_since(self.visit.accepted);
                self.visit.connected_after.set(Some(since_accept));
                self.visit.is_watched.set(pass.connected());
            }
            Err(failure) => {
                stats.connect_failures.add(failure.reason);
                if failure.is_the_servers() {
                    pass.failed(took, net.now());
                }
            }
        }
        let error = result.as_ref().err().map(|failure| failure.reason);
        let attempt = Attempt { server: Arc::clone(&server.live), why: choice.why, took, error };
        let mut attempts = self.visit.attempts.borrow_mut();
        if attempts.len() >= ATTEMPTS_KEPT_MAX {
            attempts.pop();
        }
        attempts.reserve_exact(1); // nearly always the only one, and kept as long as the connection
        attempts.push(attempt);
        Ok(result.map(|sock| (sock, place)))
    }

    /// Nobody took the client: says why.
    fn give_up(&self, walk: &Search<'_>, last: Option<&(Failure, Server)>) -> Unserved {
        let (pool, has_full) = (&self.pool.plan.name, walk.has_full());
        if walk.is_over_budget() {
            self.pool.live.stats.of(self.worker.index).retries_refused.add(1);
        }
        let close = match last {
            Some((failure, server)) => self.tell(failure, server, walk.is_over_budget()),
            None if has_full => refusal(
                Reason::ServerLimit,
                format!("every healthy server of pool `{pool}` is at its max_connections"),
            ),
            None => refusal(Reason::NoHealthyServer, self.why_nobody()),
        };
        Unserved { close, has_full }
    }

    /// Tells of the last attempt, and of how many there were.
    fn tell(&self, failure: &Failure, server: &Server, is_over_budget: bool) -> Close {
        let mut close = failure.close(server);
        let (tries, servers, pools) = self.tally();
        let of =
            if pools > 1 { "several pools".to_owned() } else { format!("pool `{}`", self.pool.plan.name) };
        // What this machine is short of says nothing of the servers.
        if servers > 1 && failure.reason != Reason::PortExhausted {
            close.reason = Reason::AllAttemptsFailed;
        }
        if tries > 1 {
            close.detail = format!(
                "{tries} attempts on {servers} of the servers of {of} and none took the connection; the last, {}",
                failure.told_of(server)
            )
            .into();
        }
        if is_over_budget {
            close.detail = format!("{}; the pool's retry.budget is used up", close.detail).into();
        }
        close
    }

    /// Attempts, servers that they were made on, and pools of those.
    fn tally(&self) -> (usize, usize, usize) {
        let attempts = self.visit.attempts.borrow();
        let mut servers: Vec<_> = attempts.iter().map(|attempt| Arc::as_ptr(&attempt.server)).collect();
        servers.sort_unstable();
        servers.dedup();
        let mut pools: Vec<_> = attempts.iter().map(|attempt| attempt.server.pool.as_str()).collect();
        pools.sort_unstable();
        pools.dedup();
        (attempts.len(), servers.len(), pools.len())
    }

    fn why_nobody(&self) -> String {
        let (pool, now) = (&self.pool.plan.name, self.worker.net.now());
        let servers = || self.pool.servers.iter().filter(|server| server.plan.weight > 0);
        match servers().filter(|server| !server.live.guard.is_open(now)).count() {
            0 => format!("pool `{pool}` has no healthy server"),
            shut => format!(
                "pool `{pool}` has no healthy server; of {} the circuit breakers of {shut} are open",
                servers().count()
            ),
        }
    }
}
