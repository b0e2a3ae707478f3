//! Durations in fixed buckets, cheap enough to keep for every connection.

use std::time::Duration;

use super::counters::Count;

/// Upper bounds in microseconds: 1, 2.5 and 5 of each decade from 100 µs to 10 h. What a
/// connect on loopback takes is below the first, what a database session takes is within the last.
pub const BOUNDS_US: [u64; 18] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    30_000_000,
    300_000_000,
    3_600_000_000,
    36_000_000_000,
];

/// One worker's share of a histogram; see [`super::counters::PerWorker`].
#[derive(Debug, Default)]
pub struct Histogram {
    /// How many fell into each bucket alone, the last one for all beyond the bounds.
    buckets: [Count; BOUNDS_US.len() + 1],
    sum_us: Count,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)].add(1);
        self.sum_us.add(us);
    }
}

/// A histogram summed over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summed {
    /// How many fell into each bucket alone, in order of [`BOUNDS_US`], then those beyond.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    pub sum_us: u64,
}

impl Summed {
    pub fn of<'a>(parts: impl Iterator<Item = &'a Histogram>) -> Self {
        let mut summed = Summed::default();
        for part in parts {
            for (sum, bucket) in summed.buckets.iter_mut().zip(&part.buckets) {
                *sum += bucket.get();
            }
            summed.sum_us += part.sum_us.get();
        }
        summed
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for us in [1, 100, 101, u64::MAX] {
            histogram.observe(Duration::from_micros(us));
        }
        let summed = Summed::of([&histogram].into_iter());
        assert_eq!((summed.buckets[0], summed.buckets[1], summed.buckets[18]), (2, 1, 1));
        assert_eq!(summed.count(), 4);
    }
}
