//! Who is asked and who is passed over, when a client pauses, holds out or gives up.

use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;

use super::*;
use crate::core::balance::{Ground, Kind, Member};
use crate::core::outlier;
use crate::live::{Answers, Guard, Room, Rules as GuardRules, Warmup};
use crate::telemetry::counters::PerWorker;

const RULES: Rules = Rules {
    attempts: 9,
    backoff: Duration::from_millis(100),
    max_backoff: Duration::from_secs(1),
    budget: 1.0,
    deadline: Duration::from_secs(10),
    affinity: None,
    has_line: false,
    ejects: false,
};

const ANY_MANNER: [Manner; 4] = [Manner::AgainAfterPauses, Manner::Once, Manner::Sound, Manner::Canary];

/// A pool of a few servers.
struct Few {
    live: Arc<PoolLive>,
    kind: Kind,
    servers: Vec<Arc<ServerLive>>,
    is_up: Vec<bool>,
    rules: Rules,
    chooser: Chooser,
    now: Instant,
    /// Another worker takes a place on a server when this one looks at it for the second time.
    is_raced: bool,
    looks: Cell<u32>,
    raced: RefCell<Vec<Permit>>,
}

impl Few {
    /// One server for each of those numbers of places, all up.
    fn of(kind: Kind, places: &[usize]) -> Self {
        let (live, now) = (PoolLive::new(1), Instant::now());
        let server = |(number, places): (usize, &usize)| {
            Arc::new(ServerLive {
                pool: "api".into(),
                name: format!("s{number}"),
                address: (Ipv4Addr::LOCALHOST, 1).into(),
                room: Room::new(*places),
                warmup: Warmup::new(),
                answers: Answers::default(),
                guard: Guard::new(now, Arc::clone(&live.ward)),
                stats: PerWorker::new(1),
            })
        };
        let servers: Vec<_> = places.iter().enumerate().map(server).collect();
        let is_up = vec![true; servers.len()];
        Few {
            chooser: chooser(kind, &is_up),
            live,
            kind,
            servers,
            is_up,
            rules: RULES,
            now,
            is_raced: false,
            looks: Cell::default(),
            raced: RefCell::default(),
        }
    }

    /// The same servers, of which those are up.
    fn where_up(&self, is_up: &[bool]) -> Self {
        Few {
            live: Arc::clone(&self.live),
            servers: self.servers.clone(),
            is_up: is_up.to_vec(),
            chooser: chooser(self.kind, is_up),
            ..Few::of(self.kind, &[])
        }
    }

    fn with(self, rules: Rules) -> Self {
        Few { rules, ..self }
    }

    fn begin(&self, key: u64) -> Search<'_> {
        let ask = Ask { key, random: key, turn: 0 };
        Search::begin(&self.live, Ipv4Addr::LOCALHOST.into(), ask, self.now)
    }

    /// Whom a client asks that comes now, if anybody.
    fn first(&self, manner: Manner) -> Option<usize> {
        asked(&self.begin(0).next(&self, manner, self.now, || 0))
    }

    /// It has just refused another client.
    fn put_in_doubt(&self, place: usize) {
        self.servers[place].guard.enter(self.now).expect("no breaker").failed(Duration::ZERO, self.now);
    }

    /// Its failures have stood out.
    fn eject(&self, place: usize) {
        let numbers: Vec<_> = self.servers.iter().map(|server| server.guard.number()).collect();
        self.live.ward.lock().expect("nobody has panicked").fit(&numbers, 1.0);
        let outlier = Some(outlier::Rules {
            consecutive_failures: 1,
            failure_ratio: 1.0,
            min_connections: 100,
            eject_for: Duration::from_secs(30),
            max_ejected: 1.0,
        });
        self.servers[place].guard.set_rules(GuardRules { breaker: None, outlier });
        self.put_in_doubt(place);
        assert!(self.servers[place].guard.is_ejected(self.now));
    }
}

impl<'p> Pool<'p> for &'p Few {
    fn rules(&self) -> Rules {
        self.rules
    }

    fn chooser(&self) -> &Chooser {
        &self.chooser
    }

    fn size(&self) -> usize {
        self.servers.len()
    }

    fn server(&self, place: usize) -> &'p Arc<ServerLive> {
        self.looks.set(self.looks.get() + 1);
        if self.is_raced && self.looks.get() == 2 {
            self.raced.borrow_mut().extend(self.servers[place].room.take());
        }
        &self.servers[place]
    }

    fn is_up(&self, place: usize) -> bool {
        self.is_up[place]
    }

    fn share(&self, _: usize, _: Instant) -> Share {
        Share::FULL
    }
}

fn chooser(kind: Kind, is_up: &[bool]) -> Chooser {
    let member = |(number, is_up): (usize, &bool)| Member {
        name: format!("s{number}"),
        weight: 100,
        is_eligible: *is_up,
        tier: 0,
    };
    Chooser::new(kind, is_up.iter().enumerate().map(member).collect())
}

fn asked(step: &Step<'_>) -> Option<usize> {
    match step {
        Step::Ask(next) => Some(next.choice.server),
        Step::PauseUntil(_) | Step::GiveUp => None,
    }
}

#[test]
fn a_server_that_rose_is_forgiven_what_it_did_to_a_client_and_no_other_is() {
    for how in [Failed::Refused, Failed::Silent] {
        let both = Few::of(Kind::First, &[9, 9]);
        let second = both.where_up(&[false, true]);
        let again = both.where_up(&[true, true]);
        let mut walk = both.begin(0);
        let next = |walk: &mut Search<'_>, few: &Few| asked(&walk.next(&few, Manner::Once, few.now, || 0));
        for server in 0..2 {
            assert_eq!(next(&mut walk, &both), Some(server));
            walk.on_failure(&both.servers[server], how);
        }
        walk.on_change(&&both, &&second);
        assert_eq!(next(&mut walk, &second), None, "it was up all the time");
        walk.on_change(&&second, &&again);
        assert_eq!(next(&mut walk, &again), Some(0));
        walk.on_failure(&both.servers[0], how);
        walk.on_change(&&again, &&both);
        assert_eq!(next(&mut walk, &both), None, "nobody rose");
    }
}

#[test]
fn a_server_whose_last_place_another_worker_took_first_is_one_to_wait_for() {
    let few = Few { is_raced: true, ..Few::of(Kind::First, &[1]) };
    let mut walk = few.begin(0);
    assert!(!walk.has_full());
    assert_eq!(asked(&walk.next(&&few, Manner::Once, few.now, || 0)), None);
    assert!(few.raced.borrow().len() == 1 && walk.has_full());
}

#[test]
fn who_asks_behind_another_asks_nobody_under_suspicion() {
    let few = Few::of(Kind::First, &[9, 9]);
    few.put_in_doubt(0);
    assert_eq!(few.first(Manner::Trusted), Some(1));
    few.put_in_doubt(1);
    assert_eq!(few.first(Manner::Trusted), None, "the one before finds out about them");
    assert_eq!(few.first(Manner::Once), Some(0));
}

#[test]
fn who_has_another_pool_to_ask_passes_over_those_who_are_ejected() {
    // One of two may be out, and the other one has no places.
    let few = Few::of(Kind::First, &[9, 0]).with(Rules { ejects: true, ..RULES });
    few.eject(0);
    let passing = [Manner::Sound, Manner::Canary, Manner::Trusted];
    assert_eq!(passing.map(|manner| few.first(manner)), [None; 3]);
    assert_eq!(few.first(Manner::Once), Some(0), "better than nobody");
    let few = Few::of(Kind::First, &[9]);
    few.put_in_doubt(0);
    assert_eq!(few.first(Manner::Sound), Some(0), "doubt lasts for seconds only");
}

#[test]
fn where_there_is_a_line_a_client_holds_out_for_a_server_that_is_full() {
    let few = Few::of(Kind::First, &[9, 1]);
    few.put_in_doubt(0);
    let _last = few.servers[1].room.take().expect("its only place");
    assert_eq!(ANY_MANNER.map(|manner| few.first(manner)), [Some(0); 4], "nobody may wait");
    let few = few.with(Rules { has_line: true, ..RULES });
    assert_eq!(ANY_MANNER.map(|manner| few.first(manner)), [None; 4]);
}

#[test]
fn who_may_wait_in_the_line_makes_no_pause() {
    let few = Few::of(Kind::First, &[9, 1]);
    let _last = few.servers[1].room.take().expect("its only place");
    let after_refusal = |few: &Few| {
        let mut walk = few.begin(0);
        assert_eq!(asked(&walk.next(&few, Manner::AgainAfterPauses, few.now, || 0)), Some(0));
        walk.on_failure(&few.servers[0], Failed::Refused);
        let end = walk.next(&few, Manner::AgainAfterPauses, few.now, || 0);
        (matches!(end, Step::PauseUntil(_)), walk.has_full())
    };
    assert_eq!(after_refusal(&few), (true, true));
    assert_eq!(after_refusal(&few.with(Rules { has_line: true, ..RULES })), (false, true));
}

#[test]
fn a_pause_that_ends_at_the_deadline_is_in_vain() {
    let pause = budget::pause(RULES.backoff, RULES.max_backoff, 0, 0);
    for (more, is_of_use) in [(Duration::ZERO, false), (Duration::from_nanos(1), true)] {
        let few = Few::of(Kind::First, &[9]).with(Rules { deadline: pause + more, ..RULES });
        let mut walk = few.begin(0);
        assert_eq!(asked(&walk.next(&&few, Manner::AgainAfterPauses, few.now, || 0)), Some(0));
        walk.on_failure(&few.servers[0], Failed::Refused);
        let end = match walk.next(&&few, Manner::AgainAfterPauses, few.now, || 0) {
            Step::PauseUntil(end) => Some(end),
            Step::Ask(_) | Step::GiveUp => None,
        };
        assert_eq!(end, is_of_use.then_some(few.now + pause), "{more:?} before the deadline");
    }
}

#[test]
fn by_speed_the_server_that_answers_soonest_is_asked() {
    let few = Few::of(Kind::Fastest, &[9, 9]);
    few.servers[0].answers.observe(Duration::from_millis(80), few.now);
    few.servers[1].answers.observe(Duration::from_millis(2), few.now);
    for random in (0..16).map(|lot: u64| lot << 60) {
        assert_eq!(asked(&few.begin(random).next(&&few, Manner::Once, few.now, || 0)), Some(1));
    }
}

/// A source with many connections was sent to the server that it was known to, however many that one had.
#[test]
fn a_client_that_is_known_fills_no_server_beyond_the_bound_and_comes_back_to_its_own() {
    let hour = Duration::from_secs(3600);
    let rules = Rules { affinity: Some((By::SourceIp, hour)), ..RULES };
    let mut few = Few::of(Kind::ConsistentHash, &[usize::MAX; 3]).with(rules);
    few.chooser = few.chooser.with_max_load(Some(125));
    few.live.affinity.set_limit(1000);
    // Hashed with its port, it has keys of all servers.
    let connect = |port: u64| match few.begin(port * 12_345).next(&&few, Manner::Once, few.now, || 0) {
        Step::Ask(next) => next,
        other => panic!("all have room: {other:?}"),
    };
    let mut held = Vec::new();
    for count in 1..=30_usize {
        held.push(connect(count as u64));
        let taken: Vec<_> = few.servers.iter().map(|server| server.room.taken()).collect();
        assert!(taken.iter().all(|taken| *taken <= (count * 125).div_ceil(3 * 100)), "{taken:?} of {count}");
    }
    let own = held[0].choice.server;
    assert_eq!(few.servers[own].room.taken(), 13, "as many as it may have");
    drop(held);
    for port in 40..50 {
        let Choice { server, why } = connect(port).choice;
        assert_eq!((server, why.ground), (own, Ground::Affinity));
    }
}
