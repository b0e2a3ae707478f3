//! Rates and the connections of a source: `core/bucket.rs` and `live/gate.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loom::thread;
use tidegate_races::core::bucket::{Bucket, Rate};
use tidegate_races::core::prefix::Prefix;
use tidegate_races::live::gate::Gate;

use crate::{Witness, in_every_order, join, with_preemptions};

const TWO_A_SECOND: Rate = Rate { count: 2, per: Duration::from_secs(1) };

/// How many get through, each by a clock of its own.
fn got_through(clocks_ms: &[u64]) -> usize {
    let bucket = Arc::new(Bucket::default());
    let racer = |ms: &u64| {
        let (bucket, now) = (Arc::clone(&bucket), Duration::from_millis(*ms));
        thread::spawn(move || bucket.take(TWO_A_SECOND, now).is_ok())
    };
    join(clocks_ms.iter().map(racer).collect::<Vec<_>>()).into_iter().filter(|got| *got).count()
}

#[test]
fn three_that_race_for_two_find_two() {
    in_every_order(|| assert_eq!(got_through(&[0, 0, 0]), 2));
}

#[test]
fn a_worker_whose_clock_lags_gains_nothing_by_it() {
    // By the last clock one more has come back; whoever lags behind it may find the bucket emptier.
    in_every_order(|| assert!((1..=3).contains(&got_through(&[0, 0, 500]))));
    in_every_order(|| assert!((1..=2).contains(&got_through(&[499, 0, 250]))));
}

#[test]
fn a_bucket_of_which_many_take_is_never_fuller_than_it_would_be_for_one() {
    with_preemptions(3, || {
        let bucket = Arc::new(Bucket::default());
        let racer = |_| {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || {
                (0..2).filter(|_| bucket.take(TWO_A_SECOND, Duration::ZERO).is_ok()).count()
            })
        };
        let got: usize = join((0..2).map(racer).collect::<Vec<_>>()).into_iter().sum();
        assert_eq!(got, 2);
        assert_eq!(bucket.take(TWO_A_SECOND, Duration::ZERO), Err(Duration::from_millis(500)));
    });
}

#[test]
fn a_source_never_has_more_connections_than_its_limit() {
    with_preemptions(3, || {
        let (gate, inside) = (Gate::new(Instant::now()), Arc::new(Witness::default()));
        let source = Prefix::of([192, 0, 2, 1].into());
        let racer = |_| {
            let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
            thread::spawn(move || {
                let Some(_place) = gate.take(source, 1) else { return };
                inside.enter();
                inside.leave();
            })
        };
        join((0..3).map(racer).collect::<Vec<_>>());
        assert_eq!((inside.most(), gate.open(source)), (1, 0));
    });
}

#[test]
fn the_rate_of_a_source_is_one_for_all_workers() {
    in_every_order(|| {
        let now = Instant::now();
        let (gate, source) = (Gate::new(now), Prefix::of([192, 0, 2, 1].into()));
        let racer = |_| {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.pass_from(source, TWO_A_SECOND, now).is_ok())
        };
        let got = join((0..3).map(racer).collect::<Vec<_>>()).into_iter().filter(|got| *got).count();
        assert_eq!(got, 2);
    });
}
