//! Active health: one task for each server that is checked asks it again and again.
//!
//! Decides nothing about up and down (that is `core/health.rs`) and never lets our own trouble
//! count against a server: a check that came late, or for which we had no descriptor, is void.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::checks::{Checked, Found};
use super::desk::Desk;
use super::probe;
use super::publisher::ServerKey;
use crate::config::plan::HealthCheck;
use crate::core::health::{Health, State, next_check, second_check};

/// Checks under way at once, each with one descriptor until its connection has ended. Others wait
/// for their turn.
const CHECKS_AT_ONCE: usize = 256;

pub struct Prober {
    desk: Arc<Desk>,
    turns: Arc<Semaphore>,
    tasks: BTreeMap<ServerKey, Task>,
}

struct Task {
    check: HealthCheck,
    handle: JoinHandle<()>,
}

impl Prober {
    /// Checks nobody yet; see [`Prober::follow`].
    pub fn new(desk: Arc<Desk>) -> Self {
        Prober { desk, turns: Arc::new(Semaphore::new(CHECKS_AT_ONCE)), tasks: BTreeMap::new() }
    }

    /// Brings the tasks in line with the snapshot: ends those of servers that are gone, restarts
    /// those whose check has changed, leaves the others alone. Needs a tokio runtime around it.
    pub fn follow(&mut self) {
        let wanted = self.wanted();
        self.tasks.retain(|key, task| {
            let is_unchanged = wanted.get(key).is_some_and(|(check, _)| *check == task.check);
            if !is_unchanged {
                task.handle.abort();
            }
            if !wanted.contains_key(key) {
                self.desk.checks.forget(key);
            }
            is_unchanged
        });
        for (key, (check, state)) in wanted {
            if !self.tasks.contains_key(&key) {
                let handle = tokio::spawn(self.subject(&key, &check, state).watch());
                self.tasks.insert(key, Task { check, handle });
            }
        }
    }

    fn wanted(&self) -> BTreeMap<ServerKey, (HealthCheck, State)> {
        let snapshot = self.desk.snapshot();
        let mut wanted = BTreeMap::new();
        for pool in snapshot.pools.values() {
            let Some(check) = &pool.plan.health_check else { continue };
            for server in &pool.servers {
                let key = ServerKey::new(&pool.plan.name, &server.plan);
                wanted.insert(key, (check.clone(), server.state));
            }
        }
        wanted
    }

    fn subject(&self, key: &ServerKey, check: &HealthCheck, state: State) -> Subject {
        Subject {
            desk: Arc::clone(&self.desk),
            turns: Arc::clone(&self.turns),
            checked: self.desk.checks.entry(key),
            health: Health::resume(state, check.rise, check.fall),
            key: key.clone(),
            check: check.clone(),
            alike: (true, 0),
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.tasks.values().for_each(|task| task.handle.abort());
    }
}

/// One server under watch.
struct Subject {
    desk: Arc<Desk>,
    turns: Arc<Semaphore>,
    checked: Arc<Checked>,
    health: Health,
    key: ServerKey,
    check: HealthCheck,
    /// The last result that counted, and how many like it came in a row.
    alike: (bool, u32),
}

impl Subject {
    async fn watch(mut self) {
        let mut due = Instant::now();
        // Servers that come together (at start, in a reload) are checked at once, and then each at
        // its own place in the interval, so that they do not go in step for ever.
        let mut is_first = true;
        loop {
            sleep_until(due).await;
            due = if due.elapsed() > self.check.interval {
                self.note(Found::Void("our own clock was late".into()), Duration::ZERO);
                Instant::now() + self.check.interval.mul_f64(fastrand::f64())
            } else {
                self.check_once().await;
                let interval = self.interval();
                let gap = match is_first {
                    true => second_check(interval, fastrand::u64(..)),
                    false => next_check(interval, self.check.jitter, fastrand::u64(..)),
                };
                is_first = false;
                // From the planned time, so that the rhythm holds; what was missed is not made up for.
                (due + gap).max(Instant::now())
            };
        }
    }

    /// As the server stands after the last result.
    fn interval(&self) -> Duration {
        match self.health.state() {
            _ if self.health.is_changing() => self.check.interval_changing,
            State::Down => self.check.interval_down,
            State::Up | State::Checking => self.check.interval,
        }
    }

    async fn check_once(&mut self) {
        let Ok(turn) = Arc::clone(&self.turns).acquire_owned().await else { return };
        let begun = Instant::now();
        let (found, line) = probe::ask(self.target(), &self.check).await;
        let took = begun.elapsed();
        if let Some(line) = line {
            // Beside the next wait: a server that is slow to let go does not upset the rhythm.
            tokio::spawn(async move {
                line.leave().await;
                drop(turn);
            });
        }
        if took > self.check.timeout + self.check.interval {
            // The time ran out while we did not run (stopped, starved): no fault of the server.
            return self.note(Found::Void("our own clock was late".into()), took);
        }
        self.note(found, took);
    }

    fn target(&self) -> SocketAddr {
        let address = self.key.address;
        SocketAddr::new(address.ip(), self.check.port.unwrap_or(address.port()))
    }

    fn note(&mut self, found: Found, took: Duration) {
        let verdict = match &found {
            Found::Void(_) => None,
            Found::Ok => Some((true, String::new())),
            Found::Failed(why) => Some((false, format!("{why} "))),
        };
        self.checked.note(found, took);
        let Some((ok, why)) = verdict else { return };
        self.alike = (ok, if self.alike.0 == ok { self.alike.1.saturating_add(1) } else { 1 });
        if let Some(state) = self.health.on_result(ok) {
            self.announce(state, &why);
        }
    }

    fn announce(&self, state: State, why: &str) {
        self.checked.changes.add(1);
        self.desk.set_state(&self.key, state);
        let (ok, count) = self.alike;
        let server = format!("{}/{}", self.key.pool, self.key.name);
        match ok {
            true => tracing::info!("server `{server}` is {state}: {count} of {count} checks passed"),
            false => tracing::warn!("server `{server}` is {state}: {why}({count} of {count} checks failed)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::plan::Plan;
    use crate::control::fixture::{a_check, desk_of, plan_of, until};

    fn checked_plan(address: SocketAddr) -> Plan {
        let mut plan = plan_of("api", &["a"]);
        plan.pools[0].health_check = Some(a_check());
        plan.pools[0].servers[0].address = address;
        plan
    }

    fn key_of(plan: &Plan) -> ServerKey {
        ServerKey::new("api", &plan.pools[0].servers[0])
    }

    fn state(desk: &Desk) -> State {
        desk.snapshot().pools["api"].servers[0].state
    }

    #[tokio::test]
    async fn a_server_goes_up_down_and_up_again_with_what_it_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let plan = checked_plan(address);
        let desk = desk_of(&plan);
        let mut prober = Prober::new(Arc::clone(&desk));
        prober.follow();
        until(|| state(&desk) == State::Up).await;
        drop(listener);
        until(|| state(&desk) == State::Down).await;
        let checked = desk.checks.get(&key_of(&plan)).expect("checked");
        assert_eq!(checked.last().expect("a result").found, Found::Failed("connection refused".into()));
        assert!(checked.failed.get() >= 2, "fall = 2");
        let _back = TcpListener::bind(address).await.expect("the port is free");
        until(|| state(&desk) == State::Up).await;
        assert_eq!(checked.changes.get(), 3);
    }

    #[tokio::test]
    async fn unchanged_checks_go_on_untouched_and_removed_ones_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut plan = checked_plan(listener.local_addr().expect("bound"));
        let desk = desk_of(&plan);
        let mut prober = Prober::new(Arc::clone(&desk));
        prober.follow();
        until(|| state(&desk) == State::Up).await;
        let key = key_of(&plan);
        let task = prober.tasks[&key].handle.id();

        plan.pools[0].servers[0].weight = 7;
        desk.apply(&plan);
        prober.follow();
        assert_eq!(prober.tasks[&key].handle.id(), task);

        let check = plan.pools[0].health_check.as_mut().expect("checked");
        check.timeout *= 2;
        desk.apply(&plan);
        prober.follow();
        assert_ne!(prober.tasks[&key].handle.id(), task);
        assert_eq!(state(&desk), State::Up, "carried over");

        plan.pools[0].health_check = None;
        desk.apply(&plan);
        prober.follow();
        assert!(prober.tasks.is_empty() && desk.checks.get(&key).is_none());
    }

    #[tokio::test]
    async fn a_stall_of_our_own_takes_nobody_down() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let plan = checked_plan(listener.local_addr().expect("bound"));
        let desk = desk_of(&plan);
        let mut prober = Prober::new(Arc::clone(&desk));
        prober.follow();
        until(|| state(&desk) == State::Up).await;
        let checked = desk.checks.get(&key_of(&plan)).expect("checked");
        while checked.void.get() == 0 {
            std::thread::sleep(Duration::from_millis(100)); // the stall itself: the runtime does not turn
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((state(&desk), checked.failed.get()), (State::Up, 0));
    }
}
