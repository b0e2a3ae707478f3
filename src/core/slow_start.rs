//! A server that is new, or has come back, takes its share of the traffic little by little.
//!
//! Pure. The share follows from the time alone, so nobody has to step it up: the chooser asks for it
//! at each pick. It is never nothing, and a server that is the only one open is chosen whatever its share.

use std::time::Duration;

/// Where a share begins: enough traffic to warm up on, and little enough for a cold cache to bear.
const FIRST: u16 = 50;

/// A part of a server's weight, in thousandths; from 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u16);

impl Share {
    pub const FULL: Share = Share(1000);

    /// The share of a server that began to serve so long ago, and has its full weight `over` that time.
    pub fn after(elapsed: Duration, over: Duration) -> Share {
        if elapsed >= over {
            return Share::FULL;
        }
        // `over` is longer than nothing here, and the quotient below a thousand.
        let thousandths = (elapsed.as_nanos() * 1000 / over.as_nanos()) as u16;
        Share(thousandths.max(FIRST))
    }

    pub fn is_full(self) -> bool {
        self == Share::FULL
    }

    pub fn thousandths(self) -> u16 {
        self.0
    }

    /// Of a weight.
    pub fn of(self, weight: u32) -> f64 {
        f64::from(weight) * f64::from(self.0) / 1000.0
    }

    /// Does a server with this share take part in a pick, by a random number for both.
    pub fn takes_part(self, random: u64) -> bool {
        self.is_full() || random % 1000 < u64::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OVER: Duration = Duration::from_secs(30);

    fn after(ms: u64) -> u16 {
        Share::after(Duration::from_millis(ms), OVER).thousandths()
    }

    #[test]
    fn a_share_grows_from_little_to_all() {
        assert_eq!(
            [0, 1500, 1530, 15_000, 29_999, 30_000, u64::MAX].map(after),
            [50, 50, 51, 500, 999, 1000, 1000]
        );
    }

    #[test]
    fn no_time_at_all_is_a_full_share() {
        assert!(Share::after(Duration::ZERO, Duration::ZERO).is_full());
    }

    proptest! {
        #[test]
        fn a_share_is_never_nothing_never_too_much_and_never_falls(
            over in 1_u64..10_000_000_000,
            times in (0_u64..20_000_000_000, 0_u64..20_000_000_000),
        ) {
            let share = |ns: u64| Share::after(Duration::from_nanos(ns), Duration::from_nanos(over));
            let (earlier, later) = (share(times.0.min(times.1)), share(times.0.max(times.1)));
            prop_assert!(Share(FIRST) <= earlier && earlier <= later && later <= Share::FULL);
        }

        #[test]
        fn a_server_takes_part_as_often_as_its_share_says(ms in 0_u64..30_000) {
            let share = Share::after(Duration::from_millis(ms), OVER);
            let part = (0..1000).filter(|random| share.takes_part(*random)).count();
            prop_assert_eq!(part, usize::from(share.thousandths()));
        }
    }

    #[test]
    fn a_share_of_a_weight_is_in_proportion() {
        let share = Share::after(Duration::from_secs(6), OVER);
        assert!((share.of(300) - 60.0).abs() < 1e-9 && (Share::FULL.of(300) - 300.0).abs() < 1e-9);
    }
}
