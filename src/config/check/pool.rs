//! `[pool.NAME]`: servers that can stand in for each other, and how they are watched.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;

use super::address::address;
use super::common::{self, Common};
use super::health_check::health_check;
use super::leaf::{self, Span};
use super::listener::missing;
use super::section::{Field, Section};
use super::{check_name, harm, keys, survival};
use crate::config::file::{Entry, Kind, Value};
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::{Affinity, AffinityBy, Balance, HashKey, OnNoServer, OnServerDown, Pool, Server};

/// A weight beyond this is a slip; shares finer than a thousandth mean nothing for connections.
const WEIGHT_MAX: i64 = 1000;
/// Ten ranks of standing by are more than anybody has a use for.
const TIER_MAX: i64 = 9;

/// A pool with the places that [`super::across`] may point at.
#[derive(Debug)]
pub struct PoolAt {
    pub plan: Pool,
    pub name_span: Range<usize>,
    pub server_spans: HashMap<SocketAddr, Range<usize>>,
    pub fallback_span: Option<Range<usize>>,
}

/// A server and where it says so.
struct ServerAt {
    plan: Server,
    span: Range<usize>,
    weight_span: Option<Range<usize>>,
}

pub fn pool(entry: &Entry, common: &Common, found: &mut Mistakes) -> PoolAt {
    let name = &entry.key;
    check_name(name, "pool", entry.key_span.clone(), found);
    let mut at = PoolAt {
        plan: Pool::new(name, Vec::new()),
        name_span: entry.key_span.clone(),
        server_spans: HashMap::new(),
        fallback_span: None,
    };
    let Kind::Table(table) = &entry.value.kind else {
        let field = Field { key: "pool", value: &entry.value };
        found.add(field.wrong_type("a table").help(format!("write it as `[pool.{name}]`")));
        return at;
    };
    let section = Section::read(format!("pool.{name}"), table, &keys::POOL, found);
    let servers = servers(&section, found);
    check_weights(name, &servers, found);
    check_unique(&servers, found);
    at.server_spans = servers.iter().map(|server| (server.plan.address, server.span.clone())).collect();
    at.plan.servers = servers.into_iter().map(|server| server.plan).collect();

    let own = common::for_pool(&section, common.clone(), found);
    at.plan.balance = own.balance;
    at.plan.connect_timeout = own.connect_timeout;
    at.plan.on_no_server = own.on_no_server;
    at.plan.retry = own.retry;
    at.plan.slow_start = own.slow_start;
    check_slow_start(&section, &at.plan, found);
    at.plan.queue = match own.on_no_server {
        OnNoServer::Queue => Some(own.queue.unwrap_or_default()),
        OnNoServer::Refuse => own.queue,
    };
    check_queue(&section, &at.plan, found);
    if let Some(field) = section.get("on_server_down") {
        at.plan.on_server_down = survival::on_server_down(field, found).unwrap_or(at.plan.on_server_down);
    }
    at.plan.tcp = common::tcp(&section, common.tcp, found);
    at.plan.hash_key = hash_key(&section, own.balance, found).unwrap_or(at.plan.hash_key);
    at.plan.max_load = max_load(&section, own.balance, found);
    at.plan.affinity = section.get("affinity").and_then(|field| affinity(field, found));
    if let Some(field) = section.get("fallback") {
        at.plan.fallback = leaf::text(field, "the name of a pool", found).map(str::to_owned);
        at.fallback_span = at.plan.fallback.is_some().then(|| field.value.span.clone());
    }
    if let Some(field) = section.get("health_check") {
        at.plan.health_check = health_check(name, field, found);
        harm::check_probe(&at.plan, field, found);
    }
    at.plan.outlier_detection = section
        .get("outlier_detection")
        .and_then(|field| survival::outlier_detection(name, at.plan.servers.len(), field, found));
    at.plan.circuit_breaker =
        section.get("circuit_breaker").and_then(|field| survival::circuit_breaker(name, field, found));
    check_down(&section, &at.plan, found);
    at
}

/// Without checks no server goes down.
fn check_down(section: &Section<'_>, pool: &Pool, found: &mut Mistakes) {
    let is_idle = pool.health_check.is_none() && pool.on_server_down != OnServerDown::Keep;
    if let Some(field) = section.get("on_server_down").filter(|_| is_idle) {
        let mistake =
            Mistake::new(Code::NoEffect, field.value.span.clone(), "`on_server_down` has no effect");
        let help = format!("add a table `[pool.{}.health_check]`", pool.name);
        found.add(mistake.label("without checks no server goes down").help(help));
    }
}

/// A line in which nobody would ever stand.
fn check_queue(section: &Section<'_>, pool: &Pool, found: &mut Mistakes) {
    let can_wait = pool.on_no_server == OnNoServer::Queue
        || pool.servers.iter().any(|server| server.max_connections.is_some());
    if let Some(field) = section.get("queue").filter(|_| !can_wait) {
        let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), "`queue` has no effect");
        let label = "no server has `max_connections`, so none is ever full";
        found.add(mistake.label(label).help("`on_no_server = \"queue\"` lets clients wait for any server"));
    }
}

fn hash_key(section: &Section<'_>, balance: Balance, found: &mut Mistakes) -> Option<HashKey> {
    let field = section.get("hash_key")?;
    let key = leaf::word(field, HashKey::ALL, HashKey::word, keys::FOREIGN_HASH_KEY, found)?;
    if balance != Balance::ConsistentHash {
        let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), "`hash_key` has no effect");
        let label = format!("`{}` balances by {balance}", section.name);
        found.add(mistake.label(label).help("it takes `balance = \"consistent-hash\"`; else leave it out"));
    }
    Some(key)
}

/// A bound nearer to the mean would move nearly every key, one further away would hold nobody back.
const LOADS: std::ops::RangeInclusive<u32> = 101..=1000;

fn max_load(section: &Section<'_>, balance: Balance, found: &mut Mistakes) -> Option<u32> {
    let field = section.get("max_load")?;
    let read = leaf::load(field, LOADS, found)?;
    if balance != Balance::ConsistentHash && read.is_some() {
        let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), "`max_load` has no effect");
        let label = format!("`{}` balances by {balance}", section.name);
        found.add(mistake.label(label).help("it takes `balance = \"consistent-hash\"`; else leave it out"));
    }
    read
}

/// A gigabyte of entries; whoever has more clients hashes.
const ENTRIES_MAX: i64 = 10_000_000;
/// One for each part of the table, see `live.rs`.
const ENTRIES_LEAST: i64 = 16;

fn affinity(field: Field<'_>, found: &mut Mistakes) -> Option<Affinity> {
    let mut affinity = Affinity::default();
    if let Kind::Boolean(true) = field.value.kind {
        let mistake = field.wrong_type("a table").help("the table says what a client is known by");
        found.add(mistake.patch(field.value.span.clone(), "{ by = \"source-ip\" }"));
        return None;
    }
    if let Kind::Text(by) = &field.value.kind {
        let mistake = field.wrong_type("a table").help("the table has a key for it");
        found.add(mistake.patch(field.value.span.clone(), format!("{{ by = {by:?} }}")));
        return None;
    }
    let table = leaf::table(field, "a table such as { by = \"source-ip\" }", found)?;
    let section = Section::read("affinity", table, &keys::AFFINITY, found);
    if let Some(field) = section.get("by") {
        let by = leaf::word(field, AffinityBy::ALL, AffinityBy::word, keys::FOREIGN_HASH_KEY, found);
        affinity.by = by.unwrap_or(affinity.by);
    }
    if let Some(field) = section.get("ttl") {
        affinity.ttl = leaf::duration(field, Span::Positive, found).unwrap_or(affinity.ttl);
    }
    if let Some(field) = section.get("max_entries") {
        let read = leaf::number(field, ENTRIES_LEAST, ENTRIES_MAX, found)
            .and_then(|count| usize::try_from(count).ok());
        affinity.max_entries = read.unwrap_or(affinity.max_entries);
    }
    Some(affinity)
}

fn check_slow_start(section: &Section<'_>, plan: &Pool, found: &mut Mistakes) {
    let field = section.get("slow_start").filter(|_| plan.slow_start.is_some());
    if let Some(field) = field.filter(|_| plan.balance == Balance::First) {
        let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), "`slow_start` has no effect");
        found.add(mistake.label(format!("`{}` balances by first, which knows no weights", section.name)));
    }
}

fn servers(section: &Section<'_>, found: &mut Mistakes) -> Vec<ServerAt> {
    let Some(field) = section.get("servers") else {
        found.add(missing(section, "servers", "servers = [\"192.0.2.10:8080\"]"));
        return Vec::new();
    };
    if matches!(&field.value.kind, Kind::Array(items) if items.is_empty()) {
        let message = format!("`{}` has no server", section.name);
        let mistake = Mistake::new(Code::EmptyList, field.value.span.clone(), message);
        found.add(mistake.label("at least one is needed").help("for example [\"192.0.2.10:8080\"]"));
    }
    leaf::list(field, found).iter().filter_map(|item| server(item, found)).collect()
}

/// `"address"` or `{ address = "..", .. }`.
fn server(item: &Value, found: &mut Mistakes) -> Option<ServerAt> {
    let span = item.span.clone();
    let Kind::Table(table) = &item.kind else {
        let plan = Server::from(destination(item, found)?);
        return Some(ServerAt { plan, span, weight_span: None });
    };
    let section = Section::read("servers", table, &keys::SERVER, found);
    let Some(field) = section.get("address") else {
        let mistake = Mistake::new(Code::MissingKey, span, "this server has no `address`");
        found.add(mistake.help("add `address = \"192.0.2.10:8080\"`"));
        return None;
    };
    // All keys are looked at before a wrong address ends it.
    let address = destination(field.value, found);
    let name = section.get("name").and_then(|field| name(field, found));
    let weight = section.get("weight").map(|field| (weight(field, found), field.value.span.clone()));
    let limit = section.get("max_connections").and_then(|field| leaf::limit(field, found));
    let tier = section.get("tier").and_then(|field| tier(field, found));
    let mut plan = Server::from(address?);
    plan.name = name.unwrap_or(plan.name);
    plan.weight = weight.as_ref().and_then(|(weight, _)| *weight).unwrap_or(plan.weight);
    plan.max_connections = limit;
    plan.tier = tier.unwrap_or(plan.tier);
    Some(ServerAt { plan, span, weight_span: weight.map(|(_, span)| span) })
}

/// An address that somebody can be reached at.
fn destination(item: &Value, found: &mut Mistakes) -> Option<SocketAddr> {
    let address = address(item, found)?;
    if address.ip().is_unspecified() {
        let local = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        let message = format!("{} is no address of a server", quoted(&address.to_string()));
        let mistake = Mistake::new(Code::NoDestination, item.span.clone(), message);
        let mistake = mistake.label("for a listener it is every address").help("for this machine, write");
        found.add(mistake.patch(item.span.clone(), format!("\"{local}:{}\"", address.port())));
    }
    Some(address)
}

fn name(field: Field<'_>, found: &mut Mistakes) -> Option<String> {
    let name = leaf::text(field, "a name", found)?;
    check_name(name, "server", field.value.span.clone(), found);
    Some(name.to_owned())
}

fn weight(field: Field<'_>, found: &mut Mistakes) -> Option<u32> {
    leaf::number(field, 0, WEIGHT_MAX, found).and_then(|weight| u32::try_from(weight).ok())
}

fn tier(field: Field<'_>, found: &mut Mistakes) -> Option<u8> {
    if let Kind::Boolean(is_standby) = field.value.kind {
        let mistake = field.wrong_type("a number").help("tier 1 stands by for tier 0");
        found.add(mistake.patch(field.value.span.clone(), u8::from(is_standby).to_string()));
        return None;
    }
    leaf::number(field, 0, TIER_MAX, found).and_then(|tier| u8::try_from(tier).ok())
}

fn check_weights(pool: &str, servers: &[ServerAt], found: &mut Mistakes) {
    let Some(first) = servers.iter().find_map(|server| server.weight_span.clone()) else {
        return;
    };
    if servers.iter().all(|server| server.plan.weight == 0) {
        let message = format!("pool {} has weight 0 on every server", quoted(pool));
        let mistake = Mistake::new(Code::NoWeight, first, message);
        found.add(
            mistake
                .label("at least one server needs a positive weight")
                .help("to take one server out of rotation, give weight 0 to that one alone"),
        );
    }
}

fn check_unique(servers: &[ServerAt], found: &mut Mistakes) {
    let mut names: HashMap<&str, &ServerAt> = HashMap::new();
    let mut addresses: HashMap<SocketAddr, &ServerAt> = HashMap::new();
    for server in servers {
        let twice = |what: &str, text: &str, help: &str, first: &ServerAt| {
            let message = format!("two servers of a pool have the {what} {}", quoted(text));
            let mistake = Mistake::new(Code::NotUnique, server.span.clone(), message);
            mistake.label("again").also(first.span.clone(), "first here").help(help)
        };
        let address = server.plan.address;
        if let Some(first) = addresses.get(&address) {
            let help = "for a larger share of the traffic, give one of them a larger `weight`";
            found.add(twice("address", &address.to_string(), help, first));
        } else if let Some(first) = names.get(server.plan.name.as_str()) {
            found.add(twice(
                "name",
                &server.plan.name,
                "names tell servers apart in logs and commands",
                first,
            ));
        }
        addresses.entry(address).or_insert(server);
        names.entry(&server.plan.name).or_insert(server);
    }
}
