//! Counters that cost the data plane one plain store.
//!
//! Each worker writes a cell of its own and nobody else's; readers sum the cells. No
//! read-modify-write, no shared cache line, no lock.

use crate::sync::atomic::{AtomicU64, Ordering};

/// A count with a single writer. A second writer would lose increments, never corrupt.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One `T` for each worker, each on cache lines of its own.
#[derive(Debug)]
pub struct PerWorker<T>(Box<[Padded<T>]>);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T: Default> PerWorker<T> {
    pub fn new(workers: usize) -> Self {
        PerWorker((0..workers).map(|_| Padded::default()).collect())
    }
}

impl<T> PerWorker<T> {
    /// The cell of that worker; the worker's thread is its only writer.
    pub fn of(&self, worker: usize) -> &T {
        &self.0[worker].0
    }

    /// The sum over all workers of what `read` finds in a cell.
    pub fn sum(&self, read: impl Fn(&T) -> u64) -> u64 {
        self.0.iter().map(|cell| read(&cell.0)).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.0.iter().map(|cell| &cell.0)
    }
}
