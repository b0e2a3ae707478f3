//! Relays that are held back: how fast bytes may move is for others to say, here it is kept to.
//!
//! A direction asks before each read and reads no more than it was granted. One that must wait reads
//! nothing: its sender fills the kernel's buffers and stops, which is the back-pressure. Meanwhile it
//! holds no buffer and no pipe, only one entry among the [`Holds`] of its worker, whose first one the loop
//! waits for. A relay without a brake knows nothing of this.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Instant;

use super::pump::{BUDGET, Budget, Halt, Pump, Tools};
use super::relay::Side;
use super::sock::{Ready, Socket};
use crate::sys::socket;

/// Says how many bytes may be read from a side, and when.
pub trait Brake {
    /// From 1 to `wanted` bytes that may be read from that side now.
    ///
    /// # Errors
    /// When to ask again, later than `now`. Whoever asks earlier hears the same.
    fn ask(&mut self, from: Side, wanted: u64, now: Instant) -> Result<u64, Instant>;

    /// Of what was granted last, so much has been read, and the rest will not be.
    fn has_read(&mut self, from: Side, bytes: u64);
}

/// A brake, and the directions that it holds back.
pub(super) struct Braked {
    brake: Box<dyn Brake>,
    /// Until when.
    held: [Option<Instant>; 2],
    /// The same, as it stands among the [`Holds`].
    entered: [Option<Instant>; 2],
    /// The server has reset, and for so long what it said before may still be passed on.
    last_words_until: Option<Instant>,
}

impl Braked {
    pub(super) fn new(brake: Box<dyn Brake>) -> Box<Self> {
        Box::new(Braked { brake, held: [None; 2], entered: [None; 2], last_words_until: None })
    }

    /// Until when the last of its directions is held back; `None`: neither is.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held.into_iter().flatten().max()
    }

    /// The server is dead: only what it said is still passed on, and only until then.
    pub(super) fn hear_out(&mut self, until: Instant) {
        self.last_words_until = Some(until);
        self.held[Side::Client as usize] = None; // nobody looks at that direction any more
    }

    pub(super) fn last_words_until(&self) -> Option<Instant> {
        self.last_words_until
    }

    pub(super) fn is_held(&self, from: Side) -> bool {
        self.held[from as usize].is_some()
    }

    /// Its entry for that side has been taken out, for its time had come.
    pub(super) fn go_on(&mut self, from: Side) {
        self.entered[from as usize] = None;
    }

    /// Lets a direction go as far as it can without waiting, and as far as it may.
    pub(super) fn run(
        &mut self,
        from: Side,
        pump: &mut Pump,
        [source, sink]: [&mut Socket; 2],
        tools: &mut Tools,
        moved: &mut u64,
    ) -> Halt {
        self.held[from as usize] = None;
        let (mut granted, mut read) = (0, 0);
        // What the last look found there.
        let mut seen = usize::MAX;
        loop {
            // With nothing granted it goes as far as the next read.
            let mut budget = Budget::exactly(granted);
            let halt = pump.run(source, sink, tools, &mut budget, moved);
            if granted > 0 {
                self.brake.has_read(from, (granted - budget.left()) as u64);
                read += granted - budget.left();
            }
            if !matches!(halt, Halt::Tired) || read >= BUDGET {
                return halt;
            }
            // Of what was seen and is read, nothing is left: no need to look.
            seen = if granted == seen { 0 } else { socket::unread(source.fd.as_fd()) };
            let wanted = match judge(seen, &mut source.ready) {
                Unread::Nothing => return Halt::Waiting { for_sink: false },
                Unread::End => return pump.run(source, sink, tools, &mut Budget::exactly(1), moved),
                Unread::Bytes(bytes) => bytes.min(BUDGET - read),
            };
            match self.brake.ask(from, wanted as u64, tools.now) {
                Ok(bytes) => granted = usize::try_from(bytes).unwrap_or(wanted).clamp(1, wanted),
                Err(until) => {
                    self.held[from as usize] = Some(until);
                    return Halt::Held;
                }
            }
        }
    }
}

/// What a read would find.
enum Unread {
    Nothing,
    Bytes(usize),
    /// An end or an error, which need no leave.
    End,
}

/// Whoever has nothing to move is to hold up nobody, and is not held back: hence a look before it asks.
fn judge(unread: usize, ready: &mut Ready) -> Unread {
    match unread {
        // There may be more behind an urgent mark, and only a read gets past it.
        0 if ready.has_urgent => Unread::Bytes(1),
        // Nothing comes after either. A look by a read would take the error out of the socket.
        0 if ready.is_read_closed || ready.is_broken => Unread::End,
        0 => {
            ready.to_read = false; // what has come since comes with an event
            Unread::Nothing
        }
        bytes => Unread::Bytes(bytes),
    }
}

/// The directions of a worker's relays that are held back, the next to go on first: at most two for each
/// relay with a brake.
#[derive(Default)]
pub(super) struct Holds(BTreeSet<(Instant, usize, Side)>);

impl Holds {
    /// Brings the entries of a relay up to what its brake has said.
    pub(super) fn enter(&mut self, relay: usize, braked: Option<&mut Braked>) {
        let Some(braked) = braked else { return };
        for side in [Side::Client, Side::Server] {
            let (held, entered) = (braked.held[side as usize], &mut braked.entered[side as usize]);
            if held != *entered {
                if let Some(at) = std::mem::replace(entered, held) {
                    self.0.remove(&(at, relay, side));
                }
                self.0.extend(held.map(|at| (at, relay, side)));
            }
        }
    }

    /// Takes out the entries of a relay that ends.
    pub(super) fn strike(&mut self, relay: usize, braked: Option<&mut Braked>) {
        let Some(braked) = braked else { return };
        braked.held = [None; 2];
        self.enter(relay, Some(braked));
    }

    /// When the next direction may go on.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, ..)| *at)
    }

    /// Takes out a direction that may go on by now; its relay is to be told, by [`Braked::go_on`].
    pub(super) fn due(&mut self, now: Instant) -> Option<(usize, Side)> {
        let (at, relay, side) = *self.0.first()?;
        (at <= now).then(|| {
            self.0.pop_first();
            (relay, side)
        })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
