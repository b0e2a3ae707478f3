//! Limits that can be waited for: `core/limit.rs` counts, here those are woken for whom a place is free.
//!
//! Giving a place back costs no lock while nobody waits.

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::core::limit::Places;
use crate::core::priority::Reach;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// A limit that can be waited for.
#[derive(Debug)]
pub struct Room {
    places: Places,
    /// Set after somebody came to `waiting`, so that giving back a place costs no lock otherwise.
    is_awaited: AtomicBool,
    /// Accept loops that wait, and clients that are called out of a pool's line: one entry for a
    /// task, and so never more than connections and listeners.
    waiting: Mutex<Vec<Waker>>,
}

impl Room {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Room {
            places: Places::new(limit),
            is_awaited: AtomicBool::new(false),
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

    /// A place, as soon as less than that part of the room is taken. For use under `std::future::poll_fn`. Whoever waits for a part looks each
    /// time that a place is given back, and not only when the room was full.
    pub fn poll_take_within(self: &Arc<Self>, reach: Reach, cx: &mut Context<'_>) -> Poll<Permit> {
        if let Some(permit) = self.take_within(reach) {
            return Poll::Ready(permit);
        }
        self.await_place(cx);
        match self.take_within(reach) {
            Some(permit) => Poll::Ready(permit),
            None => Poll::Pending,
        }
    }

    /// Ends when there is a place, which somebody else may take first.
    pub fn poll_free(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_full() {
            self.await_place(cx);
        }
        if self.is_full() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn await_place(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        drop(waiting);
        // Whoever waits and whoever gives back both swap the flag, and one of them comes second: either the
        // giver finds it set, or we come after him and the caller, who looks again, sees the place.
        self.is_awaited.swap(true, Ordering::AcqRel);
    }

    /// A new limit; whoever waits looks again.
    pub fn set_limit(&self, limit: usize) {
        self.places.set_limit(limit);
        self.wake_waiting();
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

    fn wake_waiting(&self) {
        if self.is_awaited.swap(false, Ordering::AcqRel) {
            let woken = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            woken.into_iter().for_each(Waker::wake);
        }
    }
}

/// One place in a [`Room`]. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<Room>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.places.give_back();
        self.0.wake_waiting();
    }
}
