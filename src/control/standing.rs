//! Who serves the clients of a pool now, and where they go when nobody does.
//!
//! Says what the next client would meet, by what a worker goes by that looks for a server (`live/search.rs`,
//! `data/connect.rs`). Decides nothing, and takes no place: a moment later it may be otherwise.

use std::sync::Arc;
use std::time::Instant;

use crate::config::plan::OnNoServer;
use crate::core::breaker;
use crate::core::health::State;
use crate::snapshot::{Pool, Server};

/// What a server is shown as: how its checks go, or what keeps clients from it although they go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Checked(State),
    /// Asked when nobody else is left.
    Ejected,
    /// Its circuit breaker is open: nobody is sent there.
    CutOff,
    /// Its circuit breaker is half-open: a few try it, and the others are sent elsewhere meanwhile.
    OnTrial,
}

impl Shown {
    pub fn of(server: &Server, now: Instant) -> Self {
        if server.state != State::Up {
            return Shown::Checked(server.state);
        }
        let guard = &server.live.guard;
        match guard.circuit(now).map(|circuit| circuit.state) {
            Some(breaker::State::Open) => Shown::CutOff,
            _ if guard.is_ejected(now) => Shown::Ejected,
            Some(breaker::State::HalfOpen) => Shown::OnTrial,
            Some(breaker::State::Closed) | None => Shown::Checked(State::Up),
        }
    }

    /// Every state there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let guarded = [Shown::Ejected, Shown::CutOff, Shown::OnTrial];
        State::ALL.iter().map(|state| Shown::Checked(*state)).chain(guarded)
    }

    pub fn word(self) -> &'static str {
        match self {
            Shown::Checked(state) => state.word(),
            Shown::Ejected => "ejected",
            Shown::CutOff => "cut-off",
            Shown::OnTrial => "on-trial",
        }
    }
}

/// How well a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Up,
    Degraded,
    /// No server that is up may be asked. Where none has been checked yet, they are tried all the same.
    Empty,
}

impl Standing {
    pub fn of(pool: &Pool) -> Self {
        let now = Instant::now();
        let serves = |server: &Server| {
            let shown = Shown::of(server, now);
            server.state == State::Up && server.plan.weight > 0 && shown != Shown::CutOff
        };
        match () {
            () if !pool.servers.iter().any(serves) => Standing::Empty,
            () if servers_in(pool, Shown::Checked(State::Up)) == pool.servers.len() => Standing::Up,
            () => Standing::Degraded,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Standing::Up => "up",
            Standing::Degraded => "degraded",
            Standing::Empty => "empty",
        }
    }
}

pub fn servers_in(pool: &Pool, shown: Shown) -> usize {
    let now = Instant::now();
    pool.servers.iter().filter(|server| Shown::of(server, now) == shown).count()
}

/// Whom a pool would ask for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub tier: u8,
    /// Nobody is left but those who are passed over while others work.
    pub is_last_resort: bool,
}

/// The servers that a pool would ask for a client now, after the pools that it falls back to or before;
/// `None` where there are none, or clients rather wait.
pub fn asked(pool: &Pool, is_again: bool, now: Instant) -> Option<Asked> {
    let sound = || open(pool, now).filter(|server| !server.live.guard.is_suspect(now));
    if let Some(tier) = with_room(sound()) {
        return Some(Asked { tier, is_last_resort: false });
    }
    // Where clients may wait for one that is only full, they do.
    let waits = pool.plan.queue.is_some() && sound().next().is_some();
    let holds_out = waits || (pool.plan.outlier_detection.is_some() && !is_again);
    let last_resort = || with_room(open(pool, now)).map(|tier| Asked { tier, is_last_resort: true });
    if holds_out { None } else { last_resort() }
}

/// Servers that a client could be sent to but for their limit. Where none is up, those not checked yet.
fn open(pool: &Pool, now: Instant) -> impl Iterator<Item = &Server> {
    let of = |state| pool.servers.iter().filter(move |it| it.state == state && it.plan.weight > 0);
    let state = if of(State::Up).next().is_some() { State::Up } else { State::Checking };
    of(state).filter(move |server| server.live.guard.is_open(now))
}

/// The lowest tier of those that have room.
fn with_room<'a>(servers: impl Iterator<Item = &'a Server>) -> Option<u8> {
    servers.filter(|server| !server.live.room.is_full()).map(|server| server.plan.tier).min()
}

/// Servers that only their limit keeps clients from.
pub fn full(pool: &Pool, now: Instant) -> impl Iterator<Item = &Server> {
    open(pool, now).filter(|server| server.live.room.is_full())
}

/// What becomes of the next client of a pool.
#[derive(Clone, Copy, Debug)]
pub enum Next<'a> {
    Asks(Asked),
    GoesTo(&'a Pool),
    /// In the line of this pool.
    Waits(&'a Pool),
    IsRefused,
}

/// Its own servers are asked, then those of the pools that it falls back to, and then all of them again for
/// servers that are ejected; where others wait for one of them already, the client does, too.
pub fn next(pool: &Arc<Pool>, now: Instant) -> Next<'_> {
    let mut line = None;
    let has_others = pool.fallback.is_some();
    let sound = pool.chain().enumerate().filter(|_| has_others).map(|(place, pool)| (place, pool, false));
    let left = pool.chain().enumerate().map(|(place, pool)| (place, pool, true));
    for (place, pool, is_again) in sound.chain(left) {
        if pool.plan.queue.is_some() && pool.live.line.length() > 0 {
            return Next::Waits(line.unwrap_or(pool));
        }
        match asked(pool, is_again, now) {
            Some(asked) if place == 0 => return Next::Asks(asked),
            Some(_) => return Next::GoesTo(pool),
            None if may_wait(pool, now) => _ = line.get_or_insert(pool),
            None => {}
        }
    }
    line.map_or(Next::IsRefused, Next::Waits)
}

/// Where nobody could be asked.
fn may_wait(pool: &Pool, now: Instant) -> bool {
    let is_worth_it = || pool.plan.on_no_server == OnNoServer::Queue || full(pool, now).next().is_some();
    pool.plan.queue.is_some() && is_worth_it()
}
