//! Waits for the client's first byte, where its listener asks for that.
//!
//! Until then no server is asked, so that clients who come and say nothing cost this machine a
//! descriptor each and the servers nothing. What they said stays in the socket for the relay to read.
//! Where the server speaks first this would wait in vain: it is off unless it is written. In a dry run nobody
//! is closed for it: who has said nothing in the end goes on to his server, and is counted.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::admit::Admitted;
use super::relay::failed;
use super::visit::Visit;
use super::worker::Worker;
use crate::config::plan::AdmissionMode;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::net::Side;
use crate::snapshot::Listener;

/// The client once it has spoken, and its listener as it is then; or both at once where nobody waits.
///
/// # Errors
/// How it ended without a byte: `hello_timeout`, `done` where the client only ended, or its reset.
pub(super) async fn first_byte(
    admitted: Admitted,
    world: Arc<Listener>,
    visit: &Visit,
    worker: &Worker,
) -> Result<(Admitted, Arc<Listener>), Close> {
    let Some(limit) = world.plan.first_byte_timeout else { return Ok((admitted, world)) };
    // Boxed: those who do not wait are not to keep the room for it.
    let admitted = Box::pin(wait(admitted, limit, world.plan.admission.mode, visit, worker)).await?;
    Ok((admitted, worker.listener(&world.plan.name).unwrap_or(world)))
}

async fn wait(
    admitted: Admitted,
    limit: Duration,
    mode: AdmissionMode,
    visit: &Visit,
    worker: &Worker,
) -> Result<Admitted, Close> {
    let since_accept = || worker.net.now().saturating_duration_since(visit.accepted);
    let time_left = limit.saturating_sub(since_accept());
    let heard = {
        let spoken = pin!(admitted.sock.has_spoken());
        worker.net.within(time_left, spoken).await
    };
    match heard {
        Some(Ok(true)) => {
            let after_us = u32::try_from(since_accept().as_micros()).unwrap_or(u32::MAX);
            visit.heard_after_us.set(after_us.max(1));
            Ok(admitted)
        }
        Some(Ok(false)) if mode == AdmissionMode::DryRun => Ok(admitted), // its server may speak all the same
        Some(Ok(false)) => {
            admitted.sock.close(); // a clean end for a clean end: nothing is missing
            let detail = "the client ended without having said a byte, and no server was asked";
            Err(silent(By::Client, How::Fin, Reason::Done, detail.to_owned()))
        }
        Some(Err(error)) => Err(Close { phase: Phase::Hello, ..failed(Side::Client, &error, None) }),
        None if mode == AdmissionMode::DryRun => {
            visit.listener.stats.of(worker.index).would_reject.add(Reason::HelloTimeout);
            Ok(admitted)
        }
        None => {
            let detail = format!("the client had not said a byte within first_byte_timeout ({limit:?})");
            Err(silent(By::Proxy, How::Timeout, Reason::HelloTimeout, detail))
        }
    }
}

fn silent(by: By, how: How, reason: Reason, detail: String) -> Close {
    Close { by, phase: Phase::Hello, how, reason, errno: None, detail: detail.into() }
}
