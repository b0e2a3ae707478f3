//! Limits: `core/limit.rs`.

use std::sync::Arc;

use loom::thread;
use tidegate_races::core::limit::Places;

use crate::{Witness, in_every_order, join, with_preemptions};

/// Takes a place and gives it back, as a connection does; says how many were taken then.
fn come_and_go(places: &Places, inside: &Witness) -> Option<usize> {
    let taken = places.take()?;
    inside.enter();
    inside.leave();
    places.give_back();
    Some(taken)
}

#[test]
fn three_that_race_for_two_places_never_hold_more_and_leave_none_behind() {
    with_preemptions(3, || {
        let (places, inside) = (Arc::new(Places::new(2)), Arc::new(Witness::default()));
        let racer = |_| {
            let (places, inside) = (Arc::clone(&places), Arc::clone(&inside));
            thread::spawn(move || come_and_go(&places, &inside))
        };
        let counts: Vec<_> = join((0..3).map(racer).collect::<Vec<_>>()).into_iter().flatten().collect();
        assert!(inside.most() <= 2, "{} held 2 places", inside.most());
        assert!(counts.len() >= 2 && counts.iter().all(|count| (1..=2).contains(count)), "{counts:?}");
        assert_eq!(places.taken(), 0);
    });
}

#[test]
fn who_is_refused_takes_nothing_from_the_next() {
    in_every_order(|| {
        let places = Arc::new(Places::new(1));
        let racer = |_| {
            let places = Arc::clone(&places);
            thread::spawn(move || places.take().is_some())
        };
        let won = join((0..2).map(racer).collect::<Vec<_>>()).into_iter().filter(|won| *won).count();
        assert_eq!((won, places.taken()), (1, 1));
        places.give_back();
        assert_eq!(places.take(), Some(1));
    });
}

#[test]
fn a_limit_that_falls_meanwhile_holds_for_whoever_comes_after_it() {
    with_preemptions(3, || {
        let (places, inside) = (Arc::new(Places::new(2)), Arc::new(Witness::default()));
        let racer = |_| {
            let (places, inside) = (Arc::clone(&places), Arc::clone(&inside));
            thread::spawn(move || come_and_go(&places, &inside))
        };
        let racers: Vec<_> = (0..2).map(racer).collect();
        places.set_limit(1);
        let after = places.take();
        assert!(after.is_none_or(|taken| taken == 1), "{after:?} places of 1");
        join(racers);
        assert!(inside.most() <= 2);
        assert_eq!(places.taken(), usize::from(after.is_some()));
    });
}
