//! From the worker that took a client to the one that serves it.
//!
//! Which one that is, `core/spread.rs` decides; here the client changes hands. A worker that ends takes
//! no more, and then a client stays where it was taken: nobody is lost on the way.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::admit::Verdict;
use super::desk::Desk;
use crate::core::priority::Priority;
use crate::core::spread;
use crate::live::{Loads, Seat};
use crate::snapshot::Listener;

/// Clients that may lie with one worker unseen. It sees them in its next turn; with more, it is so
/// busy that whoever took them serves them sooner.
const HANDED_MAX: usize = 64;

/// A client that has been taken from the kernel, and all that is known of it.
pub(super) struct Taken {
    pub(super) socket: OwnedFd,
    pub(super) peer: SocketAddr,
    pub(super) class: Priority,
    /// Where it was taken.
    pub(super) at: SocketAddr,
    pub(super) accepted: Instant,
    pub(super) world: Arc<Listener>,
    pub(super) generation: u64,
    pub(super) verdict: Verdict,
    pub(super) seat: Seat,
}

/// All workers, as one of them sees the others.
pub(super) struct Crew {
    loads: Arc<Loads>,
    /// Where clients are left for each worker.
    desks: Box<[Desk<Taken>]>,
}

impl Crew {
    pub(super) fn new(loads: Arc<Loads>, workers: usize) -> Arc<Self> {
        Arc::new(Crew { loads, desks: (0..workers).map(|_| Desk::default()).collect() })
    }

    /// A seat for a client that worker `own` has just taken: there, or where fewer are.
    pub(super) fn seat(&self, own: usize) -> Seat {
        let worker =
            spread::lighter(own, self.loads.iter()).filter(|lighter| !self.desks[*lighter].is_closed());
        self.loads.seat(worker.unwrap_or(own))
    }

    /// A seat there and nowhere else.
    pub(super) fn seat_here(&self, own: usize) -> Seat {
        self.loads.seat(own)
    }

    /// Leaves a client with the worker that it has a seat at.
    ///
    /// Gives the client back, seated at `own`, when that worker takes nobody any more or has too many
    /// to see to.
    pub(super) fn hand(&self, client: Taken, own: usize) -> Option<Taken> {
        let back = self.desks[client.seat.worker()].leave(client, HANDED_MAX);
        back.map(|client| Taken { seat: self.loads.seat(own), ..client })
    }

    /// What others have left for this worker, as soon as there is anybody.
    pub(super) async fn handed(&self, worker: usize) -> Vec<Taken> {
        poll_fn(|cx| self.desks[worker].poll_take(cx)).await
    }

    /// Takes nobody any more for this worker; gives those who lie there.
    pub(super) fn close(&self, worker: usize) -> Vec<Taken> {
        self.desks[worker].close()
    }
}
