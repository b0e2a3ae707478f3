//! What one client has met in its search, told as lists and counts.

use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Met {
    pub begun: Instant,
    /// Servers asked, one as often as it was.
    pub asked: u32,
    /// For each asked after the first: had that one failed its last client.
    pub retries: Vec<bool>,
    /// Who did not take it, and has not been forgiven.
    refused: Vec<u64>,
    silent: Vec<u64>,
    pauses: u32,
    pub pause_end: Option<Instant>,
    /// Since the last pause somebody had no room when others were chosen.
    pub was_full: bool,
}

impl Met {
    pub fn new(now: Instant) -> Self {
        Met {
            begun: now,
            asked: 0,
            retries: Vec::new(),
            refused: Vec::new(),
            silent: Vec::new(),
            pauses: 0,
            pause_end: None,
            was_full: false,
        }
    }

    pub fn is_new(&self, server: u64) -> bool {
        !self.refused.contains(&server) && !self.silent.contains(&server)
    }

    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Another search of the pool for the same client comes after this one.
    pub fn anew(self, now: Instant) -> Self {
        Met { refused: self.refused, silent: self.silent, ..Met::new(now) }
    }

    pub fn on_ask(&mut self, is_bad: bool) {
        if self.asked > 0 {
            self.retries.push(is_bad);
        }
        self.asked += 1;
    }

    pub fn on_failure(&mut self, server: u64, has_refused: bool) {
        let list = if has_refused { &mut self.refused } else { &mut self.silent };
        list.push(server);
    }

    /// It is awake, since a pause is over or something has changed. How many of those that failed have risen.
    pub fn on_awake(&mut self, has_risen: impl Fn(u64) -> bool, now: Instant) -> usize {
        let before = self.refused.len() + self.silent.len();
        self.refused.retain(|server| !has_risen(*server));
        self.silent.retain(|server| !has_risen(*server));
        let risen = before - self.refused.len() - self.silent.len();
        if self.pause_end.is_some_and(|end| end <= now) {
            (self.pause_end, self.refused) = (None, Vec::new());
        }
        self.was_full = false;
        risen
    }

    /// The longest that the next pause may be.
    pub fn whole(&self, backoff: Duration, most: Duration) -> Duration {
        backoff.saturating_mul(1 << self.pauses.min(20)).min(most)
    }

    /// The pause that it makes goes on until it is over, whatever wakes the client meanwhile.
    pub fn on_pause(&mut self, until: Instant, whole: Duration, now: Instant) {
        match self.pause_end {
            Some(end) => assert_eq!(until, end, "a pause that was broken off is another"),
            None => {
                let pause = until - now;
                assert!(whole / 2 <= pause && pause <= whole, "a pause of {pause:?} for {whole:?}");
                self.pauses += 1;
                self.pause_end = Some(until);
            }
        }
    }
}
