//! Who waits, and whose turn is next: the highest class first, and within a class first come first
//! served, and fair between sources.
//!
//! Pure. A source with a thousand clients in the line has no more turns than one with a single
//! client, so that nobody can fill the line with himself. While higher classes keep coming, a lower one
//! waits: only its time ends that. Who is woken, and for how long one waits, is `live/line.rs` and
//! `data/wait.rs`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use super::priority::Priority;

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    source: Source,
    pub class: Priority,
    /// Grows with each client that joins.
    pub number: u64,
}

/// Where clients come from: an IPv4 address, or the 64 bits of an IPv6 network, in which one
/// customer has as many addresses as he likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(u128);

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Source(u128::from(u32::from(ip))),
            IpAddr::V6(ip) => Source(((u128::from(ip) >> 64) << 64) | (1 << 32)),
        }
    }
}

/// The line before one pool.
#[derive(Debug, Default)]
pub struct Queue {
    ranks: [Rank; Priority::ALL.len()],
    joined: u64,
}

/// Those of one class.
#[derive(Debug, Default)]
struct Rank {
    /// Those who wait, by source. No lane is empty.
    lanes: HashMap<Source, Lane>,
    /// The sources of `lanes` in the order of their turns. Thousands may leave at once, each from anywhere
    /// in the order.
    turns: BTreeMap<u64, Source>,
    /// Turns given so far.
    given: u64,
    /// The same numbers once more in the order of coming, so that the newest is found without a search.
    newest: BTreeMap<u64, Source>,
}

/// Those of one source.
#[derive(Debug)]
struct Lane {
    turn: u64,
    /// Their numbers, in the order of coming.
    numbers: VecDeque<u64>,
}

impl Queue {
    /// Puts a client at the end of its source's lane in its class.
    pub fn join(&mut self, class: Priority, source: IpAddr) -> Ticket {
        self.joined += 1;
        let ticket = Ticket { source: Source::from(source), class, number: self.joined };
        self.rank(class).join(ticket);
        ticket
    }

    /// Takes the next out of the line: of the highest class that waits, the first of the source whose turn
    /// it is.
    pub fn call(&mut self) -> Option<Ticket> {
        let class = self.next_class()?;
        let (source, number) = self.rank(class).call()?;
        Some(Ticket { source, class, number })
    }

    /// Takes a client out who does not wait any longer. Says no where it is out already.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        self.rank(ticket.class).leave(ticket.source, ticket.number)
    }

    /// Takes out the newest of the lowest class, for one who is worth more.
    pub fn drop_newest(&mut self) -> Option<Ticket> {
        let class = self.last_class()?;
        let (number, source) = self.rank(class).newest.last_key_value().map(|(number, it)| (*number, *it))?;
        let ticket = Ticket { source, class, number };
        self.leave(ticket).then_some(ticket)
    }

    /// Whether this client still waits to be called.
    pub fn holds(&self, ticket: Ticket) -> bool {
        self.ranks[ticket.class.index()].newest.contains_key(&ticket.number)
    }

    /// The class of whoever is called next.
    pub fn next_class(&self) -> Option<Priority> {
        Priority::ALL.iter().copied().find(|class| self.has(*class))
    }

    /// The lowest class that waits.
    pub fn last_class(&self) -> Option<Priority> {
        Priority::ALL.iter().rev().copied().find(|class| self.has(*class))
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.ranks.iter().map(|rank| rank.newest.len()).sum()
    }

    fn has(&self, class: Priority) -> bool {
        !self.ranks[class.index()].newest.is_empty()
    }

    fn rank(&mut self, class: Priority) -> &mut Rank {
        &mut self.ranks[class.index()]
    }
}

impl Rank {
    fn join(&mut self, ticket: Ticket) {
        self.newest.insert(ticket.number, ticket.source);
        if let Some(lane) = self.lanes.get_mut(&ticket.source) {
            return lane.numbers.push_back(ticket.number);
        }
        let (turn, numbers) = (self.next_turn(ticket.source), VecDeque::from([ticket.number]));
        self.lanes.insert(ticket.source, Lane { turn, numbers });
    }

    fn next_turn(&mut self, source: Source) -> u64 {
        self.given += 1;
        self.turns.insert(self.given, source);
        self.given
    }

    fn call(&mut self) -> Option<(Source, u64)> {
        let (_, source) = self.turns.pop_first()?;
        let mut lane = self.lanes.remove(&source)?;
        let number = lane.numbers.pop_front()?;
        if !lane.numbers.is_empty() {
            lane.turn = self.next_turn(source);
            self.lanes.insert(source, lane);
        }
        self.newest.remove(&number);
        Some((source, number))
    }

    fn leave(&mut self, source: Source, number: u64) -> bool {
        let Some(lane) = self.lanes.get_mut(&source) else { return false };
        let Ok(place) = lane.numbers.binary_search(&number) else { return false };
        lane.numbers.remove(place);
        if lane.numbers.is_empty() {
            self.turns.remove(&lane.turn);
            self.lanes.remove(&source);
        }
        self.newest.remove(&number);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn source(host: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, host).into()
    }

    fn called(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.call().map(|ticket| ticket.number)).collect()
    }

    #[test]
    fn who_comes_first_is_called_first() {
        let mut queue = Queue::default();
        (0..5).for_each(|host| _ = queue.join(Priority::default(), source(host)));
        assert_eq!(called(&mut queue), [1, 2, 3, 4, 5]);
        (0..3).for_each(|_| _ = queue.join(Priority::default(), source(7)));
        assert_eq!(called(&mut queue), [6, 7, 8]);
    }

    #[test]
    fn a_source_with_many_clients_does_not_keep_out_one_with_few() {
        let mut queue = Queue::default();
        (0..4).for_each(|_| _ = queue.join(Priority::default(), source(1)));
        queue.join(Priority::default(), source(2));
        queue.join(Priority::default(), source(3));
        assert_eq!(called(&mut queue), [1, 5, 6, 2, 3, 4]);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_never_an_ipv4_address() {
        let host = |n: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, n));
        assert_eq!(Source::from(host(1)), Source::from(host(2)));
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
        assert_eq!(Source::from(IpAddr::from(mapped)), Source::from(source(1)));
        assert_ne!(
            Source::from(IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            Source::from(IpAddr::from(Ipv4Addr::UNSPECIFIED))
        );
    }

    #[test]
    fn who_leaves_is_not_called_and_leaves_once() {
        let mut queue = Queue::default();
        let tickets: Vec<_> = (0..3).map(|_| queue.join(Priority::default(), source(1))).collect();
        assert!(queue.leave(tickets[1]) && !queue.leave(tickets[1]));
        assert_eq!(queue.call(), Some(tickets[0]));
        assert!(!queue.leave(tickets[0]), "it has been called");
        assert_eq!((called(&mut queue), queue.waiting()), (vec![3], 0));
    }

    #[test]
    fn a_higher_class_is_called_first_whenever_it_came() {
        let mut queue = Queue::default();
        for (class, host) in [(Priority::Low, 1), (Priority::Normal, 2), (Priority::Highest, 3)] {
            queue.join(class, source(host));
            queue.join(class, source(host));
        }
        assert_eq!(queue.join(Priority::default(), source(4)).class, Priority::Normal);
        assert_eq!(called(&mut queue), [5, 6, 3, 7, 4, 1, 2]);
    }

    #[test]
    fn the_newest_of_the_lowest_class_goes_first() {
        let mut queue = Queue::default();
        let classes = [Priority::Low, Priority::High, Priority::Low, Priority::Normal];
        let tickets: Vec<_> =
            (0_u8..).zip(classes).map(|(host, class)| queue.join(class, source(host))).collect();
        let gone: Vec<_> = std::iter::from_fn(|| queue.drop_newest()).collect();
        assert_eq!(gone, [tickets[2], tickets[0], tickets[3], tickets[1]]);
        assert!(!queue.holds(tickets[0]) && !queue.leave(tickets[0]));
        assert_eq!((queue.waiting(), queue.call()), (0, None));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join(Priority, u8),
        Call,
        DropNewest,
        /// That of the clients that wait.
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (prop::sample::select(Priority::ALL), 0_u8..5).prop_map(|(class, host)| Step::Join(class, host)),
            3 => Just(Step::Call),
            1 => Just(Step::DropNewest),
            1 => (0_usize..50).prop_map(Step::Leave),
        ]
    }

    proptest! {
        /// Whoever is called is of the highest class that waits and the oldest of its source, everybody is
        /// called once, and between two calls of a source every other of its class that waited at the
        /// first has been called. Whoever has to go is the newest of the lowest class.
        #[test]
        fn everybody_has_a_turn_and_no_source_two_of_them(steps in prop::collection::vec(step(), 0..200)) {
            let mut queue = Queue::default();
            type Lane = (Priority, u8);
            let mut waiting: Vec<(Lane, Ticket)> = Vec::new();
            let mut owed: HashMap<Lane, HashSet<Lane>> = HashMap::new();
            let release = |owed: &mut HashMap<Lane, HashSet<Lane>>, waiting: &[(Lane, Ticket)], lane: Lane| {
                if !waiting.iter().any(|(other, _)| *other == lane) {
                    owed.values_mut().for_each(|owed| _ = owed.remove(&lane));
                }
            };
            for step in steps {
                match step {
                    Step::Join(class, host) => waiting.push(((class, host), queue.join(class, source(host)))),
                    Step::Leave(which) if which < waiting.len() => {
                        let (lane, ticket) = waiting.remove(which);
                        prop_assert!(queue.holds(ticket) && queue.leave(ticket) && !queue.holds(ticket));
                        release(&mut owed, &waiting, lane);
                    }
                    Step::Leave(_) => {}
                    Step::DropNewest => {
                        let last = waiting.iter().max_by_key(|((class, _), one)| (*class, one.number)).copied();
                        prop_assert_eq!(queue.drop_newest(), last.map(|(_, ticket)| ticket));
                        if let Some((lane, ticket)) = last {
                            waiting.retain(|(_, one)| *one != ticket);
                            release(&mut owed, &waiting, lane);
                        }
                    }
                    Step::Call => {
                        let next = queue.next_class();
                        let Some(ticket) = queue.call() else {
                            prop_assert!(waiting.is_empty());
                            continue;
                        };
                        let place = waiting.iter().position(|(_, one)| *one == ticket);
                        let (lane, _) = waiting.remove(place.expect("it waits"));
                        prop_assert_eq!(next, Some(lane.0));
                        prop_assert!(!waiting.iter().any(|((class, _), _)| class.is_above(lane.0)));
                        prop_assert!(!waiting.iter().any(|(other, one)| *other == lane && one.number < ticket.number));
                        prop_assert!(owed.get(&lane).is_none_or(HashSet::is_empty), "{lane:?} came twice");
                        owed.values_mut().for_each(|owed| _ = owed.remove(&lane));
                        let others = waiting.iter().map(|(other, _)| *other);
                        owed.insert(lane, others.filter(|it| *it != lane && it.0 == lane.0).collect());
                    }
                }
                prop_assert_eq!(queue.waiting(), waiting.len());
            }
        }
    }

    #[test]
    fn two_networks_of_ipv6_are_two_sources() {
        let network = |n: u16| Source::from(IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, n, 0, 0, 0, 1)));
        assert_ne!(network(1), network(2));
    }
}
