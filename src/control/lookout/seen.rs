//! One server at two looks: what has changed between them. Tells nobody.

use std::time::{Duration, Instant};

use crate::core::breaker::State;
use crate::core::outcome::Reason;
use crate::live::{Circuit, Fault, ServerLive, Watched};

/// Reasons for which a connect speaks against a server, and what they are called here.
const REASONS: [(Reason, &str); 4] = [
    (Reason::ServerRefused, "connection refused"),
    (Reason::ServerReset, "connection reset"),
    (Reason::ConnectTimeout, "no answer within connect_timeout"),
    (Reason::ServerUnreachable, "no way to it"),
];

/// A server at one look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sight {
    pub watched: Option<Watched>,
    pub circuit: Option<Circuit>,
    /// Connects that have failed so far, in the order of [`REASONS`].
    failed: [u64; REASONS.len()],
}

impl Sight {
    pub fn of(live: &ServerLive, now: Instant) -> Self {
        let (watched, circuit) = (live.guard.watched(now), live.guard.circuit(now));
        // After the guard: what it knows of has been counted.
        let failed = REASONS.map(|(reason, _)| live.stats.sum(|stats| stats.connect_failures.get(reason)));
        Sight { watched, circuit, failed }
    }

    pub fn is_ejected(&self) -> bool {
        self.watched.is_some_and(|watched| watched.ejected.is_some())
    }

    /// Of its breaker. Without one, everybody may.
    pub fn state(&self) -> State {
        self.circuit.map_or(State::Closed, |circuit| circuit.state)
    }

    /// Until its ejection ends or its breaker lets somebody in.
    pub fn ends_in(&self) -> Option<Duration> {
        let ejected = self.watched.and_then(|watched| watched.ejected).map(|(left, _)| left);
        let open = self.circuit.and_then(|circuit| circuit.open_for);
        [ejected, open].into_iter().flatten().min()
    }
}

/// What has become of a server since the last look; with how often, where that may be more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Ejected(u64),
    Returned,
    /// It stood out and had to stay in.
    Refused(u64),
    Opened(u64),
    HalfOpen,
    Closed,
}

/// What is remembered of the last look. Of a server that was never looked at, that nothing had happened.
#[derive(Debug, Default)]
pub struct Seen {
    is_ejected: bool,
    ejections: u64,
    refused: u64,
    opened: u64,
    /// `None`: closed.
    state: Option<State>,
    failed: [u64; REASONS.len()],
    /// Why connects have failed of late, and whether all did for that.
    reason: Option<(&'static str, bool)>,
}

impl Seen {
    /// What has changed, in the order in which it is told.
    pub fn turn(&mut self, sight: &Sight) -> Vec<Change> {
        self.note_reasons(sight);
        let mut changes = self.turn_ejection(sight);
        changes.extend(self.turn_circuit(sight));
        changes
    }

    /// Of the last failures, in words.
    pub fn last_failure(&self, fault: Fault) -> Option<String> {
        match (fault, self.reason) {
            (Fault::Service, _) => Some("the last: a reset before its first byte".into()),
            (Fault::Connect, Some((reason, true))) => Some(format!("the last: {reason}")),
            (Fault::Connect, Some((reason, false))) => Some(format!("mostly: {reason}")),
            (Fault::Connect, None) => None,
        }
    }

    fn note_reasons(&mut self, sight: &Sight) {
        let before = std::mem::replace(&mut self.failed, sight.failed);
        let grown: [u64; REASONS.len()] = std::array::from_fn(|n| sight.failed[n].saturating_sub(before[n]));
        let most = (0..REASONS.len()).rev().max_by_key(|n| grown[*n]).unwrap_or(0);
        if grown[most] > 0 {
            self.reason = Some((REASONS[most].1, grown.iter().sum::<u64>() == grown[most]));
        }
    }

    fn turn_ejection(&mut self, sight: &Sight) -> Vec<Change> {
        let (ejections, refused) = sight.watched.map_or((0, 0), |now| (now.ejections, now.refused));
        let ejected = since(std::mem::replace(&mut self.ejections, ejections), ejections);
        let refused = since(std::mem::replace(&mut self.refused, refused), refused);
        let was_ejected = std::mem::replace(&mut self.is_ejected, sight.is_ejected());
        let has_returned = (was_ejected || ejected > 0) && !self.is_ejected;
        let changes = [
            (ejected > 0).then_some(Change::Ejected(ejected)),
            has_returned.then_some(Change::Returned),
            (refused > 0).then_some(Change::Refused(refused)),
        ];
        changes.into_iter().flatten().collect()
    }

    fn turn_circuit(&mut self, sight: &Sight) -> Vec<Change> {
        // A pool that has lost its breakers counts on where it was when it has some again.
        let count = sight.circuit.map_or(self.opened, |circuit| circuit.opened);
        let opened = since(std::mem::replace(&mut self.opened, count), count);
        let state = sight.state();
        let before = self.state.replace(state).unwrap_or(State::Closed);
        let changed = before != state || opened > 0;
        let changes = [
            (opened > 0).then_some(Change::Opened(opened)),
            (changed && state == State::HalfOpen).then_some(Change::HalfOpen),
            (changed && state == State::Closed).then_some(Change::Closed),
        ];
        changes.into_iter().flatten().collect()
    }
}

/// How much a count has grown. New rules may let it begin anew.
fn since(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::breaker;
    use crate::core::outlier::Cause;

    const CAUSE: Cause = Cause::InARow(5);

    fn ejected(is_out: bool, ejections: u64) -> Sight {
        let watched = Watched {
            ejected: is_out.then_some((Duration::from_secs(3), CAUSE)),
            ejections,
            last: Some((Duration::from_secs(30), CAUSE)),
            refused: 0,
            refused_for: None,
            last_fault: Fault::Connect,
        };
        Sight { watched: Some(watched), ..Sight::default() }
    }

    fn circuit(state: State, opened: u64) -> Sight {
        let rules = breaker::Rules {
            failures: 5,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            half_open_trials: 2,
        };
        let circuit = Circuit { state, open_for: None, opened, cause: None, rules };
        Sight { circuit: Some(circuit), ..Sight::default() }
    }

    /// What each of these sights brings.
    fn turns<const N: usize>(sights: [Sight; N]) -> [Vec<Change>; N] {
        let mut seen = Seen::default();
        sights.map(|sight| seen.turn(&sight))
    }

    #[test]
    fn an_ejection_and_its_end_are_told_once_and_none_is_lost_between_two_looks() {
        use Change::{Ejected, Returned};
        let sights = [(true, 1), (true, 1), (false, 1), (false, 1), (false, 2), (true, 5), (true, 6)];
        let told = turns(sights.map(|(is_out, count)| ejected(is_out, count)));
        assert_eq!(
            told,
            [
                vec![Ejected(1)],
                vec![],
                vec![Returned],
                vec![],
                vec![Ejected(1), Returned],
                vec![Ejected(3)],
                vec![Ejected(1)]
            ]
        );
    }

    #[test]
    fn a_breaker_that_opens_and_closes_is_told_however_seldom_it_is_looked_at() {
        use Change::{Closed, HalfOpen, Opened};
        use State::{Closed as Shut, Open};
        let sights = [
            (Shut, 0),
            (Open, 1),
            (State::HalfOpen, 1),
            (Open, 2),
            (State::HalfOpen, 3),
            (Shut, 3),
            (Shut, 7),
        ];
        let told = turns(sights.map(|(state, opened)| circuit(state, opened)));
        assert_eq!(
            told,
            [
                vec![],
                vec![Opened(1)],
                vec![HalfOpen],
                vec![Opened(1)],
                vec![Opened(1), HalfOpen],
                vec![Closed],
                vec![Opened(4), Closed]
            ]
        );
    }

    #[test]
    fn rules_that_a_reload_takes_away_bring_a_server_back() {
        let told = turns([ejected(true, 3), Sight::default(), ejected(true, 1)]);
        assert_eq!(told, [vec![Change::Ejected(3)], vec![Change::Returned], vec![Change::Ejected(1)]]);
        let told = turns([circuit(State::Open, 3), Sight::default(), circuit(State::Closed, 3)]);
        assert_eq!(told, [vec![Change::Opened(3)], vec![Change::Closed], vec![]]);
    }

    #[test]
    fn the_reason_is_the_one_of_late() {
        let mut seen = Seen::default();
        let mut said = |failed| {
            seen.turn(&Sight { failed, ..Sight::default() });
            seen.last_failure(Fault::Connect)
        };
        assert_eq!(said([0; 4]), None);
        assert_eq!(said([0, 0, 5, 0]).as_deref(), Some("the last: no answer within connect_timeout"));
        assert_eq!(said([3, 0, 5, 0]).as_deref(), Some("the last: connection refused"));
        assert_eq!(said([3, 0, 5, 0]).as_deref(), Some("the last: connection refused"));
        assert_eq!(said([4, 0, 7, 0]).as_deref(), Some("mostly: no answer within connect_timeout"));
    }
}
