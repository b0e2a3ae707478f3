//! One check of one server: connect, ask in the server's own protocol, say goodbye.
//!
//! Decides whether the answer is right, never what becomes of the server (`core/health.rs`) or when
//! it is asked (`prober.rs`). What is said and heard is built and read in `wire/`; here are the socket,
//! the deadline and the bounds.

mod line; // a connection to the server: says, hears, takes leave
pub mod tls; // and how it is made private
mod http;
mod mysql;
mod postgres;
mod redis;
mod send_expect;
mod smtp;

use std::fmt::Display;
use std::net::SocketAddr;

use tokio::time::{Instant, timeout_at};

use line::Fault;
pub use line::Line;

use super::checks::Found;
use crate::config::plan::{HealthCheck, Probe, Role, SendProxy};
use crate::wire::proxy_header;

/// A server whose role is not the one that is wanted.
fn wrong_role(said: impl Display, wanted: Role) -> Fault {
    Fault::theirs(format!("{said}, wanted {wanted}"))
}

/// Asks once, within the check's timeout. The line is still to be left in good order, for which the
/// result need not wait: see [`Line::leave`].
pub async fn ask(
    target: SocketAddr,
    check: &HealthCheck,
    tls: Option<&tls::Client>,
) -> (Found, Option<Line>) {
    let deadline = Instant::now() + check.timeout;
    let too_late = |what: &str| Found::Failed(format!("no {what} within {:?}", check.timeout));
    let mut line = match timeout_at(deadline, Line::open(target, tls)).await {
        Ok(Ok(line)) => line,
        Ok(Err(fault)) => return (fault.into(), None),
        Err(_) => return (too_late("answer"), None),
    };
    let found = match timeout_at(deadline, talk(&mut line, check)).await {
        Ok(Ok(())) => Found::Ok,
        Ok(Err(fault)) => fault.into(),
        Err(_) => too_late(line.awaited()),
    };
    (found, Some(line))
}

async fn talk(line: &mut Line, check: &HealthCheck) -> Result<(), Fault> {
    let probe = &check.probe;
    line.say(match check.send_proxy {
        SendProxy::Off => b"",
        SendProxy::V1 => proxy_header::UNKNOWN,
        SendProxy::V2 => proxy_header::LOCAL,
    })
    .await?;
    match probe {
        // These begin TLS where their protocols say.
        Probe::Postgres(_) | Probe::Mysql(_) | Probe::Smtp(_) => {}
        _ => line.secure().await?,
    }
    match probe {
        Probe::Tcp | Probe::Tls => Ok(()), // that it took the connection is the answer
        Probe::Http(http) => http::ask(line, http).await,
        Probe::Postgres(postgres) => postgres::ask(line, postgres).await,
        Probe::Mysql(mysql) => mysql::ask(line, mysql).await,
        Probe::SendExpect(steps) => send_expect::ask(line, steps).await,
        Probe::Smtp(smtp) => smtp::ask(line, smtp).await,
        Probe::Redis(redis) => redis::ask(line, redis).await,
    }
}
