//! What the routes of a listener take, one after the other: which of them is never reached.
//!
//! A network is looked for among those of the earlier routes by itself and by each that holds it, so a
//! file full of networks takes no longer than reading it. That two halves make a whole is not seen.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::section::Section;
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::core::prefix::Prefix;

/// The networks of the routes so far.
#[derive(Default)]
pub struct Taken(HashMap<Prefix, By>);

/// The first route that names a network, and where.
struct By {
    route: String,
    span: Range<usize>,
}

impl Taken {
    /// No client is left for whatever comes after.
    pub fn is_everybody(&self) -> bool {
        everywhere().all(|network| self.0.contains_key(&network))
    }

    /// Reports what earlier routes take of this one, and remembers the rest. Without `from`, it takes everybody.
    pub fn note(
        &mut self,
        route: &str,
        from: Option<&[(Prefix, Range<usize>)]>,
        section: &Section<'_>,
        found: &mut Mistakes,
    ) {
        let all: Vec<_> = everywhere().map(|network| (network, section.span.clone())).collect();
        let networks = from.unwrap_or(&all);
        let idle =
            networks.iter().filter_map(|(network, span)| Some((*network, span, self.earlier(*network)?)));
        let idle: Vec<_> = idle.collect();
        match idle.first() {
            Some((.., (_, by))) if idle.len() == networks.len() => {
                found.add(never_reached(route, section.span.clone(), by));
            }
            // Who takes everybody need not say who is left.
            _ if from.is_none() => {}
            _ => idle.iter().for_each(|(network, span, (wider, by))| {
                found.add(no_effect(*network, (*span).clone(), *wider, by));
            }),
        }
        for (network, span) in networks {
            let by = || By { route: route.to_owned(), span: span.clone() };
            self.0.entry(*network).or_insert_with(by);
        }
    }

    /// The widest network of an earlier route that holds this one.
    fn earlier(&self, network: Prefix) -> Option<(Prefix, &By)> {
        let mut around = (0..=network.length()).filter_map(|bits| Prefix::around(network.network(), bits));
        around.find_map(|wider| Some((wider, self.0.get(&wider)?)))
    }
}

/// All of both families.
fn everywhere() -> impl Iterator<Item = Prefix> {
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    all.into_iter().filter_map(|address| Prefix::around(address, 0))
}

fn never_reached(route: &str, span: Range<usize>, by: &By) -> Mistake {
    Mistake::new(Code::DeadRoute, span, format!("route `{route}` is never reached"))
        .label("an earlier route takes all of its clients")
        .also(by.span.clone(), format!("route `{}` takes them", by.route))
        .help("the first route that takes a client decides: put the narrower one first")
}

fn no_effect(network: Prefix, span: Range<usize>, wider: Prefix, by: &By) -> Mistake {
    let what = if wider == network { "it".to_owned() } else { wider.to_string() };
    Mistake::new(Code::NoEffect, span, format!("`from` has no effect for {network}"))
        .label(format!("route `{}` names {what} before", by.route))
}
