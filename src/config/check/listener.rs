//! `[listener.NAME]`: where clients connect to, and which pool serves them.

use std::net::SocketAddr;
use std::ops::Range;

use super::address::address;
use super::common::{self, Common};
use super::route::{self, Named};
use super::section::{Field, Section};
use super::{check_name, harm, keys, leaf};
use crate::config::file::{Entry, Kind};
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::config::plan::Listener;

/// A listener with the places that [`super::across`] may point at.
#[derive(Debug)]
pub struct ListenerAt {
    pub plan: Listener,
    /// One for each of `plan.bind`.
    pub bind_spans: Vec<Range<usize>>,
    /// Every pool that it names.
    pub named: Vec<Named>,
    /// A pool is not named where one should be; that is reported already.
    pub is_in_doubt: bool,
    pub limit_span: Option<Range<usize>>,
    pub first_byte_span: Option<Range<usize>>,
    /// `None` also where the limit comes from `[defaults]`.
    pub source_limit_span: Option<Range<usize>>,
    /// `None` also where the class comes from `[defaults]`.
    pub priority_span: Option<Range<usize>>,
}

pub fn listener(entry: &Entry, common: &Common, found: &mut Mistakes) -> ListenerAt {
    let name = &entry.key;
    check_name(name, "listener", entry.key_span.clone(), found);
    let plan = Listener::new(name, Vec::new(), "");
    let mut at = ListenerAt {
        plan,
        bind_spans: Vec::new(),
        named: Vec::new(),
        is_in_doubt: true,
        limit_span: None,
        first_byte_span: None,
        source_limit_span: None,
        priority_span: None,
    };
    let Kind::Table(table) = &entry.value.kind else {
        let field = Field { key: "listener", value: &entry.value };
        found.add(field.wrong_type("a table").help(format!("write it as `[listener.{name}]`")));
        return at;
    };
    let section = Section::read(format!("listener.{name}"), table, &keys::LISTENER, found);
    (at.plan.bind, at.bind_spans) = bind(&section, found);
    let ways = route::ways(&section, found);
    (at.plan.routes, at.plan.target) = (ways.routes, ways.target);
    (at.named, at.is_in_doubt) = (ways.named, ways.is_in_doubt);
    if let Some(field) = section.get("max_connections") {
        at.plan.max_connections = leaf::limit(field, found);
        at.limit_span = Some(field.value.span.clone());
    }
    at.source_limit_span = section.get("max_connections_per_source").map(|field| field.value.span.clone());
    at.priority_span = section.get("priority").map(|field| field.value.span.clone());
    let own = common::for_listener(&section, common.clone(), found);
    // Not a key of `[defaults]`: whether clients speak first is a matter of the one protocol.
    if let Some(field) = section.get("first_byte_timeout") {
        at.plan.first_byte_timeout =
            leaf::duration_or_off(field, leaf::Span::Positive, found).unwrap_or(at.plan.first_byte_timeout);
        at.first_byte_span = at.plan.first_byte_timeout.map(|_| field.value.span.clone());
    }
    // Nor is this: like `max_connections`, it is set where it holds.
    if let Some(field) = section.get("bandwidth") {
        at.plan.bandwidth = leaf::bandwidth_or_off(field, found).unwrap_or(at.plan.bandwidth);
    }
    at.plan.bandwidth_per_connection = own.bandwidth_per_connection;
    at.plan.when_full = own.when_full;
    at.plan.admission = own.admission;
    at.plan.classes = own.classes;
    at.plan.idle_timeout = own.idle_timeout;
    at.plan.half_close_timeout = own.half_close_timeout;
    at.plan.tcp = common::tcp(&section, common.tcp, found);
    harm::check_parts(&section, &at, found);
    at
}

fn bind(section: &Section<'_>, found: &mut Mistakes) -> (Vec<SocketAddr>, Vec<Range<usize>>) {
    let Some(field) = section.get("bind") else {
        found.add(missing(section, "bind", "bind = [\"0.0.0.0:80\", \"[::]:80\"]"));
        return (Vec::new(), Vec::new());
    };
    if matches!(&field.value.kind, Kind::Array(items) if items.is_empty()) {
        let message = format!("`{}` binds no address", section.name);
        let mistake = Mistake::new(Code::EmptyList, field.value.span.clone(), message);
        found.add(
            mistake.label("at least one address is needed").help("for example [\"0.0.0.0:80\", \"[::]:80\"]"),
        );
    }
    let read =
        leaf::list(field, found).iter().filter_map(|item| Some((address(item, found)?, item.span.clone())));
    read.collect()
}

/// Reports a key that has no default.
pub fn missing(section: &Section<'_>, key: &str, example: &str) -> Mistake {
    let message = format!("`{}` has no `{key}`", section.name);
    Mistake::new(Code::MissingKey, section.span.clone(), message).help(format!("add `{example}`"))
}
