//! The less loaded of two servers drawn by lot.
//!
//! Pure. Almost as even as looking at all of them, at the cost of two looks; and many balancers
//! that look at the same moment do not all run to the same idle server.

use std::cmp::Ordering;

use super::random::Wheel;
use super::{Choice, Field, Ground, Member, mix};

/// What the two are drawn from.
#[derive(Clone, Debug)]
pub struct PowerOfTwo(Wheel);

impl PowerOfTwo {
    pub fn new(members: &[Member]) -> Self {
        PowerOfTwo(Wheel::new(members))
    }

    /// Two draws, which are bounded each.
    pub fn pick(&self, random: u64, field: &impl Field) -> Option<Choice> {
        let first = self.0.draw(random, |server| field.is_open(server))?;
        // Mixed twice: the first draw may have used up the first mixing.
        let again = mix(mix(random));
        let second = self.0.draw(again, |server| server != first.0 && field.is_open(server));

        let load = |(server, weight)| field.load(server, weight);
        let own = load(first);
        let Some(second) = second else {
            return Some(Choice::of(first.0, Ground::PowerOfTwo { own, other: None }));
        };
        let other = load(second);
        // On a tie the first draw stands: it came by weight.
        Some(match other.compare(&own) {
            Ordering::Less => Choice::of(second.0, Ground::PowerOfTwo { own: other, other: Some(own) }),
            _ => Choice::of(first.0, Ground::PowerOfTwo { own, other: Some(other) }),
        })
    }
}
