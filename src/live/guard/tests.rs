//! What each claim of `guard.rs` means.

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
    assert!(guard.is_suspect(after(4.9)) && !guard.is_suspect(after(5.1)), "it costs a client two seconds");
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
fn a_server_that_its_checks_find_back_may_be_tried_at_once() {
    let (now, bell) = (Instant::now(), Arc::new(Bell::default()));
    let guard = open(now).with_bell(&bell);
    let has_rung = || bell.poll_rung(&Context::from_waker(Waker::noop())).is_ready();
    guard.recover(now);
    assert!(guard.is_open(now) && has_rung());
    let trials: Vec<_> = std::iter::from_fn(|| guard.enter(now)).take(100).collect();
    guard.recover(now);
    assert_eq!((trials.len(), guard.is_open(now), has_rung()), (3, false, false));
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
