//! A brake that holds its relay back again and again: when, for how long and how much it lets through
//! between is a function of the seed.

use std::time::{Duration, Instant};

use crate::net::{Brake, Side};

/// The most that is let through at once.
const PORTION_MAX: u64 = 300_000;

pub(super) struct Bumps {
    random: fastrand::Rng,
    until: [Option<Instant>; 2],
    granted: [u64; 2],
}

impl Bumps {
    pub(super) fn new(seed: u64) -> Self {
        Bumps { random: fastrand::Rng::with_seed(seed), until: [None; 2], granted: [0; 2] }
    }
}

impl Brake for Bumps {
    fn ask(&mut self, from: Side, wanted: u64, now: Instant) -> Result<u64, Instant> {
        let until = &mut self.until[from as usize];
        if until.is_none() && self.random.u8(..3) == 0 {
            *until = Some(now + Duration::from_micros(self.random.u64(1..2000)));
        }
        if let Some(at) = until.filter(|at| now < *at) {
            return Err(at);
        }
        *until = None;
        let granted = self.random.u64(1..=wanted.min(PORTION_MAX));
        self.granted[from as usize] = granted;
        Ok(granted)
    }

    fn has_read(&mut self, from: Side, bytes: u64) {
        let granted = std::mem::take(&mut self.granted[from as usize]);
        assert!(granted > 0, "what has been read was granted, and is told once");
        assert!(bytes <= granted, "{bytes} bytes were read of {granted}");
    }
}
