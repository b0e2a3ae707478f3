//! Who may check now: how many checks are under way at once, and who goes first.
//!
//! A check of a server that hangs holds its turn until its time is over, and a pool may have a thousand
//! of them. So servers that failed last share a part of the turns among themselves, those of which nothing
//! is known yet a somewhat larger one, and what is left over is for servers that passed: those answer within
//! milliseconds. Never drops a check: who gets no turn waits, first come, first served.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Checks under way at once, each with one descriptor until its verdict is given.
const CHECKS_AT_ONCE: usize = 256;
/// Of them, those of servers that did not pass last or are new. Enough for the others: at 5 ms for each check,
/// 32 turns are 6,400 checks a second.
const UNPROVEN_AT_ONCE: usize = 224;
/// Of those, the ones of servers that failed: a new one need not wait until all of them have timed out.
const FAILING_AT_ONCE: usize = 96;
/// Connections that take their leave at once, for half a second each at the most. Those beyond keep their turn.
const LEAVING_AT_ONCE: usize = 32;
/// Checks that were not answered in time, and are still not broken off: see `late.rs`.
/// With the turns, this leaves a hundred of the descriptors set aside for our own use (`run.rs`) to all else.
const LATE_AT_ONCE: usize = 128;
/// Between two words about checks that had to wait.
const WORD_EVERY: Duration = Duration::from_secs(60);

/// By the last result that counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Passing,
    /// No result yet.
    New,
    Failing,
}

pub struct Turns {
    all: Arc<Semaphore>,
    unproven: Arc<Semaphore>,
    failing: Arc<Semaphore>,
    leaving: Arc<Semaphore>,
    late: Arc<Semaphore>,
    delays: Mutex<Delays>,
}

#[derive(Default)]
struct Delays {
    told: Option<Instant>,
    since: u64,
}

/// Given back when it is dropped.
pub struct Turn(#[expect(dead_code, reason = "held, not read")] [Option<OwnedSemaphorePermit>; 3]);

/// Given back when it is dropped.
pub type Place = OwnedSemaphorePermit;

impl Default for Turns {
    fn default() -> Self {
        let of = |places| Arc::new(Semaphore::new(places));
        Turns {
            all: of(CHECKS_AT_ONCE),
            unproven: of(UNPROVEN_AT_ONCE),
            failing: of(FAILING_AT_ONCE),
            leaving: of(LEAVING_AT_ONCE),
            late: of(LATE_AT_ONCE),
            delays: Mutex::default(),
        }
    }
}

impl Turns {
    /// The narrowest part first, so that nobody holds a turn of a wider one while it waits.
    pub async fn take(&self, lane: Lane) -> Turn {
        let failing = if lane == Lane::Failing { place(&self.failing).await } else { None };
        let unproven = if lane == Lane::Passing { None } else { place(&self.unproven).await };
        Turn([failing, unproven, place(&self.all).await])
    }

    /// For the time in which a connection takes its leave: gives back the turn where there is another place.
    pub fn take_leave(&self, turn: Turn) -> Turn {
        match Arc::clone(&self.leaving).try_acquire_owned() {
            Ok(place) => Turn([Some(place), None, None]),
            Err(_) => turn,
        }
    }

    /// `None`: so many are open already.
    pub fn take_late(&self) -> Option<Place> {
        Arc::clone(&self.late).try_acquire_owned().ok()
    }

    /// A check had to wait for its turn for longer than its interval. Says so, but not each time.
    pub fn on_delay(&self, waited: Duration) {
        let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        delays.since += 1;
        if delays.told.is_none_or(|told| told.elapsed() >= WORD_EVERY) {
            tracing::warn!(
                "{} health checks had to wait for longer than their interval, this one {waited:.1?}, because \
                 {CHECKS_AT_ONCE} at once are the most: servers that do not answer take up their whole `timeout`; \
                 a shorter one helps, and a longer `interval_down`",
                delays.since
            );
            *delays = Delays { told: Some(Instant::now()), since: 0 };
        }
    }

    /// Until nothing is under way any more.
    pub async fn rest(&self) {
        for (all, most) in
            [(&self.all, CHECKS_AT_ONCE), (&self.leaving, LEAVING_AT_ONCE), (&self.late, LATE_AT_ONCE)]
        {
            let most = u32::try_from(most).expect("a constant of three digits");
            if let Ok(places) = all.acquire_many(most).await {
                places.forget(); // nothing begins behind it
            }
        }
    }
}

/// Something always: they are never closed.
async fn place(places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(places).acquire_owned().await.ok()
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn at_once<T>(work: impl Future<Output = T>) -> Option<T> {
        match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    /// As many as get one, held by the caller.
    fn all_of(turns: &Turns, lane: Lane) -> Vec<Turn> {
        std::iter::from_fn(|| at_once(turns.take(lane))).collect()
    }

    #[test]
    fn servers_that_hang_leave_turns_to_new_ones_and_both_to_those_that_pass() {
        let turns = Turns::default();
        let mut held = all_of(&turns, Lane::Failing);
        assert_eq!(held.len(), FAILING_AT_ONCE);
        held.extend(all_of(&turns, Lane::New));
        assert_eq!(held.len(), UNPROVEN_AT_ONCE);
        held.extend(all_of(&turns, Lane::Passing));
        assert_eq!(held.len(), CHECKS_AT_ONCE);
        drop(held);
        assert_eq!(all_of(&turns, Lane::Passing).len(), CHECKS_AT_ONCE, "all of them are theirs, if need be");
    }
}
