//! Consistent hashing: the same key to the same server, on every machine and after every reload.
//!
//! Pure. A Maglev table (Eisenbud and others, NSDI 2016): each server goes through all slots in
//! an order of its own, and in turns, by weight, each takes its next free slot. The table is made
//! of names and weights alone, never of addresses, order or health. A server that is down keeps its
//! slots and is stepped over, so just its keys move, and just they come back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Choice, Field, Ground, Member, mix};

/// Slots of a table: prime, so that every stride visits all of them. A hundred slots for each
/// server keep its share of the keys within one percent of its share of the weights.
const SLOTS: usize = 65_537;
/// Slots where more than [`SMALL_POOL`] servers have a positive weight.
const SLOTS_LARGE: usize = 655_373;
/// As many servers as leave each about a hundred slots of [`SLOTS`].
const SMALL_POOL: usize = 650;

/// Seeds of the two hashes of a name, `maglev-1` and `maglev-2` in ASCII: where its walk over
/// the slots starts, and its stride. Other values would move every key.
const SEED_START: u64 = 0x6d61_676c_6576_2d31;
const SEED_STRIDE: u64 = 0x6d61_676c_6576_2d32;

/// Slots that a pick looks at from the key's own on. With a tenth of the servers open, one
/// pick in 700,000 finds none among so many.
const WALK_MAX: usize = 128;

/// How many connections a server may have for its weight: bounded loads (Mirrokni and others, SODA 2018).
/// A server has no room left where its connections exceed the mean of the open ones by so much; the
/// connection to come counts, so at any time some server has room.
struct Bound {
    /// Connections of all open servers and the one to come, times the percentage.
    allowed: u128,
    /// Of all open servers.
    weight: u128,
}

/// The table, and which of its servers may be picked now.
#[derive(Clone, Debug)]
pub struct Maglev {
    table: Arc<Table>,
    /// For each rank of the table the server's place in the pool; `None` is not eligible.
    places: Vec<Option<usize>>,
}

/// What depends on names and weights alone.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    /// In order of name; a place in here is a rank.
    entries: Vec<Entry>,
    /// A rank for each slot.
    slots: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    weight: u32,
    /// Hash of the name, by which a key is matched with it when the walk found nobody.
    hash: u64,
}

impl Maglev {
    pub fn new(members: &[Member]) -> Self {
        let (ranked, places) = rank(members);
        let slots = if ranked.len() > SMALL_POOL { SLOTS_LARGE } else { SLOTS };
        Maglev { table: Arc::new(Table::new(&ranked, slots)), places }
    }

    /// The same as [`Maglev::new`], with this one's table where it would come out equal.
    pub fn rebuilt(&self, members: &[Member]) -> Self {
        let (ranked, places) = rank(members);
        if self.table.is_of(&ranked) {
            return Maglev { table: Arc::clone(&self.table), places };
        }
        Maglev::new(members)
    }

    #[cfg(test)]
    pub fn shares_table_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.table, &other.table)
    }

    /// The server of the key's slot or, where that one is closed, of the first slot after it
    /// whose server is open and, where `max_load` is given, not above that percentage of the mean.
    /// Ends after [`WALK_MAX`] slots and a few looks at each server.
    pub fn pick(&self, key: u64, max_load: Option<u32>, field: &impl Field) -> Option<Choice> {
        let Some(percent) = max_load else { return self.find(key, field, |_, _| true) };
        let bound = self.bound(percent, field);
        let has_room = |rank: usize, server: usize| self.is_within(&bound, rank, server, field);
        // Others may have filled the last room meanwhile: then any open server will do.
        self.find(key, field, has_room).or_else(|| self.find(key, field, |_, _| true))
    }

    /// Is that server not above that percentage of the mean.
    pub fn has_room(&self, server: usize, percent: u32, field: &impl Field) -> bool {
        let rank = self.places.iter().position(|place| *place == Some(server));
        rank.is_none_or(|rank| self.is_within(&self.bound(percent, field), rank, server, field))
    }

    fn find(&self, key: u64, field: &impl Field, has_room: impl Fn(usize, usize) -> bool) -> Option<Choice> {
        let slots = &self.table.slots;
        let home = key.checked_rem(slots.len() as u64)? as usize; // nobody has weight: no slots
        let mut is_passed = false;
        for slot in (home..slots.len()).chain(0..home).take(WALK_MAX) {
            let rank = slots[slot] as usize;
            let Some(server) = self.open(rank, field) else { continue };
            match (has_room(rank, server), is_passed) {
                (true, false) => return Some(Choice::of(server, Ground::MaglevSlot(slot))),
                (true, true) => return Some(Choice::of(server, Ground::MaglevPassed(slot))),
                (false, _) => is_passed = true,
            }
        }
        self.rendezvous(key, field, has_room)
    }

    fn is_within(&self, bound: &Bound, rank: usize, server: usize, field: &impl Field) -> bool {
        let weight = thousandths(&self.table.entries[rank], field, server);
        field.active(server) as u128 * bound.weight * 100 < bound.allowed * weight
    }

    fn bound(&self, percent: u32, field: &impl Field) -> Bound {
        let (mut active, mut weight) = (0, 0);
        for (rank, entry) in self.table.entries.iter().enumerate() {
            if let Some(server) = self.open(rank, field) {
                active += field.active(server) as u128;
                weight += thousandths(entry, field, server);
            }
        }
        Bound { allowed: (active + 1) * u128::from(percent), weight }
    }

    /// The open server that matches the key best: as stable as the table, without its walk.
    /// Each server races for the key with its weight as its speed (weighted rendezvous hashing).
    fn rendezvous(
        &self,
        key: u64,
        field: &impl Field,
        has_room: impl Fn(usize, usize) -> bool,
    ) -> Option<Choice> {
        let mut best: Option<(usize, u64, u32)> = None;
        for (rank, entry) in self.table.entries.iter().enumerate() {
            let open = self.open(rank, field).filter(|server| has_room(rank, *server));
            let Some(server) = open else { continue };
            let distance = minus_log2(mix(key ^ entry.hash));
            let is_nearer = best.is_none_or(|(_, least, weight)| {
                u128::from(distance) * u128::from(weight) < u128::from(least) * u128::from(entry.weight)
            });
            if is_nearer {
                best = Some((server, distance, entry.weight));
            }
        }
        best.map(|(server, ..)| Choice::of(server, Ground::MaglevRendezvous))
    }

    fn open(&self, rank: usize, field: &impl Field) -> Option<usize> {
        self.places[rank].filter(|server| field.is_open(*server))
    }
}

impl Table {
    fn new(ranked: &[&Member], slot_count: usize) -> Self {
        let entries = ranked.iter().map(|member| Entry {
            name: member.name.clone(),
            weight: member.weight,
            hash: xxh3_64_with_seed(member.name.as_bytes(), SEED_START),
        });
        let entries: Vec<Entry> = entries.collect();
        let slots = if entries.is_empty() { Vec::new() } else { filled(&entries, slot_count) };
        Table { entries, slots }
    }

    /// Was the table made of these names and weights.
    fn is_of(&self, ranked: &[&Member]) -> bool {
        self.entries.len() == ranked.len()
            && self.entries.iter().zip(ranked).all(|(e, m)| e.name == m.name && e.weight == m.weight)
    }
}

/// The members with a positive weight in order of name, so that their order in the file does
/// not count, and the place of each in the pool if it is eligible.
fn rank(members: &[Member]) -> (Vec<&Member>, Vec<Option<usize>>) {
    let mut ranked: Vec<_> = members.iter().enumerate().filter(|(_, member)| member.weight > 0).collect();
    ranked.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    ranked.into_iter().map(|(place, member)| (member, member.is_eligible.then_some(place))).unzip()
}

/// A server's weight as it counts now.
fn thousandths(entry: &Entry, field: &impl Field, server: usize) -> u128 {
    u128::from(entry.weight) * u128::from(field.share(server).thousandths())
}

/// A server's way over all slots.
struct Walk {
    slot: usize,
    stride: usize,
    /// Slots taken so far.
    taken: u64,
}

/// The table of at least one entry. The k-th slot of a server falls due at `k / weight`, and
/// slots are taken in order of being due: the first by everybody, so that nobody is left out,
/// and any number of slots is within one of the server's share.
fn filled(entries: &[Entry], slot_count: usize) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let mut slots = vec![FREE; slot_count];
    let mut walks: Vec<Walk> = entries.iter().map(|entry| Walk::new(entry, slot_count)).collect();
    let mut due: BinaryHeap<_> = (0..entries.len() as u32).map(|rank| Reverse((0_u64, rank))).collect();
    for _ in 0..slot_count {
        let Some(mut next) = due.peek_mut() else { break };
        let rank = next.0.1;
        let (walk, weight) = (&mut walks[rank as usize], entries[rank as usize].weight);
        while slots[walk.slot] != FREE {
            walk.step(slot_count); // ends: the walk meets every slot, and one is free
        }
        slots[walk.slot] = rank;
        walk.taken += 1;
        next.0.0 = (walk.taken << 32) / u64::from(weight); // fixed point: equal on every machine
    }
    slots
}

/// `-log2(hash / 2^64)` in units of 2^-24, at least 1. In whole numbers, bit by bit, because
/// floating-point logarithms may differ between machines in the last bit.
fn minus_log2(hash: u64) -> u64 {
    const BITS: u32 = 24;
    let hash = hash | 1;
    let whole = hash.leading_zeros();
    let mut mantissa = hash << whole; // from 1 to 2, with 63 bits after the point
    let mut fraction = 0;
    for _ in 0..BITS {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let is_two_or_more = square >> 64 != 0;
        fraction = 2 * fraction + u64::from(is_two_or_more);
        mantissa = (square >> u32::from(is_two_or_more)) as u64;
    }
    (u64::from(whole + 1) << BITS) - fraction
}

impl Walk {
    fn new(entry: &Entry, slot_count: usize) -> Self {
        let count = slot_count as u64;
        let stride = xxh3_64_with_seed(entry.name.as_bytes(), SEED_STRIDE) % (count - 1) + 1;
        Walk { slot: (entry.hash % count) as usize, stride: stride as usize, taken: 0 }
    }

    fn step(&mut self, slot_count: usize) {
        self.slot = (self.slot + self.stride) % slot_count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> Vec<Member> {
        names
            .iter()
            .map(|name| Member { name: (*name).into(), weight: 100, is_eligible: true, tier: 0 })
            .collect()
    }

    fn owners<'a>(maglev: &'a Maglev, slots: &[usize]) -> Vec<&'a str> {
        let table = &maglev.table;
        slots.iter().map(|slot| table.entries[table.slots[*slot] as usize].name.as_str()).collect()
    }

    struct OnlyOpen(usize);

    impl Field for OnlyOpen {
        fn is_open(&self, server: usize) -> bool {
            server == self.0
        }
        fn active(&self, _: usize) -> usize {
            0
        }
    }

    #[test]
    fn tables_are_the_same_on_every_machine_for_ever() {
        let maglev = Maglev::new(&members(&["web1", "web2", "web3", "web4"]));
        let slots = [0, 1, 2, 3, 811, 9_999, 32_768, 65_536];
        // Worked out by another program, from the description above.
        let equal = ["web1", "web2", "web1", "web4", "web4", "web1", "web4", "web1"];
        assert_eq!(owners(&maglev, &slots), equal);

        let mut weighted = members(&["web1", "web2", "web3", "web4"]);
        weighted[2].weight = 350;
        let heavy_third = ["web3", "web2", "web3", "web3", "web4", "web1", "web4", "web1"];
        assert_eq!(owners(&Maglev::new(&weighted), &slots), heavy_third);
    }

    #[test]
    fn the_sizes_are_prime_so_that_every_walk_meets_every_slot() {
        for size in [SLOTS, SLOTS_LARGE] {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
    }

    #[test]
    fn a_server_far_too_light_still_has_a_slot() {
        let mut all = members(&["light", "heavy"]);
        (all[0].weight, all[1].weight) = (1, 1_000_000);
        let table = &Maglev::new(&all).table;
        assert_eq!(
            table.slots.iter().filter(|rank| table.entries[**rank as usize].name == "light").count(),
            1
        );
    }

    #[test]
    fn a_change_of_health_or_order_keeps_the_table_and_one_of_weight_does_not() {
        let mut all = members(&["a", "b", "c"]);
        let maglev = Maglev::new(&all);
        all[1].is_eligible = false;
        all.swap(0, 2);
        assert!(Arc::ptr_eq(&maglev.table, &maglev.rebuilt(&all).table));
        all[0].weight = 50;
        let changed = maglev.rebuilt(&all);
        assert!(!Arc::ptr_eq(&maglev.table, &changed.table));
        assert_eq!(changed.table, Maglev::new(&all).table);
    }

    #[test]
    fn a_pool_of_many_servers_gets_the_large_table() {
        let names: Vec<String> = (0..=SMALL_POOL).map(|i| format!("s{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(Maglev::new(&members(&names[1..])).table.slots.len(), SLOTS);
        assert_eq!(Maglev::new(&members(&names)).table.slots.len(), SLOTS_LARGE);
    }

    #[test]
    fn one_open_server_among_many_is_found_by_every_key() {
        let names: Vec<String> = (0..600).map(|i| format!("s{i}")).collect();
        let maglev = Maglev::new(&members(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        let picks: Vec<_> = (0..500).map(|key| maglev.pick(mix(key), None, &OnlyOpen(7)).unwrap()).collect();
        assert!(picks.iter().all(|choice| choice.server == 7));
        assert!(picks.iter().any(|choice| choice.why.ground == Ground::MaglevRendezvous));
    }

    #[test]
    fn rendezvous_shares_by_weight_and_moves_only_what_it_must() {
        struct Without(Option<usize>);
        impl Field for Without {
            fn is_open(&self, server: usize) -> bool {
                self.0 != Some(server)
            }
            fn active(&self, _: usize) -> usize {
                0
            }
        }
        let mut all = members(&["a", "b", "c", "d"]);
        all[3].weight = 300;
        let maglev = Maglev::new(&all);
        let mut taken = [0_u32; 4];
        for key in (0..30_000).map(mix) {
            let server = maglev.rendezvous(key, &Without(None), |_, _| true).unwrap().server;
            taken[server] += 1;
            let then = maglev.rendezvous(key, &Without(Some(0)), |_, _| true).unwrap().server;
            assert!(server == 0 || then == server);
        }
        for (count, expected) in taken.into_iter().zip([5_000_u32, 5_000, 5_000, 15_000]) {
            assert!(count.abs_diff(expected) < 350, "{taken:?}"); // four standard deviations and more
        }
    }

    #[test]
    fn whom_rendezvous_finds_is_the_same_on_every_machine_for_ever() {
        let maglev = Maglev::new(&members(&["a", "b", "c", "d"]));
        let found = |key| maglev.rendezvous(key, &Busy([0; 4]), |_, _| true).unwrap().server;
        // Worked out by another program, as is the key that is as near to `a` as to `b`: then the name decides.
        assert_eq!(
            (0..16).map(|key| found(mix(key))).collect::<Vec<_>>(),
            [0, 2, 1, 2, 3, 2, 1, 3, 1, 3, 2, 0, 2, 3, 2, 1]
        );
        let maglev = Maglev::new(&members(&["b", "a"]));
        let tied = maglev.rendezvous(59_173_847, &Busy([0; 2]), |_, _| true).unwrap();
        assert_eq!(tied.server, 1);
    }

    /// All are open and have so many connections.
    struct Busy<const N: usize>([usize; N]);

    impl<const N: usize> Field for Busy<N> {
        fn is_open(&self, _: usize) -> bool {
            true
        }
        fn active(&self, server: usize) -> usize {
            self.0[server]
        }
    }

    #[test]
    fn the_connection_to_come_counts_in_the_mean_that_bounds_a_servers_load() {
        let maglev = Maglev::new(&members(&["a", "b"]));
        let pick = |active| maglev.pick(7, Some(125), &Busy(active)).unwrap().server;
        let home = pick([0, 0]);
        let with_home = |at_home| if home == 0 { [at_home, 0] } else { [0, at_home] };
        assert_eq!(pick(with_home(1)), home, "125 % of one");
        assert_ne!(pick(with_home(2)), home, "125 % of one and a half");
    }

    #[test]
    fn the_logarithm_in_whole_numbers_is_the_logarithm() {
        for hash in (0..1000).map(mix).chain([1, 3, u64::MAX, 1 << 63]) {
            let exact = 64.0 - (hash as f64).log2();
            assert!((minus_log2(hash) as f64 / f64::from(1 << 24) - exact).abs() < 1e-6, "{hash}");
            assert!(minus_log2(hash) >= 1);
        }
    }
}
