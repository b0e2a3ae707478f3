//! What else workers share of a pool and its servers: `live.rs`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use loom::thread;
use tidegate_races::core::affinity::Key;
use tidegate_races::core::budget::Odds;
use tidegate_races::live::{
    Affinity, Answers, Guard, Loads, PoolLive, Room, RouteLive, ServerLive, Tie, Warmup,
};
use tidegate_races::telemetry::counters::{Count, PerWorker};

use crate::{Steps, in_every_order, join, with_preemptions};

#[test]
fn seats_are_all_given_back_whichever_thread_drops_them() {
    in_every_order(|| {
        let loads = Loads::new(2);
        let seated = |worker| {
            let loads = Arc::clone(&loads);
            thread::spawn(move || loads.seat(worker))
        };
        // The first worker seats a client at the second, which is taking one itself.
        let seats = join([1, 1].map(seated));
        assert_eq!(loads.iter().collect::<Vec<_>>(), [0, 2]);
        join(seats.into_iter().map(|seat| thread::spawn(move || drop(seat))).collect::<Vec<_>>());
        assert_eq!(loads.iter().sum::<usize>(), 0);
    });
}

#[test]
fn of_two_answers_at_once_the_slower_one_is_not_lost() {
    in_every_order(|| {
        let (now, answers) = (Instant::now(), Arc::new(Answers::default()));
        let worker = |us| {
            let answers = Arc::clone(&answers);
            thread::spawn(move || answers.observe(Duration::from_micros(us), now))
        };
        join([300, 9000].map(worker));
        assert_eq!(answers.us(now), Some(9000));
    });
}

#[test]
fn every_connection_has_a_turn_of_its_own() {
    in_every_order(|| {
        let pool = PoolLive::new(0);
        let worker = |_| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || [pool.next_turn(), pool.next_turn()])
        };
        let mut turns: Vec<_> = join((0..3).map(worker).collect::<Vec<_>>()).concat();
        turns.sort_unstable();
        assert_eq!(turns, [0, 1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_canary_gets_its_share_of_the_turns_whichever_worker_has_them() {
    in_every_order(|| {
        let route = Arc::new(RouteLive::new("canary".into(), 0));
        let worker = |_| {
            let route = Arc::clone(&route);
            thread::spawn(move || [route.next_turn(), route.next_turn()])
        };
        let turns = join((0..2).map(worker).collect::<Vec<_>>()).concat();
        assert_eq!(turns.iter().filter(|turn| **turn % 2 == 1).count(), 2);
    });
}

#[test]
fn once_one_retry_was_in_vain_those_that_race_do_not_go_over_the_budget() {
    with_preemptions(2, || {
        let (pool, now) = (PoolLive::new(0), Instant::now());
        // A quiet pool bears a hundred in vain; one is left.
        (0..99).for_each(|_| pool.retry(0.0, Odds::Fair, now).expect("there are more").end(false, now));
        let worker = |_| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                pool.retry(0.0, Odds::Fair, now).map(|retry| retry.end(false, now)).is_some()
            })
        };
        let made = join((0..2).map(worker).collect::<Vec<_>>()).into_iter().filter(|made| *made).count();
        assert_eq!(made, 1);
        assert!(pool.retry(0.0, Odds::Fair, now).is_none());
    });
}

#[test]
fn of_retries_that_race_against_a_dead_pool_none_is_over_the_budget_before_any_has_ended() {
    with_preemptions(2, || {
        let (pool, now) = (PoolLive::new(0), Instant::now());
        let under_way: Vec<_> = (0..99).filter_map(|_| pool.retry(0.0, Odds::Bad, now)).collect();
        assert_eq!(under_way.len(), 99);
        let worker = |_| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                let retry = pool.retry(0.0, Odds::Bad, now);
                let is_made = retry.is_some();
                retry.into_iter().for_each(|retry| retry.end(false, now));
                is_made
            })
        };
        let made = join((0..2).map(worker).collect::<Vec<_>>()).into_iter().filter(|made| *made).count();
        assert_eq!(made, 1);
    });
}

/// The bug: each refusal took one that was under way off the count.
#[test]
fn a_retry_that_is_refused_gives_nothing_back() {
    in_every_order(|| {
        let (pool, now) = (PoolLive::new(0), Instant::now());
        let under_way: Vec<_> = (0..100).filter_map(|_| pool.retry(0.0, Odds::Bad, now)).collect();
        let worker = thread::spawn({
            let pool = Arc::clone(&pool);
            move || assert!(pool.retry(0.0, Odds::Bad, now).is_none())
        });
        assert!(pool.retry(0.0, Odds::Bad, now).is_none());
        join([worker]);
        assert!(pool.retry(0.0, Odds::Bad, now).is_none() && under_way.len() == 100);
    });
}

#[test]
fn a_retry_that_its_client_left_costs_nothing() {
    in_every_order(|| {
        let (pool, now) = (PoolLive::new(0), Instant::now());
        (0..99).for_each(|_| pool.retry(0.0, Odds::Fair, now).expect("there are more").end(false, now));
        let worker = thread::spawn({
            let pool = Arc::clone(&pool);
            move || drop(pool.retry(0.0, Odds::Fair, now))
        });
        drop(pool.retry(0.0, Odds::Fair, now));
        join([worker]);
        assert!(pool.retry(0.0, Odds::Fair, now).is_some());
    });
}

fn server(name: &str) -> Arc<ServerLive> {
    Arc::new(ServerLive {
        pool: "web".into(),
        name: name.into(),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        room: Room::new(1),
        warmup: Warmup::default(),
        answers: Answers::default(),
        guard: Guard::new(Instant::now(), Arc::default()),
        stats: PerWorker::new(0),
    })
}

#[test]
fn a_client_that_comes_twice_at_once_is_sent_to_one_server() {
    in_every_order(|| {
        let (now, ttl) = (Instant::now(), Duration::from_secs(9));
        let affinity = Arc::new(Affinity::default());
        affinity.set_limit(100);
        let worker = |name| {
            let (affinity, proposed) = (Arc::clone(&affinity), server(name));
            thread::spawn(move || {
                let key = Key::source(Ipv4Addr::LOCALHOST.into());
                let tie = |known: &Weak<ServerLive>| known.upgrade().map_or(Tie::Breaks, Tie::Holds);
                let known = affinity.settle(key, ttl, now, &proposed, tie);
                (known.is_some(), known.unwrap_or(proposed))
            })
        };
        let served = join(["a", "b"].map(worker));
        assert_eq!(served.iter().filter(|(was_known, _)| *was_known).count(), 1);
        assert_eq!(served[0].1.name, served[1].1.name);
    });
}

#[test]
fn more_clients_at_once_than_the_table_has_room_for_leave_it_full_and_no_fuller() {
    in_every_order(|| {
        let (now, ttl) = (Instant::now(), Duration::from_secs(9));
        let affinity = Arc::new(Affinity::default());
        affinity.set_limit(16); // one for each part
        let keys = (1..=255).map(|host| Key::source([192, 0, 2, host].into()));
        let neighbours: Vec<_> = keys.filter(|key| key.part(16) == 3).take(2).collect();
        let worker = |key: &Key| {
            let (affinity, server, key) = (Arc::clone(&affinity), server("a"), *key);
            thread::spawn(move || affinity.settle(key, ttl, now, &server, |_| Tie::<()>::Breaks))
        };
        join(neighbours.iter().map(worker).collect::<Vec<_>>());
        assert_eq!(affinity.count(ttl, now), (1, 1), "one is known, and one was forgotten for it");
    });
}

#[test]
fn a_counter_with_one_writer_is_read_in_order_and_loses_nothing() {
    in_every_order(|| {
        let (count, steps) = (Arc::new(Count::default()), Arc::new(Steps::default()));
        let worker = thread::spawn({
            let (count, steps) = (Arc::clone(&count), Arc::clone(&steps));
            move || {
                for n in [1, 2, 3] {
                    steps.step();
                    count.add(n);
                }
            }
        });
        let get = || {
            steps.step();
            count.get()
        };
        let seen = [get(), get()];
        assert!(seen[0] <= seen[1] && seen.iter().all(|count| [0, 1, 3, 6].contains(count)), "{seen:?}");
        join([worker]);
        assert_eq!(count.get(), 6);
    });
}
