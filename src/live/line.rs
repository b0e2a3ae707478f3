//! The line before a pool: who waits for a server, over all workers.
//!
//! `core/queue.rs` says whose turn is next; here that one is woken. Only those who are called ask
//! servers, and only one is called at first: so a dead pool is asked by one client at a time
//! however many wait. With each that is served twice as many are called, up to [`CALLED_MAX`],
//! so that a line of thousands is gone soon after a server is back. Who is kept waiting by a server holds up
//! nobody: another may ask meanwhile, but only those servers of which nothing bad is known.
//!
//! Who is of a higher class passes those who are called already, and in a full line it takes the place of
//! the newest of the lowest class. Who is of none, and of a source that has fewer in the line than another of its
//! class, takes the place of that one's newest who waits. So the line never grows for anybody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::core::priority::Priority;
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
    /// Of those who wait for their turn or for the end of it, by number.
    wakers: HashMap<u64, Waker>,
    /// Of those who have been put out and are not gone yet, by number: by whom.
    displaced: HashMap<u64, Taker>,
    /// The highest class first, and within a class in the order of their turns. Of each class at most
    /// [`CALLED_MAX`]: one more is called only before those of lower classes.
    called: Vec<Called>,
    /// How many of those who are called may ask, at most; 0 counts as 1.
    width: usize,
}

#[derive(Debug)]
struct Called {
    ticket: queue::Ticket,
    /// It knows that it may ask.
    is_told: bool,
    /// It is at a server that does not answer yet.
    is_kept: bool,
}

/// Who has taken a client's place in a full line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    HigherClass,
    /// Of the same class, and from where fewer wait.
    OtherSource,
}

/// Whom one asks whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    First,
    /// One before it is at a server that does not answer yet, and finds out about it for all.
    Behind,
}

impl Line {
    /// A place at the end of its class, unless `max` stand in the line already and nobody has to stand back:
    /// who is of a lower class, or of the same one and of a source that has more of them.
    pub fn join(self: &Arc<Self>, class: Priority, source: IpAddr, max: usize) -> Option<Ticket> {
        let mut inside = self.inside();
        if inside.length() >= max && !inside.make_room(class, source) {
            return None;
        }
        let ticket = inside.queue.join(class, source);
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
        while self.may_call() {
            let Some(ticket) = self.queue.call() else { break };
            let place = self.called.partition_point(|other| !ticket.class.is_above(other.ticket.class));
            self.called.insert(place, Called { ticket, is_told: false, is_kept: false });
        }
        if self.length() == 0 {
            self.width = 1;
        }
        let askers = self.askers();
        for (place, called) in self.called.iter_mut().enumerate() {
            let may_ask = place < askers;
            if may_ask
                && !called.is_told
                && let Some(waker) = self.wakers.get(&called.ticket.number)
            {
                waker.wake_by_ref();
            }
            called.is_told = may_ask;
        }
    }

    /// One more may ask, or one who waits is of a higher class than the last of those who may.
    fn may_call(&self) -> bool {
        let last = self.called.get(self.width() - 1);
        let next = self.queue.next_class();
        next.is_some_and(|next| last.is_none_or(|last| next.is_above(last.ticket.class)))
    }

    /// Puts one out of the line for a newcomer. Says no where nobody has to stand back.
    fn make_room(&mut self, class: Priority, source: IpAddr) -> bool {
        let lower = self.drop_lower(class).map(|out| (out, Taker::HigherClass));
        let greedy = || self.queue.drop_greediest(class, source).map(|out| (out, Taker::OtherSource));
        let Some((out, taker)) = lower.or_else(greedy) else { return false };
        self.displaced.insert(out.number, taker);
        self.wakers.remove(&out.number).into_iter().for_each(Waker::wake);
        true
    }

    /// The newest of the lowest class, where that is below this one; one who waits rather than one who is
    /// called.
    fn drop_lower(&mut self, class: Priority) -> Option<queue::Ticket> {
        let waiting = self.queue.last_class();
        let last = waiting.max(self.called.last().map(|called| called.ticket.class));
        if !last.is_some_and(|last| class.is_above(last)) {
            return None;
        }
        if waiting == last {
            return self.queue.drop_newest();
        }
        let out = self.called.pop().map(|called| called.ticket);
        out.inspect(|out| self.queue.end_call(*out))
    }

    /// Those who may ask: the first ones, and of one class, since of those who ask at the same time
    /// anybody may be the one who is served.
    fn askers(&self) -> usize {
        let Some(first) = self.called.first() else { return 0 };
        let of_its_class = |called: &&Called| called.ticket.class == first.ticket.class;
        self.called.iter().take(self.width()).take_while(of_its_class).count()
    }

    /// How many may ask at the same time: those who are kept by a server do not count.
    fn width(&self) -> usize {
        let kept = self.called.iter().filter(|called| called.is_kept).count();
        (self.width.max(1) + kept).min(CALLED_MAX)
    }

    /// Is one before it kept by a server.
    fn is_behind(&self, place: usize) -> bool {
        self.called.iter().take(place).any(|called| called.is_kept)
    }

    fn place(&self, ticket: queue::Ticket) -> Option<usize> {
        self.called.iter().position(|called| called.ticket == ticket)
    }

    fn wake_on_change(&mut self, ticket: queue::Ticket, cx: &Context<'_>) {
        let waker = self.wakers.entry(ticket.number).or_insert_with(|| cx.waker().clone());
        waker.clone_from(cx.waker());
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
    pub fn poll_called(&self, cx: &mut Context<'_>) -> Poll<Turn> {
        let mut inside = self.line.inside();
        if let Some(place) = inside.place(self.ticket).filter(|place| *place < inside.askers()) {
            return Poll::Ready(if inside.is_behind(place) { Turn::Behind } else { Turn::First });
        }
        inside.wake_on_change(self.ticket, cx);
        Poll::Pending
    }

    /// Ends when the place is gone, because the line was full and somebody came who goes before. By the
    /// same task as [`Self::poll_called`].
    pub fn poll_displaced(&self, cx: &mut Context<'_>) -> Poll<Taker> {
        let mut inside = self.line.inside();
        if let Some(taker) = inside.displaced.get(&self.ticket.number) {
            return Poll::Ready(*taker);
        }
        inside.wake_on_change(self.ticket, cx);
        Poll::Pending
    }

    /// A server has not answered this client yet: meanwhile another may ask.
    pub fn is_kept(&self) {
        let mut inside = self.line.inside();
        if let Some(place) = inside.place(self.ticket) {
            inside.called[place].is_kept = true;
            inside.call_more();
        }
    }

    /// No server took this client: until one takes somebody, only the first may ask. One that asked behind
    /// another knows too little for that.
    pub fn in_vain(&self) {
        let mut inside = self.line.inside();
        let place = inside.place(self.ticket);
        if !place.is_some_and(|place| inside.is_behind(place)) {
            inside.width = 1;
        }
        if let Some(place) = place {
            inside.called[place].is_kept = false;
        }
        inside.call_more(); // those who may not ask any more are told when they may again
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
        inside.wakers.remove(&self.ticket.number);
        inside.displaced.remove(&self.ticket.number);
        if let Some(place) = inside.place(self.ticket) {
            inside.called.remove(place);
            inside.queue.end_call(self.ticket);
        } else {
            inside.queue.leave(self.ticket);
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
        let join =
            |host| line.join(Priority::default(), Ipv4Addr::new(192, 0, 2, host).into(), 100).expect("room");
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
    fn who_is_kept_by_a_server_holds_up_nobody() {
        let (line, tickets) = line_of(3);
        let turn = |place: usize| tickets[place].poll_called(&mut Context::from_waker(Waker::noop()));
        assert_eq!((turn(0), turn(1)), (Poll::Ready(Turn::First), Poll::Pending));
        tickets[0].is_kept();
        tickets[0].is_kept();
        assert_eq!([turn(1), turn(2)], [Poll::Ready(Turn::Behind), Poll::Pending]);
        tickets[1].is_kept();
        assert_eq!(turn(2), Poll::Ready(Turn::Behind));
        tickets[0].in_vain();
        assert_eq!(
            [turn(0), turn(1), turn(2)],
            [Poll::Ready(Turn::First), Poll::Ready(Turn::First), Poll::Pending]
        );
        drop(tickets);
        assert_eq!(line.length(), 0);
    }

    #[test]
    fn however_many_are_kept_no_more_than_a_bounded_number_ask_at_once() {
        let (_, tickets) = line_of(100);
        for ticket in tickets.iter().filter(|ticket| is_called(ticket)) {
            ticket.is_kept();
        }
        assert_eq!(called(&tickets), CALLED_MAX);
    }

    #[test]
    fn a_line_has_an_end() {
        let line = Arc::<Line>::default();
        let source = Ipv4Addr::LOCALHOST.into();
        let two = [line.join(Priority::default(), source, 2), line.join(Priority::default(), source, 2)];
        assert!(two.iter().all(Option::is_some) && line.join(Priority::default(), source, 2).is_none());
        drop(two);
        assert!(line.join(Priority::default(), source, 2).is_some());
    }

    fn is_displaced(ticket: &Ticket) -> bool {
        ticket.poll_displaced(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn join(line: &Arc<Line>, class: Priority, max: usize) -> Option<Ticket> {
        line.join(class, Ipv4Addr::LOCALHOST.into(), max)
    }

    #[test]
    fn a_higher_class_asks_before_those_who_are_called_already() {
        let (line, mut tickets) = line_of(4);
        let high = join(&line, Priority::High, 100).expect("room");
        assert!(is_called(&high) && !is_called(&tickets[0]), "one asks for all, and it is the highest");
        high.served();
        assert_eq!(called(&tickets), 2);
        let first = join(&line, Priority::High, 100).expect("room");
        assert!(is_called(&first) && called(&tickets) == 0, "or they might take what it is there for");
        let highs = [0; 2].map(|_| join(&line, Priority::High, 100).expect("room"));
        assert_eq!((called(&highs), called(&tickets)), (1, 0));
        drop(first);
        highs.into_iter().for_each(drop);
        assert!(is_called(&tickets[0]) && is_called(&tickets[1]), "nobody has lost his turn");
        tickets.drain(..).for_each(drop);
        assert_eq!(line.length(), 0);
    }

    #[test]
    fn who_may_ask_again_is_woken_for_it() {
        let (line, tickets) = line_of(1);
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(Arc::clone(&bell));
        let high = join(&line, Priority::High, 100).expect("room");
        high.in_vain();
        assert!(tickets[0].poll_called(&mut Context::from_waker(&waker)).is_pending());
        drop(high);
        assert_eq!(bell.0.load(Ordering::SeqCst), 1);
        assert!(is_called(&tickets[0]));
    }

    #[test]
    fn nobody_is_woken_in_vain_who_may_not_ask_or_knows_that_he_may() {
        let (line, tickets) = line_of(1);
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(Arc::clone(&bell));
        let high = join(&line, Priority::High, 100).expect("room");
        assert!(high.poll_displaced(&mut Context::from_waker(&waker)).is_pending());
        assert!(tickets[0].poll_called(&mut Context::from_waker(&waker)).is_pending());
        let _low = join(&line, Priority::Low, 100).expect("room");
        assert_eq!(bell.0.load(Ordering::SeqCst), 0, "one has been told, and it is not the other's turn");
    }

    #[test]
    fn in_a_full_line_a_higher_class_takes_the_place_of_the_newest_of_the_lowest() {
        let line = Arc::<Line>::default();
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(Arc::clone(&bell));
        let classes = [Priority::Low, Priority::Lowest, Priority::Lowest, Priority::Normal];
        let tickets = classes.map(|class| join(&line, class, 4).expect("room"));
        assert!(tickets[2].poll_displaced(&mut Context::from_waker(&waker)).is_pending());
        assert!(join(&line, Priority::Lowest, 4).is_none(), "none is of a lower class");
        let high = join(&line, Priority::High, 4).expect("another's place");
        assert_eq!((bell.0.load(Ordering::SeqCst), line.length()), (1, 4));
        assert_eq!(tickets.iter().map(is_displaced).collect::<Vec<_>>(), [false, false, true, false]);
        assert!(is_called(&high));
        drop(tickets);
        assert_eq!(line.length(), 1, "who was displaced has no place to give back");
    }

    #[test]
    fn in_a_full_line_who_has_few_takes_the_place_of_the_newest_of_who_has_many() {
        let line = Arc::<Line>::default();
        let come = |host| line.join(Priority::default(), Ipv4Addr::new(192, 0, 2, host).into(), 4);
        let greedy = [0; 4].map(|_| come(1).expect("room"));
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(Arc::clone(&bell));
        assert!(greedy[3].poll_displaced(&mut Context::from_waker(&waker)).is_pending());
        assert!(come(1).is_none(), "nobody takes his own place");
        let others = [2, 3, 4].map(|host| come(host).expect("another's place"));
        assert!(come(5).is_none() && line.length() == 4, "nobody has more than one");
        assert_eq!(bell.0.load(Ordering::SeqCst), 1);
        let taker = |ticket: &Ticket| ticket.poll_displaced(&mut Context::from_waker(Waker::noop()));
        assert_eq!(taker(&greedy[3]), Poll::Ready(Taker::OtherSource));
        assert_eq!(greedy.each_ref().map(is_displaced), [false, true, true, true]);
        assert!(is_called(&greedy[0]) && !others.iter().any(is_displaced));
        drop((greedy, others));
        assert!(line.length() == 0 && line.inside().displaced.is_empty());
    }

    #[test]
    fn who_is_called_keeps_his_place_as_long_as_another_of_his_class_waits() {
        let line = Arc::<Line>::default();
        let tickets = [0; 2].map(|_| join(&line, Priority::Low, 2).expect("room"));
        let first = join(&line, Priority::High, 2).expect("another's place");
        assert_eq!(tickets.each_ref().map(is_displaced), [false, true]);
        let second = join(&line, Priority::High, 2).expect("another's place");
        assert_eq!(tickets.each_ref().map(is_displaced), [true, true]);
        assert!(join(&line, Priority::High, 2).is_none() && line.length() == 2);
        drop([first, second]);
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
