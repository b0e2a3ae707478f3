//! Where a listener's clients go, written as it is read.

use super::{Out, bare, defaults, networks, text};
use crate::config::plan::{Canary, Listener, Route, Target};

/// `pool` and `canary` of a listener or of a route.
pub(super) fn target(target: &Target, out: &mut Out) {
    out.key("pool", text(&target.pool));
    if let Some(it) = &target.canary {
        out.key("canary", canary(it));
    }
}

fn canary(canary: &Canary) -> String {
    let mut parts = vec![
        format!("pool = {}", text(&canary.pool)),
        format!("share = {}", text(&canary.split.share.to_string())),
    ];
    if !canary.from.allowed().is_empty() {
        parts.push(format!("from = {}", networks(canary.from.allowed())));
    }
    if canary.split.by != defaults::SPLIT_BY {
        parts.push(format!("by = {}", text(canary.split.by.word())));
    }
    format!("{{ {} }}", parts.join(", "))
}

/// Tables of their own, below all keys of the listener.
pub(super) fn routes(listener: &Listener, out: &mut Out) {
    for (place, route) in listener.routes.iter().enumerate() {
        out.header(format!("[listener.{}.route]", bare(&listener.name)));
        one(route, place + 1, out);
    }
}

fn one(route: &Route, number: usize, out: &mut Out) {
    if route.name != number.to_string() {
        out.key("name", text(&route.name));
    }
    if !route.from.allowed().is_empty() {
        out.key("from", networks(route.from.allowed()));
    }
    match &route.target {
        Some(it) => target(it, out),
        None => out.key("reject", true),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use proptest::prelude::*;

    use crate::config::plan::{Acl, Canary, Route, Share, Split, SplitBy, Target};
    use crate::core::prefix::Prefix;

    /// No network, which is everywhere, or some.
    fn from() -> impl Strategy<Value = Arc<Acl>> {
        let prefix = (any::<u128>(), 0..=128_u8)
            .prop_map(|(bits, length)| Prefix::around(IpAddr::V6(bits.into()), length).unwrap());
        prop::collection::vec(prefix, 0..4).prop_map(|list| Arc::new(Acl::new(list, [])))
    }

    fn canary() -> impl Strategy<Value = Canary> {
        let share = (0..=1_000_000_u32).prop_map(|parts| Share::of(f64::from(parts) / 1_000_000.0).unwrap());
        (share, prop::sample::select(SplitBy::ALL), from()).prop_map(|(share, by, from)| Canary {
            pool: "p-1".into(),
            split: Split { share, by },
            from,
        })
    }

    pub fn target(pool: &'static str) -> impl Strategy<Value = Target> {
        let with = move |canary| Target { pool: pool.into(), canary };
        prop::option::of(canary()).prop_map(with)
    }

    /// Some with names, and some with what they are called otherwise.
    pub fn routes() -> impl Strategy<Value = Vec<Route>> {
        let one = (any::<bool>(), from(), prop::option::of(target("p-0")));
        prop::collection::vec(one, 0..4).prop_map(|routes| {
            let named = (1..).zip(routes).map(|(number, (is_named, from, target))| {
                let name = if is_named { format!("r-{number}") } else { number.to_string() };
                Route { name, from, target }
            });
            named.collect()
        })
    }
}
