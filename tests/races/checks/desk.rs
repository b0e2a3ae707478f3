//! A client on its way from the worker that took it to the one that serves it: `data/desk.rs`.

use std::future::poll_fn;
use std::sync::Arc;

use loom::thread;
use tidegate_races::data::desk::Desk;

use crate::{in_every_order, join, task, with_preemptions};

const MANY: usize = 9;

#[test]
fn a_client_that_is_left_while_the_worker_looks_wakes_it() {
    in_every_order(|| {
        let desk = Arc::<Desk<u8>>::default();
        let worker = task({
            let desk = Arc::clone(&desk);
            async move { poll_fn(|cx| desk.poll_take(cx)).await }
        });
        assert_eq!(desk.leave(1, MANY), None);
        assert_eq!(join([worker]), [[1]]);
    });
}

#[test]
fn a_client_that_is_left_while_the_worker_ends_is_served_by_one_of_both_once() {
    in_every_order(|| {
        let desk = Arc::<Desk<u8>>::default();
        let other = |client| {
            let desk = Arc::clone(&desk);
            thread::spawn(move || desk.leave(client, MANY))
        };
        let others = [1, 2].map(other);
        let mut served = desk.close();
        served.extend(join(others).into_iter().flatten());
        served.sort_unstable();
        assert_eq!(served, [1, 2]);
        assert_eq!(desk.leave(3, MANY), Some(3), "and nobody after that");
        assert!(desk.close().is_empty());
    });
}

#[test]
fn a_client_is_not_lost_between_the_last_look_and_the_end() {
    with_preemptions(3, || {
        let desk = Arc::<Desk<u8>>::default();
        let other = |client| {
            let desk = Arc::clone(&desk);
            thread::spawn(move || desk.leave(client, MANY))
        };
        let others = [1, 2].map(other);
        let worker = task({
            let desk = Arc::clone(&desk);
            async move {
                let mut served = poll_fn(|cx| desk.poll_take(cx)).await;
                served.extend(desk.close());
                served
            }
        });
        let mut served = join([worker]).concat();
        served.extend(join(others).into_iter().flatten());
        served.sort_unstable();
        assert_eq!(served, [1, 2]);
    });
}

#[test]
fn no_more_lie_there_than_may() {
    in_every_order(|| {
        let desk = Arc::<Desk<u8>>::default();
        let other = |client| {
            let desk = Arc::clone(&desk);
            thread::spawn(move || desk.leave(client, 1))
        };
        let back = join([1, 2, 3].map(other)).into_iter().flatten().count();
        assert_eq!((back, desk.close().len()), (2, 1));
    });
}
