//! From pool to pool: each `fallback` leads to a pool that exists, and no chain of them comes back to
//! where it has been or goes on for too long.

use std::collections::{HashMap, HashSet};

use super::across::unknown_pool;
use super::pool::PoolAt;
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::FALLBACKS_MAX;

/// The pools of a file by name, as far as they go.
pub type ByName<'a> = HashMap<&'a str, &'a PoolAt>;

pub fn by_name(pools: &[PoolAt]) -> ByName<'_> {
    pools.iter().map(|pool| (pool.plan.name.as_str(), pool)).collect()
}

/// The pool of that name and those that it falls back to. It ends where a pool is unknown or comes
/// a second time.
pub fn chain<'a>(name: &str, pools: &ByName<'a>) -> Vec<&'a PoolAt> {
    let mut chain = Vec::new();
    let mut met = HashSet::new();
    let mut next = pools.get(name);
    while let Some(pool) = next.filter(|pool| met.insert(pool.plan.name.as_str())) {
        chain.push(*pool);
        next = pool.plan.fallback.as_deref().and_then(|name| pools.get(name));
    }
    chain
}

/// Says whether every fallback is known.
pub fn check(pools: &[PoolAt], found: &mut Mistakes) -> bool {
    let by_name = by_name(pools);
    let mut is_settled = true;
    let mut in_a_loop: HashSet<&str> = HashSet::new();
    for pool in pools {
        let (Some(name), Some(span)) = (&pool.plan.fallback, &pool.fallback_span) else { continue };
        if !by_name.contains_key(name.as_str()) {
            is_settled = false;
            found.add(unknown_pool(name, span.clone(), pools));
            continue;
        }
        let chain = chain(&pool.plan.name, &by_name);
        let names: Vec<&str> = chain.iter().map(|pool| pool.plan.name.as_str()).collect();
        let back_to = chain.last().and_then(|last| last.plan.fallback.as_deref());
        let is_loop = back_to == Some(pool.plan.name.as_str());
        if is_loop && !in_a_loop.contains(pool.plan.name.as_str()) {
            in_a_loop.extend(&names);
            found.add(comes_back(pool, &names, &chain));
        } else if back_to.is_none() && chain.len() > 1 + FALLBACKS_MAX {
            found.add(too_long(pool, &names));
        }
    }
    is_settled
}

fn comes_back(pool: &PoolAt, names: &[&str], chain: &[&PoolAt]) -> Mistake {
    let span = pool.fallback_span.clone().unwrap_or_default();
    let name = quoted(&pool.plan.name);
    let others = chain.get(1..).unwrap_or_default();
    if others.is_empty() {
        let mistake = Mistake::new(Code::FallbackLoop, span, format!("pool {name} falls back to itself"));
        return mistake.label("the same pool").help("name another pool, or leave `fallback` out");
    }
    let message = format!("pool {name} falls back to itself, by way of others");
    let mut mistake = Mistake::new(Code::FallbackLoop, span, message).label(path(names, names.first()));
    if let Some(last) = others.last().and_then(|last| last.fallback_span.clone()) {
        mistake = mistake.also(last, "comes back here");
    }
    mistake.help("leave `fallback` out of the pool that is to be the last")
}

fn too_long(pool: &PoolAt, names: &[&str]) -> Mistake {
    let message = format!("the fallbacks of pool {} go on for too long", quoted(&pool.plan.name));
    let span = pool.fallback_span.clone().unwrap_or_default();
    let label = path(names, None);
    let help = format!("at most {FALLBACKS_MAX} pools may follow one: a client waits while each is tried");
    Mistake::new(Code::LongFallback, span, message).label(label).help(help)
}

/// `a -> b -> a`
fn path(names: &[&str], end: Option<&&str>) -> String {
    /// Names that are shown; the path may be as long as the file.
    const SHOWN: usize = 8;
    let mut shown: Vec<&str> = names.iter().chain(end).copied().take(SHOWN).collect();
    if names.len() + end.iter().len() > SHOWN {
        shown.push("..");
    }
    shown.join(" -> ")
}
