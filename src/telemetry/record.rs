//! One connection's story: filled in by the steps, told once, by `data/close.rs`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::core::balance::Why;
use crate::core::outcome::{Close, Reason};
use crate::core::priority::Priority;

/// The version of the record's shape, as `"v"`: fields are added under it, never renamed.
pub const VERSION: u32 = 1;

/// A finished record, ready to be written.
#[derive(Clone, Debug)]
pub struct Record {
    /// When the connection was accepted.
    pub ts: SystemTime,
    /// Unique in this process: the worker in the upper 16 bits, its count in the lower 48.
    pub conn_id: u64,
    pub listener: String,
    pub worker: usize,
    pub generation: u64,
    pub client: SocketAddr,
    /// The class that it came under.
    pub priority: Priority,
    /// The address that the client connected to.
    pub local: SocketAddr,
    /// The route that took it, and whether a canary got it; `None` where it had not come so far.
    pub route: Option<Cow<'static, str>>,
    pub routed: Option<Routed>,
    pub attempts: Vec<Attempt>,
    pub times: Times,
    /// From the client.
    pub bytes_in: u64,
    /// To the client.
    pub bytes_out: u64,
    pub path: Option<Path>,
    pub close: Close,
}

/// Where a connection went.
#[derive(Clone, Debug)]
pub struct Routed {
    pub pool: String,
    /// The server that took it, or the last that was tried; `None` where there was none to try.
    pub server: Option<Chosen>,
}

#[derive(Clone, Debug)]
pub struct Chosen {
    pub name: String,
    pub address: SocketAddr,
    pub why: Why,
}

/// One try to connect to a server.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub server: String,
    pub took: Duration,
    /// `None`: it connected.
    pub error: Option<Reason>,
}

/// Time from the accept to the end of each step; `None` where it was not reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Of the client's first byte, where it was waited for.
    pub hello: Option<Duration>,
    /// How long it waited in the pool's line, within what follows.
    pub queue: Option<Duration>,
    pub connect: Option<Duration>,
    /// Of the server.
    pub first_byte: Option<Duration>,
    pub total: Duration,
}

/// How bytes moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Copy,
    /// At least one direction was spliced at least once.
    Splice,
}
