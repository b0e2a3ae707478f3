//! What is counted is given back, and what is kept by one is told to all.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::core::priority::{Among, Priority, Reach};
use crate::core::throttle::Bandwidth;

/// A pool without traffic, in which every retry was in vain until there was leave for no more.
fn pool_that_retried_in_vain(now: Instant) -> Arc<PoolLive> {
    let pool = PoolLive::new(1);
    while let Some(retry) = pool.retry(0.0, Odds::Fair, now) {
        retry.end(false, now);
    }
    pool
}

fn server(pool: &PoolLive) -> Arc<ServerLive> {
    Arc::new(ServerLive {
        pool: "api".into(),
        name: "a".into(),
        address: (Ipv4Addr::LOCALHOST, 1).into(),
        room: Room::new(1),
        warmup: Warmup::new(),
        answers: Answers::default(),
        guard: Guard::new(Instant::now(), Arc::clone(&pool.ward)),
        stats: PerWorker::new(1),
    })
}

#[test]
fn a_room_is_full_for_a_class_from_the_place_on_that_it_may_not_have() {
    let room = Room::new(10);
    let low = Among::new(Priority::ALL.iter().copied()).reach(Priority::Low);
    let its_part = low.of(10);
    let _taken: Vec<_> = (1..its_part).map(|_| room.take().expect("a place")).collect();
    assert!((1..10).contains(&its_part) && !room.is_full_within(low), "one of its places is left");
    let _last = room.take_within(low).expect("the last of its places");
    assert!(room.is_full_within(low) && room.take_within(low).is_none());
    assert!(!room.is_full_within(Reach::WHOLE) && !room.is_full(), "others may fill it");
}

#[test]
fn each_connection_has_its_own_turn() {
    let (pool, route) = (PoolLive::new(1), RouteLive::new("api".into(), 1));
    assert_eq!([(); 3].map(|()| pool.next_turn()), [0, 1, 2]);
    assert_eq!([(); 3].map(|()| route.next_turn()), [0, 1, 2]);
}

#[test]
fn connections_of_the_pool_earn_retries() {
    let now = Instant::now();
    let pool = pool_that_retried_in_vain(now);
    assert!(pool.retry(1.0, Odds::Fair, now).is_none(), "no traffic, and so no share of it");
    pool.next_turn();
    assert!(pool.retry(1.0, Odds::Fair, now).is_some(), "one connection, one retry");
}

/// The budget bears a hundred retries in vain; those under way count by what became of the others.
#[test]
fn a_retry_counts_as_it_ended_and_one_that_is_dropped_not_at_all() {
    let now = Instant::now();
    for odds in [Odds::Fair, Odds::Bad] {
        let pool = PoolLive::new(1);
        for _ in 0..99 {
            pool.retry(0.0, odds, now).expect("leave").end(false, now);
        }
        for _ in 0..1000 {
            drop(pool.retry(0.0, odds, now).expect("whoever left has given it back"));
        }
        let under_way = pool.retry(0.0, odds, now).expect("the hundredth");
        assert!(pool.retry(0.0, odds, now).is_none(), "it may be in vain as well");
        under_way.end(true, now);
        pool.retry(0.0, odds, now).expect("it was not").end(false, now);
        assert!(pool.retry(0.0, odds, now).is_none(), "a hundred in vain");
    }
}

#[test]
fn clients_that_had_to_be_forgotten_are_counted_over_all_parts() {
    let (pool, now, ttl) = (PoolLive::new(1), Instant::now(), Duration::from_secs(60));
    let (server, affinity) = (server(&pool), &pool.affinity);
    affinity.set_limit(AFFINITY_PARTS);
    for number in 0..200 {
        let key = Key::source(Ipv4Addr::new(192, 0, 2, number).into());
        affinity.settle(key, ttl, now, &server, |_| Tie::<()>::Breaks);
    }
    // One is known in each part that had a client, and of 200 neighbours each part has some.
    assert_eq!(affinity.count(ttl, now), (AFFINITY_PARTS, 200 - AFFINITY_PARTS as u64));
    assert_eq!(affinity.count(ttl, now + ttl), (0, 200 - AFFINITY_PARTS as u64), "their time is over");
}

#[test]
fn how_long_a_server_takes_to_answer_is_kept_and_fades() {
    let answers = Answers::default();
    let now = answers.made + Duration::from_secs(100);
    assert_eq!(answers.us(now), None, "it has never answered");
    answers.observe(Duration::from_millis(5), now);
    assert_eq!(answers.us(now), Some(5000));
    let later = answers.us(now + Duration::from_secs(10)).expect("known");
    assert!((1500..2500).contains(&later), "after the length of the memory a third of it: {later}");
}

#[test]
fn a_listeners_bandwidth_holds_until_another_is_set_which_begins_with_a_full_burst() {
    let epoch = Instant::now();
    let (shared, at) = (SharedBandwidth::new(epoch), epoch + Duration::from_secs(7));
    assert_eq!((shared.limit(), shared.time(at)), (None, Duration::from_secs(7)));
    let (slow, fast) = (Bandwidth::new(1 << 20), Bandwidth::new(1 << 30));
    shared.set(Some(slow));
    assert_eq!(shared.limit(), Some(slow));
    for throttle in [&shared.to_server, &shared.to_client] {
        throttle.reserve(1 << 30, slow, shared.time(at));
    }
    let backlogs = || [&shared.to_server, &shared.to_client].map(|it| it.backlog(slow, shared.time(at)));
    shared.set(Some(slow));
    assert!(backlogs().iter().all(|backlog| !backlog.is_zero()), "a reload that changes nothing");
    shared.set(Some(fast));
    assert_eq!((shared.limit(), backlogs()), (Some(fast), [Duration::ZERO; 2]));
    shared.set(None);
    assert_eq!(shared.limit(), None);
}

#[test]
fn a_server_warms_up_from_when_it_began_and_not_from_when_it_was_made() {
    let (warmup, over) = (Warmup::new(), Duration::from_secs(10));
    assert!(!warmup.has_begun());
    assert_eq!(warmup.share(over, warmup.made), Share::FULL, "one that never began has its full weight");
    for seconds in [0, 40] {
        let begun = warmup.made + Duration::from_secs(seconds);
        warmup.begin(begun);
        assert!(warmup.has_begun());
        assert_eq!(warmup.share(over, begun + over / 2).thousandths(), 500);
        assert_eq!(warmup.share(over, begun + over), Share::FULL);
    }
}
