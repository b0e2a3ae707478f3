//! The bandwidth of a listener: shared by its connections on all workers, and kept over all reloads.

use std::time::{Duration, Instant};

use crate::core::throttle::{Bandwidth, Throttle};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Padded, because every worker writes it for every portion.
#[derive(Debug)]
#[repr(align(128))]
pub struct SharedBandwidth {
    /// Moments are told to the throttles as the time since then.
    epoch: Instant,
    /// Bytes in a second; 0 is no limit.
    limit: AtomicU64,
    pub to_server: Throttle,
    pub to_client: Throttle,
}

impl SharedBandwidth {
    pub fn new(epoch: Instant) -> Self {
        let (to_server, to_client) = Default::default();
        SharedBandwidth { epoch, limit: AtomicU64::new(0), to_server, to_client }
    }

    /// Holds from now on, for all connections that ask. A change begins with a full burst, and what was
    /// reserved under another limit counts no more.
    pub fn set(&self, limit: Option<Bandwidth>) {
        let limit = limit.map_or(0, Bandwidth::bytes_per_second);
        if self.limit.swap(limit, Ordering::Relaxed) != limit {
            self.to_server.refill();
            self.to_client.refill();
        }
    }

    pub fn limit(&self) -> Option<Bandwidth> {
        let limit = self.limit.load(Ordering::Relaxed);
        (limit > 0).then(|| Bandwidth::new(limit))
    }

    /// As the throttles are told it.
    pub fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }
}
