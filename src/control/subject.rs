//! One address under check: asks it again and again, and tells each server of a pool that it stands for.
//!
//! Several pools may want to know the same of the same address; it is asked once. Decides nothing
//! about up and down (that is `core/health.rs`) and never lets our own trouble count against a
//! server: a check that came late, or for which we had no descriptor, is void.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::checks::{Checked, Found};
use super::desk::Desk;
use super::events::{Event, Kind};
use super::late::Late;
use super::probe::{self, Rest, tls};
use super::publisher::ServerKey;
use super::turns::{Lane, Turn, Turns};
use crate::config::plan::HealthCheck;
use crate::core::health::{Health, State, next_check, second_check};
use crate::live::ServerLive;

/// Shared by who asks and by who brings it in line with the plan.
pub struct Subject {
    desk: Arc<Desk>,
    turns: Arc<Turns>,
    target: SocketAddr,
    pub check: Arc<HealthCheck>,
    tls: Option<tls::Client>,
    standing: Mutex<Standing>,
    over: Notify,
}

/// What is known of the address, and who wants to know.
struct Standing {
    health: Health,
    /// The last result that counted, and how many like it came in a row.
    alike: (bool, u32),
    hearers: Vec<Hearer>,
}

/// A server of a pool that stands at the address.
struct Hearer {
    key: ServerKey,
    checked: Arc<Checked>,
    live: Weak<ServerLive>,
    /// What the workers were told last.
    state: State,
}

impl Hearer {
    /// Nobody waits for it any longer because of what happened before.
    fn recover(&self) {
        if let Some(server) = self.live.upgrade() {
            server.guard.recover(Instant::now().into_std());
        }
    }

    /// Of its newest state.
    fn event(&self, message: String) -> Event {
        let kind = if self.state == State::Down { Kind::ServerDown } else { Kind::ServerUp };
        Event::now(kind, format!("{}/{}", self.key.pool, self.key.name), message)
    }
}

/// Where an address is asked, by that check. `port` takes the place of the server's.
pub fn target(key: &ServerKey, check: &HealthCheck) -> SocketAddr {
    SocketAddr::new(key.address.ip(), check.port.unwrap_or(key.address.port()))
}

impl Subject {
    /// Nobody wants to know yet; see [`Subject::tell_also`].
    pub fn new(
        desk: Arc<Desk>,
        turns: Arc<Turns>,
        target: SocketAddr,
        check: HealthCheck,
        stores: &mut tls::Stores,
    ) -> Self {
        let tls = check.tls.as_ref().map(|tls| tls::Client::new(tls, &check.probe, target, stores));
        let health = Health::new(check.rise, check.fall);
        let standing = Standing { health, alike: (true, 0), hearers: Vec::new() };
        let (check, standing) = (Arc::new(check), Mutex::new(standing));
        Subject { desk, turns, target, check, tls, standing, over: Notify::new() }
    }

    /// From now on also that server hears of it, whose state was `state` so far. What is known
    /// already holds for it at once; where nothing is, its own state goes on.
    pub fn tell_also(&self, key: ServerKey, state: State) {
        let mut standing = self.standing();
        let has_results = standing.alike.1 > 0;
        // Of several that had their own checks before, the best goes on: a server is lost by failures alone.
        if !has_results && (state == State::Up || standing.health.state() == State::Checking) {
            standing.health = Health::resume(state, self.check.rise, self.check.fall);
        }
        let known = standing.health.state();
        let (checked, live) = (self.desk.checks.entry(&key), self.desk.live(&key));
        let mut hearer = Hearer { key, checked, live, state };
        if state == State::Checking && has_results {
            hearer.state = known;
            hearer.checked.changes.add(1);
            self.desk.on_check(&hearer.key, known);
            let message = format!("is {known}: another pool's checks of {} say so", self.target);
            self.desk.announce(hearer.event(message));
        }
        standing.hearers.push(hearer);
    }

    /// Keeps those servers informed that `is_wanted` names; gives the others. When this returns,
    /// the others hear nothing any more.
    pub fn tell_only(&self, is_wanted: impl Fn(&ServerKey) -> bool) -> Vec<ServerKey> {
        let mut standing = self.standing();
        let left = standing.hearers.extract_if(.., |hearer| !is_wanted(&hearer.key));
        left.map(|hearer| hearer.key).collect()
    }

    pub fn tells(&self, key: &ServerKey) -> bool {
        self.standing().hearers.iter().any(|hearer| hearer.key == *key)
    }

    /// Begins no check any more and tells nobody of one that is under way, which comes to its end in
    /// good order: servers log a login that breaks off, and some count it.
    pub fn stop(&self) {
        self.tell_only(|_| false);
        self.over.notify_one();
    }

    pub fn tells_nobody(&self) -> bool {
        self.standing().hearers.is_empty()
    }

    /// Runs until [`Subject::stop`].
    pub async fn watch(self: Arc<Self>) {
        let mut due = Instant::now();
        // Servers that come together (at start, in a reload) are checked at once, and then each at
        // its own place in the interval, so that they do not go in step for ever.
        let mut is_first = true;
        let mut late = Late::default();
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.over.notified() => return,
            }
            due = if due.elapsed() > self.check.interval {
                self.note(&Found::Void("our own clock was late".into()), Duration::ZERO);
                Instant::now() + self.check.interval.mul_f64(fastrand::f64())
            } else {
                self.check_once(&mut late).await;
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
        let health = self.standing().health;
        match health.state() {
            _ if health.is_changing() => self.check.interval_changing,
            State::Down => self.check.interval_down,
            State::Up | State::Checking => self.check.interval,
        }
    }

    async fn check_once(&self, late: &mut Late) {
        let begun = Instant::now();
        if let Some(since) = late.since()
            && probe::within(self.check.timeout, late.cleared()).await.is_none()
        {
            let age = Duration::from_secs(since.elapsed().as_secs().max(1));
            let found =
                Found::Failed(format!("no answer yet to the check of {age:?} ago, which is still open"));
            return self.note(&found, begun.elapsed());
        }
        let turn = self.turn().await;
        if self.tells_nobody() {
            return; // stopped while it waited
        }
        let begun = Instant::now();
        let (found, rest) = probe::ask(self.target, &self.check, self.tls.as_ref()).await;
        let took = begun.elapsed();
        match rest {
            Some(Rest::Leave(line)) => self.let_leave(*line, turn),
            Some(Rest::Late(check)) => {
                // Where too many are open it is broken off: descriptors are what all else lives on.
                if let Some(place) = self.turns.take_late() {
                    late.keep(check, begun, place);
                }
            }
            None => {}
        }
        if found == Found::Ok {
            late.let_go();
        }
        self.note(&found, took);
    }

    /// Says so where it takes long: a server that is not checked may be down for all we know.
    async fn turn(&self) -> Turn {
        let lane = match self.standing().alike {
            (_, 0) => Lane::New,
            (true, _) => Lane::Passing,
            (false, _) => Lane::Failing,
        };
        let begun = Instant::now();
        let turn = self.turns.take(lane).await;
        let waited = begun.elapsed();
        if waited > self.interval() {
            self.standing().hearers.iter().for_each(|hearer| hearer.checked.delayed.add(1));
            self.turns.on_delay(waited);
        }
        turn
    }

    /// Beside the next wait: a server that is slow to let go does not upset the rhythm.
    fn let_leave(&self, line: probe::Line, turn: Turn) {
        let place = self.turns.take_leave(turn);
        tokio::spawn(async move {
            line.leave().await;
            drop(place);
        });
    }

    fn note(&self, found: &Found, took: Duration) {
        let mut standing = self.standing();
        standing.hearers.iter().for_each(|hearer| hearer.checked.note(found.clone(), took));
        let ok = match found {
            Found::Void(_) => return,
            Found::Ok => true,
            Found::Failed(_) => false,
        };
        let (before, count) = standing.alike;
        standing.alike = (ok, if before == ok { count.saturating_add(1) } else { 1 });
        standing.health.on_result(ok);
        if ok {
            let servers = standing.hearers.iter().filter_map(|hearer| hearer.live.upgrade());
            servers.for_each(|server| server.guard.trust()); // whether or not it is news
        }
        let Standing { health, alike, hearers } = &mut *standing;
        // A result that agrees with the state also reaches who came with another one.
        let is_agreed = ok == (health.state() == State::Up);
        for hearer in hearers.iter_mut().filter(|hearer| is_agreed && hearer.state != health.state()) {
            hearer.state = health.state();
            if hearer.state == State::Up {
                hearer.recover(); // before the workers hear of it: who waits for the server asks at once
            }
            self.announce(hearer, found, *alike);
        }
    }

    fn announce(&self, hearer: &Hearer, found: &Found, (ok, count): (bool, u32)) {
        hearer.checked.changes.add(1);
        self.desk.on_check(&hearer.key, hearer.state);
        let state = hearer.state;
        let message = match found {
            Found::Failed(why) => format!("is {state}: {why} ({count} of {count} checks failed)"),
            _ if ok => format!("is {state}: {count} of {count} checks passed"),
            _ => return,
        };
        self.desk.announce(hearer.event(message));
    }

    /// Held for a few lines and never across a wait.
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
