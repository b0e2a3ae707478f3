//! May this client in? Found out where it is taken, before it has a task or changes hands.
//!
//! A client that may not is told of like every other: it goes through the story with its end
//! already written, and [`admit`] is where the story stops. Whoever is refused by a rule holds no
//! place: a place that was found beforehand is free again at once.

use std::net::SocketAddr;

use super::accept::{Client, Places};
use super::worker::Worker;
use crate::core::acl::Denied;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::live::gate;
use crate::net::Sock;
use crate::snapshot::Listener;

/// A client that may be served. It holds its places under `max_connections`.
pub(super) struct Admitted {
    pub(super) sock: Sock,
    pub(super) places: Places,
}

/// What was found out of a client. Boxed: few are refused, and every connection keeps this.
pub(super) type Verdict = Result<Places, Box<Close>>;

/// # Errors
/// As [`judge`] found.
pub(super) fn admit(client: Client) -> Result<Admitted, Close> {
    match client.verdict {
        Ok(places) => Ok(Admitted { sock: client.sock, places }),
        Err(close) => Err(*close),
    }
}

/// Whether a client from there may in. `held` are its places, where clients wait for those.
///
/// # Errors
/// `acl_deny`, `source_limit`, and `listener_limit` where there is no room and the listener refuses.
pub(super) fn judge(from: SocketAddr, held: Option<Places>, listener: &Listener, worker: &Worker) -> Verdict {
    let rules = &listener.plan.admission;
    rules.acl.check(from.ip()).map_err(|denied| denied_by(denied, from))?;
    let source =
        rules.max_connections_per_source.map(|limit| of_source(from, limit, listener)).transpose()?;
    let places = held.map_or_else(|| Places::take(listener, worker), Ok);
    let places = places.map_err(|full| refused(Reason::ListenerLimit, full.to_string()))?;
    Ok(places.with(source))
}

fn of_source(from: SocketAddr, limit: usize, listener: &Listener) -> Result<Box<gate::Place>, Box<Close>> {
    let source = listener.plan.admission.source(from.ip());
    listener.live.gate.take(source, limit).ok_or_else(|| {
        let why = format!("{source} is at the listener's max_connections_per_source ({limit})");
        refused(Reason::SourceLimit, why)
    })
}

fn denied_by(denied: Denied, from: SocketAddr) -> Box<Close> {
    let from = from.ip().to_canonical();
    let why = match denied {
        Denied::By(network) => format!("{from} is in {network}, which `deny` names"),
        Denied::NotAllowed => format!("{from} is in no network that `allow` names"),
    };
    refused(Reason::AclDeny, why)
}

fn refused(reason: Reason, why: String) -> Box<Close> {
    let detail = format!("refused: {why}").into();
    Box::new(Close { by: By::Proxy, phase: Phase::Accept, how: How::Policy, reason, errno: None, detail })
}
