//! What the checks of each server have found: counts for the metrics, the last result for the API.
//!
//! Written by `prober.rs`, read by the views. Decides nothing: up or down is `core/health.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::publisher::ServerKey;
use crate::telemetry::counters::Count;
use crate::telemetry::histogram::Histogram;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Ok,
    /// The server failed it; one clause, such as "connection refused".
    Failed(String),
    /// Says nothing of the server: we were late, or out of descriptors or ports ourselves.
    Void(String),
}

/// The last check of a server; one that was void only where none has counted yet.
#[derive(Clone, Debug)]
pub struct Last {
    pub at: Timestamp,
    pub found: Found,
    pub took: Duration,
}

impl Last {
    fn is_void(&self) -> bool {
        matches!(self.found, Found::Void(_))
    }
}

/// The checks of one server. Its prober is the only writer.
#[derive(Debug, Default)]
pub struct Checked {
    pub ok: Count,
    pub failed: Count,
    pub void: Count,
    /// Of them all, those that waited longer than their interval for their turn.
    pub delayed: Count,
    /// How often the server went up or down.
    pub changes: Count,
    pub took: Histogram,
    last: Mutex<Option<Last>>,
}

impl Checked {
    pub fn last(&self) -> Option<Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn note(&self, found: Found, took: Duration) {
        match &found {
            Found::Ok => self.ok.add(1),
            Found::Failed(_) => self.failed.add(1),
            Found::Void(_) => self.void.add(1),
        }
        if !matches!(found, Found::Void(_)) {
            self.took.observe(took);
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // A void one takes the place of none that said something of the server.
        if last.as_ref().is_none_or(Last::is_void) || !matches!(found, Found::Void(_)) {
            *last = Some(Last { at: Timestamp::now(), found, took });
        }
    }
}

/// The checks of all servers that are checked: as many as the plan names.
#[derive(Debug, Default)]
pub struct Checks(Mutex<BTreeMap<ServerKey, Arc<Checked>>>);

impl Checks {
    /// The entry of that server, made where it is missing.
    pub fn entry(&self, key: &ServerKey) -> Arc<Checked> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(entries.entry(key.clone()).or_default())
    }

    pub fn get(&self, key: &ServerKey) -> Option<Arc<Checked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub fn forget(&self, key: &ServerKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_void_result_hides_none_that_counted() {
        let checked = Checked::default();
        let last = || checked.last().expect("a result").found;
        let (void, failed) = (Found::Void("late".into()), Found::Failed("refused".into()));
        for (found, shown) in [(&void, &void), (&failed, &failed), (&void, &failed), (&Found::Ok, &Found::Ok)]
        {
            checked.note(found.clone(), Duration::ZERO);
            assert_eq!(last(), *shown);
        }
        assert_eq!(checked.void.get(), 2);
    }
}
