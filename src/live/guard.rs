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
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Waker};
    use std::thread;

    use super::*;

    const BREAKER: breaker::Rules = breaker::Rules {
        failures: 2,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(5),
        half_open_trials: 3,
    };
    const OUTLIER: outlier::Rules = outlier::Rules {
        consecutive_failures: 2,
        failure_ratio: 1.0,
        min_connections: 100,
        eject_for: Duration::from_secs(30),
        max_ejected: 0.5,
    };

    fn breaking(breaker: Option<breaker::Rules>) -> Rules {
        Rules { breaker, outlier: None }
    }

    /// A guard whose breaker has just opened.
    fn open(now: Instant) -> Guard {
        let guard = Guard::new(now, Arc::default());
        guard.set_rules(breaking(Some(BREAKER)));
        for _ in 0..2 {
            guard.enter(now).expect("closed").failed(Duration::ZERO, now);
        }
        guard
    }

    #[test]
    fn without_rules_it_lets_everybody_in_whatever_happens() {
        let (guard, now) = (Guard::new(Instant::now(), Arc::default()), Instant::now());
        for _ in 0..100 {
            guard.enter(now).expect("no rules").failed(Duration::ZERO, now);
        }
        assert!(guard.is_open(now) && !guard.is_ejected(now));
        assert!(guard.circuit(now).is_none() && guard.watched(now).is_none());
    }

    #[test]
    fn without_rules_a_failure_puts_it_behind_the_others_and_one_client_at_a_time_tries_it() {
        let now = Instant::now();
        let guard = Guard::new(now, Arc::default());
        let after = |seconds: f64| now + Duration::from_secs_f64(seconds);
        guard.enter(now).expect("no rules").failed(Duration::from_millis(1), now);
        assert!(guard.is_suspect(after(0.9)) && guard.is_open(after(0.9)));
        assert!(!guard.is_suspect(after(1.1)));
        let trial = guard.enter(after(1.1)).expect("no rules");
        assert!(guard.is_suspect(after(1.2)), "somebody is finding out");
        trial.connected();
        assert!(!guard.is_suspect(after(1.2)));

        guard.enter(now).expect("no rules").failed(Duration::from_secs(2), now);
        assert!(
            guard.is_suspect(after(4.9)) && !guard.is_suspect(after(5.1)),
            "it costs a client two seconds"
        );
    }

    /// The bug: each reload sent everybody back to the dead server, which had the fewest connections.
    #[test]
    fn a_reload_without_rules_leaves_the_doubt_and_one_with_rules_ends_it() {
        let now = Instant::now();
        let guard = Guard::new(now, Arc::default());
        guard.enter(now).expect("no rules").failed(Duration::from_secs(1), now);
        guard.set_rules(Rules::default());
        assert!(guard.is_suspect(now));
        guard.set_rules(breaking(Some(BREAKER)));
        assert!(!guard.is_suspect(now));
    }

    #[test]
    fn a_check_that_finds_it_well_ends_the_doubt() {
        let now = Instant::now();
        let guard = Guard::new(now, Arc::default());
        guard.enter(now).expect("no rules").failed(Duration::from_millis(1), now);
        assert!(guard.is_suspect(now));
        guard.trust();
        assert!(!guard.is_suspect(now));
    }

    #[test]
    fn what_is_open_is_seen_without_a_lock_and_ends_in_time() {
        let now = Instant::now();
        let guard = open(now);
        assert!(!guard.is_open(now + Duration::from_millis(4999)) && guard.enter(now).is_none());
        assert_eq!(guard.circuit(now).expect("a breaker").open_for, Some(BREAKER.open_for));
        let later = now + BREAKER.open_for;
        assert!(guard.is_open(later));
        let trials: Vec<_> = std::iter::from_fn(|| guard.enter(later)).take(100).collect();
        assert_eq!((trials.len(), guard.is_open(later)), (3, false));
        drop(trials);
        assert!(guard.is_open(later), "they came to nothing, and others may try");
    }

    #[test]
    fn rules_that_go_let_everybody_in_and_rules_that_change_keep_the_state() {
        let now = Instant::now();
        let guard = open(now);
        guard.set_rules(breaking(Some(breaker::Rules { failures: 9, ..BREAKER })));
        assert!(!guard.is_open(now));
        guard.set_rules(Rules::default());
        assert!(guard.is_open(now));
    }

    /// The bug: the new breaker counted from 0 again, took the old trial for its own, and lost count.
    #[test]
    fn a_trial_under_an_older_breaker_is_none_of_the_new_one() {
        let now = Instant::now();
        let guard = open(now);
        let later = now + BREAKER.open_for;
        let trial = guard.enter(later).expect("a trial");
        guard.set_rules(Rules::default());
        guard.set_rules(breaking(Some(BREAKER)));
        for _ in 0..2 {
            guard.enter(later).expect("closed").failed(Duration::ZERO, later);
        }
        let again = later + BREAKER.open_for;
        let trials: Vec<_> = std::iter::from_fn(|| guard.enter(again)).take(100).collect();
        drop(trial);
        drop(trials);
        assert_eq!(guard.circuit(again).expect("a breaker").opened, 2);
        assert!(guard.enter(again).is_some(), "each was given back");
    }

    #[test]
    fn workers_that_race_never_have_more_trials_under_way_than_the_rules_say() {
        let now = Instant::now();
        let guard = open(now);
        let later = now + BREAKER.open_for;
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

    #[test]
    fn workers_that_race_never_eject_more_servers_than_the_pool_can_spare() {
        let (now, ward) = (Instant::now(), Arc::<Mutex<Ward>>::default());
        let guards: Vec<_> = (0..4).map(|_| Guard::new(now, Arc::clone(&ward))).collect();
        let numbers: Vec<_> = guards.iter().map(Guard::number).collect();
        ward.lock().expect("whole").fit(&numbers, OUTLIER.max_ejected);
        guards.iter().for_each(|guard| guard.set_rules(Rules { outlier: Some(OUTLIER), breaker: None }));
        thread::scope(|threads| {
            for guard in guards.iter().chain(&guards) {
                threads.spawn(|| {
                    for _ in 0..100 {
                        guard.enter(now).expect("no breaker").failed(Duration::ZERO, now);
                    }
                });
            }
        });
        let out = guards.iter().filter(|guard| guard.is_ejected(now)).count();
        let told = guards.iter().filter_map(|guard| guard.watched(now)?.ejected).count();
        assert_eq!((out, told), (2, 2));
        let later = now + OUTLIER.eject_for;
        assert!(!guards.iter().any(|guard| guard.is_ejected(later)));
    }

    /// The bug: a server that was away for a reload came back ejected, and beyond `max_ejected`.
    #[test]
    fn a_server_that_was_away_while_it_was_ejected_is_in_again() {
        let (now, ward) = (Instant::now(), Arc::<Mutex<Ward>>::default());
        let guard = Guard::new(now, Arc::clone(&ward));
        let fit = |numbers: &[u64]| ward.lock().expect("whole").fit(numbers, OUTLIER.max_ejected);
        fit(&[guard.number(), u64::MAX]);
        guard.set_rules(Rules { outlier: Some(OUTLIER), breaker: None });
        for _ in 0..2 {
            guard.enter(now).expect("no breaker").failed(Duration::ZERO, now);
        }
        fit(&[guard.number(), u64::MAX]);
        guard.end_ejection_without_bed(now);
        assert!(guard.is_ejected(now), "a reload that leaves it in the pool changes nothing");
        fit(&[u64::MAX]);
        fit(&[guard.number(), u64::MAX]);
        guard.end_ejection_without_bed(now);
        assert!(!guard.is_ejected(now));
        assert_eq!(guard.watched(now).expect("rules").ejected, None);
    }

    #[test]
    fn it_rings_for_what_control_tells_of_and_for_nothing_else() {
        let (now, bell) = (Instant::now(), Arc::new(Bell::default()));
        let has_rung = || bell.poll_rung(&Context::from_waker(Waker::noop())).is_ready();
        let guard = Guard::new(now, Arc::default()).with_bell(&bell);
        guard.set_rules(breaking(Some(BREAKER)));
        let rings = |pass: Pass<'_>, is_good: bool, now| {
            match is_good {
                true => _ = pass.connected(),
                false => pass.failed(Duration::ZERO, now),
            }
            has_rung()
        };
        let enter = |now| guard.enter(now).expect("it may be tried");
        assert!(!rings(enter(now), true, now) && !rings(enter(now), false, now));
        assert!(rings(enter(now), false, now), "it opens");
        let later = now + BREAKER.open_for;
        assert!(rings(enter(later), false, later), "a trial fails");
        let later = later + BREAKER.open_for;
        let rings = (0..3).map(|_| rings(enter(later), true, later)).collect::<Vec<_>>();
        assert_eq!(rings, [false, false, true], "it closes");
    }

    #[test]
    fn who_stands_out_and_must_stay_is_counted_and_told() {
        let (now, ward) = (Instant::now(), Arc::<Mutex<Ward>>::default());
        let bell = Arc::new(Bell::default());
        let guard = Guard::new(now, Arc::clone(&ward)).with_bell(&bell);
        guard.set_rules(Rules { outlier: Some(OUTLIER), breaker: None });
        let refused = || guard.watched(now).map(|watched| (watched.refused, watched.refused_for));
        let fail = || guard.enter(now).expect("no breaker").failed(Duration::ZERO, now);
        (0..2).for_each(|_| fail());
        assert_eq!(refused(), Some((0, None)), "the pool does not have it any more");
        ward.lock().expect("whole").fit(&[guard.number()], OUTLIER.max_ejected);
        fail();
        assert_eq!(refused(), Some((1, Some(Cause::InARow(3)))));
        assert!(bell.poll_rung(&Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn a_connection_that_was_made_is_not_yet_a_success() {
        let (now, ward) = (Instant::now(), Arc::<Mutex<Ward>>::default());
        let guard = Guard::new(now, Arc::clone(&ward));
        ward.lock().expect("whole").fit(&[guard.number(), u64::MAX], OUTLIER.max_ejected);
        guard.set_rules(Rules { outlier: Some(OUTLIER), breaker: None });
        for _ in 0..2 {
            assert!(guard.enter(now).expect("no breaker").connected());
            guard.on_service(false, now);
        }
        assert!(guard.is_ejected(now));
    }
}
