//! What happens to one connection: a function of the seed and of the connection's number.
//!
//! The number is in the addresses (127.1.0.0 and on), so the client, the server and the relay
//! between them play the same script without telling each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::net::Side;

/// Address of connection 0; each further one has the next.
const FIRST: u32 = u32::from_be_bytes([127, 1, 0, 0]);

/// What a side says that does not read.
const QUIET: usize = 10_000;

#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) number: u32,
    pub(super) scene: Scene,
    pub(super) fate: Fate,
    /// Pause between the scene being set and what ends it.
    pub(super) pause: Pause,
    /// The relay's task watches its client while it dials, as `data/search.rs` does.
    pub(super) is_watched: bool,
    /// The relay is held back again and again.
    pub(super) is_braked: bool,
    /// The relay's task closes what it gives up cleanly, or drops it.
    pub(super) is_closed: bool,
    /// Bytes that each side says at the most.
    pub(super) lengths: [usize; 2],
    /// Bytes that a side says before it waits for them to be heard.
    pub(super) window: usize,
}

/// Where a connection is when its fate comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scene {
    /// Taken, and nobody has begun to serve it.
    Accepted,
    /// On the way to a server, which may not answer at all.
    Dialling { is_answered: bool },
    /// Messages one at a time, in both directions.
    Messages,
    /// As much as goes, in both directions.
    Bulk,
    /// The same, and that side does not read.
    Stuck(Side),
    /// That side has said its last, and the other goes on.
    HalfClosed(Side),
    /// Both sides say their last.
    Ending,
    /// The client has reset, and the relay is about to end.
    Failing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Lives to its clean end, and every byte is looked at.
    Kept,
    /// Its future is dropped.
    Dropped,
    /// Its peers leave.
    Left { client: Option<Leave>, server: Option<Leave> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Reset,
    Close,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Pause {
    /// So many times the task is polled.
    Polls(u8),
    For(Duration),
}

impl Script {
    /// Two thirds of all connections are torn down.
    pub(super) fn of(seed: u64, number: u32) -> Script {
        let mut random = random(seed, number);
        match random.u8(..3) {
            0 => Script::kept(seed, number),
            1 => Script::new(&mut random, number, Fate::Dropped),
            _ => {
                let leave = |random: &mut fastrand::Rng| match random.bool() {
                    true => Leave::Reset,
                    false => Leave::Close,
                };
                let one = leave(&mut random);
                let (client, server) = match random.u8(..3) {
                    0 => (Some(one), None),
                    1 => (None, Some(one)),
                    _ => (Some(one), Some(leave(&mut random))),
                };
                Script::new(&mut random, number, Fate::Left { client, server })
            }
        }
    }

    /// A connection that must be relayed to the last byte.
    pub(super) fn kept(seed: u64, number: u32) -> Script {
        let mut random = random(seed, number);
        let mut script = Script::new(&mut random, number, Fate::Kept);
        script.scene = if random.bool() { Scene::Messages } else { Scene::Bulk };
        let most = if script.scene == Scene::Messages { 20_000 } else { 1_500_000 };
        script.lengths = [random.usize(..most), random.usize(..most)];
        script
    }

    fn new(random: &mut fastrand::Rng, number: u32, fate: Fate) -> Script {
        let side = if random.bool() { Side::Client } else { Side::Server };
        let scene = match random.u8(..9) {
            0 => Scene::Accepted,
            1 => Scene::Dialling { is_answered: true },
            2 => Scene::Dialling { is_answered: false },
            3 => Scene::Messages,
            4 => Scene::Bulk,
            5 => Scene::Stuck(side),
            6 => Scene::HalfClosed(side),
            7 => Scene::Failing,
            _ => Scene::Ending,
        };
        let pause = match random.bool() {
            true => Pause::Polls(random.u8(..4)),
            false => Pause::For(Duration::from_micros(random.u64(..2000))),
        };
        let lengths = match scene {
            // Its own words would keep the other side busy.
            Scene::Stuck(Side::Client) => [QUIET, usize::MAX],
            Scene::Stuck(Side::Server) => [usize::MAX, QUIET],
            Scene::Ending => [random.usize(..200_000), random.usize(..200_000)],
            _ => [usize::MAX; 2],
        };
        let window = random.usize(16..2000);
        let (is_watched, is_closed, is_braked) = (random.bool(), random.bool(), random.u8(..3) == 0);
        Script { number, scene, fate, pause, is_watched, is_braked, is_closed, lengths, window }
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(FIRST + self.number)
    }

    /// The number of the connection that comes from this address.
    pub(super) fn number_of(client: SocketAddr) -> u32 {
        match client {
            SocketAddr::V4(client) => u32::from(*client.ip()) - FIRST,
            SocketAddr::V6(_) => unreachable!("all of it is IPv4"),
        }
    }

    pub(super) fn has_server(&self) -> bool {
        !matches!(self.scene, Scene::Accepted | Scene::Dialling { is_answered: false })
    }
}

fn random(seed: u64, number: u32) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed ^ (u64::from(number) << 32))
}
