//! What is allowed and does harm: combinations that a server, or every client, suffers from.
//!
//! Warnings only. Each tells of something that this text alone shows; what a server really is, the port
//! and the check have to say.

use super::across::asked;
use super::fallback::ByName;
use super::listener::ListenerAt;
use super::section::{Field, Section};
use crate::config::file::Kind;
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::{CheckKind, HealthCheck, Pool, Probe, Rate};

/// The ports that are theirs by custom, and nobody else's.
const MYSQL: u16 = 3306;
const POSTGRES: u16 = 5432;

/// Clients that wait for a server that waits for them.
pub fn check_first_byte(listeners: &[ListenerAt], pools: &ByName<'_>, found: &mut Mistakes) {
    for listener in listeners {
        let Some(span) = &listener.first_byte_span else { continue };
        let mut asked = asked(listener, pools).into_iter();
        let mute = asked.find_map(|pool| Some((pool, greeter(pool.plan.health_check.as_ref()?)?)));
        if let Some((pool, protocol)) = mute {
            let name = quoted(&pool.plan.name);
            let message = format!("clients of pool {name} would wait in vain: its servers speak first");
            let label = format!(
                "nobody is asked before the client has spoken, and clients of {protocol} wait for the server"
            );
            let mistake = Mistake::new(Code::WaitsInVain, span.clone(), message).label(label);
            let also = format!("pool {name} is checked as `{protocol}`");
            found.add(mistake.also(pool.name_span.clone(), also).help("leave `first_byte_timeout` out"));
        }
    }
}

/// The protocol in which the server says the first word, where the check tells that it does.
fn greeter(check: &HealthCheck) -> Option<CheckKind> {
    match &check.probe {
        Probe::Mysql(_) => Some(CheckKind::Mysql),
        // Within TLS from the first byte, the client says hello.
        Probe::Smtp(smtp) if smtp.starttls || check.tls.is_none() => Some(CheckKind::Smtp),
        _ => None,
    }
}

/// A check that a database takes for a client that breaks off.
pub fn check_probe(pool: &Pool, field: Field<'_>, found: &mut Mistakes) {
    let Some(check) = &pool.health_check else { return };
    let kind = check.probe.kind();
    if !matches!(kind, CheckKind::Tcp | CheckKind::Http | CheckKind::Tls) {
        return;
    }
    let is_at = |port| pool.servers.iter().any(|it| check.port.unwrap_or(it.address.port()) == port);
    let (label, better) = match () {
        () if is_at(MYSQL) => {
            let label = "MySQL counts it as an error of this host, which it blocks after max_connect_errors";
            (label, CheckKind::Mysql)
        }
        () if is_at(POSTGRES) => ("PostgreSQL logs it as a client that broke off", CheckKind::Postgres),
        () => return,
    };
    let Kind::Table(table) = &field.value.kind else { return };
    let span = match table.entries.iter().find(|entry| entry.key == "type") {
        None => table.span.clone(),
        Some(entry) if entry.value.kind == Kind::Text(kind.to_string()) => entry.value.span.clone(),
        Some(_) => return, // what was meant could not be read, and that is told
    };
    let message = format!("a check of type \"{kind}\" is no login to this server");
    let help = format!("set `type = \"{better}\"` and a `user` with no rights but to log in");
    found.add(Mistake::new(Code::RudeCheck, span, message).label(label).help(help));
}

/// Limits of a part that the whole reaches first; only where the listener writes them itself.
pub fn check_parts(section: &Section<'_>, listener: &ListenerAt, found: &mut Mistakes) {
    let plan = &listener.plan;
    let mut idle = |key: &'static str, whole: String| {
        let Some(field) = section.get(key) else { return };
        let message = format!("`{key}` can never be reached");
        found.add(Mistake::new(Code::NoEffect, field.value.span.clone(), message).label(whole));
    };
    if let (Some(one), Some(all)) = (plan.bandwidth_per_connection, plan.bandwidth)
        && one > all
    {
        idle("bandwidth_per_connection", format!("all connections together have {all}"));
    }
    if let (Some(one), Some(all)) =
        (plan.admission.connection_rate_per_source, plan.admission.connection_rate)
        && is_above(one, all)
    {
        idle("connection_rate_per_source", format!("the listener takes {all} from all sources together"));
    }
    check_deny(section, listener, found);
}

/// Never the first of the two to be reached: neither at once nor in the long run.
fn is_above(one: Rate, all: Rate) -> bool {
    let in_the_long_run = |rate: Rate, other: Rate| u128::from(rate.count) * other.per.as_nanos();
    let (of_one, of_all) = (in_the_long_run(one, all), in_the_long_run(all, one));
    one.count >= all.count && of_one >= of_all && one != all
}

/// A list that leaves nobody.
fn check_deny(section: &Section<'_>, listener: &ListenerAt, found: &mut Mistakes) {
    let acl = &listener.plan.admission.acl;
    let is_denied = |is_ipv4| acl.denied().iter().any(|net| net.length() == 0 && net.is_ipv4() == is_ipv4);
    let binds = &listener.plan.bind;
    if !acl.allowed().is_empty() || binds.is_empty() || !binds.iter().all(|bind| is_denied(bind.is_ipv4())) {
        return;
    }
    let span = section.get("deny").map_or_else(|| section.span.clone(), |field| field.value.span.clone());
    let message = format!("`{}` lets nobody in", section.name);
    let mistake =
        Mistake::new(Code::NobodyIn, span, message).label("every client is in here, and none in `allow`");
    found.add(mistake.help("name in `allow` who may come in; then nobody else does, without `deny`"));
}
