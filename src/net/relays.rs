//! All relays of a worker: whose turn it is, and whose silence has lasted too long.
//!
//! A relay has no timer. The earliest deadline of all is remembered; when it comes, one sweep
//! over the relays ends those that are due and finds the next. Bytes that move put a deadline
//! off without telling anybody, so busy connections cost nothing here.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use super::brake::Holds;
use super::pump::Tools;
use super::relay::{Ended, Relay, Side, Turn};
use super::sock::Ready;

/// Sweeps keep this distance, so that many deadlines close together cost one sweep. A timeout
/// comes late by as much at the most.
const SWEEP_APART: Duration = Duration::from_millis(50);

pub(super) struct Relays {
    all: Slab<([usize; 2], Entry)>,
    /// Relays with something to do. Each stands here once at the most.
    queue: VecDeque<usize>,
    holds: Holds,
    tools: Tools,
    schedule: Schedule,
}

enum Entry {
    Reserved,
    Running { relay: Box<Relay>, is_queued: bool, waker: Option<Waker> },
    Ended(Ended),
}

impl Relays {
    pub(super) fn new() -> Self {
        Relays {
            all: Slab::new(),
            queue: VecDeque::new(),
            holds: Holds::default(),
            tools: Tools::new(Instant::now()),
            schedule: Schedule::default(),
        }
    }

    /// A place for a relay between these slots, to be filled by [`Self::begin`].
    pub(super) fn reserve(&mut self, slots: [usize; 2]) -> usize {
        self.all.insert((slots, Entry::Reserved))
    }

    pub(super) fn begin(&mut self, key: usize, relay: Relay, now: Instant) {
        self.schedule.hasten(relay.deadline(), now);
        self.all[key].1 = Entry::Running { relay: Box::new(relay), is_queued: true, waker: None };
        self.queue.push_back(key); // events may have come before the relay did
    }

    pub(super) fn on_event(&mut self, key: usize, side: Side, note: impl FnOnce(&mut Ready)) {
        if let Some((_, Entry::Running { relay, is_queued, .. })) = self.all.get_mut(key) {
            note(relay.ready(side));
            if !std::mem::replace(is_queued, true) {
                self.queue.push_back(key);
            }
        }
    }

    /// Relays under way or not yet told, pipes that they hold, and directions that are held back.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> (usize, usize, usize) {
        (self.all.len(), self.tools.pipes.out(), self.holds.len())
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Gives each relay that has something to do one turn.
    pub(super) fn turn(&mut self, now: Instant) {
        self.tools.now = now;
        self.let_go(now);
        for _ in 0..self.queue.len() {
            let Some(key) = self.queue.pop_front() else { return };
            let Some((_, Entry::Running { relay, is_queued, .. })) = self.all.get_mut(key) else { continue };
            let was_half_closed = (relay.is_half_closed(), relay.last_words_until());
            let turn = relay.turn(&mut self.tools);
            self.holds.enter(key, relay.braked());
            let sooner = (was_half_closed != (relay.is_half_closed(), relay.last_words_until()))
                .then(|| relay.deadline())
                .flatten();
            match turn {
                Turn::Waiting => *is_queued = false,
                Turn::Tired => self.queue.push_back(key),
                Turn::Ended(ended) => {
                    self.finish(key, ended);
                    continue;
                }
            }
            self.schedule.hasten(sooner, now);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.schedule.next(), self.holds.next()].into_iter().flatten().min()
    }

    /// Gives a turn to those that were held back until now.
    fn let_go(&mut self, now: Instant) {
        while let Some((key, side)) = self.holds.due(now) {
            let Some((_, Entry::Running { relay, is_queued, .. })) = self.all.get_mut(key) else { continue };
            if let Some(braked) = relay.braked() {
                braked.go_on(side);
            }
            if !std::mem::replace(is_queued, true) {
                self.queue.push_back(key);
            }
        }
    }

    /// Ends what has been silent too long, if the time of the next sweep has come.
    pub(super) fn sweep(&mut self, now: Instant) {
        if !self.schedule.is_due(now) {
            return;
        }
        let mut earliest: Option<Instant> = None;
        let mut silent = Vec::new();
        for (key, (_, entry)) in &mut self.all {
            let Entry::Running { relay, is_queued, .. } = entry else { continue };
            // Whoever has its turn before it is not silent: after a pause of the whole process
            // (a stopped machine) bytes and deadline come to light at once.
            let ended = relay.deadline().filter(|due| *due <= now).and_then(|_| relay.on_deadline(now));
            if let (Some(ended), false) = (ended, *is_queued) {
                silent.push((key, ended));
            } else if let Some(due) = relay.deadline() {
                earliest = Some(earliest.map_or(due, |so_far| so_far.min(due)));
            }
        }
        silent.into_iter().for_each(|(key, ended)| self.finish(key, ended));
        self.schedule.set(earliest, now);
    }

    /// The end of a relay, once; its place is free afterwards.
    pub(super) fn poll_ended(&mut self, key: usize, cx: &Context<'_>) -> Poll<Ended> {
        match self.all.get_mut(key).map(|(_, entry)| entry) {
            Some(Entry::Running { waker, .. }) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(entry @ Entry::Ended(_)) => match std::mem::replace(entry, Entry::Reserved) {
                Entry::Ended(ended) => Poll::Ready(ended),
                _ => unreachable!("matched just above"),
            },
            _ => unreachable!("a relay is asked for its end until it has told it"),
        }
    }

    /// Forgets a relay and gives its slots back; if it still runs, both sides are reset.
    pub(super) fn end(&mut self, key: usize) -> [usize; 2] {
        let (slots, entry) = self.all.remove(key);
        if let Entry::Running { mut relay, .. } = entry {
            self.holds.strike(key, relay.braked());
            relay.prepare_close(None, &mut self.tools);
        }
        slots
    }

    fn finish(&mut self, key: usize, ended: Ended) {
        let running = std::mem::replace(&mut self.all[key].1, Entry::Reserved);
        if let Entry::Running { mut relay, waker, .. } = running {
            self.holds.strike(key, relay.braked());
            relay.prepare_close(Some(&ended.how), &mut self.tools);
            drop(relay); // closes both sockets
            self.all[key].1 = Entry::Ended(ended);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// When the next sweep is due: not later than the earliest deadline of all relays.
#[derive(Default)]
pub(super) struct Schedule(Option<Instant>);

impl Schedule {
    pub(super) fn next(&self) -> Option<Instant> {
        self.0
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.0.is_some_and(|due| due <= now)
    }

    /// There is a deadline that may be earlier than all others.
    pub(super) fn hasten(&mut self, deadline: Option<Instant>, now: Instant) {
        if let Some(due) = deadline {
            let due = due.max(now);
            self.0 = Some(self.0.map_or(due, |so_far| so_far.min(due)));
        }
    }

    /// After a sweep: the earliest deadline that it found.
    pub(super) fn set(&mut self, earliest: Option<Instant>, now: Instant) {
        self.0 = earliest.map(|due| due.max(now + SWEEP_APART));
    }
}
