//! May a server be tried, by what has become of those who tried before.
//!
//! Decides nothing itself: that is `core/breaker.rs`. It is shared by all workers, so the rules hold
//! exactly, under a lock that is taken twice for each connect and never for a byte; a server
//! without rules costs one load. [`Guard::is_open`] takes no lock: it may be one connect behind,
//! and [`Guard::enter`] then has the last word.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::core::breaker::{self, Breaker, Entry, Gate};

/// One server's. It outlives every reload.
#[derive(Debug)]
pub struct Guard {
    /// Where its count of microseconds begins.
    born: Instant,
    is_on: AtomicBool,
    /// From when on the breaker may let somebody in; see [`Guard::ticks`]. 0 is from always.
    gate: AtomicU64,
    inside: Mutex<Option<Breaker>>,
}

/// What the views tell of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    pub state: breaker::State,
    /// Until trials begin.
    pub open_for: Option<Duration>,
    /// How often it has opened.
    pub opened: u64,
}

impl Guard {
    pub fn new(born: Instant) -> Self {
        Guard { born, is_on: AtomicBool::new(false), gate: AtomicU64::new(0), inside: Mutex::new(None) }
    }

    /// The rules of the plan in use. What is known under the old ones stays known.
    pub fn set_rules(&self, rules: Option<breaker::Rules>) {
        let mut inside = self.inside();
        match (rules, &mut *inside) {
            (Some(rules), Some(breaker)) => breaker.set_rules(rules),
            (rules, breaker) => *breaker = rules.map(Breaker::new),
        }
        self.is_on.store(inside.is_some(), Ordering::Relaxed);
        self.note_gate(inside.as_ref());
    }

    /// Is it worth trying to enter.
    pub fn is_open(&self, now: Instant) -> bool {
        let gate = self.gate.load(Ordering::Relaxed);
        gate == 0 || gate <= self.ticks(now)
    }

    /// Lets a connection in that is about to be made, or says no.
    pub fn enter(&self, now: Instant) -> Option<Pass<'_>> {
        if !self.is_on.load(Ordering::Relaxed) {
            return Some(Pass { guard: self, entry: None });
        }
        let mut inside = self.inside();
        let Some(breaker) = &mut *inside else { return Some(Pass { guard: self, entry: None }) };
        let entry = breaker.enter(now);
        self.note_gate(Some(breaker));
        entry.map(|entry| Pass { guard: self, entry: Some(entry) })
    }

    /// `None`: it has no breaker.
    pub fn circuit(&self, now: Instant) -> Option<Circuit> {
        let inside = self.inside();
        let breaker = inside.as_ref()?;
        let open_for = match breaker.gate() {
            Gate::At(until) => Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero()),
            Gate::Now | Gate::Later => None,
        };
        Some(Circuit { state: breaker.state(now), open_for, opened: breaker.opened() })
    }

    /// Microseconds since it was made, from 1 on.
    fn ticks(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.born).as_micros();
        u64::try_from(since).map_or(u64::MAX - 1, |since| since.saturating_add(1))
    }

    fn note_gate(&self, breaker: Option<&Breaker>) {
        let gate = match breaker.map_or(Gate::Now, Breaker::gate) {
            Gate::Now => 0,
            Gate::At(until) => self.ticks(until),
            Gate::Later => u64::MAX,
        };
        self.gate.store(gate, Ordering::Relaxed);
    }

    fn tell(&self, act: impl FnOnce(&mut Breaker)) {
        let mut inside = self.inside();
        if let Some(breaker) = &mut *inside {
            act(breaker);
        }
        self.note_gate(inside.as_ref());
    }

    /// Whoever panicked in here has changed one breaker by one step or not at all.
    fn inside(&self) -> MutexGuard<'_, Option<Breaker>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to connect to a server. Whoever has it says how the connect went; dropping it instead
/// says nothing of the server.
#[derive(Debug)]
pub struct Pass<'a> {
    guard: &'a Guard,
    /// `None`: nobody asks how it went.
    entry: Option<Entry>,
}

impl Pass<'_> {
    pub fn connected(mut self) {
        if let Some(entry) = self.entry.take() {
            self.guard.tell(|breaker| breaker.on_success(entry));
        }
    }

    pub fn failed(mut self, now: Instant) {
        if let Some(entry) = self.entry.take() {
            self.guard.tell(|breaker| _ = breaker.on_failure(entry, now));
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.guard.tell(|breaker| breaker.on_abandoned(entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    const RULES: breaker::Rules = breaker::Rules {
        failures: 2,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(5),
        half_open_trials: 3,
    };

    /// A guard whose breaker has just opened.
    fn open(now: Instant) -> Guard {
        let guard = Guard::new(now);
        guard.set_rules(Some(RULES));
        for _ in 0..2 {
            guard.enter(now).expect("closed").failed(now);
        }
        guard
    }

    #[test]
    fn without_rules_it_lets_everybody_in_whatever_happens() {
        let (guard, now) = (Guard::new(Instant::now()), Instant::now());
        for _ in 0..100 {
            guard.enter(now).expect("no rules").failed(now);
        }
        assert!(guard.is_open(now) && guard.circuit(now).is_none());
    }

    #[test]
    fn what_is_open_is_seen_without_a_lock_and_ends_in_time() {
        let now = Instant::now();
        let guard = open(now);
        assert!(!guard.is_open(now + Duration::from_millis(4999)) && guard.enter(now).is_none());
        assert_eq!(guard.circuit(now).expect("a breaker").open_for, Some(RULES.open_for));
        let later = now + RULES.open_for;
        assert!(guard.is_open(later));
        let trials: Vec<_> = std::iter::from_fn(|| guard.enter(later)).collect();
        assert_eq!((trials.len(), guard.is_open(later)), (3, false));
        drop(trials);
        assert!(guard.is_open(later), "they came to nothing, and others may try");
    }

    #[test]
    fn rules_that_go_let_everybody_in_and_rules_that_change_keep_the_state() {
        let now = Instant::now();
        let guard = open(now);
        guard.set_rules(Some(breaker::Rules { failures: 9, ..RULES }));
        assert!(!guard.is_open(now));
        guard.set_rules(None);
        assert!(guard.is_open(now));
    }

    #[test]
    fn workers_that_race_never_have_more_trials_under_way_than_the_rules_say() {
        let now = Instant::now();
        let guard = open(now);
        let later = now + RULES.open_for;
        let (under_way, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    for _ in 0..2_000 {
                        if let Some(pass) = guard.enter(later) {
                            most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            thread::yield_now(); // so that others come while it is under way
                            under_way.fetch_sub(1, Ordering::SeqCst);
                            drop(pass);
                        }
                    }
                });
            }
        });
        assert!((1..=3).contains(&most.into_inner()));
        assert!(guard.is_open(later), "every trial was given back");
    }
}
