//! Who waits for a server: `live/line.rs`, alone and with the room of a server behind it.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use loom::thread;
use tidegate_races::core::priority::Priority;
use tidegate_races::live::{Line, Room, Ticket};

use crate::{Witness, in_every_order, join, task, with_preemptions};

fn source(host: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, host).into()
}

fn tickets<const N: usize>(line: &Arc<Line>) -> [Ticket; N] {
    std::array::from_fn(|host| line.join(Priority::default(), source(host as u8), N).expect("there is room"))
}

async fn called(ticket: &Ticket) {
    poll_fn(|cx| ticket.poll_called(cx)).await;
}

#[test]
fn everybody_is_called_in_the_order_of_coming() {
    with_preemptions(3, || {
        let (line, order) = (Arc::<Line>::default(), Arc::new(Mutex::new(Vec::new())));
        let [first, second] = tickets(&line);
        let client = |(number, ticket): (u8, Ticket)| {
            let order = Arc::clone(&order);
            task(async move {
                called(&ticket).await;
                order.lock().expect("whole").push(number);
                ticket.served();
            })
        };
        // The second is quicker, or not.
        join([(2, second), (1, first)].map(client));
        assert_eq!(*order.lock().expect("whole"), [1, 2]);
        assert_eq!(line.length(), 0);
    });
}

#[test]
fn who_leaves_when_he_is_called_passes_the_call_on() {
    in_every_order(|| {
        let line = Arc::<Line>::default();
        let [first, second] = tickets(&line);
        let waiter = task(async move { called(&second).await });
        drop(first);
        join([waiter]);
        assert_eq!(line.length(), 0);
    });
}

#[test]
fn who_leaves_before_his_turn_takes_it_from_nobody() {
    with_preemptions(3, || {
        let line = Arc::<Line>::default();
        let [first, second, third] = tickets(&line);
        let leaver = thread::spawn(move || drop(second));
        let waiter = task(async move { called(&third).await });
        first.in_vain();
        first.served();
        join([leaver, waiter]);
        assert_eq!(line.length(), 0);
    });
}

#[test]
fn no_more_stand_in_the_line_than_it_has_room_for() {
    with_preemptions(3, || {
        let (line, inside) = (Arc::<Line>::default(), Arc::new(Witness::default()));
        let client = |host| {
            let (line, inside) = (Arc::clone(&line), Arc::clone(&inside));
            thread::spawn(move || {
                let ticket = line.join(Priority::default(), source(host), 2);
                if ticket.is_some() {
                    inside.enter();
                    inside.leave();
                }
                ticket.is_some()
            })
        };
        let came = join((0..3).map(client).collect::<Vec<_>>());
        assert!(inside.most() <= 2 && came.iter().filter(|came| **came).count() >= 2);
        assert_eq!(line.length(), 0);
    });
}

#[test]
fn who_is_called_while_another_takes_his_place_is_one_of_both() {
    with_preemptions(3, || {
        let line = Arc::<Line>::default();
        let [first, second] = [(); 2].map(|()| line.join(Priority::default(), source(1), 2).expect("room"));
        let leaver = thread::spawn(move || drop(first));
        let waiter = task(async move {
            poll_fn(|cx| match second.poll_displaced(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => second.poll_called(cx).map(drop),
            })
            .await;
        });
        let newcomer =
            line.join(Priority::default(), source(2), 2).expect("the other source has more, or room");
        let newcomer = task(async move { called(&newcomer).await });
        join([waiter, newcomer]);
        join([leaver]);
        assert_eq!(line.length(), 0);
    });
}

/// As `data/wait.rs` does, without its pauses: a wake-up that is lost is not made good by time.
async fn ask_in_turn(line: Arc<Line>, room: Arc<Room>, host: u8) {
    let ticket = line.join(Priority::default(), source(host), 9).expect("there is room");
    loop {
        called(&ticket).await;
        if let Some(_permit) = room.take() {
            return ticket.served();
        }
        ticket.in_vain();
        poll_fn(|cx| room.poll_free(cx)).await;
    }
}

#[test]
fn a_place_given_back_while_somebody_joins_the_line_serves_him() {
    with_preemptions(3, || {
        let (line, room) = (Arc::<Line>::default(), Room::new(1));
        let held = room.take().expect("it is free");
        let client = task(ask_in_turn(Arc::clone(&line), Arc::clone(&room), 1));
        drop(held);
        join([client]);
        assert_eq!((line.length(), room.taken()), (0, 0));
    });
}

#[test]
fn a_line_of_two_before_a_server_with_one_place_is_served_to_the_last() {
    with_preemptions(2, || {
        let (line, room) = (Arc::<Line>::default(), Room::new(1));
        let held = room.take().expect("it is free");
        let client = |host| task(ask_in_turn(Arc::clone(&line), Arc::clone(&room), host));
        let clients = [1, 2].map(client);
        drop(held);
        join(clients);
        assert_eq!((line.length(), room.taken()), (0, 0));
    });
}
