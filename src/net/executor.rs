//! Tasks of one thread, and nothing else: no I/O, no timers, no work stealing.
//!
//! A waker used on this thread costs a push to a list of the thread's own. Used elsewhere (by
//! control, or by a worker that frees a place) it goes through a lock and a wake-up of the loop.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use nix::sys::eventfd::EventFd;
use slab::Slab;

use super::queued::Queued;
use crate::sync::{Mutex, Numbers};

type Task = Pin<Box<dyn Future<Output = ()>>>;

thread_local! {
    /// Tasks of this thread's executor that have something to do.
    static READY: RefCell<VecDeque<usize>> = const { RefCell::new(VecDeque::new()) };
    /// Which executor lives on this thread; 0 is none.
    static HERE: Cell<u64> = const { Cell::new(0) };
}

pub(super) struct Executor {
    /// `None` while the task is being polled.
    tasks: RefCell<Slab<Option<Task>>>,
    /// One waker per place in `tasks`, kept for the next task there: a waker that outlived its
    /// task wakes a stranger for nothing, which costs a poll and breaks nothing.
    wakers: RefCell<Vec<Arc<TaskWaker>>>,
    home: Arc<Home>,
}

/// Where wakers of other threads knock.
struct Home {
    id: u64,
    knocked: Mutex<Vec<usize>>,
    doorbell: Arc<EventFd>,
}

struct TaskWaker {
    task: usize,
    queued: Queued,
    home: Arc<Home>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.enter() {
            return;
        }
        if HERE.get() == self.home.id {
            READY.with_borrow_mut(|ready| ready.push_back(self.task));
        } else {
            self.home.knocked.lock().unwrap_or_else(PoisonError::into_inner).push(self.task);
            // Without a doorbell the task would sleep on; an eventfd write fails only when the loop is gone.
            let _ = self.home.doorbell.write(1);
        }
    }
}

impl Executor {
    /// The executor of this thread. `doorbell` wakes its loop from other threads.
    pub(super) fn new(doorbell: Arc<EventFd>) -> Self {
        static NUMBERS: Numbers = Numbers::from(1);
        let id = NUMBERS.next();
        HERE.set(id);
        READY.with_borrow_mut(VecDeque::clear);
        let home = Arc::new(Home { id, knocked: Mutex::default(), doorbell });
        Executor { tasks: RefCell::default(), wakers: RefCell::default(), home }
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let place = self.tasks.borrow_mut().insert(Some(Box::pin(task)));
        let mut wakers = self.wakers.borrow_mut();
        while wakers.len() <= place {
            let task = wakers.len();
            let waker = TaskWaker { task, queued: Queued::default(), home: Arc::clone(&self.home) };
            wakers.push(Arc::new(waker));
        }
        wakers[place].wake_by_ref();
    }

    pub(super) fn has_ready(&self) -> bool {
        READY.with_borrow(|ready| !ready.is_empty())
    }

    /// Tasks that have not ended.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Takes over what other threads have woken. To be called after the doorbell rang.
    pub(super) fn answer_door(&self) {
        let knocked = std::mem::take(&mut *self.home.knocked.lock().unwrap_or_else(PoisonError::into_inner));
        READY.with_borrow_mut(|ready| ready.extend(knocked));
    }

    /// Polls each task that is ready now, once. Those woken meanwhile wait for the next turn,
    /// so that sockets are looked at in between.
    pub(super) fn turn(&self) {
        for _ in 0..READY.with_borrow(VecDeque::len) {
            let Some(task) = READY.with_borrow_mut(VecDeque::pop_front) else { return };
            self.poll(task);
        }
    }

    fn poll(&self, place: usize) {
        let waker = Arc::clone(&self.wakers.borrow()[place]);
        waker.queued.leave();
        let waker = Waker::from(waker);
        let Some(mut task) = self.tasks.borrow_mut().get_mut(place).and_then(Option::take) else { return };
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => self.tasks.borrow_mut()[place] = Some(task),
            Poll::Ready(()) => {
                drop(task); // before its place is free: what it drops may spawn
                self.tasks.borrow_mut().remove(place);
            }
        }
    }

    /// Drops every task. What they hold is released while the loop's parts still stand.
    pub(super) fn clear(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        READY.with_borrow_mut(VecDeque::clear);
        HERE.set(0);
    }
}

/// Which of two futures ended first.
#[derive(Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    Left(A),
    Right(B),
}

/// Waits for the first of two futures. The left one is asked first.
///
/// They come pinned (`pin!`) or are `Unpin`: an async function would keep each of them twice,
/// as its argument and as its variable, and idle connections would pay for that.
pub fn either<A: Future + Unpin, B: Future + Unpin>(
    mut left: A,
    mut right: B,
) -> impl Future<Output = Either<A::Output, B::Output>> + Unpin {
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(value) = Pin::new(&mut left).poll(cx) {
            return Poll::Ready(Either::Left(value));
        }
        Pin::new(&mut right).poll(cx).map(Either::Right)
    })
}
