//! A server's load: connections per weight.
//!
//! Pure. Compared without division, so that equal loads are found equal and every
//! count that a machine can have is exact. The connection to come is part of the load: of two idle servers the one with
//! the greater weight has the lower load. A server that is warming up counts with its share of its
//! weight, except for its first connection: else it would get none while there is little to do.

use std::cmp::Ordering;
use std::fmt;

use crate::core::slow_start::Share;

/// What a server carries against what it should carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Connections that it has, without the one to come. Half a word, because every open connection
    /// keeps the loads that spoke for its server.
    active: u32,
    /// Its share of the traffic; positive.
    weight: u32,
    share: Share,
}

impl Load {
    /// `active` is without the connection to come; `weight` is positive.
    pub fn new(active: usize, weight: u32, share: Share) -> Self {
        let active = u32::try_from(active).unwrap_or(u32::MAX);
        Load { active, weight, share: if active == 0 { Share::FULL } else { share } }
    }

    pub fn active(&self) -> u32 {
        self.active
    }

    pub fn is_idle(&self) -> bool {
        self.active == 0
    }

    /// Orders by `(active + 1) * price / weight`, each with a price of its own.
    pub fn compare_at(&self, price: u64, other: &Load, other_price: u64) -> Ordering {
        // 33 bits of a count, 42 of the weight and its share, and a price below 2^33 fit in 128.
        let own = self.count() * u128::from(price) * u128::from(other.thousandths());
        own.cmp(&(other.count() * u128::from(other_price) * u128::from(self.thousandths())))
    }

    /// Orders by `(active + 1) / weight`.
    pub fn compare(&self, other: &Load) -> Ordering {
        self.compare_at(1, other, 1)
    }

    /// With the connection to come.
    fn count(&self) -> u128 {
        u128::from(self.active) + 1
    }

    /// The weight as it counts now.
    fn thousandths(&self) -> u64 {
        u64::from(self.weight) * u64::from(self.share.thousandths())
    }
}

/// Writes `word:3<7`: the load of the chosen one and of the best of the others, as `=` where they
/// are equal, and as `3/10<7/20` where the weights differ, because the bare counts could mislead.
pub fn write_compared(
    f: &mut fmt::Formatter<'_>,
    word: &str,
    own: &Load,
    other: Option<&Load>,
) -> fmt::Result {
    write!(f, "{word}:{}", own.active)?;
    let Some(other) = other else { return Ok(()) };
    let sign = if own.compare(other) == Ordering::Equal { '=' } else { '<' };
    if own.thousandths() == other.thousandths() {
        write!(f, "{sign}{}", other.active)
    } else {
        let weight = |load: &Load| load.share.of(load.weight);
        write!(f, "/{}{sign}{}/{}", weight(own), other.active, weight(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_connections_per_weight_and_counts_the_one_to_come() {
        let load = |active, weight| Load::new(active, weight, Share::FULL);
        assert_eq!(load(3, 1).compare(&load(7, 1)), Ordering::Less);
        assert_eq!(load(3, 1).compare(&load(7, 2)), Ordering::Equal);
        assert_eq!(load(0, 2).compare(&load(0, 1)), Ordering::Less);
        assert_eq!(load(9, 10).compare(&load(0, 1)), Ordering::Equal);
    }

    #[test]
    fn a_server_that_warms_up_counts_with_its_share_from_its_second_connection_on() {
        let second = std::time::Duration::from_secs(1);
        let load = |active| Load::new(active, 100, Share::after(second / 10, second));
        assert_eq!(load(0).compare(&Load::new(0, 100, Share::FULL)), Ordering::Equal);
        assert_eq!(load(1).compare(&Load::new(19, 100, Share::FULL)), Ordering::Equal);
        assert_eq!(load(1).compare(&Load::new(18, 100, Share::FULL)), Ordering::Greater);
        struct Told(Load, Load);
        impl fmt::Display for Told {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_compared(f, "least", &self.0, Some(&self.1))
            }
        }
        assert_eq!(Told(load(1), Load::new(30, 100, Share::FULL)).to_string(), "least:1/10<30/100");
    }

    #[test]
    fn the_largest_counts_and_weights_do_not_overflow() {
        let most = Load::new(usize::MAX, 1, Share::FULL);
        let heavy = Load::new(usize::MAX, u32::MAX, Share::FULL);
        assert_eq!(heavy.compare(&most), Ordering::Less);
        assert_eq!(most.compare(&most), Ordering::Equal);
    }
}
