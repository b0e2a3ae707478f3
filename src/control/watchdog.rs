//! Sees to it that every worker's event loop turns, and tells the service manager so.
//!
//! Asks each worker for a beat and looks at the next tick whether all have answered. While one
//! has not, the manager hears nothing, and restarts us in the end: a daemon that accepts and does
//! not serve is worse than none. Restarts nothing itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::desk::{Desk, Hand};
use super::notify::Notifier;
use super::standing::{Shown, servers_in};
use crate::core::health::State;
use crate::orders::Order;

/// Between two beats where no service manager says how often it wants to hear from us; and the
/// most there ever is, since the manager's status line is told on the same tick.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// Runs until dropped.
pub async fn watch(desk: Arc<Desk>, notifier: Arc<Notifier>) {
    let every = notifier.watchdog.map_or(BEAT_EVERY, |limit| (limit / 2).min(BEAT_EVERY));
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rounds = Rounds::default();
    loop {
        ticks.tick().await;
        match rounds.turn(&desk) {
            Ok(()) => notifier.alive(),
            Err(silent) => tracing::error!("workers that have not answered for {every:?}: {silent}"),
        }
        notifier.status(&status_line(&desk));
    }
}

/// How many beats were sent, to all workers alike.
#[derive(Debug, Default)]
struct Rounds(u64);

impl Rounds {
    /// Begins the next round if the last one was answered; else says how many workers are silent.
    /// No beat is sent to those that have not answered, so their mailbox does not grow.
    fn turn(&mut self, desk: &Desk) -> Result<(), usize> {
        let silent = desk.hands().filter(|hand| !self.has_answered(hand)).count();
        if silent > 0 {
            return Err(silent);
        }
        self.0 += 1;
        desk.tell(&Order::Beat);
        Ok(())
    }

    fn has_answered(&self, hand: &Hand) -> bool {
        hand.pulse.load(Ordering::Acquire) >= self.0
    }
}

/// What `systemctl status` shows.
fn status_line(desk: &Desk) -> String {
    let snapshot = desk.snapshot();
    let word = if desk.is_draining() { "draining" } else { "serving" };
    let up: usize = snapshot.pools.values().map(|pool| servers_in(pool, Shown::Checked(State::Up))).sum();
    let total: usize = snapshot.pools.values().map(|pool| pool.servers.len()).sum();
    let active = snapshot.process_room.taken();
    format!("{word}: {active} connections, {up} of {total} servers up")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fixture::{desk_with, plan_of, worker};

    #[test]
    fn a_round_waits_for_every_worker() {
        let (first, second) = (worker(), worker());
        let desk = desk_with(&plan_of("api", &["a"]), vec![first.0, second.0]);
        let mut rounds = Rounds::default();
        assert_eq!(rounds.turn(&desk), Ok(()));
        assert_eq!(rounds.turn(&desk), Err(2));
        first.1.beat();
        assert_eq!(rounds.turn(&desk), Err(1));
        second.1.beat();
        assert_eq!(rounds.turn(&desk), Ok(()));
    }

    #[test]
    fn a_worker_that_has_ended_is_not_waited_for() {
        let (first, second) = (worker(), worker());
        let desk = desk_with(&plan_of("api", &["a"]), vec![first.0, second.0]);
        let mut rounds = Rounds::default();
        assert_eq!(rounds.turn(&desk), Ok(()));
        first.1.beat();
        desk.note_end(1);
        assert_eq!(rounds.turn(&desk), Ok(()));
    }

    #[test]
    fn the_status_line_says_what_an_operator_asks_first() {
        let desk = desk_with(&plan_of("api", &["a", "b"]), Vec::new());
        assert_eq!(status_line(&desk), "serving: 0 connections, 2 of 2 servers up");
    }
}
