//! `tidegate servers`: every server with its state, and why it is not up.

use std::process::ExitCode;

use super::client::{Paint, Reading, show, table};
use crate::control::api::Server;

/// List the servers of every pool: state, weight, connections, and why one is not up
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub reading: Reading,
}

#[expect(clippy::needless_pass_by_value, reason = "every command has this shape")]
pub fn run(args: Args) -> ExitCode {
    show(&args.reading, "/api/v1/servers", |servers: &Vec<Server>, paint| human(servers, paint))
}

fn human(servers: &[Server], paint: Paint) -> String {
    let head = ["POOL", "SERVER", "ADDRESS", "STATE", "WEIGHT", "ACTIVE", "TOTAL", "FAILED", "WHY"];
    let rows = servers.iter().map(|server| {
        [
            server.pool.clone(),
            server.name.clone(),
            server.address.clone(),
            server.state.clone(),
            server.weight.to_string(),
            server.active.to_string(),
            server.total.to_string(),
            server.connect_failures.to_string(),
            server.why.clone(),
        ]
    });
    table(head, rows.collect(), paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_exactly_this() {
        let server = |name: &str, state: &str, why: &str| Server {
            pool: "api".into(),
            name: name.into(),
            address: "10.0.2.10:8080".into(),
            state: state.into(),
            why: why.into(),
            weight: 100,
            tier: 0,
            active: 3,
            total: 4000,
            connect_failures: 0,
            last_check: None,
            circuit: None,
        };
        let servers = [server("web1", "up", ""), server("web2", "down", "connection refused")];
        let expected = "\
POOL  SERVER  ADDRESS         STATE  WEIGHT  ACTIVE  TOTAL  FAILED  WHY
api   web1    10.0.2.10:8080  up        100       3   4000       0
api   web2    10.0.2.10:8080  down      100       3   4000       0  connection refused
";
        assert_eq!(human(&servers, Paint::NEVER), expected);
    }
}
