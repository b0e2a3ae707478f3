//! A worker's stock of pipes. A direction holds one only while bytes are in it.
//!
//! Most are of a size that a stopped reader may hold. A direction whose reader keeps up gets a large
//! one of a small stock: it moves more in a pair of calls, and seldom holds what it has moved.

use std::time::{Duration, Instant};

use crate::sys::pipe::Pipe;

/// What a reader that stops may hold. With 1 MiB for everybody bulk costs a fifth less CPU, but a
/// stopped reader holds several MiB more in the kernel: what is spliced is charged to nobody's
/// receive buffer, and the sender is let on.
pub(super) const PIPE_BYTES: usize = 256 * 1024;

/// The most that a process without privileges may ask for (`fs.pipe-max-size`, pipe(7)).
const LARGE_PIPE_BYTES: usize = 1024 * 1024;

/// A pipe smaller than this moves less in a call than the copy buffer does.
const WORTHWHILE: usize = 64 * 1024;

/// Pipes of one worker at the most, each two descriptors: set aside when the room for
/// connections is computed. A direction that gets none goes on copying.
pub const PIPES_MAX: usize = 128;

/// Readers that keep up give theirs back at the end of each turn, so a few are enough for many. All
/// of them together stay below `fs.pipe-user-pages-soft` (64 MiB), also with several workers.
const LARGE_PIPES_MAX: usize = 8;

/// How long to do without after the kernel had no pipe for us, or only a small one.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Pipes {
    usual: Stock,
    large: Stock,
}

impl Default for Pipes {
    fn default() -> Self {
        Pipes {
            usual: Stock::new(PIPE_BYTES, WORTHWHILE, PIPES_MAX - LARGE_PIPES_MAX),
            large: Stock::new(LARGE_PIPE_BYTES, LARGE_PIPE_BYTES, LARGE_PIPES_MAX),
        }
    }
}

impl Pipes {
    /// An empty pipe, unless there is none to be had just now; a large one where it is wanted and
    /// there is one.
    pub(super) fn lend(&mut self, wants_large: bool, now: Instant) -> Option<Pipe> {
        let large = if wants_large { self.large.lend(now) } else { None };
        large.or_else(|| self.usual.lend(now))
    }

    /// Takes an empty pipe back.
    pub(super) fn take_back(&mut self, pipe: Pipe) {
        self.stock_of(&pipe).idle.push(pipe);
    }

    /// Closes a pipe that still holds bytes: the next connection must not see them.
    pub(super) fn discard(&mut self, pipe: Pipe) {
        self.stock_of(&pipe).made -= 1;
    }

    /// Pipes that are lent.
    #[cfg(test)]
    pub(super) fn out(&self) -> usize {
        [&self.usual, &self.large].map(|stock| stock.made - stock.idle.len()).iter().sum()
    }

    fn stock_of(&mut self, pipe: &Pipe) -> &mut Stock {
        if pipe.size() >= LARGE_PIPE_BYTES { &mut self.large } else { &mut self.usual }
    }
}

/// Pipes of one size.
struct Stock {
    /// What is asked for, and the least that is of use.
    bytes: usize,
    bytes_min: usize,
    made_max: usize,
    idle: Vec<Pipe>,
    /// Made and not closed: idle or lent.
    made: usize,
    denied_until: Option<Instant>,
}

impl Stock {
    fn new(bytes: usize, bytes_min: usize, made_max: usize) -> Self {
        Stock { bytes, bytes_min, made_max, idle: Vec::new(), made: 0, denied_until: None }
    }

    fn lend(&mut self, now: Instant) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.made >= self.made_max || self.denied_until.is_some_and(|until| now < until) {
            return None;
        }
        match Pipe::new(self.bytes) {
            Ok(pipe) if pipe.size() >= self.bytes_min => {
                self.made += 1;
                Some(pipe)
            }
            _ => {
                self.denied_until = Some(now + PAUSE);
                None
            }
        }
    }
}
