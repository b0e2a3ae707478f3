//! Memory for the rests of messages, kept for the next rest.
//!
//! A sink that takes a part of a message leaves a rest, and a slow reader leaves one with every
//! message: it is not to cost an allocation each time. What is found here holds old bytes;
//! whoever takes it clears it.

/// Of each kind and worker. More slow readers at once than this allocate for themselves; a rest is
/// 256 KiB at the most, so that 2 MiB stay with a worker whose slow readers have gone.
const SPARES_MAX: usize = 8;

#[derive(Default)]
pub(super) struct Spares<T>(Vec<T>);

impl<T: Default> Spares<T> {
    /// A used one, or a new one.
    pub(super) fn take(&mut self) -> T {
        self.0.pop().unwrap_or_default()
    }

    pub(super) fn keep(&mut self, spare: T) {
        if self.0.len() < SPARES_MAX {
            self.0.push(spare);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_kept_and_no_more() {
        let mut spares = Spares::default();
        (0..2 * SPARES_MAX).for_each(|_| spares.keep(vec![1]));
        let taken = (0..2 * SPARES_MAX).map(|_| spares.take()).filter(|spare| !spare.is_empty()).count();
        assert_eq!(taken, SPARES_MAX);
    }
}
