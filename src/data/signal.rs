//! One task tells another, once or again and again. For tasks of one thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

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

    pub(super) fn is_raised_as(&self, is_it: impl FnOnce(T) -> bool) -> bool {
        self.value.get().is_some_and(is_it)
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

/// Something that happens again and again, and that many tasks may wait for.
#[derive(Default)]
pub(super) struct Bell {
    rings: Cell<u64>,
    /// One for each task that waits.
    waiters: RefCell<Vec<Waker>>,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.rings.set(self.rings.get() + 1);
        self.waiters.take().into_iter().for_each(Waker::wake);
    }

    /// How often it has rung.
    pub(super) fn rings(&self) -> u64 {
        self.rings.get()
    }

    /// Ends when it has rung more often than `seen`.
    pub(super) fn poll_after(&self, seen: u64, cx: &Context<'_>) -> Poll<()> {
        if self.rings.get() > seen {
            return Poll::Ready(());
        }
        let mut waiters = self.waiters.borrow_mut();
        if !waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiters.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
