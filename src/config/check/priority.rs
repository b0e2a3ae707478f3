//! Who comes first when room is short: read alike from `[defaults]` and from the listener's table.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::listener::ListenerAt;
use super::prefix::prefix;
use super::section::{Field, Section};
use super::{keys, leaf};
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::config::plan::{Classes, Priority};
use crate::core::prefix::Prefix;
use crate::core::priority::Lists;

/// What a table changes of the classes that hold without it. Its `priority_from` takes the place of the
/// one in `[defaults]`.
pub fn classes(section: &Section<'_>, mut classes: Arc<Classes>, found: &mut Mistakes) -> Arc<Classes> {
    if let Some(field) = section.get("priority") {
        let class = leaf::word(field, Priority::ALL, Priority::word, keys::FOREIGN_PRIORITY, found);
        let class = class.unwrap_or(classes.otherwise());
        classes = Arc::new(classes.with_otherwise(class));
    }
    if let Some(field) = section.get("priority_from") {
        classes = Arc::new(Classes::new(classes.otherwise(), lists(field, found)));
    }
    classes
}

fn lists(field: Field<'_>, found: &mut Mistakes) -> Lists {
    let mut lists = Lists::default();
    let wanted = "a table such as { high = [\"10.0.0.0/8\"] }";
    let Some(table) = leaf::table(field, wanted, found) else { return lists };
    let section = Section::read("priority_from", table, &keys::PRIORITY_FROM, found);
    let mut named = BTreeMap::new();
    for class in Priority::ALL {
        for field in section.all(class.word()) {
            for item in leaf::list(field, found) {
                let Some(network) = prefix(item, found) else { continue };
                let (first, at) = named.entry(network).or_insert_with(|| (*class, item.span.clone()));
                if first == class {
                    lists[class.index()].push(network);
                } else {
                    found.add(in_two(network, (*class, item.span.clone()), (*first, at.clone())));
                }
            }
        }
    }
    lists
}

type Named = (Priority, Range<usize>);

fn in_two(network: Prefix, (class, span): Named, (first, at): Named) -> Mistake {
    let mistake = Mistake::new(Code::TwoClasses, span, format!("{network} is in two classes"));
    let help = "a client has one class: keep the network in one, or name a longer one inside it";
    mistake.label(format!("`{class}` here")).also(at, format!("and `{first}` here")).help(help)
}

/// A class that everybody has puts nobody before anybody.
pub fn check(listeners: &[ListenerAt], found: &mut Mistakes) {
    let classes: BTreeSet<_> = listeners.iter().flat_map(|listener| listener.plan.classes.all()).collect();
    if classes.len() > 1 || classes.contains(&Priority::Normal) {
        return;
    }
    for span in listeners.iter().filter_map(|listener| listener.priority_span.as_ref()) {
        let mistake = Mistake::new(Code::NoEffect, span.clone(), "`priority` has no effect");
        let help = "name another class at a listener or in `priority_from`; the default is \"normal\"";
        found.add(mistake.label("every client of every listener has this class").help(help));
    }
}
