//! What control may ask of a worker, and what a worker has to say at its end.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::snapshot::Snapshot;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicU64;

/// One order, delivered to each worker in the order of sending.
#[derive(Clone, Debug)]
pub enum Order {
    /// New connections see this snapshot; open ones keep theirs.
    Publish(Arc<Snapshot>),
    /// Show that the event loop turns: add one to the worker's pulse.
    Beat,
    /// Take no more clients; end when the last connection has, or cut them at the deadline.
    Drain { deadline: Instant },
    /// Cut all connections and end now.
    Stop,
}

/// How a worker's connections fared between the order to drain and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Ended by themselves.
    pub finished: usize,
    /// Still open at the deadline, and cut.
    pub cut: usize,
}

impl std::iter::Sum for Drained {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Drained::default(), |all, part| Drained {
            finished: all.finished + part.finished,
            cut: all.cut + part.cut,
        })
    }
}

/// The sending end of a worker's mailbox, for any thread.
#[derive(Clone, Debug)]
pub struct Post(Arc<Mailbox>);

/// The worker's end of its mailbox.
#[derive(Debug)]
pub struct Inbox(Arc<Mailbox>);

/// Orders on their way. Control sends a few a second, so a lock is cheap enough.
#[derive(Debug, Default)]
struct Mailbox(Mutex<(VecDeque<Order>, Option<Waker>)>);

/// A mailbox: the end for control, the end for the worker.
pub fn mailbox() -> (Post, Inbox) {
    let mailbox = Arc::new(Mailbox::default());
    (Post(Arc::clone(&mailbox)), Inbox(mailbox))
}

impl Post {
    /// Queues the order. A snapshot takes the place of one that still waits: only the newest is
    /// of use, and so a worker that does not come to its mailbox cannot make it grow.
    pub fn send(&self, order: Order) {
        let mut inside = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(order, Order::Publish(_)) {
            inside.0.retain(|waiting| !matches!(waiting, Order::Publish(_)));
        }
        inside.0.push_back(order);
        if let Some(waker) = inside.1.take() {
            waker.wake();
        }
    }
}

impl Inbox {
    /// The next order, as soon as there is one.
    pub async fn next(&self) -> Order {
        poll_fn(|cx| {
            let mut inside = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            inside.1 = Some(cx.waker().clone());
            inside.0.pop_front().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// A worker thread as control sees it.
#[derive(Debug)]
pub struct Worker {
    pub post: Post,
    /// Grows by one with each [`Order::Beat`] that the event loop has come to.
    pub pulse: Arc<AtomicU64>,
    /// Ends after [`Order::Drain`] or [`Order::Stop`].
    pub thread: JoinHandle<Drained>,
}
