//! `tidegate pools`: every pool, how it stands and why.

use std::process::ExitCode;

use super::client::{Reading, show, table};
use crate::control::api::Pool;

/// List the pools: how many servers are up, connections, and what is wrong
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub reading: Reading,
}

#[expect(clippy::needless_pass_by_value, reason = "every command has this shape")]
pub fn run(args: Args) -> ExitCode {
    show(&args.reading, "/api/v1/pools", |pools: &Vec<Pool>, paint| {
        let rows = pools.iter().map(|pool| {
            let up = format!("{}/{}", pool.servers_up, pool.servers_total);
            let (name, balance) = (pool.name.clone(), pool.balance.clone());
            [name, balance, pool.state.clone(), up, pool.active.to_string(), pool.why.clone()]
        });
        table(["POOL", "BALANCE", "STATE", "UP", "ACTIVE", "WHY"], rows.collect(), paint)
    })
}
