//! The server with the fewest connections per weight.
//!
//! Pure. The counts are those of the whole process, so that all workers see the same load. Looks
//! at every server once: for some hundred servers that is well below the cost of a connect.
//! Ties are broken by lot among the tied alone. Taking the first after a random start would give
//! a server that follows a busy one that one's share as well.
//!
//! Between a look and the place that is taken then, other workers take places too, so a pick can be off,
//! but not far: of connections that come and stay, **no server gets ahead of the least by more than one for
//! each worker**, and a single worker is never wrong. For let one server have `c` and another `m < c`.
//! Whoever took one of the places from `m + 1` to `c` had seen the other at `m` at the most, for counts only
//! grow, and so this one at no more. But he sees the place that he took himself, and does not take another of
//! them: they were taken by as many workers as they are. By weight, a server with more connections than there
//! are workers would have no greater load than any other with one less for each. Connections that end during
//! a look come on top; no lock around it would keep them from ending.

use std::cmp::Ordering;

use super::{Choice, Field, Ground, Load, Member, below, electable, mix};

/// Servers that may be picked.
#[derive(Clone, Debug)]
pub struct LeastConnections(Vec<Candidate>);

#[derive(Clone, Copy, Debug)]
struct Candidate {
    server: usize,
    weight: u32,
}

/// The best so far, and what is known of the rest.
struct Best {
    server: usize,
    own: Load,
    /// The lowest load of the others.
    next: Option<Load>,
    /// How many had the lowest load, this one included.
    tied: u64,
}

impl LeastConnections {
    pub fn new(members: &[Member]) -> Self {
        let candidates = electable(members).map(|(server, weight)| Candidate { server, weight });
        LeastConnections(candidates.collect())
    }

    /// One look at each server.
    pub fn pick(&self, random: u64, field: &impl Field) -> Option<Choice> {
        let mut random = random;
        let mut best: Option<Best> = None;
        for candidate in self.0.iter().filter(|candidate| field.is_open(candidate.server)) {
            let load = field.load(candidate.server, candidate.weight);
            match &mut best {
                None => best = Some(Best { server: candidate.server, own: load, next: None, tied: 1 }),
                Some(best) => {
                    random = mix(random);
                    best.meet(candidate.server, load, random);
                }
            }
        }
        let Best { server, own, next, .. } = best?;
        Some(Choice::of(server, Ground::LeastConnections { own, next }))
    }
}

impl Best {
    /// The better of this one and another server stays.
    fn meet(&mut self, server: usize, load: Load, random: u64) {
        match load.compare(&self.own) {
            Ordering::Less => *self = Best { server, own: load, next: Some(self.own), tied: 1 },
            Ordering::Equal => {
                self.tied += 1;
                let loser = if below(random, self.tied) == 0 {
                    self.server = server;
                    std::mem::replace(&mut self.own, load)
                } else {
                    load
                };
                self.next = Some(loser);
            }
            Ordering::Greater => {
                if self.next.is_none_or(|next| load.compare(&next) == Ordering::Less) {
                    self.next = Some(load);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counts(Vec<usize>);

    impl Field for Counts {
        fn is_open(&self, _: usize) -> bool {
            true
        }
        fn active(&self, server: usize) -> usize {
            self.0[server]
        }
    }

    #[test]
    fn idle_servers_beside_a_busy_one_share_evenly() {
        // The bug: with ties decided by a rotated start, the server after the busy one got two thirds.
        let members = ["busy", "a", "b"].map(|name| Member {
            name: name.into(),
            weight: 1,
            is_eligible: true,
            tier: 0,
        });
        let servers = LeastConnections::new(&members);
        let field = Counts(vec![5, 0, 0]);
        let mut taken = [0_u32; 3];
        for turn in 0..10_000 {
            taken[servers.pick(mix(turn), &field).unwrap().server] += 1;
        }
        assert_eq!(taken[0], 0);
        assert!(taken[1].abs_diff(taken[2]) < 400, "{taken:?}"); // four standard deviations
    }

    #[test]
    fn the_reason_names_the_runner_up() {
        let members =
            ["a", "b", "c"].map(|name| Member { name: name.into(), weight: 1, is_eligible: true, tier: 0 });
        let said = |counts: [usize; 3]| {
            let choice = LeastConnections::new(&members).pick(7, &Counts(counts.to_vec())).unwrap();
            (choice.server, choice.why.to_string())
        };
        assert_eq!(said([7, 3, 9]), (1, "least:3<7".into()));
        assert_eq!(said([3, 9, 7]), (0, "least:3<7".into()));
        assert_eq!(said([9, 7, 3]), (2, "least:3<7".into()));
    }
}
