//! Limits that can be waited for: `core/limit.rs` counts, here those are woken for whom a place is free.
//!
//! Giving a place back costs no lock while nobody waits who could use it. A listener whose clients may fill half
//! of the process waits beside one whose clients may fill all of it, and thousands of places may come and go
//! above that half: none of them wakes the first.

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use crate::core::limit::Places;
use crate::core::priority::Reach;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// A limit that can be waited for.
#[derive(Debug)]
pub struct Room {
    places: Places,
    /// How far the one of `waiting` reaches who reaches furthest, or further: then somebody has looked at
    /// `waiting` in vain once. [`Reach::NOBODY`] where nobody waits.
    awaited: AtomicU8,
    /// Accept loops that wait, and clients that are called out of a pool's line: one entry for a
    /// task, and so never more than connections and listeners.
    waiting: Mutex<Vec<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    reach: Reach,
    waker: Waker,
}

impl Room {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Room {
            places: Places::new(limit),
            awaited: AtomicU8::new(Reach::NOBODY),
            waiting: Mutex::default(),
        })
    }

    /// A place, if there is one.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        self.take_within(Reach::WHOLE)
    }

    /// The same while less than that part of the room is taken.
    pub fn take_within(self: &Arc<Self>, reach: Reach) -> Option<Permit> {
        self.places.take_within(reach).map(|_| Permit(Arc::clone(self)))
    }

    /// A place, as soon as less than that part of the room is taken. For use under `std::future::poll_fn`.
    pub fn poll_take_within(self: &Arc<Self>, reach: Reach, cx: &mut Context<'_>) -> Poll<Permit> {
        if let Some(permit) = self.take_within(reach) {
            return Poll::Ready(permit);
        }
        self.await_place(reach, cx);
        match self.take_within(reach) {
            Some(permit) => Poll::Ready(permit),
            None => Poll::Pending,
        }
    }

    /// A place in each of two rooms, as soon as both have one. Whoever waits for one room takes nothing of the
    /// other: what it held would be missing there, for as long as the one stays full. For use under
    /// `std::future::poll_fn`.
    pub fn poll_take_both(rooms: [(&Arc<Self>, Reach); 2], cx: &mut Context<'_>) -> Poll<[Permit; 2]> {
        // Before anything is taken: what is given back wakes others, who would do the same, and so on for ever.
        for (room, reach) in rooms {
            ready!(room.poll_free_within(reach, cx));
        }
        let [(first, its_reach), (second, reach)] = rooms;
        let permit = ready!(first.poll_take_within(its_reach, cx));
        // Somebody may have been faster here; then the first place is given back.
        second.poll_take_within(reach, cx).map(|other| [permit, other])
    }

    /// Ends when there is a place, which somebody else may take first.
    pub fn poll_free(&self, cx: &Context<'_>) -> Poll<()> {
        self.poll_free_within(Reach::WHOLE, cx)
    }

    fn poll_free_within(&self, reach: Reach, cx: &Context<'_>) -> Poll<()> {
        if !self.is_full_within(reach) {
            return Poll::Ready(());
        }
        self.await_place(reach, cx);
        if self.is_full_within(reach) { Poll::Pending } else { Poll::Ready(()) }
    }

    fn await_place(&self, reach: Reach, cx: &Context<'_>) {
        let mut waiting = self.waiting();
        match waiting.iter_mut().find(|waiter| waiter.waker.will_wake(cx.waker())) {
            Some(waiter) => waiter.reach = waiter.reach.max(reach),
            None => waiting.push(Waiter { reach, waker: cx.waker().clone() }),
        }
        // Whoever waits and whoever gives back both write this word, and one of them comes second: either
        // the giver finds the reach in it, or we come after him and the caller, who looks again, sees the place.
        // The same holds of whoever sets the limit, by which the giver has judged the reach.
        self.awaited.fetch_max(reach.word(), Ordering::AcqRel);
    }

    /// A new limit; whoever waits looks again.
    pub fn set_limit(&self, limit: usize) {
        self.places.set_limit(limit);
        // Whoever took those out that wait has yet to wake them, or has.
        if self.awaited.fetch_or(Reach::NOBODY, Ordering::AcqRel) != Reach::NOBODY {
            self.wake_if(|_| true);
        }
    }

    pub fn taken(&self) -> usize {
        self.places.taken()
    }

    pub fn limit(&self) -> usize {
        self.places.limit()
    }

    pub fn is_full(&self) -> bool {
        self.places.is_full()
    }

    /// Is there no place for those who may fill it so far.
    pub fn is_full_within(&self, reach: Reach) -> bool {
        self.taken() >= reach.of(self.limit())
    }

    /// A place has been given back, and so many are taken now. Whose reach ends below has no use for it, and
    /// is woken by whoever brings the count below that.
    fn wake_for_place(&self, taken: usize) {
        let awaited = self.awaited.fetch_or(Reach::NOBODY, Ordering::AcqRel);
        let limit = self.limit();
        let has_use = |reach: Reach| taken < reach.of(limit);
        if Reach::from_word(awaited).is_some_and(has_use) {
            self.wake_if(has_use);
        }
    }

    fn wake_if(&self, has_use: impl Fn(Reach) -> bool) {
        let woken: Vec<Waiter> = {
            let mut waiting = self.waiting();
            let woken = waiting.extract_if(.., |waiter| has_use(waiter.reach)).collect();
            let left = waiting.iter().map(|waiter| waiter.reach.word()).max();
            self.awaited.swap(left.unwrap_or(Reach::NOBODY), Ordering::AcqRel);
            woken
        };
        woken.into_iter().for_each(|waiter| waiter.waker.wake());
    }

    /// Whoever panicked in here left a list that is whole.
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiter>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place in a [`Room`]. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<Room>);

impl Drop for Permit {
    fn drop(&mut self) {
        let taken = self.0.places.give_back();
        self.0.wake_for_place(taken);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;
    use crate::core::priority::{Among, Priority};

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Somebody of that class, beside the highest, who waits for a place in the room.
    struct Visitor {
        reach: Reach,
        bell: Arc<Bell>,
    }

    impl Visitor {
        fn of(class: Priority) -> Self {
            let reach = Among::new([Priority::Highest]).reach(class);
            Visitor { reach, bell: Arc::default() }
        }

        fn asks(&self, room: &Arc<Room>) -> Option<Permit> {
            let waker = Waker::from(Arc::clone(&self.bell));
            match room.poll_take_within(self.reach, &mut Context::from_waker(&waker)) {
                Poll::Ready(permit) => Some(permit),
                Poll::Pending => None,
            }
        }

        fn was_woken(&self) -> usize {
            self.bell.0.swap(0, Ordering::SeqCst)
        }
    }

    fn filled(limit: usize) -> (Arc<Room>, Vec<Permit>) {
        let room = Room::new(limit);
        let permits = std::iter::from_fn(|| room.take()).collect();
        (room, permits)
    }

    #[test]
    fn a_place_that_is_not_for_his_class_wakes_nobody_of_it() {
        let (room, mut permits) = filled(10);
        let (lowest, highest) = (Visitor::of(Priority::Lowest), Visitor::of(Priority::Highest));
        assert!(lowest.asks(&room).is_none());
        for _ in 0..100 {
            permits.pop();
            permits.push(highest.asks(&room).expect("it is free"));
        }
        assert_eq!(lowest.was_woken(), 0, "half of it is taken all the time");
        assert!(highest.asks(&room).is_none());
        permits.drain(5..).for_each(drop);
        assert_eq!((lowest.was_woken(), highest.was_woken()), (0, 1));
        permits.pop();
        assert_eq!(lowest.was_woken(), 1);
        assert!(lowest.asks(&room).is_some());
    }

    #[test]
    fn who_waits_on_is_woken_although_others_were_and_have_left() {
        let (room, mut permits) = filled(4);
        let (low, highest) = (Visitor::of(Priority::Low), Visitor::of(Priority::Highest));
        assert!(low.asks(&room).is_none() && highest.asks(&room).is_none());
        permits.pop();
        assert_eq!((low.was_woken(), highest.was_woken()), (0, 1));
        permits.pop();
        assert_eq!((low.was_woken(), highest.was_woken()), (1, 0), "he had stopped waiting");
    }

    #[test]
    fn a_new_limit_wakes_everybody_and_holds_for_whoever_goes_on_waiting() {
        let (room, mut permits) = filled(4);
        let lowest = Visitor::of(Priority::Lowest);
        assert!(lowest.asks(&room).is_none());
        room.set_limit(8);
        assert_eq!(lowest.was_woken(), 1);
        assert!(lowest.asks(&room).is_none(), "four of eight are taken");
        permits.pop();
        assert_eq!(lowest.was_woken(), 1);
        let one = lowest.asks(&room).expect("three of eight are taken");
        room.set_limit(2);
        drop(one);
        assert!(lowest.asks(&room).is_none());
        permits.truncate(1);
        assert_eq!(lowest.was_woken(), 0);
        permits.clear();
        assert_eq!(lowest.was_woken(), 1);
    }

    #[test]
    fn who_waits_for_two_rooms_holds_nothing_of_either_and_is_woken_by_the_full_one() {
        let ([(open, _), (full, mut permits)], visitor) =
            ([(Room::new(1), Vec::new()), filled(1)], Arc::<Bell>::default());
        let asks = |rooms: [&Arc<Room>; 2]| {
            let waker = Waker::from(Arc::clone(&visitor));
            Room::poll_take_both(rooms.map(|room| (room, Reach::WHOLE)), &mut Context::from_waker(&waker))
        };
        for rooms in [[&open, &full], [&full, &open]] {
            assert!(asks(rooms).is_pending());
            assert_eq!(open.taken(), 0);
            drop(open.take());
            assert_eq!(visitor.0.swap(0, Ordering::SeqCst), 0, "that one has room as it is");
            permits.clear();
            assert_eq!(visitor.0.swap(0, Ordering::SeqCst), 1);
            let Poll::Ready(both) = asks(rooms) else { panic!("both have room") };
            assert_eq!((open.taken(), full.taken()), (1, 1));
            drop(both);
            permits.extend(full.take());
        }
        assert_eq!((open.taken(), full.taken()), (0, 1));
    }

    #[test]
    fn who_waits_for_less_than_he_did_is_still_woken() {
        let (room, mut permits) = filled(10);
        let mut visitor = Visitor::of(Priority::Highest);
        assert!(visitor.asks(&room).is_none());
        visitor.reach = Visitor::of(Priority::Lowest).reach;
        assert!(visitor.asks(&room).is_none());
        permits.pop();
        assert_eq!(visitor.was_woken(), 1, "he may still wait for the other, too");
        assert!(visitor.asks(&room).is_none());
        permits.truncate(5);
        assert_eq!(visitor.was_woken(), 0);
        permits.pop();
        assert_eq!(visitor.was_woken(), 1);
    }
}
