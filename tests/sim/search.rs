//! A client's way to a server: the walk is the product's, `live/search.rs`, driven without a socket. Each
//! step is held against the models: who may be asked, when nobody is left, how long a pause may be. Who
//! finds nobody may wait: see `waiting.rs`.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use tidegate::core::affinity::Key;
use tidegate::core::balance::{Ask, Choice, Ground, HashKey, key};
use tidegate::live::search::{Failed, Manner, Next, Search as Walk, Step};
use tidegate::live::{Pass, Permit};

use super::model::circuit::Mark;
use super::model::met::Met;
use super::view::{Known, View};
use super::world::{Client, Pool, Server, Truth, World};

/// Where a client is.
pub enum Stage {
    /// A connect is under way.
    Dialling(Dial),
    /// Every server has been asked, and those that refused are asked again then.
    Pausing {
        until: Instant,
    },
    /// In the pool's line; see [`Waits`].
    InLine,
    Served {
        server: u64,
        _lease: Permit,
        is_watched: bool,
    },
}

pub struct Dial {
    pub server: u64,
    lease: Permit,
    pass: Pass<'static>,
    pub mark: Entered,
    begun: Instant,
    pub ends: Instant,
    pub how: How,
}

/// What the models know of somebody who was let in.
#[derive(Clone, Copy)]
pub struct Entered {
    pub circuit: Mark,
    is_watched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Connected,
    Refused,
    TimedOut,
}

/// One search for a server.
pub struct Search {
    pub pool: Rc<Pool>,
    pub walk: Walk<'static>,
    pub met: Met,
    pub manner: Manner,
    pub key: u64,
    /// Of the pool, when it was looked at last.
    pub news: u64,
}

impl World {
    /// The client begins to ask servers, or stands in line where others do.
    pub fn enter_pool(&mut self, mut client: Client) {
        let queue = self.pool.plan.queue.filter(|_| self.live.line.length() > 0);
        match queue {
            Some(queue) => self.join_line(client, queue),
            None => {
                // There may be another pool to ask, or this one may be a canary.
                let again = Manner::AgainAfterPauses;
                let manner = self.dice.weighted(&[(7, again), (1, Manner::Sound), (1, Manner::Canary)]);
                client.search = Some(self.begin(client.from, manner));
                self.go_on(client);
            }
        }
    }

    pub fn begin(&mut self, from: IpAddr, manner: Manner) -> Search {
        let (source, here) = (SocketAddr::new(from, 40_000), SocketAddr::from(([192, 0, 2, 1], 443)));
        let key = key(HashKey::SourceIp, source, here);
        self.models.retries.on_connection(self.now);
        let ask = Ask { key, random: self.dice.roll(), turn: self.live.next_turn() };
        Search {
            pool: Rc::clone(&self.pool),
            walk: Walk::begin(self.live, from, ask, self.now),
            met: Met::new(self.now),
            manner,
            key,
            news: self.news,
        }
    }

    /// The other pools had nobody either.
    fn ask_all_the_same(&mut self, mut client: Client, mut search: Search) {
        self.trace.add("last-resort", format_args!("#{}", client.id));
        let (again, once) = (Manner::AgainAfterPauses, Manner::Once);
        search.manner = if self.dice.once_in(2) { again } else { once };
        search.met.was_full = false;
        client.search = Some(search);
        self.go_on(client);
    }

    fn begin_after(&mut self, canary: Search, from: IpAddr) -> Search {
        self.trace.add("after", format_args!("a canary"));
        let search = self.begin(from, Manner::AgainAfterPauses);
        Search { walk: search.walk.after(canary.walk), met: canary.met.anew(self.now), ..search }
    }

    /// The next step: a connect is under way, or nobody is left.
    pub fn go_on(&mut self, mut client: Client) {
        let mut search = client.search.take().expect("only who searches goes on");
        let (dice, now) = (&mut self.dice, self.now);
        match search.walk.next(&&*search.pool, search.manner, now, || dice.roll()) {
            Step::Ask(next) => {
                self.check_ask(&mut search, client.from, &next.choice);
                client.stage = Stage::Dialling(self.dial(&search, next));
            }
            Step::PauseUntil(until) => {
                self.check_pause(&mut search, until);
                client.stage = Stage::Pausing { until };
            }
            Step::GiveUp => {
                self.check_end(&mut search);
                self.end_retries(&mut search, false);
                if search.manner == Manner::Canary && self.dice.once_in(2) {
                    // The canary is a fallback of the main pool, too.
                    client.search = Some(self.begin_after(search, client.from));
                    return self.go_on(client);
                }
                if search.manner == Manner::Sound {
                    return self.ask_all_the_same(client, search);
                }
                return self.give_up(client, search);
            }
        }
        client.search = Some(search);
        self.clients.insert(client.id, client);
    }

    /// A pause is over, or something has changed: a new round, over the pool as it is now.
    pub fn again(&mut self, mut client: Client) {
        if let Some(search) = &mut client.search {
            let (before, after) = (Rc::clone(&search.pool), Rc::clone(&self.pool));
            search.walk.on_change(&&*before, &&*after);
            let rose = search.met.on_awake(|server| !before.has_up(server) && after.has_up(server), self.now);
            if rose > 0 {
                self.trace.add("rose", format_args!("{rose} of those that failed #{}", client.id));
            }
            search.pool = after;
            if search.met.pause_end.is_some() {
                self.trace.add("news", format_args!("#{}", client.id));
            }
            search.news = self.news;
        }
        self.go_on(client);
    }

    fn end_retries(&mut self, search: &mut Search, found: bool) {
        search.walk.end(found, self.now);
        for is_bad in std::mem::take(&mut search.met.retries) {
            self.models.retries.on_end(is_bad, Some(found), self.now);
        }
    }

    /// The walk asks a server: may it, and that one.
    fn check_ask(&mut self, search: &mut Search, from: IpAddr, choice: &Choice) {
        let (plan, now) = (search.pool.plan.clone(), self.now);
        let id = search.pool.places[choice.server].id;
        self.trace.add("choose", format_args!("s{id} {}", choice.why));
        let most = if search.manner == Manner::Canary { 1 } else { plan.attempts };
        assert!(search.met.asked < most, "attempt {} of {most}", search.met.asked + 1);
        // Of a server that the client is known to, nobody knows whom it was asked instead of.
        let is_bad = choice.why.ground != Ground::Affinity && self.server(id).doubt.has_failed;
        if search.met.asked > 0 {
            assert!(now - search.met.begun < plan.deadline, "s{id} is asked after the deadline");
            self.models.retries.on_take(plan.budget, is_bad, true, now);
            self.trace.add("retry", format_args!(""));
        }
        let view = View { world: self, search };
        let (candidates, has_full) = (view.candidates(), view.has_full());
        let is_suspect = view.server(choice.server).is_suspect(now);
        assert!(!is_suspect || !view.should_hold_out(), "s{id} is asked, and another will have room");
        assert!(!is_suspect || search.manner != Manner::Trusted, "s{id} is asked, and another finds out");
        if choice.why.ground == Ground::Affinity {
            assert!(plan.affinity.is_some(), "s{id} is nobody's");
        } else {
            assert!(candidates.contains(&choice.server), "{choice:?} is none of {candidates:?}");
            let key = view.check_manner(choice, &candidates);
            if let Some((among, id)) = key {
                let before = self.models.memo.insert((among, search.key), id);
                assert!(before.is_none_or(|before| before == id), "a key moved to s{id} for nothing");
            }
        }
        if is_suspect {
            self.trace.add("suspect", format_args!("s{id}"));
        }
        self.check_tie(search, from, choice, &candidates);
        search.met.was_full |= has_full;
        search.met.on_ask(is_bad);
    }

    /// Is it the server that this client is known to, if that one can serve, and no other.
    fn check_tie(&mut self, search: &Search, from: IpAddr, choice: &Choice, candidates: &[usize]) {
        let Some(affinity) = search.pool.plan.affinity else { return };
        let (part, client, now) = (Key::source(from).part(16), source_number(from), self.now);
        let id = search.pool.places[choice.server].id;
        let known = self.models.ties.server_of(part, client, now, affinity.ttl);
        let tie = View { world: self, search }.tie(known, candidates);
        let is_known = choice.why.ground == Ground::Affinity;
        assert_eq!(is_known, tie == Known::Serves, "s{id} for a client that is known to {known:?}: {tie:?}");
        assert!(!is_known || known == Some(id), "s{id} for a client that is known to {known:?}");
        if matches!(tie, Known::Serves | Known::Lost) {
            self.models.ties.tie(part, client, id, now);
        }
        match tie {
            Known::Serves => self.trace.add("known", format_args!("s{id}")),
            Known::Spills => self.trace.add("spills", format_args!("s{id} for {known:?}")),
            Known::Rests | Known::Lost => {}
        }
    }

    /// The walk asks nobody, though it has attempts left and time.
    fn check_nobody(&self, search: &mut Search) {
        let view = View { world: self, search };
        let (candidates, may_hold_out) = (view.candidates(), view.may_hold_out());
        let is_any_sound = candidates.iter().any(|place| !view.server(*place).is_suspect(self.now));
        assert!(!is_any_sound, "nobody, though there are {candidates:?}");
        assert!(candidates.is_empty() || may_hold_out, "nobody, though there are {candidates:?}");
        let (has_full, has_sound_full) = (view.has_full(), view.has_sound_full());
        search.met.was_full |= has_full;
        assert!(!has_sound_full || search.walk.has_full(), "somebody is full");
        assert!(!search.walk.has_full() || search.met.was_full, "nobody is full");
    }

    fn check_pause(&mut self, search: &mut Search, until: Instant) {
        self.check_nobody(search);
        let (plan, met) = (&search.pool.plan, &mut search.met);
        let is_full = plan.queue.is_some() && search.walk.has_full();
        assert!(
            met.has_refused() && search.manner == Manner::AgainAfterPauses && !is_full,
            "a pause for {met:?}"
        );
        assert!(met.asked < plan.attempts && until < met.begun + plan.deadline, "a pause in vain: {met:?}");
        met.on_pause(until, met.whole(plan.backoff, plan.max_backoff), self.now);
        self.trace.add("pause", format_args!("{:?}", until - self.now));
    }

    fn check_end(&mut self, search: &mut Search) {
        let (plan, now) = (search.pool.plan.clone(), self.now);
        let is_late = search.met.asked > 0 && now - search.met.begun >= plan.deadline;
        if search.walk.is_over_budget() {
            assert!(search.met.asked > 0 && !is_late);
            self.trace.add("no-retry", format_args!(""));
            return self.models.retries.on_take(plan.budget, false, false, now);
        }
        let has_failed_canary = search.manner == Manner::Canary && search.met.asked > 0;
        if search.met.asked >= plan.attempts || is_late || has_failed_canary {
            return;
        }
        self.check_nobody(search);
        let (met, whole) = (&search.met, search.met.whole(plan.backoff, plan.max_backoff));
        let may_pause = search.manner == Manner::AgainAfterPauses && met.has_refused();
        let is_full = plan.queue.is_some() && search.walk.has_full();
        let is_too_late = met.pause_end.unwrap_or(now + whole) >= met.begun + plan.deadline;
        assert!(!may_pause || is_full || is_too_late, "it gives up early: {met:?}");
    }

    fn dial(&mut self, search: &Search, next: Next<'static>) -> Dial {
        let Next { choice, place: lease, pass } = next;
        let id = search.pool.places[choice.server].id;
        let (now, patience) = (self.now, self.pool.plan.connect_timeout);
        let truth = self.server(id).truth;
        let (takes, how) = match truth {
            Truth::Answers | Truth::Rotten => (self.dice.ms(0, 20), How::Connected),
            Truth::Slow => (self.dice.ms(10, 800), How::Connected),
            Truth::Refuses => (self.dice.ms(0, 2), How::Refused),
            Truth::Silent => (patience * 2, How::Connected),
        };
        let (takes, how) = if takes > patience { (patience, How::TimedOut) } else { (takes, how) };
        let server = self.server_mut(id);
        server.has += 1;
        let is_watched = server.record.is_watched();
        server.doubt.enter(now);
        let mark = Entered { circuit: server.circuit.enter(), is_watched };
        Dial { server: id, lease, pass, mark, begun: now, ends: now + takes, how }
    }

    /// A connect has come out.
    pub fn end_dial(&mut self, mut client: Client, dial: Dial) {
        let Dial { server: id, lease, pass, mark, begun, how, .. } = dial;
        let (is_good, took) = (how == How::Connected, self.now - begun);
        self.trace
            .add(if is_good { "connected" } else { "failed" }, format_args!("#{} s{id} {how:?}", client.id));
        self.answered(id, begun, is_good);
        let now = self.now;
        let circuit = &mut self.server_mut(id).circuit;
        if circuit.end(mark.circuit, Some(is_good), now) {
            self.trace.add("opened", format_args!("s{id}"));
        }
        if is_good {
            let is_watched = pass.connected();
            assert_eq!(is_watched, mark.is_watched);
            client.stage = Stage::Served { server: id, _lease: lease, is_watched };
            self.server_mut(id).doubt.trust();
            if let Some(mut search) = client.search.take() {
                self.end_retries(&mut search, true);
            }
            if let Some(waits) = client.waits.take() {
                self.trace.add("served-in-line", format_args!("#{}", client.id));
                waits.ticket.served();
                self.models.line.served(client.id);
            }
            self.clients.insert(client.id, client);
            return;
        }
        if mark.is_watched {
            self.judged(id, false, |_| pass.failed(took, now));
        } else {
            pass.failed(took, now);
        }
        self.server_mut(id).doubt.on_failure(took, now);
        drop(lease);
        self.server_mut(id).has -= 1;
        if let Some(search) = &mut client.search {
            let failed = if how == How::Refused { Failed::Refused } else { Failed::Silent };
            search.walk.on_failure(self.servers[&id].live, failed);
            search.met.on_failure(id, how == How::Refused);
        }
        self.go_on(client);
    }

    /// How long it took is remembered; a peak at once.
    fn answered(&mut self, id: u64, begun: Instant, is_good: bool) {
        let (now, patience) = (self.now, self.pool.plan.connect_timeout);
        let took = if is_good { now - begun } else { (now - begun).max(patience) };
        let server = self.server_mut(id);
        server.live.answers.observe(took, now);
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        assert!(server.live.answers.us(now) >= Some(us), "a peak counts in full");
        server.slowest = server.slowest.max(us);
    }

    /// Something has been shown of a server: `tell` tells the product, and the model says what must
    /// and what may follow.
    pub fn judged(&mut self, id: u64, is_good: bool, tell: impl FnOnce(&Server)) {
        let now = self.now;
        let call = self.server_mut(id).record.on_result(is_good, now);
        let has_bed = self.models.out.has_bed(id, now);
        let server = self.server(id);
        tell(server);
        let watched = server.live.guard.watched(now);
        let (Some(call), Some(watched)) = (call, watched) else {
            assert_eq!((call, watched), (None, None));
            return;
        };
        let was_ejected = watched.ejections > server.record.ejections;
        assert!(!was_ejected || (call.may && has_bed), "s{id} was ejected for nothing: {watched:?}");
        assert!(was_ejected || !(call.must && has_bed), "s{id} should be ejected: {call:?}");
        if was_ejected {
            let left = watched.ejected.map(|(left, _)| left);
            assert_eq!(left, Some(call.until - now), "how long s{id} is out");
            self.models.out.take_in(id, call.until, now);
            self.server_mut(id).record.eject(call.until, now);
            self.trace.add("ejected", format_args!("s{id} for {left:?}"));
        }
    }
}

/// One number for each client that a table tells from others.
fn source_number(from: IpAddr) -> u128 {
    match from.to_canonical() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits() >> 64 << 64, // a host may take any address of its network
    }
}
