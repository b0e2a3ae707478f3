//! Who may come in: rules read one by one, and tokens counted in a jar.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use tidegate::core::bucket::Rate;
use tidegate::core::prefix::{Prefix, number};
use tidegate::core::priority::Priority;

/// The longest network that holds the address decides; of two alike the one that denies.
pub fn admits(allow: &[Prefix], deny: &[Prefix], from: IpAddr) -> bool {
    let longest = |list: &[Prefix]| list.iter().filter(|it| holds(**it, from)).map(|it| it.length()).max();
    match (longest(allow), longest(deny)) {
        (allowed, Some(denied)) => allowed > Some(denied),
        (allowed, None) => allowed.is_some() || allow.is_empty(),
    }
}

/// Bit by bit.
fn holds(network: Prefix, address: IpAddr) -> bool {
    let bits = if network.is_ipv4() { 32 } else { 128 };
    let differing = number(network.network()) ^ number(address);
    let first = (0..bits).find(|bit| (differing >> (bits - 1 - bit)) & 1 == 1);
    network.is_ipv4() == address.is_ipv4() && first.is_none_or(|bit| bit >= u32::from(network.length()))
}

/// Tokens of one rate. After a change of rates nothing is known but that it is no fuller than full.
#[derive(Clone, Debug)]
struct Jar {
    /// What is in it, as nanoseconds of filling.
    filling: u128,
    at: Instant,
    is_exact: bool,
}

/// One for each source, or for all of them.
#[derive(Clone, Debug)]
pub struct Jars<K> {
    rate: Option<Rate>,
    changes: u32,
    jars: BTreeMap<K, Jar>,
}

impl<K: Ord + Copy> Jars<K> {
    pub fn new() -> Self {
        Jars { rate: None, changes: 0, jars: BTreeMap::new() }
    }

    pub fn set_rate(&mut self, rate: Option<Rate>) {
        if rate != self.rate && rate.is_some() {
            self.rate = rate;
            self.changes += 1;
            self.jars.clear();
        }
    }

    /// One was let in, or was not.
    pub fn on_take(&mut self, key: K, was_allowed: bool, now: Instant) {
        let rate = self.rate.expect("only asked where there is a rate");
        let interval = rate.per.as_nanos().div_ceil(u128::from(rate.count));
        let full = interval * u128::from(rate.count);
        // Whoever came before the first change began with a full one.
        let is_exact = self.changes == 1;
        let jar = self.jars.entry(key).or_insert(Jar { filling: full, at: now, is_exact });
        jar.filling += (now - jar.at).as_nanos();
        jar.at = now;
        if jar.filling >= full {
            jar.filling = full;
        }
        let has_one = jar.filling >= interval;
        assert!(has_one || !was_allowed, "more than the rate lets in");
        assert!(!has_one || was_allowed || !jar.is_exact, "refused with a token left");
        if was_allowed {
            jar.filling -= interval;
        } else {
            // The product's may have been emptier from the beginning.
            jar.filling = jar.filling.min(interval - 1);
        }
    }
}

/// How many may be in when one of that class comes, beside clients of all classes.
pub fn part(class: Priority, most: usize) -> usize {
    let percent = match class {
        Priority::Highest => 100,
        Priority::High => 95,
        Priority::Normal => 90,
        Priority::Low => 75,
        Priority::Lowest => 50,
    };
    (most * percent / 100).max(1)
}
