//! The life of one connection. Read the files in this order.

mod listen; // the sockets we own
mod worker; // one per core: its listeners, its view of the world, its open connections
mod serve; // THE STORY on one screen
mod accept; // take a client, or wait while there is no room
mod handover; // from the worker that took a client to the one that serves it
mod desk; // where it is left for that one
mod admit; // may this client in?
mod first_byte; // no server before the client has spoken, where that is asked for
mod route; // which pool serves it
mod connect; // from pool to pool until a server takes it
mod search; // the servers of one pool, in order of preference
mod failure; // why one of them did not take it
mod wait; // in the pool's line, when none takes it now
mod brake; // how fast one connection may go
mod relay; // both directions until both end
mod lost; // when its server goes down
mod close; // count it, log it, release
mod visit; // what is known of one connection so far
mod signal; // one task tells another, once

pub use listen::{Bound, bind_all};
pub use worker::{Hired, Start, hire, start};
