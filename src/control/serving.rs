//! Which servers of each pool serve, as far as an operator has been told.
//!
//! Checks, clients' failures and reloads change it. Whoever has made or seen a change asks here whether it is
//! news. Decides nothing, and knows nothing of single servers' events.

use std::collections::BTreeMap;
use std::time::Instant;

use super::events::{Event, Kind};
use crate::core::breaker;
use crate::core::health::State;
use crate::snapshot::{Pool, Server, Snapshot};

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

    pub fn look(&mut self, pool: &Pool, now: Instant) -> Option<Event> {
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
fn who_serves(pool: &Pool, now: Instant) -> (bool, String) {
    let of = || pool.servers.iter().filter(|server| server.plan.weight > 0);
    let up = || of().filter(|server| server.state == State::Up);
    let is_open = |server: &&Server| {
        server.live.guard.circuit(now).is_some_and(|circuit| circuit.state == breaker::State::Open)
    };
    let open = up().filter(is_open).count();
    let tried = || up().filter(|server| !is_open(server));
    let sound = tried().filter(|server| !server.live.guard.is_ejected(now));
    let first = of().map(|server| server.plan.tier).min();
    // Those that are ejected are tried when nobody else is left, in pools that it falls back to neither.
    let ejected = tried().filter(|_| pool.plan.fallback.is_none());
    let tier = sound.map(|server| server.plan.tier).min().or_else(|| ejected.map(|it| it.plan.tier).min());
    match tier {
        Some(tier) if Some(tier) == first => (true, "its servers serve".into()),
        Some(tier) if up().all(|server| server.plan.tier >= tier) => {
            (false, format!("tier {tier} serves: no server of a lower tier is up"))
        }
        Some(tier) => {
            (false, format!("tier {tier} serves: lower ones are down, ejected or have open breakers"))
        }
        None => {
            let nobody = match open {
                _ if tried().next().is_some() => "no server is left that is not ejected".into(),
                0 => "no server is up".into(),
                1 => "no server is left, the breaker of the one that is up is open".into(),
                open => format!("no server is left, the breakers of all {open} that are up are open"),
            };
            let fallback = pool.plan.fallback.as_ref();
            (false, fallback.map_or(nobody.clone(), |to| format!("{nobody}, clients go to the pool `{to}`")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::control::fixture::{a_check, desk_of, plan_of};
    use crate::control::publisher::ServerKey;

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
