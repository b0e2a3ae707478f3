//! Who comes first when room is short: five classes of clients, by the network that they come from.
//!
//! Pure. A room that fills up is closed to the lower classes first: each may come in only while less
//! than its part of the room is taken, by whomever. The highest class that a room has clients of
//! may fill all of it, so that a room with one class knows nothing of classes. Nobody who is in is put
//! out for another. What is taken is counted in `limit.rs`; in a line the classes are kept by `queue.rs`.

use std::net::IpAddr;

use super::networks::Networks;
use super::outcome::words;
use super::prefix::Prefix;

words! {
    /// A class of clients, the highest first.
    #[derive(Default)]
    Priority {
        Highest = "highest",
        High = "high",
        #[default]
        Normal = "normal",
        Low = "low",
        Lowest = "lowest",
    }
}

impl Priority {
    pub fn is_above(self, other: Priority) -> bool {
        self.index() < other.index()
    }

    /// How far this class reaches where a higher one is there, in percent: the higher ones lose little
    /// to reserve, and each class is shut out while those above it still come in.
    fn percent(self) -> u8 {
        match self {
            Priority::Highest => 100,
            Priority::High => 95,
            Priority::Normal => 90,
            Priority::Low => 75,
            Priority::Lowest => 50,
        }
    }
}

/// How far a room may be filled when a client comes in: a part of its limit, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach(u8);

impl Reach {
    pub const WHOLE: Reach = Reach(100);

    /// To be kept in an atomic beside [`Self::NOBODY`].
    pub fn word(self) -> u8 {
        self.0
    }

    /// The word of no reach.
    pub const NOBODY: u8 = 0;

    /// `None` for [`Self::NOBODY`].
    pub fn from_word(word: u8) -> Option<Reach> {
        (word != Self::NOBODY).then_some(Reach(word))
    }

    /// In places, rounded down: the higher classes keep what is left. One at least, so that nobody
    /// is shut out of a room that is empty. In a room of less than 20 places classes may coincide (of 10, high
    /// and normal both reach 9): no whole number lies between their parts.
    pub fn of(self, limit: usize) -> usize {
        if self == Reach::WHOLE {
            return limit;
        }
        let percent = usize::from(self.0);
        let part = limit / 100 * percent + limit % 100 * percent / 100; // a limit may be as large as a number is
        part.max(1).min(limit)
    }
}

/// The classes that share a room, as far as it matters: the highest of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Among {
    top: Priority,
}

impl Among {
    pub fn new(classes: impl IntoIterator<Item = Priority>) -> Self {
        Among { top: classes.into_iter().min().unwrap_or_default() }
    }

    /// The class that may fill the room.
    pub fn top(self) -> Priority {
        self.top
    }

    pub fn reach(self, class: Priority) -> Reach {
        if self.top.is_above(class) { Reach(class.percent()) } else { Reach::WHOLE }
    }
}

/// Networks by the class of their clients, in order of [`Priority::ALL`].
pub type Lists = [Vec<Prefix>; Priority::ALL.len()];

/// Which class a client is of: the one that the longest network names, or else `otherwise`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    otherwise: Priority,
    /// Sorted.
    lists: Lists,
    networks: Networks,
}

impl Classes {
    pub fn new(otherwise: Priority, mut lists: Lists) -> Self {
        lists.iter_mut().for_each(|list| list.sort_unstable());
        lists.iter_mut().for_each(Vec::dedup);
        let rules = lists.iter().zip(0..).flat_map(|(list, class)| list.iter().map(move |it| (*it, class)));
        let networks = Networks::new(rules);
        Classes { otherwise, lists, networks }
    }

    /// Of clients that no network names.
    pub fn otherwise(&self) -> Priority {
        self.otherwise
    }

    /// The networks of one class.
    pub fn list(&self, class: Priority) -> &[Prefix] {
        &self.lists[class.index()]
    }

    pub fn of(&self, address: IpAddr) -> Priority {
        let named = self.networks.find(address).and_then(|class| Priority::ALL.get(class as usize));
        named.copied().unwrap_or(self.otherwise)
    }

    /// The same networks, and another class for everybody else.
    pub fn with_otherwise(&self, otherwise: Priority) -> Self {
        Classes { otherwise, ..self.clone() }
    }

    /// Every class that a client may be of.
    pub fn all(&self) -> impl Iterator<Item = Priority> {
        let is_there = |class: &Priority| *class == self.otherwise || !self.list(*class).is_empty();
        Priority::ALL.iter().copied().filter(is_there)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix::around(address.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    fn class_of(classes: &Classes, address: &str) -> Priority {
        classes.of(address.parse().unwrap())
    }

    #[test]
    fn a_client_is_of_the_class_that_its_longest_network_names() {
        let mut lists = Lists::default();
        lists[Priority::Low.index()] = vec![prefix("10.0.0.0/8"), prefix("2001:db8::/32")];
        lists[Priority::Highest.index()] = vec![prefix("10.6.0.0/16")];
        let classes = Classes::new(Priority::Normal, lists);
        let of = |address| class_of(&classes, address);
        assert_eq!([of("10.1.1.1"), of("10.6.1.1")], [Priority::Low, Priority::Highest]);
        assert_eq!([of("192.0.2.1"), of("2001:db8::1")], [Priority::Normal, Priority::Low]);
        assert_eq!(of("::ffff:10.6.1.1"), Priority::Highest, "an IPv4 client on an IPv6 socket");
        let all: Vec<_> = classes.all().collect();
        assert_eq!(all, [Priority::Highest, Priority::Normal, Priority::Low]);

        let others = classes.with_otherwise(Priority::High);
        assert_eq!((classes.otherwise(), others.otherwise()), (Priority::Normal, Priority::High));
        assert_eq!(class_of(&others, "192.0.2.1"), Priority::High);
        assert_eq!(class_of(&others, "10.6.1.1"), Priority::Highest, "whom a network names");
    }

    #[test]
    fn a_room_with_one_class_has_none() {
        for class in Priority::ALL {
            assert_eq!(Among::new([*class]).reach(*class), Reach::WHOLE);
        }
        assert_eq!(Among::default().reach(Priority::Normal), Reach::WHOLE);
    }

    #[test]
    fn the_highest_that_is_there_may_fill_the_room_and_each_lower_one_its_part() {
        let reach = |among: Among| Priority::ALL.iter().map(|class| among.reach(*class).of(200)).collect();
        let all: Vec<_> = reach(Among::new(Priority::ALL.iter().copied()));
        assert_eq!(all, [200, 190, 180, 150, 100]);
        let from_normal: Vec<_> = reach(Among::new([Priority::Lowest, Priority::Normal]));
        assert_eq!(from_normal[2..], [200, 150, 100]);
        assert_eq!(Among::new([Priority::Lowest, Priority::High]).top(), Priority::High);
    }

    #[test]
    fn a_small_room_still_has_a_place_for_everybody_and_one_kept_back() {
        let among = Among::new(Priority::ALL.iter().copied());
        let reach = |limit: usize| -> Vec<_> {
            Priority::ALL.iter().map(|class| among.reach(*class).of(limit)).collect()
        };
        assert_eq!(reach(0), [0; 5]);
        assert_eq!(reach(1), [1; 5]);
        assert_eq!(reach(2), [2, 1, 1, 1, 1]);
        assert_eq!(reach(10), [10, 9, 9, 7, 5]);
        assert_eq!(reach(20), [20, 19, 18, 15, 10], "from here on each class has its own");
    }

    proptest! {
        /// Lower classes never reach further, a larger room never holds fewer of a class, and the part
        /// is the one that is promised to within the place that rounding takes.
        #[test]
        fn reaches_are_in_the_order_of_the_classes(limit in any::<usize>(), top in 0..5_usize) {
            let among = Among::new([Priority::ALL[top]]);
            let reach = |class: &Priority, limit: usize| among.reach(*class).of(limit);
            for pair in Priority::ALL.windows(2) {
                prop_assert!(reach(&pair[0], limit) >= reach(&pair[1], limit));
            }
            for class in Priority::ALL {
                let part = reach(class, limit);
                prop_assert!(part <= limit && (part > 0 || limit == 0));
                prop_assert!(part >= reach(class, limit.saturating_sub(1)));
                if class.index() > top {
                    let exact = limit as u128 * u128::from(class.percent()) / 100;
                    prop_assert_eq!(part as u128, exact.max(1).min(limit as u128));
                } else {
                    prop_assert_eq!(part, limit);
                }
            }
        }

        /// The rule in words: of all networks that hold the address, the longest names the class.
        #[test]
        fn the_flat_classes_say_what_the_lists_say(
            networks in prop::collection::btree_map((0..64_u32, 26..=32_u8), 0..5_usize, 0..12),
            otherwise in 0..5_usize,
        ) {
            let networks: std::collections::BTreeMap<_, _> = networks.into_iter().map(|((bits, length), class)| {
                (Prefix::around(IpAddr::V4(bits.into()), length).unwrap(), class)
            }).collect();
            let mut lists = Lists::default();
            networks.iter().for_each(|(network, class)| lists[*class].push(*network));
            let classes = Classes::new(Priority::ALL[otherwise], lists);
            for bits in 0..70_u32 {
                let address = IpAddr::V4(Ipv4Addr::from(bits));
                let holds = |network: &Prefix| Prefix::around(address, network.length()) == Some(*network);
                let longest = networks.iter().filter(|(network, _)| holds(network)).max_by_key(|(it, _)| it.length());
                let expected = longest.map_or(otherwise, |(_, class)| *class);
                prop_assert_eq!(classes.of(address), Priority::ALL[expected]);
            }
        }
    }
}
