//! May a server be tried, by what has become of those who tried before.
//!
//! Decides nothing itself: that is `core/breaker.rs` and `core/outlier.rs`. It is shared by all
//! workers, so the rules hold exactly, under a lock that is taken a few times for each connection
//! and never for a byte; a server without rules costs two loads. [`Guard::is_open`] takes no
//! lock: it may be one connect behind, and [`Guard::enter`] then has the last word.
//!
//! What control is to tell of (an ejection, a breaker that opens or closes) rings the pool's bell, and
//! control then asks: nothing waits here for anybody to take it.
//!
//! A server without rules that did not take a client is in doubt for a while: asked after all others, and
//! by one client at a time. Else the fewest connections of all would draw every client to it.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::bell::Bell;
use crate::core::breaker::{self, Breaker, Entry, Gate};
use crate::core::outlier::{self, Cause, Outlier, Ward};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, Numbers};

/// How long a server that did not take a client is in doubt, as times of what it took to find out: the
/// clients who find out lose a fifth of the time with it.
const DOUBT_TIMES: u32 = 4;
/// At least so long, so that one client a second tries a server that refuses at once; and at most so
/// long, so that a server that is back is soon found out.
const DOUBT_LEAST: Duration = Duration::from_secs(1);
const DOUBT_MOST: Duration = Duration::from_secs(5);

/// The first of the ticks: whatever lasts until then is over.
const LONG_AGO: u64 = 1;

/// One server's. It outlives every reload.
#[derive(Debug)]
pub struct Guard {
    /// Where its count of microseconds begins.
    born: Instant,
    /// Its number in the ward; no other server of the process has it.
    number: u64,
    ward: Arc<Mutex<Ward>>,
    bell: Arc<Bell>,
    is_on: AtomicBool,
    /// From when on the breaker may let somebody in; see [`Guard::ticks`]. 0 is from always.
    gate: AtomicU64,
    /// Until when it is ejected; 0 is not.
    ejected_until: AtomicU64,
    /// Until when others are asked first, because it did not take its last client; 0 is not, since it did.
    /// Where there are rules, it is they who say who is asked first: it is [`LONG_AGO`] then.
    doubted_until: AtomicU64,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    breaker: Option<Breaker>,
    /// How often the breakers before this one had opened.
    opened: u64,
    outlier: Option<Outlier>,
    last_fault: Fault,
}

/// In what a server failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    Connect,
    /// It took a connection and did not serve it.
    Service,
}

/// The rules of a pool for each of its servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    pub breaker: Option<breaker::Rules>,
    pub outlier: Option<outlier::Rules>,
}

/// What the views tell of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    pub state: breaker::State,
    /// Until trials begin.
    pub open_for: Option<Duration>,
    /// How often it has opened, and why the last time.
    pub opened: u64,
    pub cause: Option<breaker::Cause>,
    pub rules: breaker::Rules,
}

/// What the views tell of ejections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// While it is ejected: for how long yet, and why.
    pub ejected: Option<(Duration, Cause)>,
    /// How often it was.
    pub ejections: u64,
    /// The ejection under way, or the last one that was: for how long in all, and why.
    pub last: Option<(Duration, Cause)>,
    /// How often it stayed in although it stood out, since as many were out as may be; and why the last
    /// time.
    pub refused: u64,
    pub refused_for: Option<Cause>,
    pub last_fault: Fault,
}

impl Guard {
    /// In the ward of its pool.
    pub fn new(born: Instant, ward: Arc<Mutex<Ward>>) -> Self {
        static NUMBERS: Numbers = Numbers::from(0);
        Guard {
            born,
            number: NUMBERS.next(),
            ward,
            bell: Arc::default(),
            is_on: AtomicBool::new(false),
            gate: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            doubted_until: AtomicU64::new(0),
            inside: Mutex::default(),
        }
    }

    /// The same, ringing that bell.
    pub fn with_bell(self, bell: &Arc<Bell>) -> Self {
        Guard { bell: Arc::clone(bell), ..self }
    }

    /// Its number in the ward.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The rules of the plan in use. What is known under the old ones stays known.
    pub fn set_rules(&self, rules: Rules) {
        let mut inside = self.inside();
        match (rules.breaker, &mut inside.breaker) {
            (Some(rules), Some(breaker)) => breaker.set_rules(rules),
            (Some(rules), None) => inside.breaker = Some(Breaker::after(rules, inside.opened)),
            (None, Some(breaker)) => {
                inside.opened = breaker.opened();
                inside.breaker = None;
            }
            (None, None) => {}
        }
        match (rules.outlier, &mut inside.outlier) {
            (Some(rules), Some(outlier)) => outlier.set_rules(rules),
            (rules, outlier) => *outlier = rules.map(Outlier::new),
        }
        if inside.outlier.is_none() {
            self.ejected_until.store(0, Ordering::Relaxed);
        }
        let is_on = inside.breaker.is_some() || inside.outlier.is_some();
        self.is_on.store(is_on, Ordering::Relaxed);
        if is_on {
            // From here on the rules say who is asked.
            self.doubted_until.fetch_min(LONG_AGO, Ordering::Relaxed);
        }
        self.note_gate(&inside);
    }

    /// Is it worth trying to enter.
    pub fn is_open(&self, now: Instant) -> bool {
        let gate = self.gate.load(Ordering::Relaxed);
        gate == 0 || gate <= self.ticks(now)
    }

    pub fn is_ejected(&self, now: Instant) -> bool {
        self.is_before(&self.ejected_until, now)
    }

    /// Is it better asked after all others: ejected, or without rules and in doubt.
    pub fn is_suspect(&self, now: Instant) -> bool {
        self.is_ejected(now) || self.is_before(&self.doubted_until, now)
    }

    /// It did not take the last client that tried to connect, as far as is known.
    pub fn has_failed(&self) -> bool {
        self.doubted_until.load(Ordering::Relaxed) != 0
    }

    fn is_before(&self, until: &AtomicU64, now: Instant) -> bool {
        let until = until.load(Ordering::Relaxed);
        until != 0 && self.ticks(now) < until
    }

    /// A server that a reload took away while it was ejected, and that another brought back: its bed may be
    /// somebody else's by now, so it is in again.
    pub fn end_ejection_without_bed(&self, now: Instant) {
        if !self.is_ejected(now) {
            return;
        }
        let mut inside = self.inside();
        let has_bed = self.ward.lock().unwrap_or_else(PoisonError::into_inner).holds(self.number);
        if let Some(outlier) = inside.outlier.as_mut().filter(|_| !has_bed) {
            outlier.pardon();
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// Its check has found it well.
    pub fn trust(&self) {
        self.doubted_until.store(0, Ordering::Relaxed);
    }

    /// Its checks have found it back: an open breaker lets trials begin.
    pub fn recover(&self, now: Instant) {
        let mut inside = self.inside();
        let is_news = inside.breaker.as_mut().is_some_and(|breaker| breaker.on_recovery(now));
        self.note_gate(&inside);
        drop(inside);
        if is_news {
            self.bell.ring();
        }
    }

    /// Lets a connection in that is about to be made, or says no.
    pub fn enter(&self, now: Instant) -> Option<Pass<'_>> {
        if !self.is_on.load(Ordering::Relaxed) {
            if self.doubted_until.load(Ordering::Relaxed) != 0 {
                // One client tries it, and others wait how that goes.
                self.doubted_until.fetch_max(self.ticks(now + DOUBT_LEAST), Ordering::Relaxed);
            }
            return Some(Pass { guard: self, entry: None, is_watched: false });
        }
        let mut inside = self.inside();
        let is_watched = inside.outlier.is_some();
        let Some(breaker) = &mut inside.breaker else {
            return Some(Pass { guard: self, entry: None, is_watched });
        };
        let entry = breaker.enter(now);
        self.note_gate(&inside);
        entry.map(|entry| Pass { guard: self, entry: Some(entry), is_watched })
    }

    /// A connection that was made has shown that the server works, or that it does not.
    pub fn on_service(&self, is_good: bool, now: Instant) {
        self.on_result(if is_good { Ok(()) } else { Err(Fault::Service) }, now);
    }

    fn on_result(&self, result: Result<(), Fault>, now: Instant) {
        let is_news = self.judge(&mut self.inside(), result, now);
        if is_news {
            self.bell.ring();
        }
    }

    /// `None`: it has no breaker.
    pub fn circuit(&self, now: Instant) -> Option<Circuit> {
        let inside = self.inside();
        let breaker = inside.breaker.as_ref()?;
        let open_for = match breaker.gate() {
            Gate::At(until) => Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero()),
            Gate::Now | Gate::Later => None,
        };
        let (opened, cause, rules) = (breaker.opened(), breaker.cause(), breaker.rules());
        Some(Circuit { state: breaker.state(now), open_for, opened, cause, rules })
    }

    /// `None`: nobody looks out for outliers.
    pub fn watched(&self, now: Instant) -> Option<Watched> {
        let inside = self.inside();
        let outlier = inside.outlier.as_ref()?;
        let ejected = outlier.ejected(now).map(|ejection| (ejection.until - now, ejection.cause));
        let last = outlier.last().map(|ejection| (ejection.lasts, ejection.cause));
        let (refused, refused_for) = outlier.refused();
        let last_fault = inside.last_fault;
        Some(Watched { ejected, ejections: outlier.ejections(), last, refused, refused_for, last_fault })
    }

    /// Others are asked first for a while. A server that made its client wait is asked again so much later.
    fn doubt(&self, took: Duration, now: Instant) {
        let until = now + (took * DOUBT_TIMES).clamp(DOUBT_LEAST, DOUBT_MOST);
        self.doubted_until.store(self.ticks(until), Ordering::Relaxed);
    }

    /// Says whether that is news for control.
    fn judge(&self, inside: &mut Inside, result: Result<(), Fault>, now: Instant) -> bool {
        let Some(outlier) = &mut inside.outlier else { return false };
        let Err(fault) = result else {
            outlier.on_success(now);
            return false;
        };
        inside.last_fault = fault;
        let Some(ejection) = outlier.on_failure(now) else { return false };
        let mut ward = self.ward.lock().unwrap_or_else(PoisonError::into_inner);
        if ward.admit(self.number, ejection.until, now) {
            outlier.eject(ejection);
            self.ejected_until.store(self.ticks(ejection.until), Ordering::Relaxed);
        } else if ward.knows(self.number) {
            outlier.refuse(ejection);
        } else {
            return false;
        }
        true
    }

    /// Microseconds since it was made, from 1 on.
    fn ticks(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.born).as_micros();
        u64::try_from(since).map_or(u64::MAX - 1, |since| since.saturating_add(1))
    }

    fn note_gate(&self, inside: &Inside) {
        let gate = match inside.breaker.as_ref().map_or(Gate::Now, Breaker::gate) {
            Gate::Now => 0,
            Gate::At(until) => self.ticks(until),
            Gate::Later => u64::MAX,
        };
        self.gate.store(gate, Ordering::Relaxed);
    }

    /// Whoever panicked in here has changed one thing by one step or not at all.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to connect to a server. Whoever has it says how the connect went; dropping it instead
/// says nothing of the server.
#[derive(Debug)]
pub struct Pass<'a> {
    guard: &'a Guard,
    /// `None`: there is no breaker to be told, or it has been.
    entry: Option<Entry>,
    is_watched: bool,
}

impl Pass<'_> {
    /// Says whether [`Guard::on_service`] is to hear what follows.
    pub fn connected(mut self) -> bool {
        self.tell_breaker(Breaker::on_success);
        if self.guard.doubted_until.load(Ordering::Relaxed) != 0 {
            self.guard.doubted_until.store(0, Ordering::Relaxed);
        }
        self.is_watched
    }

    /// It did not take the client, and took so long for that.
    pub fn failed(mut self, took: Duration, now: Instant) {
        if !self.guard.is_on.load(Ordering::Relaxed) {
            return self.guard.doubt(took, now);
        }
        self.guard.doubted_until.store(LONG_AGO, Ordering::Relaxed);
        self.tell_breaker(|breaker, entry| _ = breaker.on_failure(entry, now));
        if self.is_watched {
            self.guard.on_result(Err(Fault::Connect), now);
        }
    }

    fn tell_breaker(&mut self, tell: impl FnOnce(&mut Breaker, Entry)) {
        let Some(entry) = self.entry.take() else { return };
        let mut inside = self.guard.inside();
        let mut is_news = false;
        if let Some(breaker) = &mut inside.breaker {
            let before = (breaker.opened(), breaker.is_closed());
            tell(breaker, entry);
            is_news = before != (breaker.opened(), breaker.is_closed());
        }
        self.guard.note_gate(&inside);
        drop(inside);
        if is_news {
            self.guard.bell.ring();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.tell_breaker(Breaker::on_abandoned);
    }
}

#[cfg(test)]
mod tests;
