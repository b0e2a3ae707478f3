//! Which servers of each pool serve, as far as an operator has been told.
//!
//! Checks, clients' failures and reloads change it. Whoever has made or seen a change asks here whether it is
//! news. Decides nothing, and knows nothing of single servers' events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::events::{Event, Kind};
use super::standing::Shown;
use crate::core::health::State;
use crate::snapshot::{Pool, Snapshot};

/// By pool: what was told last, or was so when the pool came.
#[derive(Debug, Default)]
pub struct Serving(BTreeMap<String, (bool, String)>);

impl Serving {
    /// What is news of all pools. One that is new says nothing before it changes, and one that is gone is
    /// forgotten.
    pub fn look_at_all(&mut self, snapshot: &Snapshot, now: Instant) -> Vec<Event> {
        self.0.retain(|name, _| snapshot.pools.contains_key(name));
        snapshot.pools.values().filter_map(|pool| self.look(pool, now)).collect()
    }

    /// What is news of a pool and of those that fall back to it.
    pub fn look_around(&mut self, pool: &str, snapshot: &Snapshot, now: Instant) -> Vec<Event> {
        let leads_there = |other: &&Arc<Pool>| other.chain().any(|next| next.plan.name == pool);
        let pools = snapshot.pools.values().filter(leads_there);
        pools.filter_map(|pool| self.look(pool, now)).collect()
    }

    fn look(&mut self, pool: &Arc<Pool>, now: Instant) -> Option<Event> {
        let name = &pool.plan.name;
        let serves = who_serves(pool, now);
        let before = self.0.insert(name.clone(), serves.clone())?;
        let (is_well, words) = serves;
        let kind = if is_well { Kind::PoolServes } else { Kind::PoolDegraded };
        (before != (is_well, words.clone())).then(|| Event::now(kind, name, words))
    }
}

/// Which servers of a pool serve, in one clause for the log, and whether it is those that should. Only health
/// counts, that found by checks and that found by clients: servers that are full from one moment to the next
/// would fill the log.
fn who_serves(pool: &Arc<Pool>, now: Instant) -> (bool, String) {
    let of = || pool.servers.iter().filter(|server| server.plan.weight > 0);
    let first = of().map(|server| server.plan.tier).min();
    let shown: Vec<_> = of().map(|server| (server.plan.tier, Shown::of(server, now))).collect();
    let lowest = |takes: fn(Shown) -> bool| {
        shown.iter().filter(|(_, shown)| takes(*shown)).map(|(tier, _)| *tier).min()
    };
    let is_last = pool.fallback.is_none();
    if let Some(tier) = lowest(is_sound).or_else(|| lowest(is_tried).filter(|_| is_last)) {
        return match tier {
            tier if Some(tier) == first => (true, "its servers serve".into()),
            tier if lowest(is_up) == Some(tier) => {
                (false, format!("tier {tier} serves: no server of a lower tier is up"))
            }
            tier => {
                (false, format!("tier {tier} serves: lower ones are down, ejected or have open breakers"))
            }
        };
    }
    let nobody = match shown.iter().filter(|(_, shown)| *shown == Shown::CutOff).count() {
        _ if lowest(is_tried).is_some() => "no server is left that is not ejected".into(),
        0 => "no server is up".into(),
        1 => "no server is left, the breaker of the one that is up is open".into(),
        open => format!("no server is left, the breakers of all {open} that are up are open"),
    };
    let has_sound = |pool: &&Arc<Pool>| {
        pool.servers.iter().any(|server| server.plan.weight > 0 && is_sound(Shown::of(server, now)))
    };
    let words = match pool.chain().skip(1).find(has_sound) {
        Some(other) => format!("{nobody}, clients go to the pool `{}`", other.plan.name),
        None if is_last => nobody,
        None => format!("{nobody}, and what it falls back to has none either"),
    };
    (false, words)
}

fn is_up(shown: Shown) -> bool {
    !matches!(shown, Shown::Checked(State::Down | State::Checking))
}

/// It may be tried, if only as the last resort.
fn is_tried(shown: Shown) -> bool {
    is_up(shown) && shown != Shown::CutOff
}

fn is_sound(shown: Shown) -> bool {
    is_tried(shown) && shown != Shown::Ejected
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::fixture::{a_check, desk_of, plan_of};
    use crate::control::publisher::ServerKey;
    use crate::core::breaker;

    #[test]
    fn a_pool_says_when_it_loses_its_last_server_and_has_one_again_and_a_new_one_says_nothing() {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].health_check = Some(a_check());
        let desk = desk_of(&plan);
        let (mut serving, now) = (Serving::default(), Instant::now());
        let mut told_when = |server: usize, state| {
            let key = ServerKey::new("api", &plan.pools[0].servers[server]);
            desk.set_state(&key, state);
            serving.look_at_all(&desk.snapshot(), now).pop().map(|event| (event.kind, event.message))
        };
        assert_eq!(told_when(0, State::Down), None, "it is new");
        let well = Some((Kind::PoolServes, "its servers serve".into()));
        assert_eq!(told_when(1, State::Up), well);
        assert_eq!(told_when(0, State::Up), None);
        assert_eq!(told_when(0, State::Down), None);
        assert_eq!(told_when(1, State::Down), Some((Kind::PoolDegraded, "no server is up".into())));
        assert_eq!(told_when(0, State::Up), well);
    }

    #[test]
    fn a_pool_whose_breakers_are_all_open_has_nobody_who_serves() {
        let mut plan = plan_of("api", &["a", "b"]);
        plan.pools[0].circuit_breaker = Some(breaker::Rules {
            failures: 1,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            half_open_trials: 1,
        });
        let (desk, now) = (desk_of(&plan), Instant::now());
        let fail = |server: usize| {
            let live = Arc::clone(&desk.snapshot().pools["api"].servers[server].live);
            live.guard.enter(now).expect("it may be tried").failed(Duration::ZERO, now);
        };
        let serves = |now| who_serves(&desk.snapshot().pools["api"], now);
        assert!(serves(now).0);
        fail(0);
        assert!(serves(now).0, "the other one does");
        fail(1);
        assert_eq!(
            serves(now),
            (false, "no server is left, the breakers of all 2 that are up are open".into())
        );
        assert!(serves(now + Duration::from_secs(5)).0, "trials may begin");
    }
}
