//! Who may come in at a listener, as the keys that mean it.

use super::{Out, networks, text};
use crate::config::plan::{Admission, Rate};

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
