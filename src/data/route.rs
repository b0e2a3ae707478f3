//! Which pool serves a client, and why: the first route that takes it, and whether the canary gets it.
//!
//! Asks what is known of the client, in the order of the routes; who is not taken by any, or by one
//! that rejects, is refused here. As yet a route looks at the address alone.

use std::net::IpAddr;
use std::ptr;
use std::sync::Arc;

use super::visit::{Side, Visit};
use super::worker::Worker;
use crate::core::outcome::{By, Close, How, Phase, Reason};
use crate::live::search::Manner;
use crate::live::{PoolLive, RouteLive};
use crate::snapshot::{Listener, Pool, Target};
use crate::telemetry::stats::Flow;

/// The pools that are asked for one client, in order.
#[derive(Clone, Copy)]
pub(super) struct Way<'w> {
    pub(super) target: &'w Target,
    pub(super) is_canary: bool,
}

/// One of those pools.
pub(super) struct Step<'w> {
    pub(super) pool: &'w Arc<Pool>,
    pub(super) flow: &'w Arc<Flow>,
    pub(super) manner: Manner,
    /// Its turn for sound servers is over, and so is that of all others.
    pub(super) is_again: bool,
}

impl<'w> Way<'w> {
    /// The canary where it is the client's, and in any case the pool itself and those that it falls back to. Where
    /// there are such, all are asked for their sound servers first, and then for whoever is left.
    pub(super) fn steps(self) -> impl Iterator<Item = Step<'w>> {
        let target = self.target;
        let canary = target.canary.as_ref().filter(|_| self.is_canary);
        let step = |manner, is_again| move |(pool, flow)| Step { pool, flow, manner, is_again };
        let canary = canary.map(|canary| (&canary.pool, &canary.flow)).map(step(Manner::Canary, false));
        let chain = || target.pool.chain().zip(&target.flows);
        let has_others = target.pool.fallback.is_some();
        let sound = chain().filter(move |_| has_others).map(step(Manner::Sound, false));
        let left = chain().map(move |(pool, flow)| {
            let is_last = pool.fallback.is_none();
            let manner = if is_last { Manner::AgainAfterPauses } else { Manner::Once };
            step(manner, has_others)((pool, flow))
        });
        canary.into_iter().chain(sound).chain(left)
    }

    /// Is this one of the pools.
    pub(super) fn leads_to(self, pool: &PoolLive) -> bool {
        self.pools().any(|other| ptr::eq(&raw const *other.live, pool))
    }

    /// The main pool and those that it falls back to.
    pub(super) fn pools(self) -> impl Iterator<Item = &'w Arc<Pool>> {
        self.target.pool.chain()
    }

    /// The canary had no server for the client: from here on it is one of the main pool's.
    pub(super) fn leave_canary(self, visit: &Visit, worker: &Worker) {
        if let (Some(canary), Some(flow)) = (&self.target.canary, self.target.flows.first()) {
            visit.side.set(Side::LeftCanary);
            visit.turn_to(flow);
            canary.live.stats.of(worker.index).canary_left.add(1);
        }
    }
}

/// # Errors
/// `no_route`; `acl_deny` by a route that rejects.
pub(super) fn route<'w>(world: &'w Listener, visit: &Visit, worker: &Worker) -> Result<Way<'w>, Close> {
    let client = visit.client.ip().to_canonical();
    let Some(route) = world.routes.iter().find(|route| route.takes(client)) else {
        return Err(no_route(world, client));
    };
    visit.side.set(Side::Main);
    if let Some(live) = &route.live {
        live.stats.of(worker.index).connections.add(1);
    }
    visit.take_route(route.live.as_ref());
    let Some(target) = &route.target else {
        return Err(rejected(route.live.as_deref(), client));
    };
    if let Some(flow) = target.flows.first() {
        visit.turn_to(flow);
    }
    let canary = target.canary.as_ref().filter(|canary| canary.takes(client));
    if let Some(canary) = canary {
        canary.live.stats.of(worker.index).canary.add(1);
        visit.side.set(Side::Canary);
    }
    Ok(Way { target, is_canary: canary.is_some() })
}

/// The way of a client that was routed before it had to wait: by the same route, where there is one still. A
/// canary has had its turn then.
///
/// # Errors
/// As for one that comes now.
pub(super) fn route_again<'w>(world: &'w Listener, visit: &Visit, worker: &Worker) -> Result<Way<'w>, Close> {
    let same = world.routes.iter().find(|route| visit.has_route(route.live.as_ref()));
    match same.and_then(|route| route.target.as_ref()) {
        Some(target) => Ok(Way { target, is_canary: false }),
        None => route(world, visit, worker),
    }
}

fn no_route(world: &Listener, client: IpAddr) -> Close {
    let name = &world.plan.name;
    refused(Reason::NoRoute, format!("no route of listener `{name}` takes {client}, and it has no `pool`"))
}

fn rejected(route: Option<&RouteLive>, client: IpAddr) -> Close {
    let name = route.map_or("", |route| route.name.as_str());
    refused(Reason::AclDeny, format!("refused: route `{name}` takes {client}, and rejects"))
}

fn refused(reason: Reason, detail: String) -> Close {
    let (by, phase, how) = (By::Proxy, Phase::Route, How::Policy);
    Close { by, phase, how, reason, errno: None, detail: detail.into() }
}
