//! Servers in order of preference, until one takes the connection; and where none of a pool does,
//! those of the pool that it falls back to.
//!
//! A server that refuses or does not answer in time is not asked again for this client; the
//! next choice is, within `retry.attempts`, and the client does not notice. A client that
//! resets meanwhile ends the search; one that only ended its direction may still want an answer.

use std::cell::RefCell;
use std::io;
use std::iter;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::libc;

use super::accept::Places;
use super::admit::Admitted;
use super::visit::{Attempt, Visit};
use super::worker::Worker;
use crate::config::plan;
use crate::core::affinity;
use crate::core::balance::{self, Ask, Choice, Field};
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::core::slow_start::Share;
use crate::live::{Permit, ServerLive, Tie};
use crate::net::{Either, Sock, either};
use crate::snapshot::{Listener, Pool, Server};
use crate::telemetry::stats::Flow;

/// Most dials are over sooner, and then nobody had to be watched.
const WATCH_CLIENT_AFTER: Duration = Duration::from_millis(10);

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
    let flows = iter::once(None).chain(listener.fallback_flows.iter().map(Some));
    let mut end = None;
    for (pool, flow) in pool.chain().zip(flows) {
        let tries = visit.attempts.borrow().len();
        let search = Search { pool, flow, visit, worker, tried: RefCell::default() };
        match search.run(&client).await? {
            Ok((server, lease)) => {
                let pool = Arc::clone(pool);
                return Ok(Joined { client, server, _places: places, _lease: lease, pool });
            }
            // A pool with nobody to try has nothing to add to what the ones before it met.
            Err(close) if end.is_none() || visit.attempts.borrow().len() > tries => end = Some(close),
            Err(_) => {}
        }
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

/// The search of one client for a server of one pool.
struct Search<'a> {
    pool: &'a Pool,
    /// Where the connection is counted if a server of this pool is tried; `None`: there already.
    flow: Option<&'a Arc<Flow>>,
    visit: &'a Visit,
    worker: &'a Worker,
    /// Servers asked already, or found full. At most as many as the pool has.
    tried: RefCell<Vec<usize>>,
}

impl Field for Search<'_> {
    fn is_open(&self, server: usize) -> bool {
        !self.tried.borrow().contains(&server) && !self.pool.servers[server].live.room.is_full()
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

impl Search<'_> {
    /// A server and the place on it, or why none of this pool took the client. The outer error ends the
    /// search in every pool.
    async fn run(&self, client: &Sock) -> Result<Result<(Sock, Permit), Close>, Close> {
        let ask = self.ask();
        let mut last = None;
        for _ in 0..self.pool.plan.retry.attempts {
            let Some((choice, lease)) = self.choose(&ask) else { break };
            let server = &self.pool.servers[choice.server];
            if !self.visit.attempts.borrow().is_empty() {
                server.live.stats.of(self.worker.index).retries.add(1);
            }
            match self.dial(server, choice, client).await? {
                Ok(sock) => return Ok(Ok((sock, lease))),
                Err(failure) if failure.is_ours() => return Err(failure.close(server)),
                Err(failure) => last = Some((failure, server)),
            }
        }
        Ok(Err(self.give_up(last)))
    }

    fn ask(&self) -> Ask {
        let plan = &self.pool.plan;
        let key = match plan.balance {
            plan::Balance::ConsistentHash => balance::key(plan.hash_key, self.visit.client, self.visit.local),
            _ => 0,
        };
        Ask { key, random: fastrand::u64(..), turn: self.pool.live.next_turn() }
    }

    /// The next server, with a place on it. Another worker may take the last place between the
    /// choice and the lease; then the choice is made again without that server.
    fn choose(&self, ask: &Ask) -> Option<(Choice, Permit)> {
        loop {
            let choice = self.pool.chooser.pick(ask, self)?;
            let choice = self.known_server(choice).unwrap_or(choice);
            self.tried.borrow_mut().push(choice.server);
            if let Some(lease) = self.pool.servers[choice.server].live.room.take() {
                if let Some(flow) = self.flow {
                    self.visit.flow.replace(Arc::clone(flow));
                }
                return Some((choice, lease));
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
                Some(again) if !self.tried.borrow().contains(&again.server) => Tie::Rests,
                _ => Tie::Breaks,
            }
        };
        self.pool.live.affinity.settle(key, affinity.ttl, self.worker.net.now(), proposed, tie)
    }

    /// Connects to one server and notes how it went. The outer error ends the search.
    async fn dial(
        &self,
        server: &Server,
        choice: Choice,
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
            }
            Err(failure) => stats.connect_failures.add(failure.reason),
        }
        let error = result.as_ref().err().map(|failure| failure.reason);
        let attempt = Attempt { server: Arc::clone(&server.live), why: choice.why, took, error };
        let mut attempts = self.visit.attempts.borrow_mut();
        attempts.reserve_exact(1); // nearly always the only one, and kept as long as the connection
        attempts.push(attempt);
        Ok(result)
    }

    /// Nobody took the client: says why.
    fn give_up(&self, last: Option<(Failure, &Server)>) -> Close {
        let tries = self.visit.attempts.borrow().len();
        let pool = &self.pool.plan.name;
        let of =
            if self.flow.is_none() { format!("of pool `{pool}`") } else { "of several pools".to_owned() };
        match last {
            Some((failure, server)) if tries == 1 => failure.close(server),
            Some((failure, server)) => Close {
                reason: Reason::AllAttemptsFailed,
                detail: format!(
                    "{tries} servers {of} were tried and none took the connection; the last, {}",
                    failure.told_of(server)
                )
                .into(),
                ..failure.close(server)
            },
            None if self.is_any_full() => refusal(
                Reason::ServerLimit,
                format!("every healthy server of pool `{pool}` is at its max_connections"),
            ),
            None => refusal(Reason::NoHealthyServer, format!("pool `{pool}` has no healthy server")),
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
