//! Networks laid out flat: which rule holds for an address, where the longest network decides.
//!
//! Pure. When it is made, the addresses are cut where another rule begins to hold. A question is one
//! binary search over plain numbers, so that a hundred thousand networks cost 19 comparisons and no
//! memory but their own: 8 bytes for each end of a network of IPv4, 20 for IPv6.

use std::net::IpAddr;

use super::prefix::{Prefix, number};

/// Rules, by the number that each network was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    ipv4: Stretches<u32>,
    ipv6: Stretches<u128>,
}

impl Networks {
    /// Of a network with several rules, the one with the smallest number holds.
    pub fn new(rules: impl IntoIterator<Item = (Prefix, u32)>) -> Self {
        let mut rules: Vec<_> = rules.into_iter().collect();
        rules.sort_unstable(); // by address and then by length, so larger ones come before those inside them
        rules.dedup_by_key(|(prefix, _)| *prefix);
        let of_family = |is_ipv4: bool| {
            let of_it = rules.iter().filter(move |(prefix, _)| prefix.is_ipv4() == is_ipv4);
            of_it.map(|(prefix, rule)| (prefix.ends(), *rule))
        };
        let ipv4 = Stretches::laid_out(of_family(true), |at| u32::try_from(at).ok());
        let ipv6 = Stretches::laid_out(of_family(false), Some);
        Networks { ipv4, ipv6 }
    }

    /// The rule of the longest network that the address is in.
    pub fn find(&self, address: IpAddr) -> Option<u32> {
        match address.to_canonical() {
            IpAddr::V4(ip) => self.ipv4.find(ip.to_bits()),
            address @ IpAddr::V6(_) => self.ipv6.find(number(address)),
        }
    }
}

/// The addresses of one family, cut where another rule begins to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stretches<T> {
    /// Where each begins, in order. What lies before the first is under no rule.
    starts: Vec<T>,
    /// One for each of `starts`; [`NO_RULE`] where none holds.
    rules: Vec<u32>,
}

const NO_RULE: u32 = u32::MAX;

impl<T: Ord + Copy> Stretches<T> {
    /// From networks in order of address, larger ones first, as first and last address.
    fn laid_out(
        networks: impl Iterator<Item = ((u128, u128), u32)>,
        narrow: impl Fn(u128) -> Option<T>,
    ) -> Self {
        let mut cuts: Vec<(u128, u32)> = Vec::new();
        let mut around: Vec<(u128, u32)> = Vec::new(); // networks that hold the present place, the smallest last
        for ((first, last), rule) in networks {
            leave(&mut around, &mut cuts, Some(first));
            cut(&mut cuts, first, rule);
            around.push((last, rule));
        }
        leave(&mut around, &mut cuts, None);
        // A cut behind the last address of the family is none.
        let kept = cuts.into_iter().filter_map(|(at, rule)| Some((narrow(at)?, rule)));
        let (starts, rules) = kept.unzip();
        Stretches { starts, rules }
    }

    fn find(&self, address: T) -> Option<u32> {
        let stretch = self.starts.partition_point(|start| *start <= address).checked_sub(1)?;
        Some(self.rules[stretch]).filter(|rule| *rule != NO_RULE)
    }
}

/// Leaves the networks that end before `next`, or all: behind each, the one around it holds again.
fn leave(around: &mut Vec<(u128, u32)>, cuts: &mut Vec<(u128, u32)>, next: Option<u128>) {
    while let Some((last, _)) = around.pop_if(|(last, _)| next.is_none_or(|next| *last < next)) {
        let rule = around.last().map_or(NO_RULE, |(_, rule)| *rule);
        if let Some(behind) = last.checked_add(1) {
            cut(cuts, behind, rule);
        }
    }
}

/// From `at` on, `rule` holds; what was said of the same place before does not.
fn cut(cuts: &mut Vec<(u128, u32)>, at: u128, rule: u32) {
    cuts.pop_if(|(before, _)| *before == at);
    cuts.push((at, rule));
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Ordering;

    use super::*;

    thread_local!(static COMPARED: Cell<usize> = const { Cell::new(0) });

    /// A number that counts how often it is compared.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Counted(u32);

    impl Ord for Counted {
        fn cmp(&self, other: &Self) -> Ordering {
            COMPARED.set(COMPARED.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    #[test]
    fn a_network_within_another_may_be_its_last_address() {
        let networks = [((0, 9), 1), ((9, 9), 2), ((10, 19), 3)];
        let stretches = Stretches::laid_out(networks.into_iter(), |at| u32::try_from(at).ok());
        let found = [0, 8, 9, 10, 19, 20].map(|address| stretches.find(address));
        assert_eq!(found, [Some(1), Some(1), Some(2), Some(3), Some(3), None]);
    }

    #[test]
    fn a_hundred_thousand_networks_cost_nineteen_comparisons() {
        // Every second /24 from 1.0.0.0 on: no two of them touch, so each has two ends.
        let networks = (0..100_000_u32).map(|number| 0x0100_0000 + (number << 9));
        let ends = networks.map(|first| ((first.into(), (first + 255).into()), first));
        let narrow = |at| u32::try_from(at).ok().map(Counted);
        let stretches = Stretches::laid_out(ends, narrow);
        assert_eq!(stretches.starts.len(), 200_000);
        let mut worst = 0;
        for number in (0..100_000).step_by(7) {
            let first = 0x0100_0000 + (number << 9);
            for (address, rule) in [(first + 9, Some(first)), (first + 256, None)] {
                COMPARED.set(0);
                assert_eq!(stretches.find(Counted(address)), rule);
                worst = worst.max(COMPARED.get());
            }
        }
        assert!((10..=19).contains(&worst), "{worst} comparisons");
    }
}
