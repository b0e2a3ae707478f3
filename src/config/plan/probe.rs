//! What a health check asks a server, and which answer is the right one.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::core::outcome::words;

words! {
    /// `type`: the protocol that a check speaks.
    CheckKind {
        Tcp = "tcp",
        Tls = "tls",
        Http = "http",
        SendExpect = "send-expect",
        Postgres = "postgres",
        Mysql = "mysql",
        Redis = "redis",
        Smtp = "smtp",
    }
}

words! {
    /// `send_proxy`: the PROXY header that a check begins with, which says that nobody stands behind it.
    SendProxy {
        Off = "off",
        V1 = "v1",
        V2 = "v2",
    }
}

/// One kind of check with all that it needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    /// Connects and takes leave.
    Tcp,
    /// Connects, shakes hands, and takes leave. Its check has a [`super::Tls`].
    Tls,
    Http(Http),
    /// At least one step.
    SendExpect(Vec<Step>),
    Postgres(Postgres),
    Mysql(Mysql),
    Redis(Redis),
    Smtp(Smtp),
}

impl Probe {
    pub fn kind(&self) -> CheckKind {
        match self {
            Probe::Tcp => CheckKind::Tcp,
            Probe::Tls => CheckKind::Tls,
            Probe::Http(_) => CheckKind::Http,
            Probe::Postgres(_) => CheckKind::Postgres,
            Probe::Mysql(_) => CheckKind::Mysql,
            Probe::Redis(_) => CheckKind::Redis,
            Probe::SendExpect(_) => CheckKind::SendExpect,
            Probe::Smtp(_) => CheckKind::Smtp,
        }
    }
}

impl From<CheckKind> for Probe {
    /// The check of that kind with nothing said about it.
    fn from(kind: CheckKind) -> Self {
        match kind {
            CheckKind::Tcp => Probe::Tcp,
            CheckKind::Tls => Probe::Tls,
            CheckKind::SendExpect => Probe::SendExpect(Vec::new()),
            CheckKind::Smtp => Probe::Smtp(Smtp::default()),
            CheckKind::Http => Probe::Http(Http::default()),
            CheckKind::Postgres => Probe::Postgres(Postgres::default()),
            CheckKind::Mysql => Probe::Mysql(Mysql::default()),
            CheckKind::Redis => Probe::Redis(Redis::default()),
        }
    }
}

/// `type = "http"`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub method: Method,
    /// Begins with `/`, and holds nothing that would end the request's line.
    pub path: String,
    /// The `Host` header; `None` is the checked address.
    pub host: Option<String>,
    /// At least one; the status must be in one of them.
    pub expect: Vec<Statuses>,
    /// Must be part of the body's first 64 KiB.
    pub expect_body: Option<String>,
    /// Each must be there: a name, and the value if one is given.
    pub expect_headers: Vec<(String, Option<String>)>,
}

words! {
    /// `method`
    Method { Get = "GET", Head = "HEAD" }
}

/// One status or a range of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(pub RangeInclusive<u16>);

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (start, end) if start == end => write!(f, "{start}"),
            (start, end) => write!(f, "{start}-{end}"),
        }
    }
}

/// One step of `type = "send-expect"`; an empty part is left out.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    pub send: Vec<u8>,
    /// Must come back, with anything before and behind it.
    pub expect: Vec<u8>,
}

impl fmt::Debug for Step {
    /// Without what is sent, which may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("send", &self.send.len()).field("expect", &self.expect).finish()
    }
}

/// `type = "postgres"`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Postgres {
    /// Its user is there: `check.rs` saw to it.
    pub login: Login,
    /// `None`: the one that has the user's name, as everywhere with PostgreSQL.
    pub database: Option<String>,
    /// `None`: either.
    pub role: Option<Role>,
    /// How far a replica may be behind; `None` is as far as it is.
    pub max_lag: Option<Duration>,
}

/// `type = "mysql"`, MariaDB included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mysql {
    /// Its user is there: `check.rs` saw to it.
    pub login: Login,
    /// `None`: either.
    pub role: Option<Role>,
    /// `None`: whatever a cluster makes of the server.
    pub galera: Option<Galera>,
}

words! {
    /// `galera`: how far a node of a Galera cluster must be in step with it.
    Galera { Synced = "synced", SyncedOrDonor = "synced-or-donor" }
}

/// `type = "redis"`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redis {
    pub login: Login,
    /// `None`: either.
    pub role: Option<Role>,
}

/// `type = "smtp"`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Smtp {
    /// TLS begins when the server has been asked for it, and not with the connection.
    pub starttls: bool,
}

words! {
    /// What a server must be among those that hold the same data.
    Role { Primary = "primary", Replica = "replica" }
}

/// Who logs in for a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    pub user: Option<String>,
    pub password: Option<Password>,
}

/// A password, and the file that it comes from. A file that has changed is a changed plan.
#[derive(Clone, PartialEq, Eq)]
pub struct Password {
    pub file: PathBuf,
    pub secret: String,
}

impl fmt::Debug for Password {
    /// Without the password: a plan may end up in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Password").field("file", &self.file).finish_non_exhaustive()
    }
}
