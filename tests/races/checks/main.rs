//! What threads of the daemon share, passed through every interleaving of a few of them.
//!
//! Each check is a claim. loom runs its story again and again, once for every order in which the threads'
//! steps (each touch of an atomic or a lock) can come, and lets a load see every value that the memory
//! model allows. A thread that waits for ever is found as a deadlock: that is how a lost wake-up shows.
//!
//! Where the orders are too many, those with at most so many preemptions are passed through; then the
//! call says so and how many. Loom takes a SeqCst load or store for AcqRel, so it can call an order
//! possible that is not: the sources are written so that acquire and release are enough for the proof.

mod balance; // least connections: how far a pick may be off
mod bell; // something for control to see
mod bucket; // rates
mod desk; // a client on its way from worker to worker
mod executor; // a task that another thread wakes
mod guard; // trials and ejections
mod line; // who waits for a server
mod orders; // control to worker
mod places; // limits
mod pool; // turns, retries, affinity, what is known of a server
mod ring; // records on their way to the file
mod room; // limits that can be waited for

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Steps whose order matters, one after the other.
///
/// Of each atomic loom keeps the last access alone. Where a thread reads and then writes what another has
/// read before, its write seems to follow upon its own read, and loom never tries it before the other's. A
/// story in which that order is the point takes a step before each look and before each write: all orders
/// of those are tried, and since they are relaxed they order nothing else.
#[derive(Debug, Default)]
pub struct Steps(loom::sync::atomic::AtomicUsize);

impl Steps {
    pub fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts who is inside at once. Std's atomics: loom lets one thread run at a time, and so they are exact.
#[derive(Debug, Default)]
pub struct Witness {
    now: AtomicUsize,
    most: AtomicUsize,
    steps: Steps,
}

impl Witness {
    /// To be called once one is inside, and takes a step, so that others can come before one leaves.
    pub fn enter(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.steps.step();
    }

    /// To be called before one gives the place back.
    pub fn leave(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    /// The most that were inside at once.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

/// Passes through every order of a story's steps.
pub fn in_every_order(story: impl Fn() + Sync + Send + 'static) {
    explore(None, story);
}

/// Passes through every order in which threads are interrupted so many times at the most: for stories
/// of which all orders are too many. Nearly all bugs that ever were need no more than two.
pub fn with_preemptions(most: usize, story: impl Fn() + Sync + Send + 'static) {
    explore(Some(most), story);
}

fn explore(preemptions: Option<usize>, story: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    let orders = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&orders);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        story();
    });
    println!("{} orders", orders.load(Ordering::Relaxed));
}

/// A task on a thread of its own; the thread ends with it.
pub fn task<F: Future + 'static>(future: F) -> loom::thread::JoinHandle<F::Output>
where
    F::Output: 'static,
{
    loom::thread::spawn(move || loom::future::block_on(future))
}

pub fn join<T>(threads: impl IntoIterator<Item = loom::thread::JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().expect("it did not panic")).collect()
}
