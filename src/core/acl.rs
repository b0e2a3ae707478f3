//! Which addresses may come in: two lists of networks, of which the longest that fits decides.
//!
//! Pure. What a question costs says `networks.rs`.

use std::net::IpAddr;

use super::networks::Networks;
use super::prefix::Prefix;

/// The rules of one listener. Without any, everybody may come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    /// Sorted; no network twice.
    allow: Vec<Prefix>,
    deny: Vec<Prefix>,
    /// By place in `deny`, and behind those the places in `allow`.
    networks: Networks,
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
        // What stands in both is denied.
        let networks = Networks::new(deny.iter().chain(&allow).copied().zip(0..));
        Acl { allow, deny, networks }
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
        match self.networks.find(address).map(|rule| self.deny.get(rule as usize)) {
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

#[cfg(test)]
mod tests {
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

    #[test]
    fn what_was_written_is_told_in_order_and_once() {
        let acl = acl(&["10.2.0.0/16", "10.1.0.0/16", "10.2.0.0/16"], &["10.3.0.0/16"]);
        assert_eq!(acl.allowed(), [prefix("10.1.0.0/16"), prefix("10.2.0.0/16")]);
        assert_eq!(acl.denied(), [prefix("10.3.0.0/16")]);
    }
}
