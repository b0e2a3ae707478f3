//! How fast bytes may move: a bucket of bytes that all who share it reserve from, in the order of asking.
//!
//! Pure, and lock-free: like a [`Bucket`](super::bucket::Bucket) it is the one moment at which it is full
//! again, in an atomic. Whoever has bytes to move reserves so many and is told how long to wait: at the
//! rate, each in its turn, so that many who share one limit need no queue, and nobody wakes in vain. What was
//! reserved and not moved is given back.
//!
//! The promise: until any moment, no more has moved than the burst and what the rate allows since the
//! beginning. Over a while in the middle it may be more by what was reserved before it and given back.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::sync::atomic::{AtomicU64, Ordering};

const KIB: u64 = 1024;

/// Nanoseconds in a second.
const SECOND: u128 = 1_000_000_000;

/// The units in which a bandwidth is written, largest first, with their length in bytes.
pub const UNITS: [(&str, u64); 4] = [("GiB", KIB * KIB * KIB), ("MiB", KIB * KIB), ("KiB", KIB), ("B", 1)];

/// So many bytes in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bandwidth(NonZeroU64);

impl Bandwidth {
    /// Below, not even the smallest portion moves within a second.
    pub const LEAST: u64 = KIB;

    /// A terabyte in a second: above, rounding the time of a portion to nanoseconds would show.
    pub const MOST: u64 = 1024 * KIB * KIB * KIB;

    /// The smallest portion: less than most segments carry, so that little is lost in headers.
    const PORTION_MIN: u64 = KIB;

    /// The largest portion: what a pipe takes at once.
    const PORTION_MAX: u64 = 256 * KIB;

    /// The least that may move at once: a read, so that a short message is never held back after a pause.
    const BURST_MIN: u64 = 64 * KIB;

    /// Brought within [`Self::LEAST`] and [`Self::MOST`].
    pub fn new(bytes_per_second: u64) -> Self {
        let bytes = bytes_per_second.clamp(Self::LEAST, Self::MOST);
        Bandwidth(NonZeroU64::new(bytes).unwrap_or(NonZeroU64::MIN))
    }

    pub fn bytes_per_second(self) -> u64 {
        self.0.get()
    }

    /// What may move at once after a pause: a tenth of a second's worth, and no less than 64 KiB. A loop
    /// that wakes late by less than that loses nothing.
    pub fn burst(self) -> u64 {
        (self.0.get() / 10).max(Self::BURST_MIN)
    }

    /// What one reserves at a time while so much is reserved already: a fiftieth of a second's worth, from
    /// 1 KiB to 256 KiB. The longer the line, the smaller the portions, so that everybody's turn comes
    /// round sooner: the time grows with the square root of their number, until portions are smallest.
    pub fn portion(self, backlog: Duration) -> u64 {
        /// A fiftieth of a second: short beside what people notice, long beside a system call.
        const TURN: u128 = SECOND / 50;
        // Without steps: they would leave some with twice the portion of others for good.
        let portion = u128::from(self.0.get()) * TURN * TURN / (SECOND * (TURN + backlog.as_nanos()));
        u64::try_from(portion).unwrap_or(u64::MAX).clamp(Self::PORTION_MIN, Self::PORTION_MAX)
    }

    /// Nanoseconds that so many bytes take: rounded up, so never in favour of more.
    fn time(self, bytes: u64) -> u64 {
        let time = (u128::from(bytes) * SECOND).div_ceil(u128::from(self.0.get()));
        u64::try_from(time).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Bandwidth {
    /// As operators write it: `10MiB/s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.get();
        let (unit, length) =
            UNITS.iter().find(|(_, length)| bytes.is_multiple_of(*length)).unwrap_or(&UNITS[3]);
        write!(f, "{}{unit}/s", bytes / length)
    }
}

/// One direction's bytes, for one connection or for all that share it.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Nanoseconds since the caller's epoch.
    full_at: AtomicU64,
}

impl Throttle {
    /// Reserves so many: how long until they may move, nothing for at once.
    pub fn reserve(&self, bytes: u64, rate: Bandwidth, now: Duration) -> Duration {
        let (now, time) = (nanoseconds(now), rate.time(bytes));
        let after = |full_at: u64| full_at.max(now).saturating_add(time);
        let step = |full_at| Some(after(full_at));
        let before = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        let empty = now.saturating_add(rate.time(rate.burst()));
        Duration::from_nanos(after(before.unwrap_or_else(|full_at| full_at)).saturating_sub(empty))
    }

    /// Of `reserved`, only so many have moved.
    pub fn settle(&self, reserved: u64, moved: u64, rate: Bandwidth) {
        let unused = rate.time(reserved).saturating_sub(rate.time(moved));
        if unused > 0 {
            let step = |full_at: u64| Some(full_at.saturating_sub(unused));
            let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        }
    }

    /// How long until all that is reserved may have moved; nothing while a byte may move at once.
    pub fn backlog(&self, rate: Bandwidth, now: Duration) -> Duration {
        let empty = nanoseconds(now).saturating_add(rate.time(rate.burst()));
        Duration::from_nanos(self.full_at.load(Ordering::Relaxed).saturating_sub(empty))
    }

    /// Full, whatever was reserved.
    pub fn refill(&self) {
        self.full_at.store(0, Ordering::Relaxed);
    }
}

/// 584 years fit.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = KIB * KIB;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// What the rate allows in so long, burst included, in bytes.
    fn allowed(rate: Bandwidth, since_the_beginning: Duration) -> u128 {
        let worth = u128::from(rate.bytes_per_second()) * since_the_beginning.as_nanos() / SECOND;
        u128::from(rate.burst()) + worth
    }

    #[test]
    fn a_burst_moves_at_once_and_then_the_rate_holds() {
        let (throttle, rate) = (Throttle::default(), Bandwidth::new(MIB));
        assert_eq!(rate.burst(), MIB / 10);
        assert_eq!(throttle.reserve(rate.burst(), rate, at(0)), Duration::ZERO);
        assert_eq!(throttle.reserve(MIB / 2, rate, at(0)), at(500));
        assert_eq!(throttle.reserve(MIB / 2, rate, at(0)), at(1000));
        assert_eq!(throttle.backlog(rate, at(250)), at(750));
    }

    #[test]
    fn under_a_slow_limit_too_one_read_moves_at_once_after_a_pause() {
        assert_eq!(Bandwidth::new(KIB).burst(), 64 * KIB);
    }

    #[test]
    fn who_takes_nothing_gives_all_of_it_back() {
        let (throttle, rate) = (Throttle::default(), Bandwidth::new(MIB));
        throttle.reserve(rate.burst(), rate, at(0));
        assert_eq!(throttle.reserve(MIB, rate, at(0)), at(1000));
        throttle.settle(MIB, 0, rate);
        assert_eq!(throttle.reserve(MIB, rate, at(0)), at(1000));
        throttle.settle(MIB, MIB / 4, rate);
        assert_eq!(throttle.backlog(rate, at(0)), at(250));
    }

    #[test]
    fn a_limit_that_is_filled_anew_owes_nothing() {
        let (throttle, rate) = (Throttle::default(), Bandwidth::new(MIB));
        throttle.reserve(10 * MIB, rate, at(0));
        throttle.refill();
        assert_eq!(throttle.backlog(rate, at(0)), at(0));
        assert_eq!(throttle.reserve(rate.burst(), rate, at(0)), at(0));
    }

    #[test]
    fn a_rate_is_brought_within_its_bounds() {
        assert_eq!(Bandwidth::new(u64::MAX).bytes_per_second(), 1 << 40);
        assert_eq!(Bandwidth::new(1).bytes_per_second(), KIB);
    }

    #[test]
    fn portions_shrink_while_many_wait_and_are_never_nothing() {
        let rate = Bandwidth::new(10 * MIB);
        assert_eq!(rate.portion(Duration::ZERO), 10 * MIB / 50);
        assert_eq!(rate.portion(at(100)), 10 * MIB / 50 / 6);
        assert_eq!(rate.portion(at(1_000_000)), KIB);
        assert_eq!(Bandwidth::new(0).portion(Duration::ZERO), KIB);
        assert_eq!(Bandwidth::new(u64::MAX).portion(Duration::ZERO), 256 * KIB);
    }

    #[test]
    fn threads_that_race_move_no_more_than_there_is() {
        let (throttle, rate) = (Throttle::default(), Bandwidth::new(64 * MIB));
        let moved = AtomicU64::new(0);
        thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    for turn in 0..2000 {
                        let now = at(turn / 2);
                        match throttle.reserve(KIB * 64, rate, now) {
                            Duration::ZERO => _ = moved.fetch_add(KIB * 64, Ordering::Relaxed),
                            _ => throttle.settle(KIB * 64, 0, rate),
                        }
                    }
                });
            }
        });
        assert!(u128::from(moved.into_inner()) <= allowed(rate, at(999)));
    }

    #[test]
    fn it_is_written_in_the_largest_unit_that_fits() {
        for (bytes, text) in
            [(KIB, "1KiB/s"), (1500, "1500B/s"), (10 * MIB, "10MiB/s"), (3 * KIB * MIB, "3GiB/s")]
        {
            assert_eq!(Bandwidth::new(bytes).to_string(), text);
        }
    }

    /// One who moves bytes under a limit that others share.
    #[derive(Clone, Debug, Default)]
    struct Mover {
        /// Reserved, and from when on they may move.
        waits: Option<(u64, Duration)>,
        moved: u64,
    }

    impl Mover {
        /// Moves what it may, `share` percent of what it reserved, and reserves the next portion.
        fn turn(&mut self, throttle: &Throttle, rate: Bandwidth, share: u64, now: Duration) -> u64 {
            if self.waits.is_none() {
                let bytes = rate.portion(throttle.backlog(rate, now));
                self.waits = Some((bytes, now + throttle.reserve(bytes, rate, now)));
            }
            match self.waits {
                Some((bytes, due)) if due <= now => {
                    let moved = bytes * share / 100;
                    throttle.settle(bytes, moved, rate);
                    self.waits = None;
                    self.moved += moved;
                    moved
                }
                _ => 0,
            }
        }
    }

    proptest! {
        /// The promise, whoever asks when, comes late, takes less or gives up.
        #[test]
        fn never_more_has_moved_than_the_burst_and_the_rate_allow(
            rate in 1..100_000_u64,
            steps in prop::collection::vec((0..5_usize, 0..60_u64, 0..=100_u64), 1..400),
        ) {
            let (throttle, rate) = (Throttle::default(), Bandwidth::new(rate * KIB));
            let mut movers = vec![Mover::default(); 5];
            let (mut now, mut total) = (Duration::ZERO, 0);
            for (who, pause, share) in steps {
                now += at(pause);
                if share == 13 && let Some((bytes, _)) = movers[who].waits.take() {
                    throttle.settle(bytes, 0, rate); // its connection is gone
                }
                total += u128::from(movers[who].turn(&throttle, rate, share, now));
                prop_assert!(total <= allowed(rate, now), "{} by {:?} at {}", total, now, rate);
            }
        }

        /// Whoever takes all it can gets its share, and nothing is lost by dividing.
        #[test]
        fn who_shares_a_limit_gets_a_fair_share_and_all_together_get_the_rate(
            rate in 64..50_000_u64,
            many in 1..12_usize,
        ) {
            let (throttle, rate) = (Throttle::default(), Bandwidth::new(rate * KIB));
            let mut movers = vec![Mover::default(); many];
            for millisecond in 0..3000 {
                for mover in &mut movers {
                    while mover.turn(&throttle, rate, 100, at(millisecond)) > 0 {}
                }
            }
            let total: u64 = movers.iter().map(|mover| mover.moved).sum();
            let slack = u64::try_from(many).unwrap() * rate.portion(Duration::ZERO);
            prop_assert!(total + slack >= rate.bytes_per_second() * 29 / 10, "{} at {}", total, rate);
            let least = movers.iter().map(|mover| mover.moved).min().unwrap();
            let most = movers.iter().map(|mover| mover.moved).max().unwrap();
            // Whoever asks first finds the burst. After it nobody gets half as much again as another, although
            // all wake by whole milliseconds and so a little late.
            let ahead = rate.burst() + 2 * rate.portion(Duration::ZERO);
            prop_assert!(most <= least * 3 / 2 + ahead, "{} {} at {}", least, most, rate);
        }
    }
}
