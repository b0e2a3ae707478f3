//! Least connections while workers race: how far a pick may be off. The claim and its reason stand in
//! `core/balance/least_connections.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::thread;
use tidegate_races::core::balance::{Ask, Chooser, Field, Kind, Member};
use tidegate_races::live::{Permit, Room};

use crate::{Steps, in_every_order, join, with_preemptions};

/// Two servers with room for everybody, and how one of them is chosen.
struct Pool {
    chooser: Chooser,
    rooms: [Arc<Room>; 2],
    steps: Steps,
}

impl Field for Pool {
    fn is_open(&self, _: usize) -> bool {
        true
    }
    fn active(&self, server: usize) -> usize {
        self.steps.step();
        self.rooms[server].taken()
    }
}

impl Pool {
    fn new() -> Arc<Self> {
        let member = |name: &str| Member { name: name.into(), weight: 1, is_eligible: true, tier: 0 };
        let chooser = Chooser::new(Kind::LeastConnections, ["a", "b"].map(member).to_vec());
        Arc::new(Pool {
            chooser,
            rooms: [Room::new(usize::MAX), Room::new(usize::MAX)],
            steps: Steps::default(),
        })
    }

    /// As `data/search.rs` does: a look at all, and then a place at the best.
    fn connect(&self) -> Permit {
        let ask = Ask { key: 0, random: 7, turn: 0 };
        let choice = self.chooser.pick(&ask, self).expect("both are open");
        self.steps.step();
        self.rooms[choice.server].take().expect("there is room")
    }

    fn difference(&self) -> usize {
        self.rooms[0].taken().abs_diff(self.rooms[1].taken())
    }
}

/// So many workers make so many connections each; the difference afterwards.
fn race(workers: usize, connections: usize) -> usize {
    let pool = Pool::new();
    let work = move |pool: &Pool| (0..connections).map(|_| pool.connect()).collect::<Vec<_>>();
    let others = (1..workers).map(|_| Arc::clone(&pool)).map(|pool| thread::spawn(move || work(&pool)));
    let others: Vec<_> = others.collect();
    let own = work(&pool);
    let held = (own, join(others));
    let difference = pool.difference();
    drop(held);
    assert_eq!(pool.difference(), 0, "every place was given back");
    difference
}

#[test]
fn one_worker_alone_is_never_wrong() {
    in_every_order(|| assert_eq!(race(1, 4), 0));
}

/// The greatest difference that any order leaves.
fn worst(preemptions: usize, workers: usize, connections: usize) -> usize {
    let worst = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&worst);
    with_preemptions(preemptions, move || _ = seen.fetch_max(race(workers, connections), Ordering::Relaxed));
    worst.load(Ordering::Relaxed)
}

#[test]
fn workers_that_race_put_a_server_one_ahead_each_and_no_more() {
    // The bound holds, and is reached: by workers that look at the same time, and later on as well.
    assert_eq!([worst(3, 2, 1), worst(3, 3, 1)], [2, 3]);
    assert_eq!([worst(3, 2, 2), worst(2, 2, 3)], [2, 2]);
}
