//! A plan as the file that means it: how a command line graduates to a configuration.
//!
//! Writes what differs from the defaults, and what a reader looks for first (`bind`, `pool`,
//! `balance`, `servers`). What it writes reads back as the same plan.

mod admission; // who may come in, and who first
mod probe; // what a check asks
mod route; // where clients go

use std::fmt::Write as _;
use std::time::Duration;

use super::defaults;
use super::plan::{
    AccessLog, AccessOutput, Admin, Affinity, Auto, CircuitBreaker, HealthCheck, Listener, Log, OnServerDown,
    OutlierDetection, Plan, Pool, Process, Queue, Retry, Server, Tcp,
};
use super::units::{write_duration, write_percent};
use crate::core::prefix::Prefix;

/// The whole plan as TOML.
pub fn render(plan: &Plan) -> String {
    let mut out = Out::default();
    out.text.push_str("# Whatever is not written here has its default; `tidegate check` reads this file.\n");
    process(&plan.process, &mut out);
    admin(&plan.admin, &mut out);
    log(&plan.log, &mut out);
    plan.listeners.iter().for_each(|it| listener(it, &mut out));
    plan.pools.iter().for_each(|it| pool(it, &mut out));
    out.text
}

/// The text so far. A header is written when its first key is.
#[derive(Default)]
struct Out {
    text: String,
    pending: Option<String>,
}

impl Out {
    fn header(&mut self, header: impl Into<String>) {
        self.pending = Some(header.into());
    }

    fn key(&mut self, key: &str, value: impl std::fmt::Display) {
        if let Some(header) = self.pending.take() {
            let _ = writeln!(self.text, "\n[{header}]");
        }
        let _ = writeln!(self.text, "{key} = {value}");
    }

    /// Writes the key unless its value is the default.
    fn unless<T: PartialEq>(&mut self, key: &str, value: &T, default: &T, text: impl FnOnce(&T) -> String) {
        if value != default {
            self.key(key, text(value));
        }
    }
}

fn process(process: &Process, out: &mut Out) {
    let default = Process::default();
    out.header("process");
    out.unless("workers", &process.workers, &default.workers, auto);
    out.unless("pin_workers", &process.pin_workers, &default.pin_workers, bool::to_string);
    out.unless("io", &process.io, &default.io, |io| match io {
        Auto::Auto => text("auto"),
        Auto::Set(io) => text(io.word()),
    });
    out.unless("max_connections", &process.max_connections, &default.max_connections, auto);
    out.unless("drain_timeout", &process.drain_timeout, &default.drain_timeout, length);
    out.unless("ready_delay", &process.ready_delay, &default.ready_delay, length);
}

fn admin(admin: &Admin, out: &mut Out) {
    let default = Admin::default();
    out.header("admin");
    out.unless("socket", &admin.socket, &default.socket, |socket| match socket {
        Some(path) => text(&path.to_string_lossy()),
        None => text("off"),
    });
    out.unless("http", &admin.http, &default.http, |http| match http {
        Some(address) => text(&address.to_string()),
        None => text("off"),
    });
}

fn log(log: &Log, out: &mut Out) {
    let default = Log::default();
    out.header("log");
    out.unless("level", &log.level, &default.level, |level| text(level.word()));
    out.unless("format", &log.format, &default.format, |format| text(format.word()));
    let (access, default) = (&log.access, AccessLog::default());
    out.header("log.access");
    out.unless("output", &access.output, &default.output, |output| match output {
        AccessOutput::Off => text("off"),
        AccessOutput::Stdout => text("stdout"),
        AccessOutput::File(path) => text(&path.to_string_lossy()),
    });
    out.unless("format", &access.format, &default.format, |format| text(format.word()));
    out.unless("when", &access.when, &default.when, |when| text(when.word()));
}

fn listener(listener: &Listener, out: &mut Out) {
    out.header(format!("listener.{}", bare(&listener.name)));
    let bind: Vec<_> = listener.bind.iter().map(|address| text(&address.to_string())).collect();
    out.key("bind", format_args!("[{}]", bind.join(", ")));
    if let Some(target) = &listener.target {
        route::target(target, out);
    }
    if let Some(limit) = listener.max_connections {
        out.key("max_connections", limit);
    }
    out.unless("when_full", &listener.when_full, &defaults::WHEN_FULL, |when| text(when.word()));
    admission::admission(&listener.admission, out);
    admission::classes(&listener.classes, out);
    let first_byte = &listener.first_byte_timeout;
    out.unless("first_byte_timeout", first_byte, &defaults::FIRST_BYTE_TIMEOUT, length_or_off);
    let limits = [listener.bandwidth, listener.bandwidth_per_connection];
    for (key, limit) in ["bandwidth", "bandwidth_per_connection"].into_iter().zip(limits) {
        limit.inspect(|limit| out.key(key, text(&limit.to_string())));
    }
    out.unless("idle_timeout", &listener.idle_timeout, &defaults::IDLE_TIMEOUT, length_or_off);
    out.unless(
        "half_close_timeout",
        &listener.half_close_timeout,
        &defaults::HALF_CLOSE_TIMEOUT,
        length_or_off,
    );
    tcp(&listener.tcp, out);
    route::routes(listener, out);
}

fn networks(list: &[Prefix]) -> String {
    let list: Vec<_> = list.iter().map(|network| text(&network.to_string())).collect();
    format!("[{}]", list.join(", "))
}

fn pool(pool: &Pool, out: &mut Out) {
    let name = bare(&pool.name);
    out.header(format!("pool.{name}"));
    out.key("balance", text(pool.balance.word()));
    out.unless("hash_key", &pool.hash_key, &defaults::HASH_KEY, |key| text(key.word()));
    if let Some(load) = pool.max_load {
        out.key("max_load", text(&format!("{load}%")));
    }
    if let Some(Affinity { by, ttl, max_entries }) = &pool.affinity {
        let (by, ttl) = (text(by.word()), length(ttl));
        out.key("affinity", format_args!("{{ by = {by}, ttl = {ttl}, max_entries = {max_entries} }}"));
    }
    out.key("servers", "[");
    for it in &pool.servers {
        let _ = writeln!(out.text, "  {},", server(it));
    }
    out.text.push_str("]\n");
    out.unless("retry", &pool.retry, &Retry::default(), retry);
    out.unless("connect_timeout", &pool.connect_timeout, &defaults::CONNECT_TIMEOUT, length);
    tcp(&pool.tcp, out);
    out.unless("on_no_server", &pool.on_no_server, &defaults::ON_NO_SERVER, |word| text(word.word()));
    out.unless("slow_start", &pool.slow_start, &defaults::SLOW_START, length_or_off);
    if let Some(fallback) = &pool.fallback {
        out.key("fallback", text(fallback));
    }
    out.unless("on_server_down", &pool.on_server_down, &OnServerDown::Keep, |what| match what {
        OnServerDown::Keep => text("keep"),
        OnServerDown::CloseConnections => text("close-connections"),
        OnServerDown::Drain(within) => text(&format!("drain {}", write_duration(*within))),
    });
    if let Some(Queue { max, timeout }) = pool.queue {
        out.key("queue", format_args!("{{ max = {max}, timeout = {} }}", length(&timeout)));
    }
    match &pool.health_check {
        Some(check) => health_check(&name, check, out),
        None => out.text.push_str("# Without a table health_check, every server is taken to be up.\n"),
    }
    if let Some(rules) = &pool.outlier_detection {
        outlier_detection(&name, rules, out);
    }
    if let Some(breaker) = &pool.circuit_breaker {
        circuit_breaker(&name, *breaker, out);
    }
}

/// What differs from the defaults, in one line.
fn retry(retry: &Retry) -> String {
    let default = Retry::default();
    let mut parts = vec![format!("attempts = {}", retry.attempts)];
    let lengths = [
        ("backoff", retry.backoff, default.backoff),
        ("max_backoff", retry.max_backoff, default.max_backoff),
        ("deadline", retry.deadline, default.deadline),
    ];
    let written = lengths.iter().filter(|(_, value, default)| value != default);
    parts.extend(written.map(|(key, value, _)| format!("{key} = {}", length(value))));
    if retry.budget.to_bits() != default.budget.to_bits() {
        parts.push(format!("budget = {}", text(&write_percent(retry.budget))));
    }
    format!("{{ {} }}", parts.join(", "))
}

/// The address alone, or a table where there is more to say.
fn server(server: &Server) -> String {
    let address = text(&server.address.to_string());
    let mut more = String::new();
    if server.weight != defaults::WEIGHT {
        let _ = write!(more, ", weight = {}", server.weight);
    }
    if let Some(limit) = server.max_connections {
        let _ = write!(more, ", max_connections = {limit}");
    }
    if server.tier != 0 {
        let _ = write!(more, ", tier = {}", server.tier);
    }
    let is_called_by_address = server.name == server.address.to_string();
    match (is_called_by_address, more.is_empty()) {
        (true, true) => address,
        (true, false) => format!("{{ address = {address}{more} }}"),
        (false, _) => format!("{{ name = {}, address = {address}{more} }}", text(&server.name)),
    }
}

fn health_check(pool: &str, check: &HealthCheck, out: &mut Out) {
    let default = HealthCheck::default();
    out.header(format!("pool.{pool}.health_check"));
    out.key("type", text(check.probe.kind().word()));
    out.unless("interval", &check.interval, &default.interval, length);
    out.unless("interval_down", &check.interval_down, &check.interval, length);
    out.unless("interval_changing", &check.interval_changing, &check.interval, length);
    out.unless("timeout", &check.timeout, &default.timeout, length);
    out.unless("rise", &check.rise, &default.rise, u32::to_string);
    out.unless("fall", &check.fall, &default.fall, u32::to_string);
    out.unless("jitter", &check.jitter, &default.jitter, |share| text(&write_percent(*share)));
    if let Some(port) = check.port {
        out.key("port", port);
    }
    if let Some(tls) = &check.tls {
        out.key("tls", probe::tls(tls));
    }
    out.unless("send_proxy", &check.send_proxy, &default.send_proxy, |send| text(send.word()));
    probe::probe(&check.probe, out);
}

fn outlier_detection(pool: &str, rules: &OutlierDetection, out: &mut Out) {
    let default = OutlierDetection::default();
    let share = |share: &f64| text(&write_percent(*share));
    out.header(format!("pool.{pool}.outlier_detection"));
    out.key("consecutive_failures", rules.consecutive_failures); // always, so that the table is there
    out.unless("failure_ratio", &rules.failure_ratio, &default.failure_ratio, share);
    out.unless("min_connections", &rules.min_connections, &default.min_connections, u32::to_string);
    out.unless("eject_for", &rules.eject_for, &default.eject_for, length);
    out.unless("max_ejected", &rules.max_ejected, &default.max_ejected, share);
}

fn circuit_breaker(pool: &str, breaker: CircuitBreaker, out: &mut Out) {
    let default = CircuitBreaker::default();
    out.header(format!("pool.{pool}.circuit_breaker"));
    out.key("failures", breaker.failures); // always, so that the table is there
    out.unless("window", &breaker.window, &default.window, length);
    out.unless("open_for", &breaker.open_for, &default.open_for, length);
    out.unless("half_open_trials", &breaker.half_open_trials, &default.half_open_trials, u32::to_string);
}

fn tcp(tcp: &Tcp, out: &mut Out) {
    let default = Tcp::default();
    out.unless("tcp_keepalive", &tcp.keepalive, &default.keepalive, length_or_off);
    out.unless("tcp_user_timeout", &tcp.user_timeout, &default.user_timeout, length_or_off);
}

fn auto(value: &Auto<usize>) -> String {
    match value {
        Auto::Auto => text("auto"),
        Auto::Set(count) => count.to_string(),
    }
}

fn length(duration: &Duration) -> String {
    text(&write_duration(*duration))
}

fn length_or_off(duration: &Option<Duration>) -> String {
    duration.as_ref().map_or_else(|| text("off"), length)
}

/// In quotes, with what needs escaping escaped.
fn text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A key of a header, in quotes only where it needs them.
fn bare(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) { key.to_owned() } else { text(key) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::config::parse;
    use crate::config::plan::{
        AccessWhen, AffinityBy, Balance, Bandwidth, HashKey, Io, Level, LogFormat, OnNoServer, SendProxy,
        WhenFull,
    };

    fn word<T: Copy + std::fmt::Debug>(all: &'static [T]) -> impl Strategy<Value = T> {
        prop::sample::select(all)
    }

    fn duration(least_ms: u64) -> impl Strategy<Value = Duration> {
        (prop::sample::select(vec![1, 1000, 60_000]), 1..5000u64)
            .prop_map(move |(unit, count)| Duration::from_millis((unit * count).max(least_ms)))
    }

    fn path() -> impl Strategy<Value = PathBuf> {
        "/[a-z \"'\\\\é#]{1,20}".prop_map(PathBuf::from)
    }

    fn tcp() -> impl Strategy<Value = Tcp> {
        (prop::option::of(1..30_000u64), prop::option::of(duration(1))).prop_map(
            |(keepalive, user_timeout)| Tcp { keepalive: keepalive.map(Duration::from_secs), user_timeout },
        )
    }

    fn process() -> impl Strategy<Value = Process> {
        let auto = |most: usize| prop_oneof![Just(Auto::Auto), (1..most).prop_map(Auto::Set)];
        let io = prop_oneof![Just(Auto::Auto), word(Io::ALL).prop_map(Auto::Set)];
        (auto(64), any::<bool>(), io, duration(0), duration(0)).prop_map(
            |(workers, pin_workers, io, drain_timeout, ready_delay)| Process {
                workers,
                pin_workers,
                io,
                max_connections: Auto::Auto,
                drain_timeout,
                ready_delay,
            },
        )
    }

    fn log() -> impl Strategy<Value = Log> {
        let output = prop_oneof![
            Just(AccessOutput::Off),
            Just(AccessOutput::Stdout),
            path().prop_map(AccessOutput::File)
        ];
        (word(Level::ALL), word(LogFormat::ALL), output, word(AccessWhen::ALL)).prop_map(
            |(level, format, output, when)| Log { level, format, access: AccessLog { output, format, when } },
        )
    }

    /// The listener of that number, for the pool of the same number; the number keeps ports apart.
    fn listener(number: u16) -> impl Strategy<Value = Listener> {
        let times = (0..3).map(|_| prop::option::of(duration(1))).collect::<Vec<_>>();
        let entry =
            (prop::option::of(1..100_000usize), word(WhenFull::ALL), admission::tests::any_admission());
        let ways = (route::tests::routes(), route::tests::target(["p-0", "p-1"][usize::from(number)]));
        let bandwidth = || prop::option::of((0..1u64 << 42).prop_map(|bytes| Bandwidth::new(bytes & !1023)));
        (times, entry, (admission::tests::any_classes(), tcp()), ways, [bandwidth(), bandwidth()]).prop_map(
            move |(times, (max_connections, when_full, admission), (classes, tcp), ways, bandwidths)| {
                let is_alone = ways.0.is_empty();
                let bind = vec![
                    format!("0.0.0.0:{}", 1000 + number).parse().unwrap(),
                    format!("[::]:{}", 1000 + number).parse().unwrap(),
                ];
                let plain = Listener::new(format!("a.b:{number}"), bind, format!("p-{number}"));
                Listener {
                    routes: ways.0,
                    // One that has routes needs no pool of its own.
                    target: Some(ways.1).filter(|_| number == 0 || is_alone),
                    bandwidth: bandwidths[0],
                    bandwidth_per_connection: bandwidths[1],
                    first_byte_timeout: times[0],
                    idle_timeout: times[1],
                    half_close_timeout: times[2],
                    max_connections,
                    when_full,
                    admission,
                    classes,
                    tcp,
                    ..plain
                }
            },
        )
    }

    fn server(number: u16) -> impl Strategy<Value = Server> {
        (any::<bool>(), 0..1001u32, prop::option::of(1..1000usize), 0..10u8).prop_map(
            move |(is_named, weight, max_connections, tier)| {
                let address: std::net::SocketAddr = format!("[2001:db8::{number:x}]:80").parse().unwrap();
                let name = if is_named { format!("s{number}") } else { address.to_string() };
                let weight = if number == 0 { 1 } else { weight };
                Server { name, address, weight, max_connections, tier }
            },
        )
    }

    fn health_check() -> impl Strategy<Value = HealthCheck> {
        let pace = (duration(1), 1..9u32, 1..9u32, 0..1001u32);
        let intervals = (duration(10), prop::option::of(duration(10)), prop::option::of(duration(10)));
        let probe = probe::tests::any_probe()
            .prop_flat_map(|probe| probe::tests::any_tls(&probe).prop_map(move |tls| (probe.clone(), tls)));
        let target = (prop::option::of(1..u16::MAX), word(SendProxy::ALL));
        (intervals, pace, target, probe).prop_map(
            |((interval, down, changing), (timeout, rise, fall, jitter), target, (probe, tls))| HealthCheck {
                probe,
                interval,
                interval_down: down.unwrap_or(interval),
                interval_changing: changing.unwrap_or(interval),
                timeout,
                rise,
                fall,
                jitter: f64::from(jitter) / 10.0 / 100.0,
                port: target.0,
                tls,
                send_proxy: target.1,
            },
        )
    }

    fn retry() -> impl Strategy<Value = Retry> {
        (1..100u32, duration(1), duration(1), 0..1001u32, duration(1)).prop_map(
            |(attempts, backoff, longer, budget, deadline)| Retry {
                attempts,
                backoff,
                max_backoff: backoff + longer,
                budget: f64::from(budget) / 10.0 / 100.0,
                deadline,
            },
        )
    }

    fn on_server_down() -> impl Strategy<Value = OnServerDown> {
        let set = prop_oneof![Just(OnServerDown::Keep), Just(OnServerDown::CloseConnections)];
        prop_oneof![set, duration(1).prop_map(OnServerDown::Drain)]
    }

    /// What happens where no server is, and the line.
    fn waiting() -> impl Strategy<Value = (OnNoServer, Option<Queue>)> {
        let queue = || (1..10_000usize, duration(1)).prop_map(|(max, timeout)| Queue { max, timeout });
        let refuse = prop::option::of(queue()).prop_map(|queue| (OnNoServer::Refuse, queue));
        prop_oneof![refuse, queue().prop_map(|queue| (OnNoServer::Queue, Some(queue)))]
    }

    fn outlier_detection() -> impl Strategy<Value = OutlierDetection> {
        let share = || (1..1001u32).prop_map(|share| f64::from(share) / 10.0 / 100.0);
        (1..1001u32, share(), 1..1001u32, duration(1), share()).prop_map(
            |(consecutive_failures, failure_ratio, min_connections, eject_for, max_ejected)| {
                OutlierDetection {
                    consecutive_failures,
                    failure_ratio,
                    min_connections,
                    eject_for,
                    max_ejected,
                }
            },
        )
    }

    fn circuit_breaker() -> impl Strategy<Value = CircuitBreaker> {
        (1..1001u32, duration(1), duration(1), 1..1001u32).prop_map(|(failures, window, open_for, trials)| {
            CircuitBreaker { failures, window, open_for, half_open_trials: trials.min(failures) }
        })
    }

    fn pool(number: u16) -> impl Strategy<Value = Pool> {
        let servers = (0..3u16).map(server).collect::<Vec<_>>();
        let words = (word(Balance::ALL), word(HashKey::ALL));
        // Only the first one may, or they would form a loop.
        let fallback = any::<bool>().prop_map(move |falls| (falls && number == 0).then(|| "p-1".to_owned()));
        let affinity = (word(AffinityBy::ALL), duration(1), 16..1000usize)
            .prop_map(|(by, ttl, max_entries)| Affinity { by, ttl, max_entries });
        let choosing = (
            fallback,
            prop::option::of(duration(1)),
            prop::option::of(101..1001u32),
            prop::option::of(affinity),
        );
        let watch = (
            on_server_down(),
            prop::option::of(health_check()),
            prop::option::of(circuit_breaker()),
            prop::option::of(outlier_detection()),
        );
        (servers, words, (retry(), waiting()), (duration(1), choosing), tcp(), watch).prop_map(
            move |(servers, words, (retry, waiting), (connect_timeout, choosing), tcp, watch)| Pool {
                balance: words.0,
                hash_key: words.1,
                fallback: choosing.0,
                slow_start: choosing.1,
                max_load: choosing.2,
                affinity: choosing.3,
                retry,
                on_no_server: waiting.0,
                queue: waiting.1,
                connect_timeout,
                tcp,
                on_server_down: watch.0,
                health_check: watch.1,
                circuit_breaker: watch.2,
                outlier_detection: watch.3,
                ..Pool::new(format!("p-{number}"), servers)
            },
        )
    }

    fn plan() -> impl Strategy<Value = Plan> {
        let listeners = (0..2u16).map(listener).collect::<Vec<_>>();
        let pools = (0..2u16).map(pool).collect::<Vec<_>>();
        let http = prop::option::of((9000..9100u16).prop_map(|port| ([127, 0, 0, 1], port).into()));
        let admin = (prop::option::of(path()), http).prop_map(|(socket, http)| Admin { socket, http });
        (process(), admin, log(), listeners, pools).prop_map(|(process, admin, log, listeners, pools)| Plan {
            process,
            admin,
            log,
            listeners,
            pools,
        })
    }

    proptest! {
        #[test]
        fn a_plan_reads_back_as_it_was(plan in plan()) {
            let text = render(&plan);
            match parse("t.toml", &text) {
                Ok(loaded) => prop_assert_eq!(loaded.plan, plan),
                Err(mistakes) => {
                    let printed = mistakes.render(crate::config::Format::Human, crate::config::Colour::Plain);
                    prop_assert!(false, "{}\n{}", printed, text);
                }
            }
        }
    }

    #[test]
    fn what_has_its_default_is_left_out() {
        let servers = vec![Server::from(std::net::SocketAddr::from(([192, 0, 2, 1], 80)))];
        let plan = Plan {
            process: Process::default(),
            admin: Admin::default(),
            log: Log::default(),
            listeners: vec![Listener::new("web", vec![([127, 0, 0, 1], 80).into()], "web")],
            pools: vec![Pool::new("web", servers)],
        };
        assert_eq!(
            render(&plan),
            "# Whatever is not written here has its default; `tidegate check` reads this file.\n\n\
             [listener.web]\nbind = [\"127.0.0.1:80\"]\npool = \"web\"\n\n\
             [pool.web]\nbalance = \"least-connections\"\nservers = [\n  \"192.0.2.1:80\",\n]\n\
             # Without a table health_check, every server is taken to be up.\n"
        );
    }
}
