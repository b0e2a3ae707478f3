//! From what a plan says of a listener's clients to the pools that serve them, and to their counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Registry;
use crate::config::plan;
use crate::live::RouteLive;
use crate::snapshot::{Canary, Pool, Route, Target};
use crate::telemetry::stats::Flow;

/// One listener whose routes are being made.
pub(super) struct Routing<'a> {
    pub(super) listener: &'a plan::Listener,
    pub(super) pools: &'a BTreeMap<String, Arc<Pool>>,
    pub(super) registry: &'a mut Registry,
    pub(super) workers: usize,
}

impl Routing<'_> {
    /// In the order in which a client is held against them; the last is the listener's own pool.
    ///
    /// `None` where a pool does not exist; `check.rs` saw to it that each one does.
    pub(super) fn routes(&mut self) -> Option<Vec<Route>> {
        let plan = self.listener;
        let mut routes = Vec::with_capacity(plan.routes.len() + 1);
        for route in &plan.routes {
            let live = self.live(&route.name);
            let target = match &route.target {
                Some(target) => Some(self.target(target, Some(&live))?),
                None => None,
            };
            routes.push(Route { from: Arc::clone(&route.from), live: Some(live), target });
        }
        if let Some(target) = &plan.target {
            // A listener of one pool has nothing to tell apart, and its clients pay for no counting.
            let is_plain = routes.is_empty() && target.canary.is_none();
            let live = (!is_plain).then(|| self.live(plan::Route::DEFAULT));
            let target = Some(self.target(target, live.as_ref())?);
            routes.push(Route { from: Arc::default(), live, target });
        }
        Some(routes)
    }

    /// Where connections are counted that end before they have a route.
    pub(super) fn flow_at_first(&mut self) -> Arc<Flow> {
        let pool = self.listener.target.as_ref().map_or("", |target| target.pool.as_str());
        self.flow(pool)
    }

    fn target(&mut self, plan: &plan::Target, live: Option<&Arc<RouteLive>>) -> Option<Target> {
        let pool = Arc::clone(self.pools.get(&plan.pool)?);
        let flows = pool.chain().map(|pool| self.flow(&pool.plan.name)).collect();
        let canary = match (&plan.canary, live) {
            (Some(canary), Some(live)) if canary.pool != plan.pool => Some(self.canary(canary, live)?),
            _ => None,
        };
        Some(Target { pool, flows, canary })
    }

    fn canary(&mut self, plan: &plan::Canary, live: &Arc<RouteLive>) -> Option<Canary> {
        Some(Canary {
            from: Arc::clone(&plan.from),
            split: plan.split,
            pool: Arc::clone(self.pools.get(&plan.pool)?),
            flow: self.flow(&plan.pool),
            live: Arc::clone(live),
        })
    }

    fn flow(&mut self, pool: &str) -> Arc<Flow> {
        self.registry.flows.of(&self.listener.name, pool, self.workers)
    }

    fn live(&mut self, route: &str) -> Arc<RouteLive> {
        let (listener, workers) = (&self.listener.name, self.workers);
        let new = || Arc::new(RouteLive::new(route.to_owned(), workers));
        Arc::clone(self.registry.routes.entry((listener.clone(), route.to_owned())).or_insert_with(new))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::plan::{self, Share, Split, SplitBy};
    use crate::control::fixture::plan_of;
    use crate::control::publisher::{Publisher, ServerKey};
    use crate::core::health::State;
    use std::sync::Arc;

    /// Listener `web`, whose routes lead to `api` or nowhere, and pools `api`, `next` and `spare`.
    fn a_plan() -> plan::Plan {
        let mut plan = plan_of("api", &["a"]);
        for name in ["next", "spare"] {
            plan.pools.push(plan::Pool { name: name.into(), ..plan.pools[0].clone() });
        }
        plan
    }

    fn canary(share: f64) -> plan::Canary {
        let split = Split { share: Share::of(share).expect("a share"), by: SplitBy::Connection };
        plan::Canary { pool: "next".into(), split, from: Arc::default() }
    }

    fn to(pool: &str, canary: Option<plan::Canary>) -> Option<plan::Target> {
        Some(plan::Target { pool: pool.into(), canary })
    }

    #[test]
    fn a_listener_of_one_pool_has_one_route_and_counts_nothing_of_it() {
        let publisher = Publisher::new(&a_plan(), 1, 100);
        let web = Arc::clone(&publisher.snapshot().listeners["web"]);
        assert_eq!(web.routes.len(), 1);
        assert!(web.routes[0].live.is_none());
        assert_eq!(web.flow.pool, "api");
    }

    #[test]
    fn a_canarys_turn_outlives_a_reload_that_changes_its_share() {
        let mut plan = a_plan();
        plan.listeners[0].target = to("api", Some(canary(0.5)));
        let mut publisher = Publisher::new(&plan, 1, 100);
        let turn = |publisher: &Publisher| {
            let web = Arc::clone(&publisher.snapshot().listeners["web"]);
            web.routes[0].live.as_ref().expect("counted").next_turn()
        };
        assert_eq!(turn(&publisher), 0);
        plan.listeners[0].target = to("api", Some(canary(0.75)));
        publisher.apply(&plan);
        assert_eq!(turn(&publisher), 1);
        plan.listeners[0].target = to("api", None);
        publisher.apply(&plan);
        plan.listeners[0].target = to("api", Some(canary(0.75)));
        publisher.apply(&plan);
        assert_eq!(turn(&publisher), 0, "nobody held it any more");
    }

    #[test]
    fn a_change_of_health_is_seen_by_every_route_and_canary_that_leads_there() {
        let mut plan = a_plan();
        plan.pools[2].fallback = Some("next".into());
        let route = |name: &str, target| plan::Route { name: name.into(), from: Arc::default(), target };
        plan.listeners[0].routes = vec![route("1", None), route("2", to("spare", None))];
        plan.listeners[0].target = to("api", Some(canary(0.5)));
        let mut publisher = Publisher::new(&plan, 1, 100);
        let before = publisher.snapshot();

        let server = &plan.pools[1].servers[0];
        assert!(publisher.set_state(&ServerKey::new("next", server), State::Down));

        let after = Arc::clone(&publisher.snapshot().listeners["web"]);
        let target = |number: usize| after.routes[number].target.as_ref().expect("a pool");
        assert!(after.routes[0].target.is_none(), "it rejects");
        let fallback = target(1).pool.fallback.as_ref().expect("a fallback");
        assert_eq!(fallback.servers[0].state, State::Down);
        let flows: Vec<_> = target(1).flows.iter().map(|flow| flow.pool.as_str()).collect();
        assert_eq!(flows, ["spare", "next"]);
        let canary = target(2).canary.as_ref().expect("a canary");
        assert_eq!((canary.pool.servers[0].state, canary.live.name.as_str()), (State::Down, "default"));
        assert!(Arc::ptr_eq(&before.pools["api"], &target(2).pool));
        assert!(Arc::ptr_eq(&before.listeners["web"].flow, &after.flow));
    }
}
