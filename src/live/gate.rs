//! What a listener remembers of its clients' sources, over all workers and all reloads.
//!
//! Each source belongs to one shard, and a shard is held for one look at its tables: up to three times
//! for a connection, and only where a limit on sources is set. So the count of a source and its rate are
//! exact, whatever the race. The rate of all sources together is one atomic, and as exact; the clocks of
//! two workers, read once in a turn of their loops, may differ, and the one behind takes less.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::core::bucket::{Bucket, Buckets, Rate};
use crate::core::prefix::Prefix;
use crate::core::table::Table;
use crate::sync::{Mutex, MutexGuard};

/// Enough that workers seldom meet at one. Sources chosen to lie in one shard cost waiting, a
/// fraction of a microsecond each, and no accuracy.
const SHARDS: usize = 16;

/// Sources whose rate is remembered for one listener: about 10 MiB if all of them come within the time
/// that a bucket takes to fill. Beyond, those that have come least are forgotten, see [`Buckets`].
const RATES_MAX: usize = 64 * 1024;

#[derive(Debug)]
pub struct Gate {
    /// Moments are told to the cores as the time since then.
    epoch: Instant,
    all: Bucket,
    shards: [Shard; SHARDS],
}

/// Padded, because every worker writes it.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<Sources>);

#[derive(Debug)]
struct Sources {
    open: Table,
    rates: Buckets,
}

impl Gate {
    pub fn new(epoch: Instant) -> Arc<Self> {
        let shard = |_| {
            Shard(Mutex::new(Sources { open: Table::default(), rates: Buckets::new(RATES_MAX / SHARDS) }))
        };
        Arc::new(Gate { epoch, all: Bucket::default(), shards: std::array::from_fn(shard) })
    }

    /// One of those that may come in a while, from wherever.
    ///
    /// # Errors
    /// How long it takes until the next may.
    pub fn pass(&self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.all.take(rate, now.saturating_duration_since(self.epoch))
    }

    /// The same for one source.
    ///
    /// # Errors
    /// As [`Self::pass`].
    pub fn pass_from(&self, source: Prefix, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.shard(source).rates.take(source, rate, now.saturating_duration_since(self.epoch))
    }

    /// One more connection from there, if the source has fewer than `limit`. The limit is the caller's:
    /// a reload changes it for those who come later.
    pub fn take(self: &Arc<Self>, source: Prefix, limit: usize) -> Option<Box<Place>> {
        let is_taken = self.shard(source).open.take(source, limit);
        is_taken.then(|| Box::new(Place { gate: Arc::clone(self), source }))
    }

    /// Connections that the source has open.
    pub fn open(&self, source: Prefix) -> usize {
        self.shard(source).open.open(source)
    }

    fn shard(&self, source: Prefix) -> MutexGuard<'_, Sources> {
        let shard = &self.shards[source.share(SHARDS)];
        shard.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place among those of its source. Dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    source: Prefix,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.shard(self.source).open.give_back(self.source);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn threads_that_race_never_hold_more_than_the_limit_of_any_source() {
        const LIMIT: usize = 3;
        let gate = Gate::new(Instant::now());
        let source = |number: u8| Prefix::of([192, 0, 2, number].into());
        // Counted apart from the gate: raised after a place was taken, lowered before it is given back.
        let held = [const { AtomicUsize::new(0) }; 4];
        let (most, won, lost) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    for turn in 0..5_000 {
                        let number = turn % held.len();
                        let Some(_place) = gate.take(source(number as u8), LIMIT) else {
                            lost.fetch_add(1, Ordering::SeqCst);
                            continue;
                        };
                        most.fetch_max(held[number].fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::yield_now(); // so that others come while it is held
                        held[number].fetch_sub(1, Ordering::SeqCst);
                        won.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!((1..=LIMIT).contains(&most.into_inner()));
        assert_eq!(won.into_inner() + lost.into_inner(), 8 * 5_000);
        assert!((0..4).all(|number| gate.open(source(number)) == 0));
    }

    #[test]
    fn the_rates_of_tens_of_thousands_of_sources_are_remembered() {
        let (now, hourly) = (Instant::now(), Rate { count: 1, per: Duration::from_secs(3600) });
        let gate = Gate::new(now);
        let sources =
            || (0..50_000_u32).map(|number| Prefix::of(Ipv4Addr::from(0x0a00_0000 | number).into()));
        assert!(sources().all(|source| gate.pass_from(source, hourly, now).is_ok()));
        assert!(sources().all(|source| gate.pass_from(source, hourly, now).is_err()));
    }

    #[test]
    fn what_a_source_has_open_is_its_places() {
        let gate = Gate::new(Instant::now());
        let [own, other] = [1, 2].map(|number| Prefix::of([192, 0, 2, number].into()));
        let places = [own, own, other].map(|source| gate.take(source, 2).expect("a place"));
        assert_eq!((gate.open(own), gate.open(other), gate.take(own, 2).is_none()), (2, 1, true));
        drop(places);
        assert_eq!((gate.open(own), gate.open(other)), (0, 0));
    }

    #[test]
    fn sources_side_by_side_are_spread_over_the_shards() {
        let mut shares = [0; SHARDS];
        for number in 0..=255 {
            shares[Prefix::of([10, 0, 0, number].into()).share(SHARDS)] += 1;
        }
        assert!(shares.iter().all(|share| (8..=32).contains(share)), "{shares:?}");
    }
}
