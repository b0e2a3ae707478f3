//! What an operator is told of as it happens: servers and pools that come and go.
//!
//! The one place that every event passes, whichever doer has seen it: each becomes a line of the log, of
//! what flaps only so many (`core/damper.rs`). Decides nothing about servers, and never waits.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::core::bucket::Rate;
use crate::core::damper::{Damper, Rates, Told};
use crate::core::outcome::words;

/// Lines about one topic of one server or pool: enough for a restart with all that it brings, and one a minute
/// for what flaps, so that its end is not long unknown. The process as a whole may tell of a pool of a hundred
/// at once; beyond that, ten a second are still read, and what waits is not lost.
const LINES: Rates = Rates {
    each: Rate { count: 6, per: Duration::from_secs(6 * 60) },
    all: Rate { count: 100, per: Duration::from_secs(10) },
};

words! {
    /// What has happened.
    Kind {
        ServerUp = "server_up",
        ServerDown = "server_down",
        ServerEjected = "server_ejected",
        ServerReturned = "server_returned",
        EjectionRefused = "ejection_refused",
        CircuitOpened = "circuit_opened",
        CircuitHalfOpen = "circuit_half_open",
        CircuitClosed = "circuit_closed",
        /// Its first tier serves.
        PoolServes = "pool_serves",
        /// A higher tier serves, or another pool, or nobody.
        PoolDegraded = "pool_degraded",
    }
}

/// Kinds of which the newest tells how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    Checks,
    Ejection,
    Refusal,
    Circuit,
    Serving,
}

impl Kind {
    fn topic(self) -> Topic {
        match self {
            Kind::ServerUp | Kind::ServerDown => Topic::Checks,
            Kind::ServerEjected | Kind::ServerReturned => Topic::Ejection,
            Kind::EjectionRefused => Topic::Refusal,
            Kind::CircuitOpened | Kind::CircuitHalfOpen | Kind::CircuitClosed => Topic::Circuit,
            Kind::PoolServes | Kind::PoolDegraded => Topic::Serving,
        }
    }

    fn is_trouble(self) -> bool {
        use Kind::{CircuitOpened, EjectionRefused, PoolDegraded, ServerDown, ServerEjected};
        matches!(self, ServerDown | ServerEjected | EjectionRefused | CircuitOpened | PoolDegraded)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: Timestamp,
    pub kind: Kind,
    /// `POOL/SERVER`, or a pool's name.
    pub subject: String,
    /// A clause: what has become of it, and why.
    pub message: String,
}

impl Event {
    pub fn now(kind: Kind, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Event { at: Timestamp::now(), kind, subject: subject.into(), message: message.into() }
    }

    fn line(&self) -> String {
        let Event { subject, message, .. } = self;
        match self.kind.topic() {
            Topic::Serving => format!("pool `{subject}`: {message}"),
            _ => format!("server `{subject}` {message}"),
        }
    }
}

/// A topic of a server or pool.
type About = (Topic, String);

#[derive(Debug)]
pub struct Events(Mutex<Damper<About, Event>>);

impl Events {
    pub fn new(now: Instant) -> Self {
        Events(Mutex::new(Damper::new(LINES, now)))
    }

    /// An event that stands for `count` like it. Says whether it has to wait until [`Self::deadline`].
    pub fn tell(&self, event: Event, count: u64, now: Instant) -> bool {
        let about = (event.kind.topic(), event.subject.clone());
        let mut damper = self.damper();
        let told = damper.on_news(&about, event, count, now);
        told.iter().for_each(write); // while nobody else can tell something newer before it
        told.is_none()
    }

    /// When an event that waits is to be told.
    pub fn deadline(&self) -> Option<Instant> {
        self.damper().deadline()
    }

    pub fn tell_what_waited(&self, now: Instant) {
        let mut damper = self.damper();
        damper.on_deadline(now).iter().for_each(write);
    }

    fn damper(&self) -> MutexGuard<'_, Damper<About, Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(told: &Told<Event>) {
    let line = line(told);
    match told.news.kind.is_trouble() {
        true => tracing::warn!("{line}"),
        false => tracing::info!("{line}"),
    }
}

fn line(told: &Told<Event>) -> String {
    let line = told.news.line();
    match told.left_out {
        0 => line,
        1 => format!("{line} (one change before this one was left out)"),
        more => format!("{line} ({more} changes before this one were left out)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_and_what_and_how_much_was_left_out() {
        let down = |left_out| Told { news: Event::now(Kind::ServerDown, "api/a", "is down"), left_out };
        assert_eq!(line(&down(0)), "server `api/a` is down");
        assert_eq!(line(&down(1)), "server `api/a` is down (one change before this one was left out)");
        assert_eq!(line(&down(7)), "server `api/a` is down (7 changes before this one were left out)");
        let pool = Told { news: Event::now(Kind::PoolServes, "api", "its servers serve"), left_out: 0 };
        assert_eq!(line(&pool), "pool `api`: its servers serve");
    }

    #[test]
    fn one_topic_that_flaps_hides_no_other() {
        let now = Instant::now();
        let events = Events::new(now);
        let waits = |kind| events.tell(Event::now(kind, "api/a", ""), 1, now);
        let flapping: Vec<_> = (0..8).map(|_| waits(Kind::CircuitOpened)).collect();
        assert_eq!(flapping, [false, false, false, false, false, false, true, true]);
        assert!(!waits(Kind::ServerDown) && !waits(Kind::ServerEjected));
        assert!(events.deadline().is_some_and(|deadline| deadline > now));
    }
}
