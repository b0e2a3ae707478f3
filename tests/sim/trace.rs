//! What has happened: as one number, as the last few lines, and how often of each kind.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::thread;

/// Lines that a failure shows.
const LINES_SHOWN: usize = 40;

/// Says what led to it when the run fails, wherever it fails.
pub struct Trace {
    seed: u64,
    /// Steps begun.
    pub step: u64,
    hash: u64,
    last: VecDeque<String>,
    counts: BTreeMap<&'static str, u64>,
}

impl Trace {
    pub fn new(seed: u64) -> Self {
        // The offset of FNV-1a, whose steps `add` makes.
        Trace { seed, step: 0, hash: 0xcbf2_9ce4_8422_2325, last: VecDeque::new(), counts: BTreeMap::new() }
    }

    /// Something has happened: a word that it is counted by, and what there is to say of it.
    pub fn add(&mut self, word: &'static str, what: fmt::Arguments<'_>) {
        *self.counts.entry(word).or_default() += 1;
        let line = format!("{:>6} {word} {what}", self.step);
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.last.len() == LINES_SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// Of all that has happened, in order.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}

impl Drop for Trace {
    #[allow(clippy::print_stderr, reason = "a failing test's words go where its panic goes")]
    fn drop(&mut self) {
        if thread::panicking() {
            let (seed, step) = (self.seed, self.step);
            eprintln!("the simulation of seed {seed} failed in step {step}; what led to it:");
            self.last.iter().for_each(|line| eprintln!("{line}"));
            eprintln!(
                "again: TIDEGATE_SIM_SEED={seed} TIDEGATE_SIM_STEPS={step} cargo test --locked --test sim"
            );
        }
    }
}
