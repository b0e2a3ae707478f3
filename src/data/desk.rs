//! Where others leave things for one worker, until it takes them up or takes no more.
//!
//! Whatever is left is either taken up or given back, once: between the last look and the end nothing is
//! lost, because both happen under the lock that it is left under.

use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use crate::sync::{Mutex, MutexGuard};

/// The desk of one worker.
#[derive(Debug)]
pub struct Desk<T>(Mutex<Inside<T>>);

#[derive(Debug)]
struct Inside<T> {
    left: Vec<T>,
    waiter: Option<Waker>,
    is_closed: bool,
}

impl<T> Desk<T> {
    /// Leaves one there, or gives it back: the desk is closed, or has `most` already.
    pub fn leave(&self, one: T, most: usize) -> Option<T> {
        let mut inside = self.inside();
        if inside.is_closed || inside.left.len() >= most {
            return Some(one);
        }
        inside.left.push(one);
        let waiter = inside.waiter.take();
        drop(inside);
        waiter.into_iter().for_each(Waker::wake);
        None
    }

    /// All that was left, as soon as there is any. One task asks.
    pub fn poll_take(&self, cx: &Context<'_>) -> Poll<Vec<T>> {
        let mut inside = self.inside();
        if inside.left.is_empty() {
            inside.waiter = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut inside.left))
    }

    /// Takes no more; gives what still lies there.
    pub fn close(&self) -> Vec<T> {
        let mut inside = self.inside();
        inside.is_closed = true;
        std::mem::take(&mut inside.left)
    }

    pub fn is_closed(&self) -> bool {
        self.inside().is_closed
    }

    fn inside(&self) -> MutexGuard<'_, Inside<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Desk<T> {
    fn default() -> Self {
        Desk(Mutex::new(Inside { left: Vec::new(), waiter: None, is_closed: false }))
    }
}
