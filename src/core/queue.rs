//! Who waits, and whose turn is next: first come first served, and fair between sources.
//!
//! Pure. A source with a thousand clients in the line has no more turns than one with a single
//! client, so that nobody can fill the line with himself. Who is woken, and for how long one
//! waits, is `live/line.rs` and `data/wait.rs`.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    source: Source,
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
    /// Numbers that wait, by source, each in order of coming. No list is empty.
    lanes: HashMap<Source, VecDeque<u64>>,
    /// Sources in the order of their turns; the same as the keys of `lanes`.
    turns: VecDeque<Source>,
    waiting: usize,
    joined: u64,
}

impl Queue {
    /// Puts a client at the end of its source's lane.
    pub fn join(&mut self, source: IpAddr) -> Ticket {
        let source = Source::from(source);
        self.joined += 1;
        let lane = self.lanes.entry(source).or_default();
        if lane.is_empty() {
            self.turns.push_back(source);
        }
        lane.push_back(self.joined);
        self.waiting += 1;
        Ticket { source, number: self.joined }
    }

    /// Takes the next out of the line: the first of the source whose turn it is.
    pub fn call(&mut self) -> Option<Ticket> {
        let source = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&source)?;
        let number = lane.pop_front()?;
        if lane.is_empty() {
            self.lanes.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        self.waiting -= 1;
        Some(Ticket { source, number })
    }

    /// Takes a client out who does not wait any longer. Says no where it has been called before.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        let Some(lane) = self.lanes.get_mut(&ticket.source) else { return false };
        let Ok(place) = lane.binary_search(&ticket.number) else { return false };
        lane.remove(place);
        if lane.is_empty() {
            self.lanes.remove(&ticket.source);
            self.turns.retain(|source| *source != ticket.source);
        }
        self.waiting -= 1;
        true
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting
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
        (0..5).for_each(|host| _ = queue.join(source(host)));
        assert_eq!(called(&mut queue), [1, 2, 3, 4, 5]);
        (0..3).for_each(|_| _ = queue.join(source(7)));
        assert_eq!(called(&mut queue), [6, 7, 8]);
    }

    #[test]
    fn a_source_with_many_clients_does_not_keep_out_one_with_few() {
        let mut queue = Queue::default();
        (0..4).for_each(|_| _ = queue.join(source(1)));
        queue.join(source(2));
        queue.join(source(3));
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
        let tickets: Vec<_> = (0..3).map(|_| queue.join(source(1))).collect();
        assert!(queue.leave(tickets[1]) && !queue.leave(tickets[1]));
        assert_eq!(queue.call(), Some(tickets[0]));
        assert!(!queue.leave(tickets[0]), "it has been called");
        assert_eq!((called(&mut queue), queue.waiting()), (vec![3], 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join(u8),
        Call,
        /// That of the clients that wait.
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u8..5).prop_map(Step::Join),
            3 => Just(Step::Call),
            1 => (0_usize..50).prop_map(Step::Leave),
        ]
    }

    proptest! {
        /// Whoever is called is the oldest of its source, everybody is called once, and between two
        /// calls of a source every other that waited at the first has been called.
        #[test]
        fn everybody_has_a_turn_and_no_source_two_of_them(steps in prop::collection::vec(step(), 0..200)) {
            let mut queue = Queue::default();
            let mut waiting: Vec<(u8, Ticket)> = Vec::new();
            let mut owed: HashMap<u8, HashSet<u8>> = HashMap::new();
            for step in steps {
                match step {
                    Step::Join(host) => waiting.push((host, queue.join(source(host)))),
                    Step::Leave(which) if which < waiting.len() => {
                        let (host, ticket) = waiting.remove(which);
                        prop_assert!(queue.leave(ticket));
                        if !waiting.iter().any(|(other, _)| *other == host) {
                            owed.values_mut().for_each(|owed| _ = owed.remove(&host));
                        }
                    }
                    Step::Leave(_) => {}
                    Step::Call => {
                        let Some(ticket) = queue.call() else {
                            prop_assert!(waiting.is_empty());
                            continue;
                        };
                        let place = waiting.iter().position(|(_, one)| *one == ticket);
                        let (host, _) = waiting.remove(place.expect("it waits"));
                        prop_assert!(!waiting.iter().any(|(other, one)| *other == host && one.number < ticket.number));
                        prop_assert!(owed.get(&host).is_none_or(HashSet::is_empty), "{host} came twice");
                        owed.values_mut().for_each(|owed| _ = owed.remove(&host));
                        owed.insert(host, waiting.iter().map(|(other, _)| *other).filter(|it| *it != host).collect());
                    }
                }
                prop_assert_eq!(queue.waiting(), waiting.len());
            }
        }
    }
}
