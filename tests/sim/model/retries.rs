//! How many retries there were, and how many of them in vain.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The budget looks back at least so long, and at most twice that.
const HALF: Duration = Duration::from_secs(5);

/// In vain while it looks back, whatever the traffic.
const LEAST: f64 = 100.0;

#[derive(Clone, Debug, Default)]
pub struct Retries {
    connections: VecDeque<Instant>,
    in_vain: VecDeque<Instant>,
    pub under_way: usize,
    /// Of those, on servers that had not taken their last client.
    pub bad: usize,
}

impl Retries {
    pub fn on_connection(&mut self, now: Instant) {
        self.connections.push_back(now);
    }

    pub fn on_end(&mut self, is_bad: bool, found: Option<bool>, now: Instant) {
        self.under_way -= 1;
        self.bad -= usize::from(is_bad);
        if found == Some(false) {
            self.in_vain.push_back(now);
        }
    }

    /// One was allowed, or was not.
    pub fn on_take(&mut self, share: f64, is_bad: bool, was_allowed: bool, now: Instant) {
        for past in [&mut self.connections, &mut self.in_vain] {
            while past.front().is_some_and(|at| now - *at > 2 * HALF) {
                past.pop_front();
            }
        }
        let of_late = |past: &VecDeque<Instant>| past.iter().filter(|at| now - **at < HALF).count() as f64;
        if was_allowed {
            let most = LEAST + share * self.connections.len() as f64;
            let certain = of_late(&self.in_vain) + if is_bad { self.bad as f64 } else { 0.0 };
            assert!(certain < most, "more retries in vain, or to be, than the share: {certain} of {most}");
            self.under_way += 1;
            self.bad += usize::from(is_bad);
        } else {
            // Traffic is looked at when somebody retries: after a quiet while it may be taken for none.
            let doubtful = (self.in_vain.len() + self.under_way) as f64;
            assert!(doubtful >= LEAST, "refused, with {doubtful} in vain or under way");
        }
    }
}
