//! May this client in? Found out where it is taken, before it has a task or changes hands.
//!
//! A client that may not is told of like every other: it goes through the story with its end
//! already written, and [`admit`] is where the story stops. Whoever is refused by a rule holds no
//! place: a place that was found beforehand is free again at once.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::accept::{Client, Full, Places};
use super::worker::Worker;
use crate::config::plan::AdmissionMode;
use crate::core::acl::Denied;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::core::priority::{Priority, Reach};
use crate::live::Room;
use crate::live::gate::Place;
use crate::net::Sock;
use crate::snapshot::{Listener, Reaches};

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

/// Whether a client from there may in. `held` are places for the highest class of the listener, where
/// clients wait for those.
///
/// # Errors
/// `acl_deny`, `source_limit`, `rate_limit`, and `listener_limit` where there is no room, or none for
/// clients of that class.
pub(super) fn judge(
    from: SocketAddr,
    class: Priority,
    held: Option<Places>,
    listener: &Listener,
    worker: &Worker,
) -> Verdict {
    let now = worker.net.now();
    let source = enforced(judge_source(from.ip().to_canonical(), listener, now), listener, worker)?;
    let places = find_places(class, held, listener, worker).map_err(|full| {
        if full.is_for_some() {
            listener.live.stats.of(worker.index).outranked.add(class);
        }
        refused(Reason::ListenerLimit, full.told(class))
    })?;
    if source.is_some() {
        enforced(judge_rate(listener, now), listener, worker)?;
    }
    Ok(places.with(source.flatten()))
}

/// Places for a client of that class. One of a lower class than those that are held were found for has to
/// find its own, and whoever waits for them comes first. For the moment in which another worker looks for
/// a client, the place that it holds counts as taken: it may cost one of a lower class its last place, never
/// one of the highest.
fn find_places(
    class: Priority,
    held: Option<Places>,
    listener: &Listener,
    worker: &Worker,
) -> Result<Places, Full> {
    let reaches = listener.reaches(class);
    if listener.plan.admission.mode == AdmissionMode::DryRun {
        let places = held.map_or_else(|| Places::take(Reaches::WHOLE, listener, worker), Ok)?;
        let is_beyond = |room: &Room, reach: Reach| room.taken() > reach.of(room.limit());
        let (own, all) = (&listener.live.room, &worker.process_room);
        if is_beyond(own, reaches.listener) || is_beyond(all, reaches.process) {
            listener.live.stats.of(worker.index).would_reject.add(Reason::ListenerLimit);
        }
        return Ok(places);
    }
    match held.filter(|_| class == listener.own_classes.top()) {
        Some(places) => Ok(places),
        None => Places::take(reaches, listener, worker),
    }
}

/// In a dry run a refusal is only counted, and `None`.
fn enforced<T>(
    judged: Result<T, Box<Close>>,
    listener: &Listener,
    worker: &Worker,
) -> Result<Option<T>, Box<Close>> {
    match (judged, listener.plan.admission.mode) {
        (Err(close), AdmissionMode::DryRun) => {
            listener.live.stats.of(worker.index).would_reject.add(close.reason);
            Ok(None)
        }
        (judged, _) => judged.map(Some),
    }
}

/// What concerns the client's source alone.
fn judge_source(from: IpAddr, listener: &Listener, now: Instant) -> Result<Option<Box<Place>>, Box<Close>> {
    let (rules, gate) = (&listener.plan.admission, &listener.live.gate);
    rules.acl.check(from).map_err(|denied| denied_by(denied, from))?;
    let source = rules.source(from);
    if let Some(rate) = rules.connection_rate_per_source {
        let beyond = |_| format!("{source} is beyond the listener's connection_rate_per_source ({rate})");
        gate.pass_from(source, rate, now).map_err(beyond).map_err(|why| refused(Reason::RateLimit, why))?;
    }
    let Some(limit) = rules.max_connections_per_source else { return Ok(None) };
    let full = || format!("{source} is at the listener's max_connections_per_source ({limit})");
    gate.take(source, limit).map(Some).ok_or_else(|| refused(Reason::SourceLimit, full()))
}

/// The last question: whoever is refused for another reason takes nothing of what is there for all.
fn judge_rate(listener: &Listener, now: Instant) -> Result<(), Box<Close>> {
    let Some(rate) = listener.plan.admission.connection_rate else { return Ok(()) };
    let beyond =
        |_| refused(Reason::RateLimit, format!("the listener is beyond its connection_rate ({rate})"));
    listener.live.gate.pass(rate, now).map_err(beyond)
}

fn denied_by(denied: Denied, from: IpAddr) -> Box<Close> {
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
