//! The server that answers fastest for what it has to do.
//!
//! Pure. What a server costs is the time that it takes to answer times its connections, the one to come
//! included, for its weight: a server that slows down gets fewer, and one that only seems fast is held
//! back by its connections. A small pool is looked at as a whole, of a large one two servers drawn by lot:
//! many balancers that look at the same moment do not all run to the same server.

use std::cmp::Ordering;

use super::random::Wheel;
use super::{Choice, Field, Ground, Load, Member, below, electable, mix};

/// Up to so many servers, looking at all of them costs less than a lot that misses the best.
const SMALL_POOL: usize = 8;

/// Differences below this are of our own making: it is what a busy worker takes to notice an answer.
const NOISE_US: u64 = 100;

/// What a server that has not answered yet is taken for once it has a connection to answer: until it has,
/// a second one is not sent after the first.
const UNKNOWN_US: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub struct Fastest {
    wheel: Wheel,
    /// Servers that may be picked, with their weights.
    all: Vec<(usize, u32)>,
}

/// What speaks against a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// What it takes to answer, in microseconds; `None` where it never has.
    pub us: Option<u32>,
    pub load: Load,
}

impl Fastest {
    pub fn new(members: &[Member]) -> Self {
        Fastest { wheel: Wheel::new(members), all: electable(members).collect() }
    }

    /// One look at each server of a small pool; of a large one two draws, which are bounded each.
    pub fn pick(&self, random: u64, field: &impl Field) -> Option<Choice> {
        let is_open = |server| field.is_open(server);
        if self.all.len() <= SMALL_POOL {
            let open = self.all.iter().copied().filter(|(server, _)| is_open(*server));
            return best(open, random, field);
        }
        let first = self.wheel.draw(random, is_open)?;
        // Mixed twice: the first draw may have used up the first mixing.
        let second = self.wheel.draw(mix(mix(random)), |server| server != first.0 && is_open(server));
        best(std::iter::once(first).chain(second), mix(random), field)
    }
}

/// The one of the lowest cost, by lot among equals; and the lowest of the others.
fn best(servers: impl Iterator<Item = (usize, u32)>, random: u64, field: &impl Field) -> Option<Choice> {
    let mut random = random;
    let mut best: Option<(usize, Cost)> = None;
    let (mut next, mut tied): (Option<Cost>, u64) = (None, 1);
    for (server, weight) in servers {
        let cost = Cost { us: field.latency(server), load: field.load(server, weight) };
        let Some((_, own)) = best else {
            best = Some((server, cost));
            continue;
        };
        random = mix(random);
        let wins = match cost.compare(&own) {
            Ordering::Less => {
                tied = 1;
                true
            }
            Ordering::Equal => {
                tied += 1;
                below(random, tied) == 0
            }
            Ordering::Greater => false,
        };
        let loser = if wins { own } else { cost };
        if wins {
            best = Some((server, cost));
        }
        if next.is_none_or(|next| loser.compare(&next) == Ordering::Less) {
            next = Some(loser);
        }
    }
    best.map(|(server, own)| Choice::of(server, Ground::Fastest { own, next }))
}

impl Cost {
    pub fn compare(&self, other: &Cost) -> Ordering {
        self.load.compare_at(self.price(), &other.load, other.price())
    }

    /// Of one connection.
    fn price(&self) -> u64 {
        let us = match self.us {
            Some(us) => u64::from(us),
            None if self.load.is_idle() => 0, // new: it is tried
            None => UNKNOWN_US,
        };
        us + NOISE_US
    }
}

/// `3@180us`, or `0@new` where nothing is known yet.
impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.us {
            Some(us) => write!(f, "{}@{us}us", self.load.active()),
            None => write!(f, "{}@new", self.load.active()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Servers that answer in so many microseconds, and what they carry.
    struct Fleet {
        us: Vec<Option<u32>>,
        active: RefCell<Vec<usize>>,
    }

    impl Field for Fleet {
        fn is_open(&self, _: usize) -> bool {
            true
        }
        fn active(&self, server: usize) -> usize {
            self.active.borrow()[server]
        }
        fn latency(&self, server: usize) -> Option<u32> {
            self.us[server]
        }
    }

    fn fleet(us: &[Option<u32>]) -> Fleet {
        Fleet { us: us.to_vec(), active: vec![0; us.len()].into() }
    }

    fn fastest(count: usize) -> Fastest {
        let member = |number| Member { name: format!("s{number}"), weight: 100, is_eligible: true, tier: 0 };
        Fastest::new(&(0..count).map(member).collect::<Vec<_>>())
    }

    fn fill(fleet: &Fleet, connections: u64) -> Vec<usize> {
        let servers = fastest(fleet.us.len());
        for turn in 0..connections {
            let choice = servers.pick(mix(turn), fleet).unwrap();
            fleet.active.borrow_mut()[choice.server] += 1;
        }
        fleet.active.borrow().clone()
    }

    #[test]
    fn connections_that_stay_are_shared_by_speed() {
        // 100 us of noise and 100, 300 and 900: prices of 200, 400 and 1000.
        assert_eq!(fill(&fleet(&[Some(100), Some(300), Some(900)]), 1700), [1000, 500, 200]);
    }

    #[test]
    fn a_new_server_is_tried_once_and_no_more_until_it_has_answered() {
        let mut fleet = fleet(&[Some(100), None, Some(100)]);
        fleet.active = vec![3, 0, 3].into();
        assert_eq!(fill(&fleet, 61), [33, 1, 33]);
    }

    #[test]
    fn servers_that_are_all_new_share_evenly() {
        let held = fill(&fleet(&[None; 4]), 400);
        assert!(held.iter().all(|count| *count == 100), "{held:?}");
    }

    #[test]
    fn in_a_large_pool_the_slow_ones_get_few() {
        let us: Vec<_> = (0..40).map(|number| Some(if number < 10 { 50_000 } else { 200 })).collect();
        let held = fill(&fleet(&us), 4000);
        let slow: usize = held[..10].iter().sum();
        // A pair of slow ones comes up once in seventeen draws, and then one of them has to do.
        assert!(slow < 4000 / 12, "{held:?}");
        assert!(held[10..].iter().all(|count| (90..160).contains(count)), "{held:?}");
    }

    #[test]
    fn in_a_large_pool_too_nobody_is_picked_who_is_closed_however_fast() {
        struct FastOnesClosed;
        impl Field for FastOnesClosed {
            fn is_open(&self, server: usize) -> bool {
                server.is_multiple_of(2)
            }
            fn active(&self, _: usize) -> usize {
                0
            }
            fn latency(&self, server: usize) -> Option<u32> {
                Some(if server.is_multiple_of(2) { 9000 } else { 100 })
            }
        }
        let fastest = fastest(SMALL_POOL + 10);
        let mut picks =
            (0..1000).map(|number| fastest.pick(mix(number), &FastOnesClosed).expect("some are open"));
        assert!(picks.all(|choice| choice.server.is_multiple_of(2)));
    }

    #[test]
    fn the_log_shows_what_was_compared() {
        let mut fleet = fleet(&[Some(180), Some(950), None]);
        fleet.active = vec![3, 1, 2].into();
        assert_eq!(fastest(3).pick(7, &fleet).unwrap().why.to_string(), "fastest:3@180us<1@950us");
        assert_eq!(fastest(1).pick(7, &self::fleet(&[None])).unwrap().why.to_string(), "fastest:0@new");
    }
}
