//! Sees when passive health acts, and says so.
//!
//! Workers decide (by `live/guard.rs`) and ring a bell. Here is looked then what
//! has become of each server since the last look, by counts, so that nothing is lost however much happens at
//! once. What ends by itself (an ejection, the time of an open breaker) is looked for at its time.

mod seen; // one server: what has changed

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout_at};

use self::seen::{Change, Seen, Sight};
use super::desk::Desk;
use super::events::{Event, Kind};
use crate::core::breaker::State;
use crate::live::{Fault, ServerLive};
use crate::snapshot::{Pool, Server};

/// Between two looks, so that what flaps costs control no more than ten looks a second.
const LOOKS_APART: Duration = Duration::from_millis(100);

/// Where servers are watched, so often is looked at the reasons for which connects fail: what is told of a
/// failure is then the reason of the last few seconds.
const REASONS_EVERY: Duration = Duration::from_secs(5);

pub struct Lookout {
    desk: Arc<Desk>,
    /// Servers that have or had rules, by the number of their guard. An entry lives as long as the server does,
    /// which may be longer than it is in the plan.
    servers: BTreeMap<u64, (Weak<ServerLive>, Seen)>,
}

impl Lookout {
    /// All that has happened so far is news.
    pub fn new(desk: Arc<Desk>) -> Self {
        Lookout { desk, servers: BTreeMap::new() }
    }

    /// Runs until dropped.
    pub async fn watch(mut self) {
        loop {
            let deadline = self.look(Instant::now());
            sleep(LOOKS_APART).await;
            let desk = Arc::clone(&self.desk);
            let rung = poll_fn(|cx| desk.bell.poll_rung(cx));
            match deadline {
                Some(deadline) => _ = timeout_at(deadline.into(), rung).await,
                None => rung.await,
            }
        }
    }

    /// Tells what has changed. Gives when to look again, if nobody rings.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let snapshot = self.desk.snapshot();
        self.servers.retain(|_, (live, _)| live.strong_count() > 0);
        let mut next = None;
        for pool in snapshot.pools.values() {
            if self.is_watched(pool) {
                next = [next, Some(self.look_at(pool, now))].into_iter().flatten().min();
            }
        }
        self.desk.tell_who_serves();
        self.desk.events.tell_what_waited(now);
        [next, self.desk.events.deadline()].into_iter().flatten().min()
    }

    /// Has it rules, or servers that are known from when it had.
    fn is_watched(&self, pool: &Pool) -> bool {
        let is_known = |server: &Server| self.servers.contains_key(&server.live.guard.number());
        let has_rules = pool.plan.outlier_detection.is_some() || pool.plan.circuit_breaker.is_some();
        has_rules || (!self.servers.is_empty() && pool.servers.iter().any(is_known))
    }

    /// At the servers of a pool. Gives when something there ends by itself.
    fn look_at(&mut self, pool: &Pool, now: Instant) -> Instant {
        let sights: Vec<_> = pool.servers.iter().map(|server| Sight::of(&server.live, now)).collect();
        let tally = Tally::of(&sights);
        for (server, sight) in pool.servers.iter().zip(&sights) {
            let entry = self.servers.entry(server.live.guard.number());
            let (_, seen) = entry.or_insert_with(|| (Arc::downgrade(&server.live), Seen::default()));
            for change in seen.turn(sight) {
                let subject = format!("{}/{}", pool.plan.name, server.plan.name);
                let (event, count) = event(subject, change, seen, sight, &tally);
                self.desk.announce_many(event, count);
            }
        }
        let ends = sights.iter().filter_map(Sight::ends_in).map(|left| now + left);
        ends.chain([now + REASONS_EVERY]).min().unwrap_or(now + REASONS_EVERY)
    }
}

/// How many of a pool are out.
struct Tally {
    servers: usize,
    ejected: usize,
    open: usize,
}

impl Tally {
    fn of(sights: &[Sight]) -> Self {
        let count = |is_it: fn(&Sight) -> bool| sights.iter().filter(|sight| is_it(sight)).count();
        Tally {
            servers: sights.len(),
            ejected: count(Sight::is_ejected),
            open: count(|sight| sight.state() == State::Open),
        }
    }

    fn ejected(&self) -> String {
        format!("ejected in its pool: {} of {}", self.ejected, self.servers)
    }

    fn open(&self) -> String {
        format!("open in its pool: {} of {}", self.open, self.servers)
    }
}

/// The event for a change, and how many like it there were.
fn event(subject: String, change: Change, seen: &Seen, sight: &Sight, tally: &Tally) -> (Event, u64) {
    let (kind, count) = match change {
        Change::Ejected(count) => (Kind::ServerEjected, count),
        Change::Returned => (Kind::ServerReturned, 1),
        Change::Refused(count) => (Kind::EjectionRefused, count),
        Change::Opened(count) => (Kind::CircuitOpened, count),
        Change::HalfOpen => (Kind::CircuitHalfOpen, 1),
        Change::Closed => (Kind::CircuitClosed, 1),
    };
    let message = match change {
        Change::Ejected(_) | Change::Returned | Change::Refused(_) => {
            format!("{}; {}", of_ejection(change, seen, sight), tally.ejected())
        }
        Change::HalfOpen => of_circuit(change, seen, sight),
        Change::Opened(_) | Change::Closed => {
            format!("{}; {}", of_circuit(change, seen, sight), tally.open())
        }
    };
    (Event::now(kind, subject, message), count)
}

fn of_ejection(change: Change, seen: &Seen, sight: &Sight) -> String {
    let Some(watched) = sight.watched else {
        return "is in again, as its pool ejects nobody any more".into();
    };
    let last = seen.last_failure(watched.last_fault).map(|last| format!(", {last}")).unwrap_or_default();
    match (change, watched.last, watched.refused_for) {
        (Change::Ejected(_), Some((lasts, cause)), _) => format!("is ejected for {lasts:?}: {cause}{last}"),
        (Change::Ejected(_), None, _) => "was ejected, and a reload has brought it back".into(),
        (Change::Refused(_), _, Some(cause)) => {
            format!("stands out ({cause}{last}) and stays in, as max_ejected is reached")
        }
        (Change::Refused(_), ..) => "stands out and stays in, as max_ejected is reached".into(),
        _ => "is in again after its ejection".into(),
    }
}

fn of_circuit(change: Change, seen: &Seen, sight: &Sight) -> String {
    let Some(circuit) = sight.circuit else {
        return "is in again, as its pool has no breakers any more".into();
    };
    let last = seen.last_failure(Fault::Connect).map(|last| format!(", {last}")).unwrap_or_default();
    match (change, circuit.rules.half_open_trials, circuit.cause) {
        (Change::Opened(_), _, cause) => {
            let open_for = circuit.rules.open_for;
            let cause = cause.map(|cause| format!(": {cause}{last}")).unwrap_or_default();
            format!("is left alone for {open_for:?}, its circuit breaker has opened{cause}")
        }
        (Change::HalfOpen, 1, _) => "may be tried by one connection, its circuit breaker is half-open".into(),
        (Change::HalfOpen, trials, _) => {
            format!("may be tried by {trials} connections, its circuit breaker is half-open")
        }
        _ => "is in again, its circuit breaker has closed".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::Plan;
    use crate::control::fixture::{desk_of, plan_of};
    use crate::core::{breaker, outlier};

    fn watched_plan() -> Plan {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].outlier_detection = Some(outlier::Rules {
            consecutive_failures: 2,
            failure_ratio: 1.0,
            min_connections: 100,
            eject_for: Duration::from_secs(30),
            max_ejected: 0.5,
        });
        plan
    }

    fn breaking_plan() -> Plan {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].circuit_breaker = Some(breaker::Rules {
            failures: 1,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            half_open_trials: 1,
        });
        plan
    }

    /// A connection to that server fails.
    fn fail(desk: &Desk, server: usize, now: Instant) {
        let live = Arc::clone(&desk.snapshot().pools["api"].servers[server].live);
        live.guard.enter(now).expect("it may be tried").failed(Duration::ZERO, now);
    }

    #[test]
    fn it_looks_again_when_an_ejection_ends_or_a_breaker_may_be_tried() {
        for (plan, ends) in [(watched_plan(), 30), (breaking_plan(), 5)] {
            let desk = desk_of(&plan);
            let mut lookout = Lookout::new(Arc::clone(&desk));
            let now = Instant::now();
            (0..2)
                .take_while(|_| plan.pools[0].outlier_detection.is_some())
                .for_each(|_| fail(&desk, 0, now));
            if plan.pools[0].circuit_breaker.is_some() {
                fail(&desk, 0, now);
            }
            let end = now + Duration::from_secs(ends);
            let almost = end - Duration::from_secs(1);
            assert_eq!(lookout.look(almost), Some(end));
        }
    }

    #[test]
    fn where_nobody_is_watched_it_waits_for_the_bell_alone() {
        let desk = desk_of(&plan_of("api", &["a"]));
        assert_eq!(Lookout::new(desk).look(Instant::now()), None);
    }
}
