//! `/metrics`: our own counters, read at the moment of the scrape.
//!
//! Nothing is counted here, and nothing is kept: each scrape reads the desk anew. Labels are
//! names from the configuration and words of ours, never anything that a client sent, so the
//! number of series is bounded by the plan. The text itself is `exposition.rs`.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::checks::Checked;
use super::desk::Desk;
use super::exposition::{Page, Sample};
use super::publisher::ServerKey;
use super::standing::{Shown, servers_in};
use super::view::VERSION;
use crate::core::breaker;
use crate::core::health::State;
use crate::core::outcome::{By, Reason};
use crate::core::priority::Priority;
use crate::live::{RouteLive, ServerLive};
use crate::snapshot::{Pool, Route, Server, Snapshot};
use crate::telemetry::histogram::Summed;
use crate::telemetry::stats::{ListenerStats, RouteStats, ServerStats};

/// Everything there is to export, in reading order.
pub fn export(desk: &Desk, page: &mut Page<'_>) -> Result<(), Error> {
    let snapshot = desk.snapshot();
    process(desk, &snapshot, page)?;
    listeners(&snapshot, page)?;
    routes(&snapshot, page)?;
    flows(desk, page)?;
    pools(&snapshot, page)?;
    servers_now(&snapshot, page)?;
    guards(&snapshot, page)?;
    servers_so_far(&counted_servers(desk, &snapshot), page)?;
    checks(&checked_servers(desk, &snapshot), page)
}

fn process(desk: &Desk, snapshot: &Snapshot, page: &mut Page<'_>) -> Result<(), Error> {
    let one = |value: f64| vec![Sample::of(&[], value)];
    let is_reload_ok = desk.last_reload().is_none_or(|last| last.ok);
    let started = Duration::try_from(desk.started.duration_since(jiff::Timestamp::UNIX_EPOCH));
    page.gauge("build_info", "The version that runs", vec![Sample::of(&[("version", VERSION)], 1.0)])?;
    page.gauge(
        "process_io",
        "How workers wait for sockets, and why that way",
        vec![Sample::of(&[("io", desk.io.word()), ("reason", desk.io_reason)], 1.0)],
    )?;
    page.gauge(
        "start_time_seconds",
        "When the process started",
        one(started.unwrap_or_default().as_secs_f64()),
    )?;
    page.gauge(
        "config_generation",
        "Grows by one with each applied reload",
        one(snapshot.generation as f64),
    )?;
    let help = "1 when the last reload was applied, 0 when it was refused";
    page.gauge("config_last_reload_successful", help, one(f64::from(u8::from(is_reload_ok))))?;
    let by_worker = snapshot.loads.iter().enumerate();
    let open_by_worker = by_worker
        .map(|(worker, open)| Sample::of(&[("worker", &worker.to_string())], open as f64))
        .collect::<Vec<_>>();
    page.gauge("worker_active_connections", "Connections that each worker has open", open_by_worker)?;
    if let Some(open) = open_fds() {
        page.gauge("open_fds", "Descriptors that the process has open", one(open as f64))?;
    }
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        page.gauge("max_fds", "Descriptors that the process may have open", one(soft as f64))?;
    }
    let dropped = vec![Sample::count(&[], desk.access_log_dropped())];
    page.counter("access_log_dropped", "Access log lines lost", dropped)
}

/// Since Linux 6.2 the size of the directory is the count. Before, the entries are counted, less
/// the directory itself, which is open meanwhile.
fn open_fds() -> Option<usize> {
    const DIRECTORY: &str = "/proc/self/fd";
    match std::fs::metadata(DIRECTORY).map(|directory| directory.len()) {
        Ok(count) if count > 0 => usize::try_from(count).ok(),
        _ => std::fs::read_dir(DIRECTORY).ok().map(|fds| fds.count().saturating_sub(1)),
    }
}

fn listeners(snapshot: &Snapshot, page: &mut Page<'_>) -> Result<(), Error> {
    let all: Vec<_> =
        snapshot.listeners.iter().map(|(name, listener)| (name.as_str(), &listener.live)).collect();
    let sums = |read: fn(&ListenerStats) -> u64| {
        let samples =
            all.iter().map(|(name, live)| Sample::count(&[("listener", name)], live.stats.sum(read)));
        samples.collect::<Vec<_>>()
    };
    page.counter(
        "listener_connections",
        "Connections accepted, refused ones included",
        sums(|s| s.accepted.get()),
    )?;
    let active = all.iter().map(|(name, live)| Sample::of(&[("listener", name)], live.room.taken() as f64));
    page.gauge("listener_active_connections", "Connections open now", active)?;
    let rejected = all.iter().flat_map(|(name, live)| {
        by_reason(&[("listener", name)], |reason| live.stats.sum(|stats| stats.rejected.get(reason)))
    });
    page.counter("listener_rejected_connections", "Connections refused by a limit or a rule", rejected)?;
    let outranked = all.iter().flat_map(|(name, live)| {
        by_class(("listener", name), |class| live.stats.sum(|stats| stats.outranked.get(class)))
    });
    let help = "Those of the rejected for whom room was left, but not for clients of their class";
    page.counter("listener_refused_by_priority", help, outranked)?;
    let would_reject = all.iter().flat_map(|(name, live)| {
        by_reason(&[("listener", name)], |reason| live.stats.sum(|stats| stats.would_reject.get(reason)))
    });
    let help = "Connections let in by `admission = \"dry-run\"` that would have been refused";
    page.counter("listener_would_reject_connections", help, would_reject)?;
    page.counter("listener_received_bytes", "Bytes from clients", sums(|s| s.received.get()))?;
    page.counter("listener_sent_bytes", "Bytes to clients", sums(|s| s.sent.get()))?;
    let held = all.iter().flat_map(|(name, live)| {
        let by = |limit, read: fn(&ListenerStats) -> u64| {
            Sample::seconds(&[("listener", name), ("limit", limit)], live.stats.sum(read))
        };
        [
            by("bandwidth_per_connection", |stats| stats.held_by_own_us.get()),
            by("bandwidth", |stats| stats.held_by_all_us.get()),
        ]
    });
    let help = "Time that bytes were held back by a bandwidth, added up over directions of connections";
    page.counter("listener_throttled_seconds", help, held)?;
    let durations = all.iter().map(|(name, live)| {
        Sample::histogram(&[("listener", name)], Summed::of(live.stats.iter().map(|stats| &stats.duration)))
    });
    page.histogram("connection_duration_seconds", "From accept to close", durations)
}

/// Of listeners that have more than one way to go.
fn routes(snapshot: &Snapshot, page: &mut Page<'_>) -> Result<(), Error> {
    let mut all = Vec::new();
    for (name, listener) in &snapshot.listeners {
        let counted = listener.routes.iter().filter_map(|route| Some((route, route.live.as_ref()?)));
        all.extend(counted.map(|(route, live)| (name.as_str(), route, live)));
    }
    let sample = |listener: &str, live: &RouteLive, read: fn(&RouteStats) -> u64| {
        Sample::count(&[("listener", listener), ("route", &live.name)], live.stats.sum(read))
    };
    let taken = all.iter().map(|(listener, _, live)| sample(listener, live, |s| s.connections.get()));
    page.counter("route_connections", "Connections that the route has taken, rejected ones included", taken)?;
    let has_canary = |route: &Route| route.target.as_ref().is_some_and(|target| target.canary.is_some());
    let canaries: Vec<_> = all.into_iter().filter(|(_, route, _)| has_canary(route)).collect();
    let given = canaries.iter().map(|(listener, _, live)| sample(listener, live, |s| s.canary.get()));
    page.counter("canary_connections", "Connections of the route that were its canary's", given)?;
    let left = canaries.iter().map(|(listener, _, live)| sample(listener, live, |s| s.canary_left.get()));
    let help = "Connections that the canary had no server for: the main pool was asked";
    page.counter("canary_fallback_connections", help, left)
}

fn flows(desk: &Desk, page: &mut Page<'_>) -> Result<(), Error> {
    let mut samples = Vec::new();
    for flow in desk.flows() {
        for by in By::ALL {
            let labels =
                [("listener", flow.listener.as_str()), ("pool", flow.pool.as_str()), ("by", by.word())];
            samples.extend(by_reason(&labels, |reason| flow.closed(*by, reason)));
        }
    }
    page.counter("connections_closed", "Connections ended, by whom and why", samples)
}

fn pools(snapshot: &Snapshot, page: &mut Page<'_>) -> Result<(), Error> {
    let states = snapshot.pools.values().flat_map(|pool| {
        let labels = |shown: Shown| [("pool", pool.plan.name.as_str()), ("state", shown.word())];
        let count = |shown| Sample::of(&labels(shown), servers_in(pool, shown) as f64);
        Shown::all().map(count).collect::<Vec<_>>()
    });
    page.gauge("pool_servers", "Servers of the pool in each state", states)?;
    let active = snapshot.pools.values().map(|pool| {
        let taken: usize = pool.servers.iter().map(|server| server.live.room.taken()).sum();
        Sample::of(&[("pool", &pool.plan.name)], taken as f64)
    });
    page.gauge("pool_active_connections", "Connections open to the pool now", active)?;
    let affinities = snapshot.pools.values().filter_map(|pool| {
        let (known, forgotten) = pool.live.affinity.count(pool.plan.affinity?.ttl, Instant::now());
        Some((pool.plan.name.as_str(), known, forgotten))
    });
    let affinities: Vec<_> = affinities.collect();
    let known = affinities.iter().map(|(pool, known, _)| Sample::of(&[("pool", pool)], *known as f64));
    page.gauge("pool_affinity_entries", "Clients that are known to a server of the pool", known)?;
    let evicted = affinities.iter().map(|(pool, _, forgotten)| Sample::count(&[("pool", pool)], *forgotten));
    page.counter(
        "pool_affinity_evictions",
        "Clients forgotten before their time, for want of room",
        evicted,
    )?;
    let refused = snapshot.pools.values().map(|pool| {
        let refused = pool.live.stats.sum(|stats| stats.retries_refused.get());
        Sample::count(&[("pool", &pool.plan.name)], refused)
    });
    page.counter("pool_retries_refused", "Retries that retry.budget did not bear", refused)?;
    let queued = snapshot
        .pools
        .values()
        .map(|pool| Sample::of(&[("pool", &pool.plan.name)], pool.live.line.length() as f64));
    page.gauge("pool_queued_connections", "Clients that wait for a server now", queued)?;
    let waits = snapshot.pools.values().map(|pool| {
        let parts = pool.live.stats.iter().map(|stats| &stats.queue_wait);
        Sample::histogram(&[("pool", &pool.plan.name)], Summed::of(parts))
    });
    page.histogram("queue_wait_seconds", "Time that clients waited for a server", waits)?;
    let displaced = snapshot.pools.values().flat_map(|pool| {
        by_class(("pool", &pool.plan.name), |class| pool.live.stats.sum(|stats| stats.displaced.get(class)))
    });
    let help =
        "Clients whose place in a full line went to one of a higher class, or of a source with fewer in it";
    page.counter("pool_displaced_connections", help, displaced)
}

/// What only a server of the plan has.
fn servers_now(snapshot: &Snapshot, page: &mut Page<'_>) -> Result<(), Error> {
    let all = || {
        let pools = snapshot.pools.values();
        pools.flat_map(|pool| pool.servers.iter().map(move |server| (labels_of(pool, server), server)))
    };
    let now = Instant::now();
    let is_up = |server| f64::from(u8::from(Shown::of(server, now) == Shown::Checked(State::Up)));
    let up = all().map(|(labels, server)| Sample::of(&labels, is_up(server)));
    page.gauge("server_up", "1 when the server is up", up)?;
    let weights = snapshot.pools.values().flat_map(|pool| {
        let weight = |server: &Server| pool.share(server, Instant::now).of(server.plan.weight);
        let weights = pool.servers.iter().map(|server| Sample::of(&labels_of(pool, server), weight(server)));
        weights.collect::<Vec<_>>()
    });
    let help = "Share of the traffic against the other servers, less while a slow start lasts";
    page.gauge("server_weight", help, weights)
}

/// Of servers that have a circuit breaker, or are watched for outliers.
fn guards(snapshot: &Snapshot, page: &mut Page<'_>) -> Result<(), Error> {
    let now = Instant::now();
    let servers = || {
        let pools = snapshot.pools.values();
        pools.flat_map(|pool| pool.servers.iter().map(move |it| (labels_of(pool, it), &it.live.guard)))
    };
    let ejections =
        servers().filter_map(|(labels, guard)| Some(Sample::count(&labels, guard.watched(now)?.ejections)));
    page.counter("outlier_ejections", "How often the server was ejected", ejections)?;
    let refused =
        servers().filter_map(|(labels, guard)| Some(Sample::count(&labels, guard.watched(now)?.refused)));
    let help = "How often the server stood out and stayed in, because of max_ejected";
    page.counter("outlier_ejections_refused", help, refused)?;
    let circuits = || servers().filter_map(move |(labels, guard)| Some((labels, guard.circuit(now)?)));
    let states = circuits().flat_map(|([pool, server], circuit)| {
        let is_it = move |state: &breaker::State| f64::from(u8::from(*state == circuit.state));
        let labels = move |state: &breaker::State| [pool, server, ("state", state.word())];
        breaker::State::ALL.iter().map(move |state| Sample::of(&labels(state), is_it(state)))
    });
    page.gauge("circuit_breaker_state", "1 for the state that the server's breaker is in", states)?;
    let opened = circuits().map(|(labels, circuit)| Sample::count(&labels, circuit.opened));
    page.counter("circuit_breaker_opened", "How often the server's breaker has opened", opened)
}

fn labels_of<'a>(pool: &'a Pool, server: &'a Server) -> [(&'static str, &'a str); 2] {
    [("pool", &pool.plan.name), ("server", &server.plan.name)]
}

/// A server with counts: one of the plan, or one that left it and still has connections.
struct Counted {
    pool: String,
    server: String,
    lives: Vec<Arc<ServerLive>>,
}

impl Counted {
    fn labels(&self) -> [(&'static str, &str); 2] {
        [("pool", &self.pool), ("server", &self.server)]
    }

    fn sum(&self, read: impl Fn(&ServerStats) -> u64) -> u64 {
        self.lives.iter().map(|live| live.stats.sum(&read)).sum()
    }

    fn active(&self) -> usize {
        self.lives.iter().map(|live| live.room.taken()).sum()
    }
}

/// One entry for each pair of names: servers that share their names with one at a former
/// address are summed, since a series may be written only once.
fn counted_servers(desk: &Desk, snapshot: &Snapshot) -> Vec<Counted> {
    let mut by_name = BTreeMap::<_, Vec<_>>::new();
    for pool in snapshot.pools.values() {
        for server in &pool.servers {
            let name = (pool.plan.name.clone(), server.plan.name.clone());
            by_name.entry(name).or_default().push(Arc::clone(&server.live));
        }
    }
    for (key, live) in desk.retired() {
        by_name.entry((key.pool, key.name)).or_default().push(live);
    }
    by_name.into_iter().map(|((pool, server), lives)| Counted { pool, server, lives }).collect()
}

fn servers_so_far(all: &[Counted], page: &mut Page<'_>) -> Result<(), Error> {
    let sums = |read: fn(&ServerStats) -> u64| {
        all.iter().map(|server| Sample::count(&server.labels(), server.sum(read))).collect::<Vec<_>>()
    };
    let active = all.iter().map(|server| Sample::of(&server.labels(), server.active() as f64));
    page.gauge("server_active_connections", "Connections open to the server now", active)?;
    page.counter("server_connections", "Connections made to the server", sums(|s| s.connections.get()))?;
    let failures = all.iter().flat_map(|server| {
        by_reason(&server.labels(), |reason| server.sum(|stats| stats.connect_failures.get(reason)))
    });
    page.counter("server_connect_failures", "Connects that failed", failures)?;
    let help = "Attempts that came here because another server had failed first";
    page.counter("server_retries", help, sums(|s| s.retries.get()))?;
    page.counter("server_received_bytes", "Bytes from the server", sums(|s| s.received.get()))?;
    page.counter("server_sent_bytes", "Bytes to the server", sums(|s| s.sent.get()))?;
    let connects = all.iter().map(|server| {
        let parts = server.lives.iter().flat_map(|live| live.stats.iter());
        Sample::histogram(&server.labels(), Summed::of(parts.map(|stats| &stats.connect)))
    });
    page.histogram("server_connect_seconds", "Time to connect to the server", connects)
}

type CheckedServer = (String, String, Arc<Checked>);

fn checked_servers(desk: &Desk, snapshot: &Snapshot) -> Vec<CheckedServer> {
    let mut all = Vec::new();
    for pool in snapshot.pools.values() {
        for server in &pool.servers {
            if let Some(checked) = desk.checks.get(&ServerKey::new(&pool.plan.name, &server.plan)) {
                all.push((pool.plan.name.clone(), server.plan.name.clone(), checked));
            }
        }
    }
    all
}

fn checks(all: &[CheckedServer], page: &mut Page<'_>) -> Result<(), Error> {
    let results = all.iter().flat_map(|(pool, server, checked)| {
        let counts = [("ok", &checked.ok), ("failed", &checked.failed), ("void", &checked.void)];
        counts.map(|(result, count)| {
            Sample::count(&[("pool", pool), ("server", server), ("result", result)], count.get())
        })
    });
    let help = "Health checks; void ones say nothing of the server";
    page.counter("health_check", help, results)?;
    let delayed = all.iter().map(|(pool, server, checked)| {
        Sample::count(&[("pool", pool), ("server", server)], checked.delayed.get())
    });
    let help = "Health checks that waited longer than their interval, because so many were under way";
    page.counter("health_check_delayed", help, delayed)?;
    let took = all.iter().map(|(pool, server, checked)| {
        Sample::histogram(&[("pool", pool), ("server", server)], Summed::of([&checked.took].into_iter()))
    });
    page.histogram("health_check_seconds", "Time that health checks took", took)?;
    let changes = all.iter().map(|(pool, server, checked)| {
        Sample::count(&[("pool", pool), ("server", server)], checked.changes.get())
    });
    page.counter("health_state_changes", "How often the server went up or down", changes)
}

/// A series for each class that it has happened to.
fn by_class(label: (&'static str, &str), count: impl Fn(Priority) -> u64) -> Vec<Sample> {
    let counted = Priority::ALL.iter().map(|class| (class.word(), count(*class)));
    let happened = counted.filter(|(_, count)| *count > 0);
    happened.map(|(word, count)| Sample::count(&[label, ("priority", word)], count)).collect()
}

/// A series for each reason that has happened. Those that have not are left out: 19 zeros for
/// each server would be most of the page.
fn by_reason(labels: &[(&'static str, &str)], count: impl Fn(Reason) -> u64) -> Vec<Sample> {
    let counted = Reason::ALL.iter().map(|reason| (reason.word(), count(*reason)));
    let happened = counted.filter(|(_, count)| *count > 0);
    happened
        .map(|(word, count)| {
            let mut labels = labels.to_vec();
            labels.push(("reason", word));
            Sample::count(&labels, count)
        })
        .collect()
}
