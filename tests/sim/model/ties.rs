//! Who is known to whom: a list, the youngest last, in as many parts as the product keeps.

use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Ties {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Default)]
struct Part {
    most: usize,
    /// Client, server, last use.
    known: Vec<(u128, u64, Instant)>,
}

impl Ties {
    pub fn new(parts: usize) -> Self {
        Ties { parts: vec![Part::default(); parts] }
    }

    /// As even as can be over the parts.
    pub fn set_limit(&mut self, most: usize) {
        let parts = self.parts.len();
        for (number, part) in self.parts.iter_mut().enumerate() {
            part.most = most / parts + usize::from(number < most % parts);
            let too_many = part.known.len().saturating_sub(part.most);
            part.known.drain(..too_many);
        }
    }

    pub fn server_of(&mut self, part: usize, client: u128, now: Instant, ttl: Duration) -> Option<u64> {
        let part = &mut self.parts[part];
        part.known.retain(|(.., used)| now - *used < ttl);
        part.known.iter().find(|(other, ..)| *other == client).map(|(_, server, _)| *server)
    }

    pub fn tie(&mut self, part: usize, client: u128, server: u64, now: Instant) {
        let part = &mut self.parts[part];
        part.known.retain(|(other, ..)| *other != client);
        if part.known.len() >= part.most && part.most > 0 {
            part.known.remove(0);
        }
        if part.most > 0 {
            part.known.push((client, server, now));
        }
    }

    pub fn count(&mut self, now: Instant, ttl: Duration) -> usize {
        let parts = self.parts.iter_mut();
        parts.for_each(|part| part.known.retain(|(.., used)| now - *used < ttl));
        self.parts.iter().map(|part| part.known.len()).sum()
    }
}
