//! The daemon's own sources, compiled with the model checker's atomics and locks.
//!
//! Nothing is copied: the files are those that are shipped. What they name of planes in which threads
//! share nothing (the configuration, the snapshot) stands here as a name and no more.
//!
//! Never compiled as a test of its own: the sources' tests run with the daemon, on std's threads.
#![cfg(not(test))]

#[path = "../../../src"]
mod daemon {
    pub mod core;
    pub mod live;
    pub mod orders;
    pub mod sync;

    /// Where clients are left for another worker.
    pub mod data {
        pub mod desk;
    }

    /// Whether a task is to be polled.
    pub mod net {
        pub mod queued;
    }

    /// Counters, and the ring before the access log.
    pub mod telemetry {
        pub mod counters;
        pub mod histogram;
        pub mod record;
        pub mod stats;

        /// The ring, and the writer's end of it.
        pub mod access_log {
            pub mod ring;

            /// As in `src/telemetry/access_log.rs`.
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum When {
                Never,
                Always,
                Abnormal,
            }

            /// A look of the writer's thread: how many records it took out.
            pub fn drain(ring: &ring::Ring) -> usize {
                let mut taken = 0;
                ring.drain(|records| taken += records.len());
                taken
            }

            /// What it does when it has found none.
            pub fn park_writer(ring: &ring::Ring) {
                ring.park_writer();
            }
        }
    }
}

pub use daemon::{core, data, live, net, orders, sync, telemetry};

/// What orders carry. Nothing is asked of it but to be carried.
pub mod snapshot {
    #[derive(Debug)]
    pub struct Snapshot;
}

/// What `src/sync.rs` turns to.
pub mod checked {
    pub use loom::sync::{Mutex, MutexGuard, atomic};

    /// Parking, with a condition variable: loom's own forgets an unpark that comes while the thread
    /// waits for a lock, which no real thread does.
    pub mod thread {
        use std::sync::Arc;

        use loom::sync::{Condvar, Mutex};

        #[derive(Clone, Debug)]
        pub struct Thread(Arc<(Mutex<bool>, Condvar)>);

        loom::thread_local! {
            static CURRENT: Thread = Thread(Arc::new((Mutex::new(false), Condvar::new())));
        }

        pub fn current() -> Thread {
            CURRENT.with(Clone::clone)
        }

        pub fn park() {
            let Thread(own) = current();
            let (token, arrived) = &*own;
            let mut token = token.lock().expect("whole");
            while !*token {
                token = arrived.wait(token).expect("whole");
            }
            *token = false;
        }

        impl Thread {
            pub fn unpark(&self) {
                let (token, arrived) = &*self.0;
                *token.lock().expect("whole") = true;
                arrived.notify_one();
            }
        }
    }
}
