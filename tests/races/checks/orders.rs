//! What control asks of a worker: the mailbox of `orders.rs`.

use std::sync::Arc;

use loom::thread;
use tidegate_races::orders::{Order, mailbox};
use tidegate_races::snapshot::Snapshot;

use crate::{in_every_order, join, task};

#[test]
fn orders_come_in_the_order_of_sending_and_none_is_slept_through() {
    in_every_order(|| {
        let (post, inbox) = mailbox();
        let worker = task(async move { [inbox.next().await, inbox.next().await] });
        post.send(Order::Beat);
        post.send(Order::Stop);
        assert!(matches!(join([worker])[..], [[Order::Beat, Order::Stop]]));
    });
}

#[test]
fn of_two_snapshots_the_newer_one_is_the_last_to_come() {
    in_every_order(|| {
        let (post, inbox) = mailbox();
        let newest = Arc::new(Snapshot);
        let control = thread::spawn({
            let newest = Arc::clone(&newest);
            move || {
                post.send(Order::Publish(Arc::new(Snapshot)));
                post.send(Order::Publish(newest));
                post.send(Order::Stop);
            }
        });
        let worker = task(async move {
            let mut last = None;
            loop {
                match inbox.next().await {
                    Order::Publish(snapshot) => last = Some(snapshot),
                    _ => return last,
                }
            }
        });
        join([control]);
        let last = join([worker]).pop().flatten().expect("one of them came");
        assert!(Arc::ptr_eq(&last, &newest));
    });
}
