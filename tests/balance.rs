//! What every way of choosing a server promises, whatever the servers, the weights and the counts.
//!
//! Seeded and pure: fields are vectors, randomness comes from a seeded generator. The claims
//! that need the inside of one way stand in its own file.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use tidegate::core::balance::{Ask, Choice, Chooser, Field, HashKey, Kind, Member, key};
use tidegate::core::slow_start::Share;
use tidegate::live::Room;

/// Servers that can be closed and hold connections.
#[derive(Clone, Debug, Default)]
struct Fleet {
    closed: RefCell<Vec<bool>>,
    active: RefCell<Vec<usize>>,
    /// Of those that warm up; all others have all of their weight.
    shares: Vec<Share>,
}

/// A share in percent; from 5 on.
fn percent(percent: u64) -> Share {
    Share::after(Duration::from_secs(percent), Duration::from_secs(100))
}

impl Fleet {
    fn idle(count: usize) -> Self {
        Fleet { closed: vec![false; count].into(), active: vec![0; count].into(), shares: Vec::new() }
    }

    fn close(&self, server: usize) {
        self.closed.borrow_mut()[server] = true;
    }

    fn connect(&self, server: usize) {
        self.active.borrow_mut()[server] += 1;
    }
}

impl Field for Fleet {
    fn is_open(&self, server: usize) -> bool {
        !self.closed.borrow()[server]
    }
    fn active(&self, server: usize) -> usize {
        self.active.borrow()[server]
    }
    fn share(&self, server: usize) -> Share {
        self.shares.get(server).copied().unwrap_or(Share::FULL)
    }
}

fn member(name: &str, weight: u32) -> Member {
    Member { name: name.to_owned(), weight, is_eligible: true, tier: 0 }
}

fn members(weights: &[u32]) -> Vec<Member> {
    weights.iter().enumerate().map(|(i, weight)| member(&format!("web{i}"), *weight)).collect()
}

/// A stream of seeded numbers (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn ask(&mut self, turn: u64) -> Ask {
        Ask { key: self.roll(), random: self.roll(), turn }
    }
}

/// How often each server is picked in `picks` connections that all end at once.
fn tally(kind: Kind, weights: &[u32], fleet: &Fleet, picks: u64) -> Vec<u64> {
    let (chooser, mut dice) = (Chooser::new(kind, members(weights)), Dice(42));
    let mut counts = vec![0; weights.len()];
    for turn in 0..picks {
        counts[chooser.pick(&dice.ask(turn), fleet).expect("one is open").server] += 1;
    }
    counts
}

/// How many connections each server holds after `picks` that all stay open.
fn filled(kind: Kind, weights: &[u32], picks: u64) -> Vec<usize> {
    let fleet = Fleet::idle(weights.len());
    let (chooser, mut dice) = (Chooser::new(kind, members(weights)), Dice(7));
    for turn in 0..picks {
        fleet.connect(chooser.pick(&dice.ask(turn), &fleet).expect("one is open").server);
    }
    fleet.active.into_inner()
}

/// Pearson's chi-square of counts against weights; those of weight 0 must have none.
fn chi_square(counts: &[u64], weights: &[u32]) -> f64 {
    let (total, weight): (u64, u32) = (counts.iter().sum(), weights.iter().sum());
    let parts = counts.iter().zip(weights).map(|(count, share)| {
        let expected = total as f64 * f64::from(*share) / f64::from(weight);
        if *share == 0 { *count as f64 * 1e9 } else { (*count as f64 - expected).powi(2) / expected }
    });
    parts.sum()
}

const WEIGHTS: [u32; 5] = [100, 300, 50, 0, 550];
const EQUAL: [u32; 4] = [10; 4];
/// The value that chi-square with three degrees of freedom exceeds once in 10,000 runs.
const CHI_SQUARE_3: f64 = 21.1;

#[test]
fn round_robin_gives_each_server_its_share_of_every_round() {
    assert_eq!(tally(Kind::RoundRobin, &WEIGHTS, &Fleet::idle(5), 2000), [200, 600, 100, 0, 1100]);
}

#[test]
fn by_lot_and_by_hash_each_server_gets_its_share() {
    for kind in [Kind::Random, Kind::ConsistentHash] {
        let counts = tally(kind, &WEIGHTS, &Fleet::idle(5), 50_000);
        assert!(chi_square(&counts, &WEIGHTS) < CHI_SQUARE_3, "{kind}: {counts:?}");
    }
}

#[test]
fn by_lot_the_open_servers_share_what_a_closed_one_would_have_had_by_weight() {
    let fleet = Fleet::idle(5);
    fleet.close(4);
    let counts = tally(Kind::Random, &[100, 300, 50, 200, 550], &fleet, 50_000);
    assert!(chi_square(&counts, &[100, 300, 50, 200, 0]) < CHI_SQUARE_3, "{counts:?}");
}

#[test]
fn equal_idle_servers_share_evenly() {
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::First) {
        let counts = tally(*kind, &EQUAL, &Fleet::idle(4), 50_000);
        assert!(chi_square(&counts, &EQUAL) < CHI_SQUARE_3, "{kind}: {counts:?}");
    }
}

#[test]
fn neighbouring_client_addresses_spread_as_evenly_as_random_keys() {
    let chooser = Chooser::new(Kind::ConsistentHash, members(&EQUAL));
    let local = SocketAddr::from(([192, 0, 2, 1], 443));
    let mut counts = [0_u64; 4];
    for host in 0..20_000_u32 {
        let client = SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + host)), 40_000);
        let ask = Ask { key: key(HashKey::SourceIp, client, local), random: 0, turn: 0 };
        counts[chooser.pick(&ask, &Fleet::idle(4)).unwrap().server] += 1;
    }
    assert!(chi_square(&counts, &EQUAL) < CHI_SQUARE_3, "{counts:?}");
}

#[test]
fn least_connections_fills_servers_exactly_by_weight() {
    assert_eq!(filled(Kind::LeastConnections, &WEIGHTS, 2000), [200, 600, 100, 0, 1100]);
}

/// Servers as workers share them.
struct Shared(Vec<Arc<Room>>);

impl Field for Shared {
    fn is_open(&self, server: usize) -> bool {
        !self.0[server].is_full()
    }
    fn active(&self, server: usize) -> usize {
        self.0[server].taken()
    }
}

#[test]
fn workers_that_race_put_no_server_further_ahead_of_the_least_than_there_are_workers() {
    const WORKERS: usize = 8;
    const WEIGHTS: [u32; 5] = [1, 1, 2, 3, 1];
    let pool = Shared(WEIGHTS.map(|_| Room::new(usize::MAX)).to_vec());
    let chooser = Chooser::new(Kind::LeastConnections, members(&WEIGHTS));
    // With the connection to come, by weight; on a common denominator.
    let load = |count: usize, server: usize| (count + 1) * 6 / WEIGHTS[server] as usize;
    let work = |seed| {
        let (mut dice, mut held) = (Dice(seed), Vec::new());
        for turn in 0..2_000 {
            let choice = chooser.pick(&dice.ask(turn), &pool).expect("all are open");
            held.push(pool.0[choice.server].take().expect("there is room"));
            // Counts only grow here, so those of the others, read later, are not less than they were.
            let beyond = pool.active(choice.server).saturating_sub(WORKERS);
            let least = (0..WEIGHTS.len()).map(|server| load(pool.active(server), server)).min();
            assert!(beyond == 0 || Some(load(beyond, choice.server)) <= least, "{beyond} and {least:?}");
        }
        held
    };
    let held: Vec<_> = thread::scope(|threads| {
        let all: Vec<_> = (1..=WORKERS as u64).map(|seed| threads.spawn(move || work(seed))).collect();
        all.into_iter().flat_map(|one| one.join().expect("the bound holds")).collect()
    });
    assert_eq!(pool.0.iter().map(|room| room.taken()).sum::<usize>(), held.len());
    drop(held);
    assert!(pool.0.iter().all(|room| room.taken() == 0), "every place was given back");
}

#[test]
fn power_of_two_keeps_the_load_nearly_even() {
    let held = filled(Kind::PowerOfTwo, &[1; 20], 2000);
    assert!(held.iter().all(|count| count.abs_diff(100) <= 5), "{held:?}"); // by lot alone: some 30 off
    let held = filled(Kind::PowerOfTwo, &[100, 100, 200, 0, 200], 6000);
    for (count, expected) in held.iter().zip([1000_usize, 1000, 2000, 0, 2000]) {
        assert!(count.abs_diff(expected) <= expected / 50, "{held:?}");
    }
}

#[test]
fn power_of_two_draws_every_pair_alike_even_beside_closed_servers() {
    let fleet = Fleet { active: vec![9, 9, 0, 1, 2, 3].into(), ..Fleet::idle(6) };
    fleet.close(0);
    fleet.close(1);
    let counts = tally(Kind::PowerOfTwo, &[10; 6], &fleet, 50_000);
    // Of the six pairs of open servers the idlest wins three, the next two, the third one.
    assert!(chi_square(&counts, &[0, 0, 3, 2, 1, 0]) < CHI_SQUARE_3, "{counts:?}");
}

#[test]
fn round_robin_takes_equal_servers_in_order_and_steps_over_a_closed_one() {
    let chooser = Chooser::new(Kind::RoundRobin, members(&[10, 10, 10]));
    let fleet = Fleet::idle(3);
    let picked = |turn| chooser.pick(&Ask { key: 0, random: 0, turn }, &fleet).unwrap().server;
    assert_eq!([0, 1, 2, 3].map(picked), [0, 1, 2, 0]);
    assert_eq!(picked(u64::MAX), 0); // 2^64 - 1 is a multiple of 3
    fleet.close(1);
    assert_eq!([0, 1, 2, 3].map(picked), [0, 2, 2, 0]);
    fleet.close(2);
    assert_eq!([0, 1, 2, 3].map(picked), [0; 4]);
}

#[test]
fn first_takes_the_first_open_server() {
    let chooser = Chooser::new(Kind::First, members(&[0, 1, 1]));
    let (fleet, ask) = (Fleet::idle(3), Dice(1).ask(0));
    assert_eq!(chooser.pick(&ask, &fleet).map(|choice| choice.server), Some(1));
    fleet.close(1);
    assert_eq!(chooser.pick(&ask, &fleet).map(|choice| choice.server), Some(2));
}

#[test]
fn a_pool_without_anybody_to_pick_says_so() {
    let mut down = members(&[1, 1]);
    down.iter_mut().for_each(|member| member.is_eligible = false);
    for kind in Kind::ALL {
        for nobody in [Vec::new(), members(&[0, 0]), down.clone()] {
            let fleet = Fleet::idle(nobody.len());
            assert_eq!(Chooser::new(*kind, nobody).pick(&Dice(1).ask(0), &fleet), None);
        }
    }
}

/// The server of each of 10,000 keys, by name.
fn owners<'a>(chooser: &Chooser, all: &'a [Member]) -> Vec<&'a str> {
    let (mut dice, fleet) = (Dice(99), Fleet::idle(all.len()));
    let picks = (0..10_000).map(|turn| chooser.pick(&dice.ask(turn), &fleet).unwrap().server);
    picks.map(|server| all[server].name.as_str()).collect()
}

fn hashing(all: &[Member]) -> Chooser {
    Chooser::new(Kind::ConsistentHash, all.to_vec())
}

#[test]
fn removing_a_server_from_the_configuration_moves_little_more_than_its_own_keys() {
    for count in [3, 10, 40] {
        let all = members(&vec![100; count]);
        let mut fewer = all.clone();
        let gone = fewer.remove(count / 2);

        let (before, after) = (owners(&hashing(&all), &all), owners(&hashing(&fewer), &fewer));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(was, is)| was != is).collect();
        let needlessly = moved.iter().filter(|(was, _)| **was != gone.name).count() as f64 / 1e4;
        let moved = moved.len() as f64 / 1e4;
        assert!(moved <= 1.0 / count as f64 + 0.03, "{moved} of the keys moved among {count}");
        assert!(needlessly <= 0.02, "{needlessly} of the keys moved needlessly among {count}");
    }
}

#[test]
fn a_server_that_goes_down_loses_its_own_keys_alone_and_gets_exactly_them_back() {
    let all = members(&[100, 200, 50, 100, 100]);
    let healthy = hashing(&all);
    let before = owners(&healthy, &all);

    let mut sick = all.clone();
    sick[1].is_eligible = false;
    let degraded = healthy.rebuilt(Kind::ConsistentHash, sick);
    for (was, is) in before.iter().zip(owners(&degraded, &all)) {
        assert_ne!(is, "web1");
        assert!(*was == "web1" || *was == is, "a key of {was} moved to {is}");
    }
    let healed = degraded.rebuilt(Kind::ConsistentHash, all.clone());
    assert_eq!(owners(&healed, &all), before);
}

#[test]
fn the_order_of_servers_in_the_file_moves_no_key() {
    let all = members(&[100, 200, 50, 100, 100]);
    let turned: Vec<Member> = all.iter().rev().cloned().collect();
    let before = owners(&hashing(&all), &all);
    assert_eq!(owners(&hashing(&turned), &turned), before);
    let rebuilt = hashing(&all).rebuilt(Kind::ConsistentHash, turned.clone());
    assert_eq!(owners(&rebuilt, &turned), before);
}

#[test]
fn a_standby_server_changes_nothing_while_its_betters_are_open() {
    let alone = members(&[100, 200, 50]);
    let mut with_standby = alone.clone();
    with_standby.insert(1, Member { tier: 1, ..member("standby", 1000) });
    for kind in Kind::ALL {
        let (few, many) = (Chooser::new(*kind, alone.clone()), Chooser::new(*kind, with_standby.clone()));
        let (few_idle, many_idle) = (Fleet::idle(3), Fleet::idle(4));
        let mut dice = Dice(3);
        for turn in 0..2000 {
            let ask = dice.ask(turn);
            let (with, without) = (many.pick(&ask, &many_idle).unwrap(), few.pick(&ask, &few_idle).unwrap());
            assert_eq!(with_standby[with.server].name, alone[without.server].name, "{kind}");
            assert_eq!(with.why, without.why, "{kind}");
        }
    }
}

#[test]
fn standby_servers_share_by_weight_as_soon_as_nobody_before_them_is_open() {
    let mut all = members(&[100, 0, 100, 300]);
    (all[2].tier, all[3].tier) = (1, 1);
    let fleet = Fleet::idle(4);
    let chooser = Chooser::new(Kind::RoundRobin, all.clone());
    let said = |turn| {
        let choice = chooser.pick(&Ask { key: 0, random: 0, turn }, &fleet).unwrap();
        (choice.server, choice.why.to_string())
    };
    assert_eq!(said(0), (0, "round-robin:turn=0".into()));
    fleet.close(0);
    assert_eq!([0, 1, 2, 3].map(|turn| said(turn).0), [3, 2, 3, 3]);
    assert_eq!(said(7).1, "tier=1:round-robin:turn=7");

    all[0].is_eligible = false; // down, where above it was full or tried
    let choice = Chooser::new(Kind::First, all).pick(&Dice(1).ask(0), &Fleet::idle(4)).unwrap();
    assert_eq!((choice.server, choice.why.to_string()), (2, "tier=1:first".into()));
}

#[test]
fn a_standby_server_that_comes_or_goes_moves_no_key() {
    let all = members(&[100, 200, 50, 100, 100]);
    let before = owners(&hashing(&all), &all);
    let mut more = all.clone();
    more.push(Member { tier: 1, ..member("standby", 100) });
    let after = hashing(&all).rebuilt(Kind::ConsistentHash, more.clone());
    assert_eq!(owners(&after, &more), before);
}

const KNOW_WEIGHTS: [Kind; 6] = [
    Kind::Fastest,
    Kind::RoundRobin,
    Kind::Random,
    Kind::PowerOfTwo,
    Kind::LeastConnections,
    Kind::ConsistentHash,
];

#[test]
fn a_server_that_warms_up_gets_its_share_and_no_flood() {
    for kind in KNOW_WEIGHTS {
        let share = |of| {
            let fleet = Fleet { shares: vec![percent(of)], ..Fleet::idle(4) };
            let counts = tally(kind, &EQUAL, &fleet, 40_000);
            assert!(counts[1..].iter().all(|count| counts[0] <= *count), "{kind}: {counts:?}");
            counts[0]
        };
        let all = 10_000_f64;
        for of in [5, 20, 50, 80] {
            let (got, most) = (share(of) as f64, all * of as f64 / 100.0);
            // Power of two meets the other servers in pairs: one that is drawn loses no tie to the second.
            assert!((most * 0.6..=most * 1.3).contains(&got), "{kind}: {got} of {most} at {of} %");
        }
        assert!(share(5) < share(20) && share(20) < share(50) && share(50) < share(80), "{kind}");
    }
}

#[test]
fn connections_that_stay_do_not_pile_up_on_a_server_that_is_empty_because_it_is_new() {
    // The herd: by least connections a server that comes back empty gets everybody until it is as full
    // as the others.
    for kind in [Kind::LeastConnections, Kind::PowerOfTwo] {
        let (chooser, mut dice) = (Chooser::new(kind, members(&EQUAL)), Dice(5));
        let mut fleet = Fleet { active: vec![0, 1000, 1000, 1000].into(), ..Fleet::idle(4) };
        for of in [5, 20, 50] {
            fleet.shares = vec![percent(of)];
            for turn in 0..1000 {
                fleet.connect(chooser.pick(&dice.ask(turn), &fleet).unwrap().server);
            }
            let (new, others) = (fleet.active(0), fleet.active(1).max(fleet.active(2)).max(fleet.active(3)));
            assert!(
                (10..=others * of as usize / 100 + 1).contains(&new),
                "{kind}: {new} at {of} % of {others}"
            );
        }
    }
}

#[test]
fn a_server_that_is_alone_serves_however_little_it_has_warmed_up() {
    for kind in Kind::ALL {
        let fleet = Fleet { shares: vec![percent(5); 2], ..Fleet::idle(2) };
        fleet.close(1);
        assert_eq!(tally(*kind, &[100, 100], &fleet, 500), [500, 0], "{kind}");
    }
}

#[test]
fn servers_that_warm_up_together_share_evenly() {
    for kind in KNOW_WEIGHTS {
        let fleet = Fleet { shares: vec![percent(5); 4], ..Fleet::idle(4) };
        let counts = tally(kind, &EQUAL, &fleet, 50_000);
        assert!(chi_square(&counts, &EQUAL) < CHI_SQUARE_3, "{kind}: {counts:?}");
    }
}

#[test]
fn while_a_server_warms_up_each_key_moves_to_it_once_and_none_moves_elsewhere() {
    let all = members(&[100; 5]);
    let chooser = hashing(&all);
    let mut dice = Dice(8);
    for turn in 0..2000 {
        let ask = dice.ask(turn);
        let home = |of| {
            let fleet = Fleet { shares: vec![percent(of)], ..Fleet::idle(5) };
            chooser.pick(&ask, &fleet).unwrap().server
        };
        let homes = [5, 20, 40, 60, 80, 100].map(home);
        let other = homes.iter().find(|home| **home != 0);
        assert!(homes.iter().all(|home| *home == 0 || Some(home) == other), "{homes:?}");
        assert!(homes.is_sorted_by_key(|home| *home == 0), "{homes:?}");
    }
}

#[test]
fn one_busy_source_does_not_fill_its_server_beyond_the_bound_and_others_keep_theirs() {
    let all = members(&EQUAL);
    let (plain, bounded) = (hashing(&all), hashing(&all).with_max_load(Some(125)));
    let (fleet, mut dice) = (Fleet::idle(4), Dice(4));
    let busy = dice.ask(0);
    let (mut at_home, mut spilled, others) = (0, 0, 1000);
    for turn in 0..2 * others {
        let ask = if turn % 2 == 0 { busy } else { dice.ask(turn) };
        let choice = bounded.pick(&ask, &fleet).unwrap();
        at_home +=
            u64::from(turn % 2 == 1 && plain.pick(&ask, &Fleet::idle(4)).unwrap().server == choice.server);
        spilled += u32::from(turn % 2 == 0 && choice.why.to_string().ends_with(":max_load"));
        fleet.connect(choice.server);
        let most = (fleet.active.borrow().iter().sum::<usize>() * 125).div_ceil(400);
        assert!(fleet.active(choice.server) <= most, "{fleet:?}");
    }
    // What is at home on the busy server has to go elsewhere mostly: a fourth of the others.
    assert!(at_home >= others * 6 / 10, "{at_home} of {others}");
    // At the end a server may have 625, and those that are at home there get some of it.
    assert!((375..700).contains(&spilled), "{spilled} of the busy source");
}

#[test]
fn a_bound_that_nobody_reaches_moves_no_key() {
    let all = members(&[100, 200, 50, 100, 100]);
    let plain = owners(&hashing(&all), &all);
    assert_eq!(owners(&hashing(&all).with_max_load(Some(1000)), &all), plain);
}

/// A pool and the moment of a pick: members, who is closed, how busy each is.
fn scene() -> impl Strategy<Value = (Vec<Member>, Fleet)> {
    let counts = (0_usize..6, 0_u8..3, 5_u64..150);
    let server = (0_u32..4, prop::bool::weighted(0.8), prop::bool::weighted(0.2), counts);
    (prop::collection::vec(server, 0..9), any::<bool>()).prop_map(|(servers, is_warm)| {
        let (mut all, mut fleet) = (Vec::new(), Fleet::default());
        for (place, (weight, is_eligible, is_closed, counts)) in servers.into_iter().enumerate() {
            let (active, tier, share) = counts;
            fleet.shares.push(if is_warm { Share::FULL } else { percent(share) });
            all.push(Member { is_eligible, tier, ..member(&format!("s{place}"), weight * 7) });
            fleet.closed.borrow_mut().push(is_closed);
            fleet.active.borrow_mut().push(active);
        }
        (all, fleet)
    })
}

fn may_be_picked(all: &[Member], fleet: &Fleet, server: usize) -> bool {
    all[server].is_eligible && all[server].weight > 0 && fleet.is_open(server)
}

/// No open server of its tier carries strictly less per weight than the one that was chosen.
fn is_least(all: &[Member], fleet: &Fleet, choice: Choice) -> bool {
    let load = |server: usize| fleet.load(server, all[server].weight);
    let of_tier = (0..all.len()).filter(|server| all[*server].tier == all[choice.server].tier);
    of_tier
        .filter(|server| may_be_picked(all, fleet, *server))
        .map(load)
        .all(|other| other.compare(&load(choice.server)).is_ge())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn trying_again_and_again_visits_every_open_server_once_by_tier_and_nobody_else(
        (all, before) in scene(),
        seed in 1_u64..,
    ) {
        let expected: Vec<_> = (0..all.len()).filter(|s| may_be_picked(&all, &before, *s)).collect();
        for kind in Kind::ALL {
            let (chooser, ask, fleet) =
                (Chooser::new(*kind, all.clone()), Dice(seed).ask(seed), before.clone());
            let mut visited = Vec::new();
            while let Some(choice) = chooser.pick(&ask, &fleet) {
                prop_assert!(may_be_picked(&all, &fleet, choice.server), "{choice:?} of {all:?}");
                prop_assert_eq!(chooser.pick(&ask, &fleet), Some(choice)); // asked again, the same
                let is_warm = fleet.shares.iter().all(|share| share.is_full());
                let is_fair = *kind != Kind::LeastConnections || !is_warm || is_least(&all, &fleet, choice);
                prop_assert!(is_fair, "{choice:?} of {all:?} in {fleet:?}");
                visited.push(choice.server);
                fleet.close(choice.server);
            }
            prop_assert!(visited.is_sorted_by_key(|server| all[*server].tier), "{visited:?} of {all:?}");
            prop_assert!(*kind != Kind::First || visited.is_sorted_by_key(|server| (all[*server].tier, *server)));
            visited.sort_unstable();
            prop_assert_eq!(&visited, &expected, "{}", kind);
        }
    }

    #[test]
    fn no_server_is_ever_beyond_the_bound_whatever_the_weights_and_the_keys(
        weights in prop::collection::vec(1_u32..1000, 1..12),
        percent in 101_u32..300,
        keys in 1_u64..6,
        seed in 1_u64..,
    ) {
        let chooser = Chooser::new(Kind::ConsistentHash, members(&weights)).with_max_load(Some(percent));
        let (fleet, mut dice) = (Fleet::idle(weights.len()), Dice(seed));
        let few: Vec<Ask> = (0..keys).map(|turn| dice.ask(turn)).collect();
        let whole: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        for turn in 1..300_u128 {
            let ask = few[(dice.roll() % keys) as usize];
            let choice = chooser.pick(&ask, &fleet).unwrap();
            // Half of them are known to a server, whichever it is.
            let known = dice.roll() as usize % (2 * weights.len());
            let again = chooser.again(known, &choice).filter(|again| chooser.has_room(again.server, &fleet));
            let server = again.unwrap_or(choice).server;
            fleet.connect(server);
            let most = (turn * u128::from(percent) * u128::from(weights[server])).div_ceil(whole * 100);
            prop_assert!(fleet.active(server) as u128 <= most, "{:?} of {:?}", fleet.active, weights);
        }
    }

    #[test]
    fn power_of_two_never_takes_the_busiest_while_another_is_open(
        active in prop::collection::vec(0_usize..50, 2..9),
        seed in 1_u64..,
    ) {
        let fleet = Fleet { active: active.clone().into(), ..Fleet::idle(active.len()) };
        let chooser = Chooser::new(Kind::PowerOfTwo, members(&vec![10; active.len()]));
        let taken = active[chooser.pick(&Dice(seed).ask(0), &fleet).unwrap().server];
        let as_busy = active.iter().filter(|other| **other >= taken).count();
        prop_assert!(as_busy >= 2, "the one of {taken} among {active:?}");
    }
}
