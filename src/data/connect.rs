//! Servers in order of preference, until one takes the connection.
//!
//! When a server refuses or does not answer in time the next choice is asked at once, and the
//! client does not notice. When every server has been asked, those that refused are asked again
//! after a pause; all within `retry.attempts`, `retry.deadline` and the pool's budget. A client that
//! resets meanwhile ends the search; one that only ended its direction may still want an answer.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;

use super::accept::Places;
use super::admit::Admitted;
use super::visit::{Attempt, Visit};
use super::wait::{may_wait, wait};
use super::worker::Worker;
use crate::config::plan;
use crate::core::balance::{self, Ask, Choice, Field};
use crate::core::budget;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::live::{Pass, Permit, Retry};
use crate::net::{Either, Sock, either};
use crate::snapshot::{Pool, Server};

/// Most dials are over sooner, and then nobody had to be watched.
const WATCH_CLIENT_AFTER: Duration = Duration::from_millis(10);

/// Attempts that one client's record tells of. While it waits in a line there may be thousands; the
/// newest then takes the place of the one before it.
const ATTEMPTS_KEPT_MAX: usize = 100;

/// A client and the server that took it. It holds the places of both.
pub(super) struct Joined {
    pub(super) client: Sock,
    pub(super) server: Sock,
    pub(super) _places: Places,
    /// The server's place, given back when the connection ends.
    pub(super) _lease: Permit,
}

/// # Errors
/// How it ended when no server took the client, or the client did not wait.
pub(super) async fn connect(
    admitted: Admitted,
    pool: &Arc<Pool>,
    visit: &Visit,
    worker: &Worker,
) -> Result<Joined, Close> {
    let Admitted { sock: client, places } = admitted;
    // Whoever waits already comes first.
    let first = match pool.plan.queue.filter(|_| pool.live.line.length() > 0) {
        Some(queue) => Err((queue, "".into())),
        None => match search(&client, pool, Manner::Direct, visit, worker).await {
            Ok(found) => Ok(found),
            Err(end) => Err((may_wait(&end, pool).ok_or_else(|| end.clone())?, end.detail)),
        },
    };
    let (server, lease) = match first {
        Ok(found) => found,
        Err((queue, met)) => wait(&client, pool, queue, met, visit, worker).await?,
    };
    Ok(Joined { client, server, _places: places, _lease: lease })
}

/// A server's socket and the place on it.
pub(super) type Found = (Sock, Permit);

/// On whose behalf servers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// A client that has just come.
    Direct,
    /// One that waits in the line, which makes the pauses: each server is asked once.
    Queued,
}

/// # Errors
/// How it ended when no server took the client, or the client did not wait.
pub(super) async fn search(
    client: &Sock,
    pool: &Pool,
    manner: Manner,
    visit: &Visit,
    worker: &Worker,
) -> Result<Found, Close> {
    let search = Search::begin(pool, manner, visit, worker);
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
        if attempt > 0 {
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
}

impl<'a> Search<'a> {
    fn begin(pool: &'a Pool, manner: Manner, visit: &'a Visit, worker: &'a Worker) -> Self {
        Search {
            pool,
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
        if self.manner == Manner::Queued || self.refused.borrow().is_empty() {
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
            self.tried.borrow_mut().push(choice.server);
            let pool: &'a Pool = self.pool;
            let live = &pool.servers[choice.server].live;
            if let Some(lease) = live.room.take()
                && let Some(pass) = live.guard.enter(self.worker.net.now())
            {
                return Some((choice, lease, pass));
            }
        }
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
                let (tries, servers) = self.tally();
                if servers > 1 {
                    close.reason = Reason::AllAttemptsFailed;
                }
                if tries > 1 {
                    close.detail = format!(
                        "{tries} attempts on {servers} of the servers of pool `{pool}` and none took the \
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

    /// Attempts, and servers that they were made on.
    fn tally(&self) -> (usize, usize) {
        let attempts = self.visit.attempts.borrow();
        let mut servers: Vec<_> = attempts.iter().map(|attempt| Arc::as_ptr(&attempt.server)).collect();
        servers.sort_unstable();
        servers.dedup();
        (attempts.len(), servers.len())
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

fn refusal(reason: Reason, detail: String) -> Close {
    Close {
        by: By::Proxy,
        phase: Phase::Connect,
        how: How::Policy,
        reason,
        errno: None,
        detail: detail.into(),
    }
}

fn client_gone(error: &io::Error) -> Close {
    Close {
        by: By::Client,
        phase: Phase::Connect,
        how: How::Rst,
        reason: Reason::ClientReset,
        errno: error.raw_os_error(),
        detail: "the client reset the connection before a server had taken it".into(),
    }
}

/// Why one server did not take a connection.
struct Failure {
    reason: Reason,
    errno: Option<i32>,
    /// After "server NAME (ADDRESS)".
    told: String,
}

impl Failure {
    fn of(error: io::Error) -> Self {
        let errno = error.raw_os_error();
        let reason = match errno {
            None if error.kind() == io::ErrorKind::ConnectionRefused => Reason::ServerRefused,
            Some(libc::ECONNREFUSED) => Reason::ServerRefused,
            Some(libc::ECONNRESET) => Reason::ServerReset,
            Some(libc::ETIMEDOUT) => Reason::ConnectTimeout,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC) => {
                Reason::FdExhausted
            }
            Some(libc::EADDRNOTAVAIL) => Reason::PortExhausted,
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EACCES
                | libc::EPERM
                | libc::EINVAL
                | libc::EAFNOSUPPORT,
            ) => Reason::ServerUnreachable,
            _ => Reason::Internal,
        };
        Failure { reason, errno, told: format!("failed to connect: {error}") }
    }

    fn timed_out(limit: Duration) -> Self {
        let told = format!("did not answer within connect_timeout ({limit:?})");
        Failure { reason: Reason::ConnectTimeout, errno: None, told }
    }

    /// It speaks against the server, and not only against this machine.
    fn is_the_servers(&self) -> bool {
        use Reason::{ConnectTimeout, ServerRefused, ServerReset, ServerUnreachable};
        matches!(self.reason, ServerRefused | ServerReset | ConnectTimeout | ServerUnreachable)
    }

    /// The fault is this machine's, and another server would meet it too.
    fn is_ours(&self) -> bool {
        self.reason == Reason::FdExhausted
    }

    fn told_of(&self, server: &Server) -> String {
        format!("server `{}` ({}), {}", server.plan.name, server.plan.address, self.told)
    }

    fn close(&self, server: &Server) -> Close {
        let (by, how) = match self.reason {
            Reason::ServerRefused | Reason::ServerReset => (By::Server, How::Rst),
            Reason::ConnectTimeout => (By::Server, How::Timeout),
            Reason::ServerUnreachable => (By::Server, How::Error),
            _ => (By::Proxy, How::Error),
        };
        let detail = self.told_of(server).into();
        Close { by, phase: Phase::Connect, how, reason: self.reason, errno: self.errno, detail }
    }
}
