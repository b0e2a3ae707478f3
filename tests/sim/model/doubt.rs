//! A server that did not take its last client.

use std::time::{Duration, Instant};

#[derive(Clone, Debug, Default)]
pub struct Doubt {
    has_rules: bool,
    until: Option<Instant>,
    /// Whether there are rules or not.
    pub has_failed: bool,
}

impl Doubt {
    pub fn set_rules(&mut self, has_rules: bool) {
        *self = Doubt { has_rules, until: self.until.filter(|_| !has_rules), has_failed: self.has_failed };
    }

    pub fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// One client tries it, and others wait how that goes.
    pub fn enter(&mut self, now: Instant) {
        if !self.has_rules && self.has_failed {
            let second = now + Duration::from_secs(1);
            self.until = Some(self.until.map_or(second, |until| until.max(second)));
        }
    }

    pub fn on_failure(&mut self, took: Duration, now: Instant) {
        self.has_failed = true;
        if !self.has_rules {
            let fourfold = (took * 4).clamp(Duration::from_secs(1), Duration::from_secs(5));
            self.until = Some(now + fourfold);
        }
    }

    pub fn trust(&mut self) {
        (self.until, self.has_failed) = (None, false);
    }
}
