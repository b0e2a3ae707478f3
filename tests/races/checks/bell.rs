//! What workers tell control by ringing: `live/bell.rs`.

use std::future::poll_fn;
use std::sync::Arc;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use tidegate_races::live::Bell;

use crate::{join, task, with_preemptions};

/// Whoever looks only after a ring sees every change in the end, and sleeps through none.
#[test]
fn no_change_is_slept_through_by_who_looks_after_a_ring() {
    with_preemptions(3, || {
        let (bell, changes) = (Arc::new(Bell::default()), Arc::new(AtomicUsize::new(0)));
        let control = task({
            let (bell, changes) = (Arc::clone(&bell), Arc::clone(&changes));
            async move {
                while changes.load(Ordering::Relaxed) < 2 {
                    poll_fn(|cx| bell.poll_rung(cx)).await;
                }
            }
        });
        let worker = |_| {
            let (bell, changes) = (Arc::clone(&bell), Arc::clone(&changes));
            thread::spawn(move || {
                changes.fetch_add(1, Ordering::Relaxed);
                bell.ring();
            })
        };
        join([0, 1].map(worker));
        join([control]);
    });
}
