//! A circuit breaker: a server that fails too often within a while is left alone for a time, and
//! then a few connections try it before everybody may again.
//!
//! Pure. Whoever enters says afterwards how it went, or that it came to nothing: else a place for
//! a trial would be lost for ever. `live/guard.rs` keeps that by its guards and brings the time.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::outcome::words;

/// When a breaker opens, and how it closes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Failures within `window` that open it; at least 1.
    pub failures: u32,
    pub window: Duration,
    /// How long nobody is let in then.
    pub open_for: Duration,
    /// Connections that are let in after that; when all of them succeed, it is closed again.
    pub half_open_trials: u32,
}

words! {
    /// Whether the current flows. A closed breaker lets everybody in, as in a fuse box.
    State { Closed = "closed", Open = "open", HalfOpen = "half-open" }
}

/// A connection that has been let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// As everybody.
    Free,
    /// On trial, after the breaker had opened for that time.
    Trial(u64),
}

/// Why a breaker has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Failures { count: usize, window: Duration },
    Trial,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Failures { count: 1, .. } => f.write_str("a connect failed"),
            Cause::Failures { count, window } => write!(f, "{count} connects failed within {window:?}"),
            Cause::Trial => f.write_str("a trial failed"),
        }
    }
}

/// From when on it is worth asking [`Breaker::enter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Now,
    At(Instant),
    /// Not before a trial has ended.
    Later,
}

/// One server's breaker.
#[derive(Clone, Debug)]
pub struct Breaker {
    rules: Rules,
    phase: Phase,
    /// How often it has opened; tells trials of one time from those of another.
    opened: u64,
    /// Why it opened last.
    cause: Option<Cause>,
}

#[derive(Clone, Debug)]
enum Phase {
    /// The latest failures, at most as many as open it.
    Closed {
        failed: VecDeque<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        under_way: u32,
        passed: u32,
    },
}

impl Breaker {
    pub fn new(rules: Rules) -> Self {
        Breaker::after(rules, 0)
    }

    /// A closed breaker in the place of one that has opened so often: trials of that one are none of this.
    pub fn after(rules: Rules, opened: u64) -> Self {
        Breaker { rules, phase: Phase::closed(), opened, cause: None }
    }

    /// New rules for a breaker that stays in its state.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        if let Phase::HalfOpen { passed, .. } = self.phase
            && passed >= rules.half_open_trials
        {
            self.phase = Phase::closed();
        }
    }

    /// Lets a connection in, or says no and changes nothing.
    pub fn enter(&mut self, now: Instant) -> Option<Entry> {
        if let Phase::Open { until } = self.phase
            && until <= now
        {
            self.phase = Phase::HalfOpen { under_way: 0, passed: 0 };
        }
        match &mut self.phase {
            Phase::Closed { .. } => Some(Entry::Free),
            Phase::HalfOpen { under_way, passed } if *under_way + *passed < self.rules.half_open_trials => {
                *under_way += 1;
                Some(Entry::Trial(self.opened))
            }
            Phase::HalfOpen { .. } | Phase::Open { .. } => None,
        }
    }

    pub fn on_success(&mut self, entry: Entry) {
        let Some((under_way, passed)) = self.trials_of(entry) else { return };
        *under_way -= 1;
        *passed += 1;
        if *passed >= self.rules.half_open_trials {
            self.phase = Phase::closed();
        }
    }

    /// Says whether this failure has opened it.
    pub fn on_failure(&mut self, entry: Entry, now: Instant) -> bool {
        let cause = match (entry, &mut self.phase) {
            (Entry::Free, Phase::Closed { failed }) => {
                failed.push_back(now);
                while failed.front().is_some_and(|at| now.saturating_duration_since(*at) > self.rules.window)
                    || failed.len() > self.rules.failures as usize
                {
                    failed.pop_front();
                }
                let cause = Cause::Failures { count: failed.len(), window: self.rules.window };
                (failed.len() >= self.rules.failures as usize).then_some(cause)
            }
            _ => self.trials_of(entry).map(|_| Cause::Trial),
        };
        if cause.is_some() {
            self.opened += 1;
            self.phase = Phase::Open { until: now + self.rules.open_for };
            self.cause = cause;
        }
        cause.is_some()
    }

    /// Whoever entered left before the server could show anything: a trial may be made anew.
    pub fn on_abandoned(&mut self, entry: Entry) {
        if let Some((under_way, _)) = self.trials_of(entry) {
            *under_way -= 1;
        }
    }

    /// The server has shown by other means that it is back: trials need not wait any longer. Says whether
    /// they would have.
    pub fn on_recovery(&mut self, now: Instant) -> bool {
        let is_open = self.state(now) == State::Open;
        if is_open {
            self.phase = Phase::HalfOpen { under_way: 0, passed: 0 };
        }
        is_open
    }

    pub fn gate(&self) -> Gate {
        match self.phase {
            Phase::Closed { .. } => Gate::Now,
            Phase::Open { until } => Gate::At(until),
            Phase::HalfOpen { under_way, passed } if under_way + passed < self.rules.half_open_trials => {
                Gate::Now
            }
            Phase::HalfOpen { .. } => Gate::Later,
        }
    }

    pub fn state(&self, now: Instant) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { until } if now < until => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// How often it has opened so far.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Why it opened last; `None` where it never has.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    pub fn rules(&self) -> Rules {
        self.rules
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }

    /// The counts that this trial belongs to; `None` for what came of an earlier time, or before
    /// the breaker opened: it says nothing of the server as it is now.
    fn trials_of(&mut self, entry: Entry) -> Option<(&mut u32, &mut u32)> {
        match &mut self.phase {
            Phase::HalfOpen { under_way, passed } if entry == Entry::Trial(self.opened) => {
                Some((under_way, passed))
            }
            _ => None,
        }
    }
}

impl Phase {
    fn closed() -> Self {
        Phase::Closed { failed: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        failures: 3,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(5),
        half_open_trials: 2,
    };

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// A breaker that has just opened.
    fn open(begin: Instant) -> Breaker {
        let mut breaker = Breaker::new(RULES);
        for _ in 0..3 {
            let entry = breaker.enter(begin).expect("closed");
            breaker.on_failure(entry, begin);
        }
        breaker
    }

    #[test]
    fn enough_failures_within_the_window_open_it_and_successes_do_not_hide_them() {
        let (mut breaker, begin) = (Breaker::new(RULES), Instant::now());
        assert!(!breaker.on_failure(Entry::Free, begin));
        breaker.on_success(Entry::Free);
        assert!(!breaker.on_failure(Entry::Free, begin + second(9)));
        assert!(!breaker.on_failure(Entry::Free, begin + second(11)), "the first has left the window");
        assert!(breaker.on_failure(Entry::Free, begin + second(12)));
        assert_eq!((breaker.enter(begin + second(16)), breaker.opened()), (None, 1));
        assert_eq!(breaker.cause().expect("it has opened").to_string(), "3 connects failed within 10s");
    }

    #[test]
    fn the_window_includes_its_last_moment() {
        let (mut breaker, begin) = (Breaker::new(RULES), Instant::now());
        let times = [0, 5, 10].map(|seconds| begin + second(seconds));
        assert_eq!(times.map(|at| breaker.on_failure(Entry::Free, at)), [false, false, true]);
    }

    #[test]
    fn after_its_time_it_closes_when_all_trials_succeed() {
        let begin = Instant::now();
        let mut breaker = open(begin);
        let later = begin + second(5);
        let trials = [breaker.enter(later), breaker.enter(later)].map(|entry| entry.expect("a trial"));
        assert_eq!((breaker.enter(later), breaker.gate()), (None, Gate::Later));
        breaker.on_success(trials[0]);
        assert_eq!((breaker.enter(later), breaker.state(later)), (None, State::HalfOpen));
        breaker.on_success(trials[1]);
        assert_eq!((breaker.enter(later), breaker.state(later)), (Some(Entry::Free), State::Closed));
    }

    #[test]
    fn one_failed_trial_opens_it_again_and_the_other_trial_of_that_time_no_longer_counts() {
        let begin = Instant::now();
        let mut breaker = open(begin);
        let later = begin + second(5);
        let trials = [breaker.enter(later), breaker.enter(later)].map(|entry| entry.expect("a trial"));
        assert!(breaker.on_failure(trials[0], later));
        assert_eq!(breaker.gate(), Gate::At(later + second(5)));
        assert_eq!(breaker.cause(), Some(Cause::Trial));
        let again = breaker.enter(later + second(5)).expect("a trial");
        breaker.on_success(trials[1]);
        breaker.on_failure(trials[1], later + second(5));
        breaker.on_success(again);
        assert_eq!(breaker.state(later + second(5)), State::HalfOpen, "one of two has passed");
    }

    #[test]
    fn a_trial_that_came_to_nothing_is_made_anew() {
        let begin = Instant::now();
        let mut breaker = open(begin);
        for _ in 0..10 {
            let trial = breaker.enter(begin + second(6)).expect("a trial");
            breaker.on_abandoned(trial);
        }
        assert_eq!(breaker.gate(), Gate::Now);
    }

    #[test]
    fn a_server_that_is_known_to_be_back_is_on_trial_at_once() {
        let begin = Instant::now();
        let mut breaker = open(begin);
        assert!(breaker.on_recovery(begin) && breaker.state(begin) == State::HalfOpen);
        let trials = [breaker.enter(begin), breaker.enter(begin)].map(|entry| entry.expect("a trial"));
        assert!(!breaker.on_recovery(begin));
        assert_eq!(breaker.enter(begin), None, "and no more than that");
        assert!(breaker.on_failure(trials[0], begin), "it was not");
        assert_eq!(breaker.gate(), Gate::At(begin + second(5)));
        let mut breaker = Breaker::new(RULES);
        assert!(!breaker.on_recovery(begin) && breaker.is_closed());
    }

    #[test]
    fn new_rules_keep_the_state() {
        let begin = Instant::now();
        let mut breaker = open(begin);
        breaker.set_rules(Rules { failures: 1, half_open_trials: 1, ..RULES });
        assert_eq!(breaker.state(begin), State::Open);
        let trial = breaker.enter(begin + second(5)).expect("a trial");
        breaker.on_success(trial);
        assert_eq!(breaker.state(begin + second(5)), State::Closed);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Enter,
        Recover,
        /// How the oldest connection under way ends.
        End(Option<bool>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (1_u64..4000).prop_map(Step::Wait),
            4 => Just(Step::Enter),
            1 => Just(Step::Recover),
            4 => prop_oneof![Just(Some(true)), Just(Some(false)), Just(Some(false)), Just(None)].prop_map(Step::End),
        ]
    }

    proptest! {
        /// Told from outside: never anybody while it is open, never more on trial than the rules
        /// say, and it opens only by a failure.
        #[test]
        fn whoever_comes_and_goes_the_rules_are_kept(
            steps in prop::collection::vec(step(), 0..300),
            failures in 1_u32..5,
            trials in 1_u32..4,
        ) {
            let rules = Rules { failures, half_open_trials: trials, ..RULES };
            let (mut breaker, mut now) = (Breaker::new(rules), Instant::now());
            let (mut under_way, mut open_until) = (VecDeque::new(), None);
            for step in steps {
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Enter => {
                        let gate = breaker.gate();
                        let entry = breaker.enter(now);
                        prop_assert!(entry.is_none() || open_until.is_none_or(|until| until <= now));
                        prop_assert_eq!(entry.is_some(), match gate {
                            Gate::Now => true,
                            Gate::At(at) => at <= now,
                            Gate::Later => false,
                        });
                        under_way.extend(entry);
                    }
                    Step::Recover => {
                        prop_assert_eq!(breaker.on_recovery(now), open_until > Some(now));
                        open_until = open_until.map(|until| until.min(now));
                    }
                    Step::End(how) => {
                        let Some(entry) = under_way.pop_front() else { continue };
                        match how {
                            Some(true) => breaker.on_success(entry),
                            Some(false) => {
                                if breaker.on_failure(entry, now) {
                                    open_until = Some(now + rules.open_for);
                                }
                            }
                            None => breaker.on_abandoned(entry),
                        }
                    }
                }
                let on_trial = under_way.iter().filter(|entry| **entry == Entry::Trial(breaker.opened()));
                prop_assert!(on_trial.count() <= trials as usize);
                prop_assert_eq!(breaker.state(now) == State::Open, breaker.opened() > 0 && open_until > Some(now));
            }
        }
    }

    #[test]
    fn trials_that_have_passed_count_with_those_under_way() {
        let begin = Instant::now();
        let (mut breaker, later) = (open(begin), begin + second(5));
        breaker.set_rules(Rules { half_open_trials: 3, ..RULES });
        let first = breaker.enter(later).expect("a trial");
        breaker.on_success(first);
        assert_eq!(std::iter::from_fn(|| breaker.enter(later)).take(100).count(), 2);
    }

    #[test]
    fn rules_that_ask_for_no_more_trials_than_have_passed_close_it() {
        let begin = Instant::now();
        let (mut breaker, later) = (open(begin), begin + second(5));
        let first = breaker.enter(later).expect("a trial");
        breaker.set_rules(Rules { half_open_trials: 1, ..RULES });
        assert_eq!(breaker.state(later), State::HalfOpen, "none has passed");
        breaker.set_rules(RULES);
        breaker.on_success(first);
        breaker.set_rules(Rules { half_open_trials: 1, ..RULES });
        assert_eq!(breaker.state(later), State::Closed);
    }

    #[test]
    fn its_time_ends_to_the_moment_and_each_opening_counts() {
        let begin = Instant::now();
        let (mut breaker, later) = (open(begin), begin + second(5));
        assert_eq!(breaker.state(later - Duration::from_nanos(1)), State::Open);
        assert_eq!((breaker.state(later), breaker.opened()), (State::HalfOpen, 1));
        let trial = breaker.enter(later).expect("a trial");
        breaker.on_failure(trial, later);
        assert_eq!((breaker.state(later), breaker.opened()), (State::Open, 2));
    }
}
