//! Circuit breakers and ejections: `live/guard.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loom::thread;
use tidegate_races::core::outlier::Ward;
use tidegate_races::core::{breaker, outlier};
use tidegate_races::live::{Guard, Rules};
use tidegate_races::sync::Mutex;

use crate::{Steps, Witness, in_every_order, join, with_preemptions};

const BREAKER: breaker::Rules = breaker::Rules {
    failures: 1,
    window: Duration::from_secs(10),
    open_for: Duration::from_secs(5),
    half_open_trials: 1,
};
const OUTLIER: outlier::Rules = outlier::Rules {
    consecutive_failures: 1,
    failure_ratio: 1.0,
    min_connections: 100,
    eject_for: Duration::from_secs(30),
    max_ejected: 0.5,
};

/// A guard whose breaker has opened, and the time at which trials begin.
fn open(rules: breaker::Rules) -> (Arc<Guard>, Instant) {
    let now = Instant::now();
    let guard = Guard::new(now, Arc::default());
    guard.set_rules(Rules { breaker: Some(rules), outlier: None });
    guard.enter(now).expect("it is closed").failed(Duration::ZERO, now);
    (Arc::new(guard), now + rules.open_for)
}

#[test]
fn no_more_are_on_trial_at_once_than_the_rules_say_and_each_that_comes_to_nothing_is_made_anew() {
    with_preemptions(3, || {
        let (guard, later) = open(BREAKER);
        let on_trial = Arc::new(Witness::default());
        let racer = |_| {
            let (guard, on_trial) = (Arc::clone(&guard), Arc::clone(&on_trial));
            thread::spawn(move || {
                let Some(pass) = guard.enter(later) else { return };
                on_trial.enter();
                on_trial.leave();
                drop(pass);
            })
        };
        join((0..3).map(racer).collect::<Vec<_>>());
        assert_eq!(on_trial.most(), 1);
        assert!(guard.is_open(later) && guard.enter(later).is_some(), "no trial was lost");
    });
}

#[test]
fn a_server_found_back_while_clients_come_is_tried_by_no_more_than_the_rules_say() {
    with_preemptions(3, || {
        let (guard, later) = open(BREAKER);
        let now = later - BREAKER.open_for;
        let on_trial = Arc::new(Witness::default());
        let racer = |_| {
            let (guard, on_trial) = (Arc::clone(&guard), Arc::clone(&on_trial));
            thread::spawn(move || {
                let Some(pass) = guard.enter(now) else { return };
                on_trial.enter();
                on_trial.leave();
                drop(pass);
            })
        };
        let racers = (0..2).map(racer).collect::<Vec<_>>();
        guard.recover(now);
        join(racers);
        assert!(on_trial.most() <= 1);
        assert!(guard.is_open(now) && guard.enter(now).is_some(), "no trial was lost");
    });
}

#[test]
fn of_two_trials_the_one_that_fails_decides_whichever_ends_first() {
    in_every_order(|| {
        let (guard, later) = open(breaker::Rules { half_open_trials: 2, ..BREAKER });
        let racer = |is_good| {
            let guard = Arc::clone(&guard);
            thread::spawn(move || match guard.enter(later) {
                Some(pass) if is_good => _ = pass.connected(),
                Some(pass) => pass.failed(Duration::ZERO, later),
                None => assert!(is_good, "the other has opened it again"),
            })
        };
        join([true, false].map(racer));
        let circuit = guard.circuit(later).expect("it has a breaker");
        assert_eq!((circuit.state, circuit.opened), (breaker::State::Open, 2));
        assert!(!guard.is_open(later), "also without the lock");
        let again = later + BREAKER.open_for;
        let trials: Vec<_> = std::iter::from_fn(|| guard.enter(again)).collect();
        assert_eq!(trials.len(), 2, "all trials are there again");
    });
}

#[test]
fn servers_that_fail_at_once_are_not_all_ejected() {
    in_every_order(|| {
        let (now, ward) = (Instant::now(), Arc::new(Mutex::new(Ward::default())));
        let guards = [(); 2].map(|()| Arc::new(Guard::new(now, Arc::clone(&ward))));
        ward.lock().expect("whole").fit(&guards.each_ref().map(|guard| guard.number()), OUTLIER.max_ejected);
        guards.iter().for_each(|guard| guard.set_rules(Rules { outlier: Some(OUTLIER), breaker: None }));
        let worker = |guard: &Arc<Guard>| {
            let guard = Arc::clone(guard);
            thread::spawn(move || guard.enter(now).expect("it has no breaker").failed(Duration::ZERO, now))
        };
        join(guards.each_ref().map(worker));
        let out = guards.iter().filter(|guard| guard.is_ejected(now)).count();
        let told = guards.iter().filter_map(|guard| guard.watched(now)?.ejected).count();
        assert_eq!((out, told), (1, 1));
    });
}

#[test]
fn a_reload_that_takes_the_rules_away_leaves_nobody_out() {
    in_every_order(|| {
        let (now, ward) = (Instant::now(), Arc::new(Mutex::new(Ward::default())));
        let guard = Arc::new(Guard::new(now, Arc::clone(&ward)));
        ward.lock().expect("whole").fit(&[guard.number(), u64::MAX], OUTLIER.max_ejected);
        guard.set_rules(Rules { outlier: Some(OUTLIER), breaker: Some(BREAKER) });
        let worker = thread::spawn({
            let guard = Arc::clone(&guard);
            move || guard.enter(now).expect("it is closed").failed(Duration::ZERO, now)
        });
        guard.set_rules(Rules::default());
        join([worker]);
        assert!(guard.is_open(now) && !guard.is_ejected(now) && guard.enter(now).is_some());
    });
}

#[test]
fn a_server_in_doubt_is_tried_by_one_client_of_each_worker_at_the_most() {
    in_every_order(|| {
        let now = Instant::now();
        let guard = Arc::new(Guard::new(now, Arc::default()));
        guard.enter(now).expect("no rules").failed(Duration::ZERO, now);
        let later = now + Duration::from_secs(2);
        let steps = Arc::new(Steps::default());
        let worker = |_| {
            let (guard, steps) = (Arc::clone(&guard), Arc::clone(&steps));
            thread::spawn(move || {
                let tries = (0..2).filter(|_| {
                    steps.step();
                    let is_chosen = !guard.is_suspect(later);
                    steps.step();
                    is_chosen && guard.enter(later).is_some()
                });
                tries.count()
            })
        };
        let tries = join((0..2).map(worker).collect::<Vec<_>>());
        assert!(tries.iter().all(|tries| *tries <= 1) && tries.iter().sum::<usize>() >= 1, "{tries:?}");
    });
}
