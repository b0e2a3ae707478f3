//! What holds where the operator wrote nothing: every default of Tidegate, in one place.
//!
//! Values only. They are chosen to be safe for a database connection that idles all night as
//! well as for HTTP; `conf/tidegate.toml` shows them to operators, and a test holds the two equal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::plan::{
    AccessLog, AccessOutput, AccessWhen, Admin, Admission, AdmissionMode, Affinity, AffinityBy, Auto,
    Balance, CircuitBreaker, HashKey, HealthCheck, Http, Level, Listener, Log, LogFormat, Method, OnNoServer,
    OnServerDown, OutlierDetection, Pool, Probe, Process, Queue, Retry, SendProxy, Server, SplitBy, Statuses,
    Target, Tcp, Tls, Verify, WhenFull,
};

/// Where the configuration is looked for.
pub const FILE: &str = "/etc/tidegate/tidegate.toml";
/// Where the admin API listens.
pub const ADMIN_SOCKET: &str = "/run/tidegate/admin.sock";

/// Both directions silent. Long, because keepalive finds dead peers within minutes.
pub const IDLE_TIMEOUT: Option<Duration> = Some(Duration::from_secs(3600));
/// One side has ended: what the other still has to say comes soon or never.
pub const HALF_CLOSE_TIMEOUT: Option<Duration> = Some(Duration::from_secs(60));
/// Below the idle limits of common firewalls and NATs, so that it also keeps their entries alive.
pub const TCP_KEEPALIVE: Option<Duration> = Some(Duration::from_secs(60));
/// Off: it would also end a live client that reads nothing for so long, since the kernel counts its
/// answers to window probes as silence, and an idle connection that loses one keepalive probe (Linux
/// leaves TCP_KEEPCNT aside where this is set). Databases have such clients. Unacknowledged data is
/// given up by the kernel alone after about a quarter of an hour.
pub const TCP_USER_TIMEOUT: Option<Duration> = None;
/// Room for one lost SYN (sent again after a second) and no more.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Forgiving: a slow server fills up and is left alone.
pub const BALANCE: Balance = Balance::LeastConnections;
pub const HASH_KEY: HashKey = HashKey::SourceIp;
/// 100, so that a share can be written as a percentage.
pub const WEIGHT: u32 = 100;
/// Waiting in the kernel's queue costs nothing and loses nobody.
pub const WHEN_FULL: WhenFull = WhenFull::Wait;
/// Off: it is for servers with caches to fill or code to compile, and the operator knows which.
pub const SLOW_START: Option<Duration> = None;
/// Exact also where few connections come.
pub const SPLIT_BY: SplitBy = SplitBy::Connection;
/// Off: in many protocols the server speaks first (MySQL, SMTP), and its clients would wait in vain.
pub const FIRST_BYTE_TIMEOUT: Option<Duration> = None;
pub const ON_NO_SERVER: OnNoServer = OnNoServer::Refuse;

impl Default for Process {
    fn default() -> Self {
        Process {
            workers: Auto::Auto,
            pin_workers: false,
            io: Auto::Auto,
            max_connections: Auto::Auto,
            drain_timeout: Duration::from_secs(30),
            ready_delay: Duration::ZERO,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Admin { socket: Some(PathBuf::from(ADMIN_SOCKET)), http: None }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: Level::Info, format: LogFormat::Text, access: AccessLog::default() }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        AccessLog { output: AccessOutput::Stdout, format: LogFormat::Json, when: AccessWhen::Always }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Admission {
            mode: AdmissionMode::Enforce,
            acl: Arc::default(),
            max_connections_per_source: None,
            connection_rate: None,
            connection_rate_per_source: None,
            // What one customer or one machine is given: it has 2^64 addresses to come from.
            source_prefix_ipv6: 64,
        }
    }
}

impl Default for Tcp {
    fn default() -> Self {
        Tcp { keepalive: TCP_KEEPALIVE, user_timeout: TCP_USER_TIMEOUT }
    }
}

impl Default for Retry {
    /// Three: the server picked, and two more chances for the client.
    fn default() -> Self {
        Retry {
            attempts: 3,
            backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            // A pool that is down gets a fifth more connects than its clients make, not three times as many.
            budget: 0.2,
            // As long as most clients wait for a connection themselves.
            deadline: Duration::from_secs(10),
        }
    }
}

impl Default for Queue {
    /// Five seconds: longer than most restarts, shorter than the patience of most clients.
    fn default() -> Self {
        Queue { max: 1000, timeout: Duration::from_secs(5) }
    }
}

impl Default for Affinity {
    /// Half an hour, as sessions of applications have it; a hundred thousand clients take about 11 MB.
    fn default() -> Self {
        Affinity { by: AffinityBy::SourceIp, ttl: Duration::from_secs(30 * 60), max_entries: 100_000 }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        HealthCheck {
            probe: Probe::Tcp,
            interval: Duration::from_secs(2),
            // A server that is down is asked as often, so that it is back as soon as it can be.
            interval_down: Duration::from_secs(2),
            interval_changing: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            // Spreads the checks of many balancers that were started together.
            jitter: 0.1,
            port: None,
            tls: None,
            send_proxy: SendProxy::Off,
        }
    }
}

impl Default for Tls {
    /// As a browser does: what is not asked to be laxer proves who it is.
    fn default() -> Self {
        Tls { verify: Verify::System, sni: None }
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        OutlierDetection {
            consecutive_failures: 5,
            failure_ratio: 0.5,
            // Fewer tell nothing: one of two failures may be chance.
            min_connections: 20,
            eject_for: Duration::from_secs(30),
            max_ejected: 0.5,
        }
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        CircuitBreaker {
            failures: 5,
            window: Duration::from_secs(10),
            // Long enough for a process to restart, short enough to be no outage of its own.
            open_for: Duration::from_secs(5),
            half_open_trials: 2,
        }
    }
}

impl Default for Http {
    /// Any success: 204 is as common for such a page as 200. A redirect is none, for it leads elsewhere.
    fn default() -> Self {
        Http {
            method: Method::Get,
            path: "/".into(),
            host: None,
            expect: vec![Statuses(200..=299)],
            expect_body: None,
            expect_headers: Vec::new(),
        }
    }
}

impl Listener {
    /// A listener with nothing said but what must be.
    pub fn new(name: impl Into<String>, bind: Vec<SocketAddr>, pool: impl Into<String>) -> Self {
        Listener {
            name: name.into(),
            bind,
            routes: Vec::new(),
            target: Some(Target::from(pool.into())),
            max_connections: None,
            when_full: WHEN_FULL,
            admission: Admission::default(),
            classes: Arc::default(),
            first_byte_timeout: FIRST_BYTE_TIMEOUT,
            bandwidth: None,
            bandwidth_per_connection: None,
            idle_timeout: IDLE_TIMEOUT,
            half_close_timeout: HALF_CLOSE_TIMEOUT,
            tcp: Tcp::default(),
        }
    }
}

impl Pool {
    /// A pool with nothing said but its servers; they are not checked.
    pub fn new(name: impl Into<String>, servers: Vec<Server>) -> Self {
        Pool {
            name: name.into(),
            balance: BALANCE,
            hash_key: HASH_KEY,
            max_load: None,
            affinity: None,
            servers,
            retry: Retry::default(),
            connect_timeout: CONNECT_TIMEOUT,
            tcp: Tcp::default(),
            on_no_server: ON_NO_SERVER,
            slow_start: SLOW_START,
            fallback: None,
            queue: None,
            on_server_down: OnServerDown::Keep,
            health_check: None,
            outlier_detection: None,
            circuit_breaker: None,
        }
    }
}

impl From<SocketAddr> for Server {
    /// A server that is called by its address.
    fn from(address: SocketAddr) -> Self {
        Server { name: address.to_string(), address, weight: WEIGHT, max_connections: None, tier: 0 }
    }
}
