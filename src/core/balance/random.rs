//! By lot, each server with the chance of its weight.
//!
//! Pure: the randomness is an argument, and one random number decides one pick. The first draw
//! is a binary search over all servers; only when it meets a closed one are the open ones
//! counted, and the second draw is exact among them. Both together give each open server just
//! its weight among the open ones, without drawing again and again until one is open.

use super::{Choice, Field, Ground, Member, below, electable, mix};

/// Servers laid side by side, each as wide as its weight.
#[derive(Clone, Debug)]
pub struct Wheel(Vec<Sector>);

#[derive(Clone, Copy, Debug)]
struct Sector {
    server: usize,
    weight: u32,
    /// The sum of the weights up to and with this one.
    end: u64,
}

impl Wheel {
    pub fn new(members: &[Member]) -> Self {
        let mut end = 0;
        let sectors = electable(members).map(|(server, weight)| {
            end += u64::from(weight);
            Sector { server, weight, end }
        });
        Wheel(sectors.collect())
    }

    pub fn pick(&self, random: u64, field: &impl Field) -> Option<Choice> {
        let (server, _) = self.draw(random, |server| field.is_open(server))?;
        Some(Choice::of(server, Ground::Random))
    }

    /// A server for which `is_open` holds, and its weight. At the most two looks at each and one more.
    pub fn draw(&self, random: u64, is_open: impl Fn(usize) -> bool) -> Option<(usize, u32)> {
        let total = self.0.last()?.end;
        let point = below(random, total);
        let hit = self.0[self.0.partition_point(|sector| sector.end <= point)];
        if is_open(hit.server) {
            return Some((hit.server, hit.weight));
        }
        // A mixed number, because the one given is known to have met a closed sector.
        self.draw_among_open(mix(random), is_open)
    }

    fn draw_among_open(&self, random: u64, is_open: impl Fn(usize) -> bool) -> Option<(usize, u32)> {
        let open = || self.0.iter().filter(|sector| is_open(sector.server));
        let total = open().map(|sector| u64::from(sector.weight)).sum();
        let mut left = below(random, total);
        let mut last = None;
        for sector in open() {
            last = Some((sector.server, sector.weight));
            if left < u64::from(sector.weight) {
                break;
            }
            left -= u64::from(sector.weight);
        }
        last // the last open one, should a server have closed between the count and the draw
    }
}
