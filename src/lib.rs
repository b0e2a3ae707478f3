//! Tidegate: a layer-4 load balancer for Linux.
//!
//! **Verbs move bytes, nouns decide, doers watch.** A connection crosses `data/` step by
//! step, each file opened once and left once, in order. Every decision is a value from a
//! pure core. One control thread watches the world and publishes one immutable snapshot at
//! a time.
//!
//! The map, in reading order; a module may use those named to its right, and std:
//!
//! ```text
//! main -> cli -> run -> control -> config, snapshot, orders, core, wire, telemetry, sys
//!                       data    -> snapshot, orders, net, core, telemetry
//! cli -> config, core, control, sys
//! net -> sys     orders -> snapshot -> live, config::plan, core, telemetry
//! live -> core, telemetry     config -> core     telemetry -> core
//! core, net, live, telemetry, orders, data -> sync     wire, sys, sync -> nothing of ours
//! ```
//!
//! Invariants of absence (`tests/tidy.rs` reads the sources and fails on a breach):
//!
//! - `core/` and `wire/` never read the clock, do no I/O, draw no randomness of their own, take
//!   no lock and log nothing.
//! - The data plane never blocks on the control plane, takes no lock per byte, allocates
//!   nothing per message, and writes no log line outside `close`.
//! - Nothing outside `control/publisher.rs` builds a snapshot. Live state is an `Arc` keyed
//!   by name, and outlives every reload.
//! - An idle relayed connection holds no buffer, no pipe and no timer of its own.
//! - No unsafe code outside `sys/`.

pub mod sync; // what threads share: std's atomics and locks, or the model checker's
pub mod core; // PURE: which server, which limit, up or down, how it ended
pub mod wire; // PURE: what servers and clients say, bytes -> value | NeedMore | Malformed
pub mod config; // as written -> every mistake -> as meant
pub mod telemetry; // counters, histograms, the record of one connection, the access log
pub mod live; // counts and health that outlive every snapshot, and the walk over servers by them
pub mod snapshot; // what control gives the workers
pub mod orders; // what control may ask of a worker
pub mod sys; // all unsafe code and raw system calls
pub mod net; // the sockets under data/: executor, surface, driver
pub mod data; // THE LIFE OF A CONNECTION
pub mod control; // doers: publisher, reloader, prober, drainer, admin, exporter
pub mod run; // boot and end, in order
pub mod cli; // one file per command
