//! A task that another thread wakes: `net/queued.rs`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, Ordering};
use tidegate_races::net::queued::Queued;

use crate::{in_every_order, join, task, with_preemptions};

/// A task of which others know whether it is queued, and how its loop is rung.
#[derive(Default)]
struct Home {
    queued: Queued,
    knocked: Mutex<(usize, Option<Waker>)>,
}

impl Home {
    /// As a waker does.
    fn wake(&self) {
        if self.queued.enter() {
            let mut knocked = self.knocked.lock().expect("whole");
            knocked.0 += 1;
            let _ = knocked.1.take().map(Waker::wake);
        }
    }

    /// The loop, until somebody knocks; says how often somebody has.
    async fn sleep(&self) -> usize {
        poll_fn(|cx| {
            let mut knocked = self.knocked.lock().expect("whole");
            knocked.1 = Some(cx.waker().clone());
            match std::mem::take(&mut knocked.0) {
                0 => Poll::Pending,
                times => Poll::Ready(times),
            }
        })
        .await
    }
}

/// The task's thread: polls it while it is queued, until it sees all the news.
async fn polls(home: Arc<Home>, news: Vec<Arc<AtomicBool>>) {
    loop {
        home.queued.leave();
        if news.iter().all(|news| news.load(Ordering::Relaxed)) {
            return;
        }
        assert_eq!(home.sleep().await, 1, "it was queued twice");
    }
}

#[test]
fn what_was_written_before_a_wake_is_seen_by_the_next_poll_also_of_a_task_that_was_queued() {
    in_every_order(|| {
        let (home, news) = (Arc::new(Home::default()), Arc::new(AtomicBool::new(false)));
        assert!(home.queued.enter(), "as a task that is new");
        let polled = task(polls(Arc::clone(&home), vec![Arc::clone(&news)]));
        news.store(true, Ordering::Relaxed);
        home.wake();
        join([polled]);
    });
}

#[test]
fn two_that_wake_a_task_at_once_queue_it_once_and_lose_nothing() {
    with_preemptions(3, || {
        let home = Arc::new(Home::default());
        let news = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        assert!(home.queued.enter(), "as a task that is new");
        let polled = task(polls(Arc::clone(&home), news.to_vec()));
        let other = loom::thread::spawn({
            let (home, news) = (Arc::clone(&home), Arc::clone(&news[0]));
            move || {
                news.store(true, Ordering::Relaxed);
                home.wake();
            }
        });
        news[1].store(true, Ordering::Relaxed);
        home.wake();
        join([other]);
        join([polled]);
    });
}
