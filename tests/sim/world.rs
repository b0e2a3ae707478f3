//! The world: a listener, a pool with its servers, and the clients that come and go.
//!
//! What decides is the product's; what it is asked for, and when, is drawn. Beside each core
//! stands its plain model, and the two are compared wherever they meet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tidegate::core::acl::Acl;
use tidegate::core::affinity::By;
use tidegate::core::balance::{Chooser, Member};
use tidegate::core::health::{Health, State};
use tidegate::core::prefix::Prefix;
use tidegate::core::slow_start::Share;
use tidegate::live::gate::{Gate, Place};
use tidegate::live::search::{self, Rules};
use tidegate::live::{Answers, Guard, Loads, Permit, PoolLive, Room, Seat, ServerLive, Warmup};
use tidegate::telemetry::counters::PerWorker;

use super::dice::Dice;
use super::model::circuit::Circuit;
use super::model::door::Jars;
use super::model::doubt::Doubt;
use super::model::line::Waiting;
use super::model::record::{Out, Record};
use super::model::retries::Retries;
use super::model::ties::Ties;
use super::plan::{Plan, ServerPlan};
use super::search::{Search, Stage};
use super::trace::Trace;
use super::view::Memo;
use super::waiting::Waits;

/// Workers that clients are spread over.
pub const WORKERS: usize = 3;

/// As many parts as `live.rs` keeps an affinity in.
const PARTS: usize = 16;

/// What a server does to those who connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    Answers,
    /// Takes its time, at times more than there is.
    Slow,
    Refuses,
    Silent,
    /// Takes connections and does nothing of use with them.
    Rotten,
}

/// A server: what is alive of it in the product, what it does in truth, and what the models hold of it.
pub struct Server {
    pub id: u64,
    pub name: u64,
    /// For ever, as passes borrow from it over many steps.
    pub live: &'static Arc<ServerLive>,
    pub truth: Truth,
    pub health: Health,
    pub state: State,
    pub warm_since: Option<Instant>,
    /// The slowest answer so far, in microseconds.
    pub slowest: u32,
    pub circuit: Circuit,
    pub record: Record,
    pub doubt: Doubt,
    /// Connections, counted by the model.
    pub has: usize,
    /// The latest checks: whether they passed, and how many alike in a row.
    pub run: (bool, u32),
    last_share: Option<(Instant, Share)>,
}

/// A pool as one reload left it, for those who began then.
pub struct Pool {
    pub plan: Plan,
    pub places: Vec<PoolPlace>,
    pub chooser: Chooser,
}

#[derive(Clone, Debug)]
pub struct PoolPlace {
    pub id: u64,
    pub live: &'static Arc<ServerLive>,
    pub plan: ServerPlan,
    pub state: State,
}

impl Pool {
    pub fn has_up(&self, id: u64) -> bool {
        self.places.iter().any(|place| place.id == id && place.state == State::Up)
    }
}

/// As the snapshot shows a pool to a walk.
impl search::Pool<'static> for &Pool {
    fn rules(&self) -> Rules {
        let plan = &self.plan;
        Rules {
            attempts: plan.attempts,
            backoff: plan.backoff,
            max_backoff: plan.max_backoff,
            budget: plan.budget,
            deadline: plan.deadline,
            affinity: plan.affinity.map(|affinity| (By::SourceIp, affinity.ttl)),
            has_line: plan.queue.is_some(),
            ejects: plan.guard.outlier.is_some(),
        }
    }

    fn chooser(&self) -> &Chooser {
        &self.chooser
    }

    fn size(&self) -> usize {
        self.places.len()
    }

    fn server(&self, place: usize) -> &'static Arc<ServerLive> {
        self.places[place].live
    }

    fn is_up(&self, place: usize) -> bool {
        self.places[place].state == State::Up
    }

    fn share(&self, place: usize, now: Instant) -> Share {
        self.plan.slow_start.map_or(Share::FULL, |over| self.places[place].live.warmup.share(over, now))
    }
}

pub struct Client {
    pub id: u64,
    pub from: IpAddr,
    /// Whom its place among those of its source is counted for, if they are counted.
    pub source: Option<Prefix>,
    pub seat: Seat,
    pub _room: Permit,
    pub _place: Option<Box<Place>>,
    pub search: Option<Search>,
    pub waits: Option<Waits>,
    pub stage: Stage,
}

/// What the models hold of the pool and the listener.
pub struct Models {
    pub ties: Ties,
    pub line: Waiting,
    pub retries: Retries,
    pub out: Out,
    pub jars: Jars<Prefix>,
    pub jar: Jars<()>,
    /// Where keys went, by all that a consistent hash may depend on.
    pub memo: Memo,
}

pub struct World {
    pub dice: Dice,
    pub trace: Trace,
    pub born: Instant,
    pub now: Instant,
    pub live: &'static PoolLive,
    pub pool: Rc<Pool>,
    /// Grows with each change of the pool.
    pub news: u64,
    pub servers: BTreeMap<u64, Server>,
    pub clients: BTreeMap<u64, Client>,
    pub listener: Arc<Room>,
    pub gate: Arc<Gate>,
    pub acl: Acl,
    pub loads: Arc<Loads>,
    pub models: Models,
    pub numbers: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(&mut dice);
        // Ahead of the real clock, which some of the product's parts read when they are made.
        let born = Instant::now() + Duration::from_secs(3600);
        let nobody =
            Pool { plan: plan.clone(), places: Vec::new(), chooser: Chooser::new(plan.kind, Vec::new()) };
        let mut world = World {
            dice,
            trace: Trace::new(seed),
            born,
            now: born,
            live: Box::leak(Box::new(PoolLive::new(WORKERS))),
            pool: Rc::new(nobody),
            news: 0,
            servers: BTreeMap::new(),
            clients: BTreeMap::new(),
            listener: Room::new(0),
            gate: Gate::new(born),
            acl: Acl::default(),
            loads: Loads::new(WORKERS),
            models: Models {
                ties: Ties::new(PARTS),
                line: Waiting::default(),
                retries: Retries::default(),
                out: Out::default(),
                jars: Jars::new(),
                jar: Jars::new(),
                memo: Memo::default(),
            },
            numbers: 0,
        };
        world.apply(plan);
        world
    }

    /// Milliseconds since the world began, for the trace.
    pub fn ms(&self) -> u128 {
        (self.now - self.born).as_millis()
    }

    pub fn server(&self, id: u64) -> &Server {
        &self.servers[&id]
    }

    pub fn server_mut(&mut self, id: u64) -> &mut Server {
        self.servers.get_mut(&id).expect("kept while somebody is on it")
    }

    /// A new plan, as `control/publisher.rs` applies one.
    pub fn apply(&mut self, plan: Plan) {
        let affinity = plan.affinity.map_or(0, |affinity| affinity.most);
        self.live.affinity.set_limit(affinity);
        self.models.ties.set_limit(affinity);
        let places: Vec<_> = plan.servers.iter().map(|server| self.place(server, &plan)).collect();
        self.fit(&plan, &places);
        self.listener.set_limit(plan.door.most);
        self.acl = Acl::new(plan.door.allow.iter().copied(), plan.door.deny.iter().copied());
        self.models.jars.set_rate(plan.door.rate_per_source);
        self.models.jar.set_rate(plan.door.rate);
        self.publish(plan, places);
        self.prune();
        self.servers.values_mut().for_each(|server| server.last_share = None);
    }

    /// Forgets servers that no plan names and nobody may still come to.
    fn prune(&mut self) {
        let mut held: BTreeSet<_> = self.pool.places.iter().map(|place| place.id).collect();
        let searches = self.clients.values().filter_map(|client| client.search.as_ref());
        held.extend(searches.flat_map(|search| search.pool.places.iter().map(|place| place.id)));
        self.servers.retain(|id, server| held.contains(id) || server.has > 0);
    }

    fn place(&mut self, planned: &ServerPlan, plan: &Plan) -> PoolPlace {
        let known = self.servers.values().find(|server| server.name == planned.name).map(|server| server.id);
        let before = known.and_then(|id| self.pool.places.iter().find(|place| place.id == id)).cloned();
        let id = known.unwrap_or_else(|| self.new_server(planned.name));
        let (now, is_first) = (self.now, self.news == 0);
        let server = self.server_mut(id);
        server.live.room.set_limit(planned.most);
        server.live.guard.set_rules(plan.guard.rules());
        server.circuit.set_rules(plan.guard.breaker);
        server.record.set_rules(plan.guard.outlier);
        server.doubt.set_rules(plan.guard.breaker.is_some() || plan.guard.outlier.is_some());
        let (rise, fall) = plan.checks.unwrap_or((1, 1));
        let state = match (&before, plan.checks) {
            (_, None) => State::Up,
            (Some(before), _) => before.state,
            (None, _) => State::Checking,
        };
        (server.health, server.state, server.run) = (Health::resume(state, rise, fall), state, (true, 0));
        let served = before.is_some_and(|before| before.plan.weight > 0);
        if planned.weight > 0 && !served && !is_first {
            server.warm_up(now);
        }
        PoolPlace { id, live: self.server(id).live, plan: planned.clone(), state }
    }

    fn new_server(&mut self, name: u64) -> u64 {
        self.numbers += 1;
        let ward = Arc::clone(&self.live.ward);
        let live = Arc::new(ServerLive {
            pool: "pool".to_owned(),
            name: format!("s{name}"),
            address: SocketAddr::from(([192, 0, 2, 1], 1)),
            room: Room::new(0),
            warmup: Warmup::new(),
            answers: Answers::default(),
            guard: Guard::new(self.born, ward),
            stats: PerWorker::new(1),
        });
        let server = Server {
            id: self.numbers,
            name,
            live: Box::leak(Box::new(live)),
            truth: Truth::Answers,
            health: Health::new(1, 1),
            state: State::Checking,
            warm_since: None,
            slowest: 1,
            circuit: Circuit::default(),
            record: Record::default(),
            doubt: Doubt::default(),
            has: 0,
            run: (true, 0),
            last_share: None,
        };
        self.servers.insert(self.numbers, server);
        self.numbers
    }

    /// Who may be ejected, and how many at once.
    fn fit(&mut self, plan: &Plan, places: &[PoolPlace]) {
        let is_watched = plan.guard.outlier.is_some();
        let ids: Vec<_> = places.iter().filter(|_| is_watched).map(|place| place.id).collect();
        let numbers: Vec<_> = ids.iter().map(|id| self.server(*id).live.guard.number()).collect();
        let share = plan.guard.outlier.map_or(0.0, |rules| rules.max_ejected);
        self.live.ward.lock().unwrap_or_else(PoisonError::into_inner).fit(&numbers, share);
        self.models.out.fit(&ids, share);
    }

    /// The pool with a chooser over who may be chosen now: those that are up or, where none is, those
    /// that are not checked yet.
    pub fn publish(&mut self, plan: Plan, places: Vec<PoolPlace>) {
        let serves = |place: &PoolPlace, state| place.state == state && place.plan.weight > 0;
        let is_any_up = places.iter().any(|place| serves(place, State::Up));
        let standing = if is_any_up { State::Up } else { State::Checking };
        let member = |place: &PoolPlace| Member {
            name: format!("s{}", place.plan.name),
            weight: place.plan.weight,
            is_eligible: place.state == standing,
            tier: place.plan.tier,
        };
        let members = places.iter().map(member).collect();
        let chooser = self.pool.chooser.rebuilt(plan.kind, members).with_max_load(plan.max_load);
        self.pool = Rc::new(Pool { plan, places, chooser });
        self.news += 1;
    }

    /// A check has answered, and with it may come another state.
    pub fn check_server(&mut self, place: usize) {
        let Some((rise, fall)) = self.pool.plan.checks else { return };
        let id = self.pool.places[place].id;
        let is_lost = self.dice.once_in(20);
        let now = self.now;
        let server = self.server_mut(id);
        let ok = !matches!(server.truth, Truth::Refuses | Truth::Silent) && !is_lost;
        let before = server.state;
        server.run = if server.run.0 == ok { (ok, server.run.1 + 1) } else { (ok, 1) };
        let change = server.health.on_result(ok);
        let (seen, needed) = if ok { (State::Up, rise) } else { (State::Down, fall) };
        let turns = before == State::Checking || server.run.1 >= needed;
        let expected = if turns { seen } else { before };
        assert_eq!(server.health.state(), expected, "after {:?} in a row from {before}", server.run);
        assert_eq!(change, (before != expected).then_some(expected));
        let Some(state) = change else { return };
        server.state = state;
        let mut has_recovered = false;
        if state == State::Up {
            server.live.guard.trust();
            server.doubt.trust();
            server.live.guard.recover(now);
            has_recovered = server.circuit.on_recovery(now);
        }
        let is_back = before != State::Checking || server.warm_since.is_some();
        if state == State::Up && is_back {
            server.warm_up(now);
        }
        self.trace.add("state", format_args!("s{id} {state}"));
        if has_recovered {
            self.trace.add("recovered", format_args!("s{id}"));
        }
        let mut places = self.pool.places.clone();
        places[place].state = state;
        self.publish(self.pool.plan.clone(), places);
    }
}

impl Server {
    fn warm_up(&mut self, now: Instant) {
        (self.warm_since, self.last_share) = (Some(now), None);
        self.live.warmup.begin(now);
    }

    pub fn is_suspect(&self, now: Instant) -> bool {
        self.record.is_out(now) || self.doubt.is_on(now)
    }

    /// The product counts in milliseconds, each of which may have begun.
    pub fn share(&self, over: Option<Duration>, now: Instant) -> Share {
        let Some(over) = over else { return Share::FULL };
        let share = self.live.warmup.share(over, now);
        let after = |since: Instant| Share::after(now + Duration::from_millis(1) - since, over);
        let most = self.warm_since.map_or(Share::FULL, after);
        let least = self.warm_since.map_or(Share::FULL, |since| Share::after(now - since, over));
        assert!(least <= share && share <= most, "{share:?} is not between {least:?} and {most:?}");
        share
    }

    /// What the server looks like from outside is what the models say.
    pub fn check(&mut self, over: Option<Duration>, now: Instant) {
        let (guard, id) = (&self.live.guard, self.id);
        assert_eq!(self.live.room.taken(), self.has, "connections of s{id}");
        let circuit = guard.circuit(now);
        assert_eq!(circuit.map(|circuit| circuit.state), self.circuit.state(now), "breaker of s{id}");
        let opened = circuit.map_or(self.circuit.opened, |circuit| circuit.opened);
        assert_eq!(opened, self.circuit.opened, "how often the breaker of s{id} opened");
        assert_eq!(guard.is_open(now), self.circuit.may_enter(now), "may s{id} be tried");
        assert_eq!(guard.is_ejected(now), self.record.is_out(now), "is s{id} out");
        assert_eq!(guard.is_suspect(now), self.is_suspect(now), "is s{id} in doubt");
        let share = self.share(over, now);
        let is_growing = self.last_share.is_none_or(|(_, before)| before <= share);
        assert!(
            share <= Share::FULL && share.thousandths() > 0 && is_growing,
            "the share of s{id}: {share:?}"
        );
        self.last_share = over.map(|_| (now, share));
        let us = self.live.answers.us(now);
        assert!(us.is_none_or(|us| (1..=self.slowest).contains(&us)), "{us:?} of {}", self.slowest);
    }
}
