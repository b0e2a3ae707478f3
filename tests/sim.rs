//! A seeded simulation of a pool's life over the cores that decide: what must hold, holds after every step.
//!
//! Clients come and leave, servers die, slow down, recover and flap, the file is reloaded, time leaps.
//! What decides is the product's own, the walk over the servers included; it is driven as the data plane
//! drives it, without a socket. Beside each core stands a plain model, and the two must agree. All is drawn
//! from one seed: a failure says which, and how to see it again.
//!
//! `TIDEGATE_SIM_SEED` plays that seed alone, `TIDEGATE_SIM_STEPS` sets the steps of each seed.

#[path = "sim/dice.rs"]
mod dice; // everything that is drawn

#[path = "sim/trace.rs"]
mod trace; // what has happened

#[path = "sim/plan.rs"]
mod plan; // what an operator may write

#[path = "sim/world.rs"]
mod world; // the listener, the pool and its servers

#[path = "sim/search.rs"]
mod search; // a client's way to a server

#[path = "sim/waiting.rs"]
mod waiting; // the line before the pool

#[path = "sim/view.rs"]
mod view; // the servers as a search may see them

#[path = "sim/actions.rs"]
mod actions; // what happens, and what must hold after it

#[path = "sim/model/mod.rs"]
mod model; // what must hold, told plainly

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::time::SystemTime;

use world::World;

/// Steps of each seed: with four fixed seeds and a fresh one 100,000 in all, in a few seconds of a debug build.
const STEPS: u64 = 20_000;

/// Always the same, so that a change that breaks something fails for everybody.
const SEEDS: [u64; 4] = [1, 2, 8, 10];

/// What happens in every 100,000 steps; a simulation in which it does not shows nothing.
const WORDS: [&str; 38] = [
    "acl-deny",
    "after",
    "all",
    "arrives",
    "asks",
    "behind",
    "choose",
    "connected",
    "cut",
    "displaced",
    "ejected",
    "failed",
    "gives-up",
    "kept",
    "known",
    "last-resort",
    "leap",
    "leaves",
    "listener-limit",
    "news",
    "no-retry",
    "opened",
    "outnumbered",
    "pause",
    "queue-full",
    "queue-timeout",
    "rate",
    "recovered",
    "reload",
    "retry",
    "rose",
    "served-in-line",
    "source-limit",
    "source-rate",
    "spills",
    "state",
    "suspect",
    "unserved",
];

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not `{text}`")))
}

/// One that nobody has played before.
fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    since.as_nanos() as u64
}

/// A whole life. Gives what happened, as one number, and how often what did.
fn play(seed: u64, steps: u64) -> (u64, BTreeMap<&'static str, u64>) {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
    }
    world.drain();
    (world.trace.hash(), world.trace.counts().clone())
}

#[test]
#[allow(clippy::print_stdout, reason = "the seed of a run that goes wrong must be known")]
fn whatever_happens_what_must_hold_holds() {
    let steps = number("TIDEGATE_SIM_STEPS").unwrap_or(STEPS);
    if let Some(seed) = number("TIDEGATE_SIM_SEED") {
        println!("seed {seed}, {steps} steps: {:?}", play(seed, steps).1);
        return;
    }
    let fresh = fresh_seed();
    println!("fresh seed: {fresh}");
    let mut seen = BTreeSet::new();
    for seed in SEEDS.into_iter().chain([fresh]) {
        seen.extend(play(seed, steps).1.into_keys());
    }
    let unseen: Vec<_> = WORDS.iter().filter(|word| !seen.contains(*word)).collect();
    assert!(unseen.is_empty() || steps < STEPS, "the simulation has become tame: no {unseen:?}");
}

#[test]
fn the_same_seed_is_the_same_life() {
    let (first, again) = (play(7, 2000), play(7, 2000));
    assert_eq!(first, again);
    assert_ne!(first.0, play(8, 2000).0);
}
