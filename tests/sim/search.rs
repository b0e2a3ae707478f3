//! A client's way to a server, as `data/search.rs` goes it, step by step and without a socket: the same
//! questions to the same cores in the same order. Who finds nobody may wait: see `waiting.rs`.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Instant;

use tidegate::core::affinity::Key;
use tidegate::core::balance::{Ask, Choice, Field, HashKey, key};
use tidegate::core::budget;
use tidegate::live::{Pass, Permit, Retry, ServerLive, Tie};

use super::model::circuit::Mark;
use super::model::ties::Ties;
use super::view::View;
use super::world::{Client, Pool, PoolPlace, Server, Truth, World};

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
    begun: Instant,
    attempts: u32,
    pub tried: Vec<u64>,
    refused: Vec<u64>,
    pauses: u32,
    pub takes_suspects: bool,
    pub has_failed: bool,
    /// A server that could be asked had no room.
    pub has_full: Cell<bool>,
    /// Leave that was used: what it was good for shows at the end.
    pub retries: Vec<Retry<'static>>,
    ask: Ask,
}

impl Search {
    fn is_worth_waiting(&self) -> bool {
        self.has_full.get() && self.pool.plan.queue.is_some()
    }
}

/// What comes of one step of a search.
enum Next {
    Goes(Stage),
    Ends,
}

impl World {
    /// The client begins to ask servers, or stands in line where others do.
    pub fn enter_pool(&mut self, mut client: Client) {
        let queue = self.pool.plan.queue.filter(|_| self.live.line.length() > 0);
        match queue {
            Some(queue) => self.join_line(client, queue),
            None => {
                client.search = Some(self.begin(client.from));
                self.go_on(client);
            }
        }
    }

    pub fn begin(&mut self, from: IpAddr) -> Search {
        let ask = self.ask(from);
        Search {
            pool: Rc::clone(&self.pool),
            begun: self.now,
            attempts: 0,
            tried: Vec::new(),
            refused: Vec::new(),
            pauses: 0,
            takes_suspects: false,
            has_failed: false,
            has_full: Cell::new(false),
            retries: Vec::new(),
            ask,
        }
    }

    fn ask(&mut self, from: IpAddr) -> Ask {
        let (source, here) = (SocketAddr::new(from, 40_000), SocketAddr::from(([192, 0, 2, 1], 443)));
        let key = key(HashKey::SourceIp, source, here);
        self.models.retries.on_connection(self.now);
        Ask { key, random: self.dice.roll(), turn: self.live.next_turn() }
    }

    /// The next attempt, until one is under way, or nobody is left.
    pub fn go_on(&mut self, mut client: Client) {
        let mut search = client.search.take().expect("only who searches goes on");
        let next = self.next(&mut search, client.from, client.waits.is_some());
        match next {
            Next::Goes(stage) => {
                client.stage = stage;
                client.search = Some(search);
                self.clients.insert(client.id, client);
            }
            Next::Ends => {
                self.end_retries(&mut search, false);
                self.give_up(client, search);
            }
        }
    }

    /// A pause is over: a new round, over the pool as it is now, also of those that refused.
    pub fn again(&mut self, mut client: Client) {
        if let Some(search) = &mut client.search {
            search.pool = Rc::clone(&self.pool);
            search.tried.retain(|server| !search.refused.contains(server));
            search.refused.clear();
            search.takes_suspects = false;
            search.has_full.set(false);
        }
        self.go_on(client);
    }

    fn next(&mut self, search: &mut Search, from: IpAddr, is_once: bool) -> Next {
        if search.attempts >= search.pool.plan.attempts {
            return Next::Ends;
        }
        if search.attempts > 0 {
            let Some(retry) = self.retry(search) else { return Next::Ends };
            search.retries.push(retry);
        }
        if let Some(next) = self.choose(search, from) {
            search.attempts += 1;
            return self.dial(next);
        }
        // A retry that found nobody to ask costs nothing.
        if search.retries.pop().is_some() {
            self.models.retries.on_end(None, self.now);
        }
        let plan = &search.pool.plan;
        if is_once || search.refused.is_empty() || search.is_worth_waiting() {
            return Next::Ends;
        }
        let pause = budget::pause(plan.backoff, plan.max_backoff, search.pauses, self.dice.roll());
        let whole = plan.backoff.saturating_mul(1 << search.pauses.min(20)).min(plan.max_backoff);
        assert!(whole / 2 <= pause && pause <= whole, "a pause of {pause:?} for {whole:?}");
        search.pauses += 1;
        if self.now + pause >= search.begun + plan.deadline {
            return Next::Ends;
        }
        self.trace.add("pause", format_args!("{pause:?}"));
        Next::Goes(Stage::Pausing { until: self.now + pause })
    }

    fn end_retries(&mut self, search: &mut Search, found: bool) {
        for retry in search.retries.drain(..) {
            retry.end(found, self.now);
            self.models.retries.on_end(Some(found), self.now);
        }
    }

    fn retry(&mut self, search: &Search) -> Option<Retry<'static>> {
        let plan = &search.pool.plan;
        if self.now - search.begun >= plan.deadline {
            return None;
        }
        let retry = self.live.retry(plan.budget, self.now);
        self.models.retries.on_take(plan.budget, retry.is_some(), self.now);
        self.trace.add(if retry.is_some() { "retry" } else { "no-retry" }, format_args!(""));
        retry
    }

    fn choose(&mut self, search: &mut Search, from: IpAddr) -> Option<(u64, Permit, Pass<'static>)> {
        let choice = self.pick(search)?;
        let choice = self.known_server(search, from, choice);
        let place = &search.pool.places[choice.server];
        let (id, live) = (place.id, self.server(place.id).live);
        search.tried.push(id);
        self.trace.add("choose", format_args!("s{id} {}", choice.why));
        let lease = live.room.take().expect("it is not full");
        let pass = live.guard.enter(self.now).expect("its breaker is not open");
        self.server_mut(id).has += 1;
        Some((id, lease, pass))
    }

    fn pick(&mut self, search: &mut Search) -> Option<Choice> {
        loop {
            let view = View { world: self, search };
            let choice = search.pool.chooser.pick(&search.ask, &view);
            let candidates = view.candidates();
            match &choice {
                Some(choice) => {
                    assert!(candidates.contains(&choice.server), "{choice:?} is none of {candidates:?}");
                    let key = view.check_manner(choice, &candidates);
                    if let Some((among, id)) = key {
                        let before = self.models.memo.insert((among, search.ask.key), id);
                        assert!(before.is_none_or(|before| before == id), "a key moved to s{id} for nothing");
                    }
                    return Some(*choice);
                }
                None => assert!(candidates.is_empty(), "nobody, though there are {candidates:?}"),
            }
            let are_in_doubt = search.pool.plan.guard.outlier.is_none();
            let holds_out = are_in_doubt && search.is_worth_waiting();
            if holds_out || std::mem::replace(&mut search.takes_suspects, true) {
                return None;
            }
        }
    }

    /// The server that this client is known to, or else the one that was chosen.
    fn known_server(&mut self, search: &Search, from: IpAddr, chosen: Choice) -> Choice {
        let Some(affinity) = search.pool.plan.affinity else { return chosen };
        let places = &search.pool.places;
        let key = Key::source(from);
        let (part, client) = (key.part(16), source_number(from));
        let view = View { world: self, search };
        let tie = |known: &Weak<ServerLive>| {
            let is_it = |place: &PoolPlace| Weak::as_ptr(known) == Arc::as_ptr(self.server(place.id).live);
            let place = places.iter().position(is_it);
            let again = place.and_then(|place| search.pool.chooser.again(place, &chosen));
            let rests = |place| {
                let live = view.server(place).live;
                !live.guard.is_ejected(self.now) && live.guard.is_open(self.now) && view.is_new(place)
            };
            match again {
                Some(again) if view.is_open(again.server) => Tie::Holds(again),
                Some(again) if rests(again.server) => Tie::Rests,
                _ => Tie::Breaks,
            }
        };
        let proposed = self.server(places[chosen.server].id).live;
        let settled = self.live.affinity.settle(key, affinity.ttl, self.now, proposed, tie).unwrap_or(chosen);

        // The same by the models.
        let mut ties = std::mem::replace(&mut self.models.ties, Ties::new(0));
        let known = ties.server_of(part, client, self.now, affinity.ttl);
        let view = View { world: self, search };
        let expected = view.settled(known, places[chosen.server].id, places[chosen.server].plan.tier);
        assert_eq!(places[settled.server].id, expected.0, "known to {known:?}");
        if expected.1 {
            ties.tie(part, client, expected.0, self.now);
        }
        self.models.ties = ties;
        if known == Some(expected.0) {
            self.trace.add("known", format_args!("s{}", expected.0));
        }
        settled
    }

    fn dial(&mut self, next: (u64, Permit, Pass<'static>)) -> Next {
        let (id, lease, pass) = next;
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
        let is_watched = server.record.is_watched();
        server.doubt.enter(now);
        let mark = Entered { circuit: server.circuit.enter(), is_watched };
        Next::Goes(Stage::Dialling(Dial {
            server: id,
            lease,
            pass,
            mark,
            begun: now,
            ends: now + takes,
            how,
        }))
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
            search.has_failed = true;
            if how == How::Refused {
                search.refused.push(id);
            }
        }
        self.go_on(client);
    }

    /// How long it took is remembered; a peak at once.
    fn answered(&mut self, id: u64, begun: Instant, is_good: bool) {
        let ms = self.ms() as u32;
        let patience = self.pool.plan.connect_timeout;
        let took = if is_good { self.now - begun } else { (self.now - begun).max(patience) };
        let server = self.server_mut(id);
        server.latency = server.latency.observe(took, ms);
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        assert!(server.latency.us(ms) >= Some(us), "a peak counts in full");
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

/// One number for each address.
fn source_number(from: IpAddr) -> u128 {
    match from.to_canonical() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}
