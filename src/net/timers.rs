//! Who is to be woken when. For steps with a deadline (a connect, a pause), not for open
//! relays: those have no timer of their own, see `relays.rs`.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Instant;

/// One entry for each future that waits; its owner takes it out again when it is dropped.
#[derive(Default)]
pub(super) struct Timers {
    due: BTreeMap<(Instant, u64), Waker>,
    /// Tells entries of the same instant apart.
    next: u64,
}

impl Timers {
    pub(super) fn add(&mut self, at: Instant, waker: Waker) -> (Instant, u64) {
        self.next += 1;
        self.due.insert((at, self.next), waker);
        (at, self.next)
    }

    pub(super) fn remove(&mut self, entry: (Instant, u64)) {
        self.due.remove(&entry);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn fire(&mut self, now: Instant) {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            entry.remove().wake();
        }
    }
}
