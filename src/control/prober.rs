//! Active health: one task for each address that is checked, on a thread of their own.
//!
//! Brings the tasks in line with the snapshot. What a task does is `subject.rs`; pools that want to
//! know the same of the same address share one.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::desk::Desk;
use super::probe::tls;
use super::publisher::ServerKey;
use super::subject::{self, Subject};
use super::turns::Turns;
use crate::config::plan::HealthCheck;
use crate::core::health::State;

pub struct Prober {
    desk: Arc<Desk>,
    turns: Arc<Turns>,
    runtime: Handle,
    /// By the address that is asked; more than one where pools check it in different ways.
    tasks: BTreeMap<SocketAddr, Vec<Task>>,
}

/// A subject that is under watch while this is there.
struct Task(Arc<Subject>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Prober {
    /// Checks nobody yet; see [`Prober::follow`].
    pub fn new(desk: Arc<Desk>, home: &Home) -> Self {
        let (turns, runtime) = (Arc::clone(&home.turns), home.runtime.clone());
        Prober { desk, turns, runtime, tasks: BTreeMap::new() }
    }

    /// Brings the tasks in line with the snapshot: ends those that nobody wants any more, and begins
    /// those that are new. One that is wanted as before goes on as if nothing had happened.
    pub fn follow(&mut self) {
        let wanted = self.wanted();
        self.leave(&wanted);
        // Read when nobody tells those servers anything any more: what they were told last holds.
        let states = self.states();
        let mut stores = tls::Stores::default();
        for (key, check) in wanted {
            let state = states.get(&key).copied().unwrap_or(State::Checking);
            self.check(key, check, state, &mut stores);
        }
    }

    fn wanted(&self) -> BTreeMap<ServerKey, HealthCheck> {
        let snapshot = self.desk.snapshot();
        let mut wanted = BTreeMap::new();
        for pool in snapshot.pools.values() {
            let Some(check) = &pool.plan.health_check else { continue };
            let keys = pool.servers.iter().map(|server| ServerKey::new(&pool.plan.name, &server.plan));
            wanted.extend(keys.map(|key| (key, check.clone())));
        }
        wanted
    }

    fn states(&self) -> BTreeMap<ServerKey, State> {
        let snapshot = self.desk.snapshot();
        let pools = snapshot.pools.values();
        let servers = pools.flat_map(|pool| pool.servers.iter().map(move |server| (pool, server)));
        servers.map(|(pool, server)| (ServerKey::new(&pool.plan.name, &server.plan), server.state)).collect()
    }

    /// Tells nobody any more who is gone or is to be checked in another way.
    fn leave(&mut self, wanted: &BTreeMap<ServerKey, HealthCheck>) {
        for tasks in self.tasks.values_mut() {
            for task in &mut *tasks {
                let is_wanted = |key: &ServerKey| wanted.get(key) == Some(&*task.0.check);
                let gone = task.0.tell_only(is_wanted).into_iter();
                gone.filter(|key| !wanted.contains_key(key)).for_each(|key| self.desk.checks.forget(&key));
            }
            tasks.retain(|task| !task.0.tells_nobody());
        }
        self.tasks.retain(|_, tasks| !tasks.is_empty());
    }

    /// Sees to it that this server is checked: by a task that does just that, or by a new one.
    fn check(&mut self, key: ServerKey, check: HealthCheck, state: State, stores: &mut tls::Stores) {
        let target = subject::target(&key, &check);
        let tasks = self.tasks.entry(target).or_default();
        let subject = match tasks.iter().find(|task| *task.0.check == check) {
            Some(task) if task.0.tells(&key) => return,
            Some(task) => return task.0.tell_also(key, state),
            None => Subject::new(Arc::clone(&self.desk), Arc::clone(&self.turns), target, check, stores),
        };
        subject.tell_also(key, state);
        let subject = Arc::new(subject);
        self.runtime.spawn(Arc::clone(&subject).watch());
        tasks.push(Task(subject));
    }
}

/// The thread of the checks. Whatever control does besides, they come when they are due, and
/// logging in to a thousand servers holds up nobody who asks control for something.
pub struct Home {
    runtime: Handle,
    turns: Arc<Turns>,
    /// Dropped, it ends the thread, and with it every check.
    _end: Option<oneshot::Sender<()>>,
}

impl Home {
    pub fn new() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let live = move || drop(runtime.block_on(ended)); // an error: its other end is dropped
        thread::Builder::new().name("checks".into()).spawn(live)?;
        Ok(Home::with(handle, Some(end)))
    }

    fn with(runtime: Handle, end: Option<oneshot::Sender<()>>) -> Self {
        Home { runtime, turns: Arc::default(), _end: end }
    }

    /// Waits, so long at the most, for the end of the checks that are under way. Without a prober none
    /// begins any more.
    pub async fn rest(&self, within: Duration) {
        let _ = timeout(within, self.turns.rest()).await;
    }

    /// The runtime around a test.
    #[cfg(test)]
    pub fn here() -> Self {
        Home::with(Handle::current(), None)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::plan::{Plan, Probe, Redis};
    use crate::control::checks::Found;
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
        let mut prober = Prober::new(Arc::clone(&desk), &Home::here());
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
        let mut prober = Prober::new(Arc::clone(&desk), &Home::here());
        prober.follow();
        until(|| state(&desk) == State::Up).await;
        let key = key_of(&plan);
        let task_of = |prober: &Prober| Arc::clone(&prober.tasks[&key.address][0].0);
        let task = task_of(&prober);

        plan.pools[0].servers[0].weight = 7;
        desk.apply(&plan);
        prober.follow();
        assert!(Arc::ptr_eq(&task_of(&prober), &task));

        let check = plan.pools[0].health_check.as_mut().expect("checked");
        check.timeout *= 2;
        desk.apply(&plan);
        prober.follow();
        assert!(!Arc::ptr_eq(&task_of(&prober), &task));
        assert_eq!(state(&desk), State::Up, "carried over");

        plan.pools[0].health_check = None;
        desk.apply(&plan);
        prober.follow();
        assert!(prober.tasks.is_empty() && desk.checks.get(&key).is_none());
    }

    /// Each of the slices in which patience is counted ends a little late: over fifty of them that came
    /// to more than an interval, every check was void, and the server stayed `checking` for ever.
    #[tokio::test]
    async fn a_server_that_hangs_is_down_however_long_its_timeout_is_against_the_interval() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut plan = checked_plan(listener.local_addr().expect("bound"));
        let check = plan.pools[0].health_check.as_mut().expect("checked");
        let probe = Probe::Redis(Redis::default());
        *check = HealthCheck { probe, timeout: check.interval * 50, ..a_check() };
        let desk = desk_of(&plan);
        let mut prober = Prober::new(Arc::clone(&desk), &Home::here());
        prober.follow();
        until(|| state(&desk) == State::Down).await;
    }

    #[tokio::test]
    async fn a_stall_of_our_own_takes_nobody_down() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let plan = checked_plan(listener.local_addr().expect("bound"));
        let desk = desk_of(&plan);
        let mut prober = Prober::new(Arc::clone(&desk), &Home::here());
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

    /// Two pools of one server; the second is checked as `check` says.
    fn two_pools(address: SocketAddr, check: HealthCheck) -> Plan {
        let mut plan = checked_plan(address);
        let mut second = plan.pools[0].clone();
        second.name = "web".into();
        second.health_check = Some(check);
        plan.pools.push(second);
        plan
    }

    #[tokio::test]
    async fn pools_that_want_to_know_the_same_share_one_task_and_each_keeps_its_own_account() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut plan = two_pools(listener.local_addr().expect("bound"), a_check());
        let desk = desk_of(&plan);
        let mut prober = Prober::new(Arc::clone(&desk), &Home::here());
        prober.follow();
        let both = |wanted: State| {
            let snapshot = desk.snapshot();
            snapshot.pools.values().all(|pool| pool.servers[0].state == wanted)
        };
        until(|| both(State::Up)).await;
        drop(listener);
        until(|| both(State::Down)).await;
        assert_eq!(prober.tasks.values().flatten().count(), 1);
        let keys = ["api", "web"].map(|pool| ServerKey::new(pool, &plan.pools[0].servers[0]));
        let accounts = keys.each_ref().map(|key| desk.checks.get(key).expect("checked"));
        let counted = accounts.each_ref().map(|it| (it.ok.get(), it.failed.get(), it.changes.get()));
        assert_eq!(counted[0], counted[1]);

        plan.pools[1].health_check = None;
        desk.apply(&plan);
        prober.follow();
        assert_eq!(prober.tasks.values().flatten().count(), 1, "the other pool's goes on");
        assert!(desk.checks.get(&keys[1]).is_none());
    }

    #[tokio::test]
    async fn a_pool_that_comes_later_knows_at_once_what_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let slow = HealthCheck::default().every(Duration::from_secs(3600));
        let mut plan = two_pools(listener.local_addr().expect("bound"), slow.clone());
        plan.pools[0].health_check = Some(slow);
        let late = plan.pools.pop().expect("two pools");
        let desk = desk_of(&plan);
        let mut prober = Prober::new(Arc::clone(&desk), &Home::here());
        prober.follow();
        until(|| state(&desk) == State::Up).await;
        plan.pools.push(late);
        desk.apply(&plan);
        prober.follow();
        assert_eq!(desk.snapshot().pools["web"].servers[0].state, State::Up);
    }

    #[tokio::test]
    async fn checks_that_differ_in_anything_are_made_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let other = HealthCheck { fall: 3, ..a_check() };
        let mut plan = two_pools(listener.local_addr().expect("bound"), other);
        let desk = desk_of(&plan);
        let mut prober = Prober::new(Arc::clone(&desk), &Home::here());
        prober.follow();
        assert_eq!(prober.tasks.values().flatten().count(), 2);
        until(|| desk.snapshot().pools["web"].servers[0].state == State::Up).await;

        plan.pools[1].health_check = plan.pools[0].health_check.clone();
        desk.apply(&plan);
        prober.follow();
        assert_eq!(prober.tasks.values().flatten().count(), 1);
        assert_eq!(desk.snapshot().pools["web"].servers[0].state, State::Up, "carried over");
    }

    /// A server that answers the first PING when it is told to, and then says what else it heard.
    fn hesitant() -> (SocketAddr, std::sync::mpsc::SyncSender<()>, thread::JoinHandle<Vec<u8>>) {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (go, told) = std::sync::mpsc::sync_channel(0);
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a check");
            stream.read_exact(&mut [0; 14]).expect("PING");
            told.recv().expect("asked");
            told.recv().expect("told");
            stream.write_all(b"+PONG\r\n").expect("answered");
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).expect("the end");
            heard
        });
        (address, go, server)
    }

    #[tokio::test]
    async fn a_check_under_way_outlives_its_prober_and_takes_its_leave() {
        let (address, go, server) = hesitant();
        let mut plan = checked_plan(address);
        let check = plan.pools[0].health_check.as_mut().expect("checked");
        *check = HealthCheck {
            probe: Probe::Redis(Redis::default()),
            timeout: Duration::from_secs(20),
            ..a_check()
        };
        let (desk, home) = (desk_of(&plan), Home::new().expect("a thread"));
        let mut prober = Prober::new(Arc::clone(&desk), &home);
        prober.follow();
        go.send(()).expect("asked");
        drop(prober);
        go.send(()).expect("told");
        home.rest(Duration::from_secs(20)).await;
        assert_eq!(server.join().expect("no panic"), b"*1\r\n$4\r\nQUIT\r\n");
    }

    #[test]
    fn checks_go_on_while_the_rest_of_control_does_something_else() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let plan = checked_plan(listener.local_addr().expect("bound"));
        let (desk, home) = (desk_of(&plan), Home::new().expect("a thread"));
        let mut prober = Prober::new(Arc::clone(&desk), &home);
        prober.follow();
        // This thread turns no runtime.
        for _ in 0..20 {
            listener.accept().expect("a check");
        }
    }
}
