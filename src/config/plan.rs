//! The configuration as meant: every value decided, nothing left that means "default".
//!
//! Immutable once made, by `check.rs`. The data plane reads it through the snapshot;
//! nobody else interprets what the operator wrote.

mod probe; // what a health check asks
mod route; // which client goes to which pool
mod tls; // TLS to a server

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use crate::core::acl::Acl;
pub use crate::core::affinity::By as AffinityBy;
pub use crate::core::balance::{HashKey, Kind as Balance};
pub use crate::core::breaker::Rules as CircuitBreaker;
pub use crate::core::bucket::Rate;
use crate::core::outcome::words;
pub use crate::core::outlier::Rules as OutlierDetection;
use crate::core::prefix::Prefix;
pub use crate::core::priority::{Classes, Priority};
pub use crate::core::split::{By as SplitBy, Share, Split};
pub use crate::core::throttle::Bandwidth;
pub use probe::{
    CheckKind, Galera, Http, Login, Method, Mysql, Password, Postgres, Probe, Redis, Role, SendProxy, Smtp,
    Statuses, Step,
};
pub use route::{Canary, Route, Target};
pub use tls::{Authorities, Tls, Verify};

/// Everything the operator asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub process: Process,
    pub admin: Admin,
    pub log: Log,
    /// In order of the file; names are unique.
    pub listeners: Vec<Listener>,
    /// In order of the file; names are unique.
    pub pools: Vec<Pool>,
}

impl Plan {
    /// The pool of that name and those that it falls back to, in the order in which they are asked.
    pub fn chain<'p>(&'p self, name: &str) -> impl Iterator<Item = &'p Pool> {
        let next = |pool: &&Pool| pool.fallback.as_deref().and_then(|name| self.pool(name));
        std::iter::successors(self.pool(name), next).take(1 + FALLBACKS_MAX)
    }

    /// The pool of that name. Those that a listener names always exist: `check.rs` saw to it.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }
}

/// A value that may be left to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto<T> {
    Auto,
    Set(T),
}

/// `[process]`: what holds for the whole daemon. Changing it needs a restart,
/// except for `max_connections`, `drain_timeout` and `ready_delay`.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Worker threads; `Auto` is one for each usable core.
    pub workers: Auto<usize>,
    /// Bind each worker to a core of its own.
    pub pin_workers: bool,
    pub io: Auto<Io>,
    /// Connections of all listeners together; `Auto` follows from RLIMIT_NOFILE.
    pub max_connections: Auto<usize>,
    pub drain_timeout: Duration,
    pub ready_delay: Duration,
}

words! {
    /// How workers wait for sockets.
    Io { Epoll = "epoll", IoUring = "io-uring" }
}

/// `[admin]`: the way in for operators.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Unix socket of the API; `None` is off.
    pub socket: Option<PathBuf>,
    /// Address of metrics and health; `None` is off.
    pub http: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub level: Level,
    pub format: LogFormat,
    pub access: AccessLog,
}

words! {
    /// The least severe message that is written.
    Level { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }
}

words! {
    /// How a log line looks.
    LogFormat { Text = "text", Json = "json" }
}

/// `[log.access]`: one line for each connection, when it has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    pub output: AccessOutput,
    pub format: LogFormat,
    pub when: AccessWhen,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessOutput {
    Off,
    Stdout,
    File(PathBuf),
}

words! {
    /// Which connections are worth a line.
    AccessWhen {
        Always = "always",
        /// All but those that ended as `done`.
        Abnormal = "abnormal",
    }
}

/// `[listener.NAME]`: addresses that clients connect to.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub name: String,
    /// At least one; no two of the plan overlap.
    pub bind: Vec<SocketAddr>,
    /// The first that takes a client decides where it goes. At most [`Route::COUNT_MAX`].
    pub routes: Vec<Route>,
    /// Where everybody else goes; `None` only with routes: whoever none of them takes is refused.
    pub target: Option<Target>,
    /// Connections at once; `None` is bounded by the process alone.
    pub max_connections: Option<usize>,
    pub when_full: WhenFull,
    pub admission: Admission,
    /// Who comes first when room is short. Shared by all listeners that take it from `[defaults]`.
    pub classes: Arc<Classes>,
    /// No server is asked before the client's first byte, and a client that has said none for so long
    /// after it came is closed. `None`: servers are asked at once.
    pub first_byte_timeout: Option<Duration>,
    /// Of all its connections together, in each direction; `None` is no limit.
    pub bandwidth: Option<Bandwidth>,
    /// Of one connection, in each direction; `None` is no limit.
    pub bandwidth_per_connection: Option<Bandwidth>,
    /// Both directions silent for this long: the connection is closed. `None` is never.
    pub idle_timeout: Option<Duration>,
    /// One side has ended and the other is silent for this long. `None` is never.
    pub half_close_timeout: Option<Duration>,
    /// The client's side.
    pub tcp: Tcp,
}

words! {
    /// What happens to a client for whom there is no room.
    WhenFull {
        /// It waits in the kernel's queue until a place is free.
        Wait = "wait",
        /// It is reset at once.
        Refuse = "refuse",
    }
}

/// Who may come in at a listener, besides what `max_connections` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    pub mode: AdmissionMode,
    /// `allow` and `deny`. Shared by all listeners that take them from `[defaults]`.
    pub acl: Arc<Acl>,
    /// Connections at once of one source; `None` is no limit.
    pub max_connections_per_source: Option<usize>,
    /// New connections of all sources together; `None` is no limit.
    pub connection_rate: Option<Rate>,
    /// New connections of one source; `None` is no limit.
    pub connection_rate_per_source: Option<Rate>,
    /// Bits of an IPv6 address that make a source, 1 to 128. A source of IPv4 is one address.
    pub source_prefix_ipv6: u8,
}

impl Admission {
    /// What a client counts as.
    pub fn source(&self, address: IpAddr) -> Prefix {
        match address.to_canonical() {
            address @ IpAddr::V6(_) => Prefix::around(address, self.source_prefix_ipv6),
            IpAddr::V4(_) => None,
        }
        .unwrap_or_else(|| Prefix::of(address))
    }
}

words! {
    /// What comes of an admission that says no.
    AdmissionMode {
        Enforce = "enforce",
        /// The client is let in, and counted as one that would have been refused.
        DryRun = "dry-run",
    }
}

/// How a dead peer is found out, on one side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Silence before the first keepalive probe; `None` sends none.
    pub keepalive: Option<Duration>,
    /// How long sent data may stay unacknowledged; `None` leaves it to the kernel.
    pub user_timeout: Option<Duration>,
}

/// `[pool.NAME]`: servers that can stand in for each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub name: String,
    pub balance: Balance,
    pub hash_key: HashKey,
    /// Of a consistent hash: how far a server's load may be above the mean, in percent of the mean;
    /// above 100. `None` is no bound.
    pub max_load: Option<u32>,
    /// `None`: clients are not recognised.
    pub affinity: Option<Affinity>,
    /// At least one, and at least one with a positive weight; names are unique in the pool.
    pub servers: Vec<Server>,
    pub retry: Retry,
    pub connect_timeout: Duration,
    /// The server's side.
    pub tcp: Tcp,
    pub on_no_server: OnNoServer,
    /// How long a server that is new or has come back takes to get its full weight; `None` is no time.
    pub slow_start: Option<Duration>,
    /// The pool that is asked when this one has no server left; it exists, and no chain of them comes
    /// back to where it began or is longer than [`FALLBACKS_MAX`].
    pub fallback: Option<String>,
    pub on_server_down: OnServerDown,
    /// The line for clients; `None`: nobody waits. Always there with [`OnNoServer::Queue`].
    pub queue: Option<Queue>,
    /// `None`: the servers are taken to be up.
    pub health_check: Option<HealthCheck>,
    /// `[pool.NAME.outlier_detection]`; `None`: no server is judged by its traffic.
    pub outlier_detection: Option<OutlierDetection>,
    /// `[pool.NAME.circuit_breaker]`; `None`: a server is tried however often it fails.
    pub circuit_breaker: Option<CircuitBreaker>,
}

/// `affinity`: a client goes to the server that served it before, as long as that server can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    pub by: AffinityBy,
    /// Since the client's last connection began.
    pub ttl: Duration,
    /// Clients that are known at once; beyond, those are forgotten that have not come for the longest time.
    pub max_entries: usize,
}

/// Pools that are asked after the first one. A client waits while each of them is tried.
pub const FALLBACKS_MAX: usize = 4;

words! {
    /// What a client gets when its pool has no server.
    OnNoServer {
        /// It is reset.
        Refuse = "refuse",
        /// It waits in the pool's line.
        Queue = "queue",
    }
}

/// What becomes of connections whose server goes down by its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnServerDown {
    /// They go on as long as they can.
    Keep,
    /// They are reset at once.
    CloseConnections,
    /// Those that are left after that time are reset, unless the server is up again by then.
    Drain(Duration),
}

/// `queue`: clients that wait for a server with room, and with [`OnNoServer::Queue`] for any server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Clients that wait at once; at least 1.
    pub max: usize,
    pub timeout: Duration,
}

/// One address that Tidegate connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    pub address: SocketAddr,
    /// Share of the traffic against the other servers, 0 to 1000; 0 gets none.
    pub weight: u32,
    /// Connections at once; `None` is no limit.
    pub max_connections: Option<usize>,
    /// It serves only while no server of a lower tier is up and has room left.
    pub tier: u8,
}

/// `retry`: what happens when a server does not take a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Tries for one client, the first one included; at least 1.
    pub attempts: u32,
    /// Pause before a server is asked a second time; it doubles with each time, up to `max_backoff`.
    pub backoff: Duration,
    pub max_backoff: Duration,
    /// Share of the pool's traffic that retries in vain may be, 0.0 to 1.0.
    pub budget: f64,
    /// No try begins when one has taken so long already.
    pub deadline: Duration,
}

/// `[pool.NAME.health_check]`
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    pub probe: Probe,
    /// From one check to the next while the server is up.
    pub interval: Duration,
    /// The same while it is down.
    pub interval_down: Duration,
    /// The same while it is on the way from one to the other: the last result spoke against its state.
    pub interval_changing: Duration,
    pub timeout: Duration,
    /// Successes in a row that bring a server up; at least 1.
    pub rise: u32,
    /// Failures in a row that take it down; at least 1.
    pub fall: u32,
    /// Share of the interval by which each check is moved at random, 0.0 to 1.0.
    pub jitter: f64,
    /// Another port than the server's.
    pub port: Option<u16>,
    /// `None`: in clear.
    pub tls: Option<Tls>,
    pub send_proxy: SendProxy,
}

impl HealthCheck {
    /// The same check with that time between two of them, whatever the server's state.
    pub fn every(self, interval: Duration) -> Self {
        HealthCheck { interval, interval_down: interval, interval_changing: interval, ..self }
    }
}
