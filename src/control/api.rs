//! The shapes of the JSON API: what the admin doors send and the command line reads.
//!
//! Names are the product's interface: fields may be added, never renamed. Times are RFC 3339
//! in UTC. Filled in by `view.rs`; no logic here.

use serde::{Deserialize, Serialize};

/// `GET /api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub generation: u64,
    pub started: String,
    pub io: String,
    /// `configured`, `works`, or why io_uring does not: `denied`, `missing`, `too_old`, `no_memory`,
    /// `no_descriptors`, `broken`.
    #[serde(default)]
    pub io_reason: String,
    pub workers: usize,
    /// `serving` or `draining`.
    pub state: String,
    pub connections: Connections,
    pub listeners: usize,
    pub pools: Pools,
    /// `null` until the first reload.
    pub last_reload: Option<LastReload>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    pub active: usize,
    /// Since the start, refused ones included.
    pub total: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pools {
    pub total: usize,
    /// With some servers up and some not.
    pub degraded: usize,
    /// With no server up.
    pub empty: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastReload {
    pub at: String,
    pub ok: bool,
    pub message: String,
}

/// One of `GET /api/v1/listeners`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub name: String,
    pub bind: Vec<String>,
    /// For whom no route is; `null`: they are refused.
    pub pool: Option<String>,
    pub canary: Option<Canary>,
    /// In the order in which they are asked.
    pub routes: Vec<Route>,
    pub active: usize,
    pub total: u64,
    pub rejected: u64,
    /// `null`: bounded by the process alone.
    pub limit: Option<usize>,
    /// `listening`, `full` or `draining`.
    pub state: String,
}

/// One of a listener's routes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub name: String,
    /// Empty: it takes every client.
    pub from: Vec<String>,
    /// `null`: its clients are refused.
    pub pool: Option<String>,
    pub canary: Option<Canary>,
    /// Connections that it has taken.
    pub total: u64,
}

/// The pool that gets a share of the connections that would go to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    pub pool: String,
    /// Such as `5%`.
    pub share: String,
    pub by: String,
    /// Empty: every client may be one of its.
    pub from: Vec<String>,
    /// Connections that were its.
    pub total: u64,
    /// Those of them that it had no server for: the main pool was asked.
    pub left: u64,
}

/// One of `GET /api/v1/pools`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    pub balance: String,
    /// The pool that is asked when this one has no server left.
    pub fallback: Option<String>,
    pub servers_up: usize,
    pub servers_total: usize,
    pub active: usize,
    pub queued: usize,
    /// `up`, `degraded` or `empty`.
    pub state: String,
    /// One sentence; empty where there is nothing to say.
    pub why: String,
}

/// One of `GET /api/v1/servers`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    pub pool: String,
    pub name: String,
    pub address: String,
    /// `up`, `down`, `checking`, `ejected`, `cut-off` or `on-trial`.
    pub state: String,
    /// One sentence; empty where there is nothing to say.
    pub why: String,
    pub weight: u32,
    /// Above 0 it stands by for the lower tiers.
    pub tier: u8,
    pub active: usize,
    pub total: u64,
    pub connect_failures: u64,
    /// `null`: not checked, or not yet.
    pub last_check: Option<LastCheck>,
    /// Of the circuit breaker: `closed`, `open` or `half-open`; `null` where there is none.
    pub circuit: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastCheck {
    pub at: String,
    pub ok: bool,
    pub ms: f64,
    pub message: String,
}

/// Any answer with a 4xx or 5xx status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub error: Trouble,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// A frozen word, such as `not_found`.
    pub code: String,
    pub message: String,
    pub hint: String,
}
