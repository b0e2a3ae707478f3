//! Both directions until both have ended. The bytes move in `net`; here the end gets its name.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::libc;

use super::connect::Joined;
use super::listen::liveness;
use super::visit::Visit;
use super::worker::Worker;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::net::{Brake, End, Ended, Patience, Side};
use crate::snapshot::{Listener, Pool};

/// How long silence is borne between this listener's clients and this pool's servers.
pub(super) fn patience(listener: &Listener, pool: &Pool) -> Patience {
    Patience {
        idle: listener.plan.idle_timeout,
        half_closed: listener.plan.half_close_timeout,
        server: liveness(pool.plan.tcp),
    }
}

/// Begins at once. What the future keeps, an idle connection keeps: the places and nothing else.
pub(super) fn relay(
    joined: Joined,
    patience: Patience,
    brake: Option<Box<dyn Brake>>,
    visit: &Visit,
    worker: &Worker,
) -> impl Future<Output = Close> + use<> {
    let Joined { client, server, _places, _lease, .. } = joined;
    let relaying = worker.net.relay_braked([client, server], patience, Rc::clone(&visit.tally), brake);
    async move {
        let _held = (_places, _lease);
        named(relaying.await)
    }
}

fn named(ended: Ended) -> Close {
    match ended.how {
        End::Done { first } => done(first),
        End::Failed { side, error } => failed(side, &error, ended.half_closed),
        End::Silent { allowed } => silent(ended.half_closed, allowed),
    }
}

fn done(first: Side) -> Close {
    let (by, detail) = match first {
        Side::Client => (By::Client, "both sides ended cleanly, the client first"),
        Side::Server => (By::Server, "both sides ended cleanly, the server first"),
    };
    Close { by, phase: Phase::Data, how: How::Fin, reason: Reason::Done, errno: None, detail: detail.into() }
}

/// A side whose connection failed in the middle.
pub(super) fn failed(side: Side, error: &io::Error, half_closed: Option<Side>) -> Close {
    let errno = error.raw_os_error();
    let has_vanished =
        matches!(errno, Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN));
    let is_reset = matches!(errno, Some(libc::ECONNRESET | libc::EPIPE));
    let (by, name, vanished, reset) = match side {
        Side::Client => (By::Client, "client", Reason::ClientVanished, Reason::ClientReset),
        Side::Server => (By::Server, "server", Reason::ServerVanished, Reason::ServerReset),
    };
    let (how, reason, what) = if has_vanished {
        (How::Timeout, vanished, "stopped answering")
    } else if is_reset && half_closed == Some(side) {
        (How::Rst, reset, "ended its direction and then refused what was still sent to it")
    } else if is_reset {
        (How::Rst, reset, "reset the connection")
    } else {
        (How::Error, Reason::Internal, "failed")
    };
    Close { by, phase: Phase::Data, how, reason, errno, detail: format!("the {name} {what}: {error}").into() }
}

fn silent(half_closed: Option<Side>, allowed: Duration) -> Close {
    let (reason, detail) = match half_closed {
        None => (Reason::IdleTimeout, format!("no byte in either direction for {allowed:?}")),
        Some(side) => {
            let (ended, silent) = match side {
                Side::Client => ("client", "server"),
                Side::Server => ("server", "client"),
            };
            let detail = format!("the {ended} had ended and the {silent} was silent for {allowed:?}");
            (Reason::HalfCloseTimeout, detail)
        }
    };
    Close { by: By::Proxy, phase: Phase::Data, how: How::Timeout, reason, errno: None, detail: detail.into() }
}
