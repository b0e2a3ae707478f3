//! The servers of one pool in order of preference, until one takes the connection.
//!
//! When a server refuses or does not answer in time the next choice is asked at once, and the
//! client does not notice. When every server has been asked, those that refused are asked again
//! after a pause; all within `retry.attempts`, `retry.deadline` and the pool's budget. A client that
//! resets meanwhile ends the search; one that only ended its direction may still want an answer.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::failure::{Failure, client_gone, refusal};
use super::visit::{Attempt, Visit};
use super::worker::Worker;
use crate::config::plan;
use crate::core::affinity;
use crate::core::balance::{self, Ask, Choice, Field};
use crate::core::budget;
use crate::core::outcome::{Close, Reason};
use crate::core::slow_start::Share;
use crate::live::{Pass, Permit, Retry, ServerLive, Tie};
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

/// How often a server is asked for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Again after a pause, where it refused: nobody else is left.
    AgainAfterPauses,
    /// Once: there is another pool to ask, or the client waits in the line, which makes the pauses.
    Once,
}

/// # Errors
/// How it ended when no server took the client, or the client did not wait.
pub(super) async fn search(
    client: &Sock,
    pool: &Pool,
    flow: &Arc<Flow>,
    manner: Manner,
    visit: &Visit,
    worker: &Worker,
) -> Result<Found, Close> {
    let search = Search::begin(pool, flow, manner, visit, worker);
    let ask = search.ask();
    let mut last = None;
    for attempt in 0..pool.plan.retry.attempts {
        let retry = match attempt {
            0 => None,
            _ => match search.retry() {
                Some(retry) => Some(retry),
                None => break,
            },
        };
        let Some((choice, lease, pass)) = search.next(&ask, client).await? else { break };
        let server = &pool.servers[choice.server];
        if !visit.attempts.borrow().is_empty() {
            server.live.stats.of(worker.index).retries.add(1);
        }
        let dialled = search.dial(server, choice, pass, client).await?;
        if let Some(retry) = retry {
            retry.end(dialled.is_ok());
        }
        match dialled {
            Ok(sock) => return Ok((sock, lease)),
            Err(failure) if failure.is_ours() => return Err(failure.close(server)),
            Err(failure) => {
                search.note(choice.server, &failure);
                last = Some((failure, server));
            }
        }
    }
    Err(search.give_up(last))
}

/// A server to try, a place on it, and leave to try it.
type Next<'a> = (Choice, Permit, Pass<'a>);

/// The search of one client for a server.
struct Search<'a> {
    pool: &'a Pool,
    /// Where the connection is counted if a server of this pool is tried.
    flow: &'a Arc<Flow>,
    manner: Manner,
    visit: &'a Visit,
    worker: &'a Worker,
    begun: Instant,
    /// Servers asked already, or found full. At most as many as the pool has.
    tried: RefCell<Vec<usize>>,
    /// Those of them that refused: they may be asked again after a pause.
    refused: RefCell<Vec<usize>>,
    /// Pauses made so far.
    pauses: Cell<u32>,
    is_over_budget: Cell<bool>,
    /// Nobody else is left: ejected servers are asked, too.
    takes_ejected: Cell<bool>,
}

impl Field for Search<'_> {
    fn is_open(&self, server: usize) -> bool {
        let live = &self.pool.servers[server].live;
        let (is_new, now) = (!self.tried.borrow().contains(&server), self.worker.net.now());
        let is_in = self.takes_ejected.get() || !live.guard.is_ejected(now);
        is_new && is_in && !live.room.is_full() && live.guard.is_open(now)
    }

    fn active(&self, server: usize) -> usize {
        self.pool.servers[server].live.room.taken()
    }

    fn latency(&self, server: usize) -> Option<u32> {
        self.pool.servers[server].live.answers.us(self.worker.net.now())
    }

    fn share(&self, server: usize) -> Share {
        self.pool.share(&self.pool.servers[server], || self.worker.net.now())
    }
}

impl<'a> Search<'a> {
    fn begin(
        pool: &'a Pool,
        flow: &'a Arc<Flow>,
        manner: Manner,
        visit: &'a Visit,
        worker: &'a Worker,
    ) -> Self {
        Search {
            pool,
            flow,
            manner,
            visit,
            worker,
            begun: worker.net.now(),
            tried: RefCell::default(),
            refused: RefCell::default(),
            pauses: Cell::new(0),
            is_over_budget: Cell::new(false),
            takes_ejected: Cell::new(false),
        }
    }

    /// Leave to try once more, while there is time and the pool's budget bears it.
    fn retry(&self) -> Option<Retry<'a>> {
        let (plan, now) = (self.pool.plan.retry, self.worker.net.now());
        if now.saturating_duration_since(self.begun) >= plan.deadline {
            return None;
        }
        let retry = self.pool.live.retry(plan.budget, now);
        if retry.is_none() {
            self.is_over_budget.set(true);
            self.pool.live.stats.of(self.worker.index).retries_refused.add(1);
        }
        retry
    }

    /// The next server to try: one that was not asked yet, at once; else one that refused, after a
    /// pause. One that did not answer has cost this client enough.
    async fn next(&self, ask: &Ask, client: &Sock) -> Result<Option<Next<'a>>, Close> {
        if let Some(next) = self.choose(ask) {
            return Ok(Some(next));
        }
        let (plan, net) = (self.pool.plan.retry, &self.worker.net);
        if self.manner == Manner::Once || self.refused.borrow().is_empty() {
            return Ok(None);
        }
        let pause = budget::pause(plan.backoff, plan.max_backoff, self.pauses.get(), fastrand::u64(..));
        self.pauses.set(self.pauses.get() + 1);
        if net.now() + pause >= self.begun + plan.deadline {
            return Ok(None);
        }
        if let Some(error) = net.within(pause, pin!(client.hung_up())).await {
            return Err(client_gone(&error));
        }
        let refused = self.refused.take();
        self.tried.borrow_mut().retain(|server| !refused.contains(server));
        Ok(self.choose(ask))
    }

    /// How a server did not take the client.
    fn note(&self, server: usize, failure: &Failure) {
        if matches!(failure.reason, Reason::ServerRefused | Reason::ServerReset) {
            self.refused.borrow_mut().push(server);
        }
    }

    fn ask(&self) -> Ask {
        let plan = &self.pool.plan;
        let key = match plan.balance {
            plan::Balance::ConsistentHash => balance::key(plan.hash_key, self.visit.client, self.visit.local),
            _ => 0,
        };
        Ask { key, random: fastrand::u64(..), turn: self.pool.live.next_turn() }
    }

    /// An ejected server is better than none: what is ejected while others work may be all that is
    /// left when those go down.
    fn pick(&self, ask: &Ask) -> Option<Choice> {
        let pick = || self.pool.chooser.pick(ask, self);
        pick().or_else(|| if self.takes_ejected.replace(true) { None } else { pick() })
    }

    /// The next server, with a place on it and leave to try it. Another worker may take the last of
    /// either between the choice and the taking; then the choice is made again without that server.
    fn choose(&self, ask: &Ask) -> Option<Next<'a>> {
        loop {
            let choice = self.pick(ask)?;
            let choice = self.known_server(choice).unwrap_or(choice);
            self.tried.borrow_mut().push(choice.server);
            let pool: &'a Pool = self.pool;
            let live = &pool.servers[choice.server].live;
            if let Some(lease) = live.room.take()
                && let Some(pass) = live.guard.enter(self.worker.net.now())
            {
                self.visit.turn_to(self.flow);
                return Some((choice, lease, pass));
            }
        }
    }

    /// The server that this client is known to, where the pool keeps an affinity and that server can serve.
    fn known_server(&self, chosen: Choice) -> Option<Choice> {
        let affinity = self.pool.plan.affinity?;
        let key = match affinity.by {
            affinity::By::SourceIp => affinity::Key::source(self.visit.client.ip()),
        };
        let servers = &self.pool.servers;
        let proposed = &servers[chosen.server].live;
        let tie = |known: &Weak<ServerLive>| {
            let place = servers.iter().position(|server| Weak::as_ptr(known) == Arc::as_ptr(&server.live));
            let again = place.and_then(|place| self.pool.chooser.again(place, &chosen));
            match again {
                Some(again) if self.is_open(again.server) => Tie::Holds(again),
                Some(again) if self.rests(again.server) => Tie::Rests,
                _ => Tie::Breaks,
            }
        };
        self.pool.live.affinity.settle(key, affinity.ttl, self.worker.net.now(), proposed, tie)
    }

    /// A server that is only full just now. One that was tried in vain, or is ejected or cut off by its
    /// breaker, has lost its clients.
    fn rests(&self, server: usize) -> bool {
        let (live, now) = (&self.pool.servers[server].live, self.worker.net.now());
        let is_sound = !live.guard.is_ejected(now) && live.guard.is_open(now);
        is_sound && !self.tried.borrow().contains(&server)
    }

    /// Connects to one server and notes how it went. The outer error ends the search.
    async fn dial(
        &self,
        server: &Server,
        choice: Choice,
        pass: Pass<'_>,
        client: &Sock,
    ) -> Result<Result<Sock, Failure>, Close> {
        let (plan, net) = (&self.pool.plan, &self.worker.net);
        let begun = net.now();
        let dial = pin!(net.dial(server.plan.address));
        let dialled = pin!(net.within(plan.connect_timeout, dial));
        let hung_up = pin!(async {
            net.sleep(WATCH_CLIENT_AFTER).await;
            client.hung_up().await
        });
        let result = match either(dialled, hung_up).await {
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
        let stats = server.live.stats.of(self.worker.index);
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
                    pass.failed(net.now());
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
        Ok(result)
    }

    /// Nobody took the client: says why.
    fn give_up(&self, last: Option<(Failure, &Server)>) -> Close {
        let pool = &self.pool.plan.name;
        match last {
            Some((failure, server)) => {
                let mut close = failure.close(server);
                let (tries, servers, pools) = self.tally();
                let of = if pools > 1 { "several pools".to_owned() } else { format!("pool `{pool}`") };
                if servers > 1 {
                    close.reason = Reason::AllAttemptsFailed;
                }
                if tries > 1 {
                    close.detail = format!(
                        "{tries} attempts on {servers} of the servers of {of} and none took the \
                         connection; the last, {}",
                        failure.told_of(server)
                    )
                    .into();
                }
                if self.is_over_budget.get() {
                    close.detail = format!("{}; the pool's retry.budget is used up", close.detail).into();
                }
                close
            }
            None if self.is_any_full() => refusal(
                Reason::ServerLimit,
                format!("every healthy server of pool `{pool}` is at its max_connections"),
            ),
            None => refusal(Reason::NoHealthyServer, self.why_nobody()),
        }
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

    fn is_any_full(&self) -> bool {
        use crate::core::health::State;
        let servers = self.pool.servers.iter().filter(|server| server.plan.weight > 0);
        servers.into_iter().any(|server| server.state != State::Down && server.live.room.is_full())
    }
}
