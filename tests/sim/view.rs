//! The servers as one search sees them at one moment: by the product, and by the models.

use std::collections::BTreeMap;

use tidegate::core::balance::{Choice, Field, Kind};
use tidegate::core::health::State;
use tidegate::core::slow_start::Share;

use super::search::Search;
use super::world::{Pool, PoolPlace, Server, World};

/// What a key may depend on (the servers and those that are open), and the key: to a server.
pub type Memo = BTreeMap<(String, u64), u64>;

pub struct View<'a> {
    pub world: &'a World,
    pub search: &'a Search,
}

impl View<'_> {
    pub fn server(&self, place: usize) -> &Server {
        self.world.server(self.search.pool.places[place].id)
    }

    pub fn is_new(&self, place: usize) -> bool {
        !self.search.tried.contains(&self.search.pool.places[place].id)
    }

    /// The same question to the models.
    fn is_open_by_model(&self, place: usize) -> bool {
        let (server, most) = (self.server(place), self.server(place).live.room.limit());
        let is_in = self.search.takes_suspects || !server.is_suspect(self.world.now);
        self.is_new(place) && is_in && server.has < most && server.circuit.may_enter(self.world.now)
    }

    /// Those that may be chosen, by the rule in words; only of the lowest tier that has any.
    pub fn candidates(&self) -> Vec<usize> {
        let places = &self.search.pool.places;
        let serves = |place: &PoolPlace, state| place.state == state && place.plan.weight > 0;
        let is_any_up = places.iter().any(|place| serves(place, State::Up));
        let standing = if is_any_up { State::Up } else { State::Checking };
        let mut open: Vec<_> = (0..places.len())
            .filter(|place| serves(&places[*place], standing) && self.is_open_by_model(*place))
            .collect();
        let lowest = open.iter().map(|place| places[*place].plan.tier).min();
        open.retain(|place| Some(places[*place].plan.tier) == lowest);
        open
    }

    /// Which server a known client gets, and whether it is known to it from now on.
    pub fn settled(&self, known: Option<u64>, chosen: u64, tier: u8) -> (u64, bool) {
        let places = &self.search.pool.places;
        let again = known.and_then(|known| places.iter().position(|place| place.id == known));
        let Some(again) = again else { return (chosen, true) };
        let is_any_up = places.iter().any(|place| place.state == State::Up && place.plan.weight > 0);
        let standing = if is_any_up { State::Up } else { State::Checking };
        let (place, server) = (&places[again], self.server(again));
        let is_of_use = place.plan.weight > 0 && place.state == standing && place.plan.tier <= tier;
        if is_of_use && self.is_open_by_model(again) {
            return (place.id, true);
        }
        let is_sound = !server.record.is_out(self.world.now) && server.circuit.may_enter(self.world.now);
        let rests = is_of_use && is_sound && self.is_new(again);
        (chosen, !rests)
    }

    /// What each manner of choosing promises of one pick, where nobody warms up. For a consistent
    /// hash: what the key's server may depend on, and that server.
    pub fn check_manner(&self, choice: &Choice, candidates: &[usize]) -> Option<(String, u64)> {
        let Pool { plan, places, .. } = &*self.search.pool;
        if candidates.iter().any(|place| !self.share(*place).is_full()) {
            return None;
        }
        let load = |place: usize| self.server(place).has as u128 + 1;
        let weight = |place: usize| u128::from(places[place].plan.weight);
        let price = |place: usize| match self.latency(place) {
            Some(us) => u128::from(us) + 100,
            None if load(place) == 1 => 100,
            None => 1_000_100,
        };
        let own = choice.server;
        let is_less = |a: usize, b: usize| load(a) * weight(b) < load(b) * weight(a);
        let is_cheaper = |a: usize, b: usize| load(a) * price(a) * weight(b) < load(b) * price(b) * weight(a);
        match plan.kind {
            Kind::First => assert_eq!(Some(&own), candidates.iter().min()),
            Kind::LeastConnections => assert!(!candidates.iter().any(|other| is_less(*other, own))),
            Kind::PowerOfTwo => {
                let is_most = candidates.iter().all(|other| *other == own || is_less(*other, own));
                assert!(candidates.len() == 1 || !is_most, "the most loaded of all");
            }
            Kind::Fastest => assert!(!candidates.iter().any(|other| is_cheaper(*other, own))),
            Kind::ConsistentHash => match plan.max_load {
                Some(percent) => {
                    let all: u128 = candidates.iter().map(|place| load(*place) - 1).sum();
                    let weights: u128 = candidates.iter().map(|place| weight(*place)).sum();
                    let allowed = (all + 1) * u128::from(percent) * weight(own);
                    assert!((load(own) - 1) * weights * 100 < allowed, "beyond its load");
                }
                None => return Some((self.told(candidates), places[own].plan.name)),
            },
            Kind::RoundRobin | Kind::Random => {}
        }
        None
    }

    /// The servers of the tier, by name and weight, and those of them that are open.
    fn told(&self, candidates: &[usize]) -> String {
        let places = &self.search.pool.places;
        let tier = places[candidates[0]].plan.tier;
        let of_tier = places.iter().filter(|place| place.plan.tier == tier && place.plan.weight > 0);
        let mut all: Vec<_> = of_tier.map(|place| (place.plan.name, place.plan.weight)).collect();
        let mut open: Vec<_> = candidates.iter().map(|place| places[*place].plan.name).collect();
        all.sort_unstable();
        open.sort_unstable();
        format!("{all:?} {open:?}")
    }
}

impl Field for View<'_> {
    fn is_open(&self, place: usize) -> bool {
        let (live, now) = (self.server(place).live, self.world.now);
        let is_in = self.search.takes_suspects || !live.guard.is_suspect(now);
        if !(self.is_new(place) && is_in && live.guard.is_open(now)) {
            return false;
        }
        let is_full = live.room.is_full();
        self.search.has_full.set(self.search.has_full.get() || is_full);
        !is_full
    }

    fn active(&self, place: usize) -> usize {
        self.server(place).live.room.taken()
    }

    fn share(&self, place: usize) -> Share {
        self.server(place).share(self.search.pool.plan.slow_start, self.world.now)
    }

    fn latency(&self, place: usize) -> Option<u32> {
        self.server(place).latency.us(self.world.ms() as u32)
    }
}
