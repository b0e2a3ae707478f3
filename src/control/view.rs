//! The desk as the API shows it. Reads, counts and words; changes nothing.

use super::api;
use super::checks::{Checked, Found, Last};
use super::desk::Desk;
use super::publisher::ServerKey;
use super::standing::{self, Asked, Next, Shown, Standing, servers_in};
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
    let shown = |pool: &Arc<Pool>| api::Pool {
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
    desk.snapshot().pools.values().map(shown).collect()
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

fn why_pool(pool: &Arc<Pool>) -> String {
    let now = Instant::now();
    let is_shown = |shown| move |server: &&Server| Shown::of(server, now) == shown;
    let is_doubted = |it: &&Server| is_shown(Shown::Checked(State::Up))(it) && is_in_doubt(it, now);
    let of = || pool.servers.iter();
    let parts = [
        ("down", names(of().filter(is_shown(Shown::Checked(State::Down))))),
        ("not checked yet", names(of().filter(is_shown(Shown::Checked(State::Checking))))),
        ("ejected", names(of().filter(is_shown(Shown::Ejected)))),
        ("circuit breaker open", names(of().filter(is_shown(Shown::CutOff)))),
        ("on trial by the circuit breaker", names(of().filter(is_shown(Shown::OnTrial)))),
        ("in doubt", names(of().filter(is_doubted))),
    ];
    let told = parts.iter().filter(|(_, names)| !names.is_empty());
    let mut told: Vec<_> = told.map(|(word, names)| format!("{word}: {names}")).collect();
    if standing::asked(pool, true, now).is_none() {
        let full = names(standing::full(pool, now));
        told.extend((!full.is_empty()).then(|| format!("at its max_connections: {full}")));
    }
    told.extend(why_next(pool, now));
    told.join("; ")
}

fn names<'a>(servers: impl Iterator<Item = &'a Server>) -> String {
    servers.map(|server| format!("`{}`", server.plan.name)).collect::<Vec<_>>().join(", ")
}

/// Where the next client goes, unless it is where it should.
fn why_next(pool: &Arc<Pool>, now: Instant) -> Option<String> {
    let first = pool.servers.iter().filter(|server| server.plan.weight > 0).map(|s| s.plan.tier).min();
    let others = match &pool.fallback {
        Some(_) => "what it falls back to takes nobody either, ",
        None => "",
    };
    Some(match standing::next(pool, now) {
        Next::Asks(asked) if asked.is_last_resort => "nobody else is left, so even those are asked".into(),
        Next::Asks(asked) if Some(asked.tier) == first => return None,
        Next::Asks(Asked { tier, .. }) => {
            format!("tier {tier} serves: no lower one has a server that can be asked and has room left")
        }
        Next::GoesTo(other) => format!("clients go to the pool `{}`", other.plan.name),
        Next::Waits(own) if own.plan.name == pool.plan.name => format!("{others}clients wait here"),
        Next::Waits(other) => format!("clients wait for the pool `{}`", other.plan.name),
        Next::IsRefused => format!("{others}clients are refused"),
    })
}

fn why_server(
    pool: &Pool,
    server: &Server,
    last: Option<&Last>,
    circuit: Option<Circuit>,
    watched: Option<Watched>,
) -> String {
    let now = Instant::now();
    let ejected = watched.and_then(|watched| watched.ejected);
    match (Shown::of(server, now), last) {
        (Shown::Checked(State::Down), Some(last)) => found_text(&last.found),
        (Shown::Checked(State::Down), None) => String::new(),
        (Shown::Checked(State::Checking), _) => "waiting for its first check".into(),
        (Shown::CutOff, _) => circuit.map(why_circuit).unwrap_or_default(),
        (Shown::Ejected, _) => match ejected {
            Some((left, cause)) => format!("ejected for {:.1} s more: {cause}", left.as_secs_f64()),
            None => String::new(),
        },
        _ if server.plan.weight == 0 => "weight 0: gets no new connections".into(),
        _ if server.live.room.is_full() => "at its max_connections".into(),
        (Shown::OnTrial, _) => circuit.map(why_circuit).unwrap_or_default(),
        _ if is_in_doubt(server, now) => {
            "did not take its last client: others are asked first for a while".into()
        }
        _ if !pool.share(server, Instant::now).is_full() => {
            let share = pool.share(server, Instant::now).of(100);
            format!("slow start: has {share:.0}% of its weight")
        }
        _ if server.plan.tier > 0 => match standing::asked(pool, true, now) {
            Some(asked) if asked.tier < server.plan.tier => {
                format!("stands by while tier {} serves", asked.tier)
            }
            _ => format!("serves for the tiers below {}", server.plan.tier),
        },
        _ => String::new(),
    }
}

/// It has just failed somebody.
fn is_in_doubt(server: &Server, now: Instant) -> bool {
    server.live.guard.is_suspect(now)
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
    use crate::control::fixture::{a_check, desk_of, plan_of, server as server_at};

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
        assert_eq!(stands(), ("empty".into(), "down: `a`, `b`; clients are refused".into(), 0));
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
        let serves =
            "down: `a`; tier 1 serves: no lower one has a server that can be asked and has room left";
        assert_eq!(whys(), (serves.into(), "serves for the tiers below 1".into()));
    }

    /// Rules under which nothing is over before a test is.
    const BREAKER: plan::CircuitBreaker = plan::CircuitBreaker {
        failures: 2,
        window: Duration::from_secs(3600),
        open_for: Duration::from_secs(3600),
        half_open_trials: 1,
    };
    const OUTLIER: plan::OutlierDetection = plan::OutlierDetection {
        consecutive_failures: 2,
        failure_ratio: 1.0,
        min_connections: 100,
        eject_for: Duration::from_secs(3600),
        max_ejected: 1.0,
    };

    /// Pool `api` of `a` (tier 0) and `b` (tier 1), which falls back to `fb` of `c`.
    fn plan_with_fallback() -> plan::Plan {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].servers[1].tier = 1;
        plan.pools[0].fallback = Some("fb".into());
        plan.pools
            .push(plan::Pool { servers: vec![server_at("c", 9)], ..plan_of("fb", &[]).pools.remove(0) });
        plan
    }

    /// So many connects to that server fail.
    fn fail(desk: &Desk, server: usize, times: usize) {
        let now = Instant::now();
        for _ in 0..times {
            let snapshot = desk.snapshot();
            let pass = snapshot.pools["api"].servers[server].live.guard.enter(now).expect("it may be tried");
            pass.failed(Duration::from_secs(2), now);
        }
    }

    /// State, number of servers up, and why, of pool `api`; and state and why of its second server.
    fn told(desk: &Desk) -> ((String, usize, String), (String, String)) {
        let (pool, server) = (pools(desk).remove(0), servers(desk).remove(1));
        ((pool.state, pool.servers_up, pool.why), (server.state, server.why))
    }

    #[test]
    fn a_server_whose_breaker_is_open_serves_nobody() {
        let mut plan = plan_with_fallback();
        plan.pools[0].circuit_breaker = Some(BREAKER);
        let desk = desk_of(&plan);
        fail(&desk, 0, 2);
        let ((state, up, why), b) = told(&desk);
        assert_eq!((state.as_str(), up), ("degraded", 1));
        let serves = "tier 1 serves: no lower one has a server that can be asked and has room left";
        assert_eq!(why, format!("circuit breaker open: `a`; {serves}"));
        assert_eq!(b, ("up".into(), "serves for the tiers below 1".into()));
        fail(&desk, 1, 2);
        let ((state, up, why), b) = told(&desk);
        assert_eq!((state.as_str(), up, b.0.as_str()), ("empty", 0, "cut-off"));
        assert_eq!(why, "circuit breaker open: `a`, `b`; clients go to the pool `fb`");
        assert!(b.1.contains("its circuit breaker is open"), "{}", b.1);
    }

    #[test]
    fn a_server_that_is_ejected_serves_only_when_nobody_else_is_left() {
        let mut plan = plan_with_fallback();
        plan.pools[0].outlier_detection = Some(OUTLIER);
        let desk = desk_of(&plan);
        fail(&desk, 0, 2);
        let ((state, up, why), b) = told(&desk);
        assert_eq!((state.as_str(), up), ("degraded", 1));
        assert!(why.starts_with("ejected: `a`; tier 1 serves"), "{why}");
        assert_eq!(b, ("up".into(), "serves for the tiers below 1".into()));
        desk.set_state(&ServerKey::new("api", &plan.pools[0].servers[1]), State::Down);
        let ((state, _, why), _) = told(&desk);
        assert_eq!(why, "down: `b`; ejected: `a`; clients go to the pool `fb`", "whose servers are sound");
        desk.set_state(&ServerKey::new("fb", &plan.pools[1].servers[0]), State::Down);
        let (_, up, why) = told(&desk).0;
        let expected = "down: `b`; ejected: `a`; nobody else is left, so even those are asked";
        assert_eq!((state.as_str(), up, why.as_str()), ("degraded", 0, expected));
    }

    #[test]
    fn a_server_in_doubt_says_so_and_who_serves_for_it() {
        let desk = desk_of(&plan_with_fallback());
        fail(&desk, 0, 1);
        let ((state, up, why), b) = told(&desk);
        assert_eq!((state.as_str(), up), ("up", 2), "it is for seconds");
        assert!(why.starts_with("in doubt: `a`; tier 1 serves"), "{why}");
        assert_eq!(b.1, "serves for the tiers below 1");
        let a = servers(&desk).remove(0).why;
        assert_eq!(a, "did not take its last client: others are asked first for a while");
    }

    #[test]
    fn a_pool_does_not_name_a_fallback_that_takes_nobody() {
        let mut plan = plan_with_fallback();
        plan.pools[1].servers[0].max_connections = Some(1);
        let desk = desk_of(&plan);
        let key = |pool: &str, server| ServerKey::new(pool, server);
        plan.pools[0].servers.iter().for_each(|server| _ = desk.set_state(&key("api", server), State::Down));
        let why = || told(&desk).0.2;
        assert_eq!(why(), "down: `a`, `b`; clients go to the pool `fb`");
        let place = desk.snapshot().pools["fb"].servers[0].live.room.take().expect("one place");
        assert_eq!(why(), "down: `a`, `b`; what it falls back to takes nobody either, clients are refused");
        drop(place);
        desk.set_state(&key("fb", &plan.pools[1].servers[0]), State::Down);
        assert_eq!(why(), "down: `a`, `b`; what it falls back to takes nobody either, clients are refused");
    }

    #[test]
    fn a_pool_whose_clients_wait_says_so() {
        let mut plan = plan_with_fallback();
        plan.pools[0].servers.iter_mut().for_each(|server| server.max_connections = Some(1));
        plan.pools[0].queue = Some(plan::Queue::default());
        let desk = desk_of(&plan);
        let snapshot = desk.snapshot();
        let [api, fb] = ["api", "fb"].map(|name| Arc::clone(&snapshot.pools[name]));
        let why = || told(&desk).0.2;
        let places: Vec<_> = api.servers.iter().filter_map(|server| server.live.room.take()).collect();
        assert_eq!(why(), "at its max_connections: `a`, `b`; clients go to the pool `fb`");
        desk.set_state(&ServerKey::new("fb", &fb.servers[0].plan), State::Down);
        let waits = "what it falls back to takes nobody either, clients wait here";
        assert_eq!(why(), format!("at its max_connections: `a`, `b`; {waits}"));
        let source = std::net::Ipv4Addr::LOCALHOST.into();
        let _waiting = api.live.line.join(Default::default(), source, 9).expect("room");
        drop(places);
        assert_eq!(why(), waits, "behind whoever waits already");
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
