//! What the tests of the running daemon share: ports, processes, the daemon, byte streams.
//!
//! Each test binary takes what it needs of it with `mod support;`. Nothing here asserts a
//! promise of Tidegate: it arranges, waits for the thing itself (never for time to pass), and
//! fails loudly, with the logs, when the thing does not come.

// Each test binary compiles this module for itself and uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod daemon;
pub mod http;
pub mod ports;
pub mod proc;
pub mod record;
pub mod stream;

use std::thread;
use std::time::{Duration, Instant};

pub use daemon::{Daemon, Resources};
pub use ports::{free_port, free_ports, listen};
pub use proc::{Proc, TempDir};

/// How long a thing that should take milliseconds may take on a slow machine with other work to do. Nothing waits
/// for it to run out but a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a thing that cannot be waited for in the kernel.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The first value that `look` finds. Panics, naming `what`, when `patience` has run out.
#[track_caller]
pub fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        thread::sleep(LOOK_EVERY);
    }
}
