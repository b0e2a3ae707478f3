//! Whether a task stands in the list of those that are to be polled.
//!
//! Any thread may wake a task, and does not put it there twice. What was written before a wake is seen by
//! the poll that follows, also where the task stood there already: both sides swap, so whichever comes second
//! sees what came before the first. A plain store by the one that polls would not be enough, not even on x86:
//! the poll's loads could overtake it.

use crate::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
pub struct Queued(AtomicBool);

impl Queued {
    /// Says whether whoever wakes the task has to put it there.
    pub fn enter(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// The task has been taken out, and is polled next.
    pub fn leave(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}
