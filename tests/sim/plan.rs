//! What an operator may write, drawn by lot, and how a reload changes it.

use std::net::IpAddr;
use std::time::Duration;

use tidegate::core::balance::Kind;
use tidegate::core::bucket::Rate;
use tidegate::core::prefix::Prefix;
use tidegate::core::{breaker, outlier};
use tidegate::live::Rules;

use super::dice::Dice;

/// Names that servers can have. They come and go, and with the name comes back what was known.
const NAMES: u64 = 9;

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub kind: Kind,
    pub max_load: Option<u32>,
    pub attempts: u32,
    pub backoff: Duration,
    pub max_backoff: Duration,
    pub budget: f64,
    pub deadline: Duration,
    pub connect_timeout: Duration,
    pub queue: Option<Queue>,
    pub affinity: Option<Affinity>,
    pub guard: Guarded,
    pub slow_start: Option<Duration>,
    /// Rise and fall, where servers are checked.
    pub checks: Option<(u32, u32)>,
    pub servers: Vec<ServerPlan>,
    pub door: Door,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Queue {
    pub max: usize,
    pub timeout: Duration,
    /// Also where no server is up, and not only where all are full.
    pub for_dead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affinity {
    pub ttl: Duration,
    pub most: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guarded {
    pub breaker: Option<breaker::Rules>,
    pub outlier: Option<outlier::Rules>,
}

impl Guarded {
    pub fn rules(self) -> Rules {
        Rules { breaker: self.breaker, outlier: self.outlier }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServerPlan {
    pub name: u64,
    pub weight: u32,
    pub tier: u8,
    pub most: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Door {
    pub allow: Vec<Prefix>,
    pub deny: Vec<Prefix>,
    pub rate: Option<Rate>,
    pub rate_per_source: Option<Rate>,
    pub most_per_source: Option<usize>,
    pub most: usize,
}

impl Plan {
    pub fn draw(dice: &mut Dice) -> Self {
        // The longest pause: in a long one servers go down and rise.
        let longest = dice.weighted(&[(2, 400), (1, 20_000)]);
        let mut plan = Plan {
            kind: kind(dice),
            max_load: max_load(dice),
            attempts: dice.between(1, 6) as u32,
            backoff: dice.ms(1, longest / 8),
            max_backoff: dice.ms(longest / 8, longest),
            budget: dice.between(0, 3) as f64 / 10.0,
            deadline: dice.ms(50, longest * 10),
            connect_timeout: dice.ms(20, 600),
            queue: maybe(dice, queue),
            affinity: maybe(dice, affinity),
            guard: guarded(dice),
            slow_start: maybe(dice, |dice| dice.ms(100, 20_000)),
            checks: maybe(dice, |dice| (dice.between(1, 4) as u32, dice.between(1, 4) as u32)),
            servers: Vec::new(),
            door: door(dice),
        };
        (0..dice.between(1, 6)).for_each(|_| plan.add_server(dice));
        plan
    }

    /// One thing or another is written anew.
    pub fn reload(&mut self, dice: &mut Dice) -> &'static str {
        match dice.below(16) {
            0 | 1 => self.add_server(dice),
            2 if self.servers.len() > 1 => {
                let gone = dice.below(self.servers.len());
                self.servers.remove(gone);
            }
            3 | 4 => {
                let server = dice.below(self.servers.len());
                let name = self.servers[server].name;
                self.servers[server] = server_plan(name, dice);
            }
            5 => self.servers.reverse(),
            6 => self.queue = maybe(dice, queue),
            7 => self.affinity = maybe(dice, affinity),
            8 | 9 => self.guard = guarded(dice),
            10 => self.slow_start = maybe(dice, |dice| dice.ms(100, 20_000)),
            11 => self.checks = maybe(dice, |dice| (dice.between(1, 4) as u32, dice.between(1, 4) as u32)),
            12 => self.door = door(dice),
            13 => {
                self.kind = kind(dice);
                self.max_load = max_load(dice);
            }
            14 => {
                let fresh = Plan::draw(dice);
                *self = Plan { servers: self.servers.clone(), ..fresh };
                return "all but the servers";
            }
            _ => {} // the same file once more
        }
        "one thing"
    }

    fn add_server(&mut self, dice: &mut Dice) {
        let name = dice.between(0, NAMES - 1);
        if !self.servers.iter().any(|server| server.name == name) {
            let place = dice.below(self.servers.len() + 1);
            self.servers.insert(place, server_plan(name, dice));
        }
    }
}

fn maybe<T>(dice: &mut Dice, draw: impl FnOnce(&mut Dice) -> T) -> Option<T> {
    dice.once_in(2).then(|| draw(dice))
}

/// A consistent hash more often than the others: what is kept for a client has to agree with more of it.
fn kind(dice: &mut Dice) -> Kind {
    if dice.once_in(4) { Kind::ConsistentHash } else { dice.one_of(Kind::ALL) }
}

/// In percent, and mostly low enough for one busy source to reach it.
fn max_load(dice: &mut Dice) -> Option<u32> {
    let most = dice.weighted(&[(2, 120), (1, 300)]);
    maybe(dice, |dice| dice.between(101, most) as u32)
}

fn server_plan(name: u64, dice: &mut Dice) -> ServerPlan {
    ServerPlan {
        name,
        weight: dice.weighted(&[(5, 100), (1, 1), (1, 250), (1, 1000), (1, 0)]),
        tier: dice.weighted(&[(4, 0), (1, 1), (1, 7)]),
        most: dice.weighted(&[(2, usize::MAX), (1, 3), (1, 8), (1, 20)]),
    }
}

fn queue(dice: &mut Dice) -> Queue {
    Queue { max: dice.between(1, 90) as usize, timeout: dice.ms(100, 5000), for_dead: dice.once_in(2) }
}

fn affinity(dice: &mut Dice) -> Affinity {
    Affinity { ttl: dice.ms(50, 20_000), most: dice.between(1, 60) as usize }
}

fn guarded(dice: &mut Dice) -> Guarded {
    let breaker = maybe(dice, |dice| breaker::Rules {
        failures: dice.between(1, 6) as u32,
        window: dice.ms(200, 10_000),
        open_for: dice.ms(10, 3000),
        half_open_trials: dice.between(1, 4) as u32,
    });
    let outlier = maybe(dice, |dice| outlier::Rules {
        consecutive_failures: dice.between(2, 8) as u32,
        failure_ratio: dice.between(1, 10) as f64 / 10.0,
        min_connections: dice.between(2, 20) as u32,
        eject_for: dice.ms(50, 5000),
        max_ejected: dice.between(0, 10) as f64 / 10.0,
    });
    Guarded { breaker, outlier }
}

fn door(dice: &mut Dice) -> Door {
    let rate = |dice: &mut Dice, most| {
        let per = Duration::from_secs(dice.one_of(&[1, 1, 7, 60]));
        Rate { count: dice.between(1, most) as u32, per }
    };
    Door {
        allow: networks(dice.one_of(&[0, 0, 0, 0, 0, 0, 0, 4]), dice),
        deny: networks(dice.one_of(&[0, 0, 0, 1, 3]), dice),
        rate: dice.once_in(4).then(|| rate(dice, 60)),
        rate_per_source: dice.once_in(3).then(|| rate(dice, 20)),
        most_per_source: dice.once_in(3).then(|| dice.between(1, 8) as usize),
        most: dice.weighted(&[(2, 60), (1, 120), (1, 500)]),
    }
}

fn networks(count: usize, dice: &mut Dice) -> Vec<Prefix> {
    let network = |dice: &mut Dice| {
        let address = source(dice);
        let length = if address.is_ipv4() { dice.between(24, 31) } else { dice.between(100, 128) };
        Prefix::around(address, length as u8).expect("not longer than an address")
    };
    (0..count).map(|_| network(dice)).collect()
}

/// Where a client comes from: a few that come often, and some that seldom do.
pub fn source(dice: &mut Dice) -> IpAddr {
    let often = dice.between(1, 10) as u8;
    let seldom = dice.between(1, 250) as u8;
    match dice.below(8) {
        0..=4 => IpAddr::from([192, 0, 2, often]),
        5 => IpAddr::from([192, 0, 2, seldom]),
        6 => IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, u16::from(often)]),
        _ => IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0200 | u16::from(often)]), // 192.0.2.x in the clothes of IPv6
    }
}
