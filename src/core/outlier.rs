//! Outlier detection: judges a server by the traffic that it carries, and takes it out for a time.
//!
//! Pure. Results go in one by one, and whether a server stands out comes out; a [`Ward`] says
//! whether the pool can spare it. Each ejection lasts longer than the one before, and each
//! quiet while after one shortens the next. Probing is `health.rs`.

use std::fmt;
use std::time::{Duration, Instant};

/// What makes a server stand out, and what follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Failures in a row; at least 1.
    pub consecutive_failures: u32,
    /// Share of connections that failed of late, 0.0 to 1.0, where there were `min_connections`.
    pub failure_ratio: f64,
    pub min_connections: u32,
    /// How long the first ejection lasts.
    pub eject_for: Duration,
    /// Share of the pool's servers that may be out at once.
    pub max_ejected: f64,
}

/// "Of late" is the half under way and the one before: from 15 to 30 seconds.
const HALF: Duration = Duration::from_secs(15);

/// An ejection lasts at most so many times `eject_for`: a server that was repaired gets its chance.
const TIMES_MAX: u32 = 10;

/// Why a server was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    InARow(u32),
    Share { failed: u32, of: u32 },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::InARow(failures) => write!(f, "{failures} failures in a row"),
            Cause::Share { failed, of } => write!(f, "{failed} of {of} connections failed"),
        }
    }
}

/// A server's place out of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    pub until: Instant,
    /// From its begin to its end.
    pub lasts: Duration,
    pub cause: Cause,
    /// In a row, with little time between them.
    times: u32,
}

/// One server's record.
#[derive(Clone, Debug)]
pub struct Outlier {
    rules: Rules,
    in_a_row: u32,
    /// The half under way, the one before.
    halves: [Tally; 2],
    /// When the half under way began.
    begun: Option<Instant>,
    last: Option<Ejection>,
    ejections: u64,
    /// Ejections that it called for and that its pool could not spare it for, and why the last of them.
    refused: (u64, Option<Cause>),
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    failed: u32,
    of: u32,
}

impl Outlier {
    pub fn new(rules: Rules) -> Self {
        let halves = [Tally::default(); 2];
        Outlier { rules, in_a_row: 0, halves, begun: None, last: None, ejections: 0, refused: (0, None) }
    }

    /// New rules; what is known, and an ejection under way, stays.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    pub fn on_success(&mut self, now: Instant) {
        self.in_a_row = 0;
        self.count(now, 0);
    }

    /// The ejection that this failure calls for, which begins with [`Self::eject`].
    pub fn on_failure(&mut self, now: Instant) -> Option<Ejection> {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.count(now, 1);
        if self.ejected(now).is_some() {
            return None; // it began before the server was out, and tells nothing new
        }
        let cause = self.cause()?;
        let times = self.times(now);
        let lasts = self.rules.eject_for * times;
        Some(Ejection { until: now + lasts, lasts, cause, times })
    }

    /// It is out from here on, and its record begins anew when it is back.
    pub fn eject(&mut self, ejection: Ejection) {
        self.last = Some(ejection);
        self.ejections += 1;
        self.in_a_row = 0;
        self.halves = [Tally::default(); 2];
    }

    /// It stays in, since too many are out.
    pub fn refuse(&mut self, ejection: Ejection) {
        self.refused = (self.refused.0 + 1, Some(ejection.cause));
    }

    /// The ejection under way ends early.
    pub fn pardon(&mut self) {
        self.last = None;
    }

    /// The ejection under way.
    pub fn ejected(&self, now: Instant) -> Option<Ejection> {
        self.last.filter(|last| now < last.until)
    }

    /// The ejection under way, or the last one that was.
    pub fn last(&self) -> Option<Ejection> {
        self.last
    }

    /// How often it stayed in although it stood out, and why it did the last time.
    pub fn refused(&self) -> (u64, Option<Cause>) {
        self.refused
    }

    /// How often it was ejected so far.
    pub fn ejections(&self) -> u64 {
        self.ejections
    }

    fn cause(&self) -> Option<Cause> {
        if self.in_a_row >= self.rules.consecutive_failures {
            return Some(Cause::InARow(self.in_a_row));
        }
        let [now, before] = self.halves;
        let (failed, of) = (now.failed.saturating_add(before.failed), now.of.saturating_add(before.of));
        let is_much = f64::from(failed) >= self.rules.failure_ratio * f64::from(of);
        (of >= self.rules.min_connections && is_much).then_some(Cause::Share { failed, of })
    }

    /// How many times `eject_for` the next ejection lasts: once more than the last one, less once for
    /// each `eject_for` that the server has been back since.
    fn times(&self, now: Instant) -> u32 {
        let Some(last) = self.last else { return 1 };
        let quiet = now.saturating_duration_since(last.until).as_millis();
        let paid = quiet / self.rules.eject_for.as_millis().max(1);
        let owed = last.times.saturating_sub(u32::try_from(paid).unwrap_or(u32::MAX));
        (owed + 1).min(TIMES_MAX)
    }

    fn count(&mut self, now: Instant, failed: u32) {
        let begun = *self.begun.get_or_insert(now);
        let age = now.saturating_duration_since(begun);
        if age >= HALF {
            let before = if age < 2 * HALF { self.halves[0] } else { Tally::default() };
            self.halves = [Tally::default(), before];
            self.begun = Some(if age < 2 * HALF { begun + HALF } else { now });
        }
        let half = &mut self.halves[0];
        half.failed = half.failed.saturating_add(failed);
        half.of = half.of.saturating_add(1);
    }
}

/// Who of a pool is out, and how many may be. At least one server always stays.
#[derive(Clone, Debug, Default)]
pub struct Ward {
    beds: usize,
    /// The pool's servers by number.
    servers: Vec<u64>,
    /// Servers by number, at most as many as there are beds.
    inside: Vec<(u64, Instant)>,
}

impl Ward {
    /// The pool has these servers now, of which that share may be out. Others are forgotten, and
    /// whoever is beyond a smaller share stays out for its time.
    pub fn fit(&mut self, servers: &[u64], max_ejected: f64) {
        self.beds = beds(servers.len(), max_ejected);
        self.servers = servers.to_vec();
        self.inside.retain(|(server, _)| servers.contains(server));
    }

    /// Is it one of the pool's.
    pub fn knows(&self, server: u64) -> bool {
        self.servers.contains(&server)
    }

    pub fn holds(&self, server: u64) -> bool {
        self.inside.iter().any(|(other, _)| *other == server)
    }

    /// Takes a server in, unless that would be one too many. One that the pool has no more needs no bed:
    /// nobody is sent there.
    pub fn admit(&mut self, server: u64, until: Instant, now: Instant) -> bool {
        self.inside.retain(|(other, until)| now < *until && *other != server);
        let has_bed = self.inside.len() < self.beds && self.knows(server);
        if has_bed {
            self.inside.push((server, until));
        }
        has_bed
    }
}

/// How many of so many servers may be out at once.
pub fn beds(servers: usize, max_ejected: f64) -> usize {
    // The share of a whole number of servers may come out a hair below that number.
    let share = (servers as f64 * max_ejected + 1e-9).floor() as usize; // saturates, as casts do
    share.min(servers.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        consecutive_failures: 3,
        failure_ratio: 0.5,
        min_connections: 10,
        eject_for: Duration::from_secs(30),
        max_ejected: 0.5,
    };

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Ejected by failures in a row at that moment; for how long.
    fn ejected(outlier: &mut Outlier, now: Instant) -> Duration {
        let ejection = (0..RULES.consecutive_failures).find_map(|_| outlier.on_failure(now));
        let ejection = ejection.expect("it stands out");
        outlier.eject(ejection);
        ejection.until - now
    }

    #[test]
    fn failures_in_a_row_stand_out_and_one_success_begins_the_count_anew() {
        let (mut outlier, now) = (Outlier::new(RULES), Instant::now());
        assert_eq!([outlier.on_failure(now), outlier.on_failure(now)], [None, None]);
        outlier.on_success(now);
        assert_eq!([outlier.on_failure(now), outlier.on_failure(now)], [None, None]);
        assert_eq!(outlier.on_failure(now).expect("an outlier").cause, Cause::InARow(3));
    }

    #[test]
    fn a_share_of_failures_stands_out_once_there_is_enough_to_judge_by() {
        let (mut outlier, now) = (Outlier::new(RULES), Instant::now());
        for _ in 0..4 {
            outlier.on_success(now);
            assert_eq!(outlier.on_failure(now), None, "fewer than ten tell nothing");
        }
        outlier.on_success(now);
        let found = outlier.on_failure(now).expect("an outlier");
        assert_eq!((found.cause, found.cause.to_string().as_str()), {
            (Cause::Share { failed: 5, of: 10 }, "5 of 10 connections failed")
        });
    }

    #[test]
    fn what_is_long_past_is_not_held_against_a_server() {
        let (mut outlier, begin) = (Outlier::new(RULES), Instant::now());
        for _ in 0..10 {
            outlier.on_failure(begin);
            outlier.on_success(begin);
        }
        for n in 0..40 {
            outlier.on_success(begin + second(20 + n));
        }
        assert_eq!(outlier.on_failure(begin + second(60)), None);
    }

    #[test]
    fn each_ejection_lasts_longer_and_quiet_times_shorten_the_next() {
        let (mut outlier, begin) = (Outlier::new(RULES), Instant::now());
        assert_eq!(ejected(&mut outlier, begin), second(30));
        assert!(
            outlier.ejected(begin + second(29)).is_some() && outlier.ejected(begin + second(30)).is_none()
        );
        assert_eq!(ejected(&mut outlier, begin + second(30)), second(60), "back, and at it again");
        let back = begin + second(90);
        assert_eq!(ejected(&mut outlier, back + second(30)), second(60), "one quiet while is paid");
        assert_eq!(ejected(&mut outlier, back + second(3600)), second(30), "all of them are");
        assert_eq!(outlier.ejections(), 4);
    }

    #[test]
    fn no_ejection_lasts_for_ever() {
        let (mut outlier, mut now) = (Outlier::new(RULES), Instant::now());
        for _ in 0..100 {
            let length = ejected(&mut outlier, now);
            assert!(length <= RULES.eject_for * TIMES_MAX);
            now += length;
        }
    }

    #[test]
    fn what_ends_while_a_server_is_out_tells_nothing_new() {
        let (mut outlier, now) = (Outlier::new(RULES), Instant::now());
        ejected(&mut outlier, now);
        assert!((0..50).all(|_| outlier.on_failure(now + second(1)).is_none()));
    }

    #[test]
    fn shares_of_servers_are_whole_servers_and_one_stays() {
        for (servers, share, out) in [
            (2, 0.5, 1),
            (3, 0.5, 1),
            (10, 0.1, 1),
            (3, 0.1, 0),
            (4, 1.0, 3),
            (1, 1.0, 0),
            (0, 1.0, 0),
            (10, 0.3, 3),
        ] {
            assert_eq!(beds(servers, share), out, "{share} of {servers}");
        }
    }

    #[test]
    fn a_server_that_left_the_pool_takes_no_bed() {
        let (mut ward, now) = (Ward::default(), Instant::now());
        ward.fit(&[1, 2, 3], 0.34);
        assert!(ward.admit(1, now + second(9), now) && !ward.admit(2, now + second(9), now));
        ward.fit(&[2, 3, 4], 0.34);
        assert!(ward.admit(2, now + second(9), now));
    }

    proptest! {
        #[test]
        fn never_more_are_out_than_the_share_and_never_all(
            servers in 1_u64..12,
            share in 0.0..=1.0_f64,
            steps in prop::collection::vec((0_u64..12, 0_u64..40, 1_u64..60), 0..100),
        ) {
            let all: Vec<_> = (0..servers).collect();
            let (mut ward, mut now) = (Ward::default(), Instant::now());
            ward.fit(&all, share);
            let mut out = std::collections::BTreeMap::new();
            for (server, wait, length) in steps {
                now += second(wait);
                out.retain(|_, until| now < *until);
                let server = server % servers;
                if out.contains_key(&server) {
                    continue; // the record of a server that is out calls for nothing
                }
                let is_in = ward.admit(server, now + second(length), now);
                prop_assert_eq!(is_in, out.len() < beds(all.len(), share));
                if is_in {
                    out.insert(server, now + second(length));
                }
                prop_assert!(out.len() as f64 <= servers as f64 * share + 1e-6);
                prop_assert!(out.len() < all.len());
            }
        }

        #[test]
        fn successes_alone_never_stand_out(
            gaps in prop::collection::vec(0_u64..20_000, 0..200),
        ) {
            let (mut outlier, mut now) = (Outlier::new(RULES), Instant::now());
            for gap in gaps {
                now += Duration::from_millis(gap);
                outlier.on_success(now);
                prop_assert!(outlier.ejected(now).is_none());
            }
        }
    }

    /// Results at that moment, by turns good and bad.
    fn by_turns(outlier: &mut Outlier, results: u32, now: Instant) {
        for number in 0..results {
            match number % 2 {
                0 => outlier.on_success(now),
                _ => assert_eq!(outlier.on_failure(now), None),
            }
        }
    }

    #[test]
    fn of_late_is_the_half_under_way_and_the_one_before() {
        let begin = Instant::now();
        let fails = |wait: &[u64], at| {
            let mut outlier = Outlier::new(RULES);
            by_turns(&mut outlier, 8, begin);
            wait.iter().for_each(|n| outlier.on_success(begin + second(*n)));
            outlier.on_failure(begin + second(at)).is_some()
        };
        assert!(fails(&[14], 29), "4 of 8, and 1 of 2");
        assert!(fails(&[16], 17) && fails(&[15], 15), "the half before counts");
        assert!(!fails(&[14], 30) && !fails(&[29], 31), "and no other");
    }

    #[test]
    fn halves_begin_anew_after_a_quiet_time() {
        for quiet in [30, 31, 1000] {
            let (mut outlier, begin) = (Outlier::new(RULES), Instant::now());
            outlier.on_success(begin);
            let back = begin + second(quiet);
            by_turns(&mut outlier, 9, back);
            assert!(outlier.on_failure(back + second(15)).is_some(), "5 of 10, after {quiet} s");
        }
    }

    #[test]
    fn new_rules_judge_what_was_known_before() {
        let (mut outlier, now) = (Outlier::new(RULES), Instant::now());
        assert_eq!(outlier.on_failure(now), None);
        outlier.set_rules(Rules { consecutive_failures: 2, ..RULES });
        assert!(outlier.on_failure(now).is_some());
    }
}
