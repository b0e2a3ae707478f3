//! What threads share: std's atomics and locks, or those of the model checker.
//!
//! The one switch. `tests/races` compiles these very sources with `cfg(loom)` and passes through every
//! interleaving of a few threads; everybody else gets std. So what is checked is what is shipped, and
//! `tests/tidy.rs` sees that nobody goes past the switch.

#[cfg(loom)]
pub use crate::checked::{Mutex, MutexGuard, atomic, thread};
#[cfg(not(loom))]
pub use std::{sync::Mutex, sync::MutexGuard, sync::atomic, thread};

/// Numbers that this process gives out once each. For a `static`, where the checker's atomics cannot
/// stand: std's always.
#[derive(Debug)]
pub struct Numbers(std::sync::atomic::AtomicU64);

impl Numbers {
    pub const fn from(first: u64) -> Self {
        Numbers(std::sync::atomic::AtomicU64::new(first))
    }

    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, atomic::Ordering::Relaxed)
    }
}
