//! Each server in its turn, as often as its weight says, and evenly spread.
//!
//! Pure: the turn is an argument, counted over all workers, so that the round is one round for
//! the whole process. The order is worked out once, by smooth weighted round-robin: a server of
//! weight 5 among two of weight 1 gets `a a b a c a a`, never five in a row.

use super::{Choice, Field, Ground, Member, electable};

/// Turns in a schedule. Weights whose sum (after division by what they have in common) is
/// larger are scaled down to this sum; then a server's share is off by less than one turn in
/// 4096, beyond what goes to servers that are too light for a turn and get one all the same.
/// More electable servers than this get one turn each and the weights no longer count.
const TURNS_MAX: u64 = 4096;

/// Places in the pool, one for each turn; then it starts again.
#[derive(Clone, Debug)]
pub struct RoundRobin(Vec<u32>);

impl RoundRobin {
    pub fn new(members: &[Member]) -> Self {
        let (servers, weights): (Vec<usize>, Vec<u64>) =
            electable(members).map(|(server, weight)| (server, u64::from(weight))).unzip();
        let order = smooth(&turns_of(&weights));
        RoundRobin(order.into_iter().map(|rank| servers[rank] as u32).collect())
    }

    /// The server whose turn it is or, where that one is closed, the next open one in the
    /// schedule. At the most one walk around it.
    pub fn pick(&self, turn: u64, field: &impl Field) -> Option<Choice> {
        let start = (turn.checked_rem(self.0.len() as u64)?) as usize; // nobody to pick: no turns
        let (before, after) = self.0.split_at(start);
        let mut order = after.iter().chain(before).map(|server| *server as usize);
        let server = order.find(|server| field.is_open(*server))?;
        Some(Choice::of(server, Ground::RoundRobin { turn }))
    }
}

/// How many turns each weight gets: as the weights say, in the smallest whole numbers, and
/// together at the most [`TURNS_MAX`]; at least one each.
fn turns_of(weights: &[u64]) -> Vec<u64> {
    let common = weights.iter().copied().fold(0, gcd).max(1);
    let reduced: Vec<u64> = weights.iter().map(|weight| weight / common).collect();
    if reduced.iter().sum::<u64>() <= TURNS_MAX { reduced } else { scaled(&reduced) }
}

/// Weights scaled to turns by largest remainder; those worth less than a turn get one first.
fn scaled(weights: &[u64]) -> Vec<u64> {
    let mut turns = vec![1; weights.len()];
    let mut by_weight: Vec<usize> = (0..weights.len()).collect();
    by_weight.sort_by_key(|rank| weights[*rank]);

    let mut turns_left = TURNS_MAX.max(weights.len() as u64);
    let mut weight_left: u64 = weights.iter().sum();
    let mut heavy = &by_weight[..];
    while let [lightest, rest @ ..] = heavy {
        if weights[*lightest] * turns_left >= weight_left {
            break; // worth a turn, and so are all that follow
        }
        turns_left -= 1;
        weight_left -= weights[*lightest];
        heavy = rest;
    }

    let mut spare = turns_left;
    for rank in heavy {
        turns[*rank] = weights[*rank] * turns_left / weight_left;
        spare -= turns[*rank];
    }
    let mut by_remainder = heavy.to_vec();
    by_remainder.sort_by_key(|rank| std::cmp::Reverse(weights[*rank] * turns_left % weight_left));
    for rank in by_remainder.into_iter().take(spare as usize) {
        turns[rank] += 1;
    }
    turns
}

/// The order of one round, as numbers of `turns`: each turn every server gains its number of
/// turns, and the one that has most pays the length of the round.
fn smooth(turns: &[u64]) -> Vec<usize> {
    let round: u64 = turns.iter().sum();
    if round == turns.len() as u64 {
        // One turn each, which is the same in one step for each: thousands of servers whose states change
        // one by one must not cost their number squared each time.
        return (0..turns.len()).collect();
    }
    let mut credit = vec![0_i64; turns.len()];
    let mut order = Vec::with_capacity(round as usize);
    for _ in 0..round {
        let mut richest = 0;
        for rank in 0..turns.len() {
            credit[rank] += turns[rank] as i64;
            if credit[rank] > credit[richest] {
                richest = rank;
            }
        }
        credit[richest] -= round as i64;
        order.push(richest);
    }
    order
}

/// The greatest common divisor; that of 0 and a number is the number.
fn gcd(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b); // at the most 93 rounds for 64 bits
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_heavy_server_is_spread_over_the_round() {
        assert_eq!(smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(smooth(&[1, 1, 1]), [0, 1, 2]);
    }

    #[test]
    fn what_weights_have_in_common_does_not_lengthen_the_round() {
        assert_eq!(turns_of(&[100, 200, 300]), [1, 2, 3]);
        assert_eq!(turns_of(&[1000; 50]), [1; 50]);
        assert_eq!(turns_of(&[]), [0_u64; 0]);
    }

    #[test]
    fn a_server_too_light_for_a_turn_still_gets_one() {
        let mut weights = vec![1000; 99];
        weights.push(1);
        let turns = turns_of(&weights);
        assert_eq!(turns.iter().sum::<u64>(), TURNS_MAX);
        assert_eq!(turns[99], 1);
    }

    #[test]
    fn turns_that_are_left_over_go_where_most_was_cut_off() {
        // A hundred light ones take a turn each. Of the 3996 others these are worth 2000.1, 1000.2 and 995.7.
        let weights = [&[80_004, 40_008, 39_828][..], &[10; 100]].concat();
        let turns = turns_of(&weights);
        assert_eq!((&turns[..3], &turns[3..]), (&[2000, 1000, 996][..], &[1; 100][..]));
    }

    #[test]
    fn more_servers_than_turns_get_one_each() {
        let weights: Vec<u64> = (1..=5000).collect();
        assert_eq!(turns_of(&weights), vec![1; 5000]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn scaling_keeps_the_shares_within_what_is_promised(
            weights in prop::collection::vec(1_u64..=1000, 1..200)
        ) {
            let turns = turns_of(&weights);
            let (round, total) = (turns.iter().sum::<u64>(), weights.iter().sum::<u64>());
            prop_assert!(round <= TURNS_MAX);
            // What the light ones got beyond their share is what the others may lack.
            let exact = |rank: usize| weights[rank] as f64 * round as f64 / total as f64;
            let given: f64 = (0..weights.len()).map(|rank| (1.0 - exact(rank)).max(0.0)).sum();
            for (rank, turns) in turns.into_iter().enumerate() {
                prop_assert!(turns >= 1);
                prop_assert!((turns as f64 - exact(rank)).abs() < 1.0 + given);
            }
        }

        #[test]
        fn at_no_point_of_the_round_is_a_server_far_from_its_share(
            turns in prop::collection::vec(1_u64..=60, 1..12)
        ) {
            let round: u64 = turns.iter().sum();
            let mut had = vec![0_u64; turns.len()];
            for (past, rank) in smooth(&turns).into_iter().enumerate() {
                had[rank] += 1;
                for other in 0..turns.len() {
                    let due = (past + 1) as f64 * turns[other] as f64 / round as f64;
                    prop_assert!((had[other] as f64 - due).abs() < 2.0, "{turns:?} at {past}");
                }
            }
            prop_assert_eq!(had, turns);
        }
    }
}
