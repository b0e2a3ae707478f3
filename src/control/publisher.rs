//! The only writer of snapshots: a plan and the live state behind it become one value.
//!
//! It keeps every count and every health state by name, so that a reload changes what the
//! operator changed and nothing else. It never talks to a worker and never waits; who hands
//! the result to the workers is `desk.rs`. Nothing else in the house builds a `Snapshot`, a
//! `Listener`, a `Pool` or a `Server`.

mod flows; // how connections ended, also those of pools that have left
mod routing; // where a listener's clients go

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use self::flows::Flows;
use self::routing::Routing;
use crate::config::plan::{self, Auto, Plan};
use crate::core::balance::{Chooser, Member};
use crate::core::health::State;
use crate::core::priority::Among;
use crate::live::gate::Gate;
use crate::live::{
    Answers, Bell, Guard, ListenerLive, Loads, PoolLive, Room, RouteLive, Rules, ServerLive, SharedBandwidth,
    Warmup,
};
use crate::snapshot::{Listener, Pool, Server, Snapshot};
use crate::telemetry::counters::PerWorker;
use crate::telemetry::stats::Flow;

/// One server of one pool at one address: what counts and health belong to. A server that
/// moves to another address begins anew, because nothing known of the old place holds there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerKey {
    pub pool: String,
    pub name: String,
    pub address: SocketAddr,
}

impl ServerKey {
    pub fn new(pool: &str, server: &plan::Server) -> Self {
        ServerKey { pool: pool.to_owned(), name: server.name.clone(), address: server.address }
    }
}

#[derive(Debug)]
pub struct Publisher {
    workers: usize,
    /// The limit that `max_connections = "auto"` came to, when that is what the first plan said.
    auto_max: Option<usize>,
    registry: Registry,
    /// Rung by every server's guard.
    bell: Arc<Bell>,
    current: Arc<Snapshot>,
}

/// Live state by name. An entry stays while a plan names it or a connection still holds it; a flow, as long as
/// its listener.
#[derive(Debug, Default)]
struct Registry {
    listeners: BTreeMap<String, Arc<ListenerLive>>,
    pools: BTreeMap<String, Arc<PoolLive>>,
    servers: BTreeMap<ServerKey, Arc<ServerLive>>,
    flows: Flows,
    /// By listener and name.
    routes: BTreeMap<(String, String), Arc<RouteLive>>,
}

impl Publisher {
    /// `max_connections` is the limit of the process as worked out at start.
    pub fn new(plan: &Plan, workers: usize, max_connections: usize) -> Self {
        let process_room = Room::new(max_connections);
        let nothing = Snapshot {
            generation: 0,
            process_room,
            loads: Loads::new(workers),
            listeners: BTreeMap::new(),
            pools: BTreeMap::new(),
        };
        let auto_max = (plan.process.max_connections == Auto::Auto).then_some(max_connections);
        let (registry, bell) = (Registry::default(), Arc::default());
        let mut publisher = Publisher { workers, auto_max, registry, bell, current: Arc::new(nothing) };
        publisher.publish(plan);
        publisher
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current)
    }

    /// Rings when passive health has acted.
    pub fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// A new plan: the next generation. Limits change in place, so they hold for connections
    /// that came under an older generation too.
    pub fn apply(&mut self, plan: &Plan) {
        let limit = match plan.process.max_connections {
            Auto::Set(limit) => Some(limit),
            Auto::Auto => self.auto_max, // unknown when the first plan named a number: the limit stays
        };
        if let Some(limit) = limit {
            self.current.process_room.set_limit(limit);
        }
        self.publish(plan);
        self.registry.prune(self.current.generation);
    }

    /// What a check found out. The generation stays. Says whether anything changed; a server
    /// that is not (or no longer) in the plan changes nothing.
    pub fn set_state(&mut self, key: &ServerKey, state: State) -> bool {
        let Some(pool) = self.current.pools.get(&key.pool) else { return false };
        let is_it = |server: &Server| server.plan.name == key.name && server.plan.address == key.address;
        let Some(server) = pool.servers.iter().find(|server| is_it(server) && server.state != state) else {
            return false;
        };
        // At the first check of all, everybody is new and nobody needs to begin slowly.
        let is_back = server.state != State::Checking || server.live.warmup.has_begun();
        if state == State::Up && is_back {
            server.live.warmup.begin(Instant::now());
        }
        let servers = pool.servers.iter().map(|server| Server {
            plan: server.plan.clone(),
            live: Arc::clone(&server.live),
            state: if is_it(server) { state } else { server.state },
        });
        let changed = finished(pool.plan.clone(), Arc::clone(&pool.live), servers.collect(), Some(pool));
        self.replace_pool(changed);
        true
    }

    /// Every flow that any connection may still count on, and those that listeners had in former plans.
    pub fn flows(&self) -> Vec<Arc<Flow>> {
        self.registry.flows.all().cloned().collect()
    }

    /// Servers that no plan names any more but connections still use.
    pub fn retired(&self) -> Vec<(ServerKey, Arc<ServerLive>)> {
        let entries = self.registry.servers.iter();
        entries
            .filter(|(key, live)| !is_planned(&self.current, key) && Arc::strong_count(live) > 1)
            .map(|(key, live)| (key.clone(), Arc::clone(live)))
            .collect()
    }

    fn publish(&mut self, plan: &Plan) {
        let previous = Arc::clone(&self.current);
        let loose = plan.pools.iter().map(|pool| (pool.name.clone(), self.pool(pool, &previous)));
        let pools = linked(loose.collect(), BTreeMap::new());
        let all_classes = Among::new(plan.listeners.iter().flat_map(|listener| listener.classes.all()));
        let listeners = plan
            .listeners
            .iter()
            .filter_map(|listener| {
                Some((listener.name.clone(), Arc::new(self.listener(listener, &pools, all_classes)?)))
            })
            .collect();
        self.current = Arc::new(Snapshot {
            generation: previous.generation + 1,
            process_room: Arc::clone(&previous.process_room),
            loads: Arc::clone(&previous.loads),
            listeners,
            pools,
        });
    }

    /// `None` where a pool of it does not exist; `check.rs` saw to it that each one does.
    fn listener(
        &mut self,
        plan: &plan::Listener,
        pools: &BTreeMap<String, Arc<Pool>>,
        all_classes: Among,
    ) -> Option<Listener> {
        let workers = self.workers;
        let limit = plan.max_connections.unwrap_or(usize::MAX);
        let live = self.registry.listeners.entry(plan.name.clone()).or_insert_with(|| {
            let name = plan.name.clone();
            let (room, gate) = (Room::new(limit), Gate::new(Instant::now()));
            let bandwidth = SharedBandwidth::new(Instant::now());
            Arc::new(ListenerLive { name, room, gate, bandwidth, stats: PerWorker::new(workers) })
        });
        live.room.set_limit(limit);
        live.bandwidth.set(plan.bandwidth);
        let live = Arc::clone(live);
        let mut routing = Routing { listener: plan, pools, registry: &mut self.registry, workers };
        let (routes, flow) = (routing.routes()?, routing.flow_at_first());
        let own_classes = Among::new(plan.classes.all());
        Some(Listener { plan: plan.clone(), live, routes, flow, own_classes, all_classes })
    }

    fn pool(&mut self, plan: &plan::Pool, previous: &Snapshot) -> Pool {
        let before = previous.pools.get(&plan.name);
        let workers = self.workers;
        let entry = self.registry.pools.entry(plan.name.clone());
        let live = Arc::clone(entry.or_insert_with(|| PoolLive::new(workers)));
        live.affinity.set_limit(plan.affinity.map_or(0, |affinity| affinity.max_entries));
        let servers: Vec<_> = plan
            .servers
            .iter()
            .map(|server| Server {
                plan: server.clone(),
                live: self.server_live(plan, server, &live),
                state: state_at_start(plan, server, before),
            })
            .inspect(|server| {
                if before.is_some_and(|before| is_new(server, before)) {
                    server.live.warmup.begin(Instant::now());
                }
            })
            .collect();
        fit_ward(plan, &live, &servers);
        finished(plan.clone(), live, servers, before)
    }

    fn server_live(&mut self, pool: &plan::Pool, plan: &plan::Server, of: &PoolLive) -> Arc<ServerLive> {
        let workers = self.workers;
        let limit = plan.max_connections.unwrap_or(usize::MAX);
        let live = self.registry.servers.entry(ServerKey::new(&pool.name, plan)).or_insert_with(|| {
            Arc::new(ServerLive {
                pool: pool.name.clone(),
                name: plan.name.clone(),
                address: plan.address,
                room: Room::new(limit),
                warmup: Warmup::new(),
                answers: Answers::default(),
                guard: Guard::new(Instant::now(), Arc::clone(&of.ward)).with_bell(&self.bell),
                stats: PerWorker::new(workers),
            })
        });
        live.room.set_limit(limit);
        live.guard.set_rules(Rules { breaker: pool.circuit_breaker, outlier: pool.outlier_detection });
        Arc::clone(live)
    }

    /// The same world with one pool replaced, and with it the pools that fall back to it; all else is
    /// shared with the snapshot before.
    fn replace_pool(&mut self, changed: Pool) {
        let old = Arc::clone(&self.current);
        let leads_to_it = |pool: &Arc<Pool>| pool.chain().any(|pool| pool.plan.name == changed.plan.name);
        let (stale, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            old.pools.clone().into_iter().partition(|(_, pool)| leads_to_it(pool));
        let mut loose: BTreeMap<_, _> =
            stale.iter().map(|(name, pool)| (name.clone(), unlinked(pool))).collect();
        loose.insert(changed.plan.name.clone(), changed);
        let pools = linked(loose, kept);
        let is_as_it_was =
            |pool: &Arc<Pool>| pools.get(&pool.plan.name).is_some_and(|new| Arc::ptr_eq(new, pool));
        let mut listeners = old.listeners.clone();
        for listener in listeners.values_mut() {
            if !listener.pools().all(is_as_it_was)
                && let Some(changed) = self.listener(&listener.plan, &pools, listener.all_classes)
            {
                *listener = Arc::new(changed);
            }
        }
        self.current = Arc::new(Snapshot {
            generation: old.generation,
            process_room: Arc::clone(&old.process_room),
            loads: Arc::clone(&old.loads),
            listeners,
            pools,
        });
    }
}

/// Gives each loose pool its fallback, from among them or from those that are linked already. The pools
/// at the ends of the chains come first, so there are no more rounds than a chain is long.
fn linked(
    mut loose: BTreeMap<String, Pool>,
    mut linked: BTreeMap<String, Arc<Pool>>,
) -> BTreeMap<String, Arc<Pool>> {
    while !loose.is_empty() {
        let is_ready = |pool: &Pool| pool.plan.fallback.as_ref().is_none_or(|name| linked.contains_key(name));
        let (ready, rest): (BTreeMap<_, _>, _) = loose.into_iter().partition(|(_, pool)| is_ready(pool));
        // `check.rs` saw to it that every chain ends; in one that did not, nobody would have a fallback.
        let (ready, rest) = if ready.is_empty() { (rest, ready) } else { (ready, rest) };
        let fallback_of =
            |pool: &Pool| pool.plan.fallback.as_ref().and_then(|name| linked.get(name)).cloned();
        let ready: Vec<_> = ready
            .into_iter()
            .map(|(name, pool)| (name, Arc::new(Pool { fallback: fallback_of(&pool), ..pool })))
            .collect();
        linked.extend(ready);
        loose = rest;
    }
    linked
}

/// The same pool, to be given its fallback anew.
fn unlinked(pool: &Pool) -> Pool {
    Pool {
        plan: pool.plan.clone(),
        live: Arc::clone(&pool.live),
        servers: pool.servers.clone(),
        chooser: pool.chooser.clone(),
        fallback: None,
    }
}

impl Registry {
    /// Forgets what only the registry itself still holds. What the current snapshot names is
    /// held by the snapshot, so it always stays.
    fn prune(&mut self, generation: u64) {
        self.listeners.retain(|_, live| Arc::strong_count(live) > 1);
        self.servers.retain(|_, live| Arc::strong_count(live) > 1);
        // A server that stays keeps the ward of its pool, which it must find again when both come back.
        let servers = &self.servers;
        let has_servers = |pool: &str| servers.keys().any(|key| key.pool == pool);
        self.pools.retain(|name, live| Arc::strong_count(live) > 1 || has_servers(name));
        let listeners = &self.listeners;
        self.flows.prune(generation, |listener| listeners.contains_key(listener));
        self.routes.retain(|_, live| Arc::strong_count(live) > 1);
    }
}

/// Who may be ejected, and how many at once.
fn fit_ward(plan: &plan::Pool, live: &PoolLive, servers: &[Server]) {
    let numbers: Vec<_> = match plan.outlier_detection {
        Some(_) => servers.iter().map(|server| server.live.guard.number()).collect(),
        None => Vec::new(),
    };
    let share = plan.outlier_detection.map_or(0.0, |rules| rules.max_ejected);
    live.ward.lock().unwrap_or_else(PoisonError::into_inner).fit(&numbers, share);
    servers.iter().for_each(|server| server.live.guard.end_ejection_without_bed(Instant::now()));
}

fn is_planned(snapshot: &Snapshot, key: &ServerKey) -> bool {
    snapshot.pools.get(&key.pool).is_some_and(|pool| {
        pool.servers.iter().any(|server| server.plan.name == key.name && server.plan.address == key.address)
    })
}

/// A server that was in the world before keeps its state: a reload must never open a window in
/// which nobody knows who is up. A new one is up where nothing checks it.
fn state_at_start(plan: &plan::Pool, server: &plan::Server, before: Option<&Arc<Pool>>) -> State {
    if plan.health_check.is_none() {
        return State::Up;
    }
    before
        .and_then(|pool| {
            pool.servers.iter().find(|old| old.plan.name == server.name && old.plan.address == server.address)
        })
        .map_or(State::Checking, |old| old.state)
}

/// A server that others have been serving without: it was not there, or had no weight.
fn is_new(server: &Server, before: &Pool) -> bool {
    let was_there = |old: &Server| Arc::ptr_eq(&old.live, &server.live) && old.plan.weight > 0;
    server.plan.weight > 0 && !before.servers.iter().any(was_there)
}

/// The pool with its chooser: the one place where a chooser is made. The one before lends its
/// table where names and weights are the same, so a server that goes up or down costs no new one.
fn finished(plan: plan::Pool, live: Arc<PoolLive>, servers: Vec<Server>, before: Option<&Arc<Pool>>) -> Pool {
    let members = members(&servers);
    let chooser = match before {
        Some(before) => before.chooser.rebuilt(plan.balance, members),
        None => Chooser::new(plan.balance, members),
    };
    let chooser = chooser.with_max_load(plan.max_load);
    Pool { plan, live, servers, chooser, fallback: None }
}

/// Who may be chosen: servers that are up. Where none is, those not checked yet stand in, since
/// refusing everyone would be worse than trying; a server known to be down never does.
fn members(servers: &[Server]) -> Vec<Member> {
    let serves = |server: &Server, state| server.state == state && server.plan.weight > 0;
    let standing = match servers.iter().any(|server| serves(server, State::Up)) {
        true => State::Up,
        false => State::Checking,
    };
    servers
        .iter()
        .map(|server| Member {
            name: server.plan.name.clone(),
            weight: server.plan.weight,
            is_eligible: server.state == standing,
            tier: server.plan.tier,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fixture::{a_check, plan_of};

    fn key(pool: &str, server: &plan::Server) -> ServerKey {
        ServerKey::new(pool, server)
    }

    fn server<'a>(snapshot: &'a Snapshot, pool: &str, name: &str) -> &'a Server {
        snapshot.pools[pool].servers.iter().find(|server| server.plan.name == name).expect("in the pool")
    }

    fn first_pool(snapshot: &Snapshot) -> &Arc<Pool> {
        snapshot.listeners["web"].pools().next().expect("it has one")
    }

    fn eligible(snapshot: &Snapshot, pool: &str) -> Vec<String> {
        let members = members(&snapshot.pools[pool].servers);
        members.into_iter().filter(|member| member.is_eligible).map(|member| member.name).collect()
    }

    #[test]
    fn counts_and_states_survive_a_reload() {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].health_check = Some(a_check());
        let mut publisher = Publisher::new(&plan, 2, 100);
        let first = publisher.snapshot();
        let place = server(&first, "api", "a").live.room.take().expect("room");
        first.listeners["web"].live.stats.of(1).accepted.add(7);
        assert!(publisher.set_state(&key("api", &plan.pools[0].servers[0]), State::Up));

        plan.pools[0].servers[0].weight = 5;
        publisher.apply(&plan);

        let second = publisher.snapshot();
        assert_eq!((first.generation, second.generation), (1, 2));
        let a = server(&second, "api", "a");
        assert_eq!((a.live.room.taken(), a.state, a.plan.weight), (1, State::Up, 5));
        assert_eq!(server(&second, "api", "b").state, State::Checking);
        assert_eq!(second.listeners["web"].live.stats.sum(|stats| stats.accepted.get()), 7);
        drop(place);
        assert_eq!(a.live.room.taken(), 0);
    }

    #[test]
    fn a_state_changes_without_a_new_generation_and_only_once() {
        let plan = plan_of("api", &["a", "b"]);
        let mut publisher = Publisher::new(&plan, 1, 100);
        let a = key("api", &plan.pools[0].servers[0]);
        assert!(publisher.set_state(&a, State::Down));
        assert!(!publisher.set_state(&a, State::Down));
        let now = publisher.snapshot();
        assert_eq!(now.generation, 1);
        assert_eq!(server(&now, "api", "a").state, State::Down);
        assert_eq!(first_pool(&now).servers[0].state, State::Down);
        let elsewhere = ServerKey { address: "127.0.0.9:1".parse().expect("an address"), ..a };
        assert!(!publisher.set_state(&elsewhere, State::Up));
    }

    #[test]
    fn unchecked_servers_stand_in_only_while_none_is_up_and_a_down_one_never_does() {
        let mut plan = plan_of("api", &["a", "b", "c"]);
        plan.pools[0].health_check = Some(a_check());
        let mut publisher = Publisher::new(&plan, 1, 100);
        let keys: Vec<_> = plan.pools[0].servers.iter().map(|server| key("api", server)).collect();
        assert_eq!(eligible(&publisher.snapshot(), "api"), ["a", "b", "c"]);
        publisher.set_state(&keys[0], State::Down);
        assert_eq!(eligible(&publisher.snapshot(), "api"), ["b", "c"]);
        publisher.set_state(&keys[1], State::Up);
        assert_eq!(eligible(&publisher.snapshot(), "api"), ["b"]);
        publisher.set_state(&keys[1], State::Down);
        publisher.set_state(&keys[2], State::Down);
        assert_eq!(eligible(&publisher.snapshot(), "api"), Vec::<String>::new());
    }

    #[test]
    fn a_server_that_is_up_without_weight_leaves_unchecked_ones_standing_in() {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].health_check = Some(a_check());
        plan.pools[0].servers[0].weight = 0;
        let mut publisher = Publisher::new(&plan, 1, 100);
        publisher.set_state(&key("api", &plan.pools[0].servers[0]), State::Up);
        assert_eq!(eligible(&publisher.snapshot(), "api"), ["b"]);
    }

    #[test]
    fn a_removed_server_is_kept_while_it_has_connections_and_comes_back_unchecked() {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].health_check = Some(a_check());
        let mut publisher = Publisher::new(&plan, 1, 100);
        let a = plan.pools[0].servers[0].clone();
        publisher.set_state(&key("api", &a), State::Up);
        let held = Arc::clone(&server(&publisher.snapshot(), "api", "a").live);
        let place = held.room.take().expect("room");

        plan.pools[0].servers.remove(0);
        publisher.apply(&plan);
        assert_eq!(publisher.retired().len(), 1);
        plan.pools[0].servers.push(a);
        publisher.apply(&plan);
        let now = publisher.snapshot();
        let back = server(&now, "api", "a");
        assert_eq!((back.live.room.taken(), back.state), (1, State::Checking));
        assert!(publisher.retired().is_empty());
        drop(place);
    }

    #[test]
    fn a_change_of_health_is_seen_through_every_pool_that_falls_back_to_it() {
        let mut plan = plan_of("api", &["a"]);
        for (name, fallback) in [("second", Some("third")), ("third", None), ("other", None)] {
            let fallback = fallback.map(str::to_owned);
            plan.pools.push(plan::Pool { name: name.into(), fallback, ..plan.pools[0].clone() });
        }
        plan.pools[0].fallback = Some("second".into());
        let mut publisher = Publisher::new(&plan, 1, 100);
        let before = publisher.snapshot();
        let names = |pool: &Arc<Pool>| pool.chain().map(|pool| pool.plan.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(first_pool(&before)), ["api", "second", "third"]);

        assert!(publisher.set_state(&key("third", &plan.pools[2].servers[0]), State::Down));

        let after = publisher.snapshot();
        let web = first_pool(&after);
        assert_eq!(names(web), ["api", "second", "third"]);
        assert_eq!(web.chain().last().expect("three").servers[0].state, State::Down);
        assert_eq!(after.pools["second"].chain().last().expect("two").servers[0].state, State::Down);
        assert!(Arc::ptr_eq(&before.pools["other"], &after.pools["other"]));
    }

    #[test]
    fn who_is_new_or_has_come_back_begins_slowly_and_nobody_else() {
        let mut plan = plan_of("api", &["a", "b", "idle"]);
        plan.pools[0].health_check = Some(a_check());
        plan.pools[0].servers[2].weight = 0;
        let new = plan.pools[0].servers.remove(1);
        let mut publisher = Publisher::new(&plan, 1, 100);
        let begun = |publisher: &Publisher| {
            let pool = Arc::clone(&publisher.snapshot().pools["api"]);
            let begun = pool.servers.iter().filter(|server| server.live.warmup.has_begun());
            begun.map(|server| server.plan.name.clone()).collect::<Vec<_>>()
        };
        let a = key("api", &plan.pools[0].servers[0]);
        publisher.set_state(&a, State::Up);
        publisher.apply(&plan);
        assert!(begun(&publisher).is_empty(), "all began together, and a reload changes nothing of it");

        plan.pools[0].servers.push(new);
        plan.pools[0].servers[1].weight = 100;
        publisher.apply(&plan);
        assert_eq!(begun(&publisher), ["idle", "b"]);
        publisher.set_state(&a, State::Down);
        publisher.set_state(&a, State::Up);
        assert_eq!(begun(&publisher), ["a", "idle", "b"]);
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let mut plan = plan_of("api", &["a", "b"]);
        let mut publisher = Publisher::new(&plan, 1, 100);
        plan.pools[0].servers.remove(0);
        publisher.apply(&plan);
        assert_eq!(publisher.registry.servers.len(), 1);
        assert!(publisher.retired().is_empty());
    }

    #[test]
    fn limits_take_effect_on_what_is_open_already() {
        let mut plan = plan_of("api", &["a"]);
        let mut publisher = Publisher::new(&plan, 1, 100);
        let before = publisher.snapshot();
        plan.process.max_connections = Auto::Set(9);
        plan.listeners[0].max_connections = Some(8);
        plan.pools[0].servers[0].max_connections = Some(7);
        publisher.apply(&plan);
        assert_eq!(before.process_room.limit(), 9);
        assert_eq!(before.listeners["web"].live.room.limit(), 8);
        assert_eq!(server(&before, "api", "a").live.room.limit(), 7);

        plan.process.max_connections = Auto::Auto;
        plan.listeners[0].max_connections = None;
        publisher.apply(&plan);
        assert_eq!(before.process_room.limit(), 100);
        assert_eq!(before.listeners["web"].live.room.limit(), usize::MAX);
    }
}
