//! A server's load: connections per weight.
//!
//! Pure. Compared without division, so that equal loads are found equal and a count of any
//! size is exact. The connection to come is part of the load: of two idle servers the one with
//! the greater weight has the lower load.

use std::cmp::Ordering;
use std::fmt;

/// What a server carries against what it should carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Connections that it has, without the one to come.
    pub active: usize,
    /// Its share of the traffic; positive.
    pub weight: u32,
}

impl Load {
    /// Orders by `(active + 1) / weight`.
    pub fn compare(&self, other: &Load) -> Ordering {
        // As products, in 128 bits: 64 of the count and 32 of the weight cannot overflow them.
        let own = (self.active as u128 + 1) * u128::from(other.weight);
        own.cmp(&((other.active as u128 + 1) * u128::from(self.weight)))
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
    if own.weight == other.weight {
        write!(f, "{sign}{}", other.active)
    } else {
        write!(f, "/{}{sign}{}/{}", own.weight, other.active, other.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_connections_per_weight_and_counts_the_one_to_come() {
        let load = |active, weight| Load { active, weight };
        assert_eq!(load(3, 1).compare(&load(7, 1)), Ordering::Less);
        assert_eq!(load(3, 1).compare(&load(7, 2)), Ordering::Equal);
        assert_eq!(load(0, 2).compare(&load(0, 1)), Ordering::Less);
        assert_eq!(load(9, 10).compare(&load(0, 1)), Ordering::Equal);
    }

    #[test]
    fn the_largest_counts_and_weights_do_not_overflow() {
        let most = Load { active: usize::MAX, weight: 1 };
        let heavy = Load { active: usize::MAX, weight: u32::MAX };
        assert_eq!(heavy.compare(&most), Ordering::Less);
        assert_eq!(most.compare(&most), Ordering::Equal);
    }
}
