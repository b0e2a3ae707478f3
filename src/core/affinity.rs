//! Who was served by whom: a bounded table of keys, each with what it was given, for a time.
//!
//! Pure: the time is an argument. A use makes an entry young again, so the order of use is the order
//! of running out too: what has run out stands at the old end, and where there is no room left the
//! entry that was not used for the longest time goes. Every call takes bounded time but for the resizing
//! of the map. The map's own hashing is keyed by std, so that no client can choose where it lands; nothing
//! that is decided here depends on it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::outcome::words;

words! {
    /// What a client is recognised by.
    By { SourceIp = "source-ip" }
}

/// What a connection is recognised by. Only this module's functions make one, so that a kind of key that
/// is added later (a name, a cookie) cannot be taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u128);

/// The bits of an IPv6 address that do not change as its host likes, as in `queue.rs`.
const NETWORK: u128 = (u64::MAX as u128) << 64;

impl Key {
    /// The source address, of IPv6 the 64 bits of its network: a client may take any address in there, and
    /// one alone could fill a table. An IPv4 client of an IPv6 socket has the key of its IPv4 address.
    pub fn source(address: IpAddr) -> Key {
        Key(match address.to_canonical() {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6) & NETWORK,
        })
    }

    /// One of so many parts that a table is kept in. Neighbours are spread; that a client could choose
    /// its part gains it nothing but the company of its own addresses.
    pub fn part(self, parts: usize) -> usize {
        let folded = (self.0 as u64) ^ ((self.0 >> 64) as u64);
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % parts
    }
}

/// No entry.
const NONE: u32 = u32::MAX;

/// Entries in order of use: a doubly linked list through a vector, and a map into it.
#[derive(Debug)]
pub struct Table<V> {
    places: HashMap<Key, u32>,
    entries: Vec<Entry<V>>,
    youngest: u32,
    oldest: u32,
    limit: usize,
    evicted: u64,
}

#[derive(Debug)]
struct Entry<V> {
    key: Key,
    value: V,
    /// Since when it has not been used, on the caller's clock.
    used: Duration,
    younger: u32,
    older: u32,
}

impl<V> Table<V> {
    /// At most `limit` entries; fewer than 2^32.
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(NONE as usize);
        Table { places: HashMap::new(), entries: Vec::new(), youngest: NONE, oldest: NONE, limit, evicted: 0 }
    }

    /// Another limit: the entries that are too many go, the oldest first.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(NONE as usize);
        while self.entries.len() > self.limit {
            self.remove(self.oldest);
        }
        if self.entries.is_empty() {
            // An affinity that was taken out of the configuration holds on to nothing.
            (self.places, self.entries) = (HashMap::new(), Vec::new());
        }
    }

    /// What the key was given less than `ttl` ago. Does not count as a use.
    pub fn get(&mut self, key: Key, now: Duration, ttl: Duration) -> Option<&V> {
        self.expire(now, ttl);
        let place = *self.places.get(&key)?;
        Some(&self.entries[place as usize].value)
    }

    /// The key is given this, from now on for the whole time.
    pub fn set(&mut self, key: Key, value: V, now: Duration, ttl: Duration) {
        self.expire(now, ttl);
        if let Some(place) = self.places.get(&key).copied() {
            let entry = &mut self.entries[place as usize];
            (entry.value, entry.used) = (value, now.max(entry.used));
            self.unlink(place);
            self.link_youngest(place);
            return;
        }
        if self.limit == 0 {
            return;
        }
        if self.entries.len() >= self.limit {
            self.remove(self.oldest);
            self.evicted += 1;
        }
        let place = self.entries.len() as u32; // below the limit, which fits
        // A worker whose clock was read a moment earlier must not break the order.
        let used = self.entries.get(self.youngest as usize).map_or(now, |youngest| now.max(youngest.used));
        self.entries.push(Entry { key, value, used, younger: NONE, older: NONE });
        self.places.insert(key, place);
        self.link_youngest(place);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries that had to go for others before their time.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Drops what has run out. Each entry is dropped once, so it costs each call what it added.
    pub fn expire(&mut self, now: Duration, ttl: Duration) {
        while let Some(oldest) = self.entries.get(self.oldest as usize)
            && now.saturating_sub(oldest.used) >= ttl
        {
            self.remove(self.oldest);
        }
    }

    fn remove(&mut self, place: u32) {
        self.unlink(place);
        let gone = self.entries.swap_remove(place as usize);
        self.places.remove(&gone.key);
        // The last entry has moved into the gap.
        if let Some(moved) = self.entries.get(place as usize) {
            let (key, younger, older) = (moved.key, moved.younger, moved.older);
            self.places.insert(key, place);
            *self.older_of(younger) = place;
            *self.younger_of(older) = place;
        }
    }

    fn unlink(&mut self, place: u32) {
        let Entry { younger, older, .. } = self.entries[place as usize];
        *self.older_of(younger) = older;
        *self.younger_of(older) = younger;
    }

    fn link_youngest(&mut self, place: u32) {
        let before = self.youngest;
        let entry = &mut self.entries[place as usize];
        (entry.younger, entry.older) = (NONE, before);
        *self.younger_of(before) = place;
        self.youngest = place;
    }

    /// The link of that entry to its older neighbour; of no entry, the young end of the list.
    fn older_of(&mut self, place: u32) -> &mut u32 {
        self.entries.get_mut(place as usize).map_or(&mut self.youngest, |entry| &mut entry.older)
    }

    /// The link of that entry to its younger neighbour; of no entry, the old end of the list.
    fn younger_of(&mut self, place: u32) -> &mut u32 {
        self.entries.get_mut(place as usize).map_or(&mut self.oldest, |entry| &mut entry.younger)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn key(number: u8) -> Key {
        Key(u128::from(number))
    }

    #[test]
    fn an_entry_lasts_its_time_to_the_moment_and_each_use_begins_it_anew() {
        let mut table = Table::new(9);
        table.set(key(1), "a", at(0), TTL);
        assert_eq!(table.get(key(1), at(10) - Duration::from_nanos(1), TTL), Some(&"a"));
        table.set(key(1), "a", at(9), TTL);
        assert_eq!(table.get(key(1), at(18), TTL), Some(&"a"));
        assert_eq!(table.get(key(1), at(19), TTL), None);
        assert!(table.is_empty());
    }

    #[test]
    fn a_full_table_forgets_who_has_not_been_there_for_the_longest_time() {
        let mut table = Table::new(2);
        table.set(key(1), "a", at(0), TTL);
        table.set(key(2), "b", at(1), TTL);
        table.set(key(1), "a", at(2), TTL);
        table.set(key(3), "c", at(3), TTL);
        let mut has = |number| table.get(key(number), at(3), TTL).copied();
        assert_eq!([has(1), has(2), has(3)], [Some("a"), None, Some("c")]);
        assert_eq!((table.len(), table.evicted()), (2, 1));
    }

    #[test]
    fn a_lower_limit_keeps_the_youngest_and_none_keeps_nothing() {
        let mut table = Table::new(9);
        (1..=5).for_each(|number| table.set(key(number), number, at(u64::from(number)), TTL));
        table.set_limit(2);
        assert_eq!((table.len(), table.get(key(5), at(5), TTL).copied()), (2, Some(5)));
        table.set_limit(0);
        table.set(key(1), 1, at(6), TTL);
        assert_eq!((table.len(), table.entries.capacity(), table.evicted()), (0, 0, 0));
    }

    #[test]
    fn ipv4_has_one_key_however_it_came() {
        let source = |text: &str| Key::source(text.parse().unwrap());
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("::192.0.2.1"));
    }

    #[test]
    fn an_ipv6_client_is_known_by_its_network_whichever_address_it_takes() {
        let source = |text: &str| Key::source(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:0:0:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }

    /// A list of (key, value, last use), the youngest first: what a table means.
    #[derive(Default)]
    struct Model(Vec<(Key, u8, Duration)>);

    impl Model {
        fn get(&mut self, key: Key, now: Duration) -> Option<u8> {
            self.0.retain(|entry| now - entry.2 < TTL);
            self.0.iter().find(|entry| entry.0 == key).map(|entry| entry.1)
        }
        fn set(&mut self, key: Key, value: u8, now: Duration, limit: usize) {
            self.0.retain(|entry| now - entry.2 < TTL && entry.0 != key);
            self.0.insert(0, (key, value, now));
            self.0.truncate(limit);
        }
    }

    proptest! {
        #[test]
        fn any_history_leaves_what_the_model_says(
            limit in 0_usize..6,
            steps in prop::collection::vec((0_u8..8, any::<bool>(), any::<u8>(), 0_u64..4), 0..200),
        ) {
            let (mut table, mut model, mut now) = (Table::new(limit), Model::default(), at(0));
            for (number, is_set, value, passed) in steps {
                now += at(passed);
                if is_set {
                    table.set(key(number), value, now, TTL);
                    model.set(key(number), value, now, limit);
                }
                prop_assert_eq!(table.get(key(number), now, TTL).copied(), model.get(key(number), now));
                prop_assert_eq!((table.len(), table.places.len()), (model.0.len(), model.0.len()));
            }
            let (mut order, mut place) = (Vec::new(), table.youngest);
            while let Some(entry) = table.entries.get(place as usize) {
                order.push((entry.key, entry.value, entry.used));
                place = entry.older;
            }
            prop_assert_eq!(order, model.0);
        }
    }

    #[test]
    fn clients_are_spread_over_the_parts_whichever_bits_they_differ_in() {
        let v6 = |bits: u128| IpAddr::V6(bits.into());
        let of: [fn(u32) -> IpAddr; 2] = [|n| IpAddr::V4(n.into()), |n| IpAddr::V4((n << 16).into())];
        let of = of.into_iter().map(|of| (0..1024).map(of).collect::<Vec<_>>());
        let networks = [64, 80, 96].map(|shift| (0..1024_u128).map(|n| v6(n << shift)).collect());
        for clients in of.chain(networks) {
            let mut counts = [0; 16];
            clients.iter().for_each(|client| counts[Key::source(*client).part(16)] += 1);
            assert!(counts.iter().all(|count| (32..=128).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn a_table_with_an_entry_is_not_empty() {
        let mut table = Table::new(1);
        assert!(table.is_empty());
        table.set(key(1), "a", at(0), TTL);
        assert!(!table.is_empty());
    }
}
