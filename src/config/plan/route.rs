//! Which client goes to which pool: `[[listener.NAME.route]]`, `pool` and `canary`.

use std::sync::Arc;

use super::{Acl, Split};

/// One `[[listener.NAME.route]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its number among the routes of the listener, from 1 on, where it is given no other. Unique there.
    pub name: String,
    /// The clients that it takes.
    pub from: Arc<Acl>,
    /// `None`: they are refused.
    pub target: Option<Target>,
}

impl Route {
    /// Each of them is asked about a client, one after the other.
    pub const COUNT_MAX: usize = 256;
    /// What those are called that no route takes.
    pub const DEFAULT: &'static str = "default";
}

/// Where clients go.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// By name; it exists.
    pub pool: String,
    pub canary: Option<Canary>,
}

impl From<String> for Target {
    fn from(pool: String) -> Self {
        Target { pool, canary: None }
    }
}

/// `canary`: another pool gets a share of the connections that would go to `pool`.
#[derive(Clone, Debug, PartialEq)]
pub struct Canary {
    /// By name; it exists.
    pub pool: String,
    pub split: Split,
    /// Nobody else goes there.
    pub from: Arc<Acl>,
}
