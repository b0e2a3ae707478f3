//! Which keys each table takes, and what other balancers call them.
//!
//! Tables of words, nothing else. A foreign word is never accepted: it earns its translation.

mod route; // where clients go

pub use route::{CANARY, FOREIGN_SPLIT, ROUTE};

/// The keys of one kind of table.
#[derive(Debug)]
pub struct Keys {
    /// The table as operators write it.
    pub header: &'static str,
    pub names: &'static [&'static str],
    /// A word from elsewhere and ours for it.
    pub foreign: &'static [(&'static str, &'static str)],
}

pub const ROOT: Keys = Keys {
    header: "the file",
    names: &["process", "admin", "log", "defaults", "listener", "pool"],
    foreign: &[
        ("backend", "pool"),
        ("backends", "pool"),
        ("upstream", "pool"),
        ("upstreams", "pool"),
        ("cluster", "pool"),
        ("clusters", "pool"),
        ("service", "pool"),
        ("services", "pool"),
        ("target_group", "pool"),
        ("frontend", "listener"),
        ("frontends", "listener"),
        ("server", "listener"),
        ("listen", "listener"),
        ("entrypoint", "listener"),
        ("entrypoints", "listener"),
        ("virtual_server", "listener"),
        ("global", "process"),
        ("main", "process"),
        ("stats", "admin"),
        ("logging", "log"),
    ],
};

pub const PROCESS: Keys = Keys {
    header: "[process]",
    names: &["workers", "pin_workers", "io", "max_connections", "drain_timeout", "ready_delay"],
    foreign: &[
        ("nbthread", "workers"),
        ("threads", "workers"),
        ("worker_threads", "workers"),
        ("worker_processes", "workers"),
        ("concurrency", "workers"),
        ("maxconn", "max_connections"),
        ("worker_connections", "max_connections"),
        ("cpu_affinity", "pin_workers"),
        ("worker_cpu_affinity", "pin_workers"),
        ("hard_stop_after", "drain_timeout"),
        ("worker_shutdown_timeout", "drain_timeout"),
        ("grace", "ready_delay"),
    ],
};

pub const ADMIN: Keys = Keys {
    header: "[admin]",
    names: &["socket", "http"],
    foreign: &[("metrics", "http"), ("prometheus", "http"), ("unix", "socket")],
};

pub const LOG: Keys = Keys {
    header: "[log]",
    names: &["level", "format", "access"],
    foreign: &[("verbosity", "level"), ("access_log", "access")],
};

pub const ACCESS: Keys = Keys {
    header: "[log.access]",
    names: &["output", "format", "when"],
    foreign: &[("path", "output"), ("file", "output"), ("target", "output")],
};

pub const DEFAULTS: Keys = Keys {
    header: "[defaults]",
    names: &[
        "idle_timeout",
        "half_close_timeout",
        "tcp_keepalive",
        "tcp_user_timeout",
        "connect_timeout",
        "balance",
        "when_full",
        "allow",
        "deny",
        "max_connections_per_source",
        "source_prefix_ipv6",
        "connection_rate_per_source",
        "admission",
        "priority",
        "priority_from",
        "bandwidth_per_connection",
        "on_no_server",
        "retry",
        "slow_start",
        "queue",
    ],
    foreign: FOREIGN_TIMES,
};

pub const LISTENER: Keys = Keys {
    header: "[listener.NAME]",
    names: &[
        "bind",
        "pool",
        "canary",
        "route",
        "max_connections",
        "when_full",
        "allow",
        "deny",
        "max_connections_per_source",
        "source_prefix_ipv6",
        "connection_rate",
        "connection_rate_per_source",
        "admission",
        "priority",
        "priority_from",
        "first_byte_timeout",
        "bandwidth",
        "bandwidth_per_connection",
        "idle_timeout",
        "half_close_timeout",
        "tcp_keepalive",
        "tcp_user_timeout",
    ],
    foreign: &[
        ("backend", "pool"),
        ("default_backend", "pool"),
        ("use_backend", "pool"),
        ("upstream", "pool"),
        ("proxy_pass", "pool"),
        ("cluster", "pool"),
        ("service", "pool"),
        ("routes", "route"),
        ("rules", "route"),
        ("split", "canary"),
        ("listen", "bind"),
        ("address", "bind"),
        ("addresses", "bind"),
        ("maxconn", "max_connections"),
        ("timeout_client", "idle_timeout"),
        ("proxy_timeout", "idle_timeout"),
        ("client_fin_timeout", "half_close_timeout"),
        ("tcp_request_inspect_delay", "first_byte_timeout"),
        ("inspect_delay", "first_byte_timeout"),
        ("preread_timeout", "first_byte_timeout"),
        ("listener_filters_timeout", "first_byte_timeout"),
        ("defer_accept", "first_byte_timeout"),
        ("limit_rate", "bandwidth_per_connection"),
        ("proxy_upload_rate", "bandwidth_per_connection"),
        ("proxy_download_rate", "bandwidth_per_connection"),
        ("bwlim_in", "bandwidth_per_connection"),
        ("bwlim_out", "bandwidth_per_connection"),
        ("bandwidth_limit", "bandwidth"),
        ("bwlim", "bandwidth"),
        ("rate_limit", "connection_rate"),
        ("rate_limit_sessions", "connection_rate"),
        ("limit_conn", "max_connections_per_source"),
        ("max_connections_per_ip", "max_connections_per_source"),
        ("allowlist", "allow"),
        ("whitelist", "allow"),
        ("blocklist", "deny"),
        ("blacklist", "deny"),
        ("priority_class", "priority"),
        ("keepalive", "tcp_keepalive"),
    ],
};

pub const PRIORITY_FROM: Keys = Keys {
    header: "priority_from",
    names: &["highest", "high", "normal", "low", "lowest"],
    foreign: FOREIGN_PRIORITY,
};

pub const POOL: Keys = Keys {
    header: "[pool.NAME]",
    names: &[
        "balance",
        "hash_key",
        "max_load",
        "affinity",
        "servers",
        "retry",
        "connect_timeout",
        "tcp_keepalive",
        "tcp_user_timeout",
        "on_no_server",
        "slow_start",
        "fallback",
        "on_server_down",
        "queue",
        "health_check",
        "outlier_detection",
        "circuit_breaker",
    ],
    foreign: &[
        ("algorithm", "balance"),
        ("lb_policy", "balance"),
        ("method", "balance"),
        ("policy", "balance"),
        ("strategy", "balance"),
        ("backends", "servers"),
        ("endpoints", "servers"),
        ("hosts", "servers"),
        ("members", "servers"),
        ("targets", "servers"),
        ("upstreams", "servers"),
        ("check", "health_check"),
        ("option_tcp_check", "health_check"),
        ("retries", "retry"),
        ("on_marked_down", "on_server_down"),
        ("timeout_queue", "queue"),
        ("maxqueue", "queue"),
        ("outliers", "outlier_detection"),
        ("passive_health_check", "outlier_detection"),
        ("observe", "outlier_detection"),
        ("circuit_breakers", "circuit_breaker"),
        ("timeout_connect", "connect_timeout"),
        ("proxy_connect_timeout", "connect_timeout"),
        ("keepalive", "tcp_keepalive"),
        ("backup", "fallback"),
        ("failover", "fallback"),
        ("fallback_pool", "fallback"),
        ("slowstart", "slow_start"),
        ("stick", "affinity"),
        ("sticky", "affinity"),
        ("stick_table", "affinity"),
        ("session_affinity", "affinity"),
        ("hash_balance_factor", "max_load"),
        ("ramp_up", "slow_start"),
        ("warmup", "slow_start"),
    ],
};

pub const RETRY: Keys = Keys {
    header: "retry",
    names: &["attempts", "backoff", "max_backoff", "budget", "deadline"],
    foreign: &[
        ("retries", "attempts"),
        ("max_retries", "attempts"),
        ("max_attempts", "attempts"),
        ("tries", "attempts"),
        ("base_interval", "backoff"),
        ("base_delay", "backoff"),
        ("max_interval", "max_backoff"),
        ("max_delay", "max_backoff"),
        ("retry_budget", "budget"),
        ("budget_percent", "budget"),
        ("timeout", "deadline"),
    ],
};

pub const QUEUE: Keys = Keys {
    header: "queue",
    names: &["max", "timeout"],
    foreign: &[
        ("size", "max"),
        ("length", "max"),
        ("max_length", "max"),
        ("maxqueue", "max"),
        ("max_pending_requests", "max"),
        ("max_wait", "timeout"),
    ],
};

pub const AFFINITY: Keys = Keys {
    header: "affinity",
    names: &["by", "ttl", "max_entries"],
    foreign: &[
        ("on", "by"),
        ("type", "by"),
        ("key", "by"),
        ("expire", "ttl"),
        ("timeout", "ttl"),
        ("size", "max_entries"),
    ],
};

pub const SERVER: Keys = Keys {
    header: "a table of `servers`",
    names: &["name", "address", "weight", "max_connections", "tier"],
    foreign: &[
        ("addr", "address"),
        ("host", "address"),
        ("ip", "address"),
        ("url", "address"),
        ("maxconn", "max_connections"),
        ("max_conns", "max_connections"),
        ("id", "name"),
        ("backup", "tier"),
        ("priority", "tier"),
    ],
};

pub const TLS: Keys = Keys {
    header: "tls",
    names: &["verify", "sni"],
    foreign: &[
        ("ca", "verify"),
        ("ca_file", "verify"),
        ("cafile", "verify"),
        ("ca_certificate", "verify"),
        ("trusted_certificate", "verify"),
        ("trusted_ca", "verify"),
        ("root_ca", "verify"),
        ("check_sni", "sni"),
        ("name", "sni"),
        ("server_name", "sni"),
        ("servername", "sni"),
    ],
};

pub const HEALTH_CHECK: Keys = Keys {
    header: "[pool.NAME.health_check]",
    names: &[
        "type",
        "interval",
        "interval_down",
        "interval_changing",
        "timeout",
        "rise",
        "fall",
        "jitter",
        "port",
        "method",
        "path",
        "host",
        "expect",
        "expect_body",
        "expect_headers",
        "role",
        "galera",
        "max_lag",
        "user",
        "password_file",
        "database",
        "steps",
        "tls",
        "starttls",
        "send_proxy",
    ],
    foreign: &[
        ("inter", "interval"),
        ("downinter", "interval_down"),
        ("unhealthy_interval", "interval_down"),
        ("unhealthyinterval", "interval_down"),
        ("fastinter", "interval_changing"),
        ("unhealthy_edge_interval", "interval_changing"),
        ("healthy_edge_interval", "interval_changing"),
        ("period", "interval"),
        ("healthy_threshold", "rise"),
        ("passes", "rise"),
        ("unhealthy_threshold", "fall"),
        ("fails", "fall"),
        ("protocol", "type"),
        ("uri", "path"),
        ("url", "path"),
        ("status", "expect"),
        ("expect_status", "expect"),
        ("expected_status", "expect"),
        ("expected_codes", "expect"),
        ("expected_statuses", "expect"),
        ("http_check", "type"),
        ("username", "user"),
        ("dbname", "database"),
        ("maximum_lag_on_failover", "max_lag"),
        ("wsrep", "galera"),
        ("available_when_donor", "galera"),
        ("check_send_proxy", "send_proxy"),
        ("send_proxy_v2", "send_proxy"),
        ("proxy_protocol", "send_proxy"),
        ("accept_proxy", "send_proxy"),
        ("check_ssl", "tls"),
        ("ssl", "tls"),
    ],
};

pub const STEP: Keys = Keys {
    header: "a table of `steps`",
    names: &["send", "expect", "send_hex", "expect_hex"],
    foreign: &[
        ("string", "expect"),
        ("receive", "expect"),
        ("send_binary", "send_hex"),
        ("binary", "expect_hex"),
    ],
};

pub const OUTLIER_DETECTION: Keys = Keys {
    header: "[pool.NAME.outlier_detection]",
    names: &["consecutive_failures", "failure_ratio", "min_connections", "eject_for", "max_ejected"],
    foreign: &[
        ("consecutive_5xx", "consecutive_failures"),
        ("consecutive_gateway_failure", "consecutive_failures"),
        ("consecutive_local_origin_failure", "consecutive_failures"),
        ("error_limit", "consecutive_failures"),
        ("max_fails", "consecutive_failures"),
        ("failure_percentage_threshold", "failure_ratio"),
        ("failure_percentage_request_volume", "min_connections"),
        ("base_ejection_time", "eject_for"),
        ("fail_timeout", "eject_for"),
        ("max_ejection_percent", "max_ejected"),
    ],
};

pub const CIRCUIT_BREAKER: Keys = Keys {
    header: "[pool.NAME.circuit_breaker]",
    names: &["failures", "window", "open_for", "half_open_trials"],
    foreign: &[
        ("max_failures", "failures"),
        ("error_limit", "failures"),
        ("max_fails", "failures"),
        ("interval", "window"),
        ("fail_timeout", "open_for"),
        ("reset_timeout", "open_for"),
        ("sleep_window", "open_for"),
        ("half_open_requests", "half_open_trials"),
    ],
};

/// Where a key of the right name in the wrong table may have been meant for.
pub const TABLES: [&Keys; 11] = [
    &PROCESS,
    &ADMIN,
    &LOG,
    &ACCESS,
    &LISTENER,
    &ROUTE,
    &POOL,
    &HEALTH_CHECK,
    &OUTLIER_DETECTION,
    &CIRCUIT_BREAKER,
    &SERVER,
];

/// Every kind of table, in the order of the reference.
pub const ALL: [&Keys; 20] = [
    &ROOT,
    &PROCESS,
    &ADMIN,
    &LOG,
    &ACCESS,
    &DEFAULTS,
    &LISTENER,
    &PRIORITY_FROM,
    &ROUTE,
    &CANARY,
    &POOL,
    &RETRY,
    &AFFINITY,
    &QUEUE,
    &SERVER,
    &HEALTH_CHECK,
    &STEP,
    &TLS,
    &OUTLIER_DETECTION,
    &CIRCUIT_BREAKER,
];

const FOREIGN_TIMES: &[(&str, &str)] = &[
    ("timeout_connect", "connect_timeout"),
    ("timeout_client", "idle_timeout"),
    ("timeout_server", "idle_timeout"),
    ("timeout", "idle_timeout"),
    ("keepalive", "tcp_keepalive"),
    ("retries", "retry"),
];

/// What others call a way to balance.
pub const FOREIGN_BALANCE: &[(&str, &str)] = &[
    ("rr", "round-robin"),
    ("wrr", "round-robin"),
    ("roundrobin", "round-robin"),
    ("static-rr", "round-robin"),
    ("weighted", "round-robin"),
    ("leastconn", "least-connections"),
    ("least-conn", "least-connections"),
    ("least-request", "least-connections"),
    ("lc", "least-connections"),
    ("wlc", "least-connections"),
    ("source", "consistent-hash"),
    ("ip-hash", "consistent-hash"),
    ("hash", "consistent-hash"),
    ("maglev", "consistent-hash"),
    ("ring-hash", "consistent-hash"),
    ("p2c", "power-of-two"),
    ("two-choices", "power-of-two"),
    ("failover", "first"),
    ("peak-ewma", "fastest"),
    ("ewma", "fastest"),
    ("least-time", "fastest"),
];

pub const FOREIGN_HASH_KEY: &[(&str, &str)] = &[
    ("source", "source-ip"),
    ("src", "source-ip"),
    ("ip", "source-ip"),
    ("client-ip", "source-ip"),
    ("dst", "destination"),
];

pub const FOREIGN_LEVEL: &[(&str, &str)] = &[
    ("warning", "warn"),
    ("err", "error"),
    ("crit", "error"),
    ("alert", "error"),
    ("emerg", "error"),
    ("critical", "error"),
    ("notice", "info"),
    ("verbose", "debug"),
];

pub const FOREIGN_REFUSE: &[(&str, &str)] = &[
    ("reject", "refuse"),
    ("reset", "refuse"),
    ("drop", "refuse"),
    ("close", "refuse"),
    ("queue", "wait"),
    ("wait", "queue"),
];

pub const FOREIGN_DOWN: &[(&str, &str)] = &[
    ("none", "keep"),
    ("close", "close-connections"),
    ("reset", "close-connections"),
    ("shutdown-sessions", "close-connections"),
];

pub const FOREIGN_FORMAT: &[(&str, &str)] = &[("plain", "text"), ("logfmt", "text"), ("pretty", "text")];

pub const FOREIGN_WHEN: &[(&str, &str)] = &[("all", "always"), ("errors", "abnormal"), ("error", "abnormal")];

pub const FOREIGN_ADMISSION: &[(&str, &str)] = &[
    ("on", "enforce"),
    ("block", "enforce"),
    ("dryrun", "dry-run"),
    ("log-only", "dry-run"),
    ("monitor", "dry-run"),
    ("observe", "dry-run"),
    ("shadow", "dry-run"),
];

/// What others call a class of clients.
pub const FOREIGN_PRIORITY: &[(&str, &str)] = &[
    ("critical", "highest"),
    ("max", "highest"),
    ("default", "normal"),
    ("medium", "normal"),
    ("background", "lowest"),
    ("bulk", "lowest"),
    ("min", "lowest"),
];
