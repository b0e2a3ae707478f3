//! What the doers of control share: the publisher, the way to the workers, what is known so far.
//!
//! Each lock is held for a few lines and never across a wait. The workers themselves never come
//! here; they get their copy of the world by mail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use jiff::Timestamp;

use super::checks::Checks;
use super::events::{Event, Events};
use super::publisher::{Publisher, ServerKey};
use super::serving::Serving;
use crate::config::plan::{self, Plan};
use crate::core::health::State;
use crate::live::{Bell, ServerLive};
use crate::orders::{Order, Post};
use crate::snapshot::{Server, Snapshot};
use crate::telemetry::access_log::Ring;
use crate::telemetry::stats::Flow;

#[derive(Debug)]
pub struct Desk {
    publisher: Mutex<Publisher>,
    hands: Vec<Hand>,
    pub checks: Checks,
    pub events: Events,
    /// Locked within the publisher's lock, so that it never goes back to an older snapshot.
    serving: Mutex<Serving>,
    /// Rings when `lookout.rs` may find something new.
    pub bell: Arc<Bell>,
    access_log: Arc<Ring>,
    pub started: Timestamp,
    pub io: plan::Io,
    pub io_reason: &'static str,
    is_draining: AtomicBool,
    /// Of the newest plan: the two settings that only matter at the end.
    process: Mutex<plan::Process>,
    last_reload: Mutex<Option<Reloaded>>,
}

/// A worker, without its thread.
#[derive(Debug)]
pub struct Hand {
    pub post: Post,
    pub pulse: Arc<AtomicU64>,
    pub has_ended: AtomicBool,
}

/// How the last reload went.
#[derive(Clone, Debug)]
pub struct Reloaded {
    pub at: Timestamp,
    pub ok: bool,
    pub message: String,
}

impl Desk {
    pub fn new(
        plan: &Plan,
        (io, io_reason): (plan::Io, &'static str),
        publisher: Publisher,
        hands: Vec<Hand>,
        access_log: Arc<Ring>,
    ) -> Arc<Self> {
        let mut serving = Serving::default();
        serving.look_at_all(&publisher.snapshot(), Instant::now()); // nothing of this is news
        Arc::new(Desk {
            serving: Mutex::new(serving),
            bell: publisher.bell(),
            publisher: Mutex::new(publisher),
            hands,
            checks: Checks::default(),
            events: Events::new(Instant::now()),
            access_log,
            started: Timestamp::now(),
            io,
            io_reason,
            is_draining: AtomicBool::new(false),
            process: Mutex::new(plan.process.clone()),
            last_reload: Mutex::default(),
        })
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        lock(&self.publisher).snapshot()
    }

    /// A new plan, for every worker.
    pub fn apply(&self, plan: &Plan) {
        *lock(&self.process) = plan.process.clone();
        let mut publisher = lock(&self.publisher);
        publisher.apply(plan);
        self.publish(&publisher);
        drop(publisher);
        self.tell_who_serves();
    }

    /// What checks found a server to be. A pool that a reload has just left without checks hears of it no
    /// more: nobody would ever tell it that the server is back.
    pub fn on_check(&self, key: &ServerKey, state: State) {
        let publisher = lock(&self.publisher);
        if publisher.snapshot().pools.get(&key.pool).is_some_and(|pool| pool.plan.health_check.is_some()) {
            self.set_state_by(publisher, key, state);
        }
    }

    /// What lives of a server as long as it is in the plan.
    pub fn live(&self, key: &ServerKey) -> Weak<ServerLive> {
        let snapshot = self.snapshot();
        let servers = snapshot.pools.get(&key.pool).map_or(&[][..], |pool| &pool.servers);
        let is_it = |server: &&Server| server.plan.name == key.name && server.plan.address == key.address;
        servers.iter().find(is_it).map_or_else(Weak::new, |server| Arc::downgrade(&server.live))
    }

    /// A server's new state, for every worker. Says whether it was news.
    #[cfg(test)]
    pub fn set_state(&self, key: &ServerKey, state: State) -> bool {
        self.set_state_by(lock(&self.publisher), key, state)
    }

    fn set_state_by(&self, mut publisher: MutexGuard<'_, Publisher>, key: &ServerKey, state: State) -> bool {
        let is_news = publisher.set_state(key, state);
        if is_news {
            self.publish(&publisher);
        }
        if is_news {
            // Under the lock, so that what is told last is what was so last.
            let told = lock(&self.serving).look_around(&key.pool, &publisher.snapshot(), Instant::now());
            told.into_iter().for_each(|event| self.announce(event));
        }
        is_news
    }

    /// Tells which servers of each pool serve, where that is news.
    pub fn tell_who_serves(&self) {
        let publisher = lock(&self.publisher);
        let events = lock(&self.serving).look_at_all(&publisher.snapshot(), Instant::now());
        events.into_iter().for_each(|event| self.announce(event)); // under the lock, as above
    }

    /// Tells the operator.
    pub fn announce(&self, event: Event) {
        self.announce_many(event, 1);
    }

    /// An event that stands for so many like it.
    pub fn announce_many(&self, event: Event, count: u64) {
        if self.events.tell(event, count, Instant::now()) {
            self.bell.ring(); // so that it is told in time
        }
    }

    /// Sends to every worker that is still there.
    pub fn tell(&self, order: &Order) {
        self.hands().for_each(|hand| hand.post.send(order.clone()));
    }

    /// The workers that have not ended.
    pub fn hands(&self) -> impl Iterator<Item = &Hand> {
        self.hands.iter().filter(|hand| !hand.has_ended.load(Ordering::Relaxed))
    }

    pub fn worker_count(&self) -> usize {
        self.hands.len()
    }

    pub fn note_end(&self, worker: usize) {
        self.hands[worker].has_ended.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// From here on readiness says no.
    pub fn begin_drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    pub fn process(&self) -> plan::Process {
        lock(&self.process).clone()
    }

    pub fn last_reload(&self) -> Option<Reloaded> {
        lock(&self.last_reload).clone()
    }

    pub fn note_reload(&self, reloaded: Reloaded) {
        *lock(&self.last_reload) = Some(reloaded);
    }

    pub fn flows(&self) -> Vec<Arc<Flow>> {
        lock(&self.publisher).flows()
    }

    /// Servers out of the plan that connections still use.
    pub fn retired(&self) -> Vec<(ServerKey, Arc<ServerLive>)> {
        lock(&self.publisher).retired()
    }

    pub fn access_log_dropped(&self) -> u64 {
        self.access_log.dropped()
    }

    /// Under the publisher's lock, so that no worker gets an older snapshot after a newer one.
    fn publish(&self, publisher: &Publisher) {
        self.tell(&Order::Publish(publisher.snapshot()));
        self.bell.ring();
    }
}

/// A doer that panicked has left nothing half done here: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fixture::{a_check, desk_with, plan_of, worker};

    #[test]
    fn a_worker_that_comes_late_finds_the_newest_world_and_no_other() {
        let (hand, puppet) = worker();
        let plan = plan_of("api", &["a"]);
        let desk = desk_with(&plan, vec![hand]);
        let key = ServerKey::new("api", &plan.pools[0].servers[0]);
        desk.tell(&Order::Beat);
        for _ in 0..1000 {
            desk.set_state(&key, State::Down);
            desk.set_state(&key, State::Up);
        }
        desk.apply(&plan);
        let mail = puppet.mail();
        assert!(matches!(mail[..], [Order::Beat, Order::Publish(_)]), "{} orders", mail.len());
        let Order::Publish(newest) = &mail[1] else { panic!("not a snapshot") };
        assert_eq!(newest.generation, 2);
    }

    /// The bug: a check that ended while a reload took it away left its server down for ever.
    #[test]
    fn a_check_that_a_reload_has_taken_away_has_nothing_to_say() {
        let mut plan = plan_of("api", &["a"]);
        plan.pools[0].health_check = Some(a_check());
        let desk = desk_with(&plan, Vec::new());
        let key = ServerKey::new("api", &plan.pools[0].servers[0]);
        let state = || desk.snapshot().pools["api"].servers[0].state;
        desk.on_check(&key, State::Up);
        plan.pools[0].health_check = None;
        desk.apply(&plan);
        let before = state();
        desk.on_check(&key, State::Down);
        assert_eq!(state(), before);
    }
}
