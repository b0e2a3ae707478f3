//! The desk as the API shows it. Reads, counts and words; changes nothing.

use super::api;
use super::checks::{Checked, Found, Last};
use super::desk::Desk;
use super::publisher::ServerKey;
use std::sync::Arc;
use std::time::Instant;

use crate::config::plan;
use crate::core::breaker;
use crate::core::health::State;
use crate::live::{Circuit, Watched};
use crate::snapshot::{Listener, Pool, Route, Server};

/// The version of the binary, as every view tells it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn status(desk: &Desk) -> api::Status {
    let snapshot = desk.snapshot();
    let states: Vec<_> = snapshot.pools.values().map(|pool| Standing::of(pool)).collect();
    let count = |standing| states.iter().filter(|state| **state == standing).count();
    let accepted = |listener: &Arc<Listener>| listener.live.stats.sum(|stats| stats.accepted.get());
    api::Status {
        version: VERSION.into(),
        generation: snapshot.generation,
        started: desk.started.to_string(),
        io: desk.io.to_string(),
        io_reason: desk.io_reason.into(),
        workers: desk.worker_count(),
        state: if desk.is_draining() { "draining" } else { "serving" }.into(),
        connections: api::Connections {
            active: snapshot.process_room.taken(),
            total: snapshot.listeners.values().map(accepted).sum(),
        },
        listeners: snapshot.listeners.len(),
        pools: api::Pools {
            total: states.len(),
            degraded: count(Standing::Degraded),
            empty: count(Standing::Empty),
        },
        last_reload: desk.last_reload().map(|last| api::LastReload {
            at: last.at.to_string(),
            ok: last.ok,
            message: last.message,
        }),
    }
}

pub fn listeners(desk: &Desk) -> Vec<api::Listener> {
    let snapshot = desk.snapshot();
    let shown = |listener: &Arc<Listener>| {
        let (room, reaches) = (&listener.live.room, listener.reaches_of_anybody());
        let state = match () {
            () if desk.is_draining() => "draining",
            () if room.is_full() => "full",
            () if room.is_full_within(reaches.listener) => "held back",
            () if snapshot.process_room.is_full_within(reaches.process) => "held back",
            () => "listening",
        };
        api::Listener {
            name: listener.plan.name.clone(),
            bind: listener.plan.bind.iter().map(ToString::to_string).collect(),
            pool: listener.plan.target.as_ref().map(|target| target.pool.clone()),
            canary: default_route(listener).and_then(canary),
            routes: listener.plan.routes.iter().zip(&listener.routes).map(route).collect(),
            active: room.taken(),
            total: listener.live.stats.sum(|stats| stats.accepted.get()),
            rejected: listener.live.stats.sum(|stats| stats.rejected.total()),
            limit: listener.plan.max_connections,
            state: state.into(),
        }
    };
    snapshot.listeners.values().map(shown).collect()
}

/// The one for whoever the others do not take.
fn default_route(listener: &Listener) -> Option<&Route> {
    listener.routes.get(listener.plan.routes.len())
}

fn route((plan, route): (&plan::Route, &Route)) -> api::Route {
    api::Route {
        name: plan.name.clone(),
        from: networks(&plan.from),
        pool: plan.target.as_ref().map(|target| target.pool.clone()),
        canary: canary(route),
        total: route.live.as_ref().map_or(0, |live| live.stats.sum(|stats| stats.connections.get())),
    }
}

fn canary(route: &Route) -> Option<api::Canary> {
    let canary = route.target.as_ref()?.canary.as_ref()?;
    Some(api::Canary {
        pool: canary.pool.plan.name.clone(),
        share: canary.split.share.to_string(),
        by: canary.split.by.to_string(),
        from: networks(&canary.from),
        total: canary.live.stats.sum(|stats| stats.canary.get()),
        left: canary.live.stats.sum(|stats| stats.canary_left.get()),
    })
}

fn networks(from: &plan::Acl) -> Vec<String> {
    from.allowed().iter().map(ToString::to_string).collect()
}

pub fn pools(desk: &Desk) -> Vec<api::Pool> {
    let shown = |pool: &Pool| api::Pool {
        name: pool.plan.name.clone(),
        balance: pool.plan.balance.to_string(),
        fallback: pool.plan.fallback.clone(),
        servers_up: servers_in(pool, Shown::Checked(State::Up)),
        servers_total: pool.servers.len(),
        active: pool.servers.iter().map(|server| server.live.room.taken()).sum(),
        queued: pool.live.line.length(),
        state: Standing::of(pool).word().into(),
        why: why_pool(pool),
    };
    desk.snapshot().pools.values().map(|pool| shown(pool)).collect()
}

pub fn servers(desk: &Desk) -> Vec<api::Server> {
    let snapshot = desk.snapshot();
    let pools = snapshot.pools.values();
    pools.flat_map(|pool| pool.servers.iter().map(|server| self::server(desk, pool, server))).collect()
}

fn server(desk: &Desk, pool: &Pool, server: &Server) -> api::Server {
    let last =
        desk.checks.get(&ServerKey::new(&pool.plan.name, &server.plan)).as_deref().and_then(Checked::last);
    let stats = &server.live.stats;
    let (guard, now) = (&server.live.guard, Instant::now());
    let (circuit, watched) = (guard.circuit(now), guard.watched(now));
    api::Server {
        pool: pool.plan.name.clone(),
        name: server.plan.name.clone(),
        address: server.plan.address.to_string(),
        state: Shown::of(server, now).word().into(),
        why: why_server(pool, server, last.as_ref(), circuit, watched),
        weight: server.plan.weight,
        tier: server.plan.tier,
        active: server.live.room.taken(),
        total: stats.sum(|stats| stats.connections.get()),
        connect_failures: stats.sum(|stats| stats.connect_failures.total()),
        last_check: last.map(|last| api::LastCheck {
            at: last.at.to_string(),
            ok: last.found == Found::Ok,
            ms: last.took.as_micros() as f64 / 1000.0,
            message: found_text(&last.found),
        }),
        circuit: circuit.map(|circuit| circuit.state.to_string()),
    }
}

/// How well a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Up,
    Degraded,
    /// No server is up. Where none has been checked yet, they are tried all the same.
    Empty,
}

impl Standing {
    pub fn of(pool: &Pool) -> Self {
        match servers_in(pool, Shown::Checked(State::Up)) {
            0 => Standing::Empty,
            up if up == pool.servers.len() => Standing::Up,
            _ => Standing::Degraded,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Standing::Up => "up",
            Standing::Degraded => "degraded",
            Standing::Empty => "empty",
        }
    }
}

/// What a server is shown as: how its checks go, or that it is ejected although they go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Checked(State),
    Ejected,
}

impl Shown {
    pub fn of(server: &Server, now: Instant) -> Self {
        match server.state {
            State::Up if server.live.guard.is_ejected(now) => Shown::Ejected,
            state => Shown::Checked(state),
        }
    }

    /// Every state there is.
    pub fn all() -> impl Iterator<Item = Self> {
        State::ALL.iter().map(|state| Shown::Checked(*state)).chain([Shown::Ejected])
    }

    pub fn word(self) -> &'static str {
        match self {
            Shown::Checked(state) => state.word(),
            Shown::Ejected => "ejected",
        }
    }
}

pub fn servers_in(pool: &Pool, shown: Shown) -> usize {
    let now = Instant::now();
    pool.servers.iter().filter(|server| Shown::of(server, now) == shown).count()
}

fn why_pool(pool: &Pool) -> String {
    let now = Instant::now();
    let names = |shown| {
        let named = pool.servers.iter().filter(move |server| Shown::of(server, now) == shown);
        named.map(|server| format!("`{}`", server.plan.name)).collect::<Vec<_>>().join(", ")
    };
    let checked = Shown::Checked;
    let parts = [
        (checked(State::Down), "down"),
        (checked(State::Checking), "not checked yet"),
        (Shown::Ejected, "ejected"),
    ];
    let told = parts.map(|(shown, word)| (names(shown), word));
    let told = told.iter().filter(|(names, _)| !names.is_empty());
    let mut told: Vec<_> = told.map(|(names, word)| format!("{word}: {names}")).collect();
    let first = pool.servers.iter().filter(|server| server.plan.weight > 0).map(|s| s.plan.tier).min();
    match serving_tier(pool) {
        Some(tier) if Some(tier) != first => {
            told.push(format!("tier {tier} serves: no lower one has a server that is up and has room left"));
        }
        Some(_) => {}
        None => {
            told.extend(pool.plan.fallback.as_ref().map(|name| format!("clients go to the pool `{name}`")));
        }
    }
    told.join("; ")
}

/// The tier that would take a client now; `None` where no server is up and has room left.
fn serving_tier(pool: &Pool) -> Option<u8> {
    let serves =
        |server: &&Server| server.state == State::Up && server.plan.weight > 0 && !server.live.room.is_full();
    pool.servers.iter().filter(serves).map(|server| server.plan.tier).min()
}

fn why_server(
    pool: &Pool,
    server: &Server,
    last: Option<&Last>,
    circuit: Option<Circuit>,
    watched: Option<Watched>,
) -> String {
    if let (State::Up, Some((left, cause))) = (server.state, watched.and_then(|watched| watched.ejected)) {
        return format!("ejected for {:.1} s more: {cause}", left.as_secs_f64());
    }
    let is_shut = circuit.is_some_and(|circuit| circuit.state != breaker::State::Closed);
    match (server.state, last) {
        (State::Down, Some(last)) => found_text(&last.found),
        (State::Checking, _) => "waiting for its first check".into(),
        (State::Up, _) if server.plan.weight == 0 => "weight 0: gets no new connections".into(),
        (State::Up, _) if server.live.room.is_full() => "at its max_connections".into(),
        (State::Up, _) if is_shut => circuit.map(why_circuit).unwrap_or_default(),
        (State::Up, _) if !pool.share(server, Instant::now).is_full() => {
            let share = pool.share(server, Instant::now).of(100);
            format!("slow start: has {share:.0}% of its weight")
        }
        (State::Up, _) if server.plan.tier > 0 => match serving_tier(pool) {
            Some(tier) if tier < server.plan.tier => format!("stands by while tier {tier} serves"),
            _ => format!("serves for the tiers below {}", server.plan.tier),
        },
        _ => String::new(),
    }
}

/// Of a breaker that is not closed.
fn why_circuit(circuit: Circuit) -> String {
    match (circuit.state, circuit.open_for) {
        (breaker::State::Open, Some(left)) => {
            format!("its circuit breaker is open for {:.1} s more", left.as_secs_f64())
        }
        _ => "its circuit breaker lets a few try".into(),
    }
}

fn found_text(found: &Found) -> String {
    match found {
        Found::Ok => "ok".into(),
        Found::Failed(why) => why.clone(),
        Found::Void(why) => format!("does not count: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::fixture::{a_check, desk_of, plan_of};

    #[test]
    fn a_pool_says_how_it_stands_and_why() {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].health_check = Some(a_check());
        let desk = desk_of(&plan);
        let keys: Vec<_> = plan.pools[0].servers.iter().map(|server| ServerKey::new("api", server)).collect();
        let stands = || {
            let pool = pools(&desk).remove(0);
            (pool.state, pool.why, pool.servers_up)
        };
        assert_eq!(stands(), ("empty".into(), "not checked yet: `a`, `b`".into(), 0));
        desk.set_state(&keys[0], State::Up);
        assert_eq!(stands(), ("degraded".into(), "not checked yet: `b`".into(), 1));
        desk.set_state(&keys[1], State::Up);
        assert_eq!(stands(), ("up".into(), String::new(), 2));
        desk.set_state(&keys[0], State::Down);
        desk.set_state(&keys[1], State::Down);
        assert_eq!(stands(), ("empty".into(), "down: `a`, `b`".into(), 0));
        assert_eq!(status(&desk).pools, api::Pools { total: 1, degraded: 0, empty: 1 });
    }

    #[test]
    fn standby_servers_say_whether_they_serve() {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].servers[1].tier = 1;
        let desk = desk_of(&plan);
        let whys = || (pools(&desk).remove(0).why, servers(&desk).remove(1).why);
        assert_eq!(whys(), (String::new(), "stands by while tier 0 serves".into()));
        desk.set_state(&ServerKey::new("api", &plan.pools[0].servers[0]), State::Down);
        let serves = "down: `a`; tier 1 serves: no lower one has a server that is up and has room left";
        assert_eq!(whys(), (serves.into(), "serves for the tiers below 1".into()));
    }

    #[test]
    fn a_server_that_is_down_says_what_its_last_check_found() {
        let mut plan = plan_of("api", &["a"]);
        plan.pools[0].health_check = Some(a_check());
        let desk = desk_of(&plan);
        let key = ServerKey::new("api", &plan.pools[0].servers[0]);
        let failed = Found::Failed("connection refused".into());
        desk.checks.entry(&key).note(failed, Duration::from_micros(1500));
        desk.set_state(&key, State::Down);
        let server = servers(&desk).remove(0);
        assert_eq!((server.state.as_str(), server.why.as_str()), ("down", "connection refused"));
        let last = server.last_check.expect("checked");
        assert_eq!((last.ok, last.ms, last.message.as_str()), (false, 1.5, "connection refused"));
    }

    #[test]
    fn the_shapes_have_exactly_the_promised_names() {
        let desk = desk_of(&plan_of("api", &["a"]));
        let keys = |value: serde_json::Value| {
            let object = value.as_object().expect("an object").clone();
            object.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        let json = |value| serde_json::to_value(value).expect("JSON");
        assert_eq!(
            keys(json(status(&desk))),
            "connections generation io io_reason last_reload listeners pools started state version workers"
        );
        let first = |value: serde_json::Value| value[0].clone();
        assert_eq!(
            keys(first(serde_json::to_value(listeners(&desk)).expect("JSON"))),
            "active bind canary limit name pool rejected routes state total"
        );
        assert_eq!(
            keys(first(serde_json::to_value(pools(&desk)).expect("JSON"))),
            "active balance fallback name queued servers_total servers_up state why"
        );
        assert_eq!(
            keys(first(serde_json::to_value(servers(&desk)).expect("JSON"))),
            "active address circuit connect_failures last_check name pool state tier total weight why"
        );
    }
}
