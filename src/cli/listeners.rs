//! `tidegate listeners`: every listener, where it listens and how full it is.

use std::process::ExitCode;

use super::client::{Reading, show, table};
use crate::control::api::Listener;

/// List the listeners: addresses, connections, limit
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub reading: Reading,
}

#[expect(clippy::needless_pass_by_value, reason = "every command has this shape")]
pub fn run(args: Args) -> ExitCode {
    show(&args.reading, "/api/v1/listeners", |listeners: &Vec<Listener>, paint| {
        let rows = listeners.iter().map(|listener| {
            [
                listener.name.clone(),
                way(listener),
                listener.state.clone(),
                listener.active.to_string(),
                listener.limit.map_or("-".into(), |limit| limit.to_string()),
                listener.total.to_string(),
                listener.rejected.to_string(),
                listener.bind.join(", "),
            ]
        });
        let head = ["LISTENER", "POOL", "STATE", "ACTIVE", "LIMIT", "TOTAL", "REJECTED", "BIND"];
        table(head, rows.collect(), paint)
    })
}

/// `web, 5% web-next`, and how many routes come before.
fn way(listener: &Listener) -> String {
    let mut parts: Vec<_> = listener.pool.iter().cloned().collect();
    parts.extend(listener.canary.iter().map(|canary| format!("{} {}", canary.share, canary.pool)));
    match listener.routes.len() {
        0 => {}
        1 => parts.push("1 route".into()),
        routes => parts.push(format!("{routes} routes")),
    }
    parts.join(", ")
}
