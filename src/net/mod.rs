//! The sockets under `data/`, one instance per worker thread: a small executor and a narrow
//! surface. No policy: nothing here knows what a pool or a limit is.
//!
//! | call | does |
//! |---|---|
//! | [`Loop`] | turns until its root future ends |
//! | [`Net::spawn`] | one more task on this thread |
//! | [`listen_shared`], [`probe_free`] | a listening socket for one worker; is an address taken |
//! | [`Net::listen`] | a [`Listener`]: `ready().await`, then `accept()` until nobody waits |
//! | [`Net::adopt`] | a [`Sock`] of an accepted client, on this thread or on another |
//! | [`Net::dial`] | a [`Sock`] to a server, or the error |
//! | [`Net::relay`] | both directions of two sockets until both have ended |
//! | [`Net::relay_braked`] | the same, no faster than a [`Brake`] lets it |
//! | [`Net::sleep`], [`Net::within`] | a time to wait, a time to be done by |
//! | [`Net::now`] | the time at which this turn of the loop began: no system call |
//! | [`Sock::has_spoken`] | ends when there is something to read, and leaves it there |
//! | [`Sock::hung_up`] | ends when the peer has reset or both sides have closed |
//! | [`Sock::close`], [`Sock::reset`] | the clean end and the honest one; dropping resets |
//!
//! A [`Sock`] is moved into a relay and never seen again, so nobody can use a descriptor that
//! the relay has closed. Dropping a future forgets its wait; the socket lives in its [`Sock`],
//! not in the future. Wakers are std's and may be used from any thread.
//!
//! Two drivers stand behind this, epoll and io_uring. On io_uring the kernel works on buffers,
//! addresses and descriptors while nobody looks. None of them can be given back too early: buffers
//! and addresses belong to `sys/ring.rs` until the last event of their operation; the slot of a
//! socket that was dropped meanwhile stays an orphan until that event; a relay that ends cancels
//! what is in flight and closes its sockets only after the last event (`lanes.rs`).
//!
//! The relay is one operation of the driver, not a loop of tasks: its task sleeps until the
//! end, and thousands of idle relays cost neither buffers, pipes nor timers.

mod executor; // tasks of one thread
mod queued; // is a task to be polled already
mod timers; // who is to be woken when
mod driver; // the loop: tasks, timers, and one of two drivers for the sockets
mod sock; // a connected socket, and the way to one
mod clients; // take clients from a listening socket
pub mod probe; // does io_uring work here?
mod epoll; // which sockets are ready, and who is told
mod uring; // operations instead of readiness
mod lanes; // all relays of a worker on io_uring
mod relays; // all relays of a worker on epoll: whose turn, whose deadline
mod relay; // both directions until both have ended
mod pump; // one direction of a relay, as far as it goes without waiting
mod brake; // relays that may not go as fast as they can
mod pace; // copy or splice: what the last reads say
mod spares; // memory for what a sink did not take at once
mod pipes; // the worker's own bounded stock of pipes

#[cfg(test)]
mod tests; // connections torn down at every step leave nothing behind

pub use brake::Brake;
pub use clients::Listener;
pub use driver::{Driver, Loop, Net};
pub use executor::{Either, either};
pub use pipes::PIPES_MAX;
pub use relay::{End, Ended, Patience, Side, Tally};
pub use sock::Sock;

pub use crate::sys::socket::{Liveness, listen_shared, probe_free};
