//! Which connections a canary gets: a share of those that would go to the main pool.
//!
//! Pure. By connection, the share is exact: of any connections that follow each other, the canary's part
//! differs from it by less than one. By source, a client's address alone decides, the same on every
//! machine for ever: whoever is with the canary stays there while the share rises.

use std::fmt;
use std::net::IpAddr;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::outcome::words;

words! {
    /// What is shared out.
    By {
        /// Each connection by itself.
        Connection = "connection",
        /// Clients: the same one always sees the same side.
        SourceIp = "source-ip",
    }
}

/// The seed of all sources: `split-01` in ASCII. Not that of a consistent hash, or a canary's clients
/// would be those of a few servers. Another value would move every client.
const SEED: u64 = 0x7370_6c69_742d_3031;

/// A part of the whole, in millionths: ten thousandths of a percent are finer than anybody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    const PARTS: u32 = 1_000_000;

    /// From 0.0 to 1.0; `None` for anything else, and for what is finer than a millionth.
    pub fn of(part: f64) -> Option<Share> {
        let parts = part * f64::from(Share::PARTS);
        let whole = parts.round();
        let is_one = (0.0..=f64::from(Share::PARTS)).contains(&whole) && (parts - whole).abs() < 1e-3;
        is_one.then_some(Share(whole as u32))
    }

    pub fn is_nothing(self) -> bool {
        self.0 == 0
    }

    /// Turns are numbered from 0, and each goes to one connection.
    fn takes_turn(self, turn: u64) -> bool {
        let parts = u64::from(Share::PARTS);
        // What the turns before have left over: one more share makes it whole, or not yet.
        let left_over = (turn % parts) * u64::from(self.0) % parts;
        left_over + u64::from(self.0) >= parts
    }

    fn takes_hash(self, hash: u64) -> bool {
        let place = (u128::from(hash) * u128::from(Share::PARTS)) >> u64::BITS;
        place < u128::from(self.0)
    }
}

impl fmt::Display for Share {
    /// `5%`, `0.5%`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 10_000, format!("{:04}", self.0 % 10_000));
        match rest.trim_end_matches('0') {
            "" => write!(f, "{whole}%"),
            rest => write!(f, "{whole}.{rest}%"),
        }
    }
}

/// How connections are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Of the canary.
    pub share: Share,
    pub by: By,
}

impl Split {
    /// Whether the canary gets the connection from there. A turn is taken where turns decide.
    pub fn takes(self, source: IpAddr, turn: impl FnOnce() -> u64) -> bool {
        match self.by {
            By::Connection => self.share.takes_turn(turn()),
            By::SourceIp => self.share.takes_hash(hash(source)),
        }
    }
}

/// XXH3 of the address's 4 or 16 bytes; an IPv4 client of an IPv6 socket has that of its IPv4 address.
fn hash(source: IpAddr) -> u64 {
    match source.to_canonical() {
        IpAddr::V4(ip) => xxh3_64_with_seed(&ip.octets(), SEED),
        IpAddr::V6(ip) => xxh3_64_with_seed(&ip.octets(), SEED),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(percent: &str) -> Share {
        let number: f64 = percent.trim_end_matches('%').parse().unwrap();
        Share::of(number / 100.0).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_share_is_written_as_it_was_read() {
        for text in ["0%", "5%", "0.5%", "12.5%", "33.3333%", "0.0001%", "99.9999%", "100%"] {
            assert_eq!(share(text).to_string(), text);
        }
        assert_eq!([0.000_000_5, 0.000_000_001].map(Share::of), [None, None], "too fine");
        assert_eq!((Share::of(1.1), Share::of(-0.1), Share::of(f64::NAN)), (None, None, None));
    }

    #[test]
    fn of_twenty_connections_five_percent_is_the_last() {
        let taken: Vec<_> = (0..40).filter(|turn| share("5%").takes_turn(*turn)).collect();
        assert_eq!(taken, [19, 39]);
    }

    #[test]
    fn nothing_is_nobody_and_all_is_everybody() {
        for by in By::ALL {
            for last in 0..=255 {
                let source = IpAddr::from([192, 0, 2, last]);
                let takes = |share| Split { share, by: *by }.takes(source, || u64::from(last));
                assert!(!takes(share("0%")) && takes(share("100%")));
            }
        }
    }

    #[test]
    fn only_no_share_at_all_is_nothing_also_for_the_lowest_hash() {
        assert!(share("0%").is_nothing() && !share("0.0001%").is_nothing());
        assert!(!share("0%").takes_hash(0) && share("0.0001%").takes_hash(0));
    }

    #[test]
    fn a_turn_is_taken_only_where_turns_decide() {
        let split = Split { share: share("50%"), by: By::SourceIp };
        split.takes(ip("192.0.2.1"), || unreachable!("the address decides"));
    }

    #[test]
    fn sources_are_the_same_on_every_machine_for_ever() {
        // Worked out by another implementation of XXH3.
        assert_eq!(hash(ip("192.0.2.17")), 0x9fa7_9763_053b_9053);
        assert_eq!(hash(ip("2001:db8::1")), 0xb5a2_944e_5965_eea9);
        assert_eq!(hash(ip("::ffff:192.0.2.17")), hash(ip("192.0.2.17")));
    }

    #[test]
    fn of_many_sources_the_canary_has_its_share() {
        let sources = || (0..100_000_u32).map(|bits| IpAddr::V4((0x0a00_0000 | bits).into()));
        for (percent, expected) in [("0.5%", 500), ("5%", 5_000), ("50%", 50_000)] {
            let split = Split { share: share(percent), by: By::SourceIp };
            let taken = sources().filter(|source| split.takes(*source, || 0)).count();
            // Four standard deviations of a coin that is thrown so often.
            let slack = 4.0 * f64::from(expected).sqrt();
            assert!((taken as f64 - f64::from(expected)).abs() < slack, "{percent}: {taken}");
        }
    }

    proptest! {
        #[test]
        fn any_connections_in_a_row_are_shared_out_to_within_one(
            parts in 0..=Share::PARTS,
            first in prop_oneof![0..10_000_000_u64, u64::MAX - 3_000_000..u64::MAX - 5000],
            count in 0..5000_u64,
        ) {
            let taken = (first..first + count).filter(|turn| Share(parts).takes_turn(*turn)).count();
            let exact = count as f64 * f64::from(parts) / f64::from(Share::PARTS);
            prop_assert!((taken as f64 - exact).abs() < 1.0, "{} of {}, not {}", taken, count, exact);
        }

        #[test]
        fn whoever_is_with_the_canary_stays_there_while_the_share_rises(
            bits: u128, is_v4: bool, lower in 0..=Share::PARTS, more in 0..=Share::PARTS,
        ) {
            let source = if is_v4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) };
            let takes = |parts| Split { share: Share(parts), by: By::SourceIp }.takes(source, || 0);
            let higher = lower.saturating_add(more).min(Share::PARTS);
            prop_assert!(!takes(lower) || takes(higher));
        }

        #[test]
        fn every_share_reads_back_as_it_is_written(parts in 0..=Share::PARTS) {
            prop_assert_eq!(share(&Share(parts).to_string()), Share(parts));
        }
    }
}
