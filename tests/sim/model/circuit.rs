//! A breaker as its rules tell it.

use std::time::Instant;

use tidegate::core::breaker::{Rules, State};

#[derive(Clone, Debug, Default)]
pub struct Circuit {
    rules: Option<Rules>,
    /// While it is closed: when the latest failures were.
    failed: Vec<Instant>,
    /// From when on there are trials, while it is not closed.
    open_until: Option<Instant>,
    /// Breakers that there were before this one.
    before: u32,
    /// How often it has opened.
    pub opened: u64,
    /// Trials under way since it opened last, and those that have passed.
    trying: u32,
    passed: u32,
}

/// A connection that was let in: by which breaker, after it had opened so often, and as a trial or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    by: u32,
    opened: u64,
    is_trial: bool,
}

impl Circuit {
    pub fn set_rules(&mut self, rules: Option<Rules>) {
        match (rules, self.rules) {
            (Some(rules), Some(_)) if self.open_until.is_some() && self.passed >= rules.half_open_trials => {
                self.close();
            }
            (Some(_), Some(_)) => {}
            // The trials under way of a breaker that went say nothing to the one that comes.
            _ => *self = Circuit { before: self.before + 1, opened: self.opened, ..Circuit::default() },
        }
        self.rules = rules;
    }

    pub fn may_enter(&self, now: Instant) -> bool {
        let (Some(rules), Some(until)) = (self.rules, self.open_until) else { return true };
        now >= until && self.trying + self.passed < rules.half_open_trials
    }

    pub fn enter(&mut self) -> Mark {
        let is_trial = self.open_until.is_some();
        self.trying += u32::from(is_trial);
        Mark { by: if self.rules.is_some() { self.before } else { 0 }, opened: self.opened, is_trial }
    }

    /// How a connection came out; `None` where nobody knows. Says whether the breaker has opened.
    pub fn end(&mut self, mark: Mark, is_good: Option<bool>, now: Instant) -> bool {
        let Some(rules) = self.rules else { return false };
        let opened = self.opened;
        let is_of_now = mark.is_trial && (mark.by, mark.opened) == (self.before, self.opened);
        let is_trial_of_now = is_of_now && self.open_until.is_some();
        let is_free_of_now = mark.by > 0 && !mark.is_trial && self.open_until.is_none();
        self.trying -= u32::from(is_trial_of_now);
        match is_good {
            Some(true) if is_trial_of_now => {
                self.passed += 1;
                if self.passed >= rules.half_open_trials {
                    self.close();
                }
            }
            Some(false) if is_trial_of_now => self.open(rules, now),
            Some(false) if is_free_of_now => {
                self.failed.push(now);
                self.failed.retain(|at| now - *at <= rules.window);
                if self.failed.len() >= rules.failures as usize {
                    self.open(rules, now);
                }
            }
            _ => {}
        }
        self.opened > opened
    }

    /// The server is seen to be back: whoever waited for its time need not any more. Says whether anybody did.
    pub fn on_recovery(&mut self, now: Instant) -> bool {
        let is_open = self.state(now) == Some(State::Open);
        self.open_until = self.open_until.map(|until| until.min(now));
        is_open
    }

    /// `None`: there is none.
    pub fn state(&self, now: Instant) -> Option<State> {
        self.rules?;
        Some(match self.open_until {
            None => State::Closed,
            Some(until) if now < until => State::Open,
            Some(_) => State::HalfOpen,
        })
    }

    fn open(&mut self, rules: Rules, now: Instant) {
        self.opened += 1;
        self.open_until = Some(now + rules.open_for);
        (self.trying, self.passed) = (0, 0);
        self.failed.clear();
    }

    fn close(&mut self) {
        self.open_until = None;
        (self.trying, self.passed) = (0, 0);
        self.failed.clear();
    }
}
