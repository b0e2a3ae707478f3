//! Networks of IP addresses: an address and how many of its first bits count.
//!
//! Pure. An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`) is read as what it is, in a network
//! and in an address alike, so that a rule cannot be slipped past by a change of clothes. The two
//! families share nothing: `0.0.0.0/0` is all of IPv4, `::/0` all of IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// What the first 96 bits of an IPv4 address in IPv6 clothes take of a prefix's length.
const MAPPED: u8 = 96;

/// A network, or one address as the smallest of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// No bit is set beyond `length`.
    network: IpAddr,
    length: u8,
}

impl Prefix {
    /// The network of that length around an address; `None` for more bits than the address has.
    pub fn around(address: IpAddr, length: u8) -> Option<Self> {
        let (address, length) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), plain @ IpAddr::V4(_)) if length >= MAPPED => (plain, length - MAPPED),
            _ => (address, length),
        };
        let unused = bits_of(address).checked_sub(length)?;
        let network = match address {
            IpAddr::V4(ip) => {
                IpAddr::V4((ip.to_bits() & (u32::MAX.checked_shl(unused.into())).unwrap_or(0)).into())
            }
            IpAddr::V6(ip) => {
                IpAddr::V6((ip.to_bits() & (u128::MAX.checked_shl(unused.into())).unwrap_or(0)).into())
            }
        };
        Some(Prefix { network, length })
    }

    /// One address alone.
    pub fn of(address: IpAddr) -> Self {
        let network = address.to_canonical();
        Prefix { network, length: bits_of(network) }
    }

    /// Bits that count.
    pub fn length(self) -> u8 {
        self.length
    }

    pub fn network(self) -> IpAddr {
        self.network
    }

    pub fn is_ipv4(self) -> bool {
        self.network.is_ipv4()
    }

    /// One of `parts`, the same each time, with neighbours in different ones.
    pub fn share(self, parts: usize) -> usize {
        let bits = number(self.network);
        let folded = (bits >> 64) as u64 ^ bits as u64;
        // Fibonacci hashing: a multiplication by 2^64 / golden ratio brings every bit to the top.
        let mixed = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mixed) * parts as u128) >> 64) as usize
    }

    /// The first and the last address, as numbers of the family.
    pub fn ends(self) -> (u128, u128) {
        let unused = u32::from(bits_of(self.network) - self.length);
        let first = number(self.network);
        (first, first | (u128::MAX.checked_shl(unused).map_or(u128::MAX, |ones| !ones)))
    }
}

/// An address as a number of its own family.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { Ipv6Addr::BITS as u8 }
}

impl fmt::Display for Prefix {
    /// `10.0.0.0/8`; one address alone without its length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length == bits_of(self.network) {
            true => write!(f, "{}", self.network),
            false => write!(f, "{}/{}", self.network, self.length),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn around(address: &str, length: u8) -> String {
        Prefix::around(address.parse().unwrap(), length).map_or_else(String::new, |prefix| prefix.to_string())
    }

    #[test]
    fn a_network_keeps_the_bits_that_count() {
        assert_eq!(around("10.6.7.8", 8), "10.0.0.0/8");
        assert_eq!(around("10.6.7.8", 32), "10.6.7.8");
        assert_eq!(around("10.6.7.8", 0), "0.0.0.0/0");
        assert_eq!(around("10.6.7.8", 33), "");
        assert_eq!(around("2001:db8:1:2:3::4", 64), "2001:db8:1:2::/64");
        assert_eq!(around("2001:db8::1", 0), "::/0");
        assert_eq!(around("2001:db8::1", 129), "");
    }

    #[test]
    fn ipv4_in_ipv6_clothes_is_ipv4() {
        assert_eq!(around("::ffff:10.6.7.8", 104), "10.0.0.0/8");
        assert_eq!(around("::ffff:10.6.7.8", 128), "10.6.7.8");
        assert_eq!(Prefix::of("::ffff:10.6.7.8".parse().unwrap()).to_string(), "10.6.7.8");
        // Shorter than the clothes are long: a network of IPv6.
        assert_eq!(around("::ffff:10.6.7.8", 64), "::/64");
    }

    proptest! {
        #[test]
        fn an_address_is_between_the_ends_of_its_network(bits: u128, is_v4: bool, length in 0..=128_u8) {
            let address =
                if is_v4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) };
            let length = length.min(bits_of(address));
            let prefix = Prefix::around(address, length).unwrap();
            let (first, last) = prefix.ends();
            prop_assert!((first..=last).contains(&number(prefix.network)));
            prop_assert_eq!(number(prefix.network), first);
            if prefix.is_ipv4() == address.is_ipv4() {
                prop_assert!((first..=last).contains(&number(address)));
            }
            prop_assert_eq!(last - first, u128::MAX.checked_shr(u32::from(128 - (bits_of(prefix.network) - prefix.length))).unwrap_or(0));
        }
    }

    /// Networks or addresses that differ in those bits alone, over the parts.
    fn is_spread(of: impl Fn(u128) -> Prefix) -> bool {
        let mut counts = [0; 8];
        (0..256).for_each(|number| counts[of(number).share(8)] += 1);
        counts.iter().all(|count| (16..=64).contains(count))
    }

    #[test]
    fn neighbours_are_spread_whichever_half_of_the_address_they_differ_in() {
        let v6 = |bits: u128| IpAddr::V6(bits.into());
        assert!(is_spread(|number| Prefix::around(v6(number << 64), 64).unwrap()));
        // A network of ones: whoever has one may not choose a part for all of his addresses.
        assert!(is_spread(|number| Prefix::of(v6((u128::MAX << 64) | number))));
    }
}
