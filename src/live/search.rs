//! The walk over the servers of one pool for one client: who is asked next, when it pauses, when it gives up.
//!
//! No I/O, no clock, no randomness and nothing to wait for: the time and a random number are arguments, and
//! each step is a value. `data/search.rs` dials, sleeps and says what came of it; `tests/sim.rs` drives
//! the same walk against plain models.

use std::cell::Cell;
use std::mem;
use std::net::IpAddr;
use std::ptr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::{Pass, Permit, PoolLive, Retry, ServerLive, Tie};
use crate::core::affinity::{By, Key};
use crate::core::balance::{Ask, Choice, Chooser, Field};
use crate::core::budget::{self, Odds};
use crate::core::slow_start::Share;

/// A pool at one moment, as a walk sees it. A server's number is its place in the pool.
pub trait Pool<'p> {
    fn rules(&self) -> Rules;
    fn chooser(&self) -> &Chooser;
    /// How many servers it has.
    fn size(&self) -> usize;
    fn server(&self, place: usize) -> &'p Arc<ServerLive>;
    fn is_up(&self, place: usize) -> bool;
    /// How much of its weight that server has.
    fn share(&self, place: usize, now: Instant) -> Share;
}

/// What the plan says of a walk over the pool.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub attempts: u32,
    pub backoff: Duration,
    pub max_backoff: Duration,
    pub budget: f64,
    pub deadline: Duration,
    /// What a client is known by, and for how long.
    pub affinity: Option<(By, Duration)>,
    /// Clients may wait for a server that has room.
    pub has_line: bool,
    /// Whoever is under suspicion is ejected; else only in doubt.
    pub ejects: bool,
}

/// How often a server is asked for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Again after a pause, where it refused: nobody else is left.
    AgainAfterPauses,
    /// Once: there is another pool to ask, or the client waits in the line, which makes the pauses.
    Once,
    /// Once, and nobody who is ejected: there is another pool to ask, and this one is asked again after it.
    Sound,
    /// Once, and nobody under any suspicion: somebody else is finding out about those.
    Trusted,
    /// As `Sound`, and one failure is enough: a canary is an experiment, and costs its client one connect at most.
    Canary,
}

/// What is to be done next.
#[derive(Debug)]
pub enum Step<'p> {
    Ask(Next<'p>),
    /// Nobody is left, until then or until something has changed.
    PauseUntil(Instant),
    GiveUp,
}

/// A server to try, a place on it, and leave to try it.
#[derive(Debug)]
pub struct Next<'p> {
    pub choice: Choice,
    pub place: Permit,
    pub pass: Pass<'p>,
}

/// How a server did not take the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It may be asked again after a pause.
    Refused,
    /// It did not answer, or went down: it has cost this client enough.
    Silent,
}

/// Why there is no next server.
enum End {
    NobodyLeft,
    /// There may be others, but not for this client.
    Enough,
}

/// One client's way through one pool so far.
#[derive(Debug)]
pub struct Search<'l> {
    live: &'l PoolLive,
    client: IpAddr,
    ask: Ask,
    begun: Instant,
    /// Servers asked.
    attempts: u32,
    pauses: u32,
    is_round_over: bool,
    /// Of the pause under way: it goes on when news have cut it short and nobody was found by them.
    pause_end: Option<Instant>,
    /// Those that failed; see [`Failed`]. At most as many as there are attempts.
    refused: Vec<Arc<ServerLive>>,
    silent: Vec<Arc<ServerLive>>,
    /// Leave that was used. What it was good for shows at the end: who is served had to pass by the servers
    /// that failed, and only who is not has retried in vain.
    retries: Vec<Retry<'l>>,
    is_over_budget: Cell<bool>,
    /// In this round, from one pause to the next: servers whose last place another worker took between the
    /// choice and the taking.
    lost: Vec<usize>,
    /// In this round: a server that could be asked had no room.
    has_full: Cell<bool>,
}

impl<'l> Search<'l> {
    pub fn begin(live: &'l PoolLive, client: IpAddr, ask: Ask, now: Instant) -> Self {
        Search {
            live,
            client,
            ask,
            begun: now,
            attempts: 0,
            pauses: 0,
            is_round_over: false,
            pause_end: None,
            refused: Vec::new(),
            silent: Vec::new(),
            retries: Vec::new(),
            is_over_budget: Cell::default(),
            lost: Vec::new(),
            has_full: Cell::default(),
        }
    }

    /// Whom to ask of the pool as it is now, or what else to do. `random` is a fresh random number. After it has
    /// given up it may be asked in another manner: then it goes on where it was.
    pub fn next<'p>(
        &mut self,
        pool: &impl Pool<'p>,
        manner: Manner,
        now: Instant,
        random: impl FnOnce() -> u64,
    ) -> Step<'p> {
        if mem::take(&mut self.is_round_over) {
            self.begin_round(now);
        }
        let rules = pool.rules();
        match self.choose(pool, &rules, manner, now) {
            Ok(next) => Step::Ask(next),
            Err(end) => {
                self.is_round_over = true;
                let pause = match end {
                    End::NobodyLeft => self.pause(&rules, manner, now, random),
                    End::Enough => None,
                };
                pause.map_or(Step::GiveUp, Step::PauseUntil)
            }
        }
    }

    /// Goes on where another search of the same pool ended for the same client: whom that one asked in vain
    /// this one does not ask again but, where it refused, after a pause. Attempts and time begin anew.
    pub fn after(mut self, before: Search<'_>) -> Self {
        if ptr::eq(self.live, before.live) {
            self.refused.extend(before.refused);
            self.silent.extend(before.silent);
        }
        self
    }

    /// A server did not take the client.
    pub fn on_failure(&mut self, server: &Arc<ServerLive>, how: Failed) {
        let list = match how {
            Failed::Refused => &mut self.refused,
            Failed::Silent => &mut self.silent,
        };
        list.push(Arc::clone(server));
    }

    /// Between two steps the pool has become another: those that have come up may be asked at once.
    pub fn on_change<'a, 'b>(&mut self, before: &impl Pool<'a>, after: &impl Pool<'b>) {
        let has_not_risen = |live: &Arc<ServerLive>| is_up(before, live) || !is_up(after, live);
        self.refused.retain(has_not_risen);
        self.silent.retain(has_not_risen);
    }

    /// The client has found a server, or nobody took it. Dropped without this, it says nothing of its retries.
    pub fn end(&mut self, found: bool, now: Instant) {
        self.retries.drain(..).for_each(|retry| retry.end(found, now));
    }

    /// A server that could be asked had no room: it will have some.
    pub fn has_full(&self) -> bool {
        self.has_full.get()
    }

    /// It might have gone on, had the pool's budget for retries borne it.
    pub fn is_over_budget(&self) -> bool {
        self.is_over_budget.get()
    }

    /// A pause is over, something has changed meanwhile, or other pools have been asked. Only after a whole
    /// pause are those that refused asked again.
    fn begin_round(&mut self, now: Instant) {
        if self.pause_end.is_some_and(|end| end <= now) {
            self.refused.clear();
            self.pause_end = None;
        }
        self.lost.clear();
        self.has_full.set(false);
    }

    /// The next server. Another worker may take the last place on it, or the last leave to try it, between
    /// the choice and the taking; then the choice is made again without that server.
    fn choose<'p>(
        &mut self,
        pool: &impl Pool<'p>,
        rules: &Rules,
        manner: Manner,
        now: Instant,
    ) -> Result<Next<'p>, End> {
        let mut leave = None;
        loop {
            let (look, choice) = self.pick(pool, rules, manner, now).ok_or(End::NobodyLeft)?;
            if leave.is_none() {
                let has_failed = pool.server(choice.server).guard.has_failed();
                let odds = if has_failed { Odds::Bad } else { Odds::Fair };
                leave = Some(self.leave(rules, manner, odds, now)?);
            }
            let choice = look.known_server(rules, choice).unwrap_or(choice);
            let server = pool.server(choice.server);
            let place = server.room.take();
            self.has_full.set(self.has_full.get() || place.is_none());
            if let Some((place, pass)) = place.and_then(|place| Some((place, server.guard.enter(now)?))) {
                self.attempts += 1;
                self.retries.extend(leave.flatten());
                return Ok(Next { choice, place, pass });
            }
            self.lost.push(choice.server);
        }
    }

    /// A server under suspicion is better than none: what is passed over while others work may be all that
    /// is left when those go down. Better still is one that will have room, where clients may wait for it.
    fn pick<'s, 'p, P: Pool<'p>>(
        &'s self,
        pool: &'s P,
        rules: &Rules,
        manner: Manner,
        now: Instant,
    ) -> Option<(Look<'s, 'l, P>, Choice)> {
        let of = |takes_suspects| {
            let look = Look { search: self, pool, now, takes_suspects };
            let choice = pool.chooser().pick(&self.ask, &look)?;
            Some((look, choice))
        };
        of(false).or_else(|| {
            let holds_out = match manner {
                Manner::Trusted => true,
                // Ejected servers are out for long, those in doubt for seconds.
                Manner::Sound | Manner::Canary => rules.ejects || self.is_worth_waiting(rules),
                Manner::Once | Manner::AgainAfterPauses => self.is_worth_waiting(rules),
            };
            if holds_out { None } else { of(true) }
        })
    }

    /// One more attempt, while there are any, and time, and, from the second on, the pool's budget bears it.
    fn leave(
        &self,
        rules: &Rules,
        manner: Manner,
        odds: Odds,
        now: Instant,
    ) -> Result<Option<Retry<'l>>, End> {
        if self.attempts == 0 {
            return Ok(None);
        }
        let most = if manner == Manner::Canary { 1 } else { rules.attempts };
        let is_late = now.saturating_duration_since(self.begun) >= rules.deadline;
        if self.attempts >= most || is_late {
            return Err(End::Enough);
        }
        let retry = self.live.retry(rules.budget, odds, now);
        self.is_over_budget.set(retry.is_none());
        retry.map(Some).ok_or(End::Enough)
    }

    /// When those that refused may be asked again; `None`: never, or too late.
    fn pause(
        &mut self,
        rules: &Rules,
        manner: Manner,
        now: Instant,
        random: impl FnOnce() -> u64,
    ) -> Option<Instant> {
        // Who may ask nobody afterwards need not wait for it.
        let is_of_use = manner == Manner::AgainAfterPauses && self.attempts < rules.attempts;
        if !is_of_use || self.refused.is_empty() || self.is_worth_waiting(rules) {
            return None;
        }
        let end = self.pause_end.unwrap_or_else(|| {
            let pause = budget::pause(rules.backoff, rules.max_backoff, self.pauses, random());
            self.pauses += 1;
            now + pause
        });
        self.pause_end = Some(end).filter(|end| *end < self.begun + rules.deadline);
        self.pause_end
    }

    /// A server that could be asked was full, and the pool lets clients wait for it.
    fn is_worth_waiting(&self, rules: &Rules) -> bool {
        self.has_full.get() && rules.has_line
    }

    /// Of no more use to this client: it did not take it, or another worker took its last place.
    fn has_done_with(&self, place: usize, server: &Arc<ServerLive>) -> bool {
        let is_it = |other: &Arc<ServerLive>| Arc::ptr_eq(other, server);
        self.lost.contains(&place) || self.refused.iter().any(is_it) || self.silent.iter().any(is_it)
    }
}

/// The servers as they are at the moment of one choice.
struct Look<'s, 'l, P> {
    search: &'s Search<'l>,
    pool: &'s P,
    now: Instant,
    /// Nobody else is left: servers that are ejected, or have just failed others, are asked, too.
    takes_suspects: bool,
}

impl<'p, P: Pool<'p>> Field for Look<'_, '_, P> {
    fn is_open(&self, server: usize) -> bool {
        let live = self.pool.server(server);
        let is_sound = self.takes_suspects || !live.guard.is_suspect(self.now);
        if !(is_sound && live.guard.is_open(self.now)) || self.search.has_done_with(server, live) {
            return false;
        }
        let is_full = live.room.is_full();
        if is_full {
            self.search.has_full.set(true);
        }
        !is_full
    }

    fn active(&self, server: usize) -> usize {
        self.pool.server(server).room.taken()
    }

    fn latency(&self, server: usize) -> Option<u32> {
        self.pool.server(server).answers.us(self.now)
    }

    fn share(&self, server: usize) -> Share {
        self.pool.share(server, self.now)
    }
}

impl<'p, P: Pool<'p>> Look<'_, '_, P> {
    /// The server that this client is known to, where the pool keeps an affinity and that server can serve.
    fn known_server(&self, rules: &Rules, chosen: Choice) -> Option<Choice> {
        let (by, ttl) = rules.affinity?;
        let key = match by {
            By::SourceIp => Key::source(self.search.client),
        };
        let tie = |known: &Weak<ServerLive>| {
            let is_it = |place: &usize| Weak::as_ptr(known) == Arc::as_ptr(self.pool.server(*place));
            let place = (0..self.pool.size()).find(is_it);
            let again = place.and_then(|place| self.pool.chooser().again(place, &chosen));
            match again {
                Some(again) if self.has_room(again.server) => Tie::Holds(again),
                Some(again) if self.rests(again.server) => Tie::Rests,
                _ => Tie::Breaks,
            }
        };
        let proposed = self.pool.server(chosen.server);
        self.search.live.affinity.settle(key, ttl, self.now, proposed, tie)
    }

    /// It can serve, and one client that comes often does not fill it beyond the pool's bound.
    fn has_room(&self, server: usize) -> bool {
        self.is_open(server) && self.pool.chooser().has_room(server, self)
    }

    /// A server that only has no room just now, or is in doubt for another client's sake. One that was tried in
    /// vain, or is ejected or cut off by its breaker, has lost its clients.
    fn rests(&self, server: usize) -> bool {
        let live = self.pool.server(server);
        let is_sound = !live.guard.is_ejected(self.now) && live.guard.is_open(self.now);
        is_sound && !self.search.has_done_with(server, live)
    }
}

fn is_up<'p>(pool: &impl Pool<'p>, live: &Arc<ServerLive>) -> bool {
    (0..pool.size()).any(|place| Arc::ptr_eq(pool.server(place), live) && pool.is_up(place))
}

#[cfg(test)]
mod tests;
