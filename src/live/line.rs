//! The line before a pool: who waits for a server, over all workers.
//!
//! `core/queue.rs` says whose turn is next; here that one is woken. Only those who are called ask
//! servers, and only one is called at first: so a dead pool is asked by one client at a time
//! however many wait. With each that is served twice as many are called, up to [`CALLED_MAX`],
//! so that a line of thousands is gone soon after a server is back.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::core::queue::{self, Queue};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Clients of one line that ask servers at the same time. A server that has just come up bears that
/// many connects, and at a millisecond each they are 64,000 a second.
const CALLED_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Line {
    /// Those who wait and those who are called.
    length: AtomicUsize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    queue: Queue,
    /// Of those whose turn it is not, by number.
    wakers: HashMap<u64, Waker>,
    /// In the order of their turns.
    called: Vec<u64>,
    /// How many of those who are called may ask, the first ones; 0 counts as 1.
    width: usize,
}

impl Line {
    /// A place at the end, unless `max` stand in the line already.
    pub fn join(self: &Arc<Self>, source: IpAddr, max: usize) -> Option<Ticket> {
        let mut inside = self.inside();
        if inside.length() >= max {
            return None;
        }
        let ticket = inside.queue.join(source);
        inside.call_more();
        self.length.store(inside.length(), Ordering::Relaxed);
        Some(Ticket { line: Arc::clone(self), ticket })
    }

    /// Those who wait and those who are called.
    pub fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// Whoever panicked in here left a line in which each step is whole.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn length(&self) -> usize {
        self.queue.waiting() + self.called.len()
    }

    fn call_more(&mut self) {
        while self.called.len() < self.width.max(1) {
            let Some(ticket) = self.queue.call() else { break };
            self.called.push(ticket.number);
        }
        if self.length() == 0 {
            self.width = 1;
        }
        for number in self.called.iter().take(self.width.max(1)) {
            if let Some(waker) = self.wakers.remove(number) {
                waker.wake();
            }
        }
    }

    fn may_ask(&self, number: u64) -> bool {
        self.called.iter().take(self.width.max(1)).any(|called| *called == number)
    }
}

/// A place in a line. Dropping it gives it up, and the next is called.
#[derive(Debug)]
pub struct Ticket {
    line: Arc<Line>,
    ticket: queue::Ticket,
}

impl Ticket {
    /// Ends when it is this client's turn to ask servers. For use under `std::future::poll_fn`.
    pub fn poll_called(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inside = self.line.inside();
        if inside.may_ask(self.ticket.number) {
            return Poll::Ready(());
        }
        inside.wakers.insert(self.ticket.number, cx.waker().clone());
        Poll::Pending
    }

    /// No server took this client: until one takes somebody, only the first may ask.
    pub fn in_vain(&self) {
        self.line.inside().width = 1;
    }

    /// A server took this client: others may follow, twice as many as before.
    pub fn served(self) {
        let mut inside = self.line.inside();
        inside.width = (inside.width.max(1) * 2).min(CALLED_MAX);
        drop(inside);
        drop(self);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inside = self.line.inside();
        let number = self.ticket.number;
        inside.wakers.remove(&number);
        if !inside.queue.leave(self.ticket) {
            inside.called.retain(|other| *other != number);
        }
        inside.call_more();
        self.line.length.store(inside.length(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::AtomicU64;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Bell(AtomicU64);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn line_of(count: u8) -> (Arc<Line>, Vec<Ticket>) {
        let line = Arc::<Line>::default();
        let join = |host| line.join(Ipv4Addr::new(192, 0, 2, host).into(), 100).expect("room");
        let tickets = (0..count).map(join).collect();
        (line, tickets)
    }

    fn is_called(ticket: &Ticket) -> bool {
        ticket.poll_called(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn called(tickets: &[Ticket]) -> usize {
        tickets.iter().filter(|ticket| is_called(ticket)).count()
    }

    #[test]
    fn one_asks_for_all_until_somebody_is_served_and_then_twice_as_many_each_time() {
        let (line, mut tickets) = line_of(20);
        assert!(is_called(&tickets[0]) && called(&tickets) == 1);
        tickets[0].in_vain();
        assert_eq!(called(&tickets), 1);
        tickets.remove(0).served();
        assert_eq!((called(&tickets), line.length()), (2, 19));
        tickets.remove(0).served();
        assert_eq!(called(&tickets), 4);
        tickets[0].in_vain();
        tickets.drain(..4).for_each(drop);
        assert_eq!(called(&tickets), 1, "back to one at a time");
    }

    #[test]
    fn a_line_has_an_end() {
        let line = Arc::<Line>::default();
        let source = Ipv4Addr::LOCALHOST.into();
        let two = [line.join(source, 2), line.join(source, 2)];
        assert!(two.iter().all(Option::is_some) && line.join(source, 2).is_none());
        drop(two);
        assert!(line.join(source, 2).is_some());
    }

    #[test]
    fn whoever_leaves_calls_the_next_and_wakes_it() {
        let (line, mut tickets) = line_of(2);
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(Arc::clone(&bell));
        assert!(tickets[1].poll_called(&mut Context::from_waker(&waker)).is_pending());
        drop(tickets.remove(0));
        assert_eq!(bell.0.load(Ordering::SeqCst), 1);
        assert!(is_called(&tickets[0]));
        drop(tickets);
        assert_eq!(line.length(), 0);
    }
}
