//! How long a server takes to answer, as a number that jumps up at once and comes down slowly.
//!
//! Pure. A peak-sensitive moving average: one slow answer counts in full, and fast ones wear it down. It
//! fades with time as well, so that a server that was slow, and gets nobody for it, is tried again. One
//! machine word, so that many workers can keep it together without a lock.

use std::time::Duration;

/// The time in which two thirds of what is known are forgotten: some dozens of connections of a busy pool,
/// and soon enough to find out that a server has recovered.
const MEMORY_MS: f64 = 10_000.0;

/// Microseconds in the upper half, and the time of the last answer in the lower, in milliseconds on a
/// clock that starts again every 49 days. 0 is nothing known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency(u64);

impl Latency {
    pub fn from_word(word: u64) -> Self {
        Latency(word)
    }

    pub fn word(self) -> u64 {
        self.0
    }

    /// In microseconds, at least 1; `None` where the server has never answered.
    pub fn us(self, now_ms: u32) -> Option<u32> {
        let (us, at_ms) = self.parts()?;
        Some((f64::from(us) * kept(at_ms, now_ms)).max(1.0) as u32)
    }

    /// An answer took so long.
    pub fn observe(self, took: Duration, now_ms: u32) -> Self {
        let seen = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let (us, at_ms) = match self.parts() {
            Some((us, at_ms)) => {
                let kept = kept(at_ms, now_ms);
                let worn = (f64::from(us) * kept + f64::from(seen) * (1.0 - kept)) as u32;
                (if us > seen { worn } else { seen }, at_ms.wrapping_add(passed(at_ms, now_ms)))
            }
            None => (seen, now_ms),
        };
        Latency((u64::from(us) << 32) | u64::from(at_ms))
    }

    fn parts(self) -> Option<(u32, u32)> {
        (self.0 != 0).then_some(((self.0 >> 32) as u32, self.0 as u32))
    }
}

/// The part of what was known then that still counts.
fn kept(then_ms: u32, now_ms: u32) -> f64 {
    (-f64::from(passed(then_ms, now_ms)) / MEMORY_MS).exp()
}

/// Workers read their clocks once in a turn of their loops, so the answer before may lie a little ahead:
/// then no time has passed.
fn passed(then_ms: u32, now_ms: u32) -> u32 {
    let passed = now_ms.wrapping_sub(then_ms);
    if passed > u32::MAX / 2 { 0 } else { passed }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(answers: &[(u64, u32)]) -> Latency {
        let observe =
            |known: Latency, (us, at_ms): &(u64, u32)| known.observe(Duration::from_micros(*us), *at_ms);
        answers.iter().fold(Latency::default(), observe)
    }

    #[test]
    fn a_peak_counts_in_full_and_fast_answers_wear_it_down() {
        assert_eq!(Latency::default().us(7), None);
        assert_eq!(after(&[(300, 0), (9000, 5)]).us(5), Some(9000));
        let worn = after(&[(9000, 0), (300, 10_000)]).us(10_000).unwrap();
        assert!((3000..4000).contains(&worn), "{worn}");
    }

    #[test]
    fn what_is_known_fades_until_the_server_is_worth_another_try() {
        let slow = after(&[(2_000_000, 0)]);
        assert!(slow.us(30_000).unwrap() > 90_000);
        assert!(slow.us(100_000).unwrap() < 100);
        assert_eq!(slow.us(4_000_000), Some(1));
    }

    /// The bug: a clock one millisecond behind made a slow server the fastest of all, and wiped its peak.
    #[test]
    fn a_worker_whose_clock_is_behind_sees_what_the_others_see() {
        let slow = after(&[(1_000_000, 1000)]);
        assert_eq!(slow.us(999), Some(1_000_000));
        let seen_behind = slow.observe(Duration::from_micros(200), 999);
        assert_eq!(seen_behind.us(1000), Some(1_000_000));
        assert_eq!(after(&[(200, 1000), (9000, 999)]).us(1000), Some(9000));
    }

    #[test]
    fn the_clock_may_start_again() {
        let before = after(&[(500, u32::MAX - 4)]);
        assert_eq!(before.us(5), Some(499));
    }

    #[test]
    fn what_is_known_is_forgotten_for_half_a_round_of_the_clock() {
        let known = after(&[(500, 0)]);
        assert_eq!(known.us(u32::MAX / 2), Some(1));
        assert_eq!(known.us(u32::MAX / 2 + 1), Some(500), "a clock that is behind, as far as one can tell");
    }

    proptest! {
        #[test]
        fn it_is_never_above_the_slowest_answer_nor_below_one(
            answers in prop::collection::vec((0_u64..10_000_000_000, 0_u32..20_000), 1..40),
        ) {
            let mut now = 0_u32;
            let answers: Vec<_> = answers
                .into_iter()
                .map(|(us, passed)| { now += passed; (us, now) })
                .collect();
            let slowest = answers.iter().map(|(us, _)| u32::try_from(*us).unwrap_or(u32::MAX)).max().unwrap();
            let us = after(&answers).us(now).unwrap();
            prop_assert!((1..=slowest.max(1)).contains(&us));
        }
    }

    #[test]
    fn what_is_known_and_what_is_seen_are_weighed_by_the_time_between() {
        // After as long as the memory lasts 1/e of 9000, and the rest of 300.
        assert_eq!(after(&[(9000, 0), (300, 10_000)]).us(10_000), Some(3500));
    }

    #[test]
    fn answers_that_are_all_alike_change_nothing() {
        // To a microsecond, also where the weighed mean of two large numbers that are the same is one less.
        for (us, at) in (1..2000).flat_map(|n| [(n * 977, 777), (n * 2_000_003, 39_800)]) {
            assert_eq!(after(&[(us, 0), (us, at)]).us(at), Some(us as u32));
        }
    }

    #[test]
    fn it_is_one_word() {
        let known = after(&[(300, 7)]);
        assert_eq!((known.word(), Latency::from_word(known.word())), (300 << 32 | 7, known));
    }
}
