//! When the next unit of an open loop is due: Poisson arrivals.
//!
//! The schedule never waits for an answer. A unit that begins late, because the one before it held
//! things up, is still timed from the instant at which it was due: nothing is omitted.

/// Arrivals of one thread.
pub struct Arrivals {
    mean_gap_ns: f64,
    next_ns: f64,
    random: Random,
}

impl Arrivals {
    /// `rate` per second, from `start_ns` on.
    pub fn new(rate: f64, start_ns: u64, seed: u64) -> Self {
        let mut arrivals =
            Arrivals { mean_gap_ns: 1e9 / rate, next_ns: start_ns as f64, random: Random(seed) };
        arrivals.advance();
        arrivals
    }

    /// The instant at which the next unit is due.
    pub fn next_ns(&self) -> u64 {
        self.next_ns as u64
    }

    /// Takes the next unit from the schedule and returns when it was due.
    pub fn take(&mut self) -> u64 {
        let due = self.next_ns();
        self.advance();
        due
    }

    /// A number below `limit`, drawn evenly.
    pub fn pick(&mut self, limit: usize) -> usize {
        ((self.random.unit() * limit as f64) as usize).min(limit - 1)
    }

    fn advance(&mut self) {
        // `unit` is below 1, so the logarithm is of a number above 0.
        self.next_ns += -(1.0 - self.random.unit()).ln() * self.mean_gap_ns;
    }
}

/// SplitMix64: small, and good enough to space arrivals.
struct Random(u64);

impl Random {
    /// From 0 up to, but not including, 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_keep_their_rate_and_are_as_irregular_as_chance() {
        let mut arrivals = Arrivals::new(1000.0, 0, 7);
        let dues: Vec<f64> = (0..100_000).map(|_| arrivals.take() as f64).collect();
        let gaps: Vec<f64> = dues.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 1e6 - 1.0).abs() < 0.02, "one per millisecond, got {mean} ns");
        // An exponential distribution's deviation is its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "{}", variance.sqrt() / mean);
    }

    #[test]
    fn every_choice_is_drawn_and_none_is_out_of_range() {
        let mut arrivals = Arrivals::new(1.0, 0, 3);
        let mut drawn = [0; 4];
        for _ in 0..4000 {
            drawn[arrivals.pick(4)] += 1;
        }
        assert!(drawn.iter().all(|count| (850..1150).contains(count)), "{drawn:?}");
    }
}
