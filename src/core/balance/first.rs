//! The first open server, in the order of the file.
//!
//! Pure. For active and standby: the second server works only while the first is down, full or
//! already tried.

use super::{Choice, Field, Ground, Member, electable};

/// Places in the pool, in order.
#[derive(Clone, Debug)]
pub struct First(Vec<usize>);

impl First {
    pub fn new(members: &[Member]) -> Self {
        First(electable(members).map(|(place, _)| place).collect())
    }

    /// At the most one look at each server.
    pub fn pick(&self, field: &impl Field) -> Option<Choice> {
        let server = self.0.iter().copied().find(|server| field.is_open(*server))?;
        Some(Choice::of(server, Ground::First))
    }
}
