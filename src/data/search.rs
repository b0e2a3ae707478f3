//! The servers of one pool in order of preference, until one takes the connection.
//!
//! When a server refuses or does not answer in time the next choice is asked at once, and the
//! client does not notice. When every server has been asked, those that refused are asked again
//! after a pause; all within what `retry.rs` allows. A client that
//! resets meanwhile ends the search; one that only ended its direction may still want an answer.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::failure::{Failure, Unserved, client_gone, refusal};
use super::retry::Story;
use super::visit::{Attempt, Visit};
use super::worker::Worker;
use crate::config::plan;
use crate::core::affinity;
use crate::core::balance::{self, Ask, Choice, Field};
use crate::core::outcome::{Close, Reason};
use crate::core::slow_start::Share;
use crate::live::{Pass, Permit, ServerLive, Tie};
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

/// Asks servers until one takes the client. What changes during a pause (a server comes up, the file is
/// reloaded) is seen at once.
///
/// # Errors
/// How it ended when no server took the client, or the client did not wait.
pub(super) async fn search(
    client: &Sock,
    pool: &Pool,
    flow: &Arc<Flow>,
    manner: Manner,
    visit: &Visit,
    worker: &Worker,
) -> Result<Found, Unserved> {
    let story = Story::begin(&pool.live, worker.net.now());
    let ask = ask(pool, visit);
    let (mut fresh, mut pause_end) = (None::<Arc<Pool>>, None);
    loop {
        let current = fresh.clone();
        let pool = current.as_deref().unwrap_or(pool);
        if pause_end.is_some_and(|end| end <= worker.net.now()) {
            story.forgive();
            pause_end = None;
        }
        let news = worker.news.rings();
        let round = Round::begin(pool, flow, &story, visit, worker);
        match round.ask_all(&ask, client).await? {
            Asked::Found(found) => {
                story.end_retries(true, worker.net.now());
                return Ok(found);
            }
            Asked::NobodyLeft
                if manner == Manner::AgainAfterPauses && story.has_refused() && !round.is_worth_waiting() => {
            }
            Asked::NobodyLeft | Asked::Enough => return Err(round.give_up()),
        }
        let Some(end) = pause_end.or_else(|| story.next_pause(&pool.plan.retry, worker.net.now())) else {
            return Err(round.give_up());
        };
        pause_end = Some(end);
        let left = end.saturating_duration_since(worker.net.now());
        let rings = pin!(poll_fn(|cx| worker.news.poll_after(news, cx)));
        let pause = pin!(worker.net.within(left, rings));
        if let Either::Right(error) = either(pause, pin!(client.hung_up())).await {
            return Err(client_gone(&error).into());
        }
        if let Some(now) = worker.pool(&pool.plan.name) {
            story.forgive_risen(pool, &now);
            fresh = Some(now);
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
    NobodyLeft,
    /// There may be others, but not for this client.
    Enough,
}

/// A server to try, a place on it, and leave to try it.
type Next<'a> = (Choice, Permit, Pass<'a>);

/// One walk over the servers of a pool as they are now.
struct Round<'a, 's> {
    pool: &'a Pool,
    /// Where the connection is counted if a server of this pool is tried.
    flow: &'a Arc<Flow>,
    story: &'a Story<'s>,
    visit: &'a Visit,
    worker: &'a Worker,
    /// Servers asked already, or found full. At most as many as the pool has.
    tried: RefCell<Vec<usize>>,
    /// A server that could be asked had no room.
    has_full: Cell<bool>,
    /// Nobody else is left: servers that are ejected, or have just failed others, are asked, too.
    takes_suspects: Cell<bool>,
}

impl Field for Round<'_, '_> {
    fn is_open(&self, server: usize) -> bool {
        let (live, now) = (&self.pool.servers[server].live, self.worker.net.now());
        let is_new = !self.tried.borrow().contains(&server) && !self.story.has_asked(live);
        let is_sound = self.takes_suspects.get() || !live.guard.is_suspect(now);
        if !(is_new && is_sound && live.guard.is_open(now)) {
            return false;
        }
        let is_full = live.room.is_full();
        if is_full {
            self.has_full.set(true);
        }
        !is_full
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

impl<'a, 's> Round<'a, 's> {
    fn begin(
        pool: &'a Pool,
        flow: &'a Arc<Flow>,
        story: &'a Story<'s>,
        visit: &'a Visit,
        worker: &'a Worker,
    ) -> Self {
        Round {
            pool,
            flow,
            story,
            visit,
            worker,
            tried: RefCell::default(),
            has_full: Cell::new(false),
            takes_suspects: Cell::new(false),
        }
    }

    async fn ask_all(&self, ask: &Ask, client: &Sock) -> Result<Asked, Unserved> {
        loop {
            let Some((choice, lease, pass)) = self.choose(ask) else { return Ok(Asked::NobodyLeft) };
            if !self.story.may_try(&self.pool.plan.retry, self.worker) {
                return Ok(Asked::Enough);
            }
            self.story.on_attempt();
            let server = &self.pool.servers[choice.server];
            if !self.visit.attempts.borrow().is_empty() {
                server.live.stats.of(self.worker.index).retries.add(1);
            }
            match self.dial(server, choice, pass, client).await? {
                Ok(sock) => return Ok(Asked::Found((sock, lease))),
                Err(failure) if failure.is_ours() => return Err(failure.close(server).into()),
                Err(failure) => self.story.on_failure(server, failure),
            }
        }
    }

    /// A server that could be asked was full, and the pool lets clients wait for it.
    fn is_worth_waiting(&self) -> bool {
        self.has_full.get() && self.pool.plan.queue.is_some()
    }

    /// A server under suspicion is better than none: what is passed over while others work may be all that
    /// is left when those go down. Better still is one that will have room, where clients may wait for it.
    fn pick(&self, ask: &Ask) -> Option<Choice> {
        let pick = || self.pool.chooser.pick(ask, self);
        pick().or_else(|| {
            // Ejected servers are out for long, those in doubt for seconds.
            let are_in_doubt = self.pool.plan.outlier_detection.is_none();
            if (are_in_doubt && self.is_worth_waiting()) || self.takes_suspects.replace(true) {
                None
            } else {
                pick()
            }
        })
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
            let Some(lease) = live.room.take() else {
                self.has_full.set(true); // another worker was quicker
                continue;
            };
            if let Some(pass) = live.guard.enter(self.worker.net.now()) {
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

    /// A server that is only full just now, or in doubt for another client's sake. One that was tried in vain,
    /// or is ejected or cut off by its breaker, has lost its clients.
    fn rests(&self, server: usize) -> bool {
        let (live, now) = (&self.pool.servers[server].live, self.worker.net.now());
        let is_sound = !live.guard.is_ejected(now) && live.guard.is_open(now);
        is_sound && !self.tried.borrow().contains(&server) && !self.story.has_asked(live)
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
        Ok(result)
    }

    /// Nobody took the client: what it tried was in vain. Says why.
    fn give_up(&self) -> Unserved {
        self.story.end_retries(false, self.worker.net.now());
        let (pool, has_full) = (&self.pool.plan.name, self.has_full.get());
        let close = match self.story.last.take() {
            Some((failure, server)) => self.tell(&failure, &server),
            None if has_full => refusal(
                Reason::ServerLimit,
                format!("every healthy server of pool `{pool}` is at its max_connections"),
            ),
            None => refusal(Reason::NoHealthyServer, self.why_nobody()),
        };
        Unserved { close, has_full }
    }

    /// Tells of the last attempt, and of how many there were.
    fn tell(&self, failure: &Failure, server: &Server) -> Close {
        let mut close = failure.close(server);
        let (tries, servers, pools) = self.tally();
        let of =
            if pools > 1 { "several pools".to_owned() } else { format!("pool `{}`", self.pool.plan.name) };
        if servers > 1 {
            close.reason = Reason::AllAttemptsFailed;
        }
        if tries > 1 {
            close.detail = format!(
                "{tries} attempts on {servers} of the servers of {of} and none took the connection; the last, {}",
                failure.told_of(server)
            )
            .into();
        }
        if self.story.is_over_budget.get() {
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
