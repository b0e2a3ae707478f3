//! Up or down, from the results of checks.
//!
//! Pure. Results go in one by one and a change of state comes out; `control/prober.rs` does the
//! checking and keeps the time. One result alone decides about a new server, so that a start
//! takes one check and not `rise` of them; after that only several in a row turn the state,
//! so that one lost packet takes nobody out.

use std::time::Duration;

use super::outcome::words;

words! {
    /// What is known of a server.
    State {
        /// Answers its checks, or has none.
        Up = "up",
        /// Fails its checks.
        Down = "down",
        /// New: its first check has not answered yet.
        Checking = "checking",
    }
}

/// One server's state and how far it is on the way to the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    state: State,
    /// Results in a row that speak against `state`.
    against: u32,
    rise: u32,
    fall: u32,
}

impl Health {
    /// A new server: its first result decides. `rise` successes in a row bring a server up, `fall`
    /// failures in a row take it down; 0 counts as 1.
    pub fn new(rise: u32, fall: u32) -> Self {
        Health::resume(State::Checking, rise, fall)
    }

    /// A server that was known before: it keeps its state over a reload, and the counting of
    /// results begins again, as the reload may have changed what is counted to.
    pub fn resume(state: State, rise: u32, fall: u32) -> Self {
        Health { state, against: 0, rise: rise.max(1), fall: fall.max(1) }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Whether results speak against the state, and not yet enough of them to turn it.
    pub fn is_changing(&self) -> bool {
        self.against > 0
    }

    /// Takes the result of one check. The new state, if this result changed it.
    pub fn on_result(&mut self, ok: bool) -> Option<State> {
        let (seen, needed) = if ok { (State::Up, self.rise) } else { (State::Down, self.fall) };
        if seen == self.state {
            self.against = 0;
            return None;
        }
        self.against += 1; // below `needed` before, so it cannot overflow
        if self.state != State::Checking && self.against < needed {
            return None;
        }
        self.state = seen;
        self.against = 0;
        Some(seen)
    }
}

/// How long to wait from the start of one check to the next: anything from `interval - jitter`
/// to `interval + jitter` alike, where `jitter` is a share of the interval from 0.0 to 1.0 and
/// what lies outside is taken for the nearer end. `random` is a fresh random number.
pub fn next_check(interval: Duration, jitter: f64, random: u64) -> Duration {
    let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
    scaled(interval, 1.0 - jitter + 2.0 * jitter * fraction(random))
}

/// How long to wait from the first check of a server, which runs at once, to the second: from half
/// an interval to one and a half alike. Servers that were all checked at the same moment, as at a
/// start, are thereby spread over a whole interval, and keep that distance.
pub fn second_check(interval: Duration, random: u64) -> Duration {
    scaled(interval, 0.5 + fraction(random))
}

/// A random number as one from 0.0 to below 1.0; the upper 53 bits are all that an `f64` holds.
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// A duration times a factor of at most 2, or the longest there is.
fn scaled(interval: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(interval.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changes(health: &mut Health, results: &[bool]) -> Vec<Option<State>> {
        results.iter().map(|ok| health.on_result(*ok)).collect()
    }

    #[test]
    fn the_first_result_alone_decides_about_a_new_server() {
        assert_eq!(Health::new(5, 5).state(), State::Checking);
        assert_eq!(Health::new(5, 5).on_result(true), Some(State::Up));
        assert_eq!(Health::new(5, 5).on_result(false), Some(State::Down));
    }

    #[test]
    fn one_success_after_all_but_one_failure_starts_the_count_again() {
        let mut health = Health::resume(State::Up, 2, 3);
        let seen = changes(&mut health, &[false, false, true, false, false]);
        assert_eq!(seen, [None; 5]);
        assert_eq!(health.on_result(false), Some(State::Down));
        assert_eq!(changes(&mut health, &[true, false, true, true]), [None, None, None, Some(State::Up)]);
    }

    #[test]
    fn a_state_is_changing_from_the_first_result_against_it_to_the_verdict() {
        let mut health = Health::new(2, 2);
        let told = [true, false, true, false, false, true, false, true, true].map(|ok| {
            health.on_result(ok);
            health.is_changing()
        });
        assert_eq!(told, [false, true, false, true, false, true, false, true, false]);
    }

    #[test]
    fn a_reload_keeps_the_state() {
        let mut health = Health::resume(State::Down, 2, 3);
        assert_eq!(health.state(), State::Down);
        assert_eq!(changes(&mut health, &[true, true]), [None, Some(State::Up)]);
        assert_eq!(Health::resume(State::Checking, 3, 3).on_result(true), Some(State::Up));
    }

    #[test]
    fn zero_counts_as_one() {
        let mut health = Health::resume(State::Up, 0, 0);
        assert_eq!(changes(&mut health, &[false, true]), [Some(State::Down), Some(State::Up)]);
    }

    #[test]
    fn checks_move_by_the_jitter_and_no_further() {
        let second = Duration::from_secs(1);
        assert_eq!(next_check(second, 0.1, 0), Duration::from_millis(900));
        assert_eq!(next_check(second, 0.1, 1 << 63), second);
        assert_eq!(next_check(second, 0.0, u64::MAX), second);
        assert_eq!(second_check(second, 0), Duration::from_millis(500));
        assert!(second_check(second, u64::MAX) <= Duration::from_millis(1500));
    }

    #[test]
    fn a_jitter_out_of_range_is_no_panic() {
        for jitter in [f64::NAN, -3.0, 7.0, f64::INFINITY] {
            assert!(next_check(Duration::from_secs(1), jitter, u64::MAX) <= Duration::from_secs(2));
        }
        assert_eq!(next_check(Duration::MAX, 1.0, u64::MAX), Duration::MAX);
    }

    /// The state after all of `results`, told from the whole history at once: where the latest
    /// long enough run ends, that is the state.
    fn model(results: &[bool], rise: usize, fall: usize) -> State {
        let Some(first) = results.first() else { return State::Checking };
        let mut state = if *first { State::Up } else { State::Down };
        for end in 1..=results.len() {
            let run_of = |ok: bool| results[1..end].iter().rev().take_while(|result| **result == ok).count();
            if run_of(true) >= rise {
                state = State::Up;
            } else if run_of(false) >= fall {
                state = State::Down;
            }
        }
        state
    }

    proptest! {
        #[test]
        fn any_history_ends_in_the_state_that_its_runs_say(
            results in prop::collection::vec(any::<bool>(), 0..60),
            rise in 1_u32..5,
            fall in 1_u32..5,
        ) {
            let mut health = Health::new(rise, fall);
            for past in 0..results.len() {
                let before = health.state();
                let change = health.on_result(results[past]);
                let expected = model(&results[..=past], rise as usize, fall as usize);
                prop_assert_eq!(health.state(), expected);
                prop_assert_eq!(change, (before != expected).then_some(expected));
            }
        }

        #[test]
        fn every_wait_is_within_the_jitter(
            interval_ms in 1_u64..600_000,
            jitter in 0.0..=1.0_f64,
            random in any::<u64>(),
        ) {
            let interval = Duration::from_millis(interval_ms);
            let wait = next_check(interval, jitter, random).as_secs_f64() / interval.as_secs_f64();
            prop_assert!((1.0 - jitter - 1e-6..=1.0 + jitter + 1e-6).contains(&wait), "{wait}");
        }
    }

    #[test]
    fn servers_that_start_together_are_spread_over_a_whole_interval() {
        // Golden-ratio steps stand in for random numbers: even, and the same in each run.
        let randoms = (0..200_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut tenths = [0; 10];
        for wait in randoms.map(|random| second_check(Duration::from_secs(10), random)) {
            tenths[(wait.as_secs() as usize) % 10] += 1;
        }
        assert!(tenths.iter().all(|count| (15..=25).contains(count)), "{tenths:?}");
    }
}
