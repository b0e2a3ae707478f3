//! How often one thing is told of, however often it changes.
//!
//! Pure. News of a subject goes in and what is to be told comes out: at once while there is little of it,
//! and else later, the newest news alone and how many before it were left out. So whatever flaps, a log
//! grows at a bounded rate, and its last line about a subject is always how that stands. Who tells, and
//! what, is `control/lookout.rs`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::bucket::Rate;

/// How much is told.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of one subject.
    pub each: Rate,
    /// Of all together.
    pub all: Rate,
}

/// News that is to be told now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told<T> {
    pub news: T,
    /// So many of the same subject before it were not told.
    pub left_out: u64,
}

/// `S` is what news are about. It has an entry while it was told of a short time ago, or is still to be:
/// at most as many as there are subjects.
#[derive(Debug)]
pub struct Damper<S, T> {
    rates: Rates,
    /// From when on moments are counted.
    born: Instant,
    /// When all that may be told together may be told again, as in `bucket.rs`.
    full_at: u64,
    subjects: BTreeMap<S, Subject<T>>,
}

#[derive(Debug)]
struct Subject<T> {
    full_at: u64,
    held: Option<Held<T>>,
}

/// News that waits.
#[derive(Debug)]
struct Held<T> {
    /// Since when something has waited: who waits longest comes first.
    since: u64,
    told: Told<T>,
}

impl<S: Ord + Clone, T> Damper<S, T> {
    pub fn new(rates: Rates, born: Instant) -> Self {
        Damper { rates, born, full_at: 0, subjects: BTreeMap::new() }
    }

    /// News that stands for `count` changes since the last. What is to be told of it now, if anything; else
    /// it waits, and takes the place of what waited before.
    pub fn on_news(&mut self, subject: &S, news: T, count: u64, now: Instant) -> Option<Told<T>> {
        let now = self.nanoseconds(now);
        if !self.subjects.contains_key(subject) {
            self.subjects.insert(subject.clone(), Subject { full_at: 0, held: None });
        }
        let entry = self.subjects.get_mut(subject)?;
        let before = entry.held.take();
        let left_out = before.as_ref().map_or(0, |held| held.told.left_out + 1) + count.saturating_sub(1);
        let since = before.map_or(now, |held| held.since);
        entry.held = Some(Held { since, told: Told { news, left_out } });
        self.release(subject, now).ok()
    }

    /// When something that waits may be told.
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.subjects.values().filter(|subject| subject.held.is_some());
        let own = waiting.map(|subject| free_at(self.rates.each, subject.full_at)).min()?;
        Some(self.born + Duration::from_nanos(own.max(free_at(self.rates.all, self.full_at))))
    }

    /// What has waited and may be told now. Subjects of which all is told, and nothing lately, are forgotten.
    pub fn on_deadline(&mut self, now: Instant) -> Vec<Told<T>> {
        let now = self.nanoseconds(now);
        let waiting = self.subjects.iter().filter_map(|(subject, entry)| {
            Some((entry.held.as_ref()?.since, subject))
                .filter(|_| free_at(self.rates.each, entry.full_at) <= now)
        });
        let mut waiting: Vec<_> = waiting.map(|(since, subject)| (since, subject.clone())).collect();
        waiting.sort();
        let told = waiting.iter().map_while(|(_, subject)| self.release(subject, now).ok()).collect();
        self.subjects.retain(|_, entry| entry.held.is_some() || now < entry.full_at);
        told
    }

    /// What waits of a subject, if it may be told now.
    fn release(&mut self, subject: &S, now: u64) -> Result<Told<T>, Duration> {
        let entry = self.subjects.get_mut(subject).ok_or(Duration::ZERO)?;
        let own = self.rates.each.spend(entry.full_at, now)?;
        let all = self.rates.all.spend(self.full_at, now)?;
        let held = entry.held.take().ok_or(Duration::ZERO)?;
        (entry.full_at, self.full_at) = (own, all);
        Ok(held.told)
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// From when on a bucket that is full again at `full_at` has one.
fn free_at(rate: Rate, full_at: u64) -> u64 {
    (full_at + rate.interval()).saturating_sub(rate.fill())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATES: Rates = Rates {
        each: Rate { count: 3, per: Duration::from_secs(180) },
        all: Rate { count: 5, per: Duration::from_secs(5) },
    };

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn told<T>(news: T, left_out: u64) -> Told<T> {
        Told { news, left_out }
    }

    #[test]
    fn what_changes_seldom_is_told_at_once() {
        let begin = Instant::now();
        let mut damper = Damper::new(RATES, begin);
        for n in 0..100 {
            let now = begin + second(60 * n);
            assert_eq!(damper.on_news(&"a", n, 1, now), Some(told(n, 0)));
            assert_eq!((damper.deadline(), damper.on_deadline(now)), (None, vec![]));
        }
    }

    #[test]
    fn of_what_flaps_the_first_and_then_the_newest_is_told_and_how_many_were_left_out() {
        let begin = Instant::now();
        let mut damper = Damper::new(RATES, begin);
        let first: Vec<_> = (0..20).filter_map(|n| damper.on_news(&"a", n, 1, begin)).collect();
        assert_eq!(first, [told(0, 0), told(1, 0), told(2, 0)]);
        assert_eq!(damper.deadline(), Some(begin + second(60)));
        assert_eq!(damper.on_deadline(begin + second(59)), []);
        assert_eq!(damper.on_deadline(begin + second(60)), [told(19, 16)]);
        assert_eq!(damper.deadline(), None);
    }

    #[test]
    fn news_that_stand_for_many_changes_say_so() {
        let begin = Instant::now();
        let mut damper = Damper::new(RATES, begin);
        assert_eq!(damper.on_news(&"a", 'x', 4, begin), Some(told('x', 3)));
    }

    #[test]
    fn one_that_flaps_keeps_nobody_else_from_being_told_of() {
        let begin = Instant::now();
        let mut damper = Damper::new(RATES, begin);
        (0..1000).for_each(|n| _ = damper.on_news(&"a", n, 1, begin));
        assert_eq!(damper.on_news(&"b", 0, 1, begin), Some(told(0, 0)));
    }

    #[test]
    fn many_at_once_are_told_of_one_after_the_other_and_none_is_forgotten() {
        let begin = Instant::now();
        let mut damper = Damper::new(RATES, begin);
        let at_once = (0..20).filter(|n| damper.on_news(n, 'x', 1, begin).is_some()).count();
        assert_eq!(at_once, 5);
        let mut now = begin;
        let mut later = 0;
        while let Some(deadline) = damper.deadline() {
            assert!(deadline > now, "time goes on");
            now = deadline;
            later += damper.on_deadline(now).len();
        }
        assert_eq!((later, now), (15, begin + second(15)), "one a second");
    }

    #[test]
    fn what_is_told_and_quiet_is_forgotten() {
        let begin = Instant::now();
        let mut damper = Damper::new(RATES, begin);
        damper.on_news(&"a", 0, 1, begin);
        damper.on_deadline(begin + second(59));
        assert_eq!(damper.subjects.len(), 1);
        damper.on_deadline(begin + second(60));
        assert!(damper.subjects.is_empty());
    }

    proptest! {
        /// Told from outside: never more than the rates, nothing lost, and the last news of each subject
        /// is told in the end.
        #[test]
        fn whatever_comes_little_is_told_and_all_of_it_is_accounted_for(
            steps in prop::collection::vec((0_u64..20_000, 0_usize..4, 1_u64..4), 1..200),
        ) {
            let (begin, mut told, mut last) = (Instant::now(), Vec::new(), BTreeMap::new());
            let mut damper = Damper::new(RATES, begin);
            let (mut now, mut changes) = (begin, 0);
            for (n, (wait, subject, count)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(wait);
                told.extend(damper.on_deadline(now).into_iter().map(|told| (now, told)));
                changes += count;
                last.insert(subject, n);
                told.extend(damper.on_news(&subject, (subject, n), count, now).map(|told| (now, told)));
            }
            while let Some(deadline) = damper.deadline() {
                prop_assert!(deadline > now);
                now = deadline;
                told.extend(damper.on_deadline(now).into_iter().map(|told| (now, told)));
            }
            prop_assert_eq!(told.iter().map(|(_, told)| 1 + told.left_out).sum::<u64>(), changes);
            for (subject, n) in last {
                let mut of_it = told.iter().filter(|(_, told)| told.news.0 == subject);
                prop_assert_eq!(of_it.clone().next_back().map(|(_, told)| told.news.1), Some(n));
                let times: Vec<_> = of_it.by_ref().map(|(at, _)| *at).collect();
                prop_assert!(times.windows(4).all(|four| four[3] - four[0] >= second(60)), "3, then one a minute");
            }
            prop_assert!(told.windows(6).all(|six| six[5].0 - six[0].0 >= second(1)));
        }
    }
}
