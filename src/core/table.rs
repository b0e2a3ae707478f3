//! How many connections each source has open.
//!
//! Pure. An entry is there while a connection is, so the table is never larger than the number of open
//! connections, which `max_connections` bounds: it cannot be full. A sorted map and no hash, so that no
//! choice of addresses makes it slow.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::prefix::Prefix;

/// Open connections by source. Who shares it between threads, and how, is `live/gate.rs`.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<Prefix, usize>);

impl Table {
    /// One more connection of that source; says no, and changes nothing, where it has `limit`.
    #[must_use]
    pub fn take(&mut self, source: Prefix, limit: usize) -> bool {
        match self.0.entry(source) {
            Entry::Occupied(entry) if *entry.get() >= limit => false,
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += 1;
                true
            }
            Entry::Vacant(_) if limit == 0 => false,
            Entry::Vacant(entry) => {
                entry.insert(1);
                true
            }
        }
    }

    /// One less. Only whoever took it may call this; `live/gate.rs` keeps that by its guard.
    pub fn give_back(&mut self, source: Prefix) {
        if let Entry::Occupied(mut entry) = self.0.entry(source) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// Connections of that source.
    pub fn open(&self, source: Prefix) -> usize {
        self.0.get(&source).copied().unwrap_or(0)
    }

    /// Sources with open connections.
    pub fn sources(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn source(number: u8) -> Prefix {
        Prefix::of(IpAddr::from([127, 0, 0, number]))
    }

    #[test]
    fn one_source_at_its_limit_is_no_other_source_s_concern() {
        let mut table = Table::default();
        assert!(table.take(source(1), 2) && table.take(source(1), 2));
        assert!(!table.take(source(1), 2));
        assert!(table.take(source(2), 2));
    }

    #[test]
    fn a_smaller_limit_takes_nothing_away() {
        let mut table = Table::default();
        assert!((0..3).all(|_| table.take(source(1), 3)));
        assert!(!table.take(source(1), 1));
        assert_eq!(table.open(source(1)), 3);
    }

    #[test]
    fn a_source_without_connections_leaves_nothing_behind() {
        let mut table = Table::default();
        for number in 0..=255 {
            assert!(table.take(source(number), 1));
        }
        (0..=255).for_each(|number| table.give_back(source(number)));
        assert_eq!(table.sources(), 0);
        table.give_back(source(1)); // nobody holds one
        assert_eq!(table.open(source(1)), 0);
    }

    proptest! {
        #[test]
        fn it_counts_as_a_list_of_connections_would(
            steps in prop::collection::vec((0..4_u8, any::<bool>(), 0..4_usize), 0..80),
        ) {
            let (mut table, mut open) = (Table::default(), Vec::new());
            for (number, is_arrival, limit) in steps {
                let has = open.iter().filter(|held| **held == number).count();
                if is_arrival {
                    prop_assert_eq!(table.take(source(number), limit), has < limit);
                    if has < limit {
                        open.push(number);
                    }
                } else if let Some(place) = open.iter().position(|held| *held == number) {
                    open.swap_remove(place);
                    table.give_back(source(number));
                }
                let distinct = (0..4).filter(|number| open.contains(number)).count();
                prop_assert_eq!(table.sources(), distinct);
            }
        }
    }
}
