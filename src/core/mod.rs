//! Nouns that decide. Pure: no I/O, clock, randomness of their own, locks, async or logging.

pub mod outcome; // how a connection ended, in one word
pub mod limit; // how many at once
pub mod prefix; // networks of addresses
pub mod networks; // which rule holds for an address
pub mod acl; // which addresses may come in
pub mod priority; // who comes first when room is short
pub mod table; // how many connections each source has
pub mod bucket; // how many in a while
pub mod throttle; // how fast bytes may move
pub mod health; // up or down, from the results of checks
pub mod outlier; // a server that stands out is taken out for a time
pub mod breaker; // a server that fails too often is left alone for a time
pub mod damper; // how often one thing is told of
pub mod budget; // how many retries a pool bears
pub mod queue; // whose turn is next
pub mod spread; // which worker serves a client
pub mod slow_start; // how much a server gets that has only just begun
pub mod latency; // how long a server takes to answer
pub mod split; // which connections a canary gets
pub mod affinity; // who was served by whom
pub mod balance; // which server takes a connection
