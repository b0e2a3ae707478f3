//! Which server of a pool takes a connection.
//!
//! Pure. A [`Chooser`] is built once for each snapshot, over all servers of a pool, and is
//! never changed afterwards. It asks the servers of tier 0, and those of a higher tier only when no
//! lower one has a server that is up and has room left. What differs from pick to pick (the key, a random number, the
//! turn, the counts of open connections) comes in as an argument. A pick is lock-free, allocates
//! nothing, and ends after a written number of steps even when every server is closed.

mod hash_key; // what a consistent hash goes by
mod load; // connections per weight, compared
mod round_robin; // each in its turn, by a schedule
mod random; // by lot; the wheel that also power-of-two draws from
mod power_of_two; // the less loaded of two
mod least_connections; // the least loaded of all
mod maglev; // the same key to the same server, on every machine
mod fastest; // the one that answers fastest
mod first; // the first in order

use std::fmt;

use crate::core::outcome::words;
use crate::core::slow_start::Share;

use fastest::{Cost, Fastest};
use first::First;
pub use hash_key::{HashKey, key};
use least_connections::LeastConnections;
pub use load::Load;
use maglev::Maglev;
use power_of_two::PowerOfTwo;
use random::Wheel;
use round_robin::RoundRobin;

words! {
    /// How a server is chosen.
    Kind {
        RoundRobin = "round-robin",
        Random = "random",
        PowerOfTwo = "power-of-two",
        LeastConnections = "least-connections",
        ConsistentHash = "consistent-hash",
        First = "first",
        Fastest = "fastest",
    }
}

/// One server as a chooser sees it. Its number is its place in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What a consistent hash is taken of; never its address, so that it may move.
    pub name: String,
    /// Share of the traffic; 0 gets none.
    pub weight: u32,
    /// May be chosen at all: up, or standing in because nothing is up.
    pub is_eligible: bool,
    /// Chosen only while no lower tier has an open server.
    pub tier: u8,
}

/// What may differ from one pick to the next.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The hash of what a consistent hash goes by; see [`key`].
    pub key: u64,
    /// A fresh random number.
    pub random: u64,
    /// A number that grows by one with each connection to the pool, over all workers.
    pub turn: u64,
}

/// The state of the servers at the moment of a pick. Other workers may change it between two
/// questions of one pick: then the pick is as good as one made a moment earlier or later.
pub trait Field {
    /// May this connection try that server: not tried before, and room left.
    fn is_open(&self, server: usize) -> bool;
    /// Connections that the server has now.
    fn active(&self, server: usize) -> usize;
    /// How much of its weight it has; less than all while it is warming up.
    fn share(&self, _server: usize) -> Share {
        Share::FULL
    }
    /// How long it takes to answer, in microseconds; `None` where nothing is known.
    fn latency(&self, _server: usize) -> Option<u32> {
        None
    }
    /// Its load for a comparison with others.
    fn load(&self, server: usize, weight: u32) -> Load {
        Load::new(self.active(server), weight, self.share(server))
    }
}

/// A field of which each server that is warming up takes part by lot, as often as its share says.
struct Thinned<'a, F> {
    field: &'a F,
    /// One for each pick; for a consistent hash it is the key, so that each key moves to the server once
    /// while its share grows.
    seed: u64,
}

impl<F: Field> Field for Thinned<'_, F> {
    fn is_open(&self, server: usize) -> bool {
        let share = self.field.share(server);
        (share.is_full() || share.takes_part(mix(self.seed ^ mix(server as u64))))
            && self.field.is_open(server)
    }
    fn active(&self, server: usize) -> usize {
        self.field.active(server)
    }
    fn share(&self, server: usize) -> Share {
        self.field.share(server)
    }
    fn latency(&self, server: usize) -> Option<u32> {
        self.field.latency(server)
    }
}

/// A server, by its place in the pool, and what spoke for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub server: usize,
    pub why: Why,
}

impl Choice {
    /// A choice of tier 0; [`Chooser::pick`] says of which tier it was.
    fn of(server: usize, ground: Ground) -> Self {
        Choice { server, why: Why { tier: 0, ground } }
    }
}

/// What spoke for a server, as the access log shows it: `tier=1:least:3<7`, where tier 0 goes
/// without saying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// No lower tier had an open server.
    pub tier: u8,
    pub ground: Ground,
}

/// What spoke for a server within its tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Its place in the schedule came.
    RoundRobin { turn: u64 },
    /// It was drawn by lot.
    Random,
    /// Of two drawn by lot it had the lower load; alone if no other was open.
    PowerOfTwo { own: Load, other: Option<Load> },
    /// It had the lowest load of all; next to it came that one, if another was open.
    LeastConnections { own: Load, next: Option<Load> },
    /// That slot of the table holds it: the key's own, or the first open one after it.
    MaglevSlot(usize),
    /// The same, and servers before it had more connections than `max_load` allows.
    MaglevPassed(usize),
    /// So few servers were open that the key was matched with each of them.
    MaglevRendezvous,
    /// It was the first in order.
    First,
    /// It had the lowest cost of those that were looked at; next to it came that one.
    Fastest { own: Cost, next: Option<Cost> },
    /// It has served this client before.
    Affinity,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tier > 0 {
            write!(f, "tier={}:", self.tier)?;
        }
        self.ground.fmt(f)
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ground::RoundRobin { turn } => write!(f, "round-robin:turn={turn}"),
            Ground::Random => f.write_str("random"),
            Ground::PowerOfTwo { own, other } => load::write_compared(f, "power-of-two", own, other.as_ref()),
            Ground::LeastConnections { own, next } => load::write_compared(f, "least", own, next.as_ref()),
            Ground::MaglevSlot(slot) => write!(f, "maglev:slot={slot}"),
            Ground::MaglevPassed(slot) => write!(f, "maglev:slot={slot}:max_load"),
            Ground::MaglevRendezvous => f.write_str("maglev:rendezvous"),
            Ground::First => f.write_str("first"),
            Ground::Fastest { own, next: None } => write!(f, "fastest:{own}"),
            Ground::Fastest { own, next: Some(next) } => {
                let sign = if own.compare(next).is_eq() { '=' } else { '<' };
                write!(f, "fastest:{own}{sign}{next}")
            }
            Ground::Affinity => f.write_str("affinity"),
        }
    }
}

/// Picks servers of one pool in one manner. Cheap to clone where the table of a consistent hash
/// is concerned: it is shared.
#[derive(Clone, Debug)]
pub struct Chooser {
    /// In the order in which they are asked. Only those with a server of positive weight, so a
    /// pool without tiers has one.
    tiers: Vec<Tier>,
    /// The tier of each server that may be picked, by its place.
    takers: Vec<Option<u8>>,
    /// Of a consistent hash; see [`Chooser::with_max_load`].
    max_load: Option<u32>,
}

#[derive(Clone, Debug)]
struct Tier {
    number: u8,
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    RoundRobin(RoundRobin),
    Random(Wheel),
    PowerOfTwo(PowerOfTwo),
    LeastConnections(LeastConnections),
    ConsistentHash(Maglev),
    First(First),
    Fastest(Fastest),
}

impl Chooser {
    /// A chooser over all `members` of a pool, in the pool's order; their names are unique.
    pub fn new(kind: Kind, members: Vec<Member>) -> Chooser {
        Chooser::from_tiers(members, |_, members| Way::new(kind, members))
    }

    /// With a bound on the load of each server, in percent of the mean by weight and above 100: what a
    /// consistent hash would send to a server beyond it goes to the next one of the key.
    pub fn with_max_load(self, percent: Option<u32>) -> Chooser {
        Chooser { max_load: percent, ..self }
    }

    /// The chooser for a new snapshot. Equal to [`Chooser::new`], but the table of a consistent
    /// hash is shared with this one where names and weights are the same: a change of health
    /// costs no rebuilding.
    pub fn rebuilt(&self, kind: Kind, members: Vec<Member>) -> Chooser {
        let before = |number| self.tiers.iter().find(|tier| tier.number == number).map(|tier| &tier.way);
        Chooser::from_tiers(members, |number, members| match (before(number), kind) {
            (Some(Way::ConsistentHash(old)), Kind::ConsistentHash) => {
                Way::ConsistentHash(old.rebuilt(members))
            }
            _ => Way::new(kind, members),
        })
    }

    /// The server for one connection, or `None`: no eligible server with a positive weight is open.
    pub fn pick(&self, ask: &Ask, field: &impl Field) -> Option<Choice> {
        self.tiers.iter().find_map(|Tier { number, way }| {
            let thinned =
                way.seed(ask).and_then(|seed| way.pick(ask, self.max_load, &Thinned { field, seed }));
            // Where nobody takes part, everybody does: whoever is open alone serves alone.
            let choice = thinned.or_else(|| way.pick(ask, self.max_load, field))?;
            Some(Choice { why: Why { tier: *number, ..choice.why }, ..choice })
        })
    }

    /// The same server as before for a client that is known to it, if that server may be picked and is of
    /// no higher tier than the one that was chosen.
    pub fn again(&self, server: usize, chosen: &Choice) -> Option<Choice> {
        let tier = self.takers.get(server).copied().flatten().filter(|tier| *tier <= chosen.why.tier)?;
        Some(Choice { server, why: Why { tier, ground: Ground::Affinity } })
    }

    /// Is that server within what `max_load` allows, as far as there is such a bound. A client that is known to
    /// one beyond it goes elsewhere.
    pub fn has_room(&self, server: usize, field: &impl Field) -> bool {
        let Some(percent) = self.max_load else { return true };
        let number = self.takers.get(server).copied().flatten();
        let way = self.tiers.iter().find(|tier| Some(tier.number) == number).map(|tier| &tier.way);
        match way {
            Some(Way::ConsistentHash(table)) => table.has_room(server, percent, field),
            _ => true,
        }
    }

    /// Each tier's way is made of all members, since their places count, with those of other tiers
    /// at weight 0: a standby server has no part in the table or the schedule of the others.
    fn from_tiers(members: Vec<Member>, way: impl Fn(u8, &[Member]) -> Way) -> Chooser {
        let mut numbers: Vec<u8> = members.iter().filter(|m| m.weight > 0).map(|m| m.tier).collect();
        let takers = members.iter().map(|m| (m.is_eligible && m.weight > 0).then_some(m.tier)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if let [number] = numbers[..] {
            let tiers = vec![Tier { number, way: way(number, &members) }];
            return Chooser { tiers, takers, max_load: None };
        }
        let of_tier = |number| {
            let weight = |member: &Member| if member.tier == number { member.weight } else { 0 };
            members.iter().map(|m| Member { weight: weight(m), ..m.clone() }).collect::<Vec<_>>()
        };
        let tiers =
            numbers.iter().map(|number| Tier { number: *number, way: way(*number, &of_tier(*number)) });
        Chooser { tiers: tiers.collect(), takers, max_load: None }
    }
}

impl Way {
    fn new(kind: Kind, members: &[Member]) -> Self {
        match kind {
            Kind::RoundRobin => Way::RoundRobin(RoundRobin::new(members)),
            Kind::Random => Way::Random(Wheel::new(members)),
            Kind::PowerOfTwo => Way::PowerOfTwo(PowerOfTwo::new(members)),
            Kind::LeastConnections => Way::LeastConnections(LeastConnections::new(members)),
            Kind::ConsistentHash => Way::ConsistentHash(Maglev::new(members)),
            Kind::First => Way::First(First::new(members)),
            Kind::Fastest => Way::Fastest(Fastest::new(members)),
        }
    }

    /// What decides who takes part of those that warm up; `None`: this way knows no weights.
    fn seed(&self, ask: &Ask) -> Option<u64> {
        match self {
            Way::First(_) => None,
            Way::ConsistentHash(_) => Some(ask.key),
            _ => Some(ask.random),
        }
    }

    fn pick(&self, ask: &Ask, max_load: Option<u32>, field: &impl Field) -> Option<Choice> {
        match self {
            Way::RoundRobin(schedule) => schedule.pick(ask.turn, field),
            Way::Random(wheel) => wheel.pick(ask.random, field),
            Way::PowerOfTwo(wheel) => wheel.pick(ask.random, field),
            Way::LeastConnections(servers) => servers.pick(ask.random, field),
            Way::ConsistentHash(table) => table.pick(ask.key, max_load, field),
            Way::First(servers) => servers.pick(field),
            Way::Fastest(servers) => servers.pick(ask.random, field),
        }
    }
}

/// The members that may be picked, as (place in the pool, weight).
fn electable(members: &[Member]) -> impl Iterator<Item = (usize, u32)> {
    let members = members.iter().enumerate();
    members.filter(|(_, m)| m.is_eligible && m.weight > 0).map(|(place, m)| (place, m.weight))
}

/// Another random number out of one: the output function of splitmix64. It is a bijection, so
/// all of the given randomness lives on; it must never change, as consistent hashing uses it too.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A random number mapped to `0..bound`. Its bias is below `bound / 2^64`.
fn below(random: u64, bound: u64) -> u64 {
    let scaled = (u128::from(random) * u128::from(bound)) >> 64;
    scaled as u64 // below `bound`, so nothing is cut off
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_what_spoke_for_a_server() {
        let load = |active, weight| Load::new(active, weight, Share::FULL);
        let said = |ground: Ground| Why { tier: 0, ground }.to_string();
        assert_eq!(said(Ground::RoundRobin { turn: 17 }), "round-robin:turn=17");
        assert_eq!(said(Ground::Random), "random");
        assert_eq!(said(Ground::MaglevSlot(811)), "maglev:slot=811");
        assert_eq!(said(Ground::MaglevRendezvous), "maglev:rendezvous");
        assert_eq!(said(Ground::MaglevPassed(811)), "maglev:slot=811:max_load");
        assert_eq!(said(Ground::First), "first");
        assert_eq!(Why { tier: 2, ground: Ground::First }.to_string(), "tier=2:first");

        let least = |own, next| said(Ground::LeastConnections { own, next });
        assert_eq!(least(load(3, 1), Some(load(7, 1))), "least:3<7");
        assert_eq!(least(load(3, 1), None), "least:3");
        assert_eq!(least(load(3, 1), Some(load(3, 1))), "least:3=3");
        assert_eq!(least(load(7, 10), Some(load(3, 1))), "least:7/10<3/1");
        let two = Ground::PowerOfTwo { own: load(3, 5), other: Some(load(7, 5)) };
        assert_eq!(said(two), "power-of-two:3<7");
    }

    #[test]
    fn what_every_open_connection_keeps_is_small() {
        assert!(size_of::<Why>() <= 48, "{}", size_of::<Why>());
    }

    #[test]
    fn the_mixing_function_is_splitmix64() {
        // The first numbers of the reference generator seeded with 0 and with 1234567.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(1_234_567), 6_457_827_717_110_365_317);
    }

    #[test]
    fn below_reaches_both_ends_and_nothing_beyond() {
        assert_eq!(below(0, 10), 0);
        assert_eq!(below(u64::MAX, 10), 9);
        assert_eq!(below(u64::MAX, 1), 0);
    }

    fn member(name: &str, weight: u32, tier: u8) -> Member {
        Member { name: name.into(), weight, is_eligible: true, tier }
    }

    /// Nothing is known but that all are open; the second one warms up, if so.
    struct Plain(Share);

    impl Field for Plain {
        fn is_open(&self, _: usize) -> bool {
            true
        }
        fn active(&self, _: usize) -> usize {
            0
        }
        fn share(&self, server: usize) -> Share {
            if server == 1 { self.0 } else { Share::FULL }
        }
    }

    #[test]
    fn what_a_field_does_not_know_speaks_neither_for_nor_against_a_server() {
        assert_eq!(Plain(Share::FULL).latency(0), None);
    }

    #[test]
    fn a_tier_without_weight_is_none() {
        let chooser = Chooser::new(Kind::First, vec![member("a", 1, 3), member("b", 0, 1)]);
        assert_eq!(chooser.tiers.iter().map(|tier| tier.number).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_client_comes_again_to_no_server_that_may_not_be_picked_or_comes_after_the_chosen_one() {
        let ailing = Member { is_eligible: false, ..member("ailing", 1, 0) };
        let members = vec![member("a", 1, 0), ailing, member("drained", 0, 0), member("standby", 1, 1)];
        let chooser = Chooser::new(Kind::First, members);
        let chosen = Choice { server: 0, why: Why { tier: 0, ground: Ground::First } };
        let again: Vec<_> = (0..5).filter_map(|server| chooser.again(server, &chosen)).collect();
        assert_eq!(again, [Choice { server: 0, why: Why { tier: 0, ground: Ground::Affinity } }]);
    }

    #[test]
    fn each_tier_keeps_its_own_table() {
        let members = || vec![member("a", 1, 0), member("b", 1, 0), member("c", 1, 1), member("d", 2, 1)];
        let chooser = Chooser::new(Kind::ConsistentHash, members());
        let rebuilt = chooser.rebuilt(Kind::ConsistentHash, members());
        for (old, new) in chooser.tiers.iter().zip(&rebuilt.tiers) {
            let (Way::ConsistentHash(old), Way::ConsistentHash(new)) = (&old.way, &new.way) else { panic!() };
            assert!(new.shares_table_with(old));
        }
    }

    #[test]
    fn which_keys_a_server_that_warms_up_takes_is_the_same_on_every_machine_for_ever() {
        let chooser = Chooser::new(Kind::ConsistentHash, vec![member("a", 1, 0), member("b", 1, 0)]);
        let half = Share::after(std::time::Duration::from_secs(1), std::time::Duration::from_secs(2));
        let takes = |key: &u64| {
            let ask = Ask { key: *key, random: 0, turn: 0 };
            chooser.pick(&ask, &Plain(half)).is_some_and(|choice| choice.server == 1)
        };
        let taken: Vec<u64> = (0..64).filter(takes).collect();
        assert_eq!(taken, [2, 12, 13, 15, 19, 25, 26, 32, 39, 43, 49, 50, 51, 56, 62, 63]);
    }
}
