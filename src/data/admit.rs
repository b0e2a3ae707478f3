//! May this client in? Where a listener lets clients wait, `accept.rs` has found room already.

use super::accept::{Client, Places};
use super::worker::Worker;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::net::Sock;
use crate::snapshot::Listener;

/// A client that may be served. It holds its places under `max_connections`.
pub(super) struct Admitted {
    pub(super) sock: Sock,
    pub(super) places: Places,
}

/// # Errors
/// `listener_limit`, where there is no room and the listener refuses.
pub(super) fn admit(client: Client, listener: &Listener, worker: &Worker) -> Result<Admitted, Close> {
    match client.places.map_or_else(|| Places::take(listener, worker), Ok) {
        Ok(places) => Ok(Admitted { sock: client.sock, places }),
        Err(full) => Err(Close {
            by: By::Proxy,
            phase: Phase::Accept,
            how: How::Policy,
            reason: Reason::ListenerLimit,
            errno: None,
            detail: format!("refused: {full}").into(),
        }),
    }
}
