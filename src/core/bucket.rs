//! How many in a while: token buckets, each kept as the one moment at which it is full again.
//!
//! Pure. A moment is the time since an epoch that the caller keeps, so that it fits an atomic: a
//! [`Bucket`] is exact when all workers take from it at once. A caller's clock may lag behind another's;
//! it then finds the bucket a little emptier, never fuller. (The generic cell rate algorithm of ITU-T
//! I.371, with the count as the burst.)

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::prefix::Prefix;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Full buckets that are forgotten for each one that is taken from: more than one new bucket comes
/// with a taking, so that a table shrinks while it is used.
const FORGOTTEN_AT_ONCE: usize = 2;

/// How far beyond an empty bucket a caller may find it without thinking that the rate has changed, in
/// nanoseconds: further than the clocks of two workers, which are read once in each turn of their loops,
/// are ever apart. Anything less would let the one that lags give back what the other has taken.
const LAG_MAX: u64 = 1_000_000_000;

/// So many in so long. They may come all at once; then one comes back at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// From 1 to [`Rate::COUNT_MAX`].
    pub count: u32,
    pub per: Duration,
}

impl Rate {
    /// Above, rounding the time between two to whole nanoseconds would show in the rate.
    pub const COUNT_MAX: u32 = 1_000_000;

    /// Nanoseconds until one more may come: rounded up, so never in favour of more.
    pub(super) fn interval(self) -> u64 {
        nanoseconds(self.per).div_ceil(u64::from(self.count.max(1))).max(1)
    }

    /// Nanoseconds from empty to full.
    pub(super) fn fill(self) -> u64 {
        self.interval() * u64::from(self.count.max(1))
    }

    /// Takes one from a bucket that is full again at `full_at`: when it is full again now, or how long
    /// it takes until there is one.
    pub(super) fn spend(self, full_at: u64, now: u64) -> Result<u64, Duration> {
        let empty = now.saturating_add(self.fill());
        let after = full_at.max(now).saturating_add(self.interval());
        match after.checked_sub(empty) {
            Some(missing @ 1..) => Err(Duration::from_nanos(missing)),
            _ => Ok(after),
        }
    }

    /// What remains of a bucket that was emptied at a slower rate: an empty one.
    fn forgiven(self, full_at: u64, now: u64) -> u64 {
        let empty = now.saturating_add(self.fill());
        if full_at > empty.saturating_add(LAG_MAX) { empty } else { full_at }
    }
}

impl fmt::Display for Rate {
    /// As operators write it: `1000/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            1 => write!(f, "{}/s", self.count),
            60 => write!(f, "{}/m", self.count),
            3600 => write!(f, "{}/h", self.count),
            seconds => write!(f, "{}/{seconds}s", self.count),
        }
    }
}

/// One bucket for all workers.
#[derive(Debug, Default)]
#[repr(align(128))] // every worker writes it for every connection
pub struct Bucket {
    full_at: AtomicU64,
}

impl Bucket {
    /// # Errors
    /// How long it takes until there is one.
    pub fn take(&self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let now = nanoseconds(now);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let held = rate.forgiven(full_at, now);
            let spent = rate.spend(held, now);
            let after = spent.unwrap_or(held);
            if after == full_at {
                return spent.map(|_| ());
            }
            match self.full_at.compare_exchange_weak(full_at, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return spent.map(|_| ()),
                Err(changed) => full_at = changed,
            }
        }
    }
}

/// A bucket for each source, of which those that are full need not be kept: a source without a bucket
/// has a full one.
///
/// When there are too many, the one that is nearest to being full is forgotten. Its source gains what it
/// had spent, which is the least that anybody had: a source that takes all it can stays known, however
/// many others come by once.
#[derive(Debug)]
pub struct Buckets {
    full_at: BTreeMap<Prefix, u64>,
    /// The same, the nearest to full first.
    by_time: BTreeSet<(u64, Prefix)>,
    most: usize,
}

impl Buckets {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        Buckets { full_at: BTreeMap::new(), by_time: BTreeSet::new(), most: most.max(1) }
    }

    /// # Errors
    /// How long it takes until that source has one.
    pub fn take(&mut self, source: Prefix, rate: Rate, now: Duration) -> Result<(), Duration> {
        let now = nanoseconds(now);
        self.forget_full(now);
        let before = self.full_at.get(&source).copied();
        let held = rate.forgiven(before.unwrap_or(0), now);
        let spent = rate.spend(held, now);
        let after = spent.unwrap_or(held);
        if before != Some(after) {
            self.keep(source, before, after);
        }
        spent.map(|_| ())
    }

    /// Buckets that are kept.
    pub fn kept(&self) -> usize {
        self.full_at.len()
    }

    fn keep(&mut self, source: Prefix, before: Option<u64>, after: u64) {
        match before {
            Some(before) => _ = self.by_time.remove(&(before, source)),
            None if self.full_at.len() >= self.most => self.forget_one(),
            None => {}
        }
        self.full_at.insert(source, after);
        self.by_time.insert((after, source));
    }

    fn forget_full(&mut self, now: u64) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            if self.by_time.first().is_none_or(|(full_at, _)| *full_at > now) {
                return;
            }
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        if let Some((_, source)) = self.by_time.pop_first() {
            self.full_at.remove(&source);
        }
    }
}

/// 584 years fit.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn source(number: u32) -> Prefix {
        Prefix::of(std::net::IpAddr::V4(number.into()))
    }

    fn taken(bucket: &Bucket, rate: Rate, now: Duration) -> usize {
        (0..1000).take_while(|_| bucket.take(rate, now).is_ok()).count()
    }

    #[test]
    fn as_many_as_are_written_may_come_at_once_and_then_one_at_a_time() {
        let (bucket, rate) = (Bucket::default(), Rate { count: 10, per: MINUTE });
        assert_eq!(taken(&bucket, rate, at(0)), 10);
        assert_eq!(bucket.take(rate, at(1000)), Err(at(5000)));
        assert_eq!(taken(&bucket, rate, at(6000)), 1);
        assert_eq!(taken(&bucket, rate, at(30_000)), 4);
        assert_eq!(taken(&bucket, rate, at(500_000)), 10);
    }

    #[test]
    fn a_clock_that_lags_gains_nothing() {
        let (bucket, rate) = (Bucket::default(), Rate { count: 5, per: SECOND });
        assert_eq!(taken(&bucket, rate, at(10_000)), 5);
        assert_eq!(taken(&bucket, rate, at(9_999)), 0);
        assert_eq!(taken(&bucket, rate, at(10_200)), 1);
    }

    #[test]
    fn a_new_rate_holds_at_once_and_forgives_what_is_beyond_an_empty_bucket() {
        let bucket = Bucket::default();
        assert_eq!(taken(&bucket, Rate { count: 1, per: MINUTE }, at(0)), 1);
        let quick = Rate { count: 10, per: SECOND };
        assert_eq!(taken(&bucket, quick, at(100)), 0);
        assert_eq!(taken(&bucket, quick, at(200)), 1, "empty, and not full again by a change");
        assert_eq!(taken(&bucket, quick, at(700)), 5);
    }

    #[test]
    fn threads_that_race_take_no_more_than_there_is() {
        let (bucket, rate) = (Bucket::default(), Rate { count: 1000, per: SECOND });
        let won = AtomicUsize::new(0);
        thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    for turn in 0..4_000 {
                        if bucket.take(rate, at(turn / 4)).is_ok() {
                            won.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        // A full bucket, and what came back until the last millisecond.
        assert_eq!(won.into_inner(), 1000 + 999);
    }

    #[test]
    fn a_thousand_sources_that_come_once_do_not_free_the_one_that_takes_all_it_can() {
        let (mut buckets, rate) = (Buckets::new(100), Rate { count: 10, per: SECOND });
        let mut greedy = 0;
        for turn in 0..1000 {
            let now = at(turn);
            for number in 0..10 {
                buckets.take(source(1000 + turn as u32 * 10 + number), rate, now).unwrap();
                greedy += usize::from(buckets.take(source(1), rate, now).is_ok());
            }
            assert!(buckets.kept() <= 100);
        }
        assert_eq!(greedy, 10 + 9);
    }

    #[test]
    fn sources_that_are_gone_leave_nothing_behind() {
        let (mut buckets, rate) = (Buckets::new(1000), Rate { count: 10, per: SECOND });
        (0..500).for_each(|number| buckets.take(source(number), rate, at(0)).unwrap());
        (0..500).for_each(|_| _ = buckets.take(source(1000), rate, at(60_000)));
        assert!(buckets.kept() <= 1, "{}", buckets.kept());
    }

    proptest! {
        /// The promise in words: over any while, at most the count and what comes back in that while.
        #[test]
        fn no_while_sees_more_than_the_rate(
            count in 1..20_u32,
            steps in prop::collection::vec(0..400_u64, 1..120),
        ) {
            let (bucket, rate) = (Bucket::default(), Rate { count, per: SECOND });
            let (mut now, mut came) = (0, Vec::new());
            for step in steps {
                now += step;
                match bucket.take(rate, at(now)) {
                    Ok(()) => came.push(now),
                    // Whoever is refused is told the very nanosecond.
                    Err(wait) => {
                        let full_at = AtomicU64::new(bucket.full_at.load(Ordering::Relaxed));
                        let twin = Bucket { full_at };
                        prop_assert!(twin.take(rate, at(now) + wait - Duration::from_nanos(1)).is_err());
                        prop_assert!(twin.take(rate, at(now) + wait).is_ok());
                    }
                }
            }
            for (from, first) in came.iter().enumerate() {
                for (length, last) in (1..).zip(&came[from..]) {
                    let most = u64::from(count) + (last - first) * u64::from(count) / 1000;
                    prop_assert!(length <= most, "{} from {} to {}", length, first, last);
                }
            }
        }

        #[test]
        fn a_table_with_room_is_a_bucket_for_each_source(
            steps in prop::collection::vec((0..4_u32, 0..300_u64), 1..100),
        ) {
            let rate = Rate { count: 3, per: SECOND };
            let alone: Vec<_> = (0..4).map(|_| Bucket::default()).collect();
            let (mut buckets, mut now) = (Buckets::new(4), 0);
            for (number, step) in steps {
                now += step;
                let expected = alone[number as usize].take(rate, at(now));
                prop_assert_eq!(buckets.take(source(number), rate, at(now)), expected);
                prop_assert_eq!(buckets.full_at.len(), buckets.by_time.len());
            }
        }
    }

    #[test]
    fn a_clock_is_believed_to_lag_by_a_second_and_no_more() {
        let (rate, second) = (Rate { count: 10, per: SECOND }, LAG_MAX);
        let empty = second; // at the moment 0
        assert_eq!(rate.forgiven(empty + second, 0), empty + second);
        assert_eq!(rate.forgiven(empty + second + 1, 0), empty);
    }

    #[test]
    fn a_bucket_is_kept_until_it_is_full_and_not_a_moment_longer() {
        let (mut buckets, rate) = (Buckets::new(9), Rate { count: 10, per: SECOND });
        (1..=3).for_each(|number| buckets.take(source(number), rate, at(0)).unwrap());
        assert_eq!(buckets.kept(), 3);
        buckets.take(source(4), rate, at(99)).unwrap();
        assert_eq!(buckets.kept(), 4);
        buckets.take(source(4), rate, at(100)).unwrap();
        assert_eq!(buckets.kept(), 2, "two of those that are full go with each taking");
    }

    #[test]
    fn a_rate_is_told_as_it_is_written() {
        let told = |seconds| Rate { count: 7, per: Duration::from_secs(seconds) }.to_string();
        assert_eq!([1, 60, 3600, 10].map(told), ["7/s", "7/m", "7/h", "7/10s"]);
    }
}
