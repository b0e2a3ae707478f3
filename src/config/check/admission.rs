//! Who may come in at a listener: read alike from `[defaults]` and from the listener's table.

use std::ops::Range;
use std::sync::Arc;

use super::prefix::prefix;
use super::section::{Field, Section};
use super::{keys, leaf};
use crate::config::file::{Kind, Value};
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::config::plan::{Acl, Admission, AdmissionMode};
use crate::core::prefix::Prefix;

/// What a table changes of the admission that holds without it.
pub fn admission(section: &Section<'_>, mut admission: Admission, found: &mut Mistakes) -> Admission {
    if let Some(field) = section.get("admission") {
        let mode = leaf::word(field, AdmissionMode::ALL, AdmissionMode::word, keys::FOREIGN_ADMISSION, found);
        admission.mode = mode.unwrap_or(admission.mode);
    }
    acl(section, &mut admission, found);
    if let Some(field) = section.get("max_connections_per_source") {
        let limit = leaf::limit_or_off(field, found);
        admission.max_connections_per_source = limit.unwrap_or(admission.max_connections_per_source);
    }
    if let Some(field) = section.get("source_prefix_ipv6") {
        let bits = leaf::number(field, 1, 128, found).and_then(|bits| u8::try_from(bits).ok());
        admission.source_prefix_ipv6 = bits.unwrap_or(admission.source_prefix_ipv6);
    }
    // Not a key of `[defaults]`: like `max_connections`, it is set where it holds.
    if let Some(field) = section.get("connection_rate") {
        admission.connection_rate = leaf::rate_or_off(field, found).unwrap_or(admission.connection_rate);
    }
    if let Some(field) = section.get("connection_rate_per_source") {
        let rate = leaf::rate_or_off(field, found);
        admission.connection_rate_per_source = rate.unwrap_or(admission.connection_rate_per_source);
    }
    admission
}

/// Each list takes the place of the same list in `[defaults]`; the other one stays.
fn acl(section: &Section<'_>, admission: &mut Admission, found: &mut Mistakes) {
    let (allow, deny) = (section.get("allow"), section.get("deny"));
    if allow.is_none() && deny.is_none() {
        return;
    }
    if let Some(field) = allow.filter(|field| is_empty(*field)) {
        found.add(allows_nobody(field));
    }
    let written = allow.map(|field| networks(field, found));
    let deny = match deny {
        Some(field) => plain(&networks(field, found)),
        None => admission.acl.denied().to_vec(),
    };
    let allow = written.as_deref().map_or_else(|| admission.acl.allowed().to_vec(), plain);
    admission.acl = Arc::new(Acl::new(allow, deny));
    for (network, span) in written.into_iter().flatten() {
        if admission.acl.denied().binary_search(&network).is_ok() {
            let message = format!("`allow` has no effect for {network}");
            found.add(
                Mistake::new(Code::NoEffect, span, message).label("`deny` names it, too, and that decides"),
            );
        }
    }
}

/// Networks, each with its place.
pub type Networks = Vec<(Prefix, Range<usize>)>;

pub fn networks(field: Field<'_>, found: &mut Mistakes) -> Networks {
    let read = |item: &Value, found: &mut Mistakes| Some((prefix(item, found)?, item.span.clone()));
    leaf::list(field, found).iter().filter_map(|item| read(item, found)).collect()
}

pub fn plain(networks: &[(Prefix, Range<usize>)]) -> Vec<Prefix> {
    networks.iter().map(|(network, _)| *network).collect()
}

fn is_empty(field: Field<'_>) -> bool {
    matches!(&field.value.kind, Kind::Array(items) if items.is_empty())
}

/// A list that a script left empty would otherwise open the listener to everybody, or to nobody.
fn allows_nobody(field: Field<'_>) -> Mistake {
    let mistake = Mistake::new(Code::EmptyList, field.value.span.clone(), "`allow` allows nobody");
    let everybody = "[\"0.0.0.0/0\", \"::/0\"]";
    mistake
        .label("at least one network is needed")
        .help(format!("to allow everybody, leave it out, or write {everybody}"))
}
