//! How many retries a pool bears, and how long to pause before asking the same server again.
//!
//! Pure. The budget is a share of the pool's traffic, so that a pool whose servers are all dead is
//! not dialled many times as often as one that works. The retries of a client who finds a
//! server in the end cost nothing: a few dead servers among good ones never use it up. One that is made on a
//! server which has just failed somebody counts from its beginning: so a storm is bounded before the first
//! search of it has ended.

use std::time::{Duration, Instant};

/// Retries in vain that every pool bears while a budget looks back, whatever its traffic: ten a
/// second, so that a quiet pool can retry.
const LEAST: f64 = 100.0;

/// The budget looks back over the half under way and the one before: from 5 to 10 seconds.
const HALF: Duration = Duration::from_secs(5);

/// One pool's.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    begun: Option<Instant>,
    /// The half under way, the one before.
    halves: [Half; 2],
    under_way: UnderWay,
}

/// What a retry may be expected to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odds {
    /// The server took its last client: the retry counts by what became of others.
    Fair,
    /// It did not. Another such retry is made only while there is room for all of them.
    Bad,
}

#[derive(Clone, Copy, Debug, Default)]
struct UnderWay {
    fair: u32,
    bad: u32,
}

impl UnderWay {
    fn of(&mut self, odds: Odds) -> &mut u32 {
        match odds {
            Odds::Fair => &mut self.fair,
            Odds::Bad => &mut self.bad,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Half {
    /// Connections to the pool before it began.
    connections_before: u64,
    in_vain: u32,
    of_use: u32,
}

impl Budget {
    /// Lets one more retry be made, or says no. `share` is what retries in vain may be of the
    /// traffic, and `connections` how many the pool has had so far. Whoever may retry says
    /// afterwards how it went.
    pub fn take(&mut self, share: f64, odds: Odds, connections: u64, now: Instant) -> bool {
        self.look_back(connections, now);
        let sum = |read: fn(&Half) -> u32| f64::from(self.halves.iter().map(read).sum::<u32>());
        let (in_vain, of_use) = (sum(|half| half.in_vain), sum(|half| half.of_use));
        // Those under way count by what became of the others.
        let doubt = if in_vain > 0.0 { in_vain / (in_vain + of_use) } else { 0.0 };
        let traffic = connections.saturating_sub(self.halves[1].connections_before);
        let UnderWay { fair, bad } = self.under_way;
        // Whoever has a good server left to ask is not held up by those who have not.
        let weight = if odds == Odds::Bad { 1.0 } else { doubt };
        let counted = in_vain + doubt * f64::from(fair) + weight * f64::from(bad);
        let may = counted < LEAST + share * traffic as f64;
        *self.under_way.of(odds) += u32::from(may);
        may
    }

    /// A client has ended its search, of which this was one retry: it found a server or not. The retry
    /// counts from now on, and not from when it began: else what takes longest would be forgotten soonest.
    pub fn on_end(&mut self, odds: Odds, found: bool, connections: u64, now: Instant) {
        self.look_back(connections, now);
        self.on_abandoned(odds);
        let half = &mut self.halves[0];
        match found {
            true => half.of_use = half.of_use.saturating_add(1),
            false => half.in_vain = half.in_vain.saturating_add(1),
        }
    }

    /// The client left before the end, or had nobody to ask: its retry says nothing.
    pub fn on_abandoned(&mut self, odds: Odds) {
        let under_way = self.under_way.of(odds);
        *under_way = under_way.saturating_sub(1);
    }

    fn look_back(&mut self, connections: u64, now: Instant) {
        let fresh = Half { connections_before: connections, ..Half::default() };
        let age = self.begun.map_or(2 * HALF, |begun| now.saturating_duration_since(begun));
        if age >= 2 * HALF {
            self.halves = [fresh; 2];
            self.begun = Some(now);
        } else if age >= HALF {
            self.halves = [fresh, self.halves[0]];
            self.begun = self.begun.map(|begun| begun + HALF);
        }
    }
}

/// How long to pause before a server is asked again: it doubles from `backoff` to `most` with each
/// time (from 0), and is a random length between half of that and all of it, so that clients who
/// failed together do not come back together. `random` is a fresh random number.
pub fn pause(backoff: Duration, most: Duration, times: u32, random: u64) -> Duration {
    let doubled = backoff.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX));
    let whole = doubled.min(most);
    let part = (random >> 11) as f64 / (1_u64 << 53) as f64;
    whole / 2 + (whole / 2).mul_f64(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Odds::{Bad, Fair};
    use super::*;

    /// `clients` come to a pool, one each millisecond, and want `wanted` retries each, which go as
    /// `is_found` says. How many retries there were.
    fn retries(share: f64, clients: u64, wanted: u32, mut is_found: impl FnMut(u64) -> bool) -> u64 {
        let (mut budget, mut now, mut made) = (Budget::default(), Instant::now(), 0);
        for client in 1..=clients {
            now += Duration::from_millis(1);
            for _ in 0..wanted {
                if !budget.take(share, Fair, client, now) {
                    break;
                }
                made += 1;
                let found = is_found(made);
                budget.on_end(Fair, found, client, now);
                if found {
                    break;
                }
            }
        }
        made
    }

    #[test]
    fn a_quiet_pool_may_retry() {
        assert_eq!(retries(0.0, 10, 2, |_| false), 20);
    }

    #[test]
    fn retries_against_a_dead_pool_stay_a_share_of_the_traffic() {
        let made = retries(0.2, 4_000, 2, |_| false);
        assert!((800..=900).contains(&made), "{made} for 4000 clients");
    }

    #[test]
    fn retries_that_find_a_server_are_never_refused() {
        assert_eq!(retries(0.0, 50_000, 1, |_| true), 50_000);
    }

    #[test]
    fn many_retries_at_once_are_no_storm_while_they_find_a_server_and_one_when_they_do_not() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        assert!((0..10_000).all(|_| budget.take(0.0, Fair, 0, now)), "nothing speaks against it yet");
        for _ in 0..100 {
            budget.on_end(Fair, false, 0, now);
        }
        assert!(!budget.take(0.0, Fair, 0, now));
    }

    #[test]
    fn a_storm_on_servers_that_have_failed_is_bounded_before_the_first_search_has_ended() {
        // The bug: until then every retry was allowed, however many clients began at the same moment.
        let (mut budget, now) = (Budget::default(), Instant::now());
        budget.look_back(0, now);
        let allowed = (0..10_000).filter(|_| budget.take(0.2, Bad, 1000, now)).count();
        assert_eq!(allowed, 300, "a hundred, and a fifth of the clients");
        assert!(budget.take(0.2, Fair, 1000, now), "a good server may be asked all the same");
        budget.on_abandoned(Bad);
        assert!(budget.take(0.2, Bad, 1000, now) && !budget.take(0.2, Bad, 1000, now));
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        while budget.take(0.0, Fair, 0, now) {
            budget.on_end(Fair, false, 0, now);
        }
        assert!(!budget.take(0.0, Fair, 0, now + Duration::from_secs(9)));
        assert!(budget.take(0.0, Fair, 0, now + Duration::from_secs(11)));
    }

    #[test]
    fn what_took_long_to_fail_is_not_forgotten_the_sooner() {
        // The bug: retries counted for the half in which somebody last began one, however long ago it was.
        let (mut budget, begun) = (Budget::default(), Instant::now());
        (0..100).for_each(|_| _ = budget.take(0.0, Fair, 0, begun));
        let late = begun + Duration::from_secs(9);
        (0..100).for_each(|_| budget.on_end(Fair, false, 0, late));
        assert!(!budget.take(0.0, Fair, 0, late + Duration::from_secs(4)));
        assert!(budget.take(0.0, Fair, 0, late + Duration::from_secs(10)));
    }

    #[test]
    fn whoever_leaves_early_costs_nothing() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        budget.take(0.0, Fair, 0, now);
        budget.on_end(Fair, false, 0, now);
        for _ in 0..10_000 {
            assert!(budget.take(0.0, Fair, 0, now));
            budget.on_abandoned(Fair);
        }
    }

    #[test]
    fn a_pause_doubles_up_to_its_limit() {
        let ms = Duration::from_millis;
        let longest = |times| pause(ms(50), ms(1000), times, u64::MAX).as_millis();
        assert_eq!([0, 1, 2, 3, 4, 5].map(longest), [50, 100, 200, 400, 800, 1000]);
        assert_eq!(pause(ms(50), ms(1000), 0, 0), ms(25));
        assert!(pause(ms(50), ms(1000), u32::MAX, u64::MAX) <= ms(1000));
    }

    proptest! {
        #[test]
        fn one_by_one_never_more_than_the_share_are_in_vain(
            share in 0.0..=1.0_f64,
            clients in 1_u64..5_000,
            wanted in 1_u32..5,
            luck in 0_u64..10,
        ) {
            let mut in_vain = 0_u64;
            retries(share, clients, wanted, |n| {
                let found = n.wrapping_mul(0x9e37_79b9) % 10 < luck;
                in_vain += u64::from(!found);
                found
            });
            prop_assert!(in_vain as f64 <= LEAST + share * clients as f64 + 1.0);
        }
    }

    #[test]
    fn those_under_way_count_by_what_became_of_the_others() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        (0..100).for_each(|_| assert!(budget.take(0.0, Fair, 0, now)));
        (0..100).for_each(|number| budget.on_end(Fair, number % 2 == 0, 0, now));
        // 50 in vain; of those under way every second one may be.
        assert_eq!((0..1000).take_while(|_| budget.take(0.0, Fair, 0, now)).count(), 100);
    }

    #[test]
    fn traffic_of_long_ago_allows_nothing() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        while budget.take(1.0, Fair, 1_000_000, now) {
            budget.on_end(Fair, false, 1_000_000, now);
        }
        assert_eq!(budget.halves[0].in_vain, LEAST as u32);
    }

    #[test]
    fn the_half_before_counts_until_another_has_passed() {
        let (mut budget, begun) = (Budget::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert!(budget.take(0.0, Fair, 0, after(0)) && budget.take(0.0, Fair, 0, after(6)));
        (0..100).for_each(|_| budget.on_end(Fair, false, 0, after(6)));
        assert!(!budget.take(0.0, Fair, 0, after(7)) && !budget.take(0.0, Fair, 0, after(14)));
        assert!(budget.take(0.0, Fair, 0, after(15)));
    }
}
