//! Which addresses may come in: two lists of networks, of which the longest that fits decides.
//!
//! Pure. The lists are laid out flat when they are made: where each stretch of addresses under one
//! rule begins, in order. A question is one binary search over plain numbers, so that a hundred
//! thousand networks cost 19 comparisons and no memory but their own: 8 bytes for each end of a
//! network of IPv4, 20 for IPv6.

use std::net::IpAddr;

use super::prefix::{Prefix, number};

/// The rules of one listener. Without any, everybody may come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    /// Sorted; no network twice.
    allow: Vec<Prefix>,
    deny: Vec<Prefix>,
    ipv4: Stretches<u32>,
    ipv6: Stretches<u128>,
}

/// Why an address may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// This is the longest network that fits, and it is denied.
    By(Prefix),
    /// There is a list of those who may, and no network of it fits.
    NotAllowed,
}

impl Acl {
    pub fn new(allow: impl IntoIterator<Item = Prefix>, deny: impl IntoIterator<Item = Prefix>) -> Self {
        let (allow, deny) = (sorted(allow), sorted(deny));
        let rules = numbered(&allow, &deny);
        let of_family = |is_ipv4: bool| {
            let of_it = rules.iter().filter(move |(prefix, _)| prefix.is_ipv4() == is_ipv4);
            of_it.map(|(prefix, rule)| (prefix.ends(), *rule))
        };
        let ipv4 = Stretches::laid_out(of_family(true), |at| u32::try_from(at).ok());
        let ipv6 = Stretches::laid_out(of_family(false), Some);
        Acl { allow, deny, ipv4, ipv6 }
    }

    /// Networks that may come in; empty where there is no such list.
    pub fn allowed(&self) -> &[Prefix] {
        &self.allow
    }

    pub fn denied(&self) -> &[Prefix] {
        &self.deny
    }

    /// # Errors
    /// The rule that keeps the address out.
    pub fn check(&self, address: IpAddr) -> Result<(), Denied> {
        let address = address.to_canonical();
        let rule = match address {
            IpAddr::V4(ip) => self.ipv4.find(ip.to_bits()),
            IpAddr::V6(_) => self.ipv6.find(number(address)),
        };
        match rule.map(|rule| self.deny.get(rule as usize)) {
            Some(Some(prefix)) => Err(Denied::By(*prefix)),
            Some(None) => Ok(()), // a rule beyond `deny` is one of `allow`
            None if self.allow.is_empty() => Ok(()),
            None => Err(Denied::NotAllowed),
        }
    }
}

fn sorted(list: impl IntoIterator<Item = Prefix>) -> Vec<Prefix> {
    let mut list: Vec<_> = list.into_iter().collect();
    list.sort_unstable();
    list.dedup();
    list
}

/// Each network once, larger ones before those inside them, with its number: its place in `deny`,
/// and behind those the places in `allow`. What stands in both is denied.
fn numbered(allow: &[Prefix], deny: &[Prefix]) -> Vec<(Prefix, u32)> {
    let mut rules: Vec<_> = deny.iter().chain(allow).copied().zip(0..).collect();
    rules.sort_unstable(); // by address and then by length: as wanted; the same network by number
    rules.dedup_by_key(|(prefix, _)| *prefix);
    rules
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

    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix::around(address.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    fn acl(allow: &[&str], deny: &[&str]) -> Acl {
        Acl::new(allow.iter().copied().map(prefix), deny.iter().copied().map(prefix))
    }

    fn admits(acl: &Acl, address: &str) -> bool {
        acl.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn without_rules_everybody_comes_in() {
        assert!(admits(&Acl::default(), "192.0.2.1") && admits(&Acl::default(), "2001:db8::1"));
    }

    #[test]
    fn the_longest_network_decides_whichever_list_it_is_in() {
        let acl = acl(&["10.0.0.0/8", "10.6.6.128/25"], &["10.6.6.0/24"]);
        assert!(admits(&acl, "10.1.1.1") && admits(&acl, "10.6.6.200"));
        assert_eq!(acl.check("10.6.6.7".parse().unwrap()), Err(Denied::By(prefix("10.6.6.0/24"))));
    }

    #[test]
    fn a_network_in_both_lists_is_denied() {
        assert!(!admits(&acl(&["10.0.0.0/8"], &["10.0.0.0/8"]), "10.1.1.1"));
        // And the list of those who may come in is still there.
        assert!(!admits(&acl(&["10.0.0.0/8"], &["10.0.0.0/8"]), "192.0.2.1"));
    }

    #[test]
    fn whoever_a_list_of_the_allowed_does_not_name_stays_out() {
        let acl = acl(&["10.0.0.0/8"], &[]);
        assert_eq!(acl.check("192.0.2.1".parse().unwrap()), Err(Denied::NotAllowed));
        assert_eq!(acl.check("2001:db8::1".parse().unwrap()), Err(Denied::NotAllowed));
    }

    #[test]
    fn a_change_of_clothes_slips_past_no_rule() {
        let plain = acl(&[], &["10.0.0.0/8"]);
        assert!(!admits(&plain, "::ffff:10.1.1.1"));
        let clothed = acl(&[], &["::ffff:10.0.0.0/104"]);
        assert!(!admits(&clothed, "10.1.1.1") && admits(&clothed, "11.1.1.1"));
    }

    #[test]
    fn the_families_share_nothing() {
        assert!(admits(&acl(&[], &["::/0"]), "10.1.1.1"));
        assert!(admits(&acl(&[], &["0.0.0.0/0"]), "2001:db8::1"));
        assert!(admits(&acl(&[], &["::a00:0/104"]), "10.1.1.1"));
    }

    #[test]
    fn the_ends_of_a_family_are_addresses_like_any_other() {
        let acl = acl(&[], &["255.255.255.255/32", "0.0.0.0/32", "ffff::/16", "::/128"]);
        for out in ["255.255.255.255", "0.0.0.0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::"] {
            assert!(!admits(&acl, out), "{out}");
        }
        for inside in ["255.255.255.254", "0.0.0.1", "fffe::1", "::1"] {
            assert!(admits(&acl, inside), "{inside}");
        }
    }

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

    /// Few addresses, so that networks nest and touch.
    fn few() -> impl Strategy<Value = Prefix> {
        let v4 = (0..64_u32, 26..=32_u8).prop_map(|(bits, length)| (IpAddr::V4(bits.into()), length));
        let high = (0..64_u32, 0..=32_u8).prop_map(|(bits, length)| (IpAddr::V4((!bits).into()), length));
        let v6 = (0..64_u128, 122..=128_u8).prop_map(|(bits, length)| (IpAddr::V6(bits.into()), length));
        prop_oneof![v4, high, v6].prop_map(|(address, length)| Prefix::around(address, length).unwrap())
    }

    /// The rule in words: of all networks that hold the address the longest, of two the denied one.
    fn plainly(allow: &[Prefix], deny: &[Prefix], address: IpAddr) -> bool {
        let longest = |list: &[Prefix]| {
            let holds = |prefix: &&Prefix| Prefix::around(address, prefix.length()) == Some(**prefix);
            list.iter().filter(holds).map(|prefix| prefix.length()).max()
        };
        match (longest(allow), longest(deny)) {
            (allowed, Some(denied)) => allowed > Some(denied),
            (Some(_), None) => true,
            (None, None) => allow.is_empty(),
        }
    }

    proptest! {
        #[test]
        fn the_flat_rules_say_what_the_lists_say(
            allow in prop::collection::vec(few(), 0..12),
            deny in prop::collection::vec(few(), 0..12),
        ) {
            let acl = Acl::new(allow.clone(), deny.clone());
            let v4 = (0..70_u32).chain(u32::MAX - 70..=u32::MAX).map(|bits| IpAddr::V4(bits.into()));
            for address in v4.chain((0..70_u128).map(|bits| IpAddr::V6(bits.into()))) {
                prop_assert_eq!(acl.check(address).is_ok(), plainly(&allow, &deny, address), "{}", address);
            }
        }
    }
}
