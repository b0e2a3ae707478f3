//! One task tells another, once. For tasks of one thread.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// A value that is raised once and waited for by one task at a time.
pub(super) struct Signal<T> {
    value: Cell<Option<T>>,
    waiter: Cell<Option<Waker>>,
}

impl<T: Copy> Signal<T> {
    pub(super) fn new() -> Self {
        Signal { value: Cell::new(None), waiter: Cell::new(None) }
    }

    /// The first value stays.
    pub(super) fn raise(&self, value: T) {
        if self.value.get().is_none() {
            self.value.set(Some(value));
        }
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    pub(super) fn is_raised(&self) -> bool {
        self.value.get().is_some()
    }

    pub(super) async fn raised(&self) -> T {
        poll_fn(|cx| match self.value.get() {
            Some(value) => Poll::Ready(value),
            None => {
                self.waiter.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}
