//! The running daemon, promise by promise: real sockets, real signals, scripted servers.

#[path = "../support/mod.rs"]
mod support;

mod account; // every connection ends in one word, and all views tell the same one
mod admission; // who may come in
mod affinity; // a client comes back to its server
mod bandwidth; // how fast bytes may move
mod checks; // health checks, of servers that answer well and badly
mod choose; // which server, and what happens when it does not take the client
mod exhausted; // descriptors and ports run out
mod fallback; // io_uring is denied, missing or short of something
mod fallback_pool; // another pool's servers, when one has none left
mod first_byte; // clients that come and say nothing
mod limits; // never more than N
mod losses; // some servers are lost while others serve
mod observe; // what operators see
mod pace; // how often servers are asked, and for whom
mod peers; // scripted servers and clients
mod priority; // who comes first when room is short
mod queue; // clients that wait for a server
mod reload; // SIGHUP
mod slow_start; // a server that is new gets its share little by little
mod split; // which pool: routes, and the share of a canary
mod spread; // how even workers are
mod stop; // SIGTERM, and its friends
mod tiers; // servers that stand by for others
mod survive; // servers that fail: who is left alone, and for how long
mod told; // and what the log says of them
