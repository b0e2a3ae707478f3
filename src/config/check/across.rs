//! What must fit together: the pool that a listener names, ports that are claimed twice,
//! connections that would come back in.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use super::fallback;
use super::harm;
use super::listener::ListenerAt;
use super::pool::PoolAt;
use super::priority;
use super::process::AdminAt;
use super::section::nearest;
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::{Auto, Process};

pub fn check(
    process: &Process,
    admin: &AdminAt,
    listeners: &[ListenerAt],
    pools: &[PoolAt],
    found: &mut Mistakes,
) {
    let is_settled = fallback::check(pools, found);
    check_pools(listeners, pools, is_settled, found);
    check_ports(admin, listeners, found);
    check_loops(listeners, pools, found);
    harm::check_first_byte(listeners, &fallback::by_name(pools), found);
    check_limits(process, listeners, found);
    priority::check(listeners, found);
}

/// Every listener's pool, and every pool's listener; `is_settled` says that all fallbacks are known.
fn check_pools(listeners: &[ListenerAt], pools: &[PoolAt], is_settled: bool, found: &mut Mistakes) {
    let names = fallback::by_name(pools);
    let mut is_settled = is_settled && !listeners.is_empty();
    for listener in listeners {
        is_settled &= !listener.is_in_doubt;
        for named in &listener.named {
            if !names.contains_key(named.pool.as_str()) {
                is_settled = false;
                found.add(unknown_pool(&named.pool, named.span.clone(), pools));
            }
        }
    }
    // While a listener's pool is in doubt, the pool that nobody uses is likely the one it meant.
    if is_settled {
        let asked = listeners.iter().flat_map(|listener| asked(listener, &names));
        let used: HashSet<_> = asked.map(|pool| pool.plan.name.as_str()).collect();
        for pool in pools.iter().filter(|pool| !used.contains(pool.plan.name.as_str())) {
            let message = format!("no listener uses the pool {}", quoted(&pool.plan.name));
            let mistake = Mistake::new(Code::UnusedPool, pool.name_span.clone(), message);
            found.add(mistake.label("gets no traffic"));
        }
    }
}

/// Every pool that may serve a client of the listener; some more than once.
pub fn asked<'a>(listener: &ListenerAt, pools: &fallback::ByName<'a>) -> Vec<&'a PoolAt> {
    let chains = listener.named.iter().flat_map(|named| {
        // A canary falls back to the pool that has the rest, and to none of its own.
        let most = if named.is_canary { 1 } else { usize::MAX };
        fallback::chain(&named.pool, pools).into_iter().take(most)
    });
    chains.collect()
}

pub fn unknown_pool(name: &str, span: Range<usize>, pools: &[PoolAt]) -> Mistake {
    let mistake = Mistake::new(Code::UnknownPool, span.clone(), format!("there is no pool {}", quoted(name)));
    match nearest(name, pools.iter().map(|pool| pool.plan.name.as_str())) {
        Some(near) => {
            mistake.help(format!("did you mean {}?", quoted(near))).patch(span, format!("\"{near}\""))
        }
        None => mistake.help(format!("add a table `[pool.{name}]` with its `servers`")),
    }
}

/// Who has a port of one family: everybody's wildcard, or single addresses.
#[derive(Default)]
struct Port {
    wildcard: Option<Range<usize>>,
    first: Option<Range<usize>>,
    single: HashMap<SocketAddr, Range<usize>>,
}

/// The two wildcards do not meet: Tidegate sets IPV6_V6ONLY on its IPv6 sockets.
fn check_ports(admin: &AdminAt, listeners: &[ListenerAt], found: &mut Mistakes) {
    let binds =
        listeners.iter().flat_map(|listener| listener.plan.bind.iter().copied().zip(&listener.bind_spans));
    let http = admin.plan.http.iter().copied().zip(&admin.http_span);
    let mut claims: Vec<_> = binds.chain(http).collect();
    claims.sort_by_key(|(_, span)| span.start);

    let mut ports: HashMap<(bool, u16), Port> = HashMap::new();
    for (address, span) in claims {
        let port = ports.entry((address.is_ipv4(), address.port())).or_default();
        let is_wildcard = address.ip().is_unspecified();
        let earlier = match is_wildcard {
            true => port.first.as_ref(),
            false => port.wildcard.as_ref().or_else(|| port.single.get(&address)),
        };
        if let Some(earlier) = earlier {
            let is_same = port.single.contains_key(&address);
            found.add(clash(address, is_same, span.clone(), earlier.clone()));
        }
        port.first.get_or_insert_with(|| span.clone());
        if is_wildcard {
            port.wildcard.get_or_insert_with(|| span.clone());
        }
        port.single.entry(address).or_insert_with(|| span.clone());
    }
}

fn clash(address: SocketAddr, is_same: bool, span: Range<usize>, earlier: Range<usize>) -> Mistake {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let wildcard = if address.is_ipv4() { "0.0.0.0" } else { "[::]" };
    let mistake = Mistake::new(Code::BindClash, span, format!("port {} is claimed twice", address.port()));
    let mistake = mistake.also(earlier, "claimed here");
    if is_same {
        return mistake.label("again").help("each address and port may be listened on once");
    }
    let mistake = mistake.label("and here again");
    mistake.help(format!("{wildcard} claims its port on every {family} address: keep one of the two"))
}

/// A pool that connects to its own listener. Two Tidegates in a circle are beyond this look.
fn check_loops(listeners: &[ListenerAt], pools: &[PoolAt], found: &mut Mistakes) {
    let by_name = fallback::by_name(pools);
    for listener in listeners {
        let pools = asked(listener, &by_name);
        for (bind, bind_span) in listener.plan.bind.iter().zip(&listener.bind_spans) {
            let span_of = |address| pools.iter().find_map(|pool| pool.server_spans.get(&address));
            if let Some(span) = reached(*bind).find_map(span_of) {
                let message = format!("`listener.{}` would connect to itself", listener.plan.name);
                let mistake = Mistake::new(Code::Loop, span.clone(), message);
                found.add(
                    mistake
                        .label("this server is the listener itself")
                        .also(bind_span.clone(), "it listens here")
                        .help("give the server its own port, or its own address"),
                );
            }
        }
    }
}

/// Addresses that certainly lead to this bind.
fn reached(bind: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let local = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        IpAddr::V6(ip) if ip.is_unspecified() => Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        _ => None,
    };
    std::iter::once(bind).chain(local.map(|ip| SocketAddr::new(ip, bind.port())))
}

fn check_limits(process: &Process, listeners: &[ListenerAt], found: &mut Mistakes) {
    for listener in listeners {
        check_source_limit(listener, found);
    }
    let Auto::Set(whole) = process.max_connections else {
        return;
    };
    for listener in listeners {
        if let (Some(limit), Some(span)) = (listener.plan.max_connections, &listener.limit_span)
            && limit > whole
        {
            let mistake =
                Mistake::new(Code::NoEffect, span.clone(), "`max_connections` can never be reached");
            found.add(mistake.label(format!("`[process]` allows {whole} for all listeners together")));
        }
    }
}

fn check_source_limit(listener: &ListenerAt, found: &mut Mistakes) {
    if let (Some(limit), Some(span), Some(whole)) = (
        listener.plan.admission.max_connections_per_source,
        &listener.source_limit_span,
        listener.plan.max_connections,
    ) && limit > whole
    {
        let message = "`max_connections_per_source` can never be reached";
        let mistake = Mistake::new(Code::NoEffect, span.clone(), message);
        found.add(mistake.label(format!("the listener takes {whole} from all sources together")));
    }
}
