//! Records on their way from the workers to the writer: bounded, one shard for each worker.
//!
//! Never waits for the writer's work: a worker locks its own shard for one push, and the
//! writer locks it only to take the whole queue out. A shard that is full drops the record
//! and counts it.

use std::collections::VecDeque;
use std::sync::{OnceLock, PoisonError};

use super::When;
use crate::core::outcome::{Close, Reason};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::{self, Thread};
use crate::sync::{Mutex, MutexGuard};
use crate::telemetry::record::Record;

#[derive(Debug)]
pub struct Ring {
    when: When,
    shards: Box<[Shard]>,
    shard_max: usize,
    dropped: AtomicU64,
    writer: OnceLock<Thread>,
}

/// Padded, so that one worker's lock is not on the line of another's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Inside>);

#[derive(Debug, Default)]
struct Inside {
    records: VecDeque<Record>,
    /// Set by the writer before it parks; whoever clears it wakes the writer. So a busy worker
    /// pays for a wake-up at most once each time that the writer has run out of work.
    is_writer_asleep: bool,
}

impl Ring {
    /// Room for `records_max` records, shared evenly between `workers`.
    pub fn new(when: When, workers: usize, records_max: usize) -> Self {
        Ring {
            when,
            shards: (0..workers).map(|_| Shard::default()).collect(),
            shard_max: records_max / workers.max(1),
            dropped: AtomicU64::new(0),
            writer: OnceLock::new(),
        }
    }

    /// Is a connection that ended like this worth a line? Asked before a record is made up.
    pub fn wants(&self, close: &Close) -> bool {
        match self.when {
            When::Never => false,
            When::Always => true,
            When::Abnormal => close.reason != Reason::Done,
        }
    }

    /// Hands over a record, or drops and counts it. For the thread of worker `record.worker`.
    pub fn offer(&self, record: Record) {
        let Some(shard) = self.shards.get(record.worker) else {
            return self.count_dropped(1);
        };
        let mut inside = shard.lock();
        if inside.records.len() >= self.shard_max {
            drop(inside);
            return self.count_dropped(1);
        }
        inside.records.push_back(record);
        // Under the lock under which the writer took its last look: it has seen the record, or we see this.
        let is_writer_asleep = std::mem::take(&mut inside.is_writer_asleep);
        drop(inside);
        if is_writer_asleep && let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// Lines lost so far: offered to a full ring, or not written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn count_dropped(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
    }

    /// All that waits, one shard after the other, each into `take`.
    pub(super) fn drain(&self, mut take: impl FnMut(VecDeque<Record>)) {
        for shard in &self.shards {
            let Inside { records, .. } = std::mem::take(&mut *shard.lock());
            if !records.is_empty() {
                take(records);
            }
        }
    }

    /// Parks the writer's own thread until there is work; spurious returns are allowed.
    pub(super) fn park_writer(&self) {
        self.writer.get_or_init(thread::current);
        if self.shards.iter().all(Shard::is_idle) {
            thread::park();
        }
    }
}

impl Shard {
    /// Nothing is here, and whoever brings something wakes the writer.
    fn is_idle(&self) -> bool {
        let mut inside = self.lock();
        inside.is_writer_asleep = inside.records.is_empty();
        inside.is_writer_asleep
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::tests::record;
    use super::*;

    #[test]
    fn with_nobody_draining_the_ring_stays_bounded_and_counts_the_rest() {
        let ring = Ring::new(When::Always, 2, 8);
        for worker in [0, 0, 0, 0, 0, 1] {
            ring.offer(Record { worker, ..record() });
        }
        let mut kept = Vec::new();
        ring.drain(|queue| kept.extend(queue));
        assert_eq!((kept.len(), ring.dropped()), (5, 1));
        ring.offer(record());
        assert_eq!(ring.dropped(), 1, "a drained ring has room again");
    }

    #[test]
    fn a_record_of_a_worker_that_is_not_there_is_dropped() {
        let ring = Ring::new(When::Always, 1, 8);
        ring.offer(Record { worker: 9, ..record() });
        assert_eq!(ring.dropped(), 1);
    }

    #[test]
    fn abnormal_wants_all_but_done() {
        let ring = Ring::new(When::Abnormal, 1, 8);
        let mut close = record().close;
        close.reason = Reason::Done;
        assert!(!ring.wants(&close));
        close.reason = Reason::IdleTimeout;
        assert!(ring.wants(&close));
    }
}
