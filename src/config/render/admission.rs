//! Who may come in at a listener, and who first, as the file that means it.

use super::{Out, networks, text};
use crate::config::plan::{Admission, Classes, Priority, Rate};

pub(super) fn classes(classes: &Classes, out: &mut Out) {
    out.unless("priority", &classes.otherwise(), &Priority::default(), |class| text(class.word()));
    let with_networks = Priority::ALL.iter().filter(|class| !classes.list(**class).is_empty());
    let lists: Vec<_> =
        with_networks.map(|class| format!("{class} = {}", networks(classes.list(*class)))).collect();
    if !lists.is_empty() {
        out.key("priority_from", format_args!("{{ {} }}", lists.join(", ")));
    }
}

pub(super) fn admission(admission: &Admission, out: &mut Out) {
    for (key, list) in [("allow", admission.acl.allowed()), ("deny", admission.acl.denied())] {
        if !list.is_empty() {
            out.key(key, networks(list));
        }
    }
    let default = Admission::default();
    out.unless(
        "max_connections_per_source",
        &admission.max_connections_per_source,
        &default.max_connections_per_source,
        |limit| limit.map_or_else(|| text("off"), |limit| limit.to_string()),
    );
    out.unless(
        "source_prefix_ipv6",
        &admission.source_prefix_ipv6,
        &default.source_prefix_ipv6,
        u8::to_string,
    );
    out.unless("admission", &admission.mode, &default.mode, |mode| text(mode.word()));
    let rate = |rate: &Option<Rate>| rate.map_or_else(|| text("off"), |rate| text(&rate.to_string()));
    out.unless("connection_rate", &admission.connection_rate, &default.connection_rate, rate);
    out.unless(
        "connection_rate_per_source",
        &admission.connection_rate_per_source,
        &default.connection_rate_per_source,
        rate,
    );
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::plan::{Acl, AdmissionMode};
    use crate::core::prefix::Prefix;
    use crate::core::priority::Lists;

    fn prefix() -> impl Strategy<Value = Prefix> {
        let v4 = (any::<u32>(), 0..=32u8).prop_map(|(bits, length)| (IpAddr::V4(bits.into()), length));
        let v6 = (any::<u128>(), 0..=128u8).prop_map(|(bits, length)| (IpAddr::V6(bits.into()), length));
        prop_oneof![v4, v6].prop_map(|(address, length)| Prefix::around(address, length).unwrap())
    }

    pub fn any_admission() -> impl Strategy<Value = Admission> {
        let list = || prop::collection::vec(prefix(), 0..4);
        let rate = || {
            let per = prop::sample::select(vec![1, 60, 3600]).prop_map(Duration::from_secs);
            prop::option::of((1..=Rate::COUNT_MAX, per).prop_map(|(count, per)| Rate { count, per }))
        };
        let limits = (prop::option::of(1..1000usize), 1..=128u8);
        let all = (prop::sample::select(AdmissionMode::ALL), (list(), list()), limits, (rate(), rate()));
        all.prop_map(|(mode, (allow, deny), limits, rates)| Admission {
            mode,
            acl: Arc::new(Acl::new(allow, deny)),
            max_connections_per_source: limits.0,
            source_prefix_ipv6: limits.1,
            connection_rate: rates.0,
            connection_rate_per_source: rates.1,
        })
    }

    /// Each network in one class.
    pub fn any_classes() -> impl Strategy<Value = Arc<Classes>> {
        let networks = prop::collection::btree_map(prefix(), 0..Priority::ALL.len(), 0..5);
        (prop::sample::select(Priority::ALL), networks).prop_map(|(otherwise, networks)| {
            let mut lists = Lists::default();
            networks.into_iter().for_each(|(network, class)| lists[class].push(network));
            Arc::new(Classes::new(otherwise, lists))
        })
    }
}
