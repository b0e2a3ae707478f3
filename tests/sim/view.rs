//! The servers as one search may see them at one moment, by the models.

use std::collections::BTreeMap;

use tidegate::core::balance::{Choice, Kind};
use tidegate::core::health::State;
use tidegate::live::search::Manner;

use super::search::Search;
use super::world::{Pool, PoolPlace, Server, World};

/// What a key may depend on (the servers and those that are open), and the key: to a server.
pub type Memo = BTreeMap<(String, u64), u64>;

/// What becomes of a client's tie to the server that it is known to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Serves,
    /// It has a place, and more connections than `max_load` allows; it stays the client's.
    Spills,
    /// It has none, or is in doubt; it stays the client's.
    Rests,
    Lost,
}

pub struct View<'a> {
    pub world: &'a World,
    pub search: &'a Search,
}

impl View<'_> {
    pub fn server(&self, place: usize) -> &Server {
        self.world.server(self.search.pool.places[place].id)
    }

    /// Those that may be chosen, by the rule in words; only of the lowest tier that has any. Under suspicion
    /// they are candidates where nobody else is.
    pub fn candidates(&self) -> Vec<usize> {
        let is_sound = |place: &usize| !self.server(*place).is_suspect(self.world.now);
        let has_room = |place: &usize| !self.is_full(*place);
        let mut open: Vec<_> = self.not_done_with().filter(has_room).collect();
        if open.iter().any(is_sound) || self.passes_over_suspects() {
            open.retain(is_sound);
        }
        let places = &self.search.pool.places;
        let lowest = open.iter().map(|place| places[*place].plan.tier).min();
        open.retain(|place| Some(places[*place].plan.tier) == lowest);
        open
    }

    /// There are other pools to ask before those of this one that are out; or another client finds out about
    /// all who are in doubt.
    fn passes_over_suspects(&self) -> bool {
        match self.search.manner {
            Manner::Trusted => true,
            Manner::Sound | Manner::Canary => self.search.pool.plan.guard.outlier.is_some(),
            Manner::Once | Manner::AgainAfterPauses => false,
        }
    }

    /// Those that could be asked if they had room: they serve, have not failed the client, and may be tried.
    fn not_done_with(&self) -> impl Iterator<Item = usize> {
        let places = &self.search.pool.places;
        let is_new = |place: usize| self.search.met.is_new(places[place].id);
        let may_enter = |place: usize| self.server(place).circuit.may_enter(self.world.now);
        (0..places.len()).filter(move |place| self.serves(*place) && is_new(*place) && may_enter(*place))
    }

    /// It has a part in the traffic: it is up or, where none is, not checked yet.
    fn serves(&self, place: usize) -> bool {
        let places = &self.search.pool.places;
        let serves = |place: &PoolPlace, state| place.state == state && place.plan.weight > 0;
        let is_any_up = places.iter().any(|place| serves(place, State::Up));
        serves(&places[place], if is_any_up { State::Up } else { State::Checking })
    }

    fn is_full(&self, place: usize) -> bool {
        self.server(place).has >= self.server(place).live.room.limit()
    }

    /// Somebody who could be asked has no room.
    pub fn has_full(&self) -> bool {
        self.not_done_with().any(|place| self.is_full(place))
    }

    pub fn has_sound_full(&self) -> bool {
        let is_sound = |place: &usize| !self.server(*place).is_suspect(self.world.now);
        self.not_done_with().filter(is_sound).any(|place| self.is_full(place))
    }

    /// Whoever is under suspicion is not asked while clients may wait for another's room.
    pub fn should_hold_out(&self) -> bool {
        self.search.pool.plan.queue.is_some() && self.has_sound_full()
    }

    /// The same where somebody has had no room since the last pause, and may have some now.
    pub fn may_hold_out(&self) -> bool {
        let was_full = self.search.met.was_full || self.has_full();
        self.search.pool.plan.queue.is_some() && was_full
    }

    pub fn tie(&self, known: Option<u64>, candidates: &[usize]) -> Known {
        let (places, now) = (&self.search.pool.places, self.world.now);
        let again = known.and_then(|known| places.iter().position(|place| place.id == known));
        let lowest = candidates.first().map(|place| places[*place].plan.tier);
        let is_of_use = |place: &usize| self.serves(*place) && Some(places[*place].plan.tier) <= lowest;
        let Some(again) = again.filter(is_of_use) else { return Known::Lost };
        let server = self.server(again);
        let takes_suspects = candidates.iter().all(|place| self.server(*place).is_suspect(now));
        let is_new = self.search.met.is_new(places[again].id);
        let is_in = is_new && server.circuit.may_enter(now);
        let is_open = is_in && (takes_suspects || !server.is_suspect(now)) && !self.is_full(again);
        match is_open {
            true if self.is_within_bound(again, candidates) => Known::Serves,
            _ if !is_in || server.record.is_out(now) => Known::Lost,
            true => Known::Spills,
            false => Known::Rests,
        }
    }

    /// Has it no more than its share of what the open ones of its tier have, with this client, as `max_load` says.
    fn is_within_bound(&self, own: usize, open: &[usize]) -> bool {
        let Pool { plan, places, .. } = &*self.search.pool;
        let Some(percent) = plan.max_load.filter(|_| plan.kind == Kind::ConsistentHash) else { return true };
        let has = |place: usize| self.server(place).has as u128;
        let weight = |place: usize| {
            let share = self.server(place).share(plan.slow_start, self.world.now);
            u128::from(places[place].plan.weight) * u128::from(share.thousandths())
        };
        let all: u128 = open.iter().map(|place| has(*place)).sum();
        let weights: u128 = open.iter().map(|place| weight(*place)).sum();
        has(own) * weights * 100 < (all + 1) * u128::from(percent) * weight(own)
    }

    /// What each manner of choosing promises of one pick, where nobody warms up. For a consistent
    /// hash: what the key's server may depend on, and that server.
    pub fn check_manner(&self, choice: &Choice, candidates: &[usize]) -> Option<(String, u64)> {
        let Pool { plan, places, .. } = &*self.search.pool;
        let share = |place: usize| self.server(place).share(plan.slow_start, self.world.now);
        if candidates.iter().any(|place| !share(*place).is_full()) {
            return None;
        }
        let load = |place: usize| self.server(place).has as u128 + 1;
        let weight = |place: usize| u128::from(places[place].plan.weight);
        let price = |place: usize| match self.server(place).live.answers.us(self.world.now) {
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
                Some(_) => assert!(self.is_within_bound(own, candidates), "beyond its load"),
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
