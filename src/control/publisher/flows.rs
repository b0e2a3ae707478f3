//! How the connections of each listener to each pool ended, as long as there is that listener.
//!
//! Ends are sums over a process's life. A pool that a reload takes away leaves what was counted of it: whoever adds
//! up the pools of a listener must never see fewer ends than before. A flow that nobody counts on any more is
//! kept as it is, up to a number, and counts on where its pool comes back.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::telemetry::stats::Flow;

/// Flows that are kept although nobody counts on them: about 1 KiB each for every worker. Whoever gives pools
/// new names with every reload loses what is oldest.
const PAST_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Flows(BTreeMap<(String, String), Kept>);

#[derive(Debug)]
struct Kept {
    flow: Arc<Flow>,
    /// The last generation that found it in use.
    used_in: u64,
}

impl Kept {
    fn is_past(&self) -> bool {
        Arc::strong_count(&self.flow) == 1
    }
}

impl Flows {
    /// Of that listener to that pool.
    pub(super) fn of(&mut self, listener: &str, pool: &str, workers: usize) -> Arc<Flow> {
        let new = || Kept {
            flow: Arc::new(Flow::new(listener.to_owned(), pool.to_owned(), workers)),
            used_in: 0, // it is in use when that is looked at
        };
        Arc::clone(&self.0.entry((listener.to_owned(), pool.to_owned())).or_insert_with(new).flow)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Flow>> {
        self.0.values().map(|kept| &kept.flow)
    }

    /// Forgets those of listeners that are gone, and what is beyond [`PAST_MAX`].
    pub(super) fn prune(&mut self, generation: u64, has_listener: impl Fn(&str) -> bool) {
        self.0.retain(|(listener, _), kept| !kept.is_past() || has_listener(listener));
        let mut past = Vec::new();
        for (key, kept) in &mut self.0 {
            if kept.is_past() {
                past.push((kept.used_in, key.clone()));
            } else {
                kept.used_in = generation;
            }
        }
        past.sort_unstable();
        let beyond = past.len().saturating_sub(PAST_MAX);
        past[..beyond].iter().for_each(|(_, key)| _ = self.0.remove(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(flows: &Flows) -> Vec<&str> {
        flows.all().map(|flow| flow.pool.as_str()).collect()
    }

    #[test]
    fn a_flow_stays_as_long_as_its_listener_and_is_the_same_when_its_pool_comes_back() {
        let mut flows = Flows::default();
        let (first, other) = (flows.of("web", "api", 1), flows.of("gone", "api", 1));
        let known = Arc::as_ptr(&first);
        drop(first);
        flows.prune(1, |listener| listener == "web");
        assert_eq!(flows.0.len(), 2, "somebody counts on the other yet");
        drop(other);
        flows.prune(2, |listener| listener == "web");
        assert_eq!(flows.0.keys().map(|key| key.0.as_str()).collect::<Vec<_>>(), ["web"]);
        assert_eq!(Arc::as_ptr(&flows.of("web", "api", 1)), known);
    }

    #[test]
    fn of_too_many_that_nobody_counts_on_the_oldest_go() {
        let mut flows = Flows::default();
        let stays = flows.of("web", "api", 1);
        for generation in 1..=PAST_MAX as u64 + 2 {
            let pool = flows.of("web", &format!("v{}", 5000 - generation), 1);
            flows.prune(generation, |_| true);
            drop(pool);
        }
        assert_eq!(flows.0.len(), 1 + PAST_MAX + 1, "the last one was in use a moment ago");
        flows.prune(u64::MAX, |_| true);
        let left = pools(&flows);
        assert_eq!(left.len(), 1 + PAST_MAX);
        assert!(!left.contains(&"v4999") && !left.contains(&"v4998") && left.contains(&"v4997"));
        assert!(left.contains(&stays.pool.as_str()), "it is in use");
    }
}
