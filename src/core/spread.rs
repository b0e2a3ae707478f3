//! Which worker serves a client: the one that took it, unless another is clearly less loaded.
//!
//! The kernel spreads clients over listening sockets by a hash of their addresses. That is even for
//! thousands of short connections, and by chance uneven for those that stay: of 16 connections, 11
//! on one of two cores is nothing unusual. Pure.

/// Connections more than the least loaded worker has that are left alone: handing a client over
/// costs the other worker a wake-up.
const SLACK: usize = 1;

/// The same as a share of what the least loaded has, so that thousands of connections that come and
/// go do not change hands for nothing.
const SLACK_SHARE: usize = 32;

/// The worker that a client taken by worker `own` is to be handed to, given what each of them has
/// open; `None` keeps it.
pub fn lighter(own: usize, open: impl Iterator<Item = usize> + Clone) -> Option<usize> {
    let has = open.clone().nth(own)?;
    let (least, fewest) = open.enumerate().min_by_key(|(_, open)| *open)?;
    (has > fewest + SLACK + fewest / SLACK_SHARE).then_some(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lets clients come to these workers in turn of the list.
    fn after(workers: usize, arrivals: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut open = vec![0; workers];
        for own in arrivals {
            let taker = lighter(own, open.iter().copied()).unwrap_or(own);
            open[taker] += 1;
        }
        open
    }

    #[test]
    fn a_client_stays_where_it_came_while_the_difference_is_small() {
        assert_eq!(lighter(0, [1, 0].into_iter()), None);
        assert_eq!(lighter(0, [2, 0].into_iter()), Some(1));
        assert_eq!(lighter(1, [2, 0].into_iter()), None);
        assert_eq!(lighter(0, [640 + 21, 640].into_iter()), None);
        assert_eq!(lighter(0, [640 + 22, 640].into_iter()), Some(1));
    }

    #[test]
    fn all_clients_at_one_worker_are_spread_over_all() {
        assert_eq!(after(4, [2; 9]), [2, 2, 3, 2]);
    }

    proptest! {
        #[test]
        fn a_thousand_connections_are_even_however_they_come(
            workers in 1..=16_usize,
            at in proptest::collection::vec(0..16_usize, 1000),
        ) {
            let open = after(workers, at.into_iter().map(|own| own % workers));
            let (busiest, idlest) = (*open.iter().max().unwrap(), *open.iter().min().unwrap());
            prop_assert!(10 * busiest <= 11 * idlest, "{:?}", open);
        }
    }
}
