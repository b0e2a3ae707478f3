//! Who waits, and whose turn is next: the highest class first, and within a class first come first
//! served, and fair between sources.
//!
//! Pure. A source with a thousand clients in the line has no more turns than one with a single
//! client, and in a full line it gives places to sources that have fewer, so that nobody can fill the line
//! with himself. While higher classes keep coming, a lower one waits: only its time ends that. Who is
//! woken, and for how long one waits, is `live/line.rs` and `data/wait.rs`.

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
    /// Those in the line, by source. No lane is empty.
    lanes: HashMap<Source, Lane>,
    /// The sources of whom somebody waits in the order of their turns. Thousands may leave at once, each
    /// from anywhere in the order.
    turns: BTreeMap<u64, Source>,
    /// Turns given so far.
    given: u64,
    /// The same numbers once more in the order of coming, so that the newest is found without a search.
    newest: BTreeMap<u64, Source>,
    /// The sources of whom somebody waits, by how many are in the line and by the number of the newest.
    /// A full line is asked for the last at the pace at which clients come.
    sizes: BTreeMap<(usize, u64), Source>,
}

/// Those of one source.
#[derive(Debug, Default)]
struct Lane {
    turn: u64,
    /// Of those who wait, in the order of coming.
    numbers: VecDeque<u64>,
    /// How many are called and not yet out of the line.
    called: usize,
}

impl Queue {
    /// Puts a client at the end of its source's lane in its class.
    pub fn join(&mut self, class: Priority, source: IpAddr) -> Ticket {
        self.joined += 1;
        let ticket = Ticket { source: Source::from(source), class, number: self.joined };
        self.rank(class).join(ticket);
        ticket
    }

    /// Calls the next: of the highest class that waits, the first of the source whose turn it is. It counts
    /// among those of its source until [`Queue::end_call`].
    pub fn call(&mut self) -> Option<Ticket> {
        let class = self.next_class()?;
        let (source, number) = self.rank(class).call()?;
        Some(Ticket { source, class, number })
    }

    /// One who was called is out of the line. To be said once of each.
    pub fn end_call(&mut self, ticket: Ticket) {
        self.rank(ticket.class).change(ticket.source, |lane| lane.called = lane.called.saturating_sub(1));
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

    /// Takes out the newest who waits of the source that has the most of that class in the line, for a
    /// client of a source that has fewer, also when it has come: else two would go on changing places.
    /// Of sources that have as many it is the newest of all.
    pub fn drop_greediest(&mut self, class: Priority, newcomer: IpAddr) -> Option<Ticket> {
        let rank = self.rank(class);
        let own = rank.lanes.get(&Source::from(newcomer)).map_or(0, Lane::size);
        let ((most, number), source) = rank.sizes.last_key_value().map(|(key, source)| (*key, *source))?;
        let ticket = Ticket { source, class, number };
        (most > own + 1 && self.leave(ticket)).then_some(ticket)
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
        let is_first = self.change(ticket.source, |lane| {
            lane.numbers.push_back(ticket.number);
            lane.numbers.len() == 1
        });
        if is_first {
            self.give_turn(ticket.source);
        }
    }

    fn give_turn(&mut self, source: Source) {
        self.given += 1;
        self.turns.insert(self.given, source);
        if let Some(lane) = self.lanes.get_mut(&source) {
            lane.turn = self.given;
        }
    }

    fn call(&mut self) -> Option<(Source, u64)> {
        let (_, source) = self.turns.pop_first()?;
        let (number, is_last) = self.change(source, |lane| {
            lane.called += 1;
            (lane.numbers.pop_front(), lane.numbers.is_empty())
        });
        if !is_last {
            self.give_turn(source);
        }
        self.newest.remove(&number?);
        number.map(|number| (source, number))
    }

    fn leave(&mut self, source: Source, number: u64) -> bool {
        if self.newest.remove(&number).is_none() {
            return false;
        }
        let turn = self.change(source, |lane| {
            if let Ok(place) = lane.numbers.binary_search(&number) {
                lane.numbers.remove(place);
            }
            lane.numbers.is_empty().then_some(lane.turn)
        });
        turn.map(|turn| self.turns.remove(&turn));
        true
    }

    /// Changes a lane, and with it what is known of its size.
    fn change<T>(&mut self, source: Source, change: impl FnOnce(&mut Lane) -> T) -> T {
        let lane = self.lanes.entry(source).or_default();
        lane.newest().map(|newest| self.sizes.remove(&(lane.size(), newest)));
        let done = change(lane);
        lane.newest().map(|newest| self.sizes.insert((lane.size(), newest), source));
        if lane.size() == 0 {
            self.lanes.remove(&source);
        }
        done
    }
}

impl Lane {
    fn size(&self) -> usize {
        self.numbers.len() + self.called
    }

    /// Of those who wait.
    fn newest(&self) -> Option<u64> {
        self.numbers.back().copied()
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
        assert!(!queue.leave(tickets[0]));
        assert_eq!((queue.waiting(), queue.call()), (0, None));
    }

    #[test]
    fn who_has_the_most_gives_the_newest_place_to_who_has_fewer_until_they_have_as_many() {
        let mut queue = Queue::default();
        let tickets: Vec<_> = (0..4).map(|_| queue.join(Priority::default(), source(1))).collect();
        assert_eq!(queue.call(), Some(tickets[0]), "and counts");
        assert_eq!(queue.drop_greediest(Priority::Low, source(2)), None, "nobody of that class waits");
        let put_out = |queue: &mut Queue, host| {
            let out = queue.drop_greediest(Priority::default(), source(host));
            if out.is_some() {
                queue.join(Priority::default(), source(host));
            }
            out
        };
        assert_eq!(put_out(&mut queue, 1), None);
        assert_eq!(put_out(&mut queue, 2), Some(tickets[3]));
        assert_eq!(put_out(&mut queue, 2), Some(tickets[2]));
        assert_eq!(put_out(&mut queue, 2), None, "they are two and two");
        assert_eq!(put_out(&mut queue, 3).map(|out| out.number), Some(6), "the newest of both");
        queue.end_call(tickets[0]);
        assert_eq!(put_out(&mut queue, 4), None, "nobody has two");
        assert_eq!(called(&mut queue), [2, 5, 7]);
    }

    #[test]
    fn who_is_called_already_keeps_his_place() {
        let mut queue = Queue::default();
        (0..3).for_each(|_| _ = queue.join(Priority::default(), source(1)));
        let waits = queue.join(Priority::default(), source(2));
        let calls: Vec<_> = (0..4).map_while(|_| queue.call()).filter(|ticket| *ticket != waits).collect();
        assert_eq!(queue.drop_greediest(Priority::default(), source(3)), None);
        calls.into_iter().for_each(|ticket| queue.end_call(ticket));
        queue.end_call(waits);
        assert!(queue.ranks[Priority::default().index()].lanes.is_empty(), "nothing is kept of who is gone");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join(Priority, u8),
        Call,
        EndCall,
        DropNewest,
        DropGreediest(Priority, u8),
        /// That of the clients that wait.
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (prop::sample::select(Priority::ALL), 0_u8..5).prop_map(|(class, host)| Step::Join(class, host)),
            3 => Just(Step::Call),
            2 => Just(Step::EndCall),
            1 => Just(Step::DropNewest),
            2 => (prop::sample::select(Priority::ALL), 0_u8..5)
                .prop_map(|(class, host)| Step::DropGreediest(class, host)),
            1 => (0_usize..50).prop_map(Step::Leave),
        ]
    }

    proptest! {
        /// Whoever is called is of the highest class that waits and the oldest of its source, everybody is
        /// called once, and between two calls of a source every other of its class that waited at the
        /// first has been called. Whoever has to go is the newest of the lowest class, or of the source that
        /// has more than another.
        #[test]
        fn everybody_has_a_turn_and_no_source_two_of_them(steps in prop::collection::vec(step(), 0..200)) {
            let mut queue = Queue::default();
            type Lane = (Priority, u8);
            let mut waiting: Vec<(Lane, Ticket)> = Vec::new();
            let mut calls: VecDeque<(Lane, Ticket)> = VecDeque::new();
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
                        prop_assert!(queue.leave(ticket) && !queue.leave(ticket));
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
                    Step::EndCall => {
                        if let Some((_, ticket)) = calls.pop_front() {
                            queue.end_call(ticket);
                        }
                    }
                    Step::DropGreediest(class, host) => {
                        let all = || waiting.iter().chain(&calls).map(|(lane, _)| *lane);
                        let size = |lane: Lane| all().filter(|other| *other == lane).count();
                        let of_class = waiting.iter().filter(|((other, _), _)| *other == class);
                        let most = of_class.max_by_key(|(lane, one)| (size(*lane), one.number)).copied();
                        let most = most.filter(|(lane, _)| size(*lane) > size((class, host)) + 1);
                        prop_assert_eq!(queue.drop_greediest(class, source(host)), most.map(|(_, out)| out));
                        if let Some((lane, ticket)) = most {
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
                        calls.push_back((lane, ticket));
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
