//! A worker's stock of pipes. A direction holds one only while bytes are in it.

use std::time::{Duration, Instant};

use crate::sys::pipe::Pipe;

/// Holds a large burst, so that one pair of calls moves much. With 1 MiB bulk costs a third less
/// CPU, but what a stopped reader holds in the kernel grows by 10 MiB for each connection: what
/// is spliced is charged to nobody's receive buffer, and the sender is let on.
pub(super) const PIPE_BYTES: usize = 256 * 1024;

/// A pipe smaller than this moves less in a call than the copy buffer does.
const WORTHWHILE: usize = 64 * 1024;

/// Pipes of one worker at the most, each two descriptors: set aside when the room for
/// connections is computed. A direction that gets none goes on copying.
pub const PIPES_MAX: usize = 128;

/// How long to copy after the kernel had no pipe for us, or only a small one.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Pipes {
    idle: Vec<Pipe>,
    /// Made and not closed: idle or lent.
    made: usize,
    denied_until: Option<Instant>,
}

impl Pipes {
    /// An empty pipe, unless there is none to be had just now.
    pub(super) fn lend(&mut self, now: Instant) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.made >= PIPES_MAX || self.denied_until.is_some_and(|until| now < until) {
            return None;
        }
        match Pipe::new(PIPE_BYTES) {
            Ok(pipe) if pipe.size() >= WORTHWHILE => {
                self.made += 1;
                Some(pipe)
            }
            _ => {
                self.denied_until = Some(now + PAUSE);
                None
            }
        }
    }

    /// Takes an empty pipe back.
    pub(super) fn take_back(&mut self, pipe: Pipe) {
        self.idle.push(pipe);
    }

    /// Closes a pipe that still holds bytes: the next connection must not see them.
    pub(super) fn discard(&mut self, pipe: Pipe) {
        drop(pipe);
        self.made -= 1;
    }
}
