//! Limits that can be waited for: `Room` of `live.rs`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Waker};

use tidegate_races::core::priority::{Among, Priority, Reach};
use tidegate_races::live::{Permit, Room};

use crate::{Witness, in_every_order, join, task, with_preemptions};

async fn place(room: Arc<Room>) -> Permit {
    place_within(room, Reach::WHOLE).await
}

async fn place_within(room: Arc<Room>, reach: Reach) -> Permit {
    poll_fn(|cx| room.poll_take_within(reach, cx)).await
}

async fn both(rooms: &[Arc<Room>; 2]) -> [Permit; 2] {
    let wanted = rooms.each_ref().map(|room| (room, Reach::WHOLE));
    poll_fn(|cx| Room::poll_take_both(wanted, cx)).await
}

/// Half of a room.
fn half() -> Reach {
    Among::new([Priority::Highest]).reach(Priority::Lowest)
}

#[test]
fn a_place_given_back_while_somebody_begins_to_wait_wakes_him() {
    in_every_order(|| {
        let room = Room::new(1);
        let held = room.take().expect("it is free");
        let waiter = task(place(Arc::clone(&room)));
        drop(held);
        drop(join([waiter]));
        assert_eq!(room.taken(), 0);
    });
}

#[test]
fn whoever_waits_to_look_again_is_woken_too() {
    in_every_order(|| {
        let room = Room::new(1);
        let held = room.take().expect("it is free");
        let waiter = task({
            let room = Arc::clone(&room);
            async move { poll_fn(|cx| room.poll_free(cx)).await }
        });
        drop(held);
        join([waiter]);
    });
}

/// The bug: where a place was free at the first look and taken at the second, he waited and stood in no list.
#[test]
fn whoever_looks_while_another_comes_and_goes_is_told() {
    in_every_order(|| {
        let room = Room::new(1);
        let visitor = task({
            let room = Arc::clone(&room);
            async move { drop(place(room).await) }
        });
        let waiter = task({
            let room = Arc::clone(&room);
            async move { poll_fn(|cx| room.poll_free(cx)).await }
        });
        join([visitor, waiter]);
        assert_eq!(room.taken(), 0);
    });
}

#[test]
fn a_limit_that_rises_wakes_whoever_waits() {
    in_every_order(|| {
        let room = Room::new(0);
        let waiter = task(place(Arc::clone(&room)));
        room.set_limit(1);
        drop(join([waiter]));
    });
}

#[test]
fn two_that_wait_for_one_place_both_get_it_in_the_end() {
    with_preemptions(2, || {
        let (room, inside) = (Room::new(1), Arc::new(Witness::default()));
        let held = room.take().expect("it is free");
        let waiter = |_| {
            let (room, inside) = (Arc::clone(&room), Arc::clone(&inside));
            task(async move {
                let permit = place(room).await;
                inside.enter();
                inside.leave();
                drop(permit);
            })
        };
        let waiters: Vec<_> = (0..2).map(waiter).collect();
        drop(held);
        join(waiters);
        assert_eq!((inside.most(), room.taken()), (1, 0));
    });
}

#[test]
fn two_places_given_back_at_once_serve_whoever_waits() {
    with_preemptions(3, || {
        let room = Room::new(2);
        let [first, second] = [(); 2].map(|()| room.take().expect("it is free"));
        let waiter = task(place(Arc::clone(&room)));
        let giver = loom::thread::spawn(move || drop(first));
        drop(second);
        join([giver]);
        drop(join([waiter]));
        assert_eq!(room.taken(), 0);
    });
}

#[test]
fn who_leaves_while_he_is_woken_takes_the_wake_up_from_nobody() {
    with_preemptions(3, || {
        let room = Room::new(1);
        let held = room.take().expect("it is free");
        let leaver = loom::thread::spawn({
            let room = Arc::clone(&room);
            // His waker is left behind, and wakes nobody.
            move || drop(room.poll_take_within(Reach::WHOLE, &mut Context::from_waker(Waker::noop())))
        });
        let waiter = task(place(Arc::clone(&room)));
        drop(held);
        join([leaver]);
        drop(join([waiter]));
        assert_eq!(room.taken(), 0);
    });
}

#[test]
fn whose_part_comes_free_by_two_at_once_is_woken_by_the_second() {
    with_preemptions(3, || {
        let room = Room::new(2);
        let [first, second] = [(); 2].map(|()| room.take().expect("it is free"));
        let waiter = task(place_within(Arc::clone(&room), half()));
        let giver = loom::thread::spawn(move || drop(first));
        drop(second);
        join([giver]);
        drop(join([waiter]));
        assert_eq!(room.taken(), 0);
    });
}

#[test]
fn who_is_passed_over_while_another_is_woken_is_not_forgotten() {
    with_preemptions(2, || {
        let room = Room::new(2);
        let [first, second] = [(); 2].map(|()| room.take().expect("it is free"));
        let come_and_go = |reach| {
            let place = place_within(Arc::clone(&room), reach);
            task(async move { drop(place.await) })
        };
        let visitors = [half(), Reach::WHOLE].map(come_and_go);
        drop(first);
        drop(second);
        join(visitors);
        assert_eq!(room.taken(), 0);
    });
}

#[test]
fn a_limit_that_rises_while_a_place_is_given_back_wakes_whoever_waits_for_a_part() {
    with_preemptions(3, || {
        let room = Room::new(2);
        let [first, second] = [(); 2].map(|()| room.take().expect("it is free"));
        let waiter = task(place_within(Arc::clone(&room), half()));
        let giver = loom::thread::spawn(move || drop(first));
        room.set_limit(4);
        join([giver]);
        drop(join([waiter]));
        assert_eq!(room.taken(), 1);
        drop(second);
    });
}

#[test]
fn who_waits_for_two_rooms_is_woken_by_the_one_and_misses_nothing_of_the_other() {
    with_preemptions(3, || {
        let rooms = [Room::new(1), Room::new(1)];
        let held = rooms.each_ref().map(|room| room.take().expect("it is free"));
        let waiter = task({
            let rooms = rooms.clone();
            async move { drop(both(&rooms).await) }
        });
        let [first, second] = held;
        let giver = loom::thread::spawn(move || drop(first));
        drop(second);
        join([giver]);
        join([waiter]);
        assert_eq!(rooms.map(|room| room.taken()), [0, 0]);
    });
}

/// One holds a place of the first room for a moment, and gives it back where the second was faster taken.
#[test]
fn two_that_wait_for_two_rooms_both_get_in_in_the_end_and_never_at_once() {
    with_preemptions(2, || {
        let (rooms, inside) = ([Room::new(1), Room::new(1)], Arc::new(Witness::default()));
        let held = rooms[1].take().expect("it is free");
        let waiter = |_| {
            let (rooms, inside) = (rooms.clone(), Arc::clone(&inside));
            task(async move {
                let permits = both(&rooms).await;
                inside.enter();
                inside.leave();
                drop(permits);
            })
        };
        let waiters: Vec<_> = (0..2).map(waiter).collect();
        drop(held);
        join(waiters);
        assert_eq!((inside.most(), rooms.map(|room| room.taken())), (1, [0, 0]));
    });
}

/// Two listeners, each with a room of its own, share that of the process.
#[test]
fn two_listeners_that_wait_for_the_same_room_both_get_in_in_the_end() {
    with_preemptions(2, || {
        let (own, shared) = ([Room::new(1), Room::new(1)], Room::new(1));
        let held = shared.take().expect("it is free");
        let waiter = |own: &Arc<Room>| {
            let rooms = [Arc::clone(own), Arc::clone(&shared)];
            task(async move { drop(both(&rooms).await) })
        };
        let waiters = own.each_ref().map(waiter);
        drop(held);
        join(waiters);
        assert_eq!((own.map(|room| room.taken()), shared.taken()), ([0, 0], 0));
    });
}
