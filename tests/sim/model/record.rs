//! What a server has done of late, and who of a pool is out.

use std::time::{Duration, Instant};

use tidegate::core::outlier::Rules;

/// "Of late" is at least so long, and less than twice that.
const LATE: Duration = Duration::from_secs(15);

/// The longest ejection, as a multiple of the first.
const TIMES_MAX: u128 = 10;

/// One server's.
#[derive(Clone, Debug, Default)]
pub struct Record {
    rules: Option<Rules>,
    in_a_row: u32,
    /// Since it was out last: when, and whether it failed.
    results: Vec<(Instant, bool)>,
    /// The last time that it was out: until when, and how many times as long as the first time.
    last: Option<(Instant, u128)>,
    pub ejections: u64,
}

/// What a failure may or must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub may: bool,
    pub must: bool,
    /// Until when it would be out.
    pub until: Instant,
}

impl Record {
    pub fn set_rules(&mut self, rules: Option<Rules>) {
        if rules.is_none() {
            *self = Record::default();
        }
        self.rules = rules;
    }

    pub fn is_watched(&self) -> bool {
        self.rules.is_some()
    }

    pub fn is_out(&self, now: Instant) -> bool {
        self.last.is_some_and(|(until, _)| now < until)
    }

    /// `None`: nobody looks.
    pub fn on_result(&mut self, is_good: bool, now: Instant) -> Option<Call> {
        let rules = self.rules?;
        self.in_a_row = if is_good { 0 } else { self.in_a_row + 1 };
        self.results.push((now, !is_good));
        self.results.retain(|(at, _)| now - *at <= 2 * LATE);
        let until = now + rules.eject_for * u32::try_from(self.times(rules, now)).expect("at most ten");
        if is_good || self.is_out(now) {
            return Some(Call { may: false, must: false, until });
        }
        let is_row = self.in_a_row >= rules.consecutive_failures;
        // Wherever the looking back may have begun.
        let begins =
            (0..self.results.len()).filter(|place| *place == 0 || now - self.results[place - 1].0 >= LATE);
        let calls: Vec<bool> = begins.map(|place| much(&self.results[place..], rules)).collect();
        let must = is_row || calls.iter().all(|call| *call);
        Some(Call { may: is_row || calls.contains(&true), must, until })
    }

    pub fn eject(&mut self, until: Instant, now: Instant) {
        let times = self.rules.map_or(0, |rules| self.times(rules, now));
        self.last = Some((until, times));
        self.in_a_row = 0;
        self.results.clear();
        self.ejections += 1;
    }

    /// One more than the last time, less what was quiet since.
    fn times(&self, rules: Rules, now: Instant) -> u128 {
        let Some((until, times)) = self.last else { return 1 };
        let quiet = now.saturating_duration_since(until).as_millis() / rules.eject_for.as_millis();
        (times.saturating_sub(quiet) + 1).min(TIMES_MAX)
    }
}

fn much(results: &[(Instant, bool)], rules: Rules) -> bool {
    let failed = results.iter().filter(|(_, failed)| *failed).count();
    results.len() >= rules.min_connections as usize
        && failed as f64 >= rules.failure_ratio * results.len() as f64
}

/// Who of a pool is out, as (server, until).
#[derive(Clone, Debug, Default)]
pub struct Out {
    beds: usize,
    /// Who the pool has. One that it has no more needs no bed: nobody is sent there.
    servers: Vec<u64>,
    inside: Vec<(u64, Instant)>,
}

impl Out {
    pub fn fit(&mut self, servers: &[u64], share: f64) {
        // In tenths, so that no rounding is in question; and one stays.
        let tenths = (share * 10.0).round() as usize;
        self.beds = (servers.len() * tenths / 10).min(servers.len().saturating_sub(1));
        self.inside.retain(|(server, _)| servers.contains(server));
        self.servers = servers.to_vec();
    }

    pub fn has_bed(&self, server: u64, now: Instant) -> bool {
        let others = self.inside.iter().filter(|(other, until)| now < *until && *other != server);
        others.count() < self.beds && self.servers.contains(&server)
    }

    pub fn take_in(&mut self, server: u64, until: Instant, now: Instant) {
        self.inside.retain(|(other, until)| now < *until && *other != server);
        self.inside.push((server, until));
        assert!(self.inside.len() <= self.beds, "too many of a pool are out");
    }
}
