//! Places under a limit, shared by all workers.
//!
//! Pure: atomics only, no lock, no clock. Exact under races: never more than the limit is
//! given away. Who waits for a place, and how it is woken, is `live/room.rs`.

use crate::sync::atomic::{AtomicUsize, Ordering};

use super::priority::Reach;

/// A count of places taken and the limit over it. Padded to a cache line of its own,
/// because every worker writes it for every connection.
#[derive(Debug)]
#[repr(align(128))] // two lines: the prefetcher of x86 fetches them in pairs
pub struct Places {
    taken: AtomicUsize,
    limit: AtomicUsize,
}

impl Places {
    /// `limit` places, none taken. `usize::MAX` counts without limiting.
    pub fn new(limit: usize) -> Self {
        Places { taken: AtomicUsize::new(0), limit: AtomicUsize::new(limit) }
    }

    /// Takes a place and says how many are taken now, or says no and changes nothing.
    pub fn take(&self) -> Option<usize> {
        self.take_within(Reach::WHOLE)
    }

    /// The same while less than that part of the limit is taken.
    pub fn take_within(&self, reach: Reach) -> Option<usize> {
        let limit = reach.of(self.limit.load(Ordering::Relaxed));
        let mut taken = self.taken.load(Ordering::Relaxed);
        while taken < limit {
            match self.taken.compare_exchange_weak(taken, taken + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(taken + 1),
                Err(now) => taken = now,
            }
        }
        None
    }

    /// Gives a place back and says how many are taken now. Only whoever took one may call this; `live/room.rs`
    /// keeps that by its guards.
    pub fn give_back(&self) -> usize {
        self.taken.fetch_sub(1, Ordering::AcqRel) - 1
    }

    /// A new limit. What is taken beyond it stays taken and is not replaced.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    pub fn is_full(&self) -> bool {
        self.taken() >= self.limit()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use proptest::prelude::*;

    use super::super::priority::{Among, Priority};
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        GiveBack,
        /// For a lower class, beside three higher ones.
        TakeWithin,
        SetLimit(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let to = (0_usize..6).prop_map(Step::SetLimit);
        prop_oneof![3 => Just(Step::Take), 2 => Just(Step::TakeWithin), 3 => Just(Step::GiveBack), 1 => to]
    }

    proptest! {
        #[test]
        fn places_behave_like_a_plain_count(
            first_limit in 0_usize..6,
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let places = Places::new(first_limit);
            let lowest = Among::new([Priority::Highest]).reach(Priority::Lowest);
            let (mut taken, mut limit) = (0, first_limit);
            for step in steps {
                match step {
                    Step::Take => {
                        let expected = (taken < limit).then_some(taken + 1);
                        prop_assert_eq!(places.take(), expected);
                        taken = expected.unwrap_or(taken);
                    }
                    Step::TakeWithin => {
                        let expected = (taken < lowest.of(limit)).then_some(taken + 1);
                        prop_assert_eq!(places.take_within(lowest), expected);
                        taken = expected.unwrap_or(taken);
                    }
                    Step::GiveBack if taken > 0 => {
                        places.give_back();
                        taken -= 1;
                    }
                    Step::GiveBack => {} // nobody holds a place that could be given back
                    Step::SetLimit(to) => {
                        places.set_limit(to);
                        limit = to;
                    }
                }
                prop_assert_eq!((places.taken(), places.limit()), (taken, limit));
                prop_assert_eq!(places.is_full(), taken >= limit);
            }
        }
    }

    #[test]
    fn a_smaller_limit_takes_nothing_away() {
        let places = Places::new(3);
        assert_eq!([places.take(), places.take(), places.take()], [Some(1), Some(2), Some(3)]);
        places.set_limit(1);
        assert_eq!((places.taken(), places.take()), (3, None));
        places.give_back();
        places.give_back();
        assert_eq!(places.take(), None);
        places.give_back();
        assert_eq!(places.take(), Some(1));
    }

    #[test]
    fn threads_that_race_never_hold_more_than_the_limit() {
        const LIMIT: usize = 3;
        let places = Places::new(LIMIT);
        // Counted apart from `places`: raised after a place was taken, lowered before it is given back.
        let (held, most, won) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    for _ in 0..5_000 {
                        if let Some(count) = places.take() {
                            assert!(count <= LIMIT);
                            let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            thread::yield_now(); // so that others come while it is held
                            held.fetch_sub(1, Ordering::SeqCst);
                            places.give_back();
                            won.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(places.taken(), 0);
        assert!((1..=LIMIT).contains(&most.into_inner()));
        assert!(won.into_inner() >= LIMIT); // the test tested something
    }
}
